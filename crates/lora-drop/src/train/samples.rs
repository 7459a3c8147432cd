//! Texts that a decoder writes for some of dev's prompts, for the report.

use std::time::{Duration, Instant};

use super::learner::Learner;
use super::prepare::Prepared;
use crate::data::{TaskData, Tokens};
use crate::evaluate::TextSample;
use crate::generate::{self, GenerateEvent, GenerateOptions};
use crate::settings::TrainSettings;
use crate::{Cancel, Error, Result};

/// Number of prompts to continue, and the most tokens of one: what generation saves for a token
/// adds to the run's memory.
const SAMPLES: usize = 3;
const PROMPT_TOKENS: usize = 128;
/// New tokens for each prompt, and the time limit for all of them.
const NEW_TOKENS: usize = 48;
const TIME: Duration = Duration::from_secs(2);
/// First tokens of a text without a prompt that serve as its prompt.
const BEGINNING: usize = 16;

/// A row of dev, the number of its tokens before the generated ones, and the generated tokens.
struct Continued {
    row: usize,
    prompt: usize,
    new: Vec<u32>,
}

/// Continues the first short prompts of dev greedily, as far as time allows. Returns nothing if the
/// model writes no text, and under `--memory-limit`, because the memory plan does not include
/// generation.
///
/// # Errors
/// `Error::Interrupted` soon after `cancel` was raised, and those of generation.
pub fn write(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    tokens: &Tokens,
    cancel: &Cancel,
) -> Result<Vec<TextSample>> {
    if settings.compute.memory_limit.is_some() {
        return Ok(Vec::new());
    }
    let Learner { model, state, table, arenas, .. } = learner;
    let parameters = &state.parameters;
    let TaskData::Text(data) = &prepared.data else { return Ok(Vec::new()) };
    let decoder = &*model;
    let examples = &data.dev.examples;
    // A text that is learned from its first token on is continued from its beginning.
    let prompt = |row: usize| match examples[row].prompt() {
        0 | 1 => BEGINNING.min(examples[row].ids.len() / 2),
        prompt => prompt,
    };
    let mut found: Vec<Continued> = Vec::new();
    for row in 0..examples.len() {
        // Chunks of one text follow each other: one of them is enough.
        let is_known = found.iter().any(|known| examples[known.row].line == examples[row].line);
        let ids = &examples[row].ids[..prompt(row)];
        if !is_known && ids.len() <= PROMPT_TOKENS && generate::check_prompt(ids, decoder).is_ok() {
            found.push(Continued { row, prompt: ids.len(), new: Vec::new() });
        }
        if found.len() == SAMPLES {
            break;
        }
    }
    let prompts: Vec<Vec<u32>> =
        found.iter().map(|sample| examples[sample.row].ids[..sample.prompt].to_vec()).collect();
    let options = GenerateOptions {
        max_new_tokens: NEW_TOKENS,
        end_tokens: [&prepared.model.end_tokens(tokens)?, prepared.data.ends()].concat(),
        ..GenerateOptions::default()
    };
    let (began, stop) = (Instant::now(), Cancel::new());
    let model = generate::Model { decoder, parameters, table, tokens: None };
    let mut listen = |number: usize, event: GenerateEvent| {
        if let GenerateEvent::Token(token) = event {
            found[number].new.push(token);
        }
        if cancel.is_raised() || began.elapsed() > TIME {
            stop.raise();
        }
    };
    match generate::generate(model, &prompts, &options, arenas.memory(), &stop, &mut listen) {
        Err(Error::Interrupted) if !cancel.is_raised() => {}
        written => drop(written?),
    }
    let sample = |Continued { row, prompt, new }: &Continued| -> Result<TextSample> {
        let example = &examples[*row];
        // A conversation's answer alone, without the turns after it.
        let answer = example.learn[*prompt..].iter().take_while(|&&learn| learn).count();
        Ok(TextSample {
            place: data.dev.place(example).to_string(),
            prompt: tokens.decode_all(&example.ids[..*prompt])?,
            reference: tokens.decode(&example.ids[*prompt..][..answer])?,
            text: tokens.decode(new)?,
        })
    };
    found.iter().map(sample).collect()
}
