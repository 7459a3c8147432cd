//! The same rows in every format, plain and gzipped, are the same examples.

use lora_drop::data::{Columns, LabelColumn, RowText, Rows};
use serde_json::json;

use super::fixture::*;

const TEXTS: [(&str, &str, i64); 3] =
    [("a \"b\", c", "good film", 1), ("say ü", "bad films", 0), ("d\te", "e", 1)];

/// File name and content of each format. A TSV file cannot hold a tab within a field, so it has a
/// space there.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let rows: Vec<_> =
        TEXTS.iter().map(|(a, b, l)| json!({"sentence1": a, "sentence2": b, "label": l})).collect();
    let lines: String = rows.iter().map(|row| format!("{row}\r\n\n")).collect();
    let quote = |t: &str| format!("\"{}\"", t.replace('"', "\"\""));
    let csv: String = TEXTS.iter().map(|(a, b, l)| format!("{},{},{l}\n", quote(a), quote(b))).collect();
    let tsv: String =
        TEXTS.iter().map(|(a, b, l)| format!("{}\t{b}\t{l}\r\n", a.replace('\t', " "))).collect();
    let parquet = parquet(&[
        ("sentence1", Column::Text(TEXTS.iter().map(|t| Some(t.0)).collect())),
        ("sentence2", Column::Text(TEXTS.iter().map(|t| Some(t.1)).collect())),
        ("label", Column::Int(TEXTS.iter().map(|t| Some(t.2)).collect())),
    ]);
    vec![
        ("train.jsonl", format!("\u{feff}{lines}").into_bytes()),
        ("train.json", serde_json::to_vec_pretty(&rows).unwrap()),
        ("train.JSON", format!("\u{feff}{}", json!({"version": 1, "data": rows})).into_bytes()),
        ("train.csv", format!("\u{feff}sentence1,sentence2,label\r\n{csv}").into_bytes()),
        ("train.tsv", format!("\u{feff}sentence1\tsentence2\tlabel\n{tsv}").into_bytes()),
        ("train.parquet", parquet),
    ]
}

#[test]
fn every_format_reads_the_same() {
    let mut expected = None;
    for (name, content) in files() {
        for packed in [false, true] {
            let folder = Folder::new();
            let (name, content) =
                if packed { (format!("{name}.gz"), gzip(&content)) } else { (name.into(), content.clone()) };
            folder.write(&name, content);
            folder.write("dev.csv", "sentence1,sentence2,label\na,b,1\n");
            let data = folder.load().unwrap_or_else(|e| panic!("{name}: {e}"));
            let rows: Vec<_> = data
                .train
                .examples
                .iter()
                .map(|e| (e.ids.clone(), e.types.clone(), e.label.clone()))
                .collect();
            assert_eq!(rows.len(), 3, "{name}");
            let expected = expected.get_or_insert_with(|| rows.clone());
            assert_eq!(&rows, expected, "{name}");
        }
    }
}

#[test]
fn lines_are_exact() {
    let folder = Folder::new();
    for (name, content, lines) in [
        ("a.jsonl", "\n{\"text\":\"a\"}\n\n{\"text\":\"b\"}", &[2, 4][..]),
        ("a.json", "[\n {\"text\":\n  \"a\"},\n {\"text\": \"b\"}, {\"text\": \"c\"}\n]\n", &[2, 4, 4]),
        ("b.json", "{\"n\": 3,\n\"data\": [{\"text\": \"a\"},\n{\"text\": \"b\"}]}", &[2, 3]),
        ("a.csv", "text\r\n\"a\nb\"\r\n\r\nc\n", &[2, 5]),
        ("a.tsv", "text\n\n\"a\nb\"\n", &[3, 4]),
    ] {
        let path = folder.write(name, content);
        let found: Vec<usize> = Rows::open(&path).unwrap().map(|row| row.unwrap().line).collect();
        assert_eq!(found, lines, "{name}");
    }
}

