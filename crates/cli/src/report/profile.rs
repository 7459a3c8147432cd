//! Profiles and the rates of single products, as tables for the terminal.

use crate::report::terminal::{Column, Style, table};
use lora_drop::bench::Kernels;
use lora_drop::format::{counted, fixed, grouped, percent};
use lora_drop::profile::{Profile, Rates};

/// Where the time went: a part for each phase with its sum, and below it the operations.
pub fn profile(profile: &Profile, style: Style) -> String {
    let mut lines: Vec<[String; 4]> = Vec::new();
    let mut rates: Vec<Option<&Rates>> = Vec::new();
    let times = |seconds: f64| [fixed(seconds, 3), percent(seconds / profile.seconds)];
    for part in profile.operations.chunk_by(|a, b| a.phase == b.phase) {
        let [seconds, share] = times(part.iter().map(|row| row.seconds).sum());
        lines.push([part[0].phase.to_string(), String::new(), seconds, share]);
        rates.push(None);
        for row in part {
            let calls = if row.calls == 0 { String::new() } else { grouped(row.calls) };
            let [seconds, share] = times(row.seconds);
            lines.push([format!("  {}", row.operation), calls, seconds, share]);
            rates.push(Some(&row.rates));
        }
    }
    let [seconds, share] = times(profile.operations.iter().map(|row| row.seconds).sum());
    lines.push(["all".to_string(), String::new(), seconds, share]);
    rates.push(None);
    let heads = [("operation", true), ("calls", false), ("seconds", false), ("share", false)];
    let columns = heads.into_iter().enumerate().map(|(column, (head, left))| {
        Column::new(head, left, lines.iter().map(|line| line[column].clone()).collect())
    });
    let columns: Vec<Column> = columns.chain(rate_columns(&rates)).collect();
    let recorded: Vec<String> =
        profile.recorded.iter().map(|recorded| counted(recorded.count, recorded.name)).collect();
    let title = format!("Profile of {}", recorded.join(" and "));
    let peak = peak(profile.peak_gflops, profile.threads);
    format!("{}; {peak}\n{}", style.bold(&title), table(&columns, style.width))
}

/// The rates of single products.
pub fn kernels(kernels: &Kernels, style: Style) -> String {
    let text = |of: fn(&lora_drop::bench::Kernel) -> String| kernels.products.iter().map(of).collect();
    let rates: Vec<Option<&Rates>> = kernels.products.iter().map(|kernel| Some(&kernel.rates)).collect();
    let columns = [
        Column::new("layer", true, text(|kernel| kernel.layer.clone())),
        Column::new("out × in", true, text(|kernel| format!("{} × {}", kernel.output, kernel.input))),
        Column::new("storage", true, text(|kernel| kernel.storage.clone())).optional(),
        Column::new("layers", false, text(|kernel| kernel.layers.to_string())),
        Column::new("product", true, text(|kernel| kernel.product.to_string())),
        Column::new("ms", false, text(|kernel| fixed(1e3 * kernel.seconds, 3))),
    ];
    let columns: Vec<Column> = columns.into_iter().chain(rate_columns(&rates)).collect();
    let title = format!("Products of {}", counted(kernels.rows, "row"));
    let peak = peak(kernels.peak_gflops, kernels.threads);
    format!("{}; {peak}\n{}", style.bold(&title), table(&columns, style.width))
}

fn peak(gflops: f64, threads: usize) -> String {
    format!("peak {} GFLOP/s on {}", fixed(gflops, 0), counted(threads, "thread"))
}

/// GFLOP/s, share of the peak and GB/s, as far as the terminal has room; nothing where a line has
/// none.
fn rate_columns(rates: &[Option<&Rates>]) -> [Column; 3] {
    let text = |of: fn(&Rates) -> Option<String>| {
        rates.iter().map(|rates| rates.and_then(of).unwrap_or_default()).collect()
    };
    [
        Column::new("GFLOP/s", false, text(|rates| rates.gflops.map(|rate| fixed(rate, 1)))).optional(),
        Column::new("of peak", false, text(|rates| rates.share_of_peak.map(percent))).optional(),
        Column::new("GB/s", false, text(|rates| rates.gb_per_second.map(|rate| fixed(rate, 1)))).optional(),
    ]
}
