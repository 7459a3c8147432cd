//! Values of a GGUF file's metadata: scalars, strings and arrays, as the file types them.

use std::fmt;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array, all of one type. Typed vectors keep its memory near its size in the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// The type's number in a file, of a value and of an array's elements alike.
macro_rules! type_number {
    ($value:expr, $of:ident) => {
        match $value {
            $of::U8(_) => 0,
            $of::I8(_) => 1,
            $of::U16(_) => 2,
            $of::I16(_) => 3,
            $of::U32(_) => 4,
            $of::I32(_) => 5,
            $of::F32(_) => 6,
            $of::Bool(_) => 7,
            $of::String(_) => 8,
            $of::Array(_) => 9,
            $of::U64(_) => 10,
            $of::I64(_) => 11,
            $of::F64(_) => 12,
        }
    };
}

const TYPE_NAMES: [&str; 13] =
    ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];

impl Value {
    /// The type's number in a file.
    pub fn type_number(&self) -> u32 {
        type_number!(self, Value)
    }

    /// As an error message names it: `u32`, `array of string`.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", TYPE_NAMES[array.type_number() as usize]),
            scalar => TYPE_NAMES[scalar.type_number() as usize].to_string(),
        }
    }

    /// An integer of any type that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// A float, or an integer where a writer left the point away. An f32 becomes the f64 of its
    /// shortest decimal form, so that 1e-5 reads as 1e-5.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => v.to_string().parse().ok(),
            Value::F64(v) => Some(v),
            _ => self.as_u64().map(|v| v as f64),
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(v) = self { Some(*v) } else { None }
    }

    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(v) = self { Some(v) } else { None }
    }

    pub fn as_strings(&self) -> Option<&[String]> {
        if let Value::Array(Array::String(v)) = self { Some(v) } else { None }
    }

    pub fn as_f32s(&self) -> Option<&[f32]> {
        if let Value::Array(Array::F32(v)) = self { Some(v) } else { None }
    }

    /// An array of integers of any type, as far as they fit into an i64.
    pub fn as_integers(&self) -> Option<Vec<i64>> {
        let Value::Array(array) = self else { return None };
        match array {
            Array::U8(v) => Some(v.iter().map(|&v| v.into()).collect()),
            Array::I8(v) => Some(v.iter().map(|&v| v.into()).collect()),
            Array::U16(v) => Some(v.iter().map(|&v| v.into()).collect()),
            Array::I16(v) => Some(v.iter().map(|&v| v.into()).collect()),
            Array::U32(v) => Some(v.iter().map(|&v| v.into()).collect()),
            Array::I32(v) => Some(v.iter().map(|&v| v.into()).collect()),
            Array::U64(v) => v.iter().map(|&v| v.try_into().ok()).collect(),
            Array::I64(v) => Some(v.clone()),
            _ => None,
        }
    }
}

impl Array {
    /// The elements' type number in a file.
    pub fn type_number(&self) -> u32 {
        type_number!(self, Array)
    }

    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The value where it is short, otherwise what it is: an error message's "seen".
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
            Value::String(v) if v.len() <= 80 => write!(f, "{v:?}"),
            Value::String(v) => write!(f, "a string of {} bytes", v.len()),
            Value::Array(v) => write!(f, "an {} with {} elements", self.type_name(), v.len()),
        }
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Value::$variant(value)
            }
        }
    )*};
}

from!(u32 => U32, i32 => I32, f32 => F32, bool => Bool, String => String, u64 => U64);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_string())
    }
}