#[test]
fn quotes_are_rfc_in_csv_and_literal_in_tsv() {
    let folder = Folder::new();
    let texts = |name, content: &str| {
        let path = folder.write(name, content);
        Rows::open(&path).unwrap().map(|row| row.unwrap().fields["text"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(texts("q.csv", "text,n\n\"a, \"\"b\"\"\nc\",1\n"), [json!("a, \"b\"\nc")]);
    assert_eq!(texts("q.tsv", "text\tn\n\"a, \"\"b\t1\n"), [json!("\"a, \"\"b")]);
}

#[test]
fn shards_are_read_in_order() {
    let folder = Folder::new();
    folder.write("train-00001-of-00002.csv", "text,label\nb,1\n");
    folder.write("train-00000-of-00002.csv", "text,label\na,0\n");
    folder.write("validation.csv", "text,label\na,0\n");
    let data = folder.load().unwrap();
    let places: Vec<_> = data.train.examples.iter().map(|e| data.train.place(e)).collect();
    assert!(places[0].file.ends_with("train-00000-of-00002.csv") && places[0].line == 2);
    assert!(places[1].file.ends_with("train-00001-of-00002.csv") && places[1].line == 2);
}

#[test]
fn many_members_of_gzip_are_one_file() {
    let folder = Folder::new();
    let both = [gzip("{\"text\":\"a\",\"label\":0}\n"), gzip("{\"text\":\"b\",\"label\":1}\n")].concat();
    let path = folder.write("train.jsonl.gz", both);
    assert_eq!(Rows::open(&path).unwrap().count(), 2);
}

#[test]
fn prediction_reads_from_any_reader_and_keeps_the_fields() {
    let text =
        "{\"id\": 7, \"text\": \"good film\", \"label\": null}\nnonsense\n{\"text\": \"bad\", \"id\": 8}\n";
    let mut rows = Rows::json_lines(text.as_bytes(), "standard input".as_ref());
    let first = rows.next().unwrap().unwrap();
    let columns = Columns::choose(&first, &rows.file, &Default::default(), LabelColumn::Optional).unwrap();
    assert_eq!(columns.text(&first).unwrap(), Some(RowText::One("good film".into())));
    assert_eq!(serde_json::to_string(&first.fields).unwrap(), r#"{"id":7,"text":"good film","label":null}"#);
    let message = rows.next().unwrap().unwrap_err().to_string();
    assert!(message.starts_with("standard input, line 2: bad JSON at column 2"), "{message}");
    let second = rows.next().unwrap().unwrap();
    assert_eq!(columns.text(&second).unwrap(), Some(RowText::One("bad".into())));
    assert!(rows.next().is_none());
}

/// Page headers that claim gigabytes in a file of some hundred bytes, for which the Parquet library
/// would make room.
#[test]
fn parquet_pages_that_claim_too_much_are_refused() {
    let bytes = parquet(&[("text", Column::Text(vec![Some("a"), Some("b")]))]);
    // A dictionary page: its type, its size in bytes uncompressed and compressed, and in a
    // structure the number of values.
    assert!(matches!(bytes[4..13], [0x15, 0x04, 0x15, _, 0x15, _, 0x4c, 0x15, 0x04]), "{:x?}", &bytes[4..13]);
    let largest = [0xfe, 0xff, 0xff, 0xff, 0x0f];
    let folder = Folder::new();
    for (place, problem) in [
        (7, "a column's pages claim 2147483"),
        (9, "a page has 2147483647 bytes, its column has"),
        (12, "with 2147483647 values"),
        (6, "a page's header is damaged"),
    ] {
        let mut changed = bytes.clone();
        changed.splice(place..place + 1, largest);
        let path = folder.write("x.parquet", changed);
        let message = Rows::open(&path).err().expect(problem).to_string();
        assert!(message.contains("not a valid Parquet file: ") && message.contains(problem), "{message}");
    }
}

/// Found by fuzzing: a list of two billion booleans, which take no byte.
#[test]
fn lists_in_a_parquet_footer_are_not_longer_than_it() {
    let folder = Folder::new();
    let path =
        folder.write("x.parquet", include_bytes!("../../../../../fuzz/found/parquet/list_of_booleans"));
    let message = Rows::open(&path).err().expect("refused").to_string();
    assert!(message.ends_with("not a valid Parquet file: its footer is damaged"), "{message}");
}

#[test]
fn rows_of_many_small_values_are_refused() {
    let row = format!("{{\"text\":\"a\",\"label\":0,\"more\":[{}0]}}", "0,".repeat(70_000));
    let folder = Folder::new();
    for (name, content) in [("x.jsonl", row.clone()), ("x.json", format!("[\n{row}]"))] {
        let path = folder.write(name, content);
        let message = Rows::open(&path).unwrap().next().unwrap().unwrap_err().to_string();
        let line = if name == "x.json" { "line 2" } else { "line 1" };
        assert!(message.contains(line) && message.contains("70005 values in 140"), "{message}");
    }
}

/// As many columns as a hundred kilobytes can name.
#[test]
fn thousands_of_columns_are_read() {
    let header: Vec<String> = (0..30_000).map(|n| format!("c{n}")).collect();
    let values = vec!["1"; header.len()].join(",");
    let folder = Folder::new();
    let path = folder.write("x.csv", format!("{}\n{values}\n", header.join(",")));
    let rows: Vec<_> = Rows::open(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!((rows.len(), rows[0].fields.len()), (1, header.len()));
}

#[test]
fn broken_parquet_is_an_error() {
    let bytes = files().pop().unwrap().1;
    let folder = Folder::new();
    // Every single byte changed and every length cut: an error or other rows, never a panic.
    for i in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[i] ^= 0x55;
        for content in [&changed[..], &bytes[..i]] {
            let path = folder.write("x.parquet", content);
            if let Ok(rows) = Rows::open(&path) {
                let _ = rows.take_while(Result::is_ok).take(100).count();
            }
        }
    }
}
