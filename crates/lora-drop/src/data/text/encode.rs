//! Tokenises rows and marks the tokens that are learned.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::Value;
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{Encoding, Token};

use super::TextOptions;
use super::error::TextProblem;
use super::messages::{Conversation, Message, Role};
use super::rows::{TextContent, TextRow};
use super::template::{Answer, ChatTemplate};
use crate::data::cache::Fingerprint;
use crate::data::error::{Error, Problem};
use crate::data::tokens::Tokens;
use crate::settings::OverLength;
use crate::summary::SplitFacts;

/// One sequence to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextExample {
    /// Token ids, (tokens), at least two.
    pub ids: Vec<u32>,
    /// Whether a token is a target, (tokens): the loss counts how it is predicted from the tokens
    /// before it. The first token is never a target, and at least one is.
    pub learn: Vec<bool>,
    /// Index into the split's files.
    pub file: usize,
    /// Line in the file, from 1; the row's number if the format has no lines.
    pub line: usize,
}

impl TextExample {
    /// The number of tokens that are targets.
    pub fn learned(&self) -> usize {
        self.learn.iter().filter(|&&learn| learn).count()
    }

    /// The number of tokens before the first target.
    pub fn prompt(&self) -> usize {
        self.learn.iter().take_while(|&&learn| !learn).count()
    }
}

/// A row's sequences, and what is reported about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::data) struct EncodedRow {
    /// Token ids and which of them are learned, as in a `TextExample`. Empty if nothing would be
    /// learned; several if a long text is cut into pieces.
    pub sequences: Vec<(Vec<u32>, Vec<bool>)>,
    /// Number of tokens before the row was cut. For a row that is far over the limit, the number of
    /// tokens that were made, which is over the limit too.
    pub length: usize,
    pub issues: RowIssues,
    /// The special tokens that end the row's answers, each once.
    pub end_tokens: Vec<u32>,
}

/// What is unusual about a row's tokens; warnings count the rows with each issue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::data) struct RowIssues {
    /// An answer's first token reaches back into the prompt, so generation sees other tokens than
    /// these.
    pub prompt_merged: bool,
    /// An answer ends without a special token, so the model does not learn to stop.
    pub no_end_token: bool,
    /// The template's generation prompt does not precede every answer: generation starts with more
    /// text than the answer does, such as the start of thoughts.
    pub no_generation_prompt: bool,
    /// The template leaves out an answer's thoughts.
    pub thoughts_dropped: bool,
    /// Tokenisation stopped early, so the row's length counts only some of its tokens.
    pub partly_counted: bool,
}

impl RowIssues {
    /// Returns the issues in the order in which the cache stores them.
    pub fn flags(self) -> [bool; 5] {
        let RowIssues { prompt_merged, no_end_token, no_generation_prompt, thoughts_dropped, partly_counted } =
            self;
        [prompt_merged, no_end_token, no_generation_prompt, thoughts_dropped, partly_counted]
    }

    /// Reverses [`Self::flags`].
    pub fn from_flags(flags: [bool; 5]) -> Self {
        let [prompt_merged, no_end_token, no_generation_prompt, thoughts_dropped, partly_counted] = flags;
        RowIssues { prompt_merged, no_end_token, no_generation_prompt, thoughts_dropped, partly_counted }
    }
}

/// A row's tokens before they are cut.
#[derive(Default)]
struct UncutRow {
    /// All tokens; of a row that is far over the limit, only some, which are more than fit.
    ids: Vec<u32>,
    learn: Vec<bool>,
    /// Number of tokens that stay when the start is cut off: those that the tokenizer puts before a
    /// text.
    fixed: usize,
    issues: RowIssues,
    end_tokens: Vec<u32>,
}

/// Turns rows into tokens.
pub struct TextEncoder<'a> {
    tokens: &'a Tokens,
    template: Option<&'a ChatTemplate>,
    options: &'a TextOptions,
    /// Ids of the special tokens that the tokenizer puts before a text.
    prefix: Vec<u32>,
    special: HashSet<u32>,
    /// The text before and after the prompt.
    around: (String, String),
}

