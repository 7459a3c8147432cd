//! Makes text safe for a terminal. Names, labels and texts come from models and data of unknown
//! origin: characters that would move the cursor, colour the screen or change the direction of
//! writing are shown as escapes.

use std::borrow::Cow;
use std::fmt::Write;

/// Marks at which a style begins or ends in the program's own text. These code points are never
/// characters in Unicode; text from elsewhere that has them can change its style, and nothing more.
pub(super) const BOLD: char = '\u{fdd0}';
pub(super) const FAINT: char = '\u{fdd1}';
pub(super) const GREEN: char = '\u{fdd2}';
pub(super) const YELLOW: char = '\u{fdd3}';
pub(super) const PLAIN: char = '\u{fdd4}';

/// The text as a terminal may show it: control characters other than line feed and tab, and those
/// that change the direction of writing, become JSON's escapes (`\u001b`), so that JSON keeps its
/// meaning. `colour` is whether the marks of our own styles become ANSI codes.
pub fn printable(text: &str, colour: bool) -> Cow<'_, str> {
    let code = |c: char| {
        Some(match c {
            BOLD => "1",
            FAINT => "2",
            GREEN => "32",
            YELLOW => "33",
            PLAIN => "0",
            _ => return None,
        })
    };
    let escaped = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(|c| escaped(c) || code(c).is_some()) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 32);
    for c in text.chars() {
        // Writing to a string does not fail.
        _ = match code(c).filter(|_| colour) {
            Some(code) => write!(shown, "\x1b[{code}m"),
            None if escaped(c) || code(c).is_some() => write!(shown, "\\u{:04x}", u32::from(c)),
            None => write!(shown, "{c}"),
        };
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_escaped() {
        assert_eq!(printable("a\n\tß→", true), "a\n\tß→");
        assert!(matches!(printable("plain", true), Cow::Borrowed("plain")));
        let hostile = "\u{1b}[31mred\r\u{7f}\u{9b}2J\u{202e}\u{0}";
        assert_eq!(printable(hostile, true), "\\u001b[31mred\\u000d\\u007f\\u009b2J\\u202e\\u0000");
        let own = format!("{GREEN}ok{PLAIN}");
        assert_eq!(printable(&own, true), "\u{1b}[32mok\u{1b}[0m");
        assert_eq!(printable(&own, false), "\\ufdd2ok\\ufdd4");
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"text": "\u{7f}\u{9b}\u{202e}\u{1b} \" \\"});
        let text = value.to_string();
        assert_ne!(printable(&text, false), text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printable(&text, false)).unwrap(), value);
    }
}
