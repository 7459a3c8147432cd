//! The added tokens of a model's folder that transformers (5.x) takes from files other than
//! tokenizer.json: `added_tokens_decoder` and the named special tokens of tokenizer_config.json,
//! and the older added_tokens.json and special_tokens_map.json.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

/// The special tokens that every tokenizer may have, in transformers' order.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Keys of lists of further special tokens.
const EXTRA: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// The three files' objects; an absent one is empty.
pub(super) struct TokenFiles {
    pub config: Map<String, Value>,
    pub special_tokens_map: Map<String, Value>,
    pub added_tokens: Map<String, Value>,
}

/// Adds the tokens as transformers does: those of `added_tokens_decoder` in the order of their ids,
/// then the special tokens that are not yet added. A token in the vocabulary keeps its id; others
/// get the next ones, whatever ids the files give them.
///
/// # Errors
/// A message with the key whose value is not a token, or the tokenizers library's.
pub(super) fn add(tokenizer: &mut Tokenizer, files: TokenFiles) -> Result<(), String> {
    let tokens = tokens(&files, tokenizer)?;
    tokenizer.add_tokens(tokens).map(drop).map_err(|e| format!("its added tokens: {e}"))
}

fn tokens(files: &TokenFiles, tokenizer: &Tokenizer) -> Result<Vec<AddedToken>, String> {
    let mut values = files.config.clone();
    let listed = match values.remove("added_tokens_decoder") {
        Some(Value::Object(list)) => Some(list),
        None | Some(Value::Null) => None,
        Some(other) => return Err(format!("added_tokens_decoder is {other}, expected an object")),
    };
    // The older files count only without `added_tokens_decoder`.
    if listed.is_none() {
        values.extend(files.special_tokens_map.clone());
    }
    let (mut named, mut extra) = (Vec::new(), Vec::new());
    let own = values.keys().filter(|key| key.ends_with("_token") && !NAMED.contains(&key.as_str()));
    for key in NAMED.into_iter().chain(own.map(String::as_str)) {
        // Settings such as add_bos_token are true or false.
        let of_token = |value: &&Value| value.is_string() || value.get("content").is_some();
        if let Some(value) = values.get(key).filter(of_token) {
            named.push(token(key, value, true)?);
        }
    }
    for key in EXTRA {
        match values.get(key) {
            Some(Value::Array(list)) => {
                extra
                    .extend(list.iter().map(|value| token(key, value, true)).collect::<Result<Vec<_>, _>>()?);
            }
            // Special tokens under names of the model's own.
            Some(Value::Object(own)) => {
                named.extend(
                    own.values().map(|value| token(key, value, true)).collect::<Result<Vec<_>, _>>()?,
                );
            }
            _ => {}
        }
    }
    let mut by_number: BTreeMap<u64, AddedToken> = BTreeMap::new();
    for (number, value) in listed.iter().flatten() {
        let wrong = || format!("added_tokens_decoder has the key {number:?}, expected a token's number");
        by_number.insert(number.parse().map_err(|_| wrong())?, token("added_tokens_decoder", value, false)?);
    }
    for (content, number) in files.added_tokens.iter().filter(|_| listed.is_none()) {
        let wrong =
            || format!("added_tokens.json: the number of {content:?} is {number}, expected a token's number");
        let special = named.iter().chain(&extra).any(|token| token.content == *content);
        by_number.insert(number.as_u64().ok_or_else(wrong)?, AddedToken::from(content.clone(), special));
    }

    let mut tokens: Vec<AddedToken> = by_number.into_values().collect();
    let is_named = |content: &str| named.iter().any(|token| token.content == content);
    tokens.iter_mut().for_each(|token| token.special |= is_named(&token.content));
    let known = tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content);
    let mut known: HashSet<String> = known.chain(tokens.iter().map(|token| token.content.clone())).collect();
    tokens.extend(named.into_iter().chain(extra).filter(|token| known.insert(token.content.clone())));
    Ok(tokens)
}

/// Parses a token, a text or an object with its rules; `special` applies if the object does not
/// say.
fn token(key: &str, value: &Value, special: bool) -> Result<AddedToken, String> {
    let wrong = || format!("{key} has {value}, expected a token's text or an object with its content");
    let object = match value {
        Value::String(content) => return Ok(AddedToken::from(content.clone(), special)),
        value => value.as_object().ok_or_else(wrong)?,
    };
    let content = object.get("content").and_then(Value::as_str).ok_or_else(wrong)?;
    let flag = |name: &str| object.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special)))
}
