//! Limits on the cost of the rules of a tokenizer.json. The tokenizers crate applies all rules: ten
//! that write ten letters for one turn a letter into ten billion, and a compiled pattern takes
//! hundreds of times the memory of its text.

use serde::Deserialize;
use serde_json::Value;

/// Largest factor by which rules may lengthen a text, far above any model's: SentencePiece's rules
/// together with a prefix and byte-level spelling stay below 100.
const MOST: f64 = 1000.0;
/// Largest total size of all patterns, in bytes. Models for a hundred languages have some hundred
/// bytes of patterns.
const MOST_PATTERNS: usize = 4096;

/// The parts of tokenizer.json that rewrite texts.
#[derive(Deserialize)]
struct Rules {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

/// Checks the rules of a tokenizer.json. A text that is not JSON passes, as the tokenizers crate
/// has the better message.
///
/// # Errors
/// The rules can make a text more than a thousand times as long, their patterns are longer than any
/// model's, or they are ambiguous because a part occurs twice.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let rules: Rules = match serde_json::from_slice(file) {
        Ok(rules) => rules,
        Err(e) if e.is_data() && file.trim_ascii_start().starts_with(b"{") => return Err(e.to_string()),
        Err(_) => return Ok(()),
    };
    let encoding = growth(&rules.normalizer) * growth(&rules.pre_tokenizer) * growth(&rules.post_processor);
    for (what, growth) in [("to tokens", encoding), ("from tokens", growth(&rules.decoder))] {
        // Infinity times zero is NaN, and above the limit too.
        if growth.is_nan() || growth > MOST {
            return Err(format!(
                "its rules on the way {what} can make a text {growth:.0} times as long, expected at most {MOST}"
            ));
        }
    }
    let parts = [&rules.normalizer, &rules.pre_tokenizer, &rules.post_processor, &rules.decoder];
    let patterns: usize = parts.into_iter().map(patterns).sum();
    if patterns > MOST_PATTERNS {
        return Err(format!(
            "the patterns of its rules have {patterns} bytes together, expected at most {MOST_PATTERNS}"
        ));
    }
    Ok(())
}

/// Returns the rules that a list rule contains.
fn within(rule: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["normalizers", "pretokenizers", "processors", "decoders"];
    lists.into_iter().filter_map(|key| rule[key].as_array()).flatten()
}

/// Returns the bytes of the patterns of a rule and of the rules within it. All patterns are
/// compiled, even plain texts.
fn patterns(rule: &Value) -> usize {
    let own = ["Regex", "String"].iter().filter_map(|kind| rule["pattern"][*kind].as_str()).map(str::len);
    own.sum::<usize>() + within(rule).map(patterns).sum::<usize>()
}

/// Returns the factor by which a rule can lengthen a text. Rules are recognised by their keys, as
/// old files have no `type`.
fn growth(rule: &Value) -> f64 {
    let text = |key: &str| rule[key].as_str().map(|text| text.len() as f64);
    let mut factor: f64 = within(rule).map(growth).product();
    if let Some(content) = text("content") {
        // A regular expression may match a single byte, or the empty text between any two.
        factor *= match rule["pattern"]["String"].as_str().map(str::len) {
            Some(length) if length > 0 => (content / length as f64).max(1.0),
            _ => 1.0 + content,
        };
    }
    factor *= 1.0 + text("prepend").unwrap_or_default();
    factor *= text("replacement").unwrap_or_default().max(1.0);
    // Byte-level spelling has up to two bytes for one.
    if rule.get("trim_offsets").is_some() || rule["type"] == "ByteLevel" {
        factor *= 2.0;
    }
    // Each of a template's pieces may be the text.
    let pieces = ["single", "pair"].iter().filter_map(|key| rule[*key].as_array()).map(Vec::len);
    factor * pieces.max().unwrap_or(1).max(1) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(file: Value) -> Result<(), String> {
        check(file.to_string().as_bytes())
    }

    #[test]
    fn usual_rules_pass() {
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let spaces = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u{2581}"});
        let prefix = json!({"type": "Prepend", "prepend": "\u{2581}"});
        let mark = json!({"SpecialToken": {"id": "[CLS]", "type_id": 0}});
        let file = json!({
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, prefix, space, spaces]},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "post_processor": {"type": "TemplateProcessing", "single": [mark], "pair": [mark, mark, mark, mark, mark]},
            "decoder": null,
        });
        assert_eq!(of(file), Ok(()));
        assert_eq!((check(b"not JSON"), check(b"{\"normalizer\": null")), (Ok(()), Ok(())));
    }

    #[test]
    fn rules_that_multiply_are_refused() {
        let rule = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
        let untyped = json!({"pattern": {"Regex": ""}, "content": "aaa"});
        let template =
            json!({"type": "TemplateProcessing", "single": vec![json!({"Sequence": {"id": "A"}}); 4]});
        let bytes = json!({"type": "ByteLevel"});
        // A key that the rule does not have must not lower the factor.
        let mut hidden = rule.clone();
        hidden["replacement"] = json!("");
        for (part, list, rule) in [
            ("normalizer", "normalizers", rule.clone()),
            ("normalizer", "normalizers", untyped),
            ("normalizer", "normalizers", hidden),
            ("pre_tokenizer", "pretokenizers", bytes),
            ("post_processor", "processors", template),
            ("decoder", "decoders", rule),
        ] {
            let file = json!({part: {"type": "Sequence", list: vec![rule; 10]}});
            let problem = of(file).expect_err(part);
            assert!(problem.contains("times as long, expected at most 1000"), "{problem}");
        }
        // Patterns are counted at any depth.
        let split = json!({"type": "Split", "pattern": {"Regex": "\\p{L}".repeat(400)}});
        let of_splits = |count| {
            let splits = json!({"type": "Sequence", "pretokenizers": vec![split.clone(); count]});
            of(json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [splits]}}))
        };
        assert_eq!(of_splits(2), Ok(()));
        let problem = of_splits(3).expect_err("6,000 bytes");
        assert!(problem.contains("have 6000 bytes together, expected at most 4096"), "{problem}");
        // Readers take the last of two equal keys, so duplicates are refused.
        let twice = check(br#"{"normalizer": null, "normalizer": null}"#).expect_err("twice");
        assert!(twice.contains("duplicate field `normalizer`"), "{twice}");
    }
}
