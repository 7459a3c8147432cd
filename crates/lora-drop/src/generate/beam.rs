//! Beam search as in transformers: among (1 + end tokens) · beams candidates, the best that
//! continue become the next beams; finished ones among the best `num_beams` are kept, with their
//! log-probabilities divided by length^penalty.

use super::options::GenerateOptions;
use super::sampler::penalise;
use super::stream::StreamDecoder;
use super::{Finish, SearchResult, Step, StopConditions};
use crate::Result;

/// Beam search for the continuation of one prompt.
pub struct BeamSearch<'a> {
    options: &'a GenerateOptions,
    ends: &'a StopConditions,
    /// Number of tokens of the prompt.
    prompt: usize,
    /// Largest number of new tokens.
    limit: usize,
    /// Running beams, the best first.
    running: Vec<Beam<'a>>,
    /// Finished hypotheses, the best first, at most `num_beams`.
    finished: Vec<Hypothesis>,
}

struct Beam<'a> {
    /// The prompt's tokens and the new ones.
    tokens: Vec<u32>,
    /// Sum of log-probabilities.
    score: f32,
    /// Detects stop strings; `None` if there are none.
    text: Option<StreamDecoder<'a>>,
}

struct Hypothesis {
    tokens: Vec<u32>,
    score: f32,
    finish: Finish,
}

/// A running beam and a token after it.
#[derive(Clone, Copy)]
struct Candidate {
    score: f32,
    beam: usize,
    token: u32,
}

/// Number of candidates per beam in a step: `num_beams` continue even if all others end.
pub fn candidates_per_beam(end_tokens: usize) -> usize {
    (1 + end_tokens).max(2)
}

impl<'a> BeamSearch<'a> {
    pub fn new(
        options: &'a GenerateOptions,
        ends: &'a StopConditions,
        prompt: &[u32],
        limit: usize,
        text: Option<StreamDecoder<'a>>,
    ) -> Self {
        // All beams would start with the same text, so one is enough.
        let first = Beam { tokens: prompt.to_vec(), score: 0.0, text };
        BeamSearch { options, ends, prompt: prompt.len(), limit, running: vec![first], finished: Vec::new() }
    }

    /// Continues by one token; `logits`, (beams, vocabulary), are those after the running beams.
    pub fn step(&mut self, logits: &mut [f32]) -> Result<Step> {
        let beams = self.options.num_beams;
        let candidates = self.candidates(logits);
        let length = self.running[0].tokens.len() - self.prompt + 1;
        // In f32, like the scores.
        let over = (length as f64).powf(self.options.length_penalty) as f32;
        let (mut running, mut next) = (Vec::with_capacity(beams), Vec::with_capacity(beams));
        for (rank, candidate) in candidates.into_iter().enumerate() {
            if rank >= beams && running.len() == beams {
                break;
            }
            let Candidate { score, beam, token } = candidate;
            let parent = &self.running[beam];
            let mut text = parent.text.clone();
            let finish = self.ends.finish(token, &mut text, length == self.limit)?;
            let mut tokens = parent.tokens.clone();
            match finish {
                Some(finish) if rank < beams => {
                    tokens.drain(..self.prompt);
                    tokens.extend((finish != Finish::EndOfText).then_some(token));
                    self.finished.push(Hypothesis { tokens, score: score / over, finish });
                }
                None if running.len() < beams => {
                    tokens.push(token);
                    running.push(Beam { tokens, score, text });
                    next.push((beam, token));
                }
                _ => {}
            }
        }
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(beams);
        self.running = running;
        let done = match (self.running.first(), self.finished.last()) {
            (None, _) => true,
            (Some(best), Some(worst)) if self.finished.len() == beams => {
                self.options.early_stopping || best.score / over <= worst.score
            }
            _ => false,
        };
        if !done {
            return Ok(Step::Continue(next));
        }
        let best = self.finished.swap_remove(0);
        Ok(Step::Done(SearchResult { tokens: best.tokens, finish: best.finish, score: Some(best.score) }))
    }

    /// Returns the best continuations of all beams, the best first; ties go to earlier beams and
    /// lower tokens.
    fn candidates(&self, logits: &mut [f32]) -> Vec<Candidate> {
        let vocabulary = logits.len() / self.running.len();
        let count = candidates_per_beam(self.ends.tokens.len()) * self.options.num_beams;
        let order = |a: &Candidate, b: &Candidate| {
            b.score.total_cmp(&a.score).then((a.beam, a.token).cmp(&(b.beam, b.token)))
        };
        let mut best = Vec::new();
        for (beam, scores) in logits.chunks_exact_mut(vocabulary).enumerate() {
            let running = &self.running[beam];
            log_softmax(scores);
            penalise(scores, &running.tokens, self.options.repetition_penalty as f32);
            let score = |(token, &x): (usize, &f32)| Candidate {
                score: x + running.score,
                beam,
                token: token as u32,
            };
            let mut all: Vec<Candidate> = scores.iter().enumerate().map(score).collect();
            if count < all.len() {
                all.select_nth_unstable_by(count, order);
                all.truncate(count);
            }
            best.append(&mut all);
        }
        best.sort_unstable_by(order);
        best.truncate(count);
        best
    }
}

fn log_softmax(x: &mut [f32]) {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|x| f64::from(x - top).exp()).sum();
    let log = sum.ln();
    x.iter_mut().for_each(|x| *x = (f64::from(*x - top) - log) as f32);
}
