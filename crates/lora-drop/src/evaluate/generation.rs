//! Generates text for the rows of a split and measures it against their references.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use lora_drop_transformer::Model;

use super::Predictor;
use super::text::{self, Metric};
use crate::data::text::{
    Conversation, Message, TextContent, TextEncoder, TextKind, TextOptions, TextRow, TextSplit,
};
use crate::data::{Place, SplitName};
use crate::events::{Event, GenerationProgress, Stage};
use crate::generate::{self, Finish, GenerateEvent, GenerateOptions, Generated};
use crate::rank_agreement;
use crate::ranks::share_out;
use crate::reading::Reading;
use crate::{Cancel, Error, Result};

/// What to generate and to measure.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// The metrics, at least one.
    pub metrics: Vec<Metric>,
    /// Number of inputs, from the first; None takes all.
    pub limit: Option<usize>,
    /// How tokens are chosen, and when a text ends.
    pub decoding: GenerateOptions,
}

/// A prompt to generate for, with the references that the text is compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// A prompt without completion, or a conversation up to the assistant's turn.
    pub prompt: TextContent,
    /// The references, at least one.
    pub references: Vec<String>,
    /// The prompt's tokens.
    ids: Vec<u32>,
}

/// Measurements of generated text.
#[derive(Clone, Debug)]
pub struct GenerationEvaluation {
    /// Name and value, in the order asked for.
    pub metrics: Vec<(String, f64)>,
    /// The generated text of each input, in their order.
    pub texts: Vec<GeneratedText>,
    /// Number of new tokens of all texts.
    pub tokens: usize,
    /// Seconds of generating, without the metrics.
    pub seconds: f64,
}

/// A text that was generated for an input.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GeneratedText {
    /// The text without special tokens.
    pub text: String,
    pub finish: Finish,
    /// Number of new tokens.
    pub tokens: usize,
}

impl Predictor {
    /// Returns the inputs of a split, with their references. Rows with the same prompt are one
    /// input with the references of all, in the order of their first rows. Everything that could
    /// fail later in generation is checked.
    ///
    /// # Errors
    /// Those of reading; `Error::Usage` for options out of range, a model with a head, and rows of
    /// plain text; `Error::Input` for a row without reference, a prompt that the model cannot read,
    /// and references that a metric cannot use.
    pub fn inputs(
        &self,
        data: &Path,
        split: &str,
        reading: &Reading,
        options: &GenerationOptions,
    ) -> Result<Vec<Input>> {
        options.decoding.check()?;
        if options.metrics.is_empty() {
            return Err(Error::Usage("no metric of generated text is named".into()));
        }
        if options.limit == Some(0) {
            return Err(Error::Usage("the limit is 0 inputs, expected at least 1".into()));
        }
        self.pool.install(|| {
            let decoder = decoder(&self.loaded.model, &self.loaded.files.path)?;
            let name: SplitName = split.parse().map_err(Error::Usage)?;
            let template = self.loaded.files.template(&reading.template_vars)?;
            let config = &decoder.config;
            let text_options = TextOptions {
                max_length: self.max_length,
                ..reading.text_options(&self.loaded.files, &self.tokens)?
            };
            let (split, _) =
                TextSplit::load(data, name, &self.tokens, template.as_ref(), &text_options)?;
            if split.kind == TextKind::Text {
                return Err(Error::Usage(format!(
                    "{}: its rows are plain text, which has no reference; generated text is measured on rows with a \
                     prompt and a completion, or on conversations",
                    split.files[0].display()
                )));
            }
            let encoder = TextEncoder::new(&self.tokens, template.as_ref(), &text_options)?;
            let place = |row: &TextRow| Place::new(&split.files[row.file], row.line);
            let encode = |(row, references): (&TextRow, Vec<String>)| {
                let failed = |problem: String| Error::Input(format!("{}: {problem}", place(row)));
                text::check_references(&options.metrics, &references).map_err(failed)?;
                let ids = encoder.encode_prompt(row, config.max_tokens());
                let ids = ids.map_err(|problem| failed(format!("as a prompt, {problem}")))?;
                generate::check_prompt(&ids, decoder)
                    .map_err(|problem| failed(format!("as a prompt, {problem}")))?;
                Ok(Input { prompt: prompt(row), references, ids })
            };
            let grouped = group(&split.rows, split.columns.references.is_some()).into_iter().take(options.limit.unwrap_or(usize::MAX));
            grouped.map(encode).collect()
        })
    }

