//! What a run says in the terminal, as text: pure functions from facts to lines.
//! [`super::Terminal`] prints them.
//!
//! Every text ends with a line feed. Tables and bars keep to the width. Names and texts of models
//! and data are in it as they are, and styles as marks: [`Style::fit`] makes of it what may be
//! shown, and breaks long lines.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use lora_drop_transformer::ModuleKind;

use crate::report::grid::{Cell, Grid};
use crate::report::printable::{BOLD, FAINT, GREEN, PLAIN, YELLOW, printable};
use crate::report::{adapter_name, method_name, metrics_in_order, module_name, plain_name};
use lora_drop::assignment::{Assignment, Owner};
use lora_drop::evaluate::metrics::higher_is_better;
use lora_drop::events::EvaluationRecord;
use lora_drop::format::{self, counted, fixed, grouped, percent};
use lora_drop::record::ModuleNames;
use lora_drop::score::{BudgetCurve, Importance};
use lora_drop::settings::as_options;
use lora_drop::summary::{
    Baseline, BaselineKind, DataFacts, MemoryEstimate, ModelFacts, Plan, SplitFacts, Status, Summary,
};

/// How text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal; 80 where there is none.
    pub width: usize,
    /// Whether ANSI colours may be used.
    pub colour: bool,
    /// Whether the text is for a terminal, which breaks longer lines anywhere. Files and pipes keep
    /// lines whole.
    pub terminal: bool,
}

