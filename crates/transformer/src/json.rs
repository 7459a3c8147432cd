//! Parsing of JSON from other programs with a limit on memory: at most about ten times the text.
//!
//! `0,` is two bytes of text and a hundred of memory, so values are counted before parsing.

use serde::de::{DeserializeOwned, Error as _};

/// Number of values that a text of any length may have. A configuration with names for 20,000
/// classes has 40,000.
const FREE_VALUES: usize = 1 << 16;
/// Bytes of text that each value needs in a text with more values. A value takes at most about 240
/// bytes of memory.
const BYTES_PER_VALUE: usize = 24;

/// Parses a text.
///
/// # Errors
/// It is not JSON of this type, or has more values than its length allows.
pub fn from_str<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    check(text.as_bytes()).map_err(serde_json::Error::custom)?;
    serde_json::from_str(text)
}

/// Parses a text in bytes.
///
/// # Errors
/// Those of [`from_str`]; bytes that are not UTF-8.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    check(text).map_err(serde_json::Error::custom)?;
    serde_json::from_slice(text)
}

/// Counts the values in the list or object at the start of `text`, by its brackets and commas.
///
/// # Errors
/// A message with their number, if there are too many for the length of the text.
pub fn check(text: &[u8]) -> Result<(), String> {
    // Each value takes at least one byte of text, so a short text cannot have too many.
    if text.len() < FREE_VALUES || !matches!(text.trim_ascii_start().first(), Some(b'[' | b'{')) {
        return Ok(());
    }
    let (mut values, mut depth, mut length) = (1usize, 0usize, text.len());
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        match byte {
            b'"' => at = string_end(text, at),
            b'[' | b'{' => {
                depth += 1;
                values += 1;
            }
            b',' => values += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 && matches!(byte, b']' | b'}') {
            length = at;
            break;
        }
    }
    if values > FREE_VALUES.max(length / BYTES_PER_VALUE) {
        return Err(format!(
            "{values} values in {length} bytes; expected at most {FREE_VALUES}, or one in {BYTES_PER_VALUE} bytes"
        ));
    }
    Ok(())
}

/// Returns the index of the quote that ends the string which begins at `start`, or the length of
/// the text.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < text.len() {
        match text[at] {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_values_are_refused() {
        let list = |count: usize, value: &str| format!("[{}]", vec![value; count].join(","));
        assert!(check(list(60_000, "0").as_bytes()).is_ok());
        let problem = check(list(70_000, "0").as_bytes()).unwrap_err();
        assert!(problem.starts_with("70001 values in 140001 bytes; expected at most 65536"), "{problem}");
        assert!(check(list(70_000, "{\"a\":1}").as_bytes()).is_err());
        assert!(check(list(70_000, "\"a text that is long enough\"").as_bytes()).is_ok());
        assert!(from_str::<serde_json::Value>(&list(70_000, "[]")).is_err());
        assert_eq!(from_slice::<Vec<u8>>(b"[1, 2]").unwrap(), [1, 2]);
    }

    #[test]
    fn contents_of_strings_and_trailing_text_are_not_counted() {
        let commas = ",[{".repeat(100_000);
        assert!(check(format!("{{\"a\\\"{commas}\\\\\":\"{commas}\"}}").as_bytes()).is_ok());
        assert!(check(format!("{{\"a\":[1]}}{commas}").as_bytes()).is_ok());
        assert!(check(format!(" \"a\": {commas}").as_bytes()).is_ok());
        assert!(check(format!("{{\"a\":[1]{commas}").as_bytes()).is_err());
        for odd in ["", "\"", "\"\\", "]", "{\"a"] {
            assert!(check(odd.as_bytes()).is_ok());
        }
    }
}
