//! Generates text with a decoder: prompts in, new tokens out, several prompts at once.
//!
//! Each pass through the model takes one new token of every text that is being generated and, as
//! far as there is room, tokens of prompts. When a text is done, the next prompt takes its place.

mod beam;
mod generator;
mod options;
mod sampler;
mod stream;

use std::collections::BTreeMap;

use lora_drop_compute::profile;
use lora_drop_compute::random::Key;
use lora_drop_transformer::{AdapterTable, Cache, Context, Memory, Model as Decoder, Parameters, Sequences};

use crate::data::Tokens;
use crate::{Cancel, Error, Result, finite};
use beam::BeamSearch;
pub use generator::Generator;
pub use options::GenerateOptions;
use sampler::Sampler;
pub use stream::StreamDecoder;

/// Token budget of a pass, unless more texts than this are being generated.
const PASS_TOKENS: usize = 512;

/// A decoder with its parameters, adapters and tokenizer.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The model, without a head for labels.
    pub decoder: &'a Decoder,
    /// Values of the adapters.
    pub parameters: &'a Parameters,
    pub table: &'a AdapterTable,
    /// The tokenizer, which stop strings need.
    pub tokens: Option<&'a Tokens>,
}

/// The continuation of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new tokens, without the end token; a stop string may end within the last one.
    pub tokens: Vec<u32>,
    /// Their text without special tokens, up to the stop string; None without a tokenizer.
    pub text: Option<String>,
    /// Why the text ended.
    pub finish: Finish,
    /// For a beam search, log-probability / length^length_penalty.
    pub score: Option<f32>,
}

/// An event of the generation for one prompt.
#[derive(Clone, Copy, Debug)]
pub enum GenerateEvent<'a> {
    /// A new token; in a beam search, only when the prompt is done.
    Token(u32),
    /// The whole continuation, after its last token.
    Done(&'a Generated),
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end token.
    EndOfText,
    /// A stop string.
    Stop,
    /// The limit of new tokens, or the model's last position.
    Length,
}

/// Continues each prompt, in their order. `listen` gets the prompt's index, and each new token as
/// soon as it is certain.
///
/// A prompt's result depends on the others in its batch only through the rounding of sums.
///
/// # Errors
/// `Error::Usage` for wrong options; `Error::Input` for a prompt that is empty, leaves no room in
/// the model's context or has an unknown token; `Error::NotFinite` for a model whose logits are not
/// finite; `Error::Interrupted` soon after `cancel` was raised.
pub fn generate(
    model: Model,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    memory: &mut Memory,
    cancel: &Cancel,
    listen: &mut dyn FnMut(usize, GenerateEvent),
) -> Result<Vec<Generated>> {
    let numbers: Vec<usize> = (0..prompts.len()).collect();
    Ok(generate_some(model, prompts, &numbers, options, memory, cancel, listen)?.into_values().collect())
}

/// Like `generate`, for the prompts with these indices, which are the keys of the results.
///
/// # Errors
/// Those of `generate`.
pub(crate) fn generate_some(
    model: Model,
    prompts: &[Vec<u32>],
    numbers: &[usize],
    options: &GenerateOptions,
    memory: &mut Memory,
    cancel: &Cancel,
    listen: &mut dyn FnMut(usize, GenerateEvent),
) -> Result<BTreeMap<usize, Generated>> {
    options.check()?;
    let ends = StopConditions::new(options, model)?;
    for &number in numbers {
        check_prompt(&prompts[number], model.decoder)
            .map_err(|e| Error::Input(format!("prompt {}: {e}", number + 1)))?;
    }
    let mut done = BTreeMap::new();
    let mut next = numbers.iter().map(|&number| (number, &prompts[number]));
    let mut jobs: Vec<Job> = Vec::new();
    loop {
        let free = options.batch_size - jobs.len();
        jobs.extend(next.by_ref().take(free).map(|(n, prompt)| Job::new(n, prompt, model, options, &ends)));
        if jobs.is_empty() {
            break;
        }
        let mut logits = pass(model, &mut jobs, memory, cancel)?;
        let _phase = profile::phase("choosing tokens");
        let mut rest = &mut logits[..];
        let mut going = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            let (own, others) = rest.split_at_mut(job.caches.len() * model.decoder.config.vocab_size);
            rest = others;
            match job.step(own, listen)? {
                None => going.push(job),
                Some(SearchResult { tokens, finish, score }) => {
                    let text =
                        model.tokens.map(|t| StreamDecoder::decode(t, &ends.stop, &tokens)).transpose()?;
                    let found = Generated { tokens, text, finish, score };
                    listen(job.number, GenerateEvent::Done(&found));
                    done.insert(job.number, found);
                }
            }
        }
        jobs = going;
    }
    Ok(done)
}

