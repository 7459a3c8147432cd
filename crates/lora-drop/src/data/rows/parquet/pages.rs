//! What a file's footer and its pages claim to hold. The parquet crate makes room for what a page
//! says of itself before it reads the page, and goes through lists of booleans that it does not
//! know without reading a byte, so claims are looked at first.
//!
//! Footers and headers are structures of Thrift's compact protocol; this reads what they have and
//! refuses the rest. The crate reads a field that it knows as what it expects, whatever the file
//! says that it is, and then takes other bytes for lengths than were looked at here. So known
//! fields must be of their types (`shapes`).

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Take};

/// Bytes of memory for a value of a dictionary.
const DICTIONARY_VALUE: u64 = 40;
/// Structures and lists within each other. Statistics of a column stand deepest, in seven.
const DEPTH: usize = 16;
/// At the end of a file: the footer's length and these letters.
const MAGIC: [u8; 4] = *b"PAR1";

/// Checks that no list in the footer has more elements than bytes; `length` is the file's. What is
/// no Parquet file at all passes: the parquet crate has the words for it.
///
/// # Errors
/// The file cannot be read, or its footer is not sound.
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

/// Bytes of memory that the largest page of a column chunk, and its dictionary, take by what they
/// claim: `most` at most. The chunk is `length` bytes from `start` on.
///
/// # Errors
/// The file cannot be read, a header is not sound, or pages claim more; the message says which.
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
        // Plain values take four bytes, and the shortest text its length.
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
        // Not beyond the column, which is inside the file.
        reader.seek_relative(header.size as i64).map_err(|e| e.to_string())?;
    }
    Ok(largest + dictionary)
}

/// A page's sizes in bytes, and how many values it has if it is a dictionary.
#[derive(Default)]
struct Header {
    unpacked: u64,
    size: u64,
    dictionary_values: u64,
}

struct Thrift<R> {
    reader: Take<R>,
}

/// Types of fields, as the protocol numbers them.
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

