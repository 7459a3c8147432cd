//! The report page of a run.

use maud::{Markup, html};

use crate::report::grid::Grid;
use crate::report::page::{base_name, document, meter, settings, table, tile};
use crate::report::words::{
    adapter_name, assignment_lines, baseline_name, budget_decision, budget_rows, class_shares, class_weights,
    label_range, method_name, metric_title, metrics_in_order, plain_name, value_text,
};
use crate::report::{dev, figures, heatmap};
use lora_drop::events::Stage;
use lora_drop::format::{self, counted, fixed, grouped, percent};
use lora_drop::run_record::RunRecord;
use lora_drop::score::{BudgetCurve, Importance};
use lora_drop::settings::{
    Basis, CriterionName, RunSettings, Scope, Selection, Task, Unselected, as_options, definitions,
};
use lora_drop::summary::{DataFacts, ModelFacts, SplitFacts, Status, Summary};

/// Seconds after which the page of a run in progress reloads itself.
const RELOAD: u32 = 10;

/// The page as HTML text. Its size does not grow with the number of steps.
pub fn render(record: &RunRecord) -> String {
    let s = &record.summary;
    let title = format!("{} · {} · {}", method_name(&s.method), base_name(&s.model), base_name(&s.data));
    let body = html! {
        (header(record))
        (tiles(record))
        @if let Some(importance) = &record.importance {
            (importance_section(record, importance))
            @if importance.steps > 0 { (sample_stage(record, importance)) }
        }
        (training(record))
        (dev::sections(record))
        (parameters_and_times(record))
        (inputs(record))
        (settings(settings_rows(&record.settings)))
        footer {
            p {
                "Written by lora-drop " (s.version) ". " code { "lora-drop train recipe.toml" }
                " with the recipe.toml next to this file repeats the run."
            }
        }
    };
    document(&title, (s.status == Status::Running).then_some(RELOAD), body)
}

fn header(record: &RunRecord) -> Markup {
    let s = &record.summary;
    let state = match s.status {
        Status::Finished | Status::Running => None,
        Status::Stopped => Some("was stopped before its end"),
        Status::Interrupted => Some("was interrupted"),
        Status::Diverged => Some("diverged"),
        Status::Failed => Some("failed"),
    };
    html! {
        header {
            h1 { (method_name(&s.method)) " on " (base_name(&s.data)) }
            p.facts {
                span { "Model " code { (s.model) } } " "
                span { "Data " code { (s.data) } } " "
                span { "Seed " (s.seed) } " "
                span { (counted(s.threads, "thread")) }
            }
            @if s.status == Status::Running { (live(record)) }
            @if let Some(state) = state {
                p.warn {
                    b { "This run " (state) "." }
                    @if let Some(error) = &s.error { " It ended with: " (as_options(error)) "." }
                    @if s.best_epoch > 0.0 {
                        " The results are those of the best epoch until then."
                    } @else {
                        " No epoch was evaluated."
                    }
                }
            }
        }
    }
}

/// The progress of a run that has not ended.
fn live(record: &RunRecord) -> Markup {
    let s = &record.summary;
    let step = record.steps.last().filter(|step| step.stage == Stage::Train);
    html! {
        div.live {
            p {
                b { "This run is in progress." } " "
                @if let Some(step) = step {
                    "Step " (grouped(step.step)) " of " (grouped(step.steps)) ", epoch " (format::epoch(step.epoch))
                    " of " (s.epochs)
                    @if let Some(left) = record.seconds_left {
                        "; about " (format::time_left(left)) " left, without evaluations"
                    }
                    "."
                } @else {
                    "The modules are scored; fine-tuning begins."
                }
            }
            @if let Some(step) = step { (meter(step.step as f64 / step.steps as f64)) }
            p.note {
                "Written " (date(&s.date, 19)) ". The page is rewritten at each evaluation, and reloads itself every "
                (RELOAD) " seconds until the run ends. If it stays the same for long, the run may have been killed: "
                code { "lora-drop train --resume" } " continues it from its last checkpoint."
            }
        }
    }
}