impl Style {
    /// Makes of a text what may be shown, see [`super::printable`], and breaks its lines for a
    /// terminal at words.
    pub fn fit(self, text: &str) -> String {
        let shown = printable(text, self.colour);
        if self.terminal { wrap(&shown, self.width) } else { shown.into_owned() }
    }

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

/// What was found in the data: a line per split, then what happens to over-long rows, then the
/// labels.
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
    out.push_str(&indented(&table(&columns, style.width.saturating_sub(7)), 7));

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

/// How many classes are listed.
const CLASSES_SHOWN: usize = 20;

/// The first classes of a split with their shares, over as many lines as they need.
fn balance(s: &SplitFacts, classes: &[String], style: Style) -> String {
    let more = classes.len().saturating_sub(CLASSES_SHOWN);
    let entries = std::iter::zip(classes, &s.per_class)
        .take(CLASSES_SHOWN)
        .map(|(name, &n)| format!("{name} {} ({})", grouped(n), percent(n as f64 / s.rows as f64)))
        .chain((more > 0).then(|| format!("and {} more", grouped(more))));
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

/// Importance as bars, a line per layer, the module types side by side; types that do not fit go
/// below.
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
    let parts: Vec<_> = by_kind(assignment).collect();
    let longest = parts.iter().map(|(kind, _)| letters(module_name(names, *kind))).max().unwrap_or(0);
    let mut out = String::new();
    for (kind, [own, shared, none]) in parts {
        let all = own.len() + shared.len() + none.len();
        let mut line = match own.as_slice() {
            [] => format!("keeps none of {}", counted(all, "layer")),
            own => format!("keeps {} of {}: {}", own.len(), counted(all, "layer"), format::layers(own)),
        };
        for rest in [sharing(&shared), without(&none)].into_iter().flatten() {
            _ = write!(line, "; {rest}");
        }
        _ = writeln!(out, "{}  {line}", padded(module_name(names, kind), longest));
    }
    out
}

/// The layers of each module type: those with a LoRA of their own, those that share one, those
/// without.
pub(super) fn by_kind(assignment: &Assignment) -> impl Iterator<Item = (ModuleKind, [Vec<usize>; 3])> {
    let mut kinds: BTreeMap<ModuleKind, [Vec<usize>; 3]> = BTreeMap::new();
    for (module, owner) in &assignment.owners {
        let place = match owner {
            Owner::Own => 0,
            Owner::Shared => 1,
            Owner::None => 2,
        };
        kinds.entry(module.kind).or_default()[place].push(module.layer);
    }
    kinds.into_iter()
}

/// What layers do that share a LoRA; None where there are none.
pub(super) fn sharing(layers: &[usize]) -> Option<String> {
    match layers {
        [] => None,
        [one] => Some(format!("layer {one} is the only one that uses the shared LoRA")),
        many => Some(format!("layers {} share one LoRA", format::layers(many))),
    }
}

/// Which layers have no LoRA; None where all have one.
pub(super) fn without(layers: &[usize]) -> Option<String> {
    match layers {
        [] => None,
        [one] => Some(format!("layer {one} has none")),
        many => Some(format!("layers {} have none", format::layers(many))),
    }
}

/// What memory is estimated, and how the steps are cut for it.
pub fn memory(m: &MemoryEstimate, style: Style) -> String {
    let limit = m.limit.map(|limit| format!(" of {}", format::bytes(limit))).unwrap_or_default();
    let passes = passes(m, " in the backward pass");
    format!("{} {}{limit} estimated: {passes}\n", style.bold("Memory"), format::bytes(m.total))
}

/// How a step's passes are made; `back` says more of activations that are recomputed.
fn passes(m: &MemoryEstimate, back: &str) -> String {
    let together = if m.together > 1 { format!(", {} concurrently", m.together) } else { String::new() };
    let again = if m.recompute { format!(", activations recomputed{back}") } else { String::new() };
    format!("micro-batches of {} tokens{together}{again}", grouped(m.micro_tokens))
}

/// What is computed once.
pub fn reusing(blocks: usize) -> String {
    let these =
        if blocks == 1 { "block has".to_string() } else { format!("{} blocks have", grouped(blocks)) };
    format!("The lowest {these} neither LoRA nor dropout: computed in the first epoch, then read from disk\n")
}

/// How far the ranking is stable.
pub fn rescored(step: usize, tau: f64, settled: bool) -> String {
    let end = if settled { ": the ranking is stable" } else { "" };
    format!("scored at step {}, Kendall's tau to the scoring before {}{end}\n", grouped(step), fixed(tau, 3))
}

/// What held-out rows said of budgets, and which one is kept.
pub fn budget_curve(curve: &BudgetCurve, style: Style) -> String {
    let rows = budget_rows(curve);
    let columns = [
        Column::new("budget", true, rows.iter().map(|(budget, ..)| budget.clone()).collect()),
        Column::new("parameters", false, rows.iter().map(|(_, parameters, _)| parameters.clone()).collect()),
        Column::new("loss", false, rows.iter().map(|(.., loss)| fixed(*loss, 4)).collect()),
    ];
    format!("{}{}\n", table(&columns, style.width), budget_decision(curve))
}

/// Budget, parameters and loss: the whole, the budgets that were tried, no LoRA at all.
pub(super) fn budget_rows(curve: &BudgetCurve) -> Vec<(String, String, f64)> {
    let points = curve.points.iter().map(|p| (p.budget.to_string(), grouped(p.parameters), p.loss));
    let row = |name: &str, loss| [(name.to_string(), String::new(), loss)];
    let whole = row("whole", curve.loss).into_iter();
    whole.chain(points).chain(row("without LoRA", curve.without)).collect()
}

/// Which budget is kept, and why.
pub(super) fn budget_decision(curve: &BudgetCurve) -> String {
    let kept = if curve.is_uninformative() {
        "everything is kept: on these rows the loss does not rise even without any LoRA, so they cannot tell how many are enough"
            .to_string()
    } else if curve.kept < 1.0 {
        format!("{} is kept, the least with which it rises by no more", curve.kept)
    } else {
        "everything is kept: with less it rises by more".to_string()
    };
    format!(
        "{} of train outside the sample, loss ± {} (one standard error): {kept}",
        counted(curve.rows, "row"),
        fixed(curve.tolerance, 4),
    )
}

/// What dev gives without training.
pub fn baseline(b: &Baseline) -> String {
    let value = fixed(b.value, 4);
    match (b.kind, &b.class) {
        (BaselineKind::Untrained, _) => format!("before training  {} {value}\n", b.name),
        (BaselineKind::Mean, _) => format!("the mean of train's labels alone  {} {value}\n", b.name),
        (BaselineKind::CommonestClass, class) => {
            let class = class.as_ref().map(|class| format!(" ({class:?})")).unwrap_or_default();
            format!("dev's commonest class alone{class}  {} {value}\n", b.name)
        }
    }
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
    line.push('\n');
    if let Some(only) = &e.only_class {
        _ = writeln!(line, "          {}", style.warning(&only.to_string()));
    }
    line
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
    rows.push(("peak memory".into(), format::bytes(s.peak_rss_bytes)));
    if let Some(error) = &s.error {
        rows.push(("ended by".into(), as_options(error)));
    }
    let width = label_width(rows.iter().map(|(name, _)| name.as_str()));
    for (name, value) in rows {
        _ = writeln!(out, "  {name:<width$}{value}");
    }
    out
}

/// Columns of labels like these.
fn label_width<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.map(|name| name.chars().count() + 1).fold(13, usize::max)
}

/// What a run's folder says beside its result: from what it was made, what it keeps, its files.
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

