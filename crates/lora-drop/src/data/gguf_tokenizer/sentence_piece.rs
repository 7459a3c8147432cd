//! SentencePiece's BPE: the piece with the best score is merged first, and bytes stand for unknown
//! characters.

use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use super::text;

/// SentencePiece's spelling of a space.
const SPACE: char = '▁';

/// Returns the merges that the scores imply, best first: every pair of tokens that concatenate to a
/// token, with that token's score. Among equal scores, longer left parts come first, then longer
/// right parts, then lower ids, as in transformers.
pub(super) fn merges(tokens: &[String], scores: &[f32], vocabulary: &Vocab) -> Merges {
    struct Candidate<'a> {
        score: f32,
        left: (&'a str, usize),
        right: (&'a str, usize),
    }
    // Only parts as long as some token are looked up. Trying every split of a token of a million
    // bytes would be quadratic, while the distinct lengths add up to no more than the vocabulary's
    // bytes.
    let mut lengths: Vec<usize> = tokens.iter().map(String::len).filter(|&length| length > 0).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let mut candidates = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let mut of_token = Vec::new();
        for &at in lengths.iter().take_while(|&&at| at < token.len()) {
            if !token.is_char_boundary(at) || lengths.binary_search(&(token.len() - at)).is_err() {
                continue;
            }
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (vocabulary.get(left), vocabulary.get(right)) {
                let [left, right] = [left, right].map(|part| (part, part.chars().count()));
                let candidate = Candidate { score, left, right };
                of_token.push(((l, r), candidate));
            }
        }
        of_token.sort_by_key(|(numbers, _)| *numbers);
        candidates.extend(of_token.into_iter().map(|(_, candidate)| candidate));
    }
    // Stable sort: ties keep the order of the tokens.
    candidates.sort_by(|a, b| {
        b.score.total_cmp(&a.score).then(b.left.1.cmp(&a.left.1)).then(b.right.1.cmp(&a.right.1))
    });
    candidates.iter().map(|c| (c.left.0.to_string(), c.right.0.to_string())).collect()
}

/// Builds the tokenizer. With `prefix`, a text is read as if it began with a space.
pub(super) fn tokenizer(
    vocabulary: Vocab,
    merges: Merges,
    unknown: Option<String>,
    prefix: bool,
) -> Result<Tokenizer, String> {
    let mut model = BPE::builder().vocab_and_merges(vocabulary, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown);
    }
    let mut tokenizer = Tokenizer::new(model.build().map_err(text)?);
    let scheme = if prefix { PrependScheme::First } else { PrependScheme::Never };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme, false)));
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE.to_string(), " ").map_err(text)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(Sequence::new(decoders)));
    Ok(tokenizer)
}
