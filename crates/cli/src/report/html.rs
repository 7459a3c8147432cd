//! The report page: one HTML file without scripts and without anything from outside, for light and
//! dark screens and paper.

use std::fmt::Write;

use crate::report::grid::Grid;
use crate::report::terminal::{budget_decision, budget_rows, by_kind, sharing, without};
use crate::report::{
    adapter_name, dev, figures, heatmap, method_name, metric_name, metrics_in_order, module_name, plain_name,
};
use lora_drop::events::{EvaluationRecord, Stage};
use lora_drop::format::{self, grouped};
use lora_drop::record::RunRecord;
use lora_drop::score::{BudgetCurve, Importance};
use lora_drop::settings::{
    Basis, CriterionName, RunSettings, Scope, Selection, Task, Unselected, as_options, definitions,
};
use lora_drop::summary::{Baseline, BaselineKind, DataFacts, SplitFacts, Status, Summary};

/// The page of a run as HTML text. Its size does not grow with the number of steps.
pub fn render(record: &RunRecord) -> String {
    let title = format!(
        "{} · {} · {}",
        method_name(&record.summary.method),
        last_part(&record.summary.model),
        last_part(&record.summary.data)
    );
    let mut out = String::new();
    header(&mut out, record);
    tiles(&mut out, record);
    importance(&mut out, record);
    training(&mut out, record);
    dev::sections(&mut out, record);
    parameters_and_times(&mut out, record);
    inputs(&mut out, record);
    settings(&mut out, &record.settings);
    _ = writeln!(
        out,
        "<footer><p>Written by lora-drop {}. <code>lora-drop train recipe.toml</code> with the recipe.toml beside \
         this file repeats the run.</p></footer>",
        escape(&record.summary.version)
    );
    document(&title, &out)
}

/// A whole page: head, style and what stands in it.
pub(crate) fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title),
        include_str!("page.css")
    )
}

/// What g is, in words.
fn score(criterion: CriterionName, importance: &Importance) -> String {
    let (name, meaning) = (criterion.name(), criterion.meaning());
    match (criterion, criterion.basis()) {
        (CriterionName::Output, _) => format!("g is the sum, over {}, of {meaning}", window(importance)),
        (_, Basis::Order) => format!("g, by the criterion {name}, is {meaning}"),
        (_, Basis::Training) => {
            format!("g, by the criterion {name}, is {meaning}, over {}", window(importance))
        }
        (_, Basis::Gradients | Basis::HiddenStates) => format!(
            "g, by the criterion {name}, is {meaning}, over {} of the sample before anything was trained",
            format::counted(importance.rows, "row")
        ),
    }
}

/// What scores were summed over, in words.
fn window(importance: &Importance) -> String {
    let (window, sample) = (importance.window, format::counted(importance.rows, "row"));
    let (rows, tokens) = (format::counted(window.rows, "row"), format::counted(window.tokens, "token"));
    let steps = format::counted(window.steps, "step");
    format!("the {tokens} of the last {steps}: {rows}, drawn from the sample’s {sample}")
}

fn header(out: &mut String, record: &RunRecord) {
    let s = &record.summary;
    _ = write!(
        out,
        "<header>\n<h1>{} on {}</h1>\n<p class=\"facts\"><span>Model <code>{}</code></span> \
         <span>Data <code>{}</code></span> <span>Seed {}</span> <span>{}</span></p>\n",
        escape(method_name(&s.method)),
        escape(last_part(&s.data)),
        escape(&s.model),
        escape(&s.data),
        s.seed,
        format::counted(s.threads, "thread"),
    );
    let state = match s.status {
        Status::Finished => None,
        Status::Running => Some("is not over".to_string()),
        Status::Stopped => Some("was stopped before its end".to_string()),
        Status::Interrupted => Some("was interrupted".to_string()),
        Status::Diverged => Some("diverged".to_string()),
        Status::Failed => Some("failed".to_string()),
    };
    if let Some(state) = state {
        let error = s
            .error
            .as_deref()
            .map_or(String::new(), |error| format!(" It ended with: {}.", escape(&as_options(error))));
        _ = writeln!(
            out,
            "<p class=\"warn\"><b>This run {state}.</b>{error} The results are those of the best epoch until then.</p>",
        );
    }
    out.push_str("</header>\n");
}

