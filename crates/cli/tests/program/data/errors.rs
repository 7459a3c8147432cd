//! Odd data is refused with its file and line, what was seen, and the way out.

use lora_drop::data::{DataOptions, Dataset};
use lora_drop::settings::{BadRows, OverLength};

use super::fixture::*;

/// Loads a folder with this train file and a sound dev file, and gives the error's words.
fn refused(name: &str, content: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    folder.write(name, content);
    folder.write("dev.csv", "text,label\na,0\nb,1\n");
    folder.load().expect_err(name).to_string()
}

#[track_caller]
fn check(name: &str, content: impl AsRef<[u8]>, parts: &[&str]) {
    let message = refused(name, content);
    for part in parts.iter().chain([&name]) {
        assert!(message.contains(part), "{message}\nhas no {part:?}");
    }
}

#[test]
fn bytes_that_are_not_utf8() {
    check(
        "train.jsonl",
        b"{\"text\":\"a\",\"label\":0}\n{\"text\":\"\xff\"}\n",
        &["line 2: not UTF-8: byte 10", "0xff"],
    );
    check("train.csv", b"text,label\na,0\nb\xe4,1\n", &["line 3: not UTF-8: byte 2", "0xe4"]);
    check("train.tsv", b"te\xe4xt\tlabel\n", &["line 1: not UTF-8: byte 3"]);
    check("train.json", b"[{\"text\":\"a\"},\n {\"text\":\"\xff\"}]", &["line 2: not UTF-8: byte 11"]);
    // UTF-16 as Windows programs save it.
    check("train.csv", b"\xff\xfet\0e\0", &["line 1: not UTF-8: byte 1"]);
}

#[test]
fn bad_json() {
    let good = "{\"text\":\"a\",\"label\":0}\n";
    check("train.jsonl", format!("{good}{{\"text\":\"a\" \"label\":0}}"), &["line 2: bad JSON at column 13"]);
    check(
        "train.jsonl",
        format!("{good}[1]"),
        &["line 2: bad JSON", "expected an object with the row's columns"],
    );
    check("train.jsonl", format!("{good}{{\"text\":"), &["line 2: bad JSON", "EOF while parsing"]);
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":0,\"label\":1}",
        &["line 1", "the column \"label\" occurs twice"],
    );
    check("train.jsonl", "{\"text\":\"a\",\"label\":NaN}", &["line 1", "NaN and Infinity are not JSON"]);
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":-Infinity}",
        &["line 1", "NaN and Infinity are not JSON"],
    );
    check("train.json", "[{\"text\":\"a\",\"label\":0},\n3]", &["line 2: bad JSON", "expected an object"]);
    check(
        "train.json",
        "[{\"text\":\"a\",\"label\":0}\n{\"text\"",
        &["line 2: bad JSON at column 1", "expected `,` or `]`"],
    );
    check("train.json", "[{\"text\":\"a\",\"label\":0},\n", &["line 2", "EOF", "(was it cut off?)"]);
    check("train.json", "[{\"text\":\"a\",\"label\":0}", &["line 1", "EOF", "(was it cut off?)"]);
    check("train.json", "[{\"text\":\"a\",\"label\":0}]\n{}", &["line 2", "trailing characters"]);
    check(
        "train.json",
        "{\"text\":\"a\"}\n{\"text\":\"b\"}",
        &["an array of objects", "one object a line is .jsonl"],
    );
    check("train.json", "7", &["an array of objects"]);
}

#[test]
fn bad_tables() {
    check("train.csv", "text,label\na,0\na,b,1\n", &["line 3: 3 fields, but the header names 2"]);
    check("train.csv", "text,label\na,0\nb\n", &["line 3: 1 fields, but the header names 2"]);
    check("train.tsv", "text\tlabel\na\tb\t0\n", &["line 2: 3 fields, but the header names 2"]);
    check("train.csv", "text,label,text\na,0,b\n", &["header on line 1 names the column \"text\" twice"]);
    check("train.csv", "text,label\na,0\n\"b,1\nc,0\n", &["line 3: a quote is opened here and never closed"]);
    check(
        "train.csv",
        "text,label\na,0\n\"the film\" is good,1\n",
        &["line 3: a quote stands inside a field"],
    );
    check("train.csv", "text,label\n5\" disk,0\n6\" disk,1\n", &["line 2: a quote stands inside a field"]);
}