/// The headline numbers.
fn tiles(record: &RunRecord) -> Markup {
    let s = &record.summary;
    let metrics = metrics_in_order(s);
    let title = |name: &str| metric_title(name, record.data.positive_class.as_deref());
    let mut of_metrics = vec![format!("on dev, epoch {} of {}", format::epoch(s.best_epoch), s.epochs)];
    let others = metrics.iter().skip(1);
    of_metrics.extend(others.map(|(name, value)| format!("{} {}", title(name), fixed(*value, 3))));
    of_metrics.extend(s.baseline.as_ref().map(|baseline| {
        format!("{}: {} {}", baseline_name(baseline.kind), baseline.name, fixed(baseline.value, 3))
    }));

    let all = record.model.parameters.max(s.trainable_parameters).max(1);
    let trained = s.trainable_parameters as f64 / all as f64;
    let what = if s.method == "full" { "every weight" } else { "the head alone" };
    let (adapter, plain) = (adapter_name(&s.method), plain_name(&s.method));
    let of_plain =
        format!("{} of plain {plain}’s {}", percent(s.retained_ratio), grouped(s.lora_parameters_full));

    let mut times = vec![
        format!("training {}", format::duration(s.train_seconds)),
        format!("evaluation {}", format::duration(s.evaluate_seconds)),
    ];
    if s.sample_steps > 0 {
        times.insert(0, format!("sample {}", format::duration(s.sample_seconds)));
    }
    let tokens = format!("{} tokens in training", grouped(s.train_tokens));
    html! {
        dl.tiles {
            @if let Some((name, value)) = metrics.first() {
                (tile(&title(name), &fixed(*value, 3), None, &of_metrics))
            }
            @if s.lora_parameters_full > 0 {
                (tile(
                    &format!("Unique {adapter} parameters"),
                    &grouped(s.lora_parameters),
                    Some(s.retained_ratio),
                    &[of_plain],
                ))
            } @else {
                (tile("Trained parameters", &grouped(s.trainable_parameters), Some(trained), &[what.to_string()]))
            }
            @if s.train_tokens > 0 {
                (tile("Tokens per second", &format::rate(s.train_tokens_per_second), None, &[tokens]))
            }
            (tile("Time", &format::duration(s.total_seconds), None, &times))
            @if s.peak_rss_bytes > 0 {
                (tile("Peak memory", &format::bytes(s.peak_rss_bytes), None, &["resident, whole process".to_string()]))
            }
        }
    }
}

/// Which modules matter and which keep their LoRA.
fn importance_section(record: &RunRecord, importance: &Importance) -> Markup {
    let selection = &record.settings.train.selection;
    let grid = Grid::new(importance, record.assignment.as_ref(), &record.module_names);
    let among = match selection.scope {
        Scope::Module => "all modules of its type: each column adds up to 1",
        Scope::Layer => "all target modules: the whole map adds up to 1",
    };
    let threshold = match selection.rule() {
        Selection::Threshold(t) if selection.scope == Scope::Module => Some(t),
        Selection::Threshold(t) => Some(t * total(&grid)),
        _ => None,
    };
    html! {
        section {
            h2 { "Importance of the modules, and which keep their LoRA" }
            p { (rule(&record.settings, importance)) }
            @if let Some(curve) = &importance.curve { (budget(curve)) }
            @if let Some(assignment) = &record.assignment {
                ul {
                    @for (name, line) in assignment_lines(assignment, &record.module_names) {
                        li { code { (name) } " " (line) }
                    }
                }
            }
            div.side {
                figure.scroll tabindex="0" {
                    figcaption { "Importance I by layer and module type" }
                    (heatmap::svg(&grid, "heatmap", "Importance of every module", "module type"))
                }
                div.grow {
                    (heatmap::legend(&grid))
                    p.note {
                        "I is the module’s share of g among " (among) ". "
                        (score(selection.criterion, importance)) "."
                    }
                    @if let Some(figure) = figures::cumulative(&grid.rankings(selection.scope), threshold) {
                        (figure)
                    }
                }
            }
            details {
                summary { "The numbers as a table" }
                (heatmap::table(&grid))
            }
        }
    }
}

/// What the importance of all modules adds up to: 1 where all are in one ranking.
fn total(grid: &Grid) -> f64 {
    let all = grid.cells.iter().flatten().flatten().map(|c| c.importance);
    all.filter(|i| i.is_finite()).sum()
}