/// The headline numbers.
fn tiles(out: &mut String, record: &RunRecord) {
    let s = &record.summary;
    out.push_str("<dl class=\"tiles\">\n");

    let metrics = metrics_in_order(s);
    if let Some(((name, value), others)) = metrics.split_first() {
        let mut lines = vec![format!("on dev, epoch {} of {}", s.best_epoch, s.epochs)];
        lines.extend(others.iter().map(|(n, v)| format!("{} {}", metric_name(n), format::fixed(*v, 3))));
        lines.extend(s.baseline.as_ref().map(baseline));
        tile(out, metric_name(name), &format::fixed(*value, 3), None, &lines);
    }

    if s.lora_parameters_full > 0 {
        let lora = adapter_name(&s.method);
        let lines = [format!(
            "{} of plain {}’s {}",
            format::percent(s.retained_ratio),
            plain_name(&s.method),
            format::grouped(s.lora_parameters_full)
        )];
        let value = format::grouped(s.lora_parameters);
        tile(out, &format!("Unique {lora} parameters"), &value, Some(s.retained_ratio), &lines);
    } else {
        let all = record.model.parameters.max(s.trainable_parameters).max(1);
        let lines = [if s.method == "full" { "every weight".into() } else { "the head alone".to_string() }];
        let share = s.trainable_parameters as f64 / all as f64;
        tile(out, "Trained parameters", &format::grouped(s.trainable_parameters), Some(share), &lines);
    }

    let tokens = format!("{} tokens in training", format::grouped(s.train_tokens));
    tile(out, "Tokens per second", &format::rate(s.train_tokens_per_second), None, &[tokens]);

    let mut lines = vec![format!("training {}", format::duration(s.train_seconds))];
    if s.sample_steps > 0 {
        lines.insert(0, format!("sample {}", format::duration(s.sample_seconds)));
    }
    lines.push(format!("evaluation {}", format::duration(s.evaluate_seconds)));
    tile(out, "Time", &format::duration(s.total_seconds), None, &lines);

    tile(out, "Peak memory", &format::bytes(s.peak_rss_bytes), None, &["resident, whole process".into()]);
    out.push_str("</dl>\n");
}

pub fn tile(out: &mut String, name: &str, value: &str, meter: Option<f64>, lines: &[String]) {
    _ = write!(
        out,
        "<div class=\"tile\"><dt>{}</dt><dd class=\"value\">{}</dd>",
        escape(name),
        escape(value)
    );
    if let Some(share) = meter.filter(|s| s.is_finite()) {
        let filled = 100.0 * share.clamp(0.0, 1.0);
        _ = write!(
            out,
            "<dd class=\"meter\" aria-hidden=\"true\"><span style=\"width:{filled:.1}%\"></span></dd>"
        );
    }
    for line in lines {
        _ = write!(out, "<dd>{}</dd>", escape(line));
    }
    out.push_str("</div>\n");
}

/// What dev gives without training.
fn baseline(baseline: &Baseline) -> String {
    let value = format::fixed(baseline.value, 3);
    match baseline.kind {
        BaselineKind::CommonestClass => format!("the commonest class alone: {value}"),
        BaselineKind::Mean => format!("the mean of train’s labels alone: {} {value}", baseline.name),
        BaselineKind::Untrained => format!("before training: {value}"),
    }
}

