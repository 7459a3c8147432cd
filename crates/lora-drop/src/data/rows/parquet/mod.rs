//! Reads Parquet through the row interface, without arrow: text, numbers and booleans, and lists
//! and structures of them.

mod lengths;
mod pages;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::{ConvertedType, Repetition, Type as Physical};
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::RowIter;
use ::parquet::record::{Field, Row as Record};
use ::parquet::schema::types::Type;
use lora_drop_transformer::json;
use serde_json::{Map, Value};

use super::{ClassNames, Error, Problem, Row};
use crate::panics::caught;

/// Memory in bytes that the pages of a row group may take, or ten times the file's size if that is
/// more.
const MOST_PAGES: u64 = 64 << 20;

/// Returns the rows of a Parquet file, numbered from 1, and its class names by column.
pub(super) fn rows(
    file: File,
    path: &Path,
) -> Result<(impl Iterator<Item = Result<Row, Error>> + Send + use<>, ClassNames), Error> {
    let damaged = |problem: String| Error::file(path, format!("not a valid Parquet file: {problem}"));
    let unsound = |e: ::parquet::errors::ParquetError| damaged(e.to_string());
    let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let claims = file.try_clone().map_err(|e| Error::io(path, e))?;
    pages::check_footer(&claims, bytes).map_err(damaged)?;
    let reader = SerializedFileReader::new(file).map_err(unsound)?;
    let schema = reader.metadata().file_metadata().schema();
    let plain: Vec<_> = schema.get_fields().iter().filter(|column| is_read(column)).cloned().collect();
    if plain.is_empty() {
        return Err(Error::file(path, "no column of text, numbers or booleans, or of lists of them"));
    }
    // The reader panics if a column chunk lies outside the file.
    let inside = |chunk: &ColumnChunkMetaData| {
        let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        let end = start.checked_add(chunk.compressed_size());
        start >= 0 && chunk.compressed_size() >= 0 && end.is_some_and(|end| end as u64 <= bytes)
    };
    for group in reader.metadata().row_groups() {
        if !group.columns().iter().all(inside) {
            return Err(damaged("a column lies outside of it".into()));
        }
        // Limit for all columns of the group together.
        let mut left = MOST_PAGES.max(bytes.saturating_mul(10));
        for chunk in group.columns() {
            let column = chunk.column_path().parts().first();
            if plain.iter().any(|plain| column.is_some_and(|column| column == plain.name())) {
                let (start, length) = chunk.byte_range();
                left -= pages::claimed(&claims, start, length, left).map_err(damaged)?;
            }
        }
    }
    let notes = reader.metadata().file_metadata().key_value_metadata().into_iter().flatten();
    let features = notes.filter(|note| note.key == FEATURES).filter_map(|note| note.value.as_deref());
    let class_names = features.flat_map(class_names).collect();
    // The row interface fails at other types, so only supported columns are projected.
    let wanted = Type::group_type_builder(schema.name()).with_fields(plain).build().map_err(unsound)?;
    let records =
        RowIter::from_file_into(Box::new(lengths::Checked(reader))).project(Some(wanted)).map_err(unsound)?;
    let file = path.to_path_buf();
    // `None` after the first error, since a damaged file cannot be read any further.
    let (mut reader, mut line) = (Some(records), 0);
    let rows = std::iter::from_fn(move || {
        let mut records = reader.take()?;
        line += 1;
        // The reader panics on some damaged pages and is dropped then.
        let row = match caught(|| records.next()) {
            Ok(None) => return None,
            Ok(Some(Ok(record))) => fields(record),
            Ok(Some(Err(e))) => Err(Problem::Parquet(e.to_string())),
            Err(_) => Err(Problem::Parquet("its page is damaged".into())),
        };
        if row.is_ok() {
            reader = Some(records);
        }
        Some(row.map(|fields| Row { line, fields }).map_err(|problem| Error::row(&file, line, problem)))
    });
    Ok((rows, class_names))
}

/// Metadata key under which Hugging Face's datasets describes the columns.
const FEATURES: &str = "huggingface";

/// Returns the class names in a description of columns: of a column itself, or of its list's items.
/// A description of another form is ignored.
fn class_names(description: &str) -> ClassNames {
    let found: Value = json::from_str(description).unwrap_or_default();
    let names = |(column, feature): (&String, &Value)| {
        let of_item = [&feature["feature"], &feature[0]];
        let list = [feature].into_iter().chain(of_item).find_map(|f| f["names"].as_array())?;
        let names = list.iter().map(|name| name.as_str().map(String::from)).collect::<Option<Vec<_>>>()?;
        let different = names.iter().collect::<BTreeSet<_>>().len() == names.len();
        (different && names.len() >= 2).then(|| (column.clone(), names))
    };
    let features = found["info"]["features"].as_object();
    features.into_iter().flatten().filter_map(names).collect()
}

/// Whether a column holds plain values, or only lists and structures of them.
fn is_read(column: &Arc<Type>) -> bool {
    if column.is_primitive() {
        return is_plain(column);
    }
    let list = column.get_basic_info().converted_type() == ConvertedType::LIST;
    match (list, column.get_fields()) {
        // The layout of current writers: a repeated group around the element.
        (true, [repeated]) => {
            let group =
                !repeated.is_primitive() && repeated.get_basic_info().repetition() == Repetition::REPEATED;
            group && matches!(repeated.get_fields(), [element] if is_read(element))
        }
        (true, _) => false,
        (false, fields) => {
            let structure = column.get_basic_info().converted_type() == ConvertedType::NONE
                && column.get_basic_info().repetition() != Repetition::REPEATED;
            structure && fields.iter().all(is_read)
        }
    }
}

/// Whether a column holds one text, number or boolean a row.
fn is_plain(column: &Arc<Type>) -> bool {
    use ConvertedType as C;
    if !column.is_primitive() || column.get_basic_info().repetition() == Repetition::REPEATED {
        return false;
    }
    let converted = column.get_basic_info().converted_type();
    match column.get_physical_type() {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
        Physical::INT32 => matches!(
            converted,
            C::NONE | C::INT_8 | C::INT_16 | C::INT_32 | C::UINT_8 | C::UINT_16 | C::UINT_32
        ),
        Physical::INT64 => matches!(converted, C::NONE | C::INT_64 | C::UINT_64),
        Physical::BYTE_ARRAY => matches!(converted, C::NONE | C::UTF8 | C::ENUM | C::JSON),
        _ => false,
    }
}

fn fields(record: Record) -> Result<Map<String, Value>, Problem> {
    let columns = record.into_columns().into_iter();
    columns.map(|(name, field)| value(field, &name).map(|value| (name, value))).collect()
}

fn value(field: Field, name: &str) -> Result<Value, Problem> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => b.into(),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float(x) => number(f64::from(x)),
        Field::Double(x) => number(x),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err(Problem::Parquet(format!("{name:?} holds bytes that are not UTF-8"))),
        },
        Field::Group(group) => Value::Object(fields(group)?),
        Field::ListInternal(list) => {
            list.elements().iter().map(|element| value(element.clone(), name)).collect::<Result<_, _>>()?
        }
        _ => return Err(Problem::Parquet(format!("{name:?} has a type that is not supported"))),
    })
}

/// JSON has no NaN and no infinities: they become text, so that a label with one can be reported.
fn number(x: f64) -> Value {
    serde_json::Number::from_f64(x).map_or_else(|| x.to_string().into(), Value::Number)
}
