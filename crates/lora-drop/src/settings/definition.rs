//! What a setting is: its name, type, default, range and help, and what has to hold for it to be
//! read. The settings themselves are in `groups`; the command line, recipes, checks and
//! docs/options.md follow from their definitions.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Value;

use super::situation::Need;
use super::{Budget, ClassWeights, RunSettings, SampleEpochs, Size};

/// The definition of a setting.
#[derive(Debug)]
pub struct Definition {
    /// The option's name and the recipe's key, in kebab case.
    pub name: &'static str,
    /// The name of the field that holds it.
    pub field: &'static str,
    /// The heading of its group in help texts; empty for settings that every run has.
    pub heading: &'static str,
    /// Its help text. Other settings are written in it as `` `field` `` or `` `field = value` ``.
    pub help: &'static str,
    /// Its default in words, if the value alone does not say it; otherwise empty.
    pub default_in_words: &'static str,
    /// The values that it takes.
    pub kind: Kind,
    /// What its value is called in help texts.
    pub value_name: &'static str,
    /// The numbers that it may have.
    pub range: Range,
    /// What has to hold for it to be read.
    pub needs: &'static [Need],
    /// Its names in other trainers.
    pub aliases: &'static [&'static str],
    /// Its value in settings; None if it is not set.
    pub(crate) get: fn(&RunSettings) -> Option<Value>,
    /// Sets it to a recipe's value, or returns what was expected of the value.
    pub(super) set: fn(&mut RunSettings, &Value) -> Result<(), String>,
}

impl Definition {
    /// Whether its value is always a folder or a file.
    pub fn is_path(&self) -> bool {
        self.value_name.split('|').all(|form| ["DIR", "FILE"].contains(&form))
    }

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
    /// A number, whole or with a fraction.
    Number,
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list; on the command line separated by commas.
    List(&'static Kind),
    /// One value, or a list; on the command line the option is given once for each.
    Several(&'static Kind),
    /// `auto`, or a value of this kind.
    OrAuto(&'static Kind),
    /// Bytes with their unit, such as `1.5GB`.
    Size,
}

impl Kind {
    /// Parses a word of the command line; for a list, one of its elements.
    ///
    /// # Errors
    /// A message with what was expected.
    pub fn read(self, word: &str) -> Result<Value, String> {
        let value = match self {
            Kind::Flag => word.parse().ok().map(Value::Boolean),
            Kind::Whole => word.parse().ok().map(Value::Integer),
            Kind::Number => word.parse().ok().map(Value::Float),
            Kind::Text => Some(word.into()),
            Kind::Choice(words) => words.contains(&word).then(|| word.into()),
            Kind::List(kind) | Kind::Several(kind) => return kind.read(word),
            Kind::OrAuto(_) if word == "auto" => Some(word.into()),
            Kind::OrAuto(kind) => kind.read(word).ok(),
            Kind::Size => word.parse().ok().map(|size: Size| size.to_string().into()),
        };
        value.ok_or_else(|| format!("expected {}", self.expected()))
    }

    /// What a value of this kind is, for messages.
    fn expected(self) -> String {
        match self {
            Kind::Flag => "true or false".to_string(),
            Kind::Whole => "a whole number".to_string(),
            Kind::Number => "a number".to_string(),
            Kind::Text => "a text".to_string(),
            Kind::Choice(words) => one_of(words),
            Kind::List(_) => "a list".to_string(),
            Kind::Several(kind) => format!("{}, or a list", kind.expected()),
            Kind::OrAuto(kind) => format!("{}, or auto", kind.expected()),
            Kind::Size => "a number and its unit, such as 600MB, 1.5GB or 512MiB".to_string(),
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
    /// Returns what was expected if a value, or one in a list, is a number out of range.
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

/// A type that a setting can have. Recipes hold its values as serde writes them.
pub trait Setting: Serialize + DeserializeOwned {
    /// The values that it takes.
    const KIND: Kind;

    /// Reads a recipe's value.
    ///
    /// # Errors
    /// A message with what was expected and what was found.
    fn from_value(value: &Value) -> Result<Self, String> {
        let unexpected = |_| format!("expected {}, found {value}", Self::KIND.expected());
        value.clone().try_into().map_err(unexpected)
    }

    /// The recipe's value; None if nothing is set.
    fn to_value(&self) -> Option<Value> {
        Value::try_from(self).ok()
    }
}

macro_rules! kinds {
    ($($type:ty = $kind:expr;)+) => {
        $(impl Setting for $type {
            const KIND: Kind = $kind;
        })+
    };
}

kinds! {
    bool = Kind::Flag;
    f64 = Kind::Number;
    String = Kind::Text;
    PathBuf = Kind::Text;
    ClassWeights = Kind::Text;
    Size = Kind::Size;
    SampleEpochs = Kind::OrAuto(&Kind::Whole);
    Budget = Kind::OrAuto(&Kind::Number);
}

/// Whole numbers. TOML's integers end at 2⁶³ − 1, as do all ranges; a larger number becomes a
/// float, which is out of range.
macro_rules! whole {
    ($type:ty) => {
        impl Setting for $type {
            const KIND: Kind = Kind::Whole;

            fn to_value(&self) -> Option<Value> {
                Some(i64::try_from(*self).map_or(Value::Float(*self as f64), Value::Integer))
            }
        }
    };
}

whole!(usize);
whole!(u64);

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
        let list = value.as_array().ok_or_else(|| format!("expected a list, found {value}"))?;
        list.iter().map(T::from_value).collect()
    }
}

/// Joins words for a message: `a, b or c`.
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
            /// All values, in the order of help texts.
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

/// Defines a group of settings: a structure with a field for each, and their definitions. The
/// parentheses give the group's place in [`RunSettings`].
///
/// A setting is `field: type = default, "VALUE NAME"`, followed by what applies to it: `in RANGE`,
/// `reads [NEEDS]`, `or "default in words"`, `also [ALIASES]`.
macro_rules! settings {
    (@or $default:expr) => { $default };
    (@or $default:expr, $given:expr) => { $given };
    (
        $(#[$of_group:meta])*
        $group:ident $heading:literal ($settings:ident => $place:expr) {
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
                Definition {
                    name: match std::str::from_utf8(&NAME) {
                        Ok(name) => name,
                        Err(_) => unreachable!(),
                    },
                    field: FIELD,
                    heading: $heading,
                    help: concat!($($help),+),
                    default_in_words: settings!(@or "" $(, $words)?),
                    kind: <$type as Setting>::KIND,
                    value_name: $value_name,
                    range: settings!(@or Range::Any $(, $range)?),
                    needs: settings!(@or &[] $(, { use Need::*; &$needs })?),
                    aliases: settings!(@or &[] $(, &$aliases)?),
                    get: |$settings| Setting::to_value(&$place.$field),
                    set: |$settings, value| {
                        $place.$field = Setting::from_value(value)?;
                        Ok(())
                    },
                }
            },)+];
        }
    };
}

pub(super) use settings;
