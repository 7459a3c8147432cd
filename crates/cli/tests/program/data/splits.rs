//! Splits, labels, facts, and what becomes of over-long rows.

use lora_drop::data::{DataOptions, Dataset, Label, Labels, Split, SplitName};
use lora_drop::settings::OverLength;

use super::fixture::*;

fn csv(labels: &[&str]) -> String {
    let rows: String = labels.iter().map(|label| format!("a b,{label}\n")).collect();
    format!("text,label\n{rows}")
}

fn jsonl(labels: &[&str]) -> String {
    labels.iter().map(|label| format!("{{\"text\": \"a b\", \"label\": {label}}}\n")).collect()
}

fn train_labels(name: &str, content: String) -> (Labels, Vec<Label>) {
    let folder = Folder::new();
    folder.write(name, &content);
    folder.write(&name.replace("train", "dev"), content);
    let data = folder.load().unwrap();
    (data.labels.clone(), data.train.labels().unwrap())
}

fn class(indices: &[usize]) -> Vec<Label> {
    indices.iter().map(|&i| Label::Class(i)).collect()
}

#[test]
fn kinds_of_labels() {
    for (name, content, names, expected) in [
        ("train.jsonl", jsonl(&["1", "0", "1"]), &["0", "1"][..], class(&[1, 0, 1])),
        ("train.csv", csv(&["5", "1", "10"]), &["1", "5", "10"], class(&[1, 0, 2])),
        ("train.jsonl", jsonl(&["true", "false"]), &["false", "true"], class(&[1, 0])),
        ("train.jsonl", jsonl(&["\"pos\"", "\"neg\""]), &["neg", "pos"], class(&[1, 0])),
        ("train.jsonl", jsonl(&["\"3.8\"", "\"1.5\""]), &["1.5", "3.8"], class(&[1, 0])),
        // One writer's float among integers.
        ("train.jsonl", jsonl(&["1.0", "0", "1"]), &["0", "1"], class(&[1, 0, 1])),
        ("train.csv", csv(&[" pos ", "neg"]), &["neg", "pos"], class(&[1, 0])),
        // White space does not count, in any format.
        ("train.jsonl", jsonl(&["\" pos\"", "\"neg\"", "\"pos \""]), &["neg", "pos"], class(&[1, 0, 1])),
        // Whole numbers as pandas writes them beside a missing value.
        ("train.csv", csv(&["1.0", "0.0", "1.0"]), &["0", "1"], class(&[1, 0, 1])),
        ("train.jsonl", jsonl(&["2.0", "0.0", "1.0"]), &["0", "1", "2"], class(&[2, 0, 1])),
    ] {
        let (labels, found) = train_labels(name, content);
        assert_eq!(labels.names(), names);
        assert_eq!(found, expected);
    }
    for (name, content) in [
        ("train.jsonl", jsonl(&["3.8", "1", "2.5"])),
        ("train.jsonl", jsonl(&["0.0", "5.0"])),
        ("train.csv", csv(&["3.8", "1"])),
        ("train.csv", csv(&["0.0", "5.0"])),
    ] {
        let (labels, found) = train_labels(name, content);
        assert!(labels.is_regression() && labels.outputs() == 1);
        assert!(matches!(found[1], Label::Value(1.0 | 5.0)), "{found:?}");
    }
}

#[test]
fn facts_count_what_is_there() {
    let folder = Folder::new();
    folder.write("train.csv", "text,label\na,x\na b c,y\na b c d e,y\n");
    folder.write("dev.csv", csv(&["x"]));
    let options = DataOptions { max_length: 6, ..options() };
    let data = Dataset::load(folder.path(), &folder.tokens(), &options).unwrap();
    let facts = &data.facts.splits[0];
    assert_eq!((facts.rows, facts.tokens, facts.over_long), (3, 3 + 5 + 6, 1));
    assert_eq!((facts.shortest, facts.median_length, facts.longest), (3, 5, 7));
    assert_eq!(facts.per_class, [1, 2]);
    assert_eq!((data.facts.text_column.as_str(), data.facts.label_column.as_str()), ("text", "label"));
    assert_eq!((data.facts.max_length, data.facts.over_length.as_str()), (6, "truncate"));
    assert!(data.warnings.is_empty());
}

#[test]
fn over_long_rows_are_dropped_when_asked() {
    let folder = Folder::new();
    folder.write("train.csv", "text,label\na,x\na b c d e,y\nb,y\n");
    folder.write("dev.csv", csv(&["x"]));
    let options = DataOptions { max_length: 6, over_length: OverLength::Drop, ..options() };
    let data = Dataset::load(folder.path(), &folder.tokens(), &options).unwrap();
    let facts = &data.facts.splits[0];
    assert_eq!((facts.rows, facts.over_long, facts.longest), (2, 1, 7));
    assert_eq!(data.train.examples[1].line, 4);
}