/// Which modules matter, what was kept, and how the ranking settled; nothing for methods that score
/// nothing.
fn importance(out: &mut String, record: &RunRecord) {
    let Some(importance) = &record.importance else {
        return;
    };
    let settings = &record.settings;
    let grid = Grid::new(importance, record.assignment.as_ref(), &record.module_names);
    out.push_str("<section>\n<h2>Importance of the modules, and which keep their LoRA</h2>\n");
    _ = writeln!(out, "<p>{}</p>", rule(settings, importance));
    importance.curve.iter().for_each(|curve| budget(out, curve));
    if let Some(assignment) = &record.assignment {
        out.push_str("<ul>\n");
        for (kind, [own, shared, none]) in by_kind(assignment) {
            let mut parts = vec![match own.as_slice() {
                [] => "no layer keeps its own".to_string(),
                [one] => format!("layer {one} keeps its own"),
                many => format!("layers {} keep their own", format::layers(many)),
            }];
            parts.extend([sharing(&shared), without(&none)].into_iter().flatten());
            let name = module_name(&record.module_names, kind);
            _ = writeln!(out, "<li><code>{}</code>: {}</li>", escape(name), parts.join("; "));
        }
        out.push_str("</ul>\n");
    }

    let among = match settings.train.selection.scope {
        Scope::Module => "all modules of its type: each column adds up to 1",
        Scope::Layer => "all target modules: the whole map adds up to 1",
    };
    _ = write!(
        out,
        "<div class=\"side\">\n<figure class=\"scroll\" tabindex=\"0\">\n<figcaption>Importance I by layer and module type</figcaption>\n{}</figure>\n\
         <div class=\"grow\">\n{}<p class=\"note\">I is the module’s share of g among {among}. {}.</p>\n",
        heatmap::svg(&grid),
        heatmap::legend(&grid),
        score(settings.train.selection.criterion, importance),
    );
    let threshold = match settings.train.selection.rule() {
        Selection::Threshold(t) if settings.train.selection.scope == Scope::Module => Some(t),
        Selection::Threshold(t) => Some(t * total(&grid)),
        _ => None,
    };
    out.push_str(
        &figures::cumulative(&grid.rankings(settings.train.selection.scope), threshold).unwrap_or_default(),
    );
    out.push_str("</div>\n</div>\n<details><summary>The numbers as a table</summary>\n<div class=\"scroll\" tabindex=\"0\">\n");
    out.push_str(&heatmap::table(&grid));
    out.push_str("</div>\n</details>\n</section>\n");

    if importance.steps == 0 {
        return;
    }
    out.push_str("<section>\n<h2>The sample stage</h2>\n");
    let settled = match (importance.settled, importance.history.last()) {
        (true, Some((_, tau))) => format!(
            "The ranking was stable: Kendall’s tau against the scoring before was {}.",
            format::fixed(*tau, 3)
        ),
        (true, None) => "The ranking was stable.".into(),
        (false, Some((_, tau))) => format!(
            "The ranking was not stable when the stage ended: Kendall’s tau against the scoring before was {}.",
            format::fixed(*tau, 3)
        ),
        (false, None) => "The modules were scored once, at the end.".into(),
    };
    _ = writeln!(
        out,
        "<p>LoRA on every target module was trained on {} ({}) for {}. {settled}</p>",
        format::counted(importance.rows, "row"),
        format::counted(importance.tokens, "token"),
        format::counted(importance.steps, "step"),
    );
    out.push_str("<div class=\"even\">\n");
    out.push_str(&figures::loss(Stage::Sample, &record.steps, &[]).unwrap_or_default());
    out.push_str(&figures::settling(&importance.history).unwrap_or_default());
    out.push_str("</div>\n</section>\n");
}

/// How the budget was found.
fn budget(out: &mut String, curve: &BudgetCurve) {
    _ = write!(
        out,
        "<p>{}.</p>\n<table>\n<thead><tr><th scope=\"col\">budget</th><th scope=\"col\" class=\"n\">parameters</th>\
         <th scope=\"col\" class=\"n\">loss</th></tr></thead>\n<tbody>\n",
        budget_decision(curve)
    );
    for (name, parameters, loss) in budget_rows(curve) {
        let loss = format::fixed(loss, 4);
        _ = writeln!(
            out,
            "<tr><th scope=\"row\">{name}</th><td class=\"n\">{parameters}</td><td class=\"n\">{loss}</td></tr>"
        );
    }
    out.push_str("</tbody>\n</table>\n");
}

