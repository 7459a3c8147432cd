//! What a setting is: its name, type, default, range and text, and what has to hold for it to be
//! read. The settings themselves are in `groups`; command line, recipes, checks and docs/options.md
//! follow from their definitions.

use std::path::PathBuf;

use toml::Value;

use super::situation::Need;
use super::{Budget, SampleEpochs, Size};

/// The definition of a setting.
#[derive(Debug)]
pub struct Definition {
    /// The option's name and the recipe's key, in kebab case.
    pub name: &'static str,
    /// The field that holds it.
    pub field: &'static str,
    /// The heading of its group in help texts; empty for what every run has.
    pub heading: &'static str,
    /// What it means. Other settings in it are written as `` `field` `` or `` `field = value` ``.
    pub help: &'static str,
    /// Its default in words, where the value alone does not say it.
    pub default_in_words: &'static str,
    pub kind: Kind,
    /// What its value is called in help texts.
    pub value_name: &'static str,
    pub range: Range,
    /// What has to hold for it to be read.
    pub needs: &'static [Need],
    /// What other trainers call it.
    pub aliases: &'static [&'static str],
}

impl Definition {
    /// What is wrong with a value, or None.
    pub(super) fn problem(&self, value: &Value) -> Option<String> {
        let expected = match (self.kind, value) {
            (Kind::Choice(words), Value::String(word)) if !words.contains(&word.as_str()) => one_of(words),
            _ => self.range.problem(value)?,
        };
        let value = match value {
            Value::Float(number) => number.to_string(),
            Value::Array(list) => {
                let wrong = list.iter().find(|value| self.range.problem(value).is_some());
                wrong.unwrap_or(value).to_string()
            }
            value => value.to_string(),
        };
        Some(format!("`{}` is {value}; it must be {expected}", self.field))
    }
}

/// The values that a setting takes, as recipes and the command line write them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// true or false; on the command line its name alone.
    Flag,
    /// A whole number.
    Whole,
    Number,
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list; on the command line separated by commas.
    List(&'static Kind),
    /// `auto`, or a value of this kind.
    OrAuto(&'static Kind),
    /// Bytes with their unit, such as `1.5GB`.
    Size,
}

impl Kind {
    /// The value that a word of the command line stands for; of a list, that of one of its
    /// elements.
    ///
    /// # Errors
    /// What was expected.
    pub fn read(self, word: &str) -> Result<Value, String> {
        match self {
            Kind::Flag => word.parse().map(Value::Boolean).map_err(|_| "expected true or false".to_string()),
            Kind::Whole => {
                word.parse().map(Value::Integer).map_err(|_| "expected a whole number".to_string())
            }
            Kind::Number => word.parse().map(Value::Float).map_err(|_| "expected a number".to_string()),
            Kind::Text => Ok(Value::String(word.to_string())),
            Kind::Choice(words) if words.contains(&word) => Ok(Value::String(word.to_string())),
            Kind::Choice(words) => Err(format!("expected {}", one_of(words))),
            Kind::List(kind) => kind.read(word),
            Kind::OrAuto(_) if word == "auto" => Ok(Value::String(word.to_string())),
            Kind::OrAuto(kind) => kind.read(word).map_err(|expected| expected + ", or auto"),
            Kind::Size => word.parse().map(|size: Size| Value::String(size.to_string())),
        }
    }
}

/// The numbers that a setting may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Any, or no number.
    Any,
    /// Whole numbers from the first to the second.
    Whole(usize, usize),
    /// Greater than 0, and finite.
    Positive,
    /// 0 or greater, and finite.
    FromZero,
    /// Greater than 0, at most 1.
    Fraction,
    /// At least 0, below 1.
    BelowOne,
}

impl Range {
    /// What was expected, if a value, or one in a list, is a number outside.
    fn problem(self, value: &Value) -> Option<String> {
        let inside = match (self, value) {
            (_, Value::Array(list)) => return list.iter().find_map(|value| self.problem(value)),
            (Range::Any, _) => true,
            (Range::Whole(least, most), Value::Integer(number)) => {
                usize::try_from(*number).is_ok_and(|number| (least..=most).contains(&number))
            }
            (Range::Whole(..), Value::Float(_)) => false,
            (_, Value::Integer(number)) => self.has(*number as f64),
            (_, Value::Float(number)) => self.has(*number),
            _ => true,
        };
        let expected = || match self {
            Range::Any => String::new(),
            Range::Whole(least, most) => format!("{least} to {most}"),
            Range::Positive => "greater than 0 and finite".to_string(),
            Range::FromZero => "0 or greater".to_string(),
            Range::Fraction => "greater than 0 and at most 1".to_string(),
            Range::BelowOne => "at least 0 and below 1".to_string(),
        };
        (!inside).then(expected)
    }

