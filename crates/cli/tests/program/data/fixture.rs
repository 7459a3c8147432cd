//! Small data sets and a small tokenizer, made by code in a temporary folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lora_drop::data::{ColumnNames, DataOptions, Dataset, Error, Tokens};
use lora_drop::settings::{BadRows, OverLength};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Token numbers by place: [CLS] is 2, [SEP] is 3, `a` is 5.
pub const VOCABULARY: &str =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\ne\n##s\ngood\nbad\nfilm\nsay\n\"\n,\nü\n";
pub const WORDS: usize = 18;

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.write("vocab.txt", VOCABULARY);
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub fn tokens(&self) -> Tokens {
        Tokens::open(self.path()).unwrap()
    }

    pub fn load(&self) -> Result<Dataset, Error> {
        Dataset::load(self.path(), &self.tokens(), &options())
    }

    pub fn load_file(&self, name: &str) -> Result<Dataset, Error> {
        Dataset::load(&self.path().join(name), &self.tokens(), &options())
    }
}

pub fn options() -> DataOptions {
    DataOptions {
        columns: ColumnNames::default(),
        max_length: 64,
        trained_on: Vec::new(),
        bad_rows: BadRows::Error,
        over_length: OverLength::Truncate,
        vocabulary: WORDS,
        token_types: None,
        task: None,
        label_names: None,
        positive_class: None,
        class_weights: None,
        reads_first: true,
        cache: None,
    }
}

pub fn gzip(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(content.as_ref()).unwrap();
    writer.finish().unwrap()
}

/// A column of a Parquet file; None is null.
pub enum Column {
    Text(Vec<Option<&'static str>>),
    Int(Vec<Option<i64>>),
    Double(Vec<Option<f64>>),
}

/// A Parquet file's bytes, its rows cut into groups of two.
pub fn parquet(columns: &[(&str, Column)]) -> Vec<u8> {
    let fields = columns.iter().map(|(name, column)| match column {
        Column::Text(_) => format!("OPTIONAL BYTE_ARRAY {name} (UTF8);"),
        Column::Int(_) => format!("OPTIONAL INT64 {name};"),
        Column::Double(_) => format!("OPTIONAL DOUBLE {name};"),
    });
    let schema = format!("message rows {{ {} }}", fields.collect::<String>());
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
    let rows = match &columns[0].1 {
        Column::Text(values) => values.len(),
        Column::Int(values) => values.len(),
        Column::Double(values) => values.len(),
    };
    fn levels<T>(values: &[Option<T>]) -> Vec<i16> {
        values.iter().map(|v| i16::from(v.is_some())).collect()
    }
    for start in (0..rows).step_by(2) {
        let group = start..(start + 2).min(rows);
        let mut row_group = writer.next_row_group().unwrap();
        for (_, column) in columns {
            let mut out = row_group.next_column().unwrap().unwrap();
            match column {
                Column::Text(values) => {
                    let values = &values[group.clone()];
                    let filled: Vec<ByteArray> =
                        values.iter().flatten().map(|t| ByteArray::from(*t)).collect();
                    out.typed::<ByteArrayType>().write_batch(&filled, Some(&levels(values)), None).unwrap();
                }
                Column::Int(values) => {
                    let values = &values[group.clone()];
                    let filled: Vec<i64> = values.iter().flatten().copied().collect();
                    out.typed::<Int64Type>().write_batch(&filled, Some(&levels(values)), None).unwrap();
                }
                Column::Double(values) => {
                    let values = &values[group.clone()];
                    let filled: Vec<f64> = values.iter().flatten().copied().collect();
                    out.typed::<DoubleType>().write_batch(&filled, Some(&levels(values)), None).unwrap();
                }
            }
            out.close().unwrap();
        }
        row_group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}
