//! Checks the sizes that a file's footer and its pages claim. The parquet crate allocates what a
//! page claims before it reads the page, and it skips the elements of unknown lists of booleans one
//! by one without reading a byte, so a small file could exhaust memory or time.
//!
//! Footers and headers are structs of Thrift's compact protocol; this module reads the part of it
//! that they use. The crate reads a known field as the type that it expects, whatever type the file
//! declares, and would then take other bytes for lengths than the ones checked here. So known
//! fields must have their types (`shapes`).

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Take};

/// Memory that a value of a dictionary takes, in bytes.
const DICTIONARY_VALUE: u64 = 40;
/// Deepest nesting of structs and lists. A column's statistics are the deepest known ones, at
/// seven.
const DEPTH: usize = 16;
/// The last bytes of a file, after the footer's length.
const MAGIC: [u8; 4] = *b"PAR1";

/// Checks that no list in the footer claims more elements than there are bytes left; `length` is
/// the file's, in bytes. A file that is not Parquet at all passes, as the parquet crate has the
/// better message.
///
/// # Errors
/// The file cannot be read, or its footer is damaged.
pub(super) fn check_footer(file: &File, length: u64) -> Result<(), String> {
    let mut reader = BufReader::new(file);
    let Some(end) = length.checked_sub(8) else { return Ok(()) };
    let mut tail = [[0; 4]; 2];
    reader.seek(SeekFrom::Start(end)).map_err(|e| e.to_string())?;
    reader.read_exact(tail.as_flattened_mut()).map_err(|e| e.to_string())?;
    let size = u64::from(u32::from_le_bytes(tail[0]));
    let Some(start) = end.checked_sub(size).filter(|_| tail[1] == MAGIC) else { return Ok(()) };
    reader.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    let mut thrift = Thrift { reader: reader.take(size) };
    thrift.skip(kind::STRUCT, &shapes::FILE, DEPTH).ok_or_else(|| "its footer is damaged".to_string())
}

/// Returns the memory in bytes that the largest page of a column chunk and its dictionary claim, at
/// most `most`. The chunk is `length` bytes from `start` on.
///
/// # Errors
/// The file cannot be read, a header is damaged, or the pages claim more.
pub(super) fn claimed(file: &File, start: u64, length: u64, most: u64) -> Result<u64, String> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    let (mut left, mut largest, mut dictionary) = (length, 0, 0);
    while left > 0 {
        let mut thrift = Thrift { reader: reader.by_ref().take(left) };
        let header = thrift.header().ok_or("a page's header is damaged")?;
        left = thrift.reader.limit();
        if header.size > left {
            return Err(format!("a page has {} bytes, its column has {left}", header.size));
        }
        // A plain value takes at least four bytes, the size of a text's length.
        if header.dictionary_values > header.unpacked / 4 {
            let values = header.dictionary_values;
            return Err(format!("a dictionary of {} bytes with {values} values", header.unpacked));
        }
        match header.dictionary_values {
            0 => largest = largest.max(header.unpacked),
            values => dictionary = dictionary.max(header.unpacked + DICTIONARY_VALUE * values),
        }
        if largest + dictionary > most {
            let claim = largest + dictionary;
            return Err(format!("a column's pages claim {claim} bytes of memory, expected at most {most}"));
        }
        left -= header.size;
        // Stays within the column, which is inside the file.
        reader.seek_relative(header.size as i64).map_err(|e| e.to_string())?;
    }
    Ok(largest + dictionary)
}

/// A page's sizes in bytes, and its number of values if it is a dictionary.
#[derive(Default)]
struct Header {
    unpacked: u64,
    size: u64,
    dictionary_values: u64,
}

struct Thrift<R> {
    reader: Take<R>,
}

/// Types of fields, as numbered by the protocol.
mod kind {
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const BYTE: u8 = 3;
    pub const I16: u8 = 4;
    pub const I32: u8 = 5;
    pub const I64: u8 = 6;
    pub const DOUBLE: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const LIST: u8 = 9;
    pub const STRUCT: u8 = 12;
}