    fn has(self, number: f64) -> bool {
        match self {
            Range::Any | Range::Whole(..) => true,
            Range::Positive => number > 0.0 && number.is_finite(),
            Range::FromZero => number >= 0.0 && number.is_finite(),
            Range::Fraction => number > 0.0 && number <= 1.0,
            Range::BelowOne => (0.0..1.0).contains(&number),
        }
    }
}

/// A type that a setting can have.
pub trait Setting: Sized {
    const KIND: Kind;

    /// Reads a recipe's value.
    ///
    /// # Errors
    /// What was expected.
    fn from_value(value: &Value) -> Result<Self, String>;

    /// The recipe's value; None where nothing is set.
    fn to_value(&self) -> Option<Value>;
}

impl Setting for bool {
    const KIND: Kind = Kind::Flag;

    fn from_value(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| unexpected(value, "true or false"))
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

/// Whole numbers. TOML's end at 2⁶³ − 1, as do all ranges; a larger one becomes a float, which is
/// outside of them.
macro_rules! whole {
    ($type:ty) => {
        impl Setting for $type {
            const KIND: Kind = Kind::Whole;

            fn from_value(value: &Value) -> Result<Self, String> {
                let number = value.as_integer().and_then(|number| number.try_into().ok());
                number.ok_or_else(|| unexpected(value, "a whole number"))
            }

            fn to_value(&self) -> Option<Value> {
                Some(i64::try_from(*self).map_or(Value::Float(*self as f64), Value::Integer))
            }
        }
    };
}

whole!(usize);
whole!(u64);

impl Setting for f64 {
    const KIND: Kind = Kind::Number;

    fn from_value(value: &Value) -> Result<Self, String> {
        let number = value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
        number.ok_or_else(|| unexpected(value, "a number"))
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
}

impl Setting for String {
    const KIND: Kind = Kind::Text;

    fn from_value(value: &Value) -> Result<Self, String> {
        value.as_str().map(String::from).ok_or_else(|| unexpected(value, "a text"))
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }
}

impl Setting for PathBuf {
    const KIND: Kind = Kind::Text;

    fn from_value(value: &Value) -> Result<Self, String> {
        String::from_value(value).map(PathBuf::from)
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::String(self.to_string_lossy().into_owned()))
    }
}

impl Setting for Size {
    const KIND: Kind = Kind::Size;

    fn from_value(value: &Value) -> Result<Self, String> {
        value.as_str().ok_or_else(|| unexpected(value, "a size such as \"1.5GB\""))?.parse()
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = T::KIND;

    fn from_value(value: &Value) -> Result<Self, String> {
        T::from_value(value).map(Some)
    }

    fn to_value(&self) -> Option<Value> {
        self.as_ref().and_then(T::to_value)
    }
}

impl<T: Setting> Setting for Vec<T> {
    const KIND: Kind = Kind::List(&T::KIND);

    fn from_value(value: &Value) -> Result<Self, String> {
        let list = value.as_array().ok_or_else(|| unexpected(value, "a list"))?;
        list.iter().map(T::from_value).collect()
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(T::to_value).collect()))
    }
}

impl Setting for SampleEpochs {
    const KIND: Kind = Kind::OrAuto(&Kind::Whole);

    fn from_value(value: &Value) -> Result<Self, String> {
        Ok(number_or_auto(value, "a number of epochs")?.map_or(SampleEpochs::Auto, SampleEpochs::Epochs))
    }

    fn to_value(&self) -> Option<Value> {
        match self {
            SampleEpochs::Auto => Some("auto".into()),
            SampleEpochs::Epochs(epochs) => epochs.to_value(),
        }
    }
}

impl Setting for Budget {
    const KIND: Kind = Kind::OrAuto(&Kind::Number);

    fn from_value(value: &Value) -> Result<Self, String> {
        Ok(number_or_auto(value, "a fraction above 0, up to 1")?.map_or(Budget::Auto, Budget::Share))
    }

    fn to_value(&self) -> Option<Value> {
        match self {
            Budget::Auto => Some("auto".into()),
            Budget::Share(share) => share.to_value(),
        }
    }
}

/// A number, or None for the word auto.
fn number_or_auto<T: Setting>(value: &Value, expected: &str) -> Result<Option<T>, String> {
    match value.as_str() {
        Some("auto") => Ok(None),
        _ => {
            T::from_value(value).map(Some).map_err(|_| unexpected(value, &format!("\"auto\" or {expected}")))
        }
    }
}