/// How the budget was found.
fn budget(curve: &BudgetCurve) -> Markup {
    html! {
        p { (budget_decision(curve)) "." }
        (table("", "", [("", "budget"), ("n", "parameters"), ("n", "loss")], html! {
            @for (name, parameters, loss) in budget_rows(curve) {
                tr { th scope="row" { (name) } td.n { (parameters) } td.n { (fixed(loss, 4)) } }
            }
        }))
    }
}

/// The selection rule in a sentence.
fn rule(settings: &RunSettings, importance: &Importance) -> String {
    let selection = &settings.train.selection;
    let ranked = match selection.scope {
        Scope::Module => "Each module type has a ranking of its own over the layers.",
        Scope::Layer => "Whole layers are ranked, by the sum over their modules.",
    };
    let fitting =
        |share| format!("As many are kept as fit into {} of plain LoRA’s parameters.", percent(share));
    let kept = match selection.rule() {
        Selection::Threshold(t) => format!("The first are kept until their I adds up to T = {t}."),
        Selection::TopK(k) => format!("The first {k} are kept."),
        Selection::Budget(share) => fitting(share),
        Selection::Auto => fitting(importance.curve.as_ref().map_or(1.0, |curve| curve.kept)),
        Selection::Layers(layers) => format!("These were named to be kept: {}.", format::layers(&layers)),
    };
    let rank = selection.shared_rank.map(|rank| format!(" of rank {rank}")).unwrap_or_default();
    let others = match selection.unselected {
        Unselected::Share => format!("All others of a type share one LoRA{rank}."),
        Unselected::Scale => {
            format!("All others of a type share one LoRA{rank}, which each scales by vectors of its own.")
        }
        Unselected::Drop => "The others have no LoRA.".to_string(),
    };
    format!("{ranked} {kept} {others}")
}

/// What g is, in words.
fn score(criterion: CriterionName, importance: &Importance) -> String {
    let (name, meaning) = (criterion.name(), criterion.meaning());
    let (window, sample) = (importance.window, counted(importance.rows, "row"));
    let window = format!(
        "the {} of the last {}: {}, drawn from the sample’s {sample}",
        counted(window.tokens, "token"),
        counted(window.steps, "step"),
        counted(window.rows, "row"),
    );
    match (criterion, criterion.basis()) {
        (CriterionName::Output, _) => format!("g is the sum, over {window}, of {meaning}"),
        (_, Basis::Order) => format!("g, by the criterion {name}, is {meaning}"),
        (_, Basis::Training) => format!("g, by the criterion {name}, is {meaning}, over {window}"),
        (_, Basis::Gradients | Basis::HiddenStates) => format!(
            "g, by the criterion {name}, is {meaning}, over {sample} of the sample before anything was trained"
        ),
    }
}

/// How the ranking became stable.
fn sample_stage(record: &RunRecord, importance: &Importance) -> Markup {
    let tau = importance
        .history
        .last()
        .map(|(_, tau)| format!(": Kendall’s tau between the last two scorings was {}", fixed(*tau, 3)));
    let settled = match (importance.settled, &tau) {
        (true, tau) => format!("The ranking was stable{}.", tau.as_deref().unwrap_or_default()),
        (false, Some(tau)) => format!("The ranking was not stable when the stage ended{tau}."),
        (false, None) => "The modules were scored once, at the end.".to_string(),
    };
    let loss = figures::loss(Stage::Sample, &record.steps, &[]);
    let agreement = figures::agreement(&importance.history);
    html! {
        section {
            h2 { "The sample stage" }
            p {
                "LoRA on every target module was trained on " (counted(importance.rows, "row"))
                " (" (counted(importance.tokens, "token")) ") for " (counted(importance.steps, "step")) ". "
                (settled)
            }
            div.even {
                @for figure in [loss, agreement].into_iter().flatten() { (figure) }
            }
        }
    }
}