#[test]
fn missing_columns() {
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":0}\n{\"txt\":\"a\",\"label\":0}",
        &["line 2: no column \"text\"; columns: txt, label"],
    );
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":0}\n{\"text\":\"a\"}",
        &["line 2: no column \"label\"; columns: text"],
    );
    check(
        "train.csv",
        "words,label\na,0\n",
        &["no column has a usual name for text", "columns: words, label", "`text_column`"],
    );
    check(
        "train.csv",
        "text,content,label\na,b,0\n",
        &["several columns could be the text", "`text_column`"],
    );
    check("train.csv", "text,y\na,0\n", &["no column has a usual name for the label", "`label_column`"]);
    let folder = Folder::new();
    folder.write("train.csv", "text,label\na,0\nb,1\n");
    folder.write("dev.csv", "sentence,label\na,0\n");
    let message = folder.load().unwrap_err().to_string();
    assert!(message.contains("dev.csv, line 2: no column \"text\"; columns: sentence, label"), "{message}");
}

#[test]
fn text_that_is_none() {
    check("train.csv", "text,label\na,0\n,1\n", &["line 3: \"text\" has no text: zero length"]);
    check(
        "train.jsonl",
        "{\"text\":\" \\t\",\"label\":0}",
        &["line 1: \"text\" has no text: white space only"],
    );
    check("train.jsonl", "{\"text\":null,\"label\":0}", &["line 1: \"text\" has no text: null"]);
    check("train.jsonl", "{\"text\":5,\"label\":0}", &["line 1: \"text\" is a number, expected text"]);
    check(
        "train.jsonl",
        "{\"sentence1\":\"a\",\"sentence2\":\"\",\"label\":0}",
        &["\"sentence2\" has no text"],
    );
    let rows = [
        ("text", Column::Text(vec![Some("a"), None, Some("b")])),
        ("label", Column::Int(vec![Some(0), Some(1), Some(1)])),
    ];
    check("train.parquet", parquet(&rows), &["train.parquet, row 2: \"text\" has no text: null"]);
}

#[test]
fn labels_that_are_odd() {
    check("train.csv", "text,label\na,0\nb,\n", &["line 3: \"label\" has no label"]);
    check("train.jsonl", "{\"text\":\"a\",\"label\":null}", &["line 1: \"label\" has no label"]);
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":{\"a\":1}}",
        &["line 1: \"label\" is an object, expected a label"],
    );
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":[[1]]}",
        &["line 1: \"label\" is a list of lists, expected a label"],
    );
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":[1]}\n{\"text\":\"a\",\"label\":[]}",
        &["1 is the only class"],
    );
    check(
        "train.csv",
        "text,label\na,0\nb,1\nc,l\n",
        &["line 4: label \"l\" is text, but line 2 has a number (0)"],
    );
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":true}\n{\"text\":\"a\",\"label\":1}",
        &["line 2: label 1 is a number, but line 1 has a boolean"],
    );
    check("train.csv", "text,label\na,0.5\nb,nan\n", &["line 3: label nan is not a finite number"]);
    check(
        "train.jsonl",
        "{\"text\":\"a\",\"label\":0.5}\n{\"text\":\"a\",\"label\":1e300}",
        &["line 2: label 1e300 is not a finite number"],
    );
    let rows = [
        ("text", Column::Text(vec![Some("a"); 3])),
        ("label", Column::Double(vec![Some(0.5), Some(1.0), Some(f64::NAN)])),
    ];
    check("train.parquet", parquet(&rows), &["row 3: label NaN is not a finite number"]);
    check("train.csv", "text,label\na,0\nb,0\n", &["every row has the label 0", "two classes"]);
    check("train.csv", "text,label\na,0.5\nb,0.5\n", &["every row has the label 0.5"]);
}

#[test]
fn rows_without_text_or_label_can_be_left_out() {
    let folder = Folder::new();
    folder.write("train.csv", "text, label \na,0\n,1\nb,\nc,1\nd\n");
    folder.write("dev.csv", "text,label\na,0\n");
    let options = DataOptions { bad_rows: BadRows::Skip, ..options() };
    let data = Dataset::load(folder.path(), &folder.tokens(), &options).unwrap();
    assert_eq!(data.train.examples.iter().map(|example| example.line).collect::<Vec<_>>(), [2, 5]);
    let warning = &data.warnings[0];
    for part in [
        "train: 3 rows are left out",
        "line 3: \"text\" has no text",
        "line 4: \"label\" has no label",
        "line 6: 1 fields",
    ] {
        assert!(warning.contains(part), "{warning}");
    }
    check("train.csv", "text,label\na,0\n,1\n", &["line 3: \"text\" has no text", "`bad_rows = skip`"]);
}

#[test]
fn dev_labels_that_train_has_not() {
    for (train, dev, expected) in [
        ("0\nb,1\n", "2", "dev.csv, line 2: label 2 is not one of the 2 labels in training: 0, 1"),
        ("x\nb,y\n", "z", "dev.csv, line 2: label \"z\" is not one of the 2 labels in training: x, y"),
        ("0.5\nb,1.5\n", "high", "dev.csv, line 2: label \"high\" is not a number; this is a regression"),
        ("0.5\nb,1.5\n", "inf", "dev.csv, line 2: label inf is not a finite number"),
        ("0\nb,1\n", "", "dev.csv, line 2: \"label\" has no label"),
    ] {
        let folder = Folder::new();
        folder.write("train.csv", format!("text,label\na,{train}"));
        folder.write("dev.csv", format!("text,label\na,{dev}\n"));
        let message = folder.load().unwrap_err().to_string();
        assert!(message.ends_with(expected) || message.contains(expected), "{message}");
    }
}

