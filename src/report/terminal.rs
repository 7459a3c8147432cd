//! What a run says in the terminal, as text: pure functions from facts to lines. [`super::Terminal`] prints them.
//!
//! Every text ends with a line feed and keeps to the width where its content can be divided. Names and texts of models
//! and data are in it as they are, and styles as marks: [`super::printable`] makes of it what may be shown.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::assign::{Assignment, Owner};
use crate::events::EvaluationRecord;
use crate::report::format::{self, counted, fixed, grouped, percent};
use crate::report::grid::{Cell, Grid};
use crate::report::printable::{BOLD, FAINT, GREEN, PLAIN, YELLOW};
use crate::report::{ModuleNames, method_name, metrics_in_order, module_name};
use crate::score::Importance;
use crate::summary::{DataFacts, MemoryForecast, ModelFacts, Plan, SplitFacts, Status, Summary};

/// How text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether ANSI colours may be used.
    pub colour: bool,
}

impl Default for Style {
    fn default() -> Self {
        Style { width: 80, colour: false }
    }
}

impl Style {
    pub(super) fn bold(self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    fn faint(self, text: &str) -> String {
        self.paint(FAINT, text)
    }

    fn kept(self, text: &str) -> String {
        self.paint(GREEN, text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint(YELLOW, text)
    }

    fn paint(self, mark: char, text: &str) -> String {
        if self.colour { format!("{mark}{text}{PLAIN}") } else { text.to_string() }
    }
}

/// What was found in the model's folder.
pub fn model_facts(m: &ModelFacts, style: Style) -> String {
    let mut parameters = counted(m.parameters, "parameter");
    if let Some(found) = m.head_found {
        let body = if m.decoder { "decoder parameters" } else { "encoder parameters" };
        // Whether it fits the labels is known only when the data have been read.
        let head = if found { "a head in the checkpoint" } else { "a head newly initialised" };
        parameters = format!("{} and {head}", parameters.replace("parameters", body));
    } else if m.head_from_adapter {
        parameters += " and the adapter's head";
    }
    format!(
        "{}  {}\n       {}, {} of width {}, {}, vocabulary {}, {} positions\n       {parameters}\n",
        style.bold("Model"),
        m.model,
        m.architecture,
        counted(m.layers, "layer"),
        grouped(m.hidden_size),
        counted(m.heads, "head"),
        grouped(m.vocabulary),
        grouped(m.max_positions),
    )
}

/// What was found in the data: a line per split, then what happens to over-long rows, then the labels.
pub fn data_facts(d: &DataFacts, style: Style) -> String {
    let pair = d.pair_column.as_ref().map(|c| format!(" + {c}")).unwrap_or_default();
    let label = if d.label_column.is_empty() { String::new() } else { format!(" → {}", d.label_column) };
    let mut out = format!("{}   {}{pair}{label}\n", style.bold("Data"), d.text_column);
    let text = |of: fn(&SplitFacts) -> String| d.splits.iter().map(of).collect();
    let columns = [
        Column::new("", true, text(|s| s.name.clone())),
        Column::new("file", true, text(|s| s.file.clone())),
        Column::new("rows", false, text(|s| grouped(s.rows))),
        Column::new("tokens", false, text(|s| grouped(s.tokens))),
        Column::new(
            "length",
            false,
            text(|s| format!("{}–{}, median {}", s.shortest, s.longest, s.median_length)),
        ),
        Column::new("over-long", false, text(|s| grouped(s.over_long))),
    ];
    out.push_str(&indented(&table(&columns), 7));

    let over_long: usize = d.splits.iter().map(|s| s.over_long).sum();
    if over_long > 0 {
        let fate = match d.over_length.as_str() {
            "truncate" => "cut to that length",
            "drop" => "left out",
            _ => "an error",
        };
        let verb = if over_long == 1 { "is" } else { "are" };
        let line = format!(
            "{} of more than {} tokens {verb} {fate}",
            counted(over_long, "row"),
            grouped(d.max_length)
        );
        _ = writeln!(out, "       {}", style.warning(&line));
    }
    for s in &d.splits {
        if let Some((low, mean, high)) = s.label_range {
            let line = format!("labels {} to {}, mean {}", fixed(low, 2), fixed(high, 2), fixed(mean, 2));
            _ = writeln!(out, "       {:<6} {line}", s.name);
        } else if !d.classes.is_empty() {
            out.push_str(&balance(s, &d.classes, style));
        }
    }
    out
}

/// The classes of a split with their shares, over as many lines as they need.
fn balance(s: &SplitFacts, classes: &[String], style: Style) -> String {
    let entries = std::iter::zip(classes, &s.per_class)
        .map(|(name, &n)| format!("{name} {} ({})", grouped(n), percent(n as f64 / s.rows as f64)));
    let mut out = format!("       {:<6}", s.name);
    let mut used = 13;
    for (i, entry) in entries.enumerate() {
        let comma = if i > 0 { "," } else { "" };
        if i > 0 && used + letters(&entry) + 2 > style.width {
            _ = write!(out, "{comma}\n{:14}{entry}", "");
            used = 14 + letters(&entry);
        } else {
            _ = write!(out, "{comma} {entry}");
            used += letters(&entry) + comma.len() + 1;
        }
    }
    out.push('\n');
    out
}

/// Columns that a bar's cell needs besides the bar: the value, the mark, the space between.
const BESIDE_BAR: usize = 11;
const SHORTEST_BAR: usize = 4;
const LONGEST_BAR: usize = 24;

/// Importance as bars, a line per layer, the module types side by side; types that do not fit go below.
///
/// All bars have one scale. `●` marks kept modules, `○` shared ones, `×` those without LoRA.
pub fn importance(
    importance: &Importance,
    assignment: Option<&Assignment>,
    names: &ModuleNames,
    style: Style,
) -> String {
    let grid = Grid::new(importance, assignment, names);
    if grid.columns.is_empty() {
        return String::new();
    }
    let room = style.width.saturating_sub(7);
    let side_by_side = (room / (SHORTEST_BAR + BESIDE_BAR)).clamp(1, grid.columns.len());
    let bar = (room / side_by_side).saturating_sub(BESIDE_BAR).clamp(SHORTEST_BAR, LONGEST_BAR);
    let largest = grid.largest();
    let mut out = String::new();
    for start in (0..grid.columns.len()).step_by(side_by_side) {
        if start > 0 {
            out.push('\n');
        }
        let columns = start..(start + side_by_side).min(grid.columns.len());
        let mut head = String::from("layer");
        for c in columns.clone() {
            let width = bar + BESIDE_BAR - 2;
            _ = write!(head, "  {}", padded(&cut(&grid.columns[c], width), width));
        }
        _ = writeln!(out, "{}", style.bold(head.trim_end()));
        for (layer, cells) in std::iter::zip(&grid.layers, &grid.cells) {
            let mut line = format!("{layer:>5}");
            for cell in &cells[columns.clone()] {
                _ = write!(line, "  {}", bar_cell(cell.as_ref(), largest, bar, style));
            }
            _ = writeln!(out, "{}", line.trim_end());
        }
    }
    let signs = [(Owner::Own, "● kept"), (Owner::Shared, "○ shared"), (Owner::None, "× without LoRA")];
    let legend: Vec<&str> = signs.iter().filter(|(o, _)| grid.has(*o)).map(|(_, t)| *t).collect();
    if !legend.is_empty() {
        _ = writeln!(out, "       {}", style.faint(&legend.join("   ")));
    }
    out
}

/// The bar, the value and the mark of a module: `bar + BESIDE_BAR - 2` columns wide.
fn bar_cell(cell: Option<&Cell>, largest: f64, width: usize, style: Style) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let Some(cell) = cell else {
        return " ".repeat(width + BESIDE_BAR - 2);
    };
    let share = cell.importance / largest;
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * (8 * width) as f64).round() as usize;
    let bar = padded(&format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8]), width);
    let value = format!("{:>5}", fixed(cell.importance, 3));
    match cell.owner {
        Some(Owner::Own) => format!("{} {value} {}", style.kept(&bar), style.kept("●")) + " ",
        Some(Owner::Shared) => format!("{} {value} ○ ", style.faint(&bar)),
        Some(Owner::None) => format!("{} {value} × ", style.faint(&bar)),
        None => format!("{bar} {value}   "),
    }
}