/// The type that a value must have.
enum Shape {
    /// Any type: the field is unknown here.
    Any,
    /// One of these types.
    Of(&'static [u8]),
    List(&'static Shape),
    /// A struct or a union with these fields; others have any type.
    Struct(&'static [Field]),
}

/// Number, name in parquet.thrift, and type of a field.
type Field = (u8, &'static str, Shape);

impl Shape {
    /// Whether a value of this type can have the shape.
    fn takes(&self, kind: u8) -> bool {
        match self {
            Shape::Any => true,
            Shape::Of(kinds) => kinds.contains(&kind),
            Shape::List(_) => kind == kind::LIST,
            Shape::Struct(_) => kind == kind::STRUCT,
        }
    }

    fn element(&self) -> &Shape {
        if let Shape::List(element) = self { element } else { &Shape::Any }
    }

    fn field(&self, id: u8) -> &Shape {
        let Shape::Struct(fields) = self else { return &Shape::Any };
        fields.iter().find(|(known, ..)| *known == id).map_or(&Shape::Any, |(.., shape)| shape)
    }
}

/// The structs and unions of parquet.thrift.
mod shapes {
    use super::Shape::{self, Any, List, Of, Struct};
    use super::kind;

    const FLAG: Shape = Of(&[kind::TRUE, kind::FALSE]);
    const BYTE: Shape = Of(&[kind::BYTE]);
    const I32: Shape = Of(&[kind::I32]);
    /// An integer of any width: all are encoded alike.
    const INT: Shape = Of(&[kind::I16, kind::I32, kind::I64]);
    const DOUBLE: Shape = Of(&[kind::DOUBLE]);
    const BYTES: Shape = Of(&[kind::BINARY]);
    const INTS: Shape = List(&INT);
    const EMPTY: Shape = Struct(&[]);

    pub static FILE: Shape = Struct(&[
        (1, "version", INT),
        (2, "schema", List(&SCHEMA_ELEMENT)),
        (3, "num_rows", INT),
        (4, "row_groups", List(&ROW_GROUP)),
        (5, "key_value_metadata", KEY_VALUES),
        (6, "created_by", BYTES),
        (7, "column_orders", List(&COLUMN_ORDER)),
        (8, "encryption_algorithm", Any),
        (9, "footer_signing_key_metadata", BYTES),
    ]);
    const SCHEMA_ELEMENT: Shape = Struct(&[
        (1, "type", INT),
        (2, "type_length", INT),
        (3, "repetition_type", INT),
        (4, "name", BYTES),
        (5, "num_children", INT),
        (6, "converted_type", INT),
        (7, "scale", INT),
        (8, "precision", INT),
        (9, "field_id", INT),
        (10, "logicalType", LOGICAL_TYPE),
    ]);
    const LOGICAL_TYPE: Shape = Struct(&[
        (1, "STRING", EMPTY),
        (2, "MAP", EMPTY),
        (3, "LIST", EMPTY),
        (4, "ENUM", EMPTY),
        (5, "DECIMAL", DECIMAL),
        (6, "DATE", EMPTY),
        (7, "TIME", TIME),
        (8, "TIMESTAMP", TIME),
        (9, "INTERVAL", Any),
        (10, "INTEGER", INTEGER),
        (11, "UNKNOWN", EMPTY),
        (12, "JSON", EMPTY),
        (13, "BSON", EMPTY),
        (14, "UUID", EMPTY),
        (15, "FLOAT16", EMPTY),
        (16, "VARIANT", VARIANT),
        (17, "GEOMETRY", GEOMETRY),
        (18, "GEOGRAPHY", GEOGRAPHY),
    ]);
    const DECIMAL: Shape = Struct(&[(1, "scale", INT), (2, "precision", INT)]);
    const TIME: Shape = Struct(&[(1, "isAdjustedToUTC", FLAG), (2, "unit", TIME_UNIT)]);
    const TIME_UNIT: Shape = Struct(&[(1, "MILLIS", EMPTY), (2, "MICROS", EMPTY), (3, "NANOS", EMPTY)]);
    const INTEGER: Shape = Struct(&[(1, "bitWidth", BYTE), (2, "isSigned", FLAG)]);
    const VARIANT: Shape = Struct(&[(1, "specification_version", BYTE)]);
    const GEOMETRY: Shape = Struct(&[(1, "crs", BYTES)]);
    const GEOGRAPHY: Shape = Struct(&[(1, "crs", BYTES), (2, "algorithm", INT)]);
    const KEY_VALUE: Shape = Struct(&[(1, "key", BYTES), (2, "value", BYTES)]);
    const KEY_VALUES: Shape = List(&KEY_VALUE);
    const COLUMN_ORDER: Shape = Struct(&[(1, "TYPE_ORDER", EMPTY), (2, "IEEE_754_TOTAL_ORDER", EMPTY)]);
    const ROW_GROUP: Shape = Struct(&[
        (1, "columns", List(&COLUMN_CHUNK)),
        (2, "total_byte_size", INT),
        (3, "num_rows", INT),
        (4, "sorting_columns", List(&SORTING_COLUMN)),
        (5, "file_offset", INT),
        (6, "total_compressed_size", INT),
        (7, "ordinal", INT),
    ]);
    const SORTING_COLUMN: Shape =
        Struct(&[(1, "column_idx", INT), (2, "descending", FLAG), (3, "nulls_first", FLAG)]);
    const COLUMN_CHUNK: Shape = Struct(&[
        (1, "file_path", BYTES),
        (2, "file_offset", INT),
        (3, "meta_data", COLUMN_METADATA),
        (4, "offset_index_offset", INT),
        (5, "offset_index_length", INT),
        (6, "column_index_offset", INT),
        (7, "column_index_length", INT),
        (8, "crypto_metadata", Any),
        (9, "encrypted_column_metadata", BYTES),
    ]);
    const COLUMN_METADATA: Shape = Struct(&[
        (1, "type", INT),
        (2, "encodings", INTS),
        (3, "path_in_schema", List(&BYTES)),
        (4, "codec", INT),
        (5, "num_values", INT),
        (6, "total_uncompressed_size", INT),
        (7, "total_compressed_size", INT),
        (8, "key_value_metadata", KEY_VALUES),
        (9, "data_page_offset", INT),
        (10, "index_page_offset", INT),
        (11, "dictionary_page_offset", INT),
        (12, "statistics", STATISTICS),
        (13, "encoding_stats", List(&PAGE_ENCODING_STATS)),
        (14, "bloom_filter_offset", INT),
        (15, "bloom_filter_length", INT),
        (16, "size_statistics", SIZE_STATISTICS),
        (17, "geospatial_statistics", GEOSPATIAL_STATISTICS),
    ]);
    const STATISTICS: Shape = Struct(&[
        (1, "max", BYTES),
        (2, "min", BYTES),
        (3, "null_count", INT),
        (4, "distinct_count", INT),
        (5, "max_value", BYTES),
        (6, "min_value", BYTES),
        (7, "is_max_value_exact", FLAG),
        (8, "is_min_value_exact", FLAG),
    ]);
    const PAGE_ENCODING_STATS: Shape =
        Struct(&[(1, "page_type", INT), (2, "encoding", INT), (3, "count", INT)]);
    const SIZE_STATISTICS: Shape = Struct(&[
        (1, "unencoded_byte_array_data_bytes", INT),
        (2, "repetition_level_histogram", INTS),
        (3, "definition_level_histogram", INTS),
    ]);
    const GEOSPATIAL_STATISTICS: Shape = Struct(&[(1, "bbox", BOUNDING_BOX), (2, "geospatial_types", INTS)]);
    const BOUNDING_BOX: Shape = Struct(&[
        (1, "xmin", DOUBLE),
        (2, "xmax", DOUBLE),
        (3, "ymin", DOUBLE),
        (4, "ymax", DOUBLE),
        (5, "zmin", DOUBLE),
        (6, "zmax", DOUBLE),
        (7, "mmin", DOUBLE),
        (8, "mmax", DOUBLE),
    ]);

    pub static PAGE: Shape = Struct(&[
        (1, "type", I32),
        (2, "uncompressed_page_size", I32),
        (3, "compressed_page_size", I32),
        (4, "crc", I32),
        (5, "data_page_header", DATA_PAGE),
        (6, "index_page_header", EMPTY),
        (7, "dictionary_page_header", DICTIONARY_PAGE),
        (8, "data_page_header_v2", DATA_PAGE_2),
    ]);
    const DATA_PAGE: Shape = Struct(&[
        (1, "num_values", INT),
        (2, "encoding", INT),
        (3, "definition_level_encoding", INT),
        (4, "repetition_level_encoding", INT),
        (5, "statistics", STATISTICS),
    ]);
    pub const DICTIONARY_PAGE: Shape =
        Struct(&[(1, "num_values", I32), (2, "encoding", INT), (3, "is_sorted", FLAG)]);
    const DATA_PAGE_2: Shape = Struct(&[
        (1, "num_values", INT),
        (2, "num_nulls", INT),
        (3, "num_rows", INT),
        (4, "encoding", INT),
        (5, "definition_levels_byte_length", INT),
        (6, "repetition_levels_byte_length", INT),
        (7, "is_compressed", FLAG),
        (8, "statistics", STATISTICS),
    ]);
}

impl<R: BufRead> Thrift<R> {
    /// Reads a page's header; None if it is damaged.
    fn header(&mut self) -> Option<Header> {
        const UNPACKED: u8 = 2;
        const SIZE: u8 = 3;
        const DICTIONARY: u8 = 7;
        const DICTIONARY_VALUES: u8 = 1;
        let mut header = Header::default();
        let mut id = 0;
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (UNPACKED, kind::I32) => header.unpacked = self.count()?,
                (SIZE, kind::I32) => header.size = self.count()?,
                (DICTIONARY, kind::STRUCT) => {
                    let mut id = 0;
                    while let Some(kind) = self.field(&mut id)? {
                        match (id, kind) {
                            (DICTIONARY_VALUES, kind::I32) => header.dictionary_values = self.count()?,
                            _ => self.skip(kind, shapes::DICTIONARY_PAGE.field(id), DEPTH)?,
                        }
                    }
                }
                _ => self.skip(kind, shapes::PAGE.field(id), DEPTH)?,
            }
        }
        Some(header)
    }

    /// Reads the next field's type and updates its number `id`; an inner `None` ends the struct.
    fn field(&mut self, id: &mut u8) -> Option<Option<u8>> {
        let byte = self.byte()?;
        let (distance, kind) = (byte >> 4, byte & 15);
        if kind == 0 {
            return Some(None);
        }
        // Field numbers rise by at most 15; the protocol's long form for other steps is not needed.
        *id = id.checked_add(distance).filter(|_| distance > 0)?;
        Some(Some(kind))
    }

    /// Skips a value of this type, which must have the shape; `None` if it does not, or if the
    /// protocol has no such type.
    fn skip(&mut self, kind: u8, shape: &Shape, depth: usize) -> Option<()> {
        if !shape.takes(kind) {
            return None;
        }
        match kind {
            kind::TRUE | kind::FALSE => {}
            kind::I16 | kind::I32 | kind::I64 => drop(self.varint()?),
            kind::BYTE => self.pass(1)?,
            kind::DOUBLE => self.pass(8)?,
            kind::BINARY => {
                let length = self.varint()?;
                self.pass(length)?;
            }
            kind::LIST if depth > 0 => {
                let byte = self.byte()?;
                let (short, element) = (byte >> 4, byte & 15);
                let count = if short == 15 { self.varint()? } else { u64::from(short) };
                // No known list holds booleans.
                if count > self.reader.limit() || (count > 0 && matches!(element, kind::TRUE | kind::FALSE)) {
                    return None;
                }
                for _ in 0..count {
                    self.skip(element, shape.element(), depth - 1)?;
                }
            }
            kind::STRUCT if depth > 0 => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, shape.field(id), depth - 1)?;
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Skips bytes.
    fn pass(&mut self, mut length: u64) -> Option<()> {
        while length > 0 {
            let there = self.reader.fill_buf().ok().filter(|bytes| !bytes.is_empty())?.len();
            let taken = length.min(there as u64);
            self.reader.consume(taken as usize);
            length -= taken;
        }
        Some(())
    }

    /// Reads an i32 that is not negative.
    fn count(&mut self) -> Option<u64> {
        let zigzag = self.varint()?;
        (zigzag & 1 == 0 && zigzag >> 1 <= i32::MAX as u64).then_some(zigzag >> 1)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte).ok()?;
        Some(byte[0])
    }
}
