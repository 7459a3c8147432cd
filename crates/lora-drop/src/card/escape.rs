//! Escapes names from models and data for a card's YAML, Markdown, Python and shell commands.

use std::fmt::Write;

/// Words that YAML reads as something other than text.
const WORDS: [&str; 10] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan"];

/// Writes a YAML scalar: the text itself if every reader takes it for a text, or else in double
/// quotes.
pub fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let is_word = WORDS.contains(&text.to_ascii_lowercase().as_str());
    match text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(plain) && !is_word {
        true => text.to_string(),
        false => quoted(text),
    }
}

/// Puts the text in double quotes, as a literal of both YAML and Python.
pub fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        // Writing to a string does not fail.
        _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            '\n' => write!(out, "\\n"),
            '\t' => write!(out, "\\t"),
            c if is_hidden(c) => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out + "\""
}

/// Escapes text for a paragraph, a heading or a table's cell of Markdown.
pub fn text(text: &str) -> String {
    let mut out = String::new();
    for c in shown(text).chars() {
        if c.is_ascii_punctuation() && !matches!(c, '.' | ',' | '-' | '/' | ':') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Writes code for a line or a table's cell of Markdown.
pub fn code(text: &str) -> String {
    let text = shown(text).replace('|', "\\|");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    // A backtick at an end would belong to the fence.
    let space = if longest > 0 { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

/// Quotes a word of a POSIX shell's command.
pub fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-' | '@' | ':' | '=');
    match !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        true => text.to_string(),
        false => format!("'{}'", shown(text).replace('\'', r"'\''")),
    }
}

/// Puts the text on one line, with escapes for invisible characters.
fn shown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        _ = match is_hidden(c) || matches!(c, '\n' | '\t') {
            true => write!(out, "\\u{:04x}", u32::from(c)),
            false => write!(out, "{c}"),
        };
    }
    out
}

/// Whether a character is a control character, changes the direction of writing, or is one that
/// YAML's readers refuse or read as a line end.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{fdd0}'..='\u{fdef}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_quotes_what_is_not_plainly_a_text() {
        for plain in ["accuracy", "org/name-1.5_b", "lora-drop"] {
            assert_eq!(yaml(plain), plain);
        }
        for (text, expected) in [
            ("", r#""""#),
            ("No", r#""No""#),
            ("1.5", r#""1.5""#),
            ("f1: \"macro\"", r#""f1: \"macro\"""#),
            ("größe", r#""größe""#),
            ("a\\b\n\u{85}\u{2028}\u{1b}[31m", r#""a\\b\n\u0085\u2028\u001b[31m""#),
        ] {
            assert_eq!(yaml(text), expected);
        }
    }

    #[test]
    fn markdown_shows_what_a_name_is() {
        assert_eq!(text("a|b *c* <script>\n"), "a\\|b \\*c\\* \\<script\\>\\\\u000a");
        assert_eq!(code("data/mrpc"), "`data/mrpc`");
        assert_eq!(code("a`b``|"), "``` a`b``\\| ```");
    }

    #[test]
    fn a_shells_word_is_one_word() {
        assert_eq!(shell("org/name@v1:a.gguf"), "org/name@v1:a.gguf");
        assert_eq!(shell("my model's; rm"), r"'my model'\''s; rm'");
        assert_eq!(shell("--help"), "'--help'");
    }
}