/// The tokens and strings that end a text.
struct StopConditions {
    /// Token ids, each once.
    tokens: Vec<u32>,
    stop: Vec<String>,
}

impl StopConditions {
    fn new(options: &GenerateOptions, model: Model) -> Result<Self> {
        let mut ends = StopConditions { tokens: options.end_tokens.clone(), stop: Vec::new() };
        for stop in &options.stop {
            let Some(tokens) = model.tokens else {
                return Err(Error::Usage(format!(
                    "`stop = {stop:?}`: stop strings need the model's tokenizer"
                )));
            };
            // Special tokens are not in the text.
            match tokens.special(stop) {
                Some(id) => ends.tokens.push(id),
                None => ends.stop.push(stop.clone()),
            }
        }
        ends.tokens.sort_unstable();
        ends.tokens.dedup();
        let (beams, vocabulary) = (options.num_beams, model.decoder.config.vocab_size);
        let most = vocabulary / beam::candidates_per_beam(ends.tokens.len());
        if beams > 1 && beams > most {
            return Err(Error::Usage(format!(
                "`num_beams` is {beams}, but the model's {vocabulary} tokens are only enough for {most} beams"
            )));
        }
        Ok(ends)
    }

    /// Returns why a text ends with this token; `None` if it continues. `text` detects stop
    /// strings, and `last` says whether no more tokens fit.
    fn finish(&self, token: u32, text: &mut Option<StreamDecoder>, last: bool) -> Result<Option<Finish>> {
        if let Some(text) = text {
            text.push(token)?;
        }
        Ok(if self.tokens.contains(&token) {
            Some(Finish::EndOfText)
        } else if text.as_ref().is_some_and(StreamDecoder::stopped) {
            Some(Finish::Stop)
        } else {
            last.then_some(Finish::Length)
        })
    }
}

/// Checks a prompt for `generate`; the message does not name the prompt.
pub(crate) fn check_prompt(prompt: &[u32], decoder: &Decoder) -> std::result::Result<(), String> {
    let (context, vocabulary) = (decoder.config.max_tokens(), decoder.config.vocab_size);
    if prompt.is_empty() {
        return Err("it has no tokens; begin it with a word or with the model's first token".into());
    }
    if prompt.len() >= context {
        return Err(format!(
            "it has {} tokens, but the model's context is {context} tokens, at least one of which must be new; shorten the \
             prompt",
            prompt.len()
        ));
    }
    match prompt.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => Err(format!("token {id} is not in the model's vocabulary of {vocabulary} tokens")),
        None => Ok(()),
    }
}

/// The state of one prompt that is being continued.
struct Job<'a> {
    number: usize,
    /// The prompt's tokens that have not passed through the model yet.
    waiting: &'a [u32],
    /// The cache and the next token of each row: one row, or one for each beam.
    caches: Vec<Cache>,
    next: Vec<u32>,
    search: Search<'a>,
    /// Number of new tokens that were reported.
    reported: usize,
}