/// What a value is.
enum Shape {
    /// Of a field that is not known here.
    Any,
    Flag,
    Byte,
    /// Of any width: all are written alike.
    Number,
    Double,
    Bytes,
    List(&'static Shape),
    /// By the fields' numbers.
    Struct(&'static [(u8, Shape)]),
}

impl Shape {
    /// Whether a value of this type is one.
    fn takes(&self, kind: u8) -> bool {
        match self {
            Shape::Any => true,
            Shape::Flag => matches!(kind, kind::TRUE | kind::FALSE),
            Shape::Byte => kind == kind::BYTE,
            Shape::Number => matches!(kind, kind::I16 | kind::I32 | kind::I64),
            Shape::Double => kind == kind::DOUBLE,
            Shape::Bytes => kind == kind::BINARY,
            Shape::List(_) => kind == kind::LIST,
            Shape::Struct(_) => kind == kind::STRUCT,
        }
    }

    fn element(&self) -> &Shape {
        if let Shape::List(element) = self { element } else { &Shape::Any }
    }

    fn field(&self, id: u8) -> &Shape {
        let Shape::Struct(fields) = self else { return &Shape::Any };
        fields.iter().find(|(number, _)| *number == id).map_or(&Shape::Any, |(_, shape)| shape)
    }
}

/// The structures of the format (parquet.thrift); fields that are left out here are of any shape.
mod shapes {
    use super::Shape::{self, Byte, Bytes, Double, Flag, List, Number, Struct};

    pub static FILE: Shape = Struct(&[
        (1, Number),
        (2, List(&SCHEMA)),
        (3, Number),
        (4, List(&ROW_GROUP)),
        (5, List(&KEY_VALUE)),
        (6, Bytes),
        (7, List(&Struct(&[(1, EMPTY), (2, EMPTY)]))),
        (9, Bytes),
    ]);
    const EMPTY: Shape = Struct(&[]);
    static SCHEMA: Shape = Struct(&[
        (1, Number),
        (2, Number),
        (3, Number),
        (4, Bytes),
        (5, Number),
        (6, Number),
        (7, Number),
        (8, Number),
        (9, Number),
        (10, LOGICAL),
    ]);
    const LOGICAL: Shape = Struct(&[
        (1, EMPTY),
        (2, EMPTY),
        (3, EMPTY),
        (4, EMPTY),
        (5, Struct(&[(1, Number), (2, Number)])),
        (6, EMPTY),
        (7, TIME),
        (8, TIME),
        (10, Struct(&[(1, Byte), (2, Flag)])),
        (11, EMPTY),
        (12, EMPTY),
        (13, EMPTY),
        (14, EMPTY),
        (15, EMPTY),
        (16, Struct(&[(1, Byte)])),
        (17, Struct(&[(1, Bytes)])),
        (18, Struct(&[(1, Bytes), (2, Number)])),
    ]);
    const TIME: Shape = Struct(&[(1, Flag), (2, Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]))]);
    static KEY_VALUE: Shape = Struct(&[(1, Bytes), (2, Bytes)]);
    static ROW_GROUP: Shape = Struct(&[
        (1, List(&COLUMN)),
        (2, Number),
        (3, Number),
        (4, List(&Struct(&[(1, Number), (2, Flag), (3, Flag)]))),
        (5, Number),
        (6, Number),
        (7, Number),
    ]);
    static COLUMN: Shape = Struct(&[
        (1, Bytes),
        (2, Number),
        (3, META),
        (4, Number),
        (5, Number),
        (6, Number),
        (7, Number),
        (9, Bytes),
    ]);
    const META: Shape = Struct(&[
        (1, Number),
        (2, List(&Number)),
        (3, List(&Bytes)),
        (4, Number),
        (5, Number),
        (6, Number),
        (7, Number),
        (8, List(&KEY_VALUE)),
        (9, Number),
        (10, Number),
        (11, Number),
        (12, STATISTICS),
        (13, List(&Struct(&[(1, Number), (2, Number), (3, Number)]))),
        (14, Number),
        (15, Number),
        (16, Struct(&[(1, Number), (2, List(&Number)), (3, List(&Number))])),
        (17, Struct(&[(1, BOX), (2, List(&Number))])),
    ]);
    const BOX: Shape = Struct(&[
        (1, Double),
        (2, Double),
        (3, Double),
        (4, Double),
        (5, Double),
        (6, Double),
        (7, Double),
        (8, Double),
    ]);
    const STATISTICS: Shape = Struct(&[
        (1, Bytes),
        (2, Bytes),
        (3, Number),
        (4, Number),
        (5, Bytes),
        (6, Bytes),
        (7, Flag),
        (8, Flag),
    ]);
    pub static PAGE: Shape = Struct(&[
        (1, Number),
        (2, Number),
        (3, Number),
        (4, Number),
        (5, Struct(&[(1, Number), (2, Number), (3, Number), (4, Number), (5, STATISTICS)])),
        (6, EMPTY),
        (7, Struct(&[])),
        (8, DATA_PAGE_2),
    ]);
    pub static DICTIONARY_PAGE: Shape = Struct(&[(1, Number), (2, Number), (3, Flag)]);
    const DATA_PAGE_2: Shape = Struct(&[
        (1, Number),
        (2, Number),
        (3, Number),
        (4, Number),
        (5, Number),
        (6, Number),
        (7, Flag),
        (8, STATISTICS),
    ]);
}

impl<R: BufRead> Thrift<R> {
    /// None where something is no part of a page's header.
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

    /// The next field's type, its number in `id`; an inner None ends the structure.
    fn field(&mut self, id: &mut u8) -> Option<Option<u8>> {
        let byte = self.byte()?;
        let (distance, kind) = (byte >> 4, byte & 15);
        if kind == 0 {
            return Some(None);
        }
        // Numbers rise by small steps; the protocol's long form for others is not needed.
        *id = id.checked_add(distance).filter(|_| distance > 0)?;
        Some(Some(kind))
    }

    /// Moves over a value of this type, which must be of the shape. None where it is not, or where
    /// the protocol has no such.
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
                // No list that is known has booleans.
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

    /// Moves over bytes.
    fn pass(&mut self, mut length: u64) -> Option<()> {
        while length > 0 {
            let there = self.reader.fill_buf().ok().filter(|bytes| !bytes.is_empty())?.len();
            let taken = length.min(there as u64);
            self.reader.consume(taken as usize);
            length -= taken;
        }
        Some(())
    }

    /// An i32 that is not negative.
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