#[test]
fn nothing_to_read() {
    check("train.jsonl", "", &["no rows"]);
    check("train.csv", "text,label\n", &["no rows"]);
    check("train.csv", "\n\n", &["no rows"]);
    check("train.json", "[]", &["no rows"]);
    check("train.json", "  ", &["no rows"]);
    check("train.jsonl.gz", gzip(""), &["no rows"]);
    check(
        "train.parquet",
        parquet(&[("text", Column::Text(vec![])), ("label", Column::Int(vec![]))]),
        &["no rows"],
    );
    let folder = Folder::new();
    let message = folder.load().unwrap_err().to_string();
    assert!(message.contains("no train split; expected a file such as train.jsonl"), "{message}");
    assert!(message.contains("found vocab.txt"), "{message}");
    folder.write("test.csv", "text,label\na,0\n");
    let message = folder.load().unwrap_err().to_string();
    assert!(message.contains("no train split") && message.contains("test.csv"), "{message}");
}

#[test]
fn files_that_are_not_what_they_say() {
    check("train.parquet", "text,label\na,0\n", &["not a valid Parquet file"]);
    check("train.csv.gz", "text,label\na,0\n", &["named .gz but not gzipped"]);
    check("train.csv", gzip("text,label\na,0\n"), &["gzipped, but its name does not end in .gz"]);
    let whole = gzip("{\"text\":\"a\",\"label\":0}\n".repeat(2000));
    check("train.jsonl.gz", &whole[..whole.len() / 2], &["cannot read"]);
    let folder = Folder::new();
    folder.write("train.txt", "a\n");
    let message = folder.load_file("train.txt").unwrap_err().to_string();
    assert!(message.contains("train.txt: not a data file; expected .jsonl"), "{message}");
    let message = folder.load_file("none.csv").unwrap_err().to_string();
    assert!(message.contains("none.csv: cannot read"), "{message}");
}

#[test]
fn two_files_for_a_split() {
    let folder = Folder::new();
    folder.write("train.csv", "text,label\na,0\n");
    folder.write("train.jsonl", "{}");
    let message = folder.load().unwrap_err().to_string();
    assert!(message.contains("two files for the train split"), "{message}");
    assert!(message.contains("train.csv") && message.contains("train.jsonl"), "{message}");
}

#[test]
fn too_few_rows_for_dev() {
    let folder = Folder::new();
    folder.write("train.csv", "text,label\na,0\nb,1\n");
    let message = folder.load().unwrap_err().to_string();
    assert!(message.contains("2 rows are too few to hold any out as dev; add a dev file"), "{message}");
}

#[test]
fn lengths_that_do_not_fit() {
    let folder = Folder::new();
    folder.write("train.csv", "text,label\na,0\nb b b b b,1\nc c c c c,0\n");
    folder.write("dev.csv", "text,label\na,0\n");
    let load = |max_length, over_length| {
        let options = DataOptions { max_length, over_length, ..options() };
        Dataset::load(folder.path(), &folder.tokens(), &options).unwrap_err().to_string()
    };
    let message = load(6, OverLength::Error);
    assert!(
        message.contains("train.csv, line 3: 7 tokens, but the limit is 6; raise `max_length`"),
        "{message}"
    );
    let message = load(2, OverLength::Truncate);
    assert!(
        message.contains(
            "`max_length = 2` leaves no room for text: the tokenizer adds 2 special tokens; give at least 3"
        ),
        "{message}"
    );
    // Dropping leaves one class only.
    let message = load(6, OverLength::Drop);
    assert!(message.contains("every row has the label 0"), "{message}");
    folder.write("dev.csv", "text,label\nb b b b b,1\n");
    folder.write("train.csv", "text,label\na,0\nb,1\n");
    let message = load(6, OverLength::Drop);
    assert!(message.contains("dev.csv: all 1 rows have more than 6 tokens and were dropped"), "{message}");
}

#[test]
fn a_tokenizer_of_another_model() {
    let folder = Folder::new();
    folder.write("train.csv", "text,label\na,0\ngood film,1\n");
    folder.write("dev.csv", "text,label\na,0\n");
    let options = DataOptions { vocabulary: 12, ..options() };
    let message = Dataset::load(folder.path(), &folder.tokens(), &options).unwrap_err().to_string();
    assert!(
        message
            .contains("train.csv, line 3: token \"film\" has number 13, but the model's vocabulary has 12"),
        "{message}"
    );
}
