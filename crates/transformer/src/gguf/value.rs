//! Values of a GGUF file's metadata: numbers, booleans, strings and arrays, as the file types them.

use std::fmt;

use super::header::Reader;

/// Defines `Value` and `Array`, and the code that is the same for every type of number: its number
/// in files, its variant and its Rust type.
macro_rules! values {
    (
        integers: $($i_number:literal $integer:ident $i_type:ty),*;
        floats: $($f_number:literal $float:ident $f_type:ty),*;
    ) => {
        /// A metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $($integer($i_type),)*
            $($float($f_type),)*
            Bool(bool),
            String(String),
            Array(Array),
        }

        /// An array, all of one type. Typed vectors keep its memory near its size in the file.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $($integer(Vec<$i_type>),)*
            $($float(Vec<$f_type>),)*
            Bool(Vec<bool>),
            String(Vec<String>),
            Array(Vec<Array>),
        }

        impl Value {
            /// The type's number in files and its name.
            fn type_of(&self) -> (u32, &'static str) {
                match self {
                    $(Value::$integer(_) => ($i_number, stringify!($i_type)),)*
                    $(Value::$float(_) => ($f_number, stringify!($f_type)),)*
                    Value::Bool(_) => (7, "bool"),
                    Value::String(_) => (8, "string"),
                    Value::Array(_) => (9, "array"),
                }
            }

            /// Returns an integer of any type; None if it is negative, and for other types.
            pub fn as_u64(&self) -> Option<u64> {
                match *self {
                    $(Value::$integer(value) => value.try_into().ok(),)*
                    _ => None,
                }
            }

            /// Returns an array of integers of any type; None if one does not fit an i64, and for
            /// other types.
            pub fn as_integers(&self) -> Option<Vec<i64>> {
                match self {
                    $(Value::Array(Array::$integer(list)) => {
                        list.iter().map(|&value| value.try_into().ok()).collect()
                    })*
                    _ => None,
                }
            }

            /// Reads a number of the type with this number; None if that is not a type of numbers.
            pub(super) fn read_number(
                reader: &mut Reader,
                kind: u32,
                what: &str,
            ) -> Result<Option<Value>, String> {
                Ok(Some(match kind {
                    $($i_number => Value::$integer(<$i_type>::from_le_bytes(reader.array(what)?)),)*
                    $($f_number => Value::$float(<$f_type>::from_le_bytes(reader.array(what)?)),)*
                    _ => return Ok(None),
                }))
            }

            /// Appends the value's bytes in a file.
            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Value::$integer(value) => out.extend(value.to_le_bytes()),)*
                    $(Value::$float(value) => out.extend(value.to_le_bytes()),)*
                    Value::Bool(value) => out.push(u8::from(*value)),
                    Value::String(value) => write_string(value, out),
                    Value::Array(value) => value.write(out),
                }
            }
        }

        impl Array {
            /// Returns the number in files and the name of the elements' type.
            fn type_of(&self) -> (u32, &'static str) {
                match self {
                    $(Array::$integer(_) => ($i_number, stringify!($i_type)),)*
                    $(Array::$float(_) => ($f_number, stringify!($f_type)),)*
                    Array::Bool(_) => (7, "bool"),
                    Array::String(_) => (8, "string"),
                    Array::Array(_) => (9, "array"),
                }
            }

            /// The number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$integer(list) => list.len(),)*
                    $(Array::$float(list) => list.len(),)*
                    Array::Bool(list) => list.len(),
                    Array::String(list) => list.len(),
                    Array::Array(list) => list.len(),
                }
            }

            /// Reads numbers of the type with this number; None if that is not a type of numbers.
            pub(super) fn read_numbers(
                reader: &mut Reader,
                kind: u32,
                count: u64,
                what: &str,
            ) -> Result<Option<Array>, String> {
                Ok(Some(match kind {
                    $($i_number => Array::$integer(reader.elements(count, what, <$i_type>::from_le_bytes)?),)*
                    $($f_number => Array::$float(reader.elements(count, what, <$f_type>::from_le_bytes)?),)*
                    _ => return Ok(None),
                }))
            }

            /// Appends the array's bytes in a file: type, length and elements.
            fn write(&self, out: &mut Vec<u8>) {
                out.extend(self.type_of().0.to_le_bytes());
                out.extend((self.len() as u64).to_le_bytes());
                match self {
                    $(Array::$integer(list) => list.iter().for_each(|value| out.extend(value.to_le_bytes())),)*
                    $(Array::$float(list) => list.iter().for_each(|value| out.extend(value.to_le_bytes())),)*
                    Array::Bool(list) => out.extend(list.iter().map(|value| u8::from(*value))),
                    Array::String(list) => list.iter().for_each(|value| write_string(value, out)),
                    Array::Array(list) => list.iter().for_each(|value| value.write(out)),
                }
            }
        }

        impl fmt::Display for Value {
            /// The value if it is short, otherwise a description: for error messages.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Value::$integer(value) => value.fmt(f),)*
                    $(Value::$float(value) => value.fmt(f),)*
                    Value::Bool(value) => value.fmt(f),
                    Value::String(value) if value.len() <= 80 => write!(f, "{value:?}"),
                    Value::String(value) => write!(f, "a string of {} bytes", value.len()),
                    Value::Array(list) => write!(f, "an {} with {} elements", self.type_name(), list.len()),
                }
            }
        }
    };
}

values! {
    integers: 0 U8 u8, 1 I8 i8, 2 U16 u16, 3 I16 i16, 4 U32 u32, 5 I32 i32, 10 U64 u64, 11 I64 i64;
    floats: 6 F32 f32, 12 F64 f64;
}

impl Value {
    /// The type's number in a file.
    pub(crate) fn type_number(&self) -> u32 {
        self.type_of().0
    }

    /// The type's name in error messages: `u32`, `array of string`.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", array.type_of().1),
            scalar => scalar.type_of().1.to_string(),
        }
    }

    /// Returns a float, or an integer if a writer left out the point; None for other types. An f32
    /// becomes the f64 of its shortest decimal form, so 1e-5 reads as 1e-5.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => v.to_string().parse().ok(),
            Value::F64(v) => Some(v),
            _ => self.as_u64().map(|v| v as f64),
        }
    }

    /// A boolean; None for other types.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(v) = self { Some(*v) } else { None }
    }

    /// A string; None for other types.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(v) = self { Some(v) } else { None }
    }

    /// An array of strings; None for other types.
    pub fn as_strings(&self) -> Option<&[String]> {
        if let Value::Array(Array::String(v)) = self { Some(v) } else { None }
    }

    /// An array of f32; None for other types.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        if let Value::Array(Array::F32(v)) = self { Some(v) } else { None }
    }
}

impl Array {
    /// Whether the array has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Appends a string's length and bytes.
pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
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
