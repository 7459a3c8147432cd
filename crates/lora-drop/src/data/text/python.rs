//! The parts of Python that chat templates use beyond Jinja, as in transformers: `tojson`,
//! `raise_exception`, `strftime_now`, and the methods of strings and dictionaries.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Deepest nesting of lists and dictionaries in `tojson`.
const DEPTH: usize = 128;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("it refuses the conversation: {message}")))
    });
    environment
        .add_function("strftime_now", |format: &str| strftime(chrono::Local::now().naive_local(), format));
}

/// Calls a method that the engine lacks: one of those below, or one of `pycompat`.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => string_method(text, name, arguments)?,
        (None, ValueKind::Seq) if name == "index" => {
            let (wanted,): (Value,) = from_args(arguments)?;
            let place = value.try_iter()?.position(|item| item == wanted);
            Some(Value::from(place.ok_or_else(|| not_found("list.index"))?))
        }
        _ => None,
    };
    match found {
        Some(found) => Ok(found),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn not_found(method: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{method}: it is not there"))
}

/// Calls a method of Python's strings; `None` if it is not one of these.
fn string_method(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "rsplit" => {
            let (separator, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(arguments)?;
            let separator = separator.or(named.get("sep")?);
            let most: Option<i64> = most.or(named.get("maxsplit")?);
            named.assert_all_used()?;
            // A negative number means no limit.
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            let mut parts = match separator {
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "rsplit: empty separator")),
                Some(separator) => text.rsplitn(most.saturating_add(1), separator).collect(),
                None => words_from_the_end(text, most),
            };
            parts.reverse();
            Value::from_iter(parts.into_iter().map(Value::from))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let place = if name == "partition" { text.find(separator) } else { text.rfind(separator) };
            let parts = match place {
                Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::from_iter(parts.map(Value::from))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(arguments)?;
            let place = if name == "index" { text.find(part) } else { text.rfind(part) };
            let place = place.ok_or_else(|| not_found(name))?;
            Value::from(text[..place].chars().count())
        }
        "casefold" => Value::from(text.to_lowercase()),
        "swapcase" => {
            let swapped = |c: char| -> String {
                if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
            };
            Value::from(text.chars().map(swapped).collect::<String>())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Value::from(format!("{sign}{}{digits}", padding(text, width, '0')?))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(arguments)?;
            let padding = padding(text, width, fill.unwrap_or(' '))?;
            let count = padding.chars().count();
            // Like Python, puts the odd character on the left if the width is odd.
            let before = match name {
                "ljust" => 0,
                "rjust" => count,
                _ => count / 2 + (count & width & 1),
            };
            let before: String = padding.chars().take(before).collect();
            Value::from(format!("{before}{text}{}", &padding[before.len()..]))
        }
        _ => return Ok(None),
    }))
}

/// Returns the last `most` words of a text, from its end, and then the text before them.
fn words_from_the_end(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let start = rest.rfind(char::is_whitespace).filter(|_| words.len() < most);
        let word = start.map_or(rest, |at| &rest[at..]);
        words.push(word.trim_start());
        rest = rest[..rest.len() - word.len()].trim_end();
    }
    words
}

/// Returns the padding that fills a text up to a width in characters.
fn padding(text: &str, width: usize, fill: char) -> Result<String, Error> {
    const WIDEST: usize = 1 << 16;
    if width > WIDEST {
        let what = format!("a width of {width} is more than {WIDEST}");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    Ok(fill.to_string().repeat(width.saturating_sub(text.chars().count())))
}

/// Fixes the time of `strftime_now`, in seconds since 1970.
pub(super) fn fix_time(environment: &mut Environment<'static>, seconds: i64) {
    let time = chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default().naive_utc();
    environment.add_function("strftime_now", move |format: &str| strftime(time, format));
}

fn strftime(time: chrono::NaiveDateTime, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", time.format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: the format {format:?} is not known"))
    })?;
    Ok(text)
}

/// Python's `json.dumps` with the arguments of transformers' filter: ensure_ascii, indent,
/// separators, sort_keys.
fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    if positional.len() > 4 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.get(place) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match argument(1, "indent")? {
        Some(text) if text.kind() == ValueKind::String => Some(text.to_string()),
        Some(number) => Some(" ".repeat(usize::try_from(i64::try_from(number)?.clamp(0, 64)).unwrap_or(0))),
        None => None,
    };
    let separators = match argument(2, "separators")? {
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            match &pair[..] {
                [item, key] => (item.to_string(), key.to_string()),
                _ => {
                    let what = "tojson: separators are two texts";
                    return Err(Error::new(ErrorKind::InvalidOperation, what));
                }
            }
        }
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let sort = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let mut dump = Dump { text: String::new(), ascii, indent, separators, sort };
    dump.value(value, 0)?;
    Ok(dump.text)
}

struct Dump {
    text: String,
    ascii: bool,
    indent: Option<String>,
    /// Between items, and between key and value.
    separators: (String, String),
    sort: bool,
}

impl Dump {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::new(ErrorKind::BadSerialization, format!("tojson: {what}")));
        if depth > DEPTH {
            return refuse(format!("more than {DEPTH} nested lists"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.text.push_str(&value.to_string()),
            ValueKind::Number => self.text.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], items, depth, |dump, item| dump.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.container(['{', '}'], keys, depth, |dump, key| {
                    match key.as_str() {
                        Some(text) => dump.string(text),
                        // Python writes keys that are not text like values, in quotes.
                        None => {
                            dump.text.push('"');
                            dump.value(&key, depth + 1)?;
                            dump.text.push('"');
                        }
                    }
                    dump.text.push_str(&dump.separators.1.clone());
                    dump.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            other => return refuse(format!("a value of type {other} is not JSON")),
        }
        Ok(())
    }

    fn container(
        &mut self,
        brackets: [char; 2],
        items: Vec<Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(brackets[0]);
        let filled = !items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.text.push_str(&self.separators.0.clone());
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if filled {
            self.line(depth);
        }
        self.text.push(brackets[1]);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            (0..depth).for_each(|_| self.text.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        self.text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }
}

/// Formats a float as Python's `repr` does: the shortest digits that round-trip, with an exponent
/// below 1e-4 and from 1e16.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => {
            let plain = x.to_string();
            if plain.contains('.') { plain } else { format!("{plain}.0") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (x, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
        ] {
            assert_eq!(float(x), expected);
        }
    }
}
