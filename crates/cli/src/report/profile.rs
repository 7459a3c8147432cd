//! Profiles and the rates of single products, as tables for the terminal.

use crate::report::terminal::{Style, Table};
use lora_drop::bench::{Kernel, Kernels};
use lora_drop::format::{counted, fixed, grouped, percent};
use lora_drop::profile::{Profile, Rates};

/// A line of a profile: a phase, an operation, or all.
struct Line<'a> {
    name: String,
    calls: usize,
    seconds: f64,
    rates: Option<&'a Rates>,
}

/// Where the time went: a part for each phase with its sum, and below it the operations.
pub fn profile(profile: &Profile, style: Style) -> String {
    let sum = |name: &str, seconds| Line { name: name.to_string(), calls: 0, seconds, rates: None };
    let mut lines: Vec<Line> = Vec::new();
    for part in profile.operations.chunk_by(|a, b| a.phase == b.phase) {
        lines.push(sum(part[0].phase, part.iter().map(|row| row.seconds).sum()));
        lines.extend(part.iter().map(|row| Line {
            name: format!("  {}", row.operation),
            calls: row.calls,
            seconds: row.seconds,
            rates: Some(&row.rates),
        }));
    }
    lines.push(sum("all", profile.operations.iter().map(|row| row.seconds).sum()));
    let table = Table::new(&lines)
        .text("operation", |line| line.name.clone())
        .number("calls", |line| if line.calls == 0 { String::new() } else { grouped(line.calls) })
        .number("seconds", |line| fixed(line.seconds, 3))
        .number("share", |line| percent(line.seconds / profile.seconds));
    let recorded: Vec<String> =
        profile.recorded.iter().map(|recorded| counted(recorded.count, recorded.name)).collect();
    let title = format!("Profile of {}", recorded.join(" and "));
    let peak = peak(profile.peak_gflops, profile.threads);
    format!("{}; {peak}\n{}", style.bold(&title), with_rates(table, |line| line.rates).fit(style.width))
}

/// The rates of single products.
pub fn kernels(kernels: &Kernels, style: Style) -> String {
    let table = Table::new(&kernels.products)
        .text("layer", |kernel: &Kernel| kernel.layer.clone())
        .text("out × in", |kernel| format!("{} × {}", kernel.output, kernel.input))
        .text("storage", |kernel| kernel.storage.clone())
        .optional()
        .number("layers", |kernel| kernel.layers.to_string())
        .text("product", |kernel| kernel.product.to_string())
        .number("ms", |kernel| fixed(1e3 * kernel.seconds, 3));
    let title = format!("Products of {}", counted(kernels.rows, "row"));
    let peak = peak(kernels.peak_gflops, kernels.threads);
    format!(
        "{}; {peak}\n{}",
        style.bold(&title),
        with_rates(table, |kernel| Some(&kernel.rates)).fit(style.width)
    )
}

fn peak(gflops: f64, threads: usize) -> String {
    format!("peak {} GFLOP/s on {}", fixed(gflops, 0), counted(threads, "thread"))
}

/// Adds GFLOP/s, share of the peak and GB/s, empty where a line has none.
fn with_rates<'a, R>(table: Table<'a, R>, rates: fn(&R) -> Option<&Rates>) -> Table<'a, R> {
    let text = |row: &R, of: fn(&Rates) -> Option<String>| rates(row).and_then(of).unwrap_or_default();
    table
        .number("GFLOP/s", |row| text(row, |rates| rates.gflops.map(|rate| fixed(rate, 1))))
        .optional()
        .number("of peak", |row| text(row, |rates| rates.share_of_peak.map(percent)))
        .optional()
        .number("GB/s", |row| text(row, |rates| rates.gb_per_second.map(|rate| fixed(rate, 1))))
        .optional()
}