/// Which layers keep their own LoRA, a line per module type.
pub fn assignment(assignment: &Assignment, names: &ModuleNames) -> String {
    let kinds: std::collections::BTreeSet<_> = assignment.owners.keys().map(|m| m.kind).collect();
    let longest = kinds.iter().map(|&k| letters(module_name(names, k))).max().unwrap_or(0);
    let mut out = String::new();
    for kind in kinds {
        let layers = |owner: Owner| -> Vec<usize> {
            let mine = assignment.owners.iter().filter(|(m, o)| m.kind == kind && **o == owner);
            mine.map(|(m, _)| m.layer).collect()
        };
        let (own, shared, none) = (layers(Owner::Own), layers(Owner::Shared), layers(Owner::None));
        let all = own.len() + shared.len() + none.len();
        let mut line = match own.as_slice() {
            [] => format!("keeps none of {}", counted(all, "layer")),
            own => format!("keeps {} of {}: {}", own.len(), counted(all, "layer"), format::layers(own)),
        };
        if !shared.is_empty() {
            let verb = if shared.len() == 1 { "uses" } else { "share" };
            _ = write!(line, "; {} {verb} one LoRA", shared.len());
        }
        if !none.is_empty() {
            let verb = if none.len() == 1 { "has" } else { "have" };
            _ = write!(line, "; {} {verb} none", none.len());
        }
        _ = writeln!(out, "{}  {line}", padded(module_name(names, kind), longest));
    }
    out
}