enum Search<'a> {
    Single(SingleSearch<'a>),
    Beams(BeamSearch<'a>),
}

/// The result of a search step.
enum Step {
    /// The rows that continue: for each, the row that it extends and the token.
    Continue(Vec<(usize, u32)>),
    Done(SearchResult),
}

/// The result of a search; see `Generated`.
struct SearchResult {
    tokens: Vec<u32>,
    finish: Finish,
    score: Option<f32>,
}

impl<'a> Job<'a> {
    fn new(
        number: usize,
        prompt: &'a [u32],
        model: Model<'a>,
        options: &'a GenerateOptions,
        ends: &'a StopConditions,
    ) -> Self {
        let limit = options.max_new_tokens.min(model.decoder.config.max_tokens() - prompt.len());
        let text = model.tokens.filter(|_| !ends.stop.is_empty()).map(|t| StreamDecoder::new(t, &ends.stop));
        let search = if options.num_beams > 1 {
            Search::Beams(BeamSearch::new(options, ends, prompt, limit, text))
        } else {
            Search::Single(SingleSearch {
                sampler: Sampler::new(options),
                penalty: options.repetition_penalty as f32,
                key: Key::new(options.seed).fold(number as u64),
                ends,
                prompt: prompt.len(),
                limit,
                tokens: prompt.to_vec(),
                text,
            })
        };
        let caches = vec![model.decoder.new_cache()];
        Job { number, waiting: prompt, caches, next: Vec::new(), search, reported: 0 }
    }

    /// Continues after a pass; `logits`, (rows, vocabulary), are those of this job's rows.
    fn step(
        &mut self,
        logits: &mut [f32],
        listen: &mut dyn FnMut(usize, GenerateEvent),
    ) -> Result<Option<SearchResult>> {
        if !self.waiting.is_empty() {
            return Ok(None);
        }
        finite::check_logits(logits, || {
            format!("prompt {}, after {} tokens", self.number + 1, self.caches[0].tokens())
        })?;
        let step = match &mut self.search {
            Search::Single(one) => one.step(logits)?,
            Search::Beams(beams) => beams.step(logits)?,
        };
        let certain = match (&step, &self.search) {
            (Step::Done(found), _) => &found.tokens[..],
            (_, Search::Single(one)) => &one.tokens[one.prompt..],
            (_, Search::Beams(_)) => &[],
        };
        certain[self.reported..].iter().for_each(|&token| listen(self.number, GenerateEvent::Token(token)));
        self.reported = certain.len();
        match step {
            Step::Done(found) => Ok(Some(found)),
            Step::Continue(rows) => {
                self.caches = reorder(std::mem::take(&mut self.caches), &rows);
                self.next = rows.into_iter().map(|(_, token)| token).collect();
                Ok(None)
            }
        }
    }
}

/// Returns the caches of the continuing rows: moved, or copied if several rows continue one.
fn reorder(old: Vec<Cache>, rows: &[(usize, u32)]) -> Vec<Cache> {
    let mut old: Vec<Option<Cache>> = old.into_iter().map(Some).collect();
    let last = |row: usize| rows[row + 1..].iter().all(|(parent, _)| *parent != rows[row].0);
    let take = |row: usize| {
        let cache = &mut old[rows[row].0];
        if last(row) { cache.take() } else { cache.clone() }
    };
    (0..rows.len()).filter_map(take).collect()
}

/// Passes the jobs' next tokens through the model; returns the logits after each row, (rows,
/// vocabulary).
fn pass(model: Model, jobs: &mut [Job], memory: &mut Memory, cancel: &Cancel) -> Result<Vec<f32>> {
    let rows: usize = jobs.iter().map(|job| job.caches.len()).sum();
    let mut room = PASS_TOKENS.saturating_sub(rows);
    let (mut ids, mut offsets) = (Vec::new(), vec![0]);
    let mut caches = Vec::with_capacity(rows);
    for job in jobs {
        if job.waiting.is_empty() {
            for &token in &job.next {
                ids.push(token);
                offsets.push(ids.len());
            }
        } else {
            let (now, later) = job.waiting.split_at(job.waiting.len().min(1 + room));
            room -= now.len() - 1;
            job.waiting = later;
            ids.extend_from_slice(now);
            offsets.push(ids.len());
        }
        caches.extend(&mut job.caches);
    }
    let context = Context::new(model.parameters.read(), model.table, memory, cancel.flag());
    let sequences = Sequences { ids: &ids, types: &[], offsets: &offsets, labelled: &[] };
    Ok(model.decoder.net.extend(context, sequences, &mut caches)?)
}

/// The search for one text, token by token.
struct SingleSearch<'a> {
    sampler: Sampler,
    penalty: f32,
    /// Random key of this prompt.
    key: Key,
    ends: &'a StopConditions,
    /// Number of tokens of the prompt.
    prompt: usize,
    /// Largest number of new tokens.
    limit: usize,
    /// The prompt's tokens and the new ones.
    tokens: Vec<u32>,
    /// Detects stop strings; `None` if there are none.
    text: Option<StreamDecoder<'a>>,
}

impl SingleSearch<'_> {
    fn step(&mut self, logits: &mut [f32]) -> Result<Step> {
        let new = self.tokens.len() - self.prompt;
        sampler::penalise(logits, &self.tokens, self.penalty);
        let token = self.sampler.choose(logits, self.key.fold(new as u64));
        let finish = self.ends.finish(token, &mut self.text, new + 1 == self.limit)?;
        if finish != Some(Finish::EndOfText) {
            self.tokens.push(token);
        }
        Ok(match finish {
            None => Step::Continue(vec![(0, token)]),
            Some(finish) => {
                Step::Done(SearchResult { tokens: self.tokens.split_off(self.prompt), finish, score: None })
            }
        })
    }
}
