//! The terminal's texts about a run: pure functions from facts to lines, which [`super::Terminal`]
//! prints.
//!
//! Every text ends with a line feed. Tables and bars keep to the width. A text has the names and
//! texts of models and data unchanged, and marks for styles: [`Style::fit`] makes it safe to show
//! and breaks long lines.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::report::grid::{Cell, Grid};
use crate::report::printable::{BOLD, FAINT, GREEN, PLAIN, YELLOW, printable};
use crate::report::words::{
    adapter_name, assignment_lines, baseline_name, budget_decision, budget_rows, class_shares, class_weights,
    label_range, method_name, metrics_in_order, plain_name,
};
use lora_drop::assignment::{Assignment, Owner};
use lora_drop::evaluate::metrics::higher_is_better;
use lora_drop::events::{EvaluationRecord, Stage};
use lora_drop::format::{self, counted, fixed, grouped, percent};
use lora_drop::run_record::ModuleNames;
use lora_drop::score::{BudgetCurve, Importance};
use lora_drop::settings::as_options;
use lora_drop::summary::{
    Baseline, DataFacts, MemoryEstimate, ModelFacts, Plan, SourceFacts, Status, Summary,
};

/// How text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal; 80 where there is none.
    pub width: usize,
    /// Whether ANSI colours may be used.
    pub colour: bool,
    /// Whether the text is for a terminal, where long lines have to be broken. Files and pipes keep
    /// lines whole.
    pub terminal: bool,
}

impl Style {
    /// Makes a text safe to show, see [`super::printable`], and for a terminal breaks its lines at
    /// words.
    pub fn fit(self, text: &str) -> String {
        let shown = printable(text, self.colour);
        if self.terminal { wrap(&shown, self.width) } else { shown.into_owned() }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.paint(FAINT, text)
    }

    pub(super) fn kept(self, text: &str) -> String {
        self.paint(GREEN, text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint(YELLOW, text)
    }

    fn paint(self, mark: char, text: &str) -> String {
        if self.colour { format!("{mark}{text}{PLAIN}") } else { text.to_string() }
    }
}

/// The model that was found.
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

/// The data that were found: a line per split, then what happens to over-long rows, then the
/// labels.
pub fn data_facts(d: &DataFacts, style: Style) -> String {
    let pair = d.pair_column.as_ref().map(|c| format!(" + {c}")).unwrap_or_default();
    let label = if d.label_column.is_empty() { String::new() } else { format!(" → {}", d.label_column) };
    let mut out = format!("{}   {}{pair}{label}\n", style.bold("Data"), d.text_column);
    let splits = Table::new(&d.splits)
        .text("", |s| s.name.clone())
        .text("file", |s| s.file.clone())
        .number("rows", |s| grouped(s.rows))
        .number("tokens", |s| grouped(s.tokens))
        .number("length", |s| format!("{}–{}, median {}", s.shortest, s.longest, s.median_length))
        .number("over-long", |s| grouped(s.over_long));
    out.push_str(&indented(&splits.fit(style.width.saturating_sub(7)), 7));

    if !d.sources.is_empty() {
        out.push_str(&indented(&source_table(&d.sources, style.width.saturating_sub(7)), 7));
    }
    if let Some(fate) = fate_of_over_long(d) {
        _ = writeln!(out, "       {}", style.warning(&fate));
    }
    for s in &d.splits {
        let labels = match s.label_range {
            Some(range) => format!("labels {}", label_range(range)),
            None => class_shares(s, &d.classes, CLASSES_SHOWN).join(", "),
        };
        if !labels.is_empty() {
            _ = writeln!(out, "       {:<6} {labels}", s.name);
        }
    }
    if let Some(weights) = class_weights(d) {
        _ = writeln!(out, "       weight {weights}");
    }
    if let Some(positive) = &d.positive_class {
        _ = writeln!(out, "       F1     of {positive}");
    }
    out
}

/// Where rows come from, and how many of each source an epoch has.
pub(super) fn source_table(sources: &[SourceFacts], width: usize) -> String {
    let all: usize = sources.iter().map(|source| source.of_epoch).sum();
    Table::new(sources)
        .text("source", |source| source.name.clone())
        .number("rows", |source| grouped(source.rows))
        .number("an epoch", |source| grouped(source.of_epoch))
        .number("", |source| percent(source.of_epoch as f64 / all.max(1) as f64))
        .fit(width)
}

/// What happens to rows of too many tokens; None if there are none.
pub(super) fn fate_of_over_long(d: &DataFacts) -> Option<String> {
    let over_long: usize = d.splits.iter().map(|s| s.over_long).sum();
    let fate = match d.over_length.as_str() {
        "truncate" => "cut to that length",
        "drop" => "left out",
        "split" => "split into several sequences",
        _ => "an error",
    };
    let verb = if over_long == 1 { "is" } else { "are" };
    let (rows, most) = (counted(over_long, "row"), grouped(d.max_length));
    (over_long > 0).then(|| format!("{rows} of more than {most} tokens {verb} {fate}"))
}

/// The most classes that are listed.
const CLASSES_SHOWN: usize = 20;

/// Columns that a bar's cell needs besides the bar: the value, the mark, the space between.
const BESIDE_BAR: usize = 11;
const SHORTEST_BAR: usize = 4;
const LONGEST_BAR: usize = 24;

/// Importance as bars, a line per layer, the module types next to each other; types for which there
/// is no room come below.
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

/// A bar of at most `width` columns, for a share from 0 to 1.
pub(super) fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * (8 * width) as f64).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// The bar, the value and the mark of a module: `bar + BESIDE_BAR - 2` columns wide.
fn bar_cell(cell: Option<&Cell>, largest: f64, width: usize, style: Style) -> String {
    let Some(cell) = cell else {
        return " ".repeat(width + BESIDE_BAR - 2);
    };
    let bar = padded(&bar(cell.importance / largest, width), width);
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
    let lines = assignment_lines(assignment, names);
    let longest = lines.iter().map(|(name, _)| letters(name)).max().unwrap_or(0);
    lines.iter().map(|(name, line)| format!("{}  {line}\n", padded(name, longest))).collect()
}