/// Several runs concurrently, a line each: the name to show and the summary. Every metric that one
/// of them has is a column; the best value is marked where runs differ. A narrow terminal leaves
/// out memory, speed, trained values and time.
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
        let better = if higher_is_better(metric) { f64::max } else { f64::min };
        let best = values.iter().flatten().copied().reduce(better);
        let differ = values.iter().flatten().any(|v| Some(*v) != best);
        // Heads and other values stand over the digits, not over the mark.
        let beside = if differ { "  " } else { "" };
        let cell = |value: &Option<f64>| match value {
            Some(v) if Some(*v) == best && differ => fixed(*v, 4) + " *",
            Some(v) => fixed(*v, 4) + beside,
            None => format!("{}{beside}", format::NONE),
        };
        let head = format!("{metric}{beside}");
        columns.push(Column::new(&head, false, values.iter().map(cell).collect()));
    }
    columns.push(Column::new("LoRA", false, lora(|s| grouped(s.lora_parameters))));
    columns.push(Column::new("of plain", false, lora(|s| percent(s.retained_ratio))));
    let times = text(&|s| format::duration(s.total_seconds));
    columns.push(Column::new("time", false, times).optional());
    columns.push(Column::new("trained", false, text(&|s| grouped(s.trainable_parameters))).optional());
    let rates = text(&|s| format::rate(s.train_tokens_per_second));
    columns.push(Column::new("tokens/s", false, rates).optional());
    columns.push(Column::new("memory", false, text(&|s| format::bytes(s.peak_rss_bytes))).optional());
    let text = table(&columns, style.width);
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
    rows.push(("memory", format!("about {}, {}", format::bytes(p.memory_bytes), passes(m, ""))));
    for (name, part) in m.parts() {
        if part > 0 {
            rows.push(("", format!("{name:<12} {:>10}", format::bytes(part))));
        }
    }
    rows.push(("time", format!("about {}", format::duration(p.seconds))));
    let mut out =
        format!("{}\n", style.bold(&format!("Plan: {} (nothing was trained)", method_name(&p.method))));
    let width = label_width(rows.iter().map(|(name, _)| *name));
    for (name, value) in rows {
        _ = writeln!(out, "  {name:<width$}{value}");
    }
    out
}

/// A column of a table: its head and its cells.
pub struct Column {
    left: bool,
    optional: bool,
    cells: Vec<String>,
}

impl Column {
    /// Text stands at the left of its column, numbers at the right.
    pub fn new(head: &str, left: bool, cells: Vec<String>) -> Self {
        Column { left, optional: false, cells: std::iter::once(head.to_string()).chain(cells).collect() }
    }

    /// Left out, the last one first, where the table is wider than the terminal.
    pub fn optional(self) -> Self {
        Column { optional: true, ..self }
    }

    fn width(&self) -> usize {
        self.cells.iter().map(|cell| letters(cell)).max().unwrap_or(0)
    }
}

/// Columns beside each other, each as wide as its widest cell; all have the same number of cells.
/// Where even those that are not optional need more than `width`, each row is a block instead: its
/// first cell, and below it a line for each other one.
pub fn table(columns: &[Column], width: usize) -> String {
    let mut shown: Vec<&Column> = columns.iter().collect();
    let is_wide = |shown: &[&Column]| shown.iter().map(|c| c.width() + 2).sum::<usize>() > width + 2;
    while is_wide(&shown)
        && let Some(last) = shown.iter().rposition(|column| column.optional)
    {
        shown.remove(last);
    }
    if is_wide(&shown) {
        return blocks(columns);
    }
    let mut out = String::new();
    for row in 0..shown.first().map_or(0, |c| c.cells.len()) {
        let cells = shown.iter().map(|column| {
            let cell = &column.cells[row];
            let fill = " ".repeat(column.width() - letters(cell));
            if column.left { format!("{cell}{fill}") } else { format!("{fill}{cell}") }
        });
        _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

/// A table's rows one below the other; empty cells are left out.
fn blocks(columns: &[Column]) -> String {
    let Some((first, others)) = columns.split_first() else {
        return String::new();
    };
    let head = |column: &Column| column.cells[0].trim().to_string();
    let longest = others.iter().map(|column| letters(&head(column))).max().unwrap_or(0);
    let mut out = String::new();
    for (row, title) in first.cells.iter().enumerate().skip(1) {
        _ = writeln!(out, "{}", title.trim_end());
        for column in others {
            let cell = column.cells[row].trim();
            if !cell.is_empty() {
                _ = writeln!(out, "  {}  {cell}", padded(&head(column), longest));
            }
        }
    }
    out
}

/// Words that are not parted from the number before them.
const UNITS: [&str; 8] = ["%", "s", "m", "h", "B", "KiB", "MiB", "GiB"];

/// Breaks lines of more than `width` columns at spaces. What follows is indented as deep as the
/// value that the line begins with, after a name and two spaces, or by two columns more than the
/// line. A longer word, such as a path, stays whole.
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
            // A path that would be cut at this depth may begin further left.
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

fn indented(text: &str, columns: usize) -> String {
    text.lines().map(|line| format!("{:columns$}{line}\n", "")).collect()
}

/// Columns that a text takes, without its styles; some letters take two.
fn letters(text: &str) -> usize {
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

fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(letters(text))))
}