/// What is said of a value of another kind.
pub(crate) fn unexpected(value: &Value, expected: &str) -> String {
    format!("expected {expected}, found {value}")
}

/// Words of which one is expected, for a message.
pub(crate) fn one_of(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, [])) => last.to_string(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Defines an enumeration whose values have names in options, recipes and files.
macro_rules! choices {
    ($(#[$meta:meta])* $name:ident { $($(#[$of_variant:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$of_variant])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            pub const ALL: &'static [Self] = &[$($name::$variant,)+];

            /// The name in options, recipes and files.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }

            /// The value of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(name: &str) -> $crate::Result<Self> {
                let known = $crate::settings::definition::one_of(&[$($word,)+]);
                let unknown = || $crate::Error::Usage(format!("{name:?} is unknown; expected {known}"));
                Self::from_name(name).ok_or_else(unknown)
            }
        }

        impl $crate::settings::definition::Setting for $name {
            const KIND: $crate::settings::definition::Kind =
                $crate::settings::definition::Kind::Choice(&[$($word,)+]);

            fn from_value(value: &toml::Value) -> std::result::Result<Self, String> {
                use $crate::settings::definition::{one_of, unexpected};
                let found = value.as_str().and_then(Self::from_name);
                found.ok_or_else(|| unexpected(value, &one_of(&[$($word,)+])))
            }

            fn to_value(&self) -> Option<toml::Value> {
                Some(self.name().into())
            }
        }
    };
}

pub(crate) use choices;

/// A field's name with dashes for underscores.
pub(super) const fn kebab_case<const N: usize>(field: &str) -> [u8; N] {
    let (bytes, mut name, mut i) = (field.as_bytes(), [0; N], 0);
    while i < N {
        name[i] = if bytes[i] == b'_' { b'-' } else { bytes[i] };
        i += 1;
    }
    name
}

/// Defines a group of settings: a structure with a field for each, and their definitions.
///
/// A setting is `field: type = default, "VALUE NAME"`, and after it what it has of: `in RANGE`,
/// `reads [NEEDS]`, `or "default in words"`, `also [ALIASES]`.
macro_rules! settings {
    (
        $(#[$of_group:meta])*
        $group:ident $heading:literal {
            $(
                $(#[doc = $help:literal])+
                $field:ident: $type:ty = $default:expr, $value_name:literal
                $(in $range:expr)? $(, reads $needs:expr)? $(, or $words:literal)?
                $(, also $aliases:expr)?;
            )+
        }
    ) => {
        $(#[$of_group])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $group {
            $($(#[doc = $help])+ pub $field: $type,)+
        }

        impl Default for $group {
            fn default() -> Self {
                $group { $($field: $default,)+ }
            }
        }

        impl $group {
            /// The definitions of the group's settings, in the order of its fields.
            pub const DEFINITIONS: &'static [Definition] = &[$({
                const FIELD: &str = stringify!($field);
                const NAME: [u8; FIELD.len()] = kebab_case(FIELD);
                #[allow(unused_imports, reason = "settings that are always read need none")]
                use Need::*;
                #[allow(unused_mut, unused_assignments, reason = "what a setting has is not the same for all")]
                const DEFINITION: Definition = {
                    let mut definition = Definition {
                        name: match std::str::from_utf8(&NAME) {
                            Ok(name) => name,
                            Err(_) => unreachable!(),
                        },
                        field: FIELD,
                        heading: $heading,
                        help: concat!($($help),+),
                        default_in_words: "",
                        kind: <$type as Setting>::KIND,
                        value_name: $value_name,
                        range: Range::Any,
                        needs: &[],
                        aliases: &[],
                    };
                    $(definition.range = $range;)?
                    $(definition.needs = &$needs;)?
                    $(definition.default_in_words = $words;)?
                    $(definition.aliases = &$aliases;)?
                    definition
                };
                DEFINITION
            },)+];

            /// Sets the field of this name; None if there is none.
            pub(super) fn set(&mut self, name: &str, value: &Value) -> Option<Result<(), String>> {
                $(if name == stringify!($field) {
                    return Some(Setting::from_value(value).map(|value| self.$field = value));
                })+
                None
            }

            /// Fields and values; None where nothing is set.
            pub(super) fn values(&self) -> Vec<Option<Value>> {
                vec![$(Setting::to_value(&self.$field),)+]
            }
        }
    };
}

pub(super) use settings;
