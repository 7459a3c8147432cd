//! Splits texts into words, as each metric does.
//!
//! White space is that of Python's `str.split`, which the packages that define the metrics use.

/// Unicode's white space and the four separators U+001C to U+001F.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Puts a space between two neighbours that fit, and `before` and `behind` around the pair. As with
/// a regular expression, a pair begins after the previous pair.
fn spaced(text: &str, fit: fn(char, char) -> bool, before: &str, behind: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 4);
    let mut chars = text.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.next_if(|&b| fit(a, b)) {
            Some(b) => {
                out.push_str(before);
                out.extend([a, ' ', b]);
                out.push_str(behind);
            }
            None => out.push(a),
        }
    }
    out
}

/// WMT's tokenisation mteval-v13a as in sacrebleu, whose default it is; case is kept.
pub(super) fn mteval_13a(text: &str) -> Vec<String> {
    let mut line = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "");
    if line.contains('&') {
        for (entity, sign) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            line = line.replace(entity, sign);
        }
    }
    // for the rules below, the line's ends count as spaces
    let mut text = String::with_capacity(2 * line.len() + 2);
    text.push(' ');
    for c in line.chars() {
        match c {
            '\n' => text.push(' '),
            '!'..='&' | '('..='+' | '/' | ':'..='@' | '['..='`' | '{'..='~' => text.extend([' ', c, ' ']),
            _ => text.push(c),
        }
    }
    text.push(' ');
    // periods and commas stay between digits, dashes stay unless a digit precedes them
    let text = spaced(&text, |a, b| !a.is_ascii_digit() && matches!(b, '.' | ','), "", " ");
    let text = spaced(&text, |a, b| matches!(a, '.' | ',') && !b.is_ascii_digit(), " ", "");
    let text = spaced(&text, |a, b| a.is_ascii_digit() && b == '-', "", " ");
    words(&text).map(str::to_owned).collect()
}

/// The words of [`mteval_13a`] in lower case, without words of only sentence punctuation. This is
/// close to the Penn Treebank tokenisation with which image captions are measured, which needs a
/// Java program.
pub(super) fn caption(text: &str) -> Vec<String> {
    let punctuation = |word: &str| word.chars().all(|c| ".,;:!?'`\"-()[]{}".contains(c));
    mteval_13a(text).iter().filter(|word| !punctuation(word)).map(|word| word.to_lowercase()).collect()
}

/// rouge-score's words: runs of a to z and 0 to 9 in the lower-case text.
pub(super) fn rouge(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected words: Tokenizer13a of sacrebleu 2.6.0 and DefaultTokenizer of rouge-score 0.1.2.

    #[test]
    fn words_are_those_of_the_packages() {
        let golden = include_str!("../../../../../tests/golden/text_metrics.json");
        let golden: serde_json::Value = serde_json::from_str(golden).expect("JSON");
        let texts = golden["words"].as_array().expect("texts");
        assert!(texts.len() > 20, "{} texts", texts.len());
        for entry in texts {
            let text = entry["text"].as_str().expect("a text");
            assert_eq!(serde_json::json!(mteval_13a(text)), entry["mteval_13a"], "{text:?}");
            assert_eq!(serde_json::json!(rouge(text)), entry["rouge"], "{text:?}");
        }
    }

    #[test]
    fn periods_and_commas_stay_in_numbers() {
        assert_eq!(
            mteval_13a("It costs $1,234.50, e.g. 3-4.").join(" "),
            "It costs $ 1,234.50 , e . g . 3 - 4 ."
        );
    }

    #[test]
    fn marks_of_the_web_are_read() {
        assert_eq!(
            mteval_13a("a &amp;lt; b<skipped> hyphen-\nated\u{1c}end").join("|"),
            "a|<|b|hyphenated|end"
        );
    }

    #[test]
    fn captions_lose_case_and_punctuation() {
        assert_eq!(caption("The \"Eagle\" isn't £20 -- (cheap)...").join(" "), "the eagle isn't £20 cheap");
    }

    #[test]
    fn rouge_knows_ascii_only() {
        // the Kelvin sign becomes k in lower case
        assert_eq!(rouge("Café_No. 5: 10\u{212a} 東京").join(" "), "caf no 5 10k");
    }
}
