//! Streams tokens as text: text is released once its characters are complete and it cannot be part
//! of a stop string.

use crate::Result;
use crate::data::Tokens;
use crate::data::pieces::PieceDecoder;

/// Decodes the tokens of one text, one by one.
#[derive(Clone)]
pub struct StreamDecoder<'a> {
    pieces: PieceDecoder<'a>,
    stop: &'a [String],
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl<'a> StreamDecoder<'a> {
    /// Creates a decoder for a text that ends before the first of the `stop` strings.
    pub fn new(tokens: &'a Tokens, stop: &'a [String]) -> Self {
        StreamDecoder { pieces: PieceDecoder::new(tokens, false), stop, held: String::new(), stopped: false }
    }

    /// Decodes these tokens to their whole text, up to the first stop string.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn decode(tokens: &'a Tokens, stop: &'a [String], ids: &[u32]) -> Result<String> {
        let mut stream = Self::new(tokens, stop);
        let mut text = String::new();
        for &id in ids {
            text += &stream.push(id)?;
        }
        Ok(text + &stream.finish()?)
    }

    /// Adds the next token and returns the text that has become certain, which may be empty.
    /// Special tokens have no text, and there is none after a stop string.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let new = self.pieces.push(id)?;
        if new.is_empty() {
            return Ok(new);
        }
        self.held += &new;
        Ok(self.release(false))
    }

    /// Ends the text and returns what was held back.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn finish(&mut self) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        self.held += &self.pieces.finish()?;
        Ok(self.release(true))
    }

    /// Whether a stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes the text from `held` in which no stop string can begin, or all of it at the end. A
    /// stop string ends the text.
    fn release(&mut self, end: bool) -> String {
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let open = |at: usize| self.stop.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let mut places = self.held.char_indices().map(|(at, _)| at);
        match places.find(|&at| !end && open(at)) {
            Some(at) => {
                let rest = self.held.split_off(at);
                std::mem::replace(&mut self.held, rest)
            }
            None => std::mem::take(&mut self.held),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::*;

    fn tokens(vocabulary: &HashMap<String, usize>, decoder: Value) -> Tokens {
        let folder = tempfile::tempdir().unwrap();
        let added = json!([{"id": 0, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
                            "rstrip": false, "normalized": false}]);
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        std::fs::write(folder.path().join("tokenizer.json"), whole.to_string()).unwrap();
        Tokens::open(folder.path()).unwrap()
    }

    /// A tokenizer with a token for each byte: 1 + the byte. Token 0 is special.
    fn bytes() -> Tokens {
        let shown = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
        let mut unshown = 256..;
        let letter = |b: u8| if shown(b) { u32::from(b) } else { unshown.next().unwrap() };
        let letters = (0..=255).map(letter).map(|code| char::from_u32(code).unwrap().to_string());
        let mut vocabulary: HashMap<String, usize> = letters.zip(1..).collect();
        vocabulary.insert("<end>".into(), 0);
        tokens(
            &vocabulary,
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        )
    }

    fn ids(bytes: &[u8]) -> Vec<u32> {
        bytes.iter().map(|b| u32::from(*b) + 1).collect()
    }

    /// Returns the text that each token releases and the rest, and whether a stop string was found.
    fn pieces(tokens: &Tokens, stop: &[&str], ids: &[u32]) -> (Vec<String>, bool) {
        let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
        let mut stream = StreamDecoder::new(tokens, &stop);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        assert_eq!(StreamDecoder::decode(tokens, &stop, ids).unwrap(), pieces.concat());
        (pieces, stream.stopped())
    }

    #[test]
    fn characters_come_whole() {
        let text = "né 日\u{1f642}!";
        let (pieces, _) = pieces(&bytes(), &[], &ids(text.as_bytes()));
        assert_eq!(pieces, ["n", "", "é", " ", "", "", "日", "", "", "", "\u{1f642}", "!", ""]);
    }

    #[test]
    fn broken_bytes_are_shown_once_they_are_certain() {
        let tokens = bytes();
        assert_eq!(pieces(&tokens, &[], &ids(b"a\xe6\x97b")).0.concat(), "a\u{fffd}b");
        assert_eq!(pieces(&tokens, &[], &ids(b"a\xe6\x97")).0, ["a", "", "", "\u{fffd}"]);
        assert_eq!(pieces(&tokens, &[], &ids(b"\x80\x80z")).0.concat(), "\u{fffd}\u{fffd}z");
    }

    #[test]
    fn special_tokens_have_no_text() {
        let (pieces, _) = pieces(&bytes(), &[], &[98, 0, 99, 0]);
        assert_eq!(pieces, ["a", "", "b", "", ""]);
    }

    #[test]
    fn a_possible_start_of_a_stop_string_is_held() {
        let tokens = bytes();
        let (got, stopped) = pieces(&tokens, &["END", "NO"], &ids(b"xENOy"));
        assert_eq!((got.concat().as_str(), stopped), ("xE", true));
        let (got, stopped) = pieces(&tokens, &["END"], &ids(b"xENENDy"));
        assert_eq!((got, stopped), (["x", "", "", "EN", "", "", "", ""].map(String::from).into(), true));
        let (got, stopped) = pieces(&tokens, &["END"], &ids(b"xENE"));
        assert_eq!((got, stopped), (["x", "", "", "EN", "E"].map(String::from).into(), false));
        // The stop string that occurs first counts, not the one that is listed first.
        let (got, _) = pieces(&tokens, &["b", "a"], &ids(b"-ab"));
        assert_eq!(got.concat(), "-");
    }

    #[test]
    fn stop_strings_of_wide_characters() {
        let tokens = bytes();
        let (got, stopped) = pieces(&tokens, &["。終"], &ids("日。本。終り".as_bytes()));
        assert_eq!((got.concat().as_str(), stopped), ("日。本", true));
        // Equal first bytes do not make equal characters.
        let (got, stopped) = pieces(&tokens, &["日"], &ids("旦".as_bytes()));
        assert_eq!((got.concat().as_str(), stopped), ("旦", false));
    }

    #[test]
    fn words_with_their_spaces_and_fallback_bytes() {
        let pieces_of = ["<end>", "▁Hello", "▁", "▁world", "<0xE6>", "<0x97>", "<0xA5>", "s"];
        let vocabulary: HashMap<String, usize> = pieces_of.iter().map(|p| p.to_string()).zip(0..).collect();
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let tokens = tokens(&vocabulary, decoder);
        let ids = [1, 2, 3, 0, 2, 4, 5, 6, 7, 3];
        let (got, _) = pieces(&tokens, &[], &ids);
        assert_eq!(got, ["Hello", " ", " world", "", " ", "", "", "日", "s", " world", ""]);
        assert_eq!(got.concat(), tokens.decode(&ids).unwrap());
    }
}
