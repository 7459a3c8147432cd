//! The whole page, for runs of every shape: well-formed, escaped, self-contained, without broken
//! numbers.

use crate::report::render;
use crate::report::tests::samples;
use lora_drop::assignment::Owner;
use lora_drop::evaluate::{Outcome, TextSample};
use lora_drop::events::{OnlyClass, Stage};
use lora_drop::run_record::RunRecord;
use lora_drop::score::{BudgetCurve, BudgetPoint};
use lora_drop::settings::{Budget, Scope, Task, Unselected};
use lora_drop::summary::{Baseline, BaselineKind, Status};

/// Checks that tags are balanced and nested, attributes quoted and ids unique; panics with the
/// place otherwise.
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
            assert!(["&amp", "&lt", "&gt", "&quot"].contains(&entity), "bare & in {text:?}");
        }
        let end = start + rest[start..].find('>').expect("an open tag at the end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closing {name} where {open:?} is open");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes in <{tag}>");
        let name = tag.split_whitespace().next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "tag <{tag}>");
        if let Some(id) = tag.split(" id=\"").nth(1) {
            let id = id.split('"').next().unwrap();
            assert!(ids.insert(id.to_string()), "id {id} occurs twice");
        }
        if name == "style" {
            let close = rest.find("</style>").expect("</style>");
            rest = &rest[close + "</style>".len()..];
        } else if !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

/// Every run's page must pass this.
fn checked(record: &RunRecord) -> String {
    let page = render(record);
    assert_sound(&page);
    page
}