/// What memory is foreseen, and how the steps are cut for it.
pub fn memory(m: &MemoryForecast, style: Style) -> String {
    let limit = m.limit.map(|limit| format!(" of {}", format::bytes(limit))).unwrap_or_default();
    let passes = passes(m, " on the way back");
    format!("{} {}{limit} foreseen: {passes}\n", style.bold("Memory"), format::bytes(m.total))
}

/// How a step's passes are made; `back` says more of activations that are formed again.
fn passes(m: &MemoryForecast, back: &str) -> String {
    let together = if m.together > 1 { format!(", {} side by side", m.together) } else { String::new() };
    let again = if m.recompute { format!(", activations formed again{back}") } else { String::new() };
    format!("micro-batches of {} tokens{together}{again}", grouped(m.micro_tokens))
}

/// What is computed once.
pub fn reusing(blocks: usize) -> String {
    let these =
        if blocks == 1 { "block has".to_string() } else { format!("{} blocks have", grouped(blocks)) };
    format!("The lowest {these} neither LoRA nor dropout: computed in the first epoch, then read from disk\n")
}

/// How far the ranking has settled.
pub fn rescored(step: usize, tau: f64, settled: bool) -> String {
    let end = if settled { ": the ranking has settled" } else { "" };
    format!("scored at step {}, Kendall's tau to the scoring before {}{end}\n", grouped(step), fixed(tau, 3))
}

/// One evaluation.
pub fn evaluation(e: &EvaluationRecord, style: Style) -> String {
    let mut line = format!("epoch {:>2}", e.epoch);
    for (name, value) in &e.metrics {
        _ = write!(line, "  {name} {}", fixed(*value, 4));
    }
    _ = write!(line, "  dev loss {}", fixed(e.loss, 4));
    if e.best {
        _ = write!(line, "  {}", style.kept("best so far"));
    }
    line + "\n"
}