/// Loss and metrics of fine-tuning.
fn training(record: &RunRecord) -> Markup {
    let (evaluations, best) = (&record.evaluations, record.summary.best_epoch);
    let positive = record.data.positive_class.as_deref();
    let loss = figures::loss(Stage::Train, &record.steps, evaluations);
    let (metrics, rate) =
        (figures::metrics(evaluations, best, positive), figures::learning_rate(&record.steps));
    html! {
        section {
            h2 { "Training" }
            @if loss.is_none() { p { "No step was made." } }
            @if evaluations.is_empty() { p { "No evaluation was made." } }
            div.even {
                @for figure in [loss, metrics, rate].into_iter().flatten() { (figure) }
                @if let Some(first) = evaluations.first() {
                    @let titles: Vec<_> = first.metrics.iter().map(|(name, _)| metric_title(name, positive)).collect();
                    @let metrics = titles.iter().map(|title| ("", title.as_str()));
                    @let heads = [("", "epoch"), ("", "step")].into_iter().chain(metrics);
                    (table("numbers", "Evaluations on dev", heads.chain([("", "loss"), ("", "")]), html! {
                        @for e in evaluations {
                            tr class=[(e.epoch == best).then_some("best")] {
                                th scope="row" { (format::epoch(e.epoch)) }
                                td { (grouped(e.step)) }
                                @for (_, value) in &e.metrics { td { (fixed(*value, 4)) } }
                                td { (fixed(e.loss, 4)) }
                                td { @if e.epoch == best { "best" } }
                            }
                        }
                    }))
                }
            }
        }
    }
}

fn parameters_and_times(record: &RunRecord) -> Markup {
    let s = &record.summary;
    let mut parameters = vec![
        ("model".to_string(), grouped(record.model.parameters)),
        ("trained".to_string(), grouped(s.trainable_parameters)),
    ];
    if s.lora_parameters_full > 0 {
        let head = s.trainable_parameters.saturating_sub(s.lora_parameters);
        parameters.extend([
            ("of these, head".to_string(), grouped(head)),
            (format!("of these, unique {}", adapter_name(&s.method)), grouped(s.lora_parameters)),
            (format!("plain {} would have", plain_name(&s.method)), grouped(s.lora_parameters_full)),
            ("retained ratio".to_string(), percent(s.retained_ratio)),
        ]);
    }
    let mut times = Vec::new();
    if s.sample_steps > 0 {
        let name = if s.sample_settled { "sample stage" } else { "sample stage (ranking not stable)" };
        let steps = counted(s.sample_steps, "step");
        times.push((name, format!("{steps}, {}", format::duration(s.sample_seconds))));
    } else if s.sample_seconds > 0.0 {
        times.push(("scoring", format::duration(s.sample_seconds)));
    }
    let known = s.sample_seconds + s.train_seconds + s.evaluate_seconds;
    times.extend([
        ("training", format::duration(s.train_seconds)),
        ("evaluation", format::duration(s.evaluate_seconds)),
        ("reading and writing", format::duration((s.total_seconds - known).max(0.0))),
        ("total", format::duration(s.total_seconds)),
    ]);
    let files: Vec<_> = s.files.iter().map(|(name, &size)| (name, format::bytes(size))).collect();
    html! {
        section {
            h2 { "Parameters and times" }
            div.thirds {
                (pairs("Parameters", &parameters))
                (pairs("Times", &times))
                @if !files.is_empty() { (pairs("Adapter files", &files)) }
                (pairs("Where and when", &machine(s)))
            }
        }
    }
}

/// The date, the program and the machine, as far as the summary has them.
fn machine(s: &Summary) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if !s.date.is_empty() {
        rows.push(("written", date(&s.date, 16)));
    }
    rows.push(("lora-drop", s.version.clone()));
    if let Some(machine) = &s.machine {
        rows.push(("processor", machine.cpu.clone()));
        rows.push(("cores", format!("{}, {} used", machine.cores, s.threads)));
        if machine.memory_bytes > 0 {
            rows.push(("memory", format::bytes(machine.memory_bytes)));
        }
        rows.push(("kernels", machine.kernels.clone()));
    }
    rows
}

/// The first `length` characters of a date such as 2026-01-31T12:34:56+01:00.
fn date(date: &str, length: usize) -> String {
    let date = date.replacen('T', " ", 1);
    date.get(..length).unwrap_or(&date).to_string()
}