    /// Generates a text for each input and measures the texts against the inputs' references.
    ///
    /// # Errors
    /// Those of `generate` and of the metrics; `Error::Interrupted` soon after `cancel` was raised.
    pub fn evaluate_generation(
        &mut self,
        inputs: &[Input],
        options: &GenerationOptions,
        cancel: &Cancel,
        listen: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<GenerationEvaluation> {
        let Predictor { loaded, tokens, pool, ranks, .. } = self;
        let decoder = decoder(&loaded.model, &loaded.files.path)?;
        let mut decoding = options.decoding.clone();
        decoding.end_tokens.extend(&loaded.end_tokens);
        let prompts: Vec<Vec<u32>> = inputs.iter().map(|input| input.ids.clone()).collect();
        rank_agreement::on_inputs(ranks, &prompts, options)?;
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let owners = share_out(&lengths, ranks.size());
        let own: Vec<usize> = (0..prompts.len()).filter(|&input| owners[input] == ranks.rank()).collect();
        listen(&Event::StageStart { stage: Stage::Generate, steps: 0, rows: own.len(), tokens: 0 });
        let mut progress = Progress::new(own.len());
        let (parameters, table, memory) = (&loaded.parameters, &loaded.table, &mut loaded.memory);
        let model = generate::Model { decoder, parameters, table, tokens: Some(&*tokens) };
        let found = pool.install(|| {
            let mut report =
                |_: usize, event: GenerateEvent| listen(&Event::Generating(progress.after(event)));
            generate::generate_some(model, &prompts, &own, &decoding, memory, cancel, &mut report)
        });
        let generated = |(input, found): (usize, Generated)| {
            let text = found.text.unwrap_or_default();
            (input, GeneratedText { tokens: found.tokens.len(), text, finish: found.finish })
        };
        let mine = found.map(|found| found.into_iter().map(generated).collect::<Vec<_>>());
        let mut all: Vec<(usize, GeneratedText)> = ranks.exchange(mine)?.into_iter().flatten().collect();
        all.sort_by_key(|(input, _)| *input);
        let seconds = progress.began.elapsed().as_secs_f64();
        listen(&Event::StageEnd { stage: Stage::Generate, seconds });
        let texts: Vec<GeneratedText> = all.into_iter().map(|(_, text)| text).collect();
        let hypotheses: Vec<String> = texts.iter().map(|text| text.text.clone()).collect();
        let references: Vec<Vec<String>> = inputs.iter().map(|input| input.references.clone()).collect();
        let scores = text::evaluate(&options.metrics, &hypotheses, &references)?;
        Ok(GenerationEvaluation {
            metrics: scores.into_iter().map(|score| (score.name.to_string(), score.value)).collect(),
            tokens: texts.iter().map(|text| text.tokens).sum(),
            texts,
            seconds,
        })
    }
}

/// Returns the model at `path`, if it writes text.
fn decoder<'a>(model: &'a Model, path: &Path) -> Result<&'a Model> {
    match model.head {
        None => Ok(model),
        Some(_) => Err(Error::Usage(format!(
            "{}: with its head for labels it writes no text; metrics of generated text are for decoders without one",
            path.display()
        ))),
    }
}

/// Progress of generation, counted from its events.
struct Progress {
    began: Instant,
    /// Number of texts that are done, and of all texts.
    done: usize,
    of: usize,
    /// New tokens of all texts, and of the texts that are done.
    tokens: usize,
    done_tokens: usize,
}

impl Progress {
    fn new(of: usize) -> Self {
        Progress { began: Instant::now(), done: 0, of, tokens: 0, done_tokens: 0 }
    }

    fn after(&mut self, event: GenerateEvent) -> GenerationProgress {
        match event {
            GenerateEvent::Token(_) => self.tokens += 1,
            GenerateEvent::Done(found) => {
                self.done += 1;
                self.done_tokens += found.tokens.len();
            }
        }
        let tokens_per_second = self.tokens as f64 / self.began.elapsed().as_secs_f64();
        let all = self.done_tokens as f64 / self.done as f64 * self.of as f64;
        // `max` would turn the NaN of 0 / 0 into 0.
        let left = if self.done == 0 { f64::NAN } else { (all - self.tokens as f64).max(0.0) };
        let seconds_left = left / tokens_per_second;
        let Progress { done, of, tokens, .. } = *self;
        GenerationProgress { done, of, tokens, tokens_per_second, seconds_left }
    }
}

