//! The terminal's texts, letter by letter.

use crate::report::printable;
use crate::report::terminal::*;
use crate::report::tests::samples;
use lora_drop::assignment::{Assignment, Owner};
use lora_drop::events::OnlyClass;
use lora_drop::summary::{BaselineKind, Plan, Status, Summary};

const PLAIN: Style = Style { width: 80, colour: false, terminal: false };

#[test]
fn model_and_data_as_found() {
    assert_eq!(
        model_facts(&samples::model(6), PLAIN),
        "\
Model  models/minilm
       bert, 6 layers of width 384, 12 heads, vocabulary 30,522, 512 positions
       22,565,376 encoder parameters and a head newly initialised
"
    );
    assert_eq!(
        data_facts(&samples::data(), PLAIN),
        "\
Data   sentence1 + sentence2 → label
              file          rows   tokens             length  over-long
       train  train.jsonl  3,668  194,012  14–103, median 52         12
       dev    dev.jsonl      408   21,600  14–103, median 52          0
       12 rows of more than 96 tokens are cut to that length
       train  not equivalent 1,194 (32.6 %), equivalent 2,474 (67.4 %)
       dev    not equivalent 129 (31.6 %), equivalent 279 (68.4 %)
"
    );
}

#[test]
fn the_fate_of_over_long_rows_is_said() {
    let mut data = samples::data();
    data.splits.iter_mut().for_each(|s| s.over_long = 0);
    assert!(!data_facts(&data, PLAIN).contains("of more than"));
    data.splits[0].over_long = 1;
    data.over_length = "drop".into();
    assert!(data_facts(&data, PLAIN).contains("\n       1 row of more than 96 tokens is left out\n"));
}