/// A table of names and values.
fn pairs(caption: &str, rows: &[(impl AsRef<str>, String)]) -> Markup {
    html! {
        table.wide {
            caption { (caption) }
            tbody {
                @for (name, value) in rows { tr { th scope="row" { (name.as_ref()) } td.n { (value) } } }
            }
        }
    }
}

/// The model and the data as they were found.
fn inputs(record: &RunRecord) -> Markup {
    let data = &record.data;
    let over_long = match data.over_length.as_str() {
        "truncate" => "cut",
        "split" => "split into several sequences",
        "drop" => "left out",
        _ => "too long",
    };
    let over_long = format!("over {} tokens: {over_long}", grouped(data.max_length));
    let heads = [
        ("", "split"),
        ("", "file"),
        ("n", "rows"),
        ("n", "tokens"),
        ("n", "length: shortest / median / longest"),
        ("n", &over_long),
        ("n", "unknown tokens"),
        ("", "labels"),
    ];
    html! {
        section {
            h2 { "Model and data" }
            (model(&record.model))
            (columns(data, record.settings.rows.task == Some(Task::Text)))
            @if let Some(weights) = class_weights(data) { p { "Weights of the classes in the loss: " (weights) "." } }
            (table("", "", heads, html! {
                @for split in &data.splits {
                    tr {
                        th scope="row" { (split.name) }
                        td { code { (split.file) } }
                        td.n { (grouped(split.rows)) }
                        td.n { (grouped(split.tokens)) }
                        td.n {
                            (split.shortest) " / " (split.median_length) " / " (split.longest)
                            @if split.uncounted > 0 { " or more" }
                        }
                        td.n { (grouped(split.over_long)) }
                        td.n { (percent(split.unknown as f64 / split.tokens.max(1) as f64)) }
                        td { (labels(split, &data.classes)) }
                    }
                }
            }))
        }
    }
}

fn model(m: &ModelFacts) -> Markup {
    let head = match m.head_found {
        None => "",
        Some(true) => " The head was the checkpoint’s own.",
        Some(false) => " The head was newly initialised.",
    };
    html! {
        p {
            (m.architecture) ": " (counted(m.layers, "layer")) " of width " (grouped(m.hidden_size)) ", "
            (counted(m.heads, "head")) ", a vocabulary of " (grouped(m.vocabulary)) ", up to "
            (grouped(m.max_positions)) " positions, " (counted(m.parameters, "parameter")) "." (head)
        }
    }
}

/// The columns that were read; `texts` are learned, and have no labels.
fn columns(data: &DataFacts, texts: bool) -> Markup {
    let text = html! { code { (data.text_column) } };
    let pair = data.pair_column.as_ref().map(|column| html! { code { (column) } });
    let words = data.splits.iter().any(|split| split.words > 0);
    html! {
        p {
            @match (texts, pair) {
                (false, None) if words => { "Words from " (text) }
                (false, None) => { "Text from " (text) }
                (false, Some(pair)) => { "Text from " (text) " and " (pair) }
                (true, None) => { "Texts from " (text) }
                (true, Some(pair)) => { "Prompts from " (text) ", completions from " (pair) }
            }
            @if !data.label_column.is_empty() {
                (match (texts, words) { (true, _) => ", references", (_, true) => ", tags", _ => ", labels" })
                " from " code { (data.label_column) }
            }
            "."
        }
    }
}

/// The most classes that are named in a table's cell.
const CLASSES_SHOWN: usize = 12;

/// Rows per class, a line each, or the range of a regression's labels.
fn labels(split: &SplitFacts, classes: &[String]) -> Markup {
    let lines = match split.label_range {
        Some(range) => vec![label_range(range)],
        None => class_shares(split, classes, CLASSES_SHOWN),
    };
    html! {
        @for (number, line) in lines.iter().enumerate() {
            @if number > 0 { br; }
            (line)
        }
    }
}

/// The recipe's keys and values in its order.
fn settings_rows(settings: &RunSettings) -> Vec<(Markup, Markup)> {
    let table = settings.to_table();
    let given = definitions().filter_map(|setting| Some((setting.name, table.get(setting.name)?)));
    given.map(|(name, value)| (html! { code { (name) } }, html! { (value_text(value, ", ")) })).collect()
}