impl<'a> TextEncoder<'a> {
    /// Creates an encoder for a model's tokenizer and chat template.
    ///
    /// # Errors
    /// The options do not fit: `prompt_template` does not have `{prompt}` exactly once, `chat` is
    /// set and there is no template, or `max_length` leaves no room for two tokens.
    pub fn new(
        tokens: &'a Tokens,
        template: Option<&'a ChatTemplate>,
        options: &'a TextOptions,
    ) -> Result<Self, Error> {
        let file = |message: &str| Error::file(tokens.file(), message);
        const PLACE: &str = "{prompt}";
        let around = match &options.prompt_template {
            None => Default::default(),
            Some(form) => match form.split(PLACE).collect::<Vec<_>>()[..] {
                [before, after] => (before.to_string(), after.to_string()),
                _ => {
                    let message = format!("the prompt template {form:?} must contain {PLACE} exactly once");
                    return Err(Error::Options(message));
                }
            },
        };
        if options.chat && template.is_none() {
            let message = "prompts are to be turns of a conversation, but the model has no chat template";
            return Err(file(message));
        }
        // The post-processor puts the same tokens around any text, so an empty token shows them.
        let token = Encoding::from_tokens(vec![Token::new(0, String::new(), (0, 0))], 0);
        let around_token = tokens.ask(|tokenizer| tokenizer.post_process(token, None, true));
        let around_token = around_token.map_err(|problem| file(&problem.to_string()))?;
        let before =
            around_token.get_special_tokens_mask().iter().take_while(|&&special| special == 1).count();
        let prefix = around_token.get_ids()[..before].to_vec();
        if options.max_length < prefix.len() + 2 {
            return Err(Error::MaxLength { max_length: options.max_length, special: prefix.len(), texts: 2 });
        }
        let added = tokens.tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).chain(options.end);
        Ok(TextEncoder { tokens, template, options, prefix, special: special.collect(), around })
    }

    /// Returns the tokens that generation starts from: the prompt with the tokens that the
    /// tokenizer puts before it, or the conversation up to the assistant's last turn, with the
    /// template's generation prompt.
    ///
    /// `context` is the model's context length in tokens. A prompt that is only a little longer is
    /// left for the caller to check.
    ///
    /// # Errors
    /// The template or the tokenizer fails; the prompt has no token, one that the model does not
    /// have, or far more than `context`.
    pub fn encode_prompt(&self, row: &TextRow, context: usize) -> Result<Vec<u32>, Problem> {
        let rendered = |turns: &[Message], tools: Option<&Value>| -> Result<String, Problem> {
            Ok(self.template()?.render(turns, tools, true).map_err(TextProblem::from)?)
        };
        let mut made = UncutRow::default();
        match &row.content {
            TextContent::Completion { prompt, .. } if self.options.chat => {
                let user = [Message::new(Role::User, self.wrap(prompt))];
                self.append(&mut made, &rendered(&user, None)?, context)?;
            }
            TextContent::Completion { prompt, .. } => {
                made = self.encode_with_prefix(&self.wrap(prompt), context)?
            }
            TextContent::Messages(conversation) => {
                let asked = rendered(conversation.asked(), conversation.tools.as_ref())?;
                self.append(&mut made, &asked, context)?;
            }
            TextContent::Text(text) => made = self.encode_with_prefix(text, context)?,
        }
        let UncutRow { ids, issues, .. } = made;
        if issues.partly_counted {
            return Err(TextProblem::LongPrompt { context }.into());
        }
        if ids.is_empty() {
            return Err(Problem::NoTokens);
        }
        self.tokens.check_vocabulary(&ids, self.options.vocabulary)?;
        Ok(ids)
    }

    /// Encodes a row under the options. A row without anything to learn has no sequences.
    pub(super) fn encode(&self, row: &TextRow) -> Result<EncodedRow, Problem> {
        let limit = self.options.max_length;
        let whole = match &row.content {
            TextContent::Completion { completion: None, .. } => UncutRow::default(),
            TextContent::Completion { prompt, completion: Some(completion) } if self.options.chat => {
                let user = Message::new(Role::User, self.wrap(prompt));
                self.encode_conversation(
                    &vec![user, Message::new(Role::Assistant, completion.as_str())].into(),
                )?
            }
            TextContent::Completion { prompt, completion: Some(completion) } => {
                let (mut whole, prompt_length) =
                    self.encode_completion(&self.wrap(prompt), completion, limit)?;
                let end = self.options.end.ok_or(TextProblem::NoEnd)?;
                whole.ids.push(end);
                UncutRow {
                    learn: (0..whole.ids.len()).map(|i| i >= prompt_length).collect(),
                    end_tokens: vec![end],
                    ..whole
                }
            }
            TextContent::Messages(conversation) => self.encode_conversation(conversation)?,
            TextContent::Text(text) => {
                let mut whole = self.encode_with_prefix(text, usize::MAX)?;
                if let Some(end) = self.options.end.filter(|_| self.options.text_eos) {
                    // A text may end with it already.
                    if whole.ids.last() != Some(&end) {
                        whole.ids.push(end);
                    }
                    whole.end_tokens.push(end);
                }
                UncutRow { learn: vec![true; whole.ids.len()], ..whole }
            }
        };
        let length = whole.ids.len();
        let (issues, end_tokens) = (whole.issues, whole.end_tokens.clone());
        let pieces = match (&row.content, self.options.over_length) {
            _ if length <= limit => vec![(whole.ids, whole.learn)],
            (TextContent::Text(_), _) => chunks(&whole, limit),
            (_, OverLength::Truncate) => vec![self.truncate(whole, limit)],
            (_, OverLength::Drop) => Vec::new(),
            (_, OverLength::Error) => {
                let partly_counted = issues.partly_counted;
                return Err(Problem::OverLong { tokens: length, partly_counted, max_length: limit });
            }
        };
        // Tokens that were cut off may be unknown to the model.
        let vocabulary = self.options.vocabulary;
        pieces.iter().try_for_each(|(ids, _)| self.tokens.check_vocabulary(ids, vocabulary))?;
        let sequence = |(ids, mut learn): (Vec<u32>, Vec<bool>)| {
            // No token precedes the first one, so it cannot be predicted.
            learn.iter_mut().take(1).for_each(|first| *first = false);
            learn.contains(&true).then_some((ids, learn))
        };
        let sequences = pieces.into_iter().filter_map(sequence).collect();
        Ok(EncodedRow { sequences, length, issues, end_tokens })
    }

    /// Returns the fingerprint of rows and of everything else that decides their tokens; `None` if
    /// a template writes the date, so that tokens differ from day to day.
    pub(super) fn fingerprint(&self, rows: &[TextRow]) -> Option<Fingerprint> {
        let options = self.options;
        let mut fingerprint = self.tokens.fingerprint("texts");
        fingerprint.maybe(options.prompt_template.as_deref());
        fingerprint.text(options.over_length.name());
        for flag in [options.chat, options.end.is_some(), options.text_eos] {
            fingerprint.number(u64::from(flag));
        }
        let end = options.end.unwrap_or(0) as usize;
        for number in [end, options.max_length, options.vocabulary] {
            fingerprint.number(number as u64);
        }
        if let Some(template) = self.template {
            let rendered =
                options.chat || rows.iter().any(|row| matches!(row.content, TextContent::Messages(_)));
            if rendered && template.reads_clock() {
                return None;
            }
            template.rendered_by().iter().for_each(|text| fingerprint.text(text));
            for (name, token) in &template.special_tokens().0 {
                fingerprint.text(name);
                fingerprint.text(token);
            }
        }
        for row in rows {
            match &row.content {
                TextContent::Completion { prompt, completion } => {
                    fingerprint.number(0);
                    fingerprint.text(prompt);
                    fingerprint.maybe(completion.as_deref());
                }
                TextContent::Messages(Conversation { turns, tools }) => {
                    fingerprint.number(1);
                    fingerprint.text(&Value::from_iter(turns.iter().map(Message::to_json)).to_string());
                    turns.iter().for_each(|turn| fingerprint.number(u64::from(turn.learned)));
                    fingerprint.maybe(tools.as_ref().map(Value::to_string).as_deref());
                }
                TextContent::Text(text) => {
                    fingerprint.number(2);
                    fingerprint.text(text);
                }
            }
        }
        Some(fingerprint)
    }

    /// Whether `encode` could have made this row.
    pub(super) fn is_sound(&self, row: &EncodedRow) -> bool {
        row.sequences.iter().all(|(ids, learn)| {
            let learned = !learn.first().is_none_or(|&first| first) && learn.contains(&true);
            let known = ids.iter().all(|&id| (id as usize) < self.options.vocabulary);
            learned && known && ids.len() <= self.options.max_length
        })
    }

    /// Encodes a conversation, in which the assistant's turns are learned. If it is far longer than
    /// a sequence, only the tokens at its start are made, and turns after them are ignored.
    fn encode_conversation(&self, conversation: &Conversation) -> Result<UncutRow, Problem> {
        let template = self.template()?;
        let Conversation { turns, tools } = conversation;
        let (text, marked) =
            template.render_marked(turns, tools.as_ref(), false).map_err(TextProblem::from)?;
        let by_turn = !template.marks_turns();
        let find = |learned: bool| {
            let found = template.answers(conversation, &text, |turn| turn.learned == learned);
            found.map_err(TextProblem::from)
        };
        let answers: Vec<Answer> = if by_turn {
            find(true)?
        } else {
            // Blocks do not say which turn they are in.
            let unlearned = find(false)?;
            let is_learned = |block: &Range<usize>| {
                !unlearned.iter().any(|Answer { span, .. }| block.start < span.end && block.end > span.start)
            };
            let answer = |span| Answer { turn: None, span, follows_prompt: true };
            marked.into_iter().filter(is_learned).map(answer).collect()
        };
        let left_out = |(i, turn): (usize, &Message)| {
            let thoughts = turn.thoughts().filter(|_| turn.role == Role::Assistant && turn.learned);
            let of_turn = |answer: &&Answer| answer.turn.is_none_or(|turn| turn == i);
            let mut of_turn = answers.iter().filter(of_turn);
            thoughts.is_some_and(|own| !of_turn.any(|answer| text[answer.span.clone()].contains(own)))
        };
        let thoughts_dropped = turns.iter().enumerate().any(left_out);
        let made = self.tokens.start_with_offsets(&text, self.options.max_length)?;
        let ids = made.encoding.get_ids().to_vec();
        let token_spans = spans(made.encoding.get_offsets());
        let end = if made.whole { text.len() } else { token_spans.last().map_or(0, |span| span.end) };
        let issues = RowIssues { thoughts_dropped, partly_counted: !made.whole, ..Default::default() };
        let mut whole = UncutRow { learn: vec![false; ids.len()], issues, ..Default::default() };
        for Answer { mut span, follows_prompt, .. } in answers {
            let inside = |token: &Range<usize>| token.start < span.end && token.end > span.start;
            let Some(first) = token_spans.iter().position(inside) else { continue };
            let count = token_spans[first..].iter().take_while(|token| inside(token)).count();
            let mut learned = first..first + count;
            // A special token that is only partly inside belongs to the text that follows.
            if token_spans[learned.end - 1].end > span.end && self.special.contains(&ids[learned.end - 1]) {
                learned.end -= 1;
                span.end = token_spans[learned.end].start;
            }
            if learned.is_empty() {
                continue;
            }
            let last_special = learned.clone().rev().find(|&i| self.special.contains(&ids[i]));
            let only_blank =
                |from: usize| text.get(from..span.end).is_some_and(|rest| rest.trim().is_empty());
            let ending = last_special.filter(|&last| only_blank(token_spans[last].end));
            if let Some(last) = ending {
                // Text that a template writes between two turns is never generated, so it is not
                // learned. A block marks exactly the text to learn.
                if by_turn {
                    learned.end = last + 1;
                }
                if !whole.end_tokens.contains(&ids[last]) {
                    whole.end_tokens.push(ids[last]);
                }
            }
            whole.issues.no_end_token |= span.end <= end && ending.is_none();
            let before = self.tokens.part(&text[..span.start], usize::MAX)?;
            whole.issues.no_generation_prompt |= !follows_prompt;
            whole.issues.prompt_merged |= follows_prompt && *before.encoding.get_ids() != ids[..first];
            whole.learn[learned].fill(true);
        }
        Ok(UncutRow { ids, ..whole })
    }

    /// Cuts tokens to `limit` on the side that the tokenizer's configuration names: the end, or the
    /// start after the tokens that the tokenizer put there.
    fn truncate(&self, whole: UncutRow, limit: usize) -> (Vec<u32>, Vec<bool>) {
        let UncutRow { mut ids, mut learn, fixed, .. } = whole;
        let lost = match self.tokens.side {
            TruncationDirection::Right => limit..ids.len(),
            TruncationDirection::Left => fixed..fixed + ids.len() - limit,
        };
        ids.drain(lost.clone());
        learn.drain(lost);
        (ids, learn)
    }

    /// See [`Tokens::count_unknown`].
    pub(super) fn count_unknown(&self, ids: &[u32]) -> usize {
        self.tokens.count_unknown(ids)
    }

    /// See [`Tokens::unknown_warning`].
    pub(super) fn unknown_warning(&self, facts: &SplitFacts) -> Option<String> {
        self.tokens.unknown_warning(facts)
    }

    /// Whether this row is dropped if it has more tokens than fit.
    pub(super) fn drops(&self, row: &TextRow) -> bool {
        self.options.over_length == OverLength::Drop && !matches!(row.content, TextContent::Text(_))
    }

    fn wrap(&self, prompt: &str) -> String {
        format!("{}{prompt}{}", self.around.0, self.around.1)
    }

    fn template(&self) -> Result<&'a ChatTemplate, Problem> {
        self.template.ok_or_else(|| TextProblem::NoTemplate.into())
    }

    /// Appends a text's tokens; at most `most` of them are used.
    fn append(&self, to: &mut UncutRow, text: &str, most: usize) -> Result<(), Problem> {
        let made = self.tokens.part(text, most)?;
        to.ids.extend(made.encoding.get_ids());
        to.issues.partly_counted |= !made.whole;
        Ok(())
    }

    /// Encodes a prompt and its completion; at most `most` tokens are used. Returns also the number
    /// of the prompt's tokens. The two are tokenised separately, or as one text if the tokenizer
    /// would put a space between them.
    fn encode_completion(
        &self,
        prompt: &str,
        completion: &str,
        most: usize,
    ) -> Result<(UncutRow, usize), Problem> {
        if !self.tokens.adds_space() {
            let mut whole = self.encode_with_prefix(prompt, most)?;
            let prompt_length = whole.ids.len();
            self.append(&mut whole, completion, most)?;
            return Ok((whole, prompt_length));
        }
        let made = self.tokens.start_with_offsets(&format!("{prompt}{completion}"), most)?;
        let spans = spans(made.encoding.get_offsets());
        let of_prompt = spans.iter().position(|span| span.end > prompt.len()).unwrap_or(spans.len());
        let before = self.tokens.part(prompt, most)?;
        let mut whole = UncutRow { ids: self.prefix.clone(), fixed: self.prefix.len(), ..Default::default() };
        let ids = made.encoding.get_ids();
        whole.ids.extend(ids);
        whole.issues.partly_counted = !made.whole;
        whole.issues.prompt_merged = before.whole && *before.encoding.get_ids() != ids[..of_prompt];
        Ok((whole, self.prefix.len() + of_prompt))
    }

    /// Encodes a text after the tokens that the tokenizer puts before it; at most `most` are used.
    fn encode_with_prefix(&self, text: &str, most: usize) -> Result<UncutRow, Problem> {
        let mut whole = UncutRow { ids: self.prefix.clone(), fixed: self.prefix.len(), ..Default::default() };
        self.append(&mut whole, text, most)?;
        Ok(whole)
    }
}

