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
    /// Types of the fields, from field number 1.
    Struct(&'static [Shape]),
}

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
        fields.get(usize::from(id) - 1).unwrap_or(&Shape::Any)
    }
}

/// The structs of the format (parquet.thrift). Fields after the last one have any shape.
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
        INT,
        List(&Struct(&[INT, INT, INT, BYTES, INT, INT, INT, INT, INT, LOGICAL])),
        INT,
        List(&Struct(&[COLUMNS, INT, INT, List(&Struct(&[INT, FLAG, FLAG])), INT, INT, INT])),
        KEY_VALUES,
        BYTES,
        List(&Struct(&[EMPTY, EMPTY])),
        Any,
        BYTES,
    ]);
    const KEY_VALUES: Shape = List(&Struct(&[BYTES, BYTES]));
    /// Parameters of the logical types, by type number.
    const LOGICAL: Shape = Struct(&[
        EMPTY, EMPTY, EMPTY, EMPTY, DECIMAL, EMPTY, TIME, TIME, Any, INTEGER, EMPTY, EMPTY, EMPTY, EMPTY,
        EMPTY, VARIANT, GEOMETRY, GEOGRAPHY,
    ]);
    const DECIMAL: Shape = Struct(&[INT, INT]);
    const TIME: Shape = Struct(&[FLAG, Struct(&[EMPTY, EMPTY, EMPTY])]);
    const INTEGER: Shape = Struct(&[BYTE, FLAG]);
    const VARIANT: Shape = Struct(&[BYTE]);
    const GEOMETRY: Shape = Struct(&[BYTES]);
    const GEOGRAPHY: Shape = Struct(&[BYTES, INT]);
    const COLUMNS: Shape = List(&Struct(&[BYTES, INT, CHUNK, INT, INT, INT, INT, Any, BYTES]));
    const CHUNK: Shape = Struct(&[
        INT, INTS, TEXTS, INT, INT, INT, INT, KEY_VALUES, INT, INT, INT, STATISTICS, ENCODINGS, INT, INT,
        SIZES, GEOGRAPHIC,
    ]);
    const TEXTS: Shape = List(&BYTES);
    const ENCODINGS: Shape = List(&Struct(&[INT, INT, INT]));
    const SIZES: Shape = Struct(&[INT, INTS, INTS]);
    const GEOGRAPHIC: Shape = Struct(&[BOX, INTS]);
    const BOX: Shape = Struct(&[DOUBLE, DOUBLE, DOUBLE, DOUBLE, DOUBLE, DOUBLE, DOUBLE, DOUBLE]);
    const STATISTICS: Shape = Struct(&[BYTES, BYTES, INT, INT, BYTES, BYTES, FLAG, FLAG]);

    pub static PAGE: Shape = Struct(&[I32, I32, I32, I32, DATA_PAGE, EMPTY, EMPTY, DATA_PAGE_2]);
    const DATA_PAGE: Shape = Struct(&[INT, INT, INT, INT, STATISTICS]);
    pub static DICTIONARY_PAGE: Shape = Struct(&[I32, INT, FLAG]);
    const DATA_PAGE_2: Shape = Struct(&[INT, INT, INT, INT, INT, INT, FLAG, STATISTICS]);
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