#[test]
fn regressions_have_a_range_and_many_classes_several_lines() {
    let mut data = samples::data();
    data.splits.truncate(1);
    data.splits[0].label_range = Some((0.0, 2.7, 5.0));
    assert!(data_facts(&data, PLAIN).ends_with("\n       train  labels 0.00 to 5.00, mean 2.70\n"));

    data.splits[0].label_range = None;
    data.classes = (0..8).map(|i| format!("class number {i}")).collect();
    data.splits[0].per_class = vec![100; 8];
    let text = data_facts(&data, PLAIN);
    let text = wrap(&text, 80);
    let line = "\n       train  class number 0 100 (2.7 %), class number 1 100 (2.7 %), class";
    assert!(text.contains(&format!("{line}\n              number 2 100 (2.7 %), ")), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn importance_is_drawn_side_by_side() {
    let record = samples::lora_drop(6, 2);
    let text = importance(
        record.importance.as_ref().unwrap(),
        record.assignment.as_ref(),
        &record.module_names,
        PLAIN,
    );
    assert_eq!(
        text,
        "\
layer  query                              value
    0  ▍                        0.009 ○   █▍                       0.031 ○
    1  █▎                       0.029 ○   ██▎                      0.051 ○
    2  ███▏                     0.070 ●   █████▎                   0.119 ●
    3  ██▊                      0.063 ●   █████▍                   0.123 ●
    4  ████████████▋            0.286 ●   ████████████████         0.363 ●
    5  ████████████████████████ 0.543 ●   █████████████▉           0.314 ●
       ● kept   ○ shared
"
    );
}

#[test]
fn importance_fits_narrow_terminals_and_many_layers() {
    for (layers, kinds, width) in [(60, 6, 80), (60, 6, 200), (12, 2, 30), (1, 1, 20), (3, 2, 0)] {
        let record = samples::lora_drop(layers, kinds);
        let style = Style { width, ..PLAIN };
        let text = importance(
            record.importance.as_ref().unwrap(),
            record.assignment.as_ref(),
            &record.module_names,
            style,
        );
        let marks = text.matches(['●', '○']).count();
        let legend = text.lines().last().unwrap().matches(['●', '○']).count();
        assert_eq!(marks - legend, layers * kinds);
        // One bar of the shortest length is the least that can be drawn.
        assert!(text.lines().all(|line| line.chars().count() <= width.max(24)), "{width}:\n{text}");
    }
}

#[test]
fn importance_without_an_assignment_or_numbers_has_no_marks() {
    let mut record = samples::lora_drop(2, 1);
    let scores = record.importance.as_mut().unwrap();
    scores.modules[0].importance = f64::NAN;
    scores.modules[1].importance = 0.0;
    assert_eq!(
        importance(scores, None, &record.module_names, PLAIN),
        "\
layer  query
    0                               –
    1                           0.000
"
    );
    assert_eq!(importance(&Default::default(), None, &record.module_names, PLAIN), "");
}

#[test]
fn colours_change_nothing_but_the_colour() {
    let record = samples::lora_drop(6, 2);
    let draw = |colour| {
        let style = Style { colour, ..PLAIN };
        importance(
            record.importance.as_ref().unwrap(),
            record.assignment.as_ref(),
            &record.module_names,
            style,
        ) + &data_facts(&record.data, style)
            + &result(&record.summary, style)
    };
    let coloured = draw(true);
    let coloured = printable(&coloured, true).into_owned();
    assert!(coloured.contains("\x1b[32m●\x1b[0m"));
    let stripped = ["1", "2", "32", "33", "0"]
        .iter()
        .fold(coloured, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
    assert_eq!(stripped, draw(false));
}

#[test]
fn the_assignment_in_a_line_per_type() {
    let record = samples::lora_drop(6, 2);
    let mut owners = record.assignment.unwrap();
    assert_eq!(
        assignment(&owners, &record.module_names),
        "query  keeps 4 of 6 layers: 2–5; layers 0, 1 share one LoRA\n\
         value  keeps 4 of 6 layers: 2–5; layers 0, 1 share one LoRA\n"
    );
    owners.owners.values_mut().for_each(|o| *o = Owner::None);
    *owners.owners.values_mut().next().unwrap() = Owner::Shared;
    assert_eq!(
        assignment(&owners, &record.module_names),
        "query  keeps none of 6 layers; layer 0 is the only one that uses the shared LoRA; layers 1–5 have none\n\
         value  keeps none of 6 layers; layers 0–5 have none\n"
    );
    assert_eq!(assignment(&Assignment::default(), &record.module_names), "");
}

#[test]
fn scorings_and_evaluations() {
    assert_eq!(
        rescored(1084, 0.97, true),
        "scored at step 1,084, Kendall's tau to the scoring before 0.970: the ranking is stable\n"
    );
    assert_eq!(rescored(24, 0.31, false), "scored at step 24, Kendall's tau to the scoring before 0.310\n");
    let mut e = samples::evaluations(1, 10).remove(0);
    e.metrics = vec![("accuracy".into(), 0.7843), ("f1".into(), f64::NAN)];
    let line = "epoch  1  accuracy 0.7843  f1 –  dev loss 0.5940  best so far\n";
    assert_eq!(evaluation(&e, PLAIN), line);
    e.only_class = Some(OnlyClass { name: "equivalent".into(), share: 0.684, words: false });
    let note = "          every row is predicted as \"equivalent\", which 68.4 % of them are\n";
    assert_eq!(evaluation(&e, PLAIN), format!("{line}{note}"));
    let mut found = samples::summary("lora").baseline.unwrap();
    assert_eq!(baseline(&found), "the most frequent class alone (\"equivalent\")  accuracy 0.6838\n");
    (found.kind, found.name, found.class) = (BaselineKind::Untrained, "perplexity".into(), None);
    assert_eq!(baseline(&found), "the model before training  perplexity 0.6838\n");
    (found.kind, found.name) = (BaselineKind::Mean, "loss".into());
    assert_eq!(baseline(&found), "the mean of the training labels alone  loss 0.6838\n");
}

#[test]
fn the_result() {
    let mut summary = samples::summary("lora-drop");
    assert_eq!(
        result(&summary, PLAIN),
        "\
LoRA-drop
  accuracy     0.7843  dev, epoch 4 of 5
  f1           0.8521
  trained      148,994 parameters
  unique LoRA  86,016, 58.3 % of plain LoRA's 147,456
  time         7 m 49 s (sample 41.3 s, training 6 m 39 s, evaluation 24.9 s)
  speed        2,431 tokens/s
  peak memory  293.1 MiB
"
    );
    summary.status = Status::Interrupted;
    assert!(result(&summary, PLAIN).starts_with("LoRA-drop (interrupted)\n"));
    assert!(!result(&samples::full().summary, PLAIN).contains("unique LoRA"));
}

#[test]
fn a_run_in_detail() {
    let mut summary = samples::summary("lora-drop");
    summary.kept = [("query".to_string(), vec![2, 3, 4]), ("value".to_string(), vec![])].into();
    summary.files = [("adapter_model.safetensors".to_string(), 2048)].into();
    let text = details(&summary);
    assert!(text.contains("  kept         query: 2–4\n  kept         value: no layer\n"), "{text}");
    assert!(text.ends_with("  file         adapter_model.safetensors, 2.0 KiB\n"), "{text}");
}

#[test]
fn values_stand_below_each_other() {
    assert_eq!(rows(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
}

#[test]
fn files_are_listed_by_folder() {
    let files = ["out/a", "out/b", "other/c"].map(std::path::PathBuf::from);
    assert_eq!(written(&files, PLAIN), "Wrote out: a, b\nWrote other: c\n");
    assert_eq!(written(&[], PLAIN), "");
}

#[test]
fn lines_are_broken_at_words_below_their_value() {
    let text = "  time         7 m 49 s (sample 41.3 s, training 6 m 39 s, evaluation 24.9 s)\n";
    assert_eq!(
        wrap(text, 60),
        "  time         7 m 49 s (sample 41.3 s, training 6 m 39 s,\n\
         \x20              evaluation 24.9 s)\n"
    );
    assert_eq!(wrap(text, 80), text);
    // Neither a number and its unit nor a path is parted; a path may begin further left to stay
    // whole.
    assert_eq!(wrap("warning: it is 99.9 % full", 19), "warning: it is\n  99.9 % full");
    assert_eq!(wrap("error: a/path/of/many/parts/x: no", 24), "error:\n a/path/of/many/parts/x:\n  no");
    assert_eq!(wrap("a/path/of/many/parts and", 10), "a/path/of/many/parts\n  and");
    // Colours take no room, and wide letters two columns.
    assert_eq!(wrap("\x1b[33mone two\x1b[0m", 7), "\x1b[33mone two\x1b[0m");
    assert_eq!(wrap("漢字 漢字", 8), "漢字\n  漢字");
    for width in [0, 1, 5] {
        assert_eq!(wrap("  one  two three\n\n", width).split_whitespace().count(), 3);
    }
    let style = Style { width: 10, ..PLAIN };
    assert_eq!(style.fit("one two three"), "one two three");
    assert_eq!(Style { terminal: true, ..style }.fit("one two three"), "one two\n  three");
}

#[test]
fn a_long_path_makes_blocks_of_the_table() {
    let mut data = samples::data();
    data.splits.truncate(1);
    data.splits[0].file = "/home/somebody/experiments/paraphrases/mrpc/train.jsonl".into();
    let text = data_facts(&data, PLAIN);
    let block = "       train
         file       /home/somebody/experiments/paraphrases/mrpc/train.jsonl
         rows       3,668
";
    assert!(text.contains(block), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn of_many_classes_the_first_are_listed() {
    let mut data = samples::data();
    data.classes = (0..20_000).map(|class| format!("class {class}")).collect();
    data.splits.iter_mut().for_each(|s| s.per_class = vec![1; 20_000]);
    let text = data_facts(&data, PLAIN);
    assert!(text.contains("class 19 1 (0.0 %), and 19,980 more\n") && !text.contains("class 20 "), "{text}");
}

#[test]
fn runs_side_by_side() {
    let drop = samples::summary("lora-drop");
    let mut lora = samples::summary("lora");
    lora.metrics.insert("accuracy".into(), 0.79);
    lora.lora_parameters = lora.lora_parameters_full;
    lora.retained_ratio = 1.0;
    let mut full = samples::full().summary;
    full.metrics.remove("f1");
    let runs = [("drop".to_string(), drop), ("lora".to_string(), lora), ("full".to_string(), full)];
    assert_eq!(
        comparison(&runs, Style { width: 110, ..PLAIN }),
        "\
run   method            accuracy        f1     LoRA  of plain      time     trained  tokens/s     memory
drop  LoRA-drop           0.7843    0.8521   86,016    58.3 %  7 m 49 s     148,994     2,431  293.1 MiB
lora  LoRA                0.7900 *  0.8521  147,456   100.0 %  7 m 49 s     148,994     2,431  293.1 MiB
full  Full fine-tuning    0.7843         –        –         –  7 m 49 s  22,566,146     2,431  293.1 MiB
"
    );
    // Of perplexities the lowest is the best.
    let texts = [("a", 9.5), ("b", 8.25)].map(|(name, value)| {
        let metrics = [("perplexity".to_string(), value)].into();
        let summary = samples::summary("lora");
        (name.to_string(), Summary { metrics, metric: "perplexity".into(), ..summary })
    });
    let marked = comparison(&texts, PLAIN);
    assert!(marked.contains("9.5000  ") && marked.contains("8.2500 *"), "{marked}");
    let narrow = comparison(&runs, PLAIN);
    assert!(
        narrow.starts_with("run   method ") && narrow.lines().next().unwrap().ends_with("time"),
        "{narrow}"
    );
    // Where not even that fits, nothing is left out.
    let blocks = comparison(&runs[..1], Style { width: 50, ..PLAIN });
    assert_eq!(
        blocks,
        "\
drop
  method    LoRA-drop
  accuracy  0.7843
  f1        0.8521
  LoRA      86,016
  of plain  58.3 %
  time      7 m 49 s
  trained   148,994
  tokens/s  2,431
  memory    293.1 MiB
"
    );
}

#[test]
fn a_plan() {
    let mut p = Plan {
        model: samples::model(6),
        data: samples::data(),
        method: "lora-drop".into(),
        trainable_parameters: 148_994,
        lora_parameters: (24_576, 147_456),
        lora_parameters_full: 147_456,
        sample_rows: 367,
        sample_steps: 120,
        train_rows: 3668,
        train_steps: 575,
        train_tokens: 970_060,
        memory_bytes: 300 << 20,
        memory: samples::memory(),
        seconds: 444.0,
    };
    assert_eq!(
        plan(&p, PLAIN),
        "\
Plan: LoRA-drop (nothing was trained)
  sample       367 rows, at most 120 steps
  training     3,668 rows, 575 steps, 970,060 tokens
  unique LoRA  24,576 to 147,456, 16.7 % to 100.0 % of plain LoRA's 147,456
  trained      at most 148,994 parameters
  memory       about 300.0 MiB, micro-batches of 1,024 tokens
               program        20.0 MiB
               data            2.0 MiB
               weights        80.0 MiB
               parameters      2.0 MiB
               activations   190.0 MiB
               scratch         6.0 MiB
  time         about 7 m 24 s
"
    );
    p.lora_parameters = (147_456, 147_456);
    let text = plan(&p, PLAIN);
    assert!(text.contains("  unique LoRA  147,456, 100.0 % of plain LoRA's 147,456\n"));
}