/// Returns the bytes that each token stands for. Some tokenizers leave white space out of a token's
/// offsets, so a token begins where the one before it ended, or earlier if several tokens make up
/// one character.
fn spans(offsets: &[(usize, usize)]) -> Vec<Range<usize>> {
    let mut before = 0;
    let span = |&(start, end): &(usize, usize)| {
        let span = start.min(before)..end;
        before = end;
        span
    };
    offsets.iter().map(span).collect()
}

/// Cuts a long text's tokens into sequences of at most `limit`. Each sequence begins with the last
/// token of the one before, so that every token except the text's first is predicted once.
fn chunks(whole: &UncutRow, limit: usize) -> Vec<(Vec<u32>, Vec<bool>)> {
    let starts = (0..whole.ids.len() - 1).step_by(limit - 1);
    let chunk = |start: usize| {
        let part = start..(start + limit).min(whole.ids.len());
        (whole.ids[part.clone()].to_vec(), whole.learn[part].to_vec())
    };
    starts.map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_predict_every_token_once(length in 2usize..200, limit in 2usize..50) {
            let ids: Vec<u32> = (0..length as u32).collect();
            let whole = UncutRow { learn: vec![true; length], ids, ..Default::default() };
            let parts = chunks(&whole, limit);
            prop_assert!(parts.iter().all(|(ids, _)| (2..=limit).contains(&ids.len())));
            let targets: Vec<u32> = parts.iter().flat_map(|(ids, _)| ids[1..].to_vec()).collect();
            prop_assert_eq!(targets, (1..length as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn spans_include_white_space_before_a_token() {
        // "a", " b" without its space, and a character of two tokens.
        assert_eq!(spans(&[(0, 1), (2, 3), (3, 7), (3, 7)]), [0..1, 1..3, 3..7, 3..7]);
    }
}
