//! The whole page, for runs of every shape: well-formed, escaped, self-contained, without broken numbers.

use crate::assign::Owner;
use crate::events::Stage;
use crate::report::{RunRecord, render, samples, write_report};
use crate::settings::{Scope, Unselected};
use crate::summary::Status;

/// Checks that tags are balanced and nested, attributes quoted and ids unique; panics with the place otherwise.
fn assert_well_formed(page: &str) {
    const VOID: [&str; 2] = ["meta", "br"];
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("doctype");
    let mut open: Vec<&str> = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        assert!(!text.contains('>'), "bare > in {text:?}");
        for (i, _) in text.match_indices('&') {
            let entity = text[i..].split(';').next().unwrap();
            assert!(["&amp", "&lt", "&gt", "&quot", "&#39"].contains(&entity), "bare & in {text:?}");
        }
        let end = start + rest[start..].find('>').expect("an open tag at the end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closing {name} where {open:?} is open");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes in <{tag}>");
        let name = tag.trim_end_matches('/').split_whitespace().next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "tag <{tag}>");
        if let Some(id) = tag.split(" id=\"").nth(1) {
            let id = id.split('"').next().unwrap();
            assert!(ids.insert(id.to_string()), "id {id} is there twice");
        }
        if name == "style" {
            let close = rest.find("</style>").expect("</style>");
            rest = &rest[close + "</style>".len()..];
        } else if !tag.ends_with('/') {
            assert!(!VOID.contains(&name), "<{tag}> is not closed");
            open.push(name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

/// Every run's page must pass this.
fn checked(record: &RunRecord) -> String {
    let page = render(record).unwrap();
    assert_well_formed(&page);
    for outside in ["http:", "https:", "src=", "href=", "@import", "//", "<script"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    let (_, body) = page.split_once("</style>").unwrap();
    for broken in ["NaN", "\"inf", "-inf", ">inf", "\"-\"", "None", "Some("] {
        assert!(!body.contains(broken), "{broken} in the page");
    }
    page
}

#[test]
fn a_run_of_every_shape_has_a_sound_page() {
    for (layers, kinds) in [(6, 2), (12, 2), (30, 6), (1, 1)] {
        let page = checked(&samples::lora_drop(layers, kinds));
        assert_eq!(page.matches("<g class=\"cell").count(), layers * kinds);
        assert_eq!(page.matches("<svg class=\"chart\"").count(), 5);
    }
}

#[test]
fn headline_numbers_are_there() {
    let page = checked(&samples::lora_drop(12, 2));
    for text in [
        "<title>LoRA-drop · minilm · mrpc</title>",
        "<h1>LoRA-drop on mrpc</h1>",
        "<dt>Accuracy</dt><dd class=\"value\">0.784</dd>",
        "on dev, epoch 4 of 5",
        "F1 0.852",
        "86,016",
        "58.3 % of plain LoRA’s 147,456",
        "2,431",
        "7 m 49 s",
        "293.1 MiB",
        "T = 0.9",
        "best: epoch 4",
        "not equivalent 1,194 (32.6 %)",
        "<dt><code>learning-rate</code></dt><dd>0.001</dd>",
    ] {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn methods_without_importance_have_no_map() {
    let page = checked(&samples::full());
    assert!(!page.contains("<svg class=\"heatmap\""));
    assert!(!page.contains("plain LoRA"));
    assert!(page.contains("<dt>Trained parameters</dt><dd class=\"value\">22,566,146</dd>"));
    assert_eq!(page.matches("<svg class=\"chart\"").count(), 2);

    let mut lora = samples::lora_drop(6, 2);
    lora.importance = None;
    checked(&lora);
}

#[test]
fn dropped_modules_are_marked_and_scope_layer_has_one_ranking() {
    let mut record = samples::lora_drop(6, 2);
    record.assignment = Some(samples::assignment(record.importance.as_ref().unwrap(), Owner::None));
    record.settings.unselected = Unselected::Drop;
    record.settings.scope = Scope::Layer;
    let page = checked(&record);
    assert!(page.contains("class=\"cell dropped"));
    assert!(!page.contains("class=\"cell shared"));
    assert!(page.contains("whole layers"));
    assert!(page.contains("The others have no LoRA."));
}

#[test]
fn what_users_wrote_is_escaped() {
    let mut record = samples::lora_drop(6, 2);
    let evil = "<script>alert(\"&'\u{8}\")</script>";
    record.data.classes[0] = evil.into();
    record.data.text_column = evil.into();
    record.data.pair_column = Some(evil.into());
    record.data.label_column = evil.into();
    record.data.splits[0].file = evil.into();
    record.summary.model = evil.into();
    record.summary.data = evil.into();
    record.summary.status = Status::Failed;
    record.summary.error = Some(evil.into());
    record.summary.metric = evil.into();
    record.summary.files.insert(evil.into(), 1);
    record.settings.target_modules = vec![evil.into()];
    record.model.architecture = evil.into();
    record.module_names.values_mut().for_each(|name| *name = evil.into());
    record.evaluations.iter_mut().for_each(|e| e.metrics[0].0 = evil.into());
    let page = checked_but_slashes(&record);
    assert!(!page.contains("<script"));
    assert!(page.contains("&lt;script&gt;alert(&quot;&amp;&#39;\u{fffd}&quot;)&lt;/script&gt;"));
}

/// As `checked`, for pages whose texts may hold anything.
fn checked_but_slashes(record: &RunRecord) -> String {
    let page = render(record).unwrap();
    assert_well_formed(&page);
    page
}

#[test]
fn degenerate_runs_have_a_sound_page() {
    let base = || samples::lora_drop(6, 2);

    let mut one_step = base();
    one_step.steps = samples::steps(Stage::Train, 1, 0.1);
    one_step.evaluations.truncate(1);
    one_step.summary.best_epoch = 1;
    checked(&one_step);

    let mut nothing = base();
    nothing.steps.clear();
    nothing.evaluations.clear();
    nothing.summary.metrics.clear();
    nothing.summary.status = Status::Interrupted;
    nothing.importance.as_mut().unwrap().history.clear();
    nothing.data = Default::default();
    let page = checked(&nothing);
    assert!(page.contains("This run was interrupted."));
    assert!(page.contains("No step was made.") && page.contains("No evaluation was made."));

    let mut constant = base();
    constant.steps.iter_mut().for_each(|s| s.loss = 0.5);
    constant.evaluations.iter_mut().for_each(|e| {
        e.loss = 0.5;
        e.metrics.iter_mut().for_each(|m| m.1 = 0.0);
    });
    checked(&constant);

    for value in [f64::NAN, f64::INFINITY, f64::MAX, f64::MIN] {
        let mut broken = base();
        broken.steps.iter_mut().for_each(|s| s.loss = value);
        broken.evaluations.iter_mut().for_each(|e| {
            e.loss = value;
            e.metrics.iter_mut().for_each(|m| m.1 = value);
        });
        broken.summary.metrics.values_mut().for_each(|v| *v = value);
        broken.summary.train_tokens_per_second = value;
        broken.summary.retained_ratio = value;
        broken.summary.sample_seconds = value;
        let importance = broken.importance.as_mut().unwrap();
        importance.modules.iter_mut().for_each(|m| (m.importance, m.score) = (value, value));
        importance.history.iter_mut().for_each(|h| h.1 = value);
        checked(&broken);
    }
}

#[test]
fn long_runs_stay_small() {
    let mut record = samples::lora_drop(30, 6);
    record.steps = samples::steps(Stage::Sample, 20_000, 9.0);
    record.steps.extend(samples::steps(Stage::Train, 100_000, 100.0));
    record.evaluations = samples::evaluations(100, 1000);
    let page = checked(&record);
    assert!(page.len() < 500_000, "{} bytes", page.len());
}

#[test]
fn the_page_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let record = samples::lora_drop(6, 2);
    write_report(&path, &record).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), render(&record).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let error = write_report(&folder.path().join("missing/report.html"), &record).unwrap_err();
    assert!(error.to_string().contains("report.html"), "{error}");
}