/// The estimated memory, and how the steps are cut for it.
pub fn memory(m: &MemoryEstimate, style: Style) -> String {
    let limit = m.limit.map(|limit| format!(" of {}", format::bytes(limit))).unwrap_or_default();
    format!("{} {}{limit} estimated: {}\n", style.bold("Memory"), format::bytes(m.total), passes(m))
}

/// How a step's passes are made.
fn passes(m: &MemoryEstimate) -> String {
    let concurrent =
        if m.concurrent > 1 { format!(", {} concurrently", m.concurrent) } else { String::new() };
    let recompute = if m.recompute { ", activations recomputed in the backward pass" } else { "" };
    format!("micro-batches of {} tokens{concurrent}{recompute}", grouped(m.micro_tokens))
}

/// The lower blocks whose output is computed once.
pub fn reusing(blocks: usize) -> String {
    let these =
        if blocks == 1 { "block has".to_string() } else { format!("{} blocks have", grouped(blocks)) };
    format!("The lowest {these} neither LoRA nor dropout: computed in the first epoch, then read from disk\n")
}

/// Where a run continues.
pub fn resumed(stage: Stage, steps: usize) -> String {
    let stage = if stage == Stage::Sample { "the sample stage" } else { "training" };
    format!("Resuming {stage} after {}\n", counted(steps, "step"))
}

/// How much the ranking changed since the last scoring.
pub fn rescored(step: usize, tau: f64, settled: bool) -> String {
    let end = if settled { ": the ranking is stable" } else { "" };
    format!("scored at step {}, Kendall's tau to the scoring before {}{end}\n", grouped(step), fixed(tau, 3))
}

/// The loss on held-out rows at each budget, and which budget is kept.
pub fn budget_curve(curve: &BudgetCurve, style: Style) -> String {
    let table = Table::new(&budget_rows(curve))
        .text("budget", |(budget, ..)| budget.clone())
        .number("parameters", |(_, parameters, _)| parameters.clone())
        .number("loss", |(.., loss)| fixed(*loss, 4))
        .fit(style.width);
    format!("{table}{}\n", budget_decision(curve))
}

/// What dev gives without training.
pub fn baseline(b: &Baseline) -> String {
    let class = b.class.as_ref().map(|class| format!(" ({class:?})")).unwrap_or_default();
    format!("{}{class}  {} {}\n", baseline_name(b.kind), b.name, fixed(b.value, 4))
}