#[test]
fn a_test_split_needs_no_labels() {
    for test in ["text\na\n", "text,label\na,-1\nb,-1\n", "text,label\na,\n"] {
        let folder = Folder::new();
        folder.write("train.csv", csv(&["0", "1"]));
        folder.write("dev.csv", csv(&["0", "1"]));
        folder.write("test.csv", test);
        let test = folder.load().unwrap().test.unwrap();
        assert_eq!(test.labels(), None);
        assert!(test.facts.per_class.is_empty() && test.facts.label_range.is_none());
    }
}

#[test]
fn without_dev_a_tenth_is_held_out() {
    let folder = Folder::new();
    let labels: Vec<&str> = (0..100).map(|i| if i % 4 == 0 { "x" } else { "y" }).chain(["z"]).collect();
    folder.write("train.csv", csv(&labels));
    let data = folder.load().unwrap();
    assert_eq!((data.train.facts.rows, data.dev.facts.rows), (91, 10));
    assert_eq!(data.dev.facts.per_class, [3, 7, 0]);
    assert!(data.warnings[0].contains("10 rows of train are held out as dev"), "{:?}", data.warnings);
    // Evaluation finds the same rows; a file alone is the split itself.
    let (dev, warnings) =
        Split::load(folder.path(), SplitName::Dev, &folder.tokens(), &options(), &data.labels).unwrap();
    assert_eq!(dev.examples, data.dev.examples);
    assert_eq!(warnings, data.warnings);
    let file = folder.path().join("train.csv");
    let (dev, _) = Split::load(&file, SplitName::Dev, &folder.tokens(), &options(), &data.labels).unwrap();
    assert_eq!(dev.facts.rows, 101);
    assert_eq!(folder.load_file("train.csv").unwrap().dev.examples, data.dev.examples);
}

#[test]
fn labels_of_training_serve_other_data() {
    let folder = Folder::new();
    let file = folder.write("other.csv", csv(&["pos", "0", "1"]));
    let labels = Labels::classes(vec!["neg".into(), "pos".into()]);
    let (split, _) = Split::load(&file, SplitName::Test, &folder.tokens(), &options(), &labels).unwrap();
    assert_eq!(split.labels().unwrap(), class(&[1, 0, 1]));
}

#[test]
fn names_match_in_any_case_and_numbers_by_index_are_told() {
    let folder = Folder::new();
    let labels = Labels::classes(vec!["ENTAILMENT".into(), "Neutral".into()]);
    let load = |content: String| {
        let file = folder.write("other.csv", content);
        let (split, warnings) =
            Split::load(&file, SplitName::Dev, &folder.tokens(), &options(), &labels).unwrap();
        (split.labels().unwrap(), warnings.join("\n"))
    };
    assert_eq!(load(csv(&["neutral", "Entailment"])), (class(&[1, 0]), String::new()));
    let (found, warning) = load(csv(&["1", "0"]));
    assert_eq!(found, class(&[1, 0]));
    assert!(warning.contains("in their order: 0 is ENTAILMENT, 1 is Neutral"), "{warning}");
    // Dev follows train.
    folder.write("train.csv", csv(&["pos", "neg"]));
    folder.write("dev.csv", csv(&["Pos"]));
    assert_eq!(folder.load().unwrap().dev.labels().unwrap(), class(&[1]));
}

#[test]
fn unknown_tokens_are_counted() {
    let folder = Folder::new();
    folder.write("train.csv", "text,label\nzebra yak,0\na,1\n");
    folder.write("dev.csv", "text,label\na b,0\n");
    let data = folder.load().unwrap();
    assert_eq!(data.facts.splits.iter().map(|split| split.unknown).collect::<Vec<_>>(), [2, 0]);
    let warning = data.warnings.join("\n");
    assert!(warning.contains("train: 29 % of the tokens are unknown to the tokenizer"), "{warning}");
}

#[test]
fn suspicious_labels_are_told() {
    let folder = Folder::new();
    folder.write("train.csv", csv(&["-1", "0", "1"]));
    folder.write("dev.csv", csv(&["0"]));
    assert!(folder.load().unwrap().warnings[0].starts_with("label -1 (1 rows) is a class like the others"));
    let numbers: Vec<String> = (0..30).map(|i| i.to_string()).collect();
    folder.write("train.csv", csv(&numbers.iter().map(String::as_str).collect::<Vec<_>>()));
    assert!(
        folder.load().unwrap().warnings[0].contains("30 classes in 30 rows: is \"label\" the label column?")
    );
    for (labels, parts) in [
        (&["positive", "Positive", "bad"][..], ["differ only in case", "\"Positive\", \"positive\""]),
        (&["0.0", "1.0"], ["are taken for classes", "`task = regression`"]),
        (&["0.0", "5.0"], ["are taken for numbers to predict", "`task = classification`"]),
    ] {
        folder.write("train.csv", csv(labels));
        folder.write("dev.csv", csv(&labels[..1]));
        let warnings = folder.load().unwrap().warnings.join("\n");
        assert!(parts.iter().all(|part| warnings.contains(part)), "{warnings}");
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = Folder::new();
    let labels: Vec<&str> = (0..200).map(|i| ["0", "1", "2"][i % 3]).collect();
    folder.write("train.csv", csv(&labels));
    let load = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| folder.load().unwrap().train.examples)
    };
    assert_eq!(load(1), load(4));
}
