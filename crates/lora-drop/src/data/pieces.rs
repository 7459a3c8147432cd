//! Incremental decoding: the shortest runs of tokens whose text is whole characters.

use super::error::Error;
use super::tokens::Tokens;

/// The replacement character, to which a byte of an incomplete character is decoded.
const INCOMPLETE: char = '\u{fffd}';

/// Decodes the tokens of one text, one by one.
#[derive(Clone)]
pub(crate) struct PieceDecoder<'a> {
    tokens: &'a Tokens,
    /// Whether special tokens are decoded to text.
    special: bool,
    /// The `read` tokens of the last piece, and the tokens after them. They are decoded together,
    /// because decoders treat a text's first token differently.
    window: Vec<u32>,
    read: usize,
}

impl<'a> PieceDecoder<'a> {
    pub fn new(tokens: &'a Tokens, special: bool) -> Self {
        PieceDecoder { tokens, special, window: Vec::new(), read: 0 }
    }

    /// Adds the next token and returns the text that has become certain, which may be empty.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.window.push(id);
        let new = self.unread()?;
        if new.is_empty() || new.ends_with(INCOMPLETE) {
            return Ok(String::new());
        }
        self.window.drain(..self.read);
        self.read = self.window.len();
        Ok(new)
    }

    /// Ends the text and returns what is left of it.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn finish(&mut self) -> Result<String, Error> {
        let rest = self.unread()?;
        self.read = self.window.len();
        Ok(rest)
    }

    /// Returns the text that has not been returned yet.
    fn unread(&self) -> Result<String, Error> {
        let decode = |ids: &[u32]| match self.special {
            true => self.tokens.decode_all(ids),
            false => self.tokens.decode(ids),
        };
        let before = decode(&self.window[..self.read])?;
        let mut now = decode(&self.window)?;
        let at = before.chars().zip(now.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        Ok(now.split_off(at))
    }
}

impl Tokens {
    /// Decodes tokens to pieces of whole characters, special tokens included, each with its number
    /// of tokens. Concatenated, the pieces are the text as the tokenizer decodes it.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<(String, usize)>, Error> {
        let mut decoder = PieceDecoder::new(self, true);
        let (mut pieces, mut count) = (Vec::new(), 0);
        for &id in ids {
            count += 1;
            let text = decoder.push(id)?;
            if !text.is_empty() {
                pieces.push((text, std::mem::take(&mut count)));
            }
        }
        if count > 0 {
            pieces.push((decoder.finish()?, count));
        }
        Ok(pieces)
    }
}