/// One evaluation.
pub fn evaluation(e: &EvaluationRecord, style: Style) -> String {
    let mut line = format!("epoch {:>2}", format::epoch(e.epoch));
    for (name, value) in &e.metrics {
        _ = write!(line, "  {name} {}", fixed(*value, 4));
    }
    _ = write!(line, "  dev loss {}", fixed(e.loss, 4));
    if e.best {
        _ = write!(line, "  {}", style.kept("best so far"));
    }
    line.push('\n');
    if let Some(only) = &e.only_class {
        _ = writeln!(line, "          {}", style.warning(&only.to_string()));
    }
    line
}

/// The result of a run.
pub fn result(s: &Summary, style: Style) -> String {
    let state = if s.status == Status::Finished { String::new() } else { format!(" ({})", s.status.name()) };
    let title = format!("{}{state}", method_name(&s.method));
    let mut rows: Vec<(String, String)> = Vec::new();
    for (i, (name, value)) in metrics_in_order(s).into_iter().enumerate() {
        let epoch = if i == 0 {
            format!("  dev, epoch {} of {}", format::epoch(s.best_epoch), s.epochs)
        } else {
            String::new()
        };
        rows.push((name.to_string(), fixed(value, 4) + &epoch));
    }
    rows.push(("trained".into(), counted(s.trainable_parameters, "parameter")));
    if s.lora_parameters_full > 0 {
        let full = grouped(s.lora_parameters_full);
        let ratio = percent(s.retained_ratio);
        let (lora, plain) = (adapter_name(&s.method), plain_name(&s.method));
        rows.push((
            format!("unique {lora}"),
            format!("{}, {ratio} of plain {plain}'s {full}", grouped(s.lora_parameters)),
        ));
    }
    let mut parts = Vec::new();
    if s.sample_seconds > 0.0 {
        parts.push(format!("sample {}", format::duration(s.sample_seconds)));
    }
    parts.push(format!("training {}", format::duration(s.train_seconds)));
    parts.push(format!("evaluation {}", format::duration(s.evaluate_seconds)));
    rows.push(("time".into(), format!("{} ({})", format::duration(s.total_seconds), parts.join(", "))));
    rows.push(("speed".into(), format!("{} tokens/s", format::rate(s.train_tokens_per_second))));
    if s.peak_rss_bytes > 0 {
        rows.push(("peak memory".into(), format::bytes(s.peak_rss_bytes)));
    }
    if let Some(error) = &s.error {
        rows.push(("ended by".into(), as_options(error)));
    }
    format!("{}\n", style.bold(&title)) + &block(&rows)
}