/// The selection rule in a sentence.
fn rule(settings: &RunSettings, importance: &Importance) -> String {
    let ranked = match settings.train.selection.scope {
        Scope::Module => "Each module type has a ranking of its own over the layers.",
        Scope::Layer => "Whole layers are ranked, by the sum over their modules.",
    };
    let kept = match settings.train.selection.rule() {
        Selection::Threshold(t) => format!("The first are kept until their I adds up to T = {t}."),
        Selection::TopK(k) => format!("The first {k} are kept."),
        Selection::Budget(f) => {
            format!("As many are kept as fit into {} of plain LoRA’s parameters.", format::percent(f))
        }
        Selection::Auto => {
            let kept = importance.curve.as_ref().map_or(1.0, |curve| curve.kept);
            format!("As many are kept as fit into {} of plain LoRA’s parameters.", format::percent(kept))
        }
        Selection::Layers(layers) => format!("Kept were named: {}.", format::layers(&layers)),
    };
    let rank =
        settings.train.selection.shared_rank.map(|rank| format!(" of rank {rank}")).unwrap_or_default();
    let rest = match settings.train.selection.unselected {
        Unselected::Share => format!("All others of a type share one LoRA{rank}."),
        Unselected::Scale => {
            format!("All others of a type share one LoRA{rank}, which each scales by vectors of its own.")
        }
        Unselected::Drop => "The others have no LoRA.".to_string(),
    };
    format!("{ranked} {kept} {rest}")
}

/// What the importance of all modules adds up to: 1 where all are in one ranking.
fn total(grid: &Grid) -> f64 {
    let all = grid.cells.iter().flatten().flatten().map(|c| c.importance);
    all.filter(|i| i.is_finite()).sum()
}

/// Loss and metrics of stage 3.
fn training(out: &mut String, record: &RunRecord) {
    out.push_str("<section>\n<h2>Training</h2>\n");
    let loss = figures::loss(Stage::Train, &record.steps, &record.evaluations);
    let rate = figures::learning_rate(&record.steps);
    let metrics = figures::metrics(&record.evaluations, record.summary.best_epoch);
    if loss.is_none() {
        out.push_str("<p>No step was made.</p>\n");
    }
    if metrics.is_none() {
        out.push_str("<p>No evaluation was made.</p>\n");
    }
    _ = write!(
        out,
        "<div class=\"even\">\n{}{}{}",
        loss.unwrap_or_default(),
        metrics.unwrap_or_default(),
        rate.unwrap_or_default()
    );
    evaluations(out, &record.evaluations, record.summary.best_epoch);
    out.push_str("</div>\n</section>\n");
}

