//! Converts a tokenizer.json to the metadata of a GGUF file, the reverse of this module's reader.
//!
//! The two formats differ in two things: how byte-level text is split into words (a GGUF file only
//! names the rule) and the merges of SentencePiece's BPE (a GGUF file has scores instead). Both are
//! checked on sample texts before they are written.

use std::collections::HashSet;
use std::path::Path;

use lora_drop_transformer::gguf::{Array, Value};
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use tokenizers::models::bpe::Vocab;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::tokenizer::normalizer::NormalizedString;
use tokenizers::{Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

use super::split::KINDS;
use super::{Error, sentence_piece, text, token_type};
use crate::data::text::{ChatTemplate, SpecialTokens};

/// Texts on which the split rules differ: contractions, digits, capitals, marks, signs, white
/// space.
const PROBES: [&str; 8] = [
    "Hello world, it's 12345 o'clock. WE'LL see 3.14 and IT'S",
    "camelCase HTTPServer parseJSON2 a.//b x/y/z ////\n///",
    "  two   spaces\n\n\ttab\r\n  \n end  ",
    "e\u{301}te\u{301} caf\u{e9} na\u{ef}ve \u{fb01}ne \u{212b}",
    "\u{43f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{4f60}\u{597d}\u{4e16}\u{754c} \u{645}\u{631}\u{62d}\u{628}\u{627} \u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{e2a}\u{e27}\u{e31}\u{e2a}\u{e14}\u{e35}",
    "\u{1f600}\u{1f468}\u{200d}\u{1f469} \u{661}\u{662}\u{663} \u{b2}\u{bd}\u{2167}",
    "if (x >= 10) { return \"a\\n\" + y[0]; } // done!!!",
    "don't DON'T \u{2019}s 'tis 1,000,000 50% #tag @name a_b-c",
];

/// The fields of tokenizer.json's `model` that are needed of BPE.
#[derive(Deserialize)]
struct Bpe {
    merges: Vec<(String, String)>,
    byte_fallback: bool,
    ignore_merges: bool,
}

/// Returns the keys `tokenizer.*` for a model's folder: tokens, merges or scores, special tokens,
/// chat template.
///
/// `config` is the folder's config.json, `vocabulary` the number of the embedding's rows; a row
/// without a token gets a placeholder that occurs in no text.
///
/// # Errors
/// The kind of tokenizer cannot be written as GGUF, a file of the folder is not valid, or the
/// tokenizer has tokens that the model does not have.
pub fn tokenizer_metadata(
    folder: &Path,
    tokenizer: &Tokenizer,
    config: &Map<String, Json>,
    vocabulary: usize,
) -> Result<Vec<(String, Value)>, Error> {
    let path = folder.join("tokenizer.json");
    let mut metadata =
        tokens_and_model(tokenizer, vocabulary).map_err(|message| Error::file(&path, message))?;
    let special = SpecialTokens::read(folder)?;
    let mut named = Vec::new();
    for (name, gguf) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        let token = special.get(&format!("{name}_token")).and_then(|token| tokenizer.token_to_id(token));
        let id = config.get(&format!("{name}_token_id"));
        // config.json may have a list of ids; the first one counts.
        let id = id.and_then(|id| id.get(0).unwrap_or(id).as_u64()).and_then(|id| u32::try_from(id).ok());
        let id = token.or(id).filter(|id| (*id as usize) < vocabulary);
        named.push(id);
        metadata.extend(id.map(|id| (format!("tokenizer.ggml.{gguf}_token_id"), Value::U32(id))));
    }
    let ids = |special: bool| -> Result<Vec<u32>, Error> {
        let encoding = tokenizer.encode("a", special).map_err(|e| Error::file(&path, e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    };
    let (plain, framed) = (ids(false)?, ids(true)?);
    let adds = |id: Option<u32>, place: Option<&u32>| {
        Value::Bool(framed.len() > plain.len() && id.is_some() && place.copied() == id)
    };
    metadata.push(("tokenizer.ggml.add_bos_token".into(), adds(named[0], framed.first())));
    metadata.push(("tokenizer.ggml.add_eos_token".into(), adds(named[1], framed.last())));
    if let Some((_, template)) = ChatTemplate::source(folder)? {
        metadata.push(("tokenizer.chat_template".into(), template.as_str().into()));
    }
    Ok(metadata)
}

fn tokens_and_model(tokenizer: &Tokenizer, vocabulary: usize) -> Result<Vec<(String, Value)>, String> {
    let model = serde_json::to_value(tokenizer.get_model()).map_err(|e| e.to_string())?;
    let kind = model["type"].as_str().unwrap_or_default();
    if kind != "BPE" {
        return Err(format!(
            "a {kind} tokenizer cannot be written as GGUF, expected BPE; merge to safetensors instead"
        ));
    }
    let bpe = Bpe::deserialize(&model).map_err(|e| e.to_string())?;
    let added = tokenizer.get_added_tokens_decoder();
    let mut tokens = vec![None; vocabulary];
    for (token, id) in tokenizer.get_vocab(true) {
        let seen = format!("token {token:?} has the number {id}, the model has {vocabulary} tokens");
        *tokens.get_mut(id as usize).ok_or(seen)? = Some(token);
    }
    let unknown = model["unk_token"].as_str().filter(|_| bpe.byte_fallback);
    let kinds: Vec<i32> = (0u32..)
        .zip(&tokens)
        .map(|(id, token)| match (token.as_deref(), added.get(&id)) {
            (None, _) => token_type::UNUSED,
            (Some(token), _) if Some(token) == unknown => token_type::UNKNOWN,
            (_, Some(added)) if added.special => token_type::CONTROL,
            (_, Some(_)) => token_type::USER_DEFINED,
            (Some(token), _) if bpe.byte_fallback && is_byte(token) => token_type::BYTE,
            _ => token_type::NORMAL,
        } as i32)
        .collect();
    let named = |(id, token): (usize, Option<String>)| token.unwrap_or_else(|| format!("[PAD{id}]"));
    let tokens: Vec<String> = tokens.into_iter().enumerate().map(named).collect();
    let mut metadata = match bpe.byte_fallback {
        true => scored(tokenizer, &tokens, &bpe.merges, unknown)?,
        false => byte_level(tokenizer, &bpe)?,
    };
    metadata.push(("tokenizer.ggml.token_type".into(), Value::Array(Array::I32(kinds))));
    metadata.push(("tokenizer.ggml.tokens".into(), Value::Array(Array::String(tokens))));
    Ok(metadata)
}

/// Returns the keys of byte-level BPE, with the first known split rule that cuts the probes as the
/// tokenizer does.
fn byte_level(tokenizer: &Tokenizer, bpe: &Bpe) -> Result<Vec<(String, Value)>, String> {
    let expected = words(tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer())?;
    let mut found = None;
    for kind in &KINDS {
        let composed = kind.composes.then_some(&NFC);
        if kind.ignores_merges == bpe.ignore_merges
            && words(composed, Some(&kind.pre_tokenizer()?))? == expected
        {
            found = Some(kind.names[0]);
            break;
        }
    }
    let Some(found) = found else {
        return Err(format!(
            "it splits text in a way that a GGUF file cannot name, expected one of {}; merge to safetensors instead",
            KINDS.each_ref().map(|kind| kind.names[0]).join(", ")
        ));
    };
    let merges = bpe.merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    Ok(vec![
        ("tokenizer.ggml.model".into(), "gpt2".into()),
        ("tokenizer.ggml.pre".into(), found.into()),
        ("tokenizer.ggml.merges".into(), Value::Array(Array::String(merges))),
    ])
}

/// Normalises the probes and splits them into words.
fn words(
    normalizer: Option<&impl Normalizer>,
    pre_tokenizer: Option<&impl PreTokenizer>,
) -> Result<Vec<Vec<String>>, String> {
    let split = |probe: &str| -> tokenizers::Result<Vec<String>> {
        let mut normalized = NormalizedString::from(probe);
        normalizer.map_or(Ok(()), |n| n.normalize(&mut normalized))?;
        let mut pieces = PreTokenizedString::from(normalized);
        pre_tokenizer.map_or(Ok(()), |p| p.pre_tokenize(&mut pieces))?;
        let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        Ok(splits.into_iter().map(|(piece, _, _)| piece.to_string()).collect())
    };
    PROBES.iter().map(|probe| split(probe)).collect::<Result<_, _>>().map_err(text)
}

/// Returns the keys of SentencePiece's BPE, with scores that imply the same merges: a token's score
/// is minus the rank of the first merge that makes it.
fn scored(
    tokenizer: &Tokenizer,
    tokens: &[String],
    merges: &[(String, String)],
    unknown: Option<&str>,
) -> Result<Vec<(String, Value)>, String> {
    let vocabulary: Vocab = tokens.iter().cloned().zip(0..).collect();
    let mut scores = vec![-(merges.len() as f32); tokens.len()];
    let mut seen = HashSet::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        if let Some(&id) = vocabulary.get(&format!("{left}{right}"))
            && seen.insert(id)
        {
            scores[id as usize] = -(rank as f32);
        }
    }
    let ids = |tokenizer: &Tokenizer| -> Result<Vec<Vec<u32>>, String> {
        let encode = |probe: &&str| Ok(tokenizer.encode(*probe, false).map_err(text)?.get_ids().to_vec());
        PROBES.iter().map(encode).collect()
    };
    let first = tokenizer.encode("a", false).map_err(text)?;
    let prefix = first.get_tokens().first().is_some_and(|token| token.starts_with('▁'));
    let implied = sentence_piece::merges(tokens, &scores, &vocabulary);
    let known: HashSet<_> = implied.iter().collect();
    let all_there = merges.iter().all(|merge| known.contains(merge));
    let rebuilt = sentence_piece::tokenizer(vocabulary, implied.clone(), unknown.map(String::from), prefix)?;
    if !all_there || ids(&rebuilt)? != ids(tokenizer)? {
        return Err(
            "its merges do not follow from scores of tokens, and a GGUF file has only scores for this kind; \
                    merge to safetensors instead"
                .into(),
        );
    }
    Ok(vec![
        ("tokenizer.ggml.model".into(), "llama".into()),
        ("tokenizer.ggml.pre".into(), "default".into()),
        ("tokenizer.ggml.scores".into(), Value::Array(Array::F32(scores))),
        ("tokenizer.ggml.add_space_prefix".into(), Value::Bool(prefix)),
    ])
}

/// Whether a token is SentencePiece's spelling of a byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}
