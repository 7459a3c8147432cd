//! Extracts the number that a text ends in, as GSM8K's answers are compared.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::check;
use crate::{Error, Result};

/// Sign, currency, digits. A comma between digits separates thousands, a dot without digits after
/// it ends a sentence.
const NUMBER: &str = r"([-−])?[$€£¥₹]?([0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)";

static ANYWHERE: LazyLock<Regex> = LazyLock::new(|| Regex::new(NUMBER).expect("a sound pattern"));
static MARKED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!(r"####\s*{NUMBER}")).expect("a sound pattern"));

/// Returns the number directly after the first `####` that has one, otherwise the last number of
/// the text; `None` without a number.
///
/// The first mark counts because a model that does not stop continues with further questions and
/// answers.
pub fn final_number(text: &str) -> Option<f64> {
    let captures = MARKED.captures(text).or_else(|| ANYWHERE.captures_iter(text).last())?;
    value(text, &captures)
}

fn value(text: &str, captures: &Captures) -> Option<f64> {
    let digits = captures.get(2)?;
    let behind_word = |start: usize| text[..start].chars().next_back().is_some_and(char::is_alphanumeric);
    // "No.5" is 5, and "10-20" ends in 20
    let written = match digits.as_str().strip_prefix('.') {
        Some(fraction) if behind_word(digits.start()) => fraction,
        _ => digits.as_str(),
    };
    let number: f64 = written.replace(',', "").parse().ok()?;
    let negative = captures.get(1).is_some_and(|sign| !behind_word(sign.start()));
    Some(if negative { -number } else { number })
}

/// Returns the share of rows, from 0 to 1, whose hypothesis ends in the same number as one of its
/// references ([`final_number`]).
///
/// # Errors
/// See [`evaluate`](super::evaluate); also a row whose references hold no number.
pub fn exact_match(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64> {
    check(hypotheses, references)?;
    let mut right = 0;
    for (row, (hypothesis, references)) in hypotheses.iter().zip(references).enumerate() {
        let failed = |problem| Error::Input(format!("row {}: {problem}", row + 1));
        let wanted = wanted(references).map_err(failed)?;
        right += usize::from(final_number(hypothesis).is_some_and(|number| wanted.contains(&number)));
    }
    Ok(right as f64 / hypotheses.len() as f64)
}

/// Returns the final numbers of a row's references; at least one of them must have a number. The
/// message does not name the row.
pub(super) fn wanted(references: &[String]) -> std::result::Result<Vec<f64>, String> {
    let wanted: Vec<f64> = references.iter().filter_map(|text| final_number(text)).collect();
    if wanted.is_empty() {
        let first: String = references[0].chars().take(60).collect();
        return Err(format!("no reference holds a number ({first:?}); exact_match compares final numbers"));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_write_them() {
        let cases = [
            ("She has 3 + 4 = <<3+4=7>>7 eggs.\n#### 7", Some(7.0)),
            ("#### $1,234,567.50.", Some(1_234_567.5)),
            ("The total is $1,200.", Some(1200.0)),
            ("#### 18\n\nQuestion: how many?\n#### 20", Some(18.0)),
            ("#### Step 2\nso it is 9", Some(9.0)),
            ("####-5", Some(-5.0)),
            ("a loss of -$5", Some(-5.0)),
            ("it is −3 degrees", Some(-3.0)),
            ("from 10-20", Some(20.0)),
            ("16 - 3", Some(3.0)),
            ("No.5", Some(5.0)),
            ("costs $.50", Some(0.5)),
            ("18.00", Some(18.0)),
            ("50%", Some(50.0)),
            ("3, 4, and 5, I think", Some(5.0)),
            ("7...", Some(7.0)),
            ("no number ####", None),
            ("", None),
            ("٣", None),
        ];
        for (text, expected) in cases {
            assert_eq!(final_number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn rows_are_compared_as_numbers() {
        let hypotheses = ["it is 1,000.", "4", "none", "#### 2.50"].map(str::to_owned);
        let references = [vec!["#### 1000"], vec!["#### 5", "#### 4"], vec!["#### 1"], vec!["#### 2.5"]];
        let references = references.map(|of| of.into_iter().map(str::to_owned).collect());
        assert_eq!(exact_match(&hypotheses, &references).expect("a share"), 0.75);
        let message = exact_match(&hypotheses[..1], &[vec!["many".into()]]).expect_err("refused").to_string();
        assert_eq!(
            message,
            "row 1: no reference holds a number (\"many\"); exact_match compares final numbers"
        );
    }
}