/// What came out, at the end of a run.
pub fn result(s: &Summary, style: Style) -> String {
    let state = if s.status == Status::Finished { String::new() } else { format!(" ({})", s.status.name()) };
    let mut out = style.bold(&format!("{}{state}", method_name(&s.method))) + "\n";
    let mut rows: Vec<(String, String)> = Vec::new();
    for (i, (name, value)) in metrics_in_order(s).into_iter().enumerate() {
        let epoch =
            if i == 0 { format!("  dev, epoch {} of {}", s.best_epoch, s.epochs) } else { String::new() };
        rows.push((name.to_string(), fixed(value, 4) + &epoch));
    }
    rows.push(("trained".into(), counted(s.trainable_parameters, "parameter")));
    if s.lora_parameters_full > 0 {
        let full = grouped(s.lora_parameters_full);
        let ratio = percent(s.retained_ratio);
        rows.push((
            "unique LoRA".into(),
            format!("{}, {ratio} of plain LoRA's {full}", grouped(s.lora_parameters)),
        ));
    }
    let mut parts = Vec::new();
    if s.sample_steps > 0 {
        parts.push(format!("sample {}", format::duration(s.sample_seconds)));
    }
    parts.push(format!("training {}", format::duration(s.train_seconds)));
    parts.push(format!("evaluation {}", format::duration(s.evaluate_seconds)));
    rows.push(("time".into(), format!("{} ({})", format::duration(s.total_seconds), parts.join(", "))));
    rows.push(("speed".into(), format!("{} tokens/s", format::rate(s.train_tokens_per_second))));
    rows.push(("peak memory".into(), format::bytes(s.peak_rss_bytes)));
    if let Some(error) = &s.error {
        rows.push(("ended by".into(), error.clone()));
    }
    for (name, value) in rows {
        _ = writeln!(out, "  {name:<13}{value}");
    }
    out
}

/// What a run's folder says beside its result: from what it was made, what it keeps, its files.
pub fn details(s: &Summary) -> String {
    let mut rows = vec![("model", s.model.clone()), ("data", s.data.clone()), ("seed", s.seed.to_string())];
    for (kind, layers) in &s.kept {
        let layers = if layers.is_empty() { "no layer".into() } else { format::layers(layers) };
        rows.push(("kept", format!("{kind}: {layers}")));
    }
    for (file, size) in &s.files {
        rows.push(("file", format!("{file}, {}", format::bytes(*size))));
    }
    rows.iter().map(|(name, value)| format!("  {name:<13}{value}\n")).collect()
}

/// The files of a run, by folder.
pub fn written(files: &[PathBuf], style: Style) -> String {
    let mut folders: Vec<(&Path, Vec<String>)> = Vec::new();
    for file in files {
        let folder = file.parent().unwrap_or(Path::new(""));
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match folders.iter_mut().find(|(known, _)| *known == folder) {
            Some((_, names)) => names.push(name),
            None => folders.push((folder, vec![name])),
        }
    }
    let line = |(folder, names): &(&Path, Vec<String>)| {
        format!("{} {}: {}\n", style.bold("Wrote"), folder.display(), names.join(", "))
    };
    folders.iter().map(line).collect()
}

/// Several runs side by side, a line each: the name to show and the summary. Every metric that one of them has is a
/// column; the best value is marked where runs differ. A narrow terminal leaves out memory, speed and trained values.
pub fn comparison(runs: &[(String, Summary)], style: Style) -> String {
    let mut metrics: Vec<&str> = Vec::new();
    for (name, _) in runs.iter().flat_map(|(_, s)| metrics_in_order(s)) {
        if !metrics.contains(&name) {
            metrics.push(name);
        }
    }
    let text = |of: &dyn Fn(&Summary) -> String| runs.iter().map(|(_, s)| of(s)).collect::<Vec<String>>();
    let lora = |of: fn(&Summary) -> String| {
        text(&|s| if s.lora_parameters_full > 0 { of(s) } else { format::NONE.to_string() })
    };
    let mut columns = vec![
        Column::new("run", true, runs.iter().map(|(name, _)| name.clone()).collect()),
        Column::new("method", true, text(&|s| method_name(&s.method).to_string())),
    ];
    for metric in metrics {
        let values: Vec<Option<f64>> = runs.iter().map(|(_, s)| s.metrics.get(metric).copied()).collect();
        let best = values.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        let differ = values.iter().flatten().any(|v| *v != best);
        // Heads and other values stand over the digits, not over the mark.
        let beside = if differ { "  " } else { "" };
        let cell = |value: &Option<f64>| match value {
            Some(v) if *v == best && differ => fixed(*v, 4) + " *",
            Some(v) => fixed(*v, 4) + beside,
            None => format!("{}{beside}", format::NONE),
        };
        let head = format!("{metric}{beside}");
        columns.push(Column::new(&head, false, values.iter().map(cell).collect()));
    }
    columns.push(Column::new("LoRA", false, lora(|s| grouped(s.lora_parameters))));
    columns.push(Column::new("of plain", false, lora(|s| percent(s.retained_ratio))));
    columns.push(Column::new("time", false, text(&|s| format::duration(s.total_seconds))));
    columns.push(Column::new("trained", false, text(&|s| grouped(s.trainable_parameters))));
    columns.push(Column::new("tokens/s", false, text(&|s| format::rate(s.train_tokens_per_second))));
    columns.push(Column::new("memory", false, text(&|s| format::bytes(s.peak_rss_bytes))));
    for _ in 0..3 {
        let width: usize = columns.iter().map(|c| c.width() + 2).sum();
        if width > style.width + 2 {
            columns.pop();
        }
    }
    let text = table(&columns);
    let (head, body) = text.split_once('\n').unwrap_or((&text, ""));
    format!("{}\n{body}", style.bold(head))
}