/// What a run's folder says besides its result: what it was made from, what it keeps, its files.
pub fn details(s: &Summary) -> String {
    let mut rows = vec![("model", s.model.clone()), ("data", s.data.clone()), ("seed", s.seed.to_string())];
    if !s.date.is_empty() {
        rows.push(("written", s.date.clone()));
    }
    if let Some(machine) = &s.machine {
        let cores = counted(machine.cores, "core");
        rows.push(("machine", format!("{}, {cores}, {}", machine.cpu, format::bytes(machine.memory_bytes))));
    }
    for (kind, layers) in &s.kept {
        let layers = if layers.is_empty() { "no layer".into() } else { format::layers(layers) };
        rows.push(("kept", format!("{kind}: {layers}")));
    }
    for (file, size) in &s.files {
        rows.push(("file", format!("{file}, {}", format::bytes(*size))));
    }
    block(&rows)
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

/// Several runs, a line each: the name to show and the summary. Every metric that one of them has
/// is a column; the best value is marked where runs differ. A narrow terminal leaves out memory,
/// speed, trained values and time.
pub fn comparison(runs: &[(String, Summary)], style: Style) -> String {
    let mut metrics: Vec<&str> = Vec::new();
    for (name, _) in runs.iter().flat_map(|(_, s)| metrics_in_order(s)) {
        if !metrics.contains(&name) {
            metrics.push(name);
        }
    }
    let mut table = Table::new(runs)
        .text("run", |(name, _)| name.clone())
        .text("method", |(_, s)| method_name(&s.method).to_string());
    for metric in metrics {
        let values: Vec<f64> = runs.iter().filter_map(|(_, s)| s.metrics.get(metric).copied()).collect();
        let better = if higher_is_better(metric) { f64::max } else { f64::min };
        let best = values.iter().copied().reduce(better);
        let differ = values.iter().any(|v| Some(*v) != best);
        // Heads and other values are aligned with the digits, not with the mark.
        let beside = if differ { "  " } else { "" };
        table = table.number(&format!("{metric}{beside}"), |(_, s)| match s.metrics.get(metric) {
            Some(v) if Some(*v) == best && differ => fixed(*v, 4) + " *",
            Some(v) => fixed(*v, 4) + beside,
            None => format!("{}{beside}", format::NONE),
        });
    }
    let lora = |s: &Summary, text: String| {
        if s.lora_parameters_full > 0 { text } else { format::NONE.to_string() }
    };
    let text = table
        .number("LoRA", |(_, s)| lora(s, grouped(s.lora_parameters)))
        .number("of plain", |(_, s)| lora(s, percent(s.retained_ratio)))
        .number("time", |(_, s)| format::duration(s.total_seconds))
        .optional()
        .number("trained", |(_, s)| grouped(s.trainable_parameters))
        .optional()
        .number("tokens/s", |(_, s)| format::rate(s.train_tokens_per_second))
        .optional()
        .number("memory", |(_, s)| format::bytes(s.peak_rss_bytes))
        .optional()
        .fit(style.width);
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
    let (lora, plain) = (adapter_name(&p.method), plain_name(&p.method));
    let unique = format!("unique {lora}");
    if p.lora_parameters_full > 0 {
        let (least, most) = p.lora_parameters;
        let share = |n: usize| percent(n as f64 / p.lora_parameters_full as f64);
        let full = grouped(p.lora_parameters_full);
        rows.push((
            unique.as_str(),
            if least == most {
                format!("{}, {} of plain {plain}'s {full}", grouped(most), share(most))
            } else {
                format!(
                    "{} to {}, {} to {} of plain {plain}'s {full}",
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
    rows.push(("memory", format!("about {}, {}", format::bytes(p.memory_bytes), passes(m))));
    for (name, part) in m.parts() {
        if part > 0 {
            rows.push(("", format!("{name:<12} {:>10}", format::bytes(part))));
        }
    }
    rows.push(("time", format!("about {}", format::duration(p.seconds))));
    let title = format!("Plan: {} (nothing was trained)", method_name(&p.method));
    format!("{}\n", style.bold(&title)) + &block(&rows)
}

/// Lines of names and values, the values below each other.
pub fn rows(rows: &[(impl AsRef<str>, String)]) -> String {
    let width = rows.iter().map(|(name, _)| letters(name.as_ref())).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{}  {value}\n", padded(name.as_ref(), width))).collect()
}

/// Lines of names and values below a title. Values begin at one column in all such blocks.
fn block(rows: &[(impl AsRef<str>, String)]) -> String {
    let width = rows.iter().map(|(name, _)| letters(name.as_ref()) + 1).fold(13, usize::max);
    rows.iter().map(|(name, value)| format!("  {}{value}\n", padded(name.as_ref(), width))).collect()
}

/// A table of these rows, made column by column.
pub struct Table<'a, R> {
    rows: &'a [R],
    columns: Vec<Column>,
}

/// A column of a table: its head and its cells.
struct Column {
    left: bool,
    optional: bool,
    cells: Vec<String>,
}

impl Column {
    fn width(&self) -> usize {
        self.cells.iter().map(|cell| letters(cell)).max().unwrap_or(0)
    }
}

impl<'a, R> Table<'a, R> {
    pub fn new(rows: &'a [R]) -> Self {
        Table { rows, columns: Vec::new() }
    }

    /// Adds a left-aligned column of texts.
    pub fn text(self, head: &str, of: impl Fn(&R) -> String) -> Self {
        self.column(head, true, of)
    }

    /// Adds a right-aligned column of numbers.
    pub fn number(self, head: &str, of: impl Fn(&R) -> String) -> Self {
        self.column(head, false, of)
    }

    fn column(mut self, head: &str, left: bool, of: impl Fn(&R) -> String) -> Self {
        let cells = std::iter::once(head.to_string()).chain(self.rows.iter().map(of)).collect();
        self.columns.push(Column { left, optional: false, cells });
        self
    }

    /// Marks the column that was added last as one to leave out if the table is wider than the
    /// terminal; of several, the last one is left out first.
    pub fn optional(mut self) -> Self {
        if let Some(last) = self.columns.last_mut() {
            last.optional = true;
        }
        self
    }

    /// Formats the columns, each as wide as its widest cell. If even those that are not optional
    /// need more than `width`, each row is a block instead: its first cell, and below it a line for
    /// each other one.
    pub fn fit(&self, width: usize) -> String {
        let mut shown: Vec<&Column> = self.columns.iter().collect();
        let is_wide = |shown: &[&Column]| shown.iter().map(|c| c.width() + 2).sum::<usize>() > width + 2;
        while is_wide(&shown)
            && let Some(last) = shown.iter().rposition(|column| column.optional)
        {
            shown.remove(last);
        }
        if is_wide(&shown) {
            return self.blocks();
        }
        let mut out = String::new();
        for row in 0..=self.rows.len() {
            let cells = shown.iter().map(|column| {
                let cell = &column.cells[row];
                let fill = " ".repeat(column.width() - letters(cell));
                if column.left { format!("{cell}{fill}") } else { format!("{fill}{cell}") }
            });
            _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        out
    }

    /// The rows one below the other; empty cells are left out.
    fn blocks(&self) -> String {
        let Some((first, others)) = self.columns.split_first() else { return String::new() };
        let mut out = String::new();
        for (row, title) in first.cells.iter().enumerate().skip(1) {
            _ = writeln!(out, "{}", title.trim_end());
            let cells =
                others.iter().map(|column| (column.cells[0].trim(), column.cells[row].trim().to_string()));
            let named: Vec<_> = cells.collect();
            let longest = named.iter().map(|(head, _)| letters(head)).max().unwrap_or(0);
            for (head, cell) in named.iter().filter(|(_, cell)| !cell.is_empty()) {
                _ = writeln!(out, "  {}  {cell}", padded(head, longest));
            }
        }
        out
    }
}

/// Units, which stay on the line of the number before them.
const UNITS: [&str; 8] = ["%", "s", "m", "h", "B", "KiB", "MiB", "GiB"];

/// Breaks lines of more than `width` columns at spaces. The following lines are indented like the
/// line's value, if it begins with a name and two spaces, and else two columns deeper than the line.
/// A longer word, such as a path, stays whole.
pub(super) fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        if letters(line) <= width {
            out.push_str(line);
        } else {
            wrap_line(&mut out, line, width);
        }
        out.push_str(end);
    }
    out
}

fn wrap_line(out: &mut String, line: &str, width: usize) {
    let plain = console::strip_ansi_codes(line);
    let indent = plain.len() - plain.trim_start_matches(' ').len();
    let value = plain[indent..].find("  ").map(|gap| {
        let rest = plain[indent + gap..].trim_start_matches(' ');
        letters(&plain[..plain.len() - rest.len()])
    });
    let hang = value.filter(|&column| column <= width / 2).unwrap_or(indent + 2);
    // Columns of the line so far, and whether it has a word.
    let (mut used, mut begun) = (0, false);
    let mut rest = line;
    while !rest.is_empty() {
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        let mut end = rest[spaces..].find(' ').map_or(rest.len(), |at| spaces + at);
        while let Some((unit, _)) =
            rest[end..].strip_prefix(' ').map(|after| after.split_once(' ').unwrap_or((after, "")))
            && UNITS.contains(&unit.trim_end_matches([',', ')', ';', '.']))
        {
            end += 1 + unit.len();
        }
        let (word, after) = rest[spaces..].split_at(end - spaces);
        rest = after;
        let long = letters(word);
        if begun && used + spaces + long > width {
            // A path for which there is no room at this depth may begin further left.
            used = hang.min(width.saturating_sub(long));
            _ = write!(out, "\n{:used$}", "");
        } else {
            _ = write!(out, "{:spaces$}", "");
            used += spaces;
        }
        out.push_str(word);
        used += long;
        begun = true;
    }
}

pub(super) fn indented(text: &str, columns: usize) -> String {
    text.lines().map(|line| format!("{:columns$}{line}\n", "")).collect()
}

/// Columns that a text takes, without its styles; some letters take two.
pub(super) fn letters(text: &str) -> usize {
    let marks = [BOLD, FAINT, GREEN, YELLOW, PLAIN];
    if text.contains(marks) {
        return console::measure_text_width(&text.replace(marks, ""));
    }
    console::measure_text_width(text)
}

/// The text, or its beginning and an ellipsis.
fn cut(text: &str, width: usize) -> String {
    console::truncate_str(text, width, "…").into_owned()
}

pub(super) fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(letters(text))))
}