/// Checks that a page is well-formed, has nothing from outside, and no number that is none.
pub(crate) fn assert_sound(page: &str) {
    assert_well_formed(page);
    for outside in ["http:", "https:", "src=", "href=", "@import", "//", "<script"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    let (_, body) = page.split_once("</style>").unwrap();
    for broken in ["NaN", "\"inf", "-inf", ">inf", "\"-\"", "None", "Some("] {
        assert!(!body.contains(broken), "{broken} in the page");
    }
}

#[test]
fn a_run_of_every_shape_has_a_sound_page() {
    for (layers, kinds) in [(6, 2), (12, 2), (30, 6), (1, 1)] {
        let page = checked(&samples::lora_drop(layers, kinds));
        assert_eq!(page.matches("<g class=\"cell").count(), layers * kinds);
        assert_eq!(page.matches("<svg class=\"chart\"").count(), 6);
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
        "the most frequent class alone: accuracy 0.684",
        "Learning rate in training",
        "<tr><th scope=\"row\">written</th><td class=\"n\">2026-01-31 12:34</td></tr>",
        "Example CPU @ 2.00GHz",
        "<td class=\"n\">2, 2 used</td>",
        "AVX-512",
        "Text from <code>sentence1</code> and <code>sentence2</code>, labels from <code>label</code>.",
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
    assert_eq!(page.matches("<svg class=\"chart\"").count(), 3);

    let mut lora = samples::lora_drop(6, 2);
    lora.importance = None;
    checked(&lora);
}

#[test]
fn dropped_modules_are_marked_and_scope_layer_has_one_ranking() {
    let mut record = samples::lora_drop(6, 2);
    record.assignment = Some(samples::assignment(record.importance.as_ref().unwrap(), Owner::None));
    record.settings.train.selection.unselected = Unselected::Drop;
    record.settings.train.selection.scope = Scope::Layer;
    let page = checked(&record);
    assert!(page.contains("class=\"cell dropped"));
    assert!(!page.contains("class=\"cell shared"));
    assert!(page.contains("whole layers"));
    assert!(page.contains("The others have no LoRA."));
}

#[test]
fn a_budget_that_was_found_is_explained() {
    let mut record = samples::lora_drop(6, 2);
    record.settings.train.selection.budget = Some(Budget::Auto);
    let point = |budget, parameters, loss| BudgetPoint { budget, parameters, share: budget, loss };
    let points = vec![point(0.75, 55_296, 0.41), point(0.5, 36_864, 0.44)];
    let curve = BudgetCurve { rows: 512, loss: 0.4, tolerance: 0.02, without: 0.6, points, kept: 0.75 };
    record.importance.as_mut().unwrap().curve = Some(curve.clone());
    let page = checked(&record);
    assert!(page.contains("As many are kept as fit into 75.0 % of plain LoRA’s parameters."), "{page}");
    assert!(
        page.contains("512 rows of train outside the sample")
            && page.contains("0.75 is kept, the smallest budget")
    );
    assert!(
        page.contains("<th scope=\"row\">0.5</th><td class=\"n\">36,864</td><td class=\"n\">0.4400</td>")
    );
    // The loss does not rise without any LoRA, so no budget is decided.
    record.importance.as_mut().unwrap().curve =
        Some(BudgetCurve { without: 0.41, points: Vec::new(), kept: 1.0, ..curve });
    assert!(checked(&record).contains("does not rise even without any LoRA"));
}

#[test]
fn classes_mistakes_and_confusions_are_there() {
    let page = checked(&samples::lora_drop(6, 2));
    let class =
        "<tr><th class=\"name\" scope=\"row\">not equivalent</th><td>0.759</td><td>0.465</td><td>0.577</td>";
    assert!(page.contains(&format!("{class}<td>129</td></tr>")), "{page}");
    let row = ">1 equivalent</th><td class=\"right\" style=\"--share:93%\">260</td><td style=\"--share:7%\">19</td>";
    assert!(page.contains(row), "{page}");
    assert!(!page.contains("Most frequent confusions") && !page.contains("others ("));
    assert!(page.contains("88 rows of dev wrong"));
    assert!(page.contains("<b>not equivalent</b> predicted as <b>equivalent</b> with 98.7 %"));
    assert!(page.contains("<blockquote>he pleaded not guilty .</blockquote>"));
    assert!(!page.contains("Generated samples"));
}

/// The largest are shown and the page says so, whatever their number.
#[test]
fn many_classes_keep_the_page_small() {
    let mut record = samples::lora_drop(6, 2);
    record.data.classes = (0..20_000).map(|class| format!("class {class}")).collect();
    record.data.splits.iter_mut().for_each(|s| s.per_class = vec![1; 20_000]);
    // Class n is taken for class n + 1 in every second row.
    let rows = (0..20_000).map(|row| (row % 15_000, row % 15_000 + row / 15_000));
    record.dev.classes = samples::answers(rows).by_class();
    let page = checked(&record);
    assert!(page.len() < 200_000, "{} bytes", page.len());
    assert!(
        page.contains(
            "20 of 20,000 classes: those with most rows in dev. 15,000 classes are in dev’s labels"
        )
    );
    assert!(page.contains("others (14,992)") && page.contains("Most frequent confusions"));
    assert_eq!(page.matches("<tr><th class=\"name\" scope=\"row\">").count(), 20 + 9 + 10);

    // Dev has two of three classes.
    let mut few = samples::lora_drop(6, 2);
    few.data.classes.push("never".into());
    assert!(checked(&few).contains("2 of 3 classes"));
}

#[test]
fn one_predicted_class_is_said() {
    let mut record = samples::lora_drop(6, 2);
    let only = OnlyClass { name: "equivalent".into(), share: 0.684, words: false };
    record.evaluations.iter_mut().for_each(|e| e.only_class = Some(only.clone()));
    let page = checked(&record);
    assert!(page.contains("every row is predicted as &quot;equivalent&quot;, which 68.4 % of them are."));
}

#[test]
fn values_and_texts_have_rows_of_their_own() {
    let mut values = samples::lora_drop(6, 2);
    values.dev.classes = None;
    values.dev.examples.truncate(1);
    values.dev.examples[0].outcome = Outcome::Value { label: 4.5, predicted: 0.25 };
    values.summary.baseline =
        Some(Baseline { kind: BaselineKind::Mean, name: "loss".into(), value: 2.5, class: None });
    let page = checked(&values);
    assert!(page.contains("Largest errors") && page.contains("<b>4.500</b> predicted as <b>0.250</b>"));
    assert!(page.contains("the mean of the training labels alone: loss 2.500"));

    let mut texts = samples::lora_drop(6, 2);
    texts.settings.rows.task = Some(Task::Text);
    texts.data.classes.clear();
    (texts.data.text_column, texts.data.pair_column) = ("prompt".into(), Some("completion".into()));
    texts.data.label_column = String::new();
    texts.dev.classes = None;
    texts.dev.examples.iter_mut().for_each(|row| row.outcome = Outcome::Loss(7.25));
    texts.dev.samples.push(TextSample {
        place: "dev.jsonl, line 3".into(),
        prompt: "name[The Eagle]".into(),
        reference: "The Eagle is a pub.".into(),
        text: " ".into(),
    });
    texts.summary.baseline =
        Some(Baseline { kind: BaselineKind::Untrained, name: "perplexity".into(), value: 9.5, class: None });
    let page = checked(&texts);
    assert!(
        page.contains("<p>Prompts from <code>prompt</code>, completions from <code>completion</code>.</p>")
    );
    assert!(!page.contains("labels from") && page.contains("the model before training: perplexity 9.500"));
    assert!(page.contains("Texts with the highest loss") && page.contains("loss <b>7.250</b> a token"));
    assert!(page.contains("<dt>generated</dt><dd>(nothing)</dd>"));
    (texts.data.pair_column, texts.data.label_column) = (None, "references".into());
    assert!(
        checked(&texts)
            .contains("<p>Texts from <code>prompt</code>, references from <code>references</code>.</p>")
    );
}

/// Paper gets whole cards: nothing that fits a page is broken over two.
#[test]
fn cards_are_not_broken_over_pages() {
    let page = checked(&samples::lora_drop(6, 2));
    let print = page.split("@media print").nth(1).unwrap();
    assert!(print.contains("section, figure, table, .tile, .settings div { break-inside: avoid; }"));
}

#[test]
fn text_from_users_is_escaped() {
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
    record.settings.train.adapter.target_modules = vec![evil.into()];
    record.model.architecture = evil.into();
    record.module_names.values_mut().for_each(|name| *name = evil.into());
    record.evaluations.iter_mut().for_each(|e| e.metrics[0].0 = evil.into());
    let only = OnlyClass { name: evil.into(), share: 0.5, words: false };
    record.evaluations.iter_mut().for_each(|e| e.only_class = Some(only.clone()));
    record.summary.date = evil.into();
    record.summary.baseline.as_mut().unwrap().name = evil.into();
    let machine = record.summary.machine.as_mut().unwrap();
    (machine.cpu, machine.kernels) = (evil.into(), evil.into());
    let row = &mut record.dev.examples[0];
    (row.place, row.texts) = (evil.into(), vec![evil.into()]);
    row.outcome = Outcome::Class { label: evil.into(), predicted: evil.into(), confidence: 1.0 };
    let [place, prompt, reference, text] = [evil; 4].map(String::from);
    record.dev.samples.push(TextSample { place, prompt, reference, text });
    let page = checked_but_slashes(&record);
    assert!(!page.contains("<script"));
    assert!(page.contains("&lt;script&gt;alert(&quot;&amp;'\u{fffd}&quot;)&lt;/script&gt;"));
}

/// As `checked`, for pages whose texts may hold anything.
fn checked_but_slashes(record: &RunRecord) -> String {
    let page = render(record);
    assert_well_formed(&page);
    page
}

#[test]
fn the_page_of_a_run_in_progress_reloads_itself() {
    let mut record = samples::lora_drop(6, 2);
    let reloads = |page: &str| page.contains("<meta http-equiv=\"refresh\" content=\"10\">");
    for status in [Status::Finished, Status::Stopped, Status::Interrupted, Status::Diverged, Status::Failed] {
        record.summary.status = status;
        let page = checked(&record);
        assert!(!reloads(&page) && !page.contains("in progress"), "{status}");
    }
    record.summary.status = Status::Running;
    record.seconds_left = Some(83.2);
    record.evaluations.truncate(2);
    record.steps.retain(|step| step.stage == Stage::Sample || step.step <= 230);
    let page = checked(&record);
    assert!(reloads(&page));
    for text in [
        "Step 230 of 575, epoch 2 of 5; about 1 m 23 s left, without evaluations.",
        "<span style=\"width:40.0%\">",
        "Written 2026-01-31 12:34:56.",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // A run that was resumed has made no step of its own.
    record.seconds_left = None;
    assert!(checked(&record).contains("epoch 2 of 5."));
    record.steps.retain(|step| step.stage == Stage::Sample);
    (record.evaluations, record.summary.metrics) = (Vec::new(), Default::default());
    (record.summary.best_epoch, record.summary.train_tokens, record.dev) = (0.0, 0, Default::default());
    let page = checked(&record);
    assert!(page.contains("The modules are scored; fine-tuning begins."));
    assert!(!page.contains("Tokens per second") && page.contains("No evaluation was made."));

    record.summary.status = Status::Interrupted;
    assert!(checked(&record).contains("No epoch was evaluated."));
}

#[test]
fn degenerate_runs_have_a_sound_page() {
    let base = || samples::lora_drop(6, 2);

    let mut one_step = base();
    one_step.steps = samples::steps(Stage::Train, 1, 0.1);
    one_step.evaluations.truncate(1);
    one_step.summary.best_epoch = 1.0;
    checked(&one_step);

    let mut nothing = base();
    nothing.steps.clear();
    nothing.evaluations.clear();
    nothing.summary.metrics.clear();
    nothing.summary.status = Status::Interrupted;
    nothing.importance.as_mut().unwrap().history.clear();
    nothing.data = Default::default();
    nothing.dev = Default::default();
    (nothing.summary.baseline, nothing.summary.machine, nothing.summary.date) = (None, None, String::new());
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