fn evaluations(out: &mut String, evaluations: &[EvaluationRecord], best: usize) {
    let Some(first) = evaluations.first() else {
        return;
    };
    out.push_str(
        "<div class=\"scroll\" tabindex=\"0\">\n<table class=\"numbers\">\n<caption>Evaluations on dev</caption>\n\
         <thead><tr><th scope=\"col\">epoch</th><th scope=\"col\">step</th>",
    );
    for (name, _) in &first.metrics {
        _ = write!(out, "<th scope=\"col\">{}</th>", escape(metric_name(name)));
    }
    out.push_str("<th scope=\"col\">loss</th><th scope=\"col\"></th></tr></thead>\n<tbody>\n");
    for e in evaluations {
        let (class, mark) = if e.epoch == best { (" class=\"best\"", "best") } else { ("", "") };
        _ = write!(out, "<tr{class}><th scope=\"row\">{}</th><td>{}</td>", e.epoch, format::grouped(e.step));
        for (_, value) in &e.metrics {
            _ = write!(out, "<td>{}</td>", format::fixed(*value, 4));
        }
        _ = writeln!(out, "<td>{}</td><td>{mark}</td></tr>", format::fixed(e.loss, 4));
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}

fn parameters_and_times(out: &mut String, record: &RunRecord) {
    let s = &record.summary;
    let lora = adapter_name(&s.method);
    let (unique, plain) =
        (format!("of these, unique {lora}"), format!("plain {} would have", plain_name(&s.method)));
    let head = s.trainable_parameters.saturating_sub(s.lora_parameters);
    let mut parameters = vec![("model", grouped(record.model.parameters))];
    parameters.push(("trained", grouped(s.trainable_parameters)));
    if s.lora_parameters_full > 0 {
        parameters.push(("of these, head", grouped(head)));
        parameters.push((unique.as_str(), grouped(s.lora_parameters)));
        parameters.push((plain.as_str(), grouped(s.lora_parameters_full)));
        parameters.push(("retained ratio", format::percent(s.retained_ratio)));
    }
    let known = s.sample_seconds + s.train_seconds + s.evaluate_seconds;
    let mut times = Vec::new();
    if s.sample_steps == 0 && s.sample_seconds > 0.0 {
        times.push(("scoring", format::duration(s.sample_seconds)));
    }
    if s.sample_steps > 0 {
        let name = if s.sample_settled { "sample stage" } else { "sample stage (ranking not stable)" };
        times.push((
            name,
            format!("{}, {}", format::counted(s.sample_steps, "step"), format::duration(s.sample_seconds)),
        ));
    }
    times.push(("training", format::duration(s.train_seconds)));
    times.push(("evaluation", format::duration(s.evaluate_seconds)));
    times.push(("reading and writing", format::duration((s.total_seconds - known).max(0.0))));
    times.push(("total", format::duration(s.total_seconds)));
    let files: Vec<(&str, String)> =
        s.files.iter().map(|(name, &n)| (name.as_str(), format::bytes(n))).collect();

    out.push_str("<section>\n<h2>Parameters and times</h2>\n<div class=\"thirds\">\n");
    pairs(out, "Parameters", &parameters);
    pairs(out, "Times", &times);
    if !files.is_empty() {
        pairs(out, "Adapter files", &files);
    }
    pairs(out, "Where and when", &machine(s));
    out.push_str("</div>\n</section>\n");
}

/// The date, the program and the machine, as far as the summary has them.
fn machine(s: &Summary) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if !s.date.is_empty() {
        // 2026-01-31T12:34:56+01:00
        let date = s.date.replacen('T', " ", 1);
        rows.push(("written", date.get(..16).unwrap_or(&date).to_string()));
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

/// A table of names and numbers.
fn pairs(out: &mut String, caption: &str, rows: &[(&str, String)]) {
    _ = write!(out, "<table class=\"wide\">\n<caption>{}</caption>\n<tbody>\n", escape(caption));
    for (name, value) in rows {
        _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td></tr>",
            escape(name),
            escape(value)
        );
    }
    out.push_str("</tbody>\n</table>\n");
}

/// What was found: the model and the data.
fn inputs(out: &mut String, record: &RunRecord) {
    let (m, d) = (&record.model, &record.data);
    let head = match m.head_found {
        None => "",
        Some(true) => " The head was the checkpoint’s own.",
        Some(false) => " The head was newly initialised.",
    };
    _ = writeln!(
        out,
        "<section>\n<h2>Model and data</h2>\n<p>{}: {} of width {}, {}, a vocabulary of {}, up to {} positions, {}.\
         {head}</p>",
        escape(&m.architecture),
        format::counted(m.layers, "layer"),
        grouped(m.hidden_size),
        format::counted(m.heads, "head"),
        grouped(m.vocabulary),
        grouped(m.max_positions),
        format::counted(m.parameters, "parameter"),
    );
    columns(out, d, record.settings.rows.task == Some(Task::Text));
    let over_long = match d.over_length.as_str() {
        "truncate" => "cut",
        "drop" => "left out",
        _ => "too long",
    };
    _ = write!(
        out,
        "<div class=\"scroll\" tabindex=\"0\">\n<table>\n<thead><tr><th scope=\"col\">split</th><th scope=\"col\">file</th>\
         <th scope=\"col\" class=\"n\">rows</th><th scope=\"col\" class=\"n\">tokens</th>\
         <th scope=\"col\" class=\"n\">length: least / median / most</th>\
         <th scope=\"col\" class=\"n\">over {} tokens: {over_long}</th><th scope=\"col\">labels</th></tr></thead>\n<tbody>\n",
        grouped(d.max_length)
    );
    for split in &d.splits {
        _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td><code>{}</code></td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{} / {} / {}{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&split.name),
            escape(&split.file),
            grouped(split.rows),
            grouped(split.tokens),
            split.shortest,
            split.median_length,
            split.longest,
            if split.uncounted > 0 { " or more" } else { "" },
            grouped(split.over_long),
            labels(split, &d.classes)
        );
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
}

/// The columns that were read; `texts` are learned, and have no labels.
fn columns(out: &mut String, d: &DataFacts, texts: bool) {
    let code = |name: &str| format!("<code>{}</code>", escape(name));
    let text = code(&d.text_column);
    let pair = d.pair_column.as_ref().map(|column| code(column));
    let mut line = match (texts, pair) {
        (false, None) => format!("Text from {text}"),
        (false, Some(pair)) => format!("Text from {text} and {pair}"),
        (true, None) => format!("Texts from {text}"),
        (true, Some(pair)) => format!("Prompts from {text}, completions from {pair}"),
    };
    if !d.label_column.is_empty() {
        let what = if texts { "references" } else { "labels" };
        _ = write!(line, ", {what} from {}", code(&d.label_column));
    }
    _ = writeln!(out, "<p>{line}.</p>");
}

/// How many classes are named in a table's cell.
const CLASSES_SHOWN: usize = 12;

/// Rows per class, or the range of a regression's labels, as HTML.
fn labels(split: &SplitFacts, classes: &[String]) -> String {
    if let Some((low, mean, high)) = split.label_range {
        return format!(
            "{} to {}, mean {}",
            format::fixed(low, 2),
            format::fixed(high, 2),
            format::fixed(mean, 2)
        );
    }
    let mut lines: Vec<String> = std::iter::zip(classes, &split.per_class)
        .take(CLASSES_SHOWN)
        .map(|(name, &n)| {
            let share = n as f64 / split.rows as f64;
            format!("{} {} ({})", escape(name), grouped(n), format::percent(share))
        })
        .collect();
    if classes.len() > CLASSES_SHOWN {
        lines.push(format!("and {} more", grouped(classes.len() - CLASSES_SHOWN)));
    }
    lines.join("<br/>")
}

/// The resolved recipe.
fn settings(out: &mut String, settings: &RunSettings) {
    out.push_str("<section>\n<h2>Settings</h2>\n<dl class=\"settings\">\n");
    for (name, value) in settings_rows(settings) {
        _ = writeln!(out, "<div><dt><code>{}</code></dt><dd>{}</dd></div>", escape(&name), escape(&value));
    }
    out.push_str("</dl>\n</section>\n");
}

/// The recipe's keys and values in its order.
fn settings_rows(settings: &RunSettings) -> Vec<(String, String)> {
    fn text(value: &toml::Value) -> String {
        match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(", "),
            other => other.to_string(),
        }
    }
    let table = settings.to_table();
    let named = definitions().filter_map(|setting| Some((setting.name, table.get(setting.name)?)));
    named.map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// The last part of a path or of a hub name.
pub fn last_part(path: &str) -> &str {
    let trimmed = path.trim_end_matches(['/', '\\']);
    trimmed.rsplit(['/', '\\']).next().filter(|p| !p.is_empty()).unwrap_or(path)
}

/// Text for HTML, between tags and inside double quotes. Control characters, which HTML cannot
/// hold, become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