/// Groups rows by prompt: the first row with each prompt, and the references of all rows with it.
/// Completions all count, even two with the same words. A list of references adds only new ones,
/// because data sets repeat all of them in each of a prompt's rows.
fn group(rows: &[TextRow], listed: bool) -> Vec<(&TextRow, Vec<String>)> {
    let mut groups: Vec<(&TextRow, Vec<String>)> = Vec::new();
    let mut places = HashMap::new();
    for row in rows {
        let place = *places.entry(key(row)).or_insert(groups.len());
        match groups.get_mut(place) {
            None => groups.push((row, row.references.clone())),
            Some((_, references)) => {
                for reference in &row.references {
                    if !listed || !references.contains(reference) {
                        references.push(reference.clone());
                    }
                }
            }
        }
    }
    groups
}

/// Returns what identifies a prompt: its texts, with everything that a template may read of a turn.
fn key(row: &TextRow) -> Vec<(&str, &str, String)> {
    match &row.content {
        TextContent::Completion { prompt: text, .. } | TextContent::Text(text) => {
            vec![("", text, String::new())]
        }
        TextContent::Messages(conversation) => {
            let others = |turn: &Message| serde_json::Value::from(turn.others.clone()).to_string();
            let tools = ("", "", serde_json::Value::from(conversation.tools.clone()).to_string());
            let turns = conversation.asked().iter();
            turns.map(|turn| (turn.role.name(), turn.text(), others(turn))).chain([tools]).collect()
        }
    }
}

/// Returns the row's content without the answer that is to be generated.
fn prompt(row: &TextRow) -> TextContent {
    match &row.content {
        TextContent::Completion { prompt, .. } => {
            TextContent::Completion { prompt: prompt.clone(), completion: None }
        }
        TextContent::Messages(conversation) => TextContent::Messages(Conversation {
            turns: conversation.asked().to_vec(),
            tools: conversation.tools.clone(),
        }),
        TextContent::Text(text) => TextContent::Text(text.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::text::Role;

    fn row(content: TextContent, references: &[&str]) -> TextRow {
        let references = references.iter().map(|text| text.to_string()).collect();
        TextRow { content, references, file: 0, line: 1 }
    }

    fn completion(prompt: &str, references: &[&str]) -> TextRow {
        row(TextContent::Completion { prompt: prompt.into(), completion: None }, references)
    }

    #[test]
    fn rows_with_one_prompt_are_one_input() {
        let rows = [
            completion("a", &["1"]),
            completion("b", &["1", "1"]),
            completion("a", &["2", "1"]),
            completion("c", &[]),
            completion("a", &["3"]),
        ];
        for (listed, of_a) in [(true, "1 2 3"), (false, "1 2 1 3")] {
            let found = group(&rows, listed).into_iter();
            let found: Vec<_> = found.map(|(row, of)| (key(row)[0].1, of.join(" "))).collect();
            assert_eq!(found, [("a", of_a.to_string()), ("b", "1 1".into()), ("c", String::new())]);
        }
    }

    #[test]
    fn conversations_are_compared_up_to_the_answer() {
        let turns = |turns: &[(Role, &str)]| {
            let turns: Vec<_> = turns.iter().map(|&(role, text)| Message::new(role, text)).collect();
            TextContent::Messages(turns.into())
        };
        let (user, assistant) = (Role::User, Role::Assistant);
        let rows = [
            row(turns(&[(user, "a"), (assistant, "1")]), &["1"]),
            row(turns(&[(user, "a"), (assistant, "2")]), &["2"]),
            row(turns(&[(user, "a")]), &["3"]),
            row(turns(&[(Role::System, "a"), (assistant, "1")]), &["4"]),
            row(turns(&[(user, "a"), (assistant, "1"), (user, "b"), (assistant, "2")]), &["5"]),
        ];
        let found = group(&rows, false).into_iter();
        let found: Vec<_> = found.map(|(_, references)| references.join(" ")).collect();
        assert_eq!(found, ["1 2 3", "4", "5"]);
        assert_eq!(prompt(&rows[1]), rows[2].content);
    }

    #[test]
    fn the_time_left_follows_the_texts_that_are_done() {
        let text = |tokens| generate::Generated {
            tokens: vec![3; tokens],
            text: None,
            finish: Finish::Length,
            score: None,
        };
        let mut progress = Progress::new(4);
        assert!(progress.after(GenerateEvent::Token(3)).seconds_left.is_nan());
        (0..4).for_each(|_| assert!(progress.after(GenerateEvent::Token(3)).seconds_left.is_nan()));
        let found = progress.after(GenerateEvent::Done(&text(5)));
        assert_eq!((found.done, found.of, found.tokens), (1, 4, 5));
        assert!((found.seconds_left * found.tokens_per_second - 15.0).abs() < 1e-9);
        (2..=4).for_each(|done| assert_eq!(progress.after(GenerateEvent::Done(&text(0))).done, done));
        assert_eq!(progress.after(GenerateEvent::Token(3)).seconds_left, 0.0);
    }
}