/// What a run would do.
pub fn plan(p: &Plan, style: Style) -> String {
    let mut rows = Vec::new();
    if p.sample_rows > 0 {
        let steps = counted(p.sample_steps, "step");
        rows.push(("sample", format!("{}, at most {steps}", counted(p.sample_rows, "row"))));
    }
    rows.push((
        "training",
        format!(
            "{}, {}, {}",
            counted(p.train_rows, "row"),
            counted(p.train_steps, "step"),
            counted(p.train_tokens, "token")
        ),
    ));
    if p.lora_parameters_full > 0 {
        let (least, most) = p.lora_parameters;
        let share = |n: usize| percent(n as f64 / p.lora_parameters_full as f64);
        let full = grouped(p.lora_parameters_full);
        rows.push((
            "unique LoRA",
            if least == most {
                format!("{}, {} of plain LoRA's {full}", grouped(most), share(most))
            } else {
                format!(
                    "{} to {}, {} to {} of plain LoRA's {full}",
                    grouped(least),
                    grouped(most),
                    share(least),
                    share(most)
                )
            },
        ));
    }
    rows.push(("trained", format!("at most {}", counted(p.trainable_parameters, "parameter"))));
    let m = &p.memory;
    rows.push(("memory", format!("about {}, {}", format::bytes(p.memory_bytes), passes(m, ""))));
    for (name, part) in m.parts() {
        if part > 0 {
            rows.push(("", format!("{name:<12} {:>10}", format::bytes(part))));
        }
    }
    rows.push(("time", format!("about {}", format::duration(p.seconds))));
    let mut out =
        format!("{}\n", style.bold(&format!("Plan: {} (nothing was trained)", method_name(&p.method))));
    for (name, value) in rows {
        _ = writeln!(out, "  {name:<13}{value}");
    }
    out
}

/// A column of a table: its head and its cells.
pub(super) struct Column {
    left: bool,
    cells: Vec<String>,
}

impl Column {
    pub(super) fn new(head: &str, left: bool, cells: Vec<String>) -> Self {
        Column { left, cells: std::iter::once(head.to_string()).chain(cells).collect() }
    }

    fn width(&self) -> usize {
        self.cells.iter().map(|cell| letters(cell)).max().unwrap_or(0)
    }
}

/// Columns side by side, each as wide as its widest cell; all have the same number of cells.
pub(super) fn table(columns: &[Column]) -> String {
    let mut out = String::new();
    for row in 0..columns.first().map_or(0, |c| c.cells.len()) {
        let cells = columns.iter().map(|column| {
            let cell = &column.cells[row];
            let fill = " ".repeat(column.width() - letters(cell));
            if column.left { format!("{cell}{fill}") } else { format!("{fill}{cell}") }
        });
        _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

fn indented(text: &str, columns: usize) -> String {
    text.lines().map(|line| format!("{:columns$}{line}\n", "")).collect()
}

fn letters(text: &str) -> usize {
    text.chars().count()
}

/// The text, or its beginning and an ellipsis.
fn cut(text: &str, width: usize) -> String {
    if letters(text) <= width {
        return text.to_string();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(letters(text))))
}
