//! Sizes of memory as people write them: 600MB, 1.5GB, 512MiB.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names of units and their bytes, the larger of a kind first.
const UNITS: [(&str, u64); 11] = [
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("B", 1),
];

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    /// A number, whole or with a decimal point, and its unit in upper or lower case: B, kB, MB, GB,
    /// TB of powers of 1000 (M and G too), KiB, MiB, GiB, TiB of powers of 1024.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("{text:?} is not a size; give a number and its unit, such as 600MB, 1.5GB or 512MiB");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim());
        let &(_, unit) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(refuse)?;
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let bytes = number * unit as f64;
        // Above this, f64 does not represent every whole number.
        if !(1.0..9e15).contains(&bytes) {
            return Err(refuse());
        }
        Ok(Size(bytes.round() as u64))
    }
}

impl fmt::Display for Size {
    /// In the largest unit of powers of 1000, or else of 1024, that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit): &&(&str, u64)| *unit > 1 && self.0.is_multiple_of(*unit);
        let (name, unit) = UNITS[..8].iter().find(fits).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_of_1000_or_1024() {
        let cases = [
            ("600MB", 600_000_000),
            ("1.5GB", 1_500_000_000),
            ("1.5 gb", 1_500_000_000),
            ("2G", 2_000_000_000),
            ("700m", 700_000_000),
            ("512MiB", 512 << 20),
            ("0.5GiB", 1 << 29),
            (" 64kb ", 64_000),
            ("123456789B", 123_456_789),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "600", "MB", "-1GB", "1.2.3MB", "1e9B", "600 megs", "0MB", "9999999TB", "1GB extra"]
        {
            let message = text.parse::<Size>().unwrap_err();
            assert!(message.contains("not a size") && message.contains("600MB"), "{text}: {message}");
        }
    }

    #[test]
    fn a_size_is_parsed_from_its_own_text() {
        for (bytes, text) in [(1_500_000_000, "1500MB"), (512 << 20, "512MiB"), (999, "999B"), (2_000, "2kB")]
        {
            assert_eq!(Size(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
    }
}
