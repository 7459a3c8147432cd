//! `lora-drop generate`: a decoder writes text for one prompt, for the rows of a file, or in a
//! conversation.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lora_drop::data::text::{Message, Role, TextContent, TextRow};
use lora_drop::files::write_bytes_atomically;
use lora_drop::generate::{GenerateOptions, Generator};
use lora_drop::{Cancel, Error, Result};
use serde_json::{Value, json};

use super::chat::Lines;
use super::console::{Console, Results};
use super::interrupt::Interrupt;
use super::options::{at_least_one, no_effect};
use super::outputs::check_file;
use super::source::{DataSplit, Generate, Source, locate, whole};

const EXAMPLES: &str = "\
Examples:
  lora-drop generate --model models/smollm2 --prompt 'The capital of France is' --max-new-tokens 20
  lora-drop generate --adapter runs/e2e --data data/e2e --split dev --output texts.jsonl
  lora-drop generate --model models/smollm2 --chat  # a conversation

With --data the output has a line of JSON for each row: prompt, references, text, finish (end_of_text,
stop or length) and tokens. In a conversation on a terminal the arrow keys edit a line and recall
earlier ones, Ctrl-C ends the answer that is being written, and Ctrl-D or an empty line ends the
conversation. With --dtype bf16 passes of up to 8 tokens are computed in f32.";

/// Generate text with a decoder, with or without an adapter
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: Source<Generate>,
    /// Continue this text
    #[arg(long, value_name = "TEXT", conflicts_with = "data")]
    prompt: Option<String>,
    /// Continue the prompts of these rows: a folder with the split's file, one file, or a name on the hub
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    data: Option<PathBuf>,
    /// The split to read. A single file is read as a whole, unless it is the one that the adapter
    /// was trained on [default: dev]
    #[arg(long, value_name = "SPLIT", value_parser = ["train", "dev", "test"])]
    split: Option<String>,
    /// Read only the first N rows of the data
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit: Option<usize>,
    /// Write to this file instead of standard output; it appears when all rows are done
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output file if it exists
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// The system message of the prompt or the conversation
    #[arg(long, value_name = "TEXT", requires = "chat", conflicts_with = "data")]
    system: Option<String>,
    #[command(flatten)]
    decoding: DecodingArgs,
}

/// How tokens are chosen.
#[derive(clap::Args)]
#[command(next_help_heading = "Decoding")]
pub struct DecodingArgs {
    /// Most new tokens
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one, aliases = ["max-tokens", "n-predict"])]
    max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, alias = "temp")]
    temperature: f64,
    /// Sample from the K most likely tokens; 0 means all [default: 0]
    #[arg(long, value_name = "K", value_parser = whole)]
    top_k: Option<usize>,
    /// Sample from the smallest set of most likely tokens whose probabilities add up to P [default:
    /// 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Lower the probability of tokens that have occurred by this factor; 1 turns this off
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Number of beams of a beam search; 1 turns it off
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one, alias = "beams")]
    num_beams: usize,
    /// Divide a beam's log-probability by its length to this power [default: 1]
    #[arg(long, value_name = "F")]
    length_penalty: Option<f64>,
    /// End a beam search as soon as enough beams have finished
    #[arg(long)]
    early_stopping: bool,
    /// End a text before this string; can be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Prompts in a batch [default: 8]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    batch_size: Option<usize>,
    /// Seed for sampling [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl DecodingArgs {
    /// # Errors
    /// `Error::Usage` for a value out of its range, values that exclude each other, and options that
    /// have no effect with the others.
    pub fn options(&self) -> Result<GenerateOptions> {
        let default = GenerateOptions::default();
        let options = GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            repetition_penalty: self.repetition_penalty,
            num_beams: self.num_beams,
            length_penalty: self.length_penalty.unwrap_or(default.length_penalty),
            early_stopping: self.early_stopping,
            end_tokens: Vec::new(),
            stop: self.stop.clone(),
            seed: self.seed.unwrap_or(default.seed),
            batch_size: self.batch_size.unwrap_or(default.batch_size),
        };
        options.check()?;
        let greedy = (self.temperature == 0.0, "without a --temperature above 0: nothing is drawn");
        let single = (self.num_beams == 1, "without --num-beams above 1: nothing is searched");
        for (name, given, (without, reason)) in [
            ("top-k", self.top_k.is_some(), greedy),
            ("top-p", self.top_p.is_some(), greedy),
            ("seed", self.seed.is_some(), greedy),
            ("length-penalty", self.length_penalty.is_some(), single),
            ("early-stopping", self.early_stopping, single),
        ] {
            if given && without {
                return Err(no_effect(name, reason));
            }
        }
        Ok(options)
    }
}

/// A JSON object with a row's prompt or turns, to which callers add the generated text.
pub fn prompt_line(content: &TextContent) -> Value {
    match content {
        TextContent::Completion { prompt, .. } => json!({ "prompt": prompt }),
        TextContent::Messages(conversation) => {
            let turn = |m: &Message| json!({ "role": m.role.name(), "content": m.content });
            json!({ "messages": conversation.turns.iter().map(turn).collect::<Vec<_>>() })
        }
        TextContent::Text(text) => json!({ "prompt": text }),
    }
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    if args.prompt.is_none() && args.data.is_none() && !args.source.is_given("chat") {
        let message = "nothing to continue: give --prompt, --data, or --chat to talk";
        return Err(Error::Usage(message.to_string()));
    }
    // clap does not check `requires` where --prompt excludes what is required.
    let of_data = [
        ("split", args.split.is_some()),
        ("limit", args.limit.is_some()),
        ("output", args.output.is_some()),
        ("batch-size", args.decoding.batch_size.is_some()),
        ("bad-rows", args.source.is_given("bad-rows")),
        ("data-config", args.source.is_given("data-config")),
    ];
    if let Some((name, _)) = of_data.into_iter().find(|(_, given)| *given && args.data.is_none()) {
        return Err(no_effect(name, "without --data"));
    }
    if let Some(output) = &args.output {
        check_file("--output", output, args.overwrite)?;
    }
    let options = args.decoding.options()?;
    let mut source = args.source.resolve()?;
    if source.reading.given.contains(&"template-var") && args.data.is_none() && !source.reading.chat {
        return Err(no_effect("template-var", "without --chat: a prompt is continued as it is"));
    }
    // Without --data, --chat begins a conversation and says nothing about rows.
    source.reading.given.retain(|name| *name != "chat" || args.data.is_some());
    let data = args.data.map(|data| locate(&source, &data, console, interrupt)).transpose()?;
    let reading = &source.reading;
    let split = data.as_deref().map(|data| DataSplit::of(data, args.split, reading)).transpose()?;
    console.fetch(source.model(), interrupt)?;
    let generator = source.generator()?;
    console.notes(generator.notes().to_vec());
    let mut work = Work { generator, options, console, interrupt, system: args.system };
    match (args.prompt, data, split) {
        (None, Some(data), Some(split)) => {
            console.note(split.note);
            work.rows(&data, &split.name, args.limit, args.output.as_deref())
        }
        (Some(prompt), ..) => work.prompt(prompt),
        (None, ..) => work.hold_conversation(),
    }
}

/// What was written to standard output.
struct Streamed {
    text: String,
    /// Whether Ctrl-C ended it.
    interrupted: bool,
}

struct Work<'a> {
    generator: Generator,
    options: GenerateOptions,
    console: &'a Console,
    interrupt: &'a Interrupt,
    system: Option<String>,
}

impl Work<'_> {
    /// Generates the continuation of one row to standard output as it comes, until `cancel` is
    /// raised, and returns it.
    fn stream(&mut self, row: TextRow, cancel: &Cancel) -> Result<Streamed> {
        let mut out = Results::new();
        let mut failed = None;
        let mut shown = String::new();
        let began = Instant::now();
        let mut on_text = |_: usize, text: &str| {
            shown.push_str(text);
            if failed.is_none() {
                failed = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
            }
        };
        let found = self.generator.write(&[row], &self.options, cancel, &mut on_text);
        let standard = |e| Error::io(Path::new("standard output"), e);
        failed.map_or(Ok(()), |e| Err(standard(e)))?;
        let found = match found {
            Err(Error::Interrupted) => None,
            found => found?.into_iter().next(),
        };
        writeln!(out).map_err(standard)?;
        let Some(found) = found else {
            return Ok(Streamed { text: shown, interrupted: true });
        };
        let rate = found.tokens.len() as f64 / began.elapsed().as_secs_f64();
        self.console.say(format_args!("{} tokens, {rate:.1} tok/s", found.tokens.len()));
        Ok(Streamed { text: found.text.unwrap_or(shown), interrupted: false })
    }

    fn prompt(&mut self, prompt: String) -> Result<()> {
        let row = match &self.system {
            Some(system) => {
                let turns = [(Role::System, system.clone()), (Role::User, self.generator.wrapped(&prompt))];
                TextRow::conversation(turns.map(|(role, text)| Message::new(role, text)).to_vec())
            }
            None => TextRow::prompt(prompt),
        };
        let cancel = self.interrupt.cancel.clone();
        if self.stream(row, &cancel)?.interrupted { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Holds a conversation on standard input until the input ends or a line is empty. An answer
    /// that Ctrl-C ended is kept as far as it came; a question without any answer is removed.
    fn hold_conversation(&mut self) -> Result<()> {
        if !self.generator.has_template() {
            let message = "the model has no chat template; give --prompt without --chat";
            return Err(Error::Usage(message.to_string()));
        }
        let mut turns: Vec<Message> =
            self.system.iter().map(|system| Message::new(Role::System, system.as_str())).collect();
        let mut lines = Lines::open(self.console)?;
        while let Some(asked) = lines.next(self.console)? {
            turns.push(Message::new(Role::User, self.generator.wrapped(&asked)));
            let answer = self.interrupt.answer();
            let found = self.stream(TextRow::conversation(turns.clone()), &answer.cancel)?;
            if found.interrupted {
                self.console.say("stopped");
            }
            if found.interrupted && found.text.trim().is_empty() {
                turns.pop();
            } else {
                turns.push(Message::new(Role::Assistant, found.text));
            }
        }
        Ok(())
    }

    /// Writes a line of JSON for each row.
    fn rows(&mut self, data: &Path, split: &str, limit: Option<usize>, output: Option<&Path>) -> Result<()> {
        let (mut rows, warnings) = self.generator.rows(data, split)?;
        self.console.notes(warnings);
        rows.truncate(limit.unwrap_or(usize::MAX));
        let began = Instant::now();
        let found = self.generator.write(&rows, &self.options, &self.interrupt.cancel, &mut |_, _| {})?;
        let mut text = String::new();
        for (row, found) in rows.iter().zip(&found) {
            let mut line = prompt_line(&row.content);
            line["references"] = json!(row.references);
            line["text"] = json!(found.text);
            line["finish"] = json!(found.finish);
            line["tokens"] = json!(found.tokens.len());
            text.push_str(&line.to_string());
            text.push('\n');
        }
        match output {
            Some(path) => write_bytes_atomically(path, text.as_bytes())?,
            None => {
                let standard = |e| Error::io(Path::new("standard output"), e);
                Results::new().write_all(text.as_bytes()).map_err(standard)?;
            }
        }
        let tokens: usize = found.iter().map(|found| found.tokens.len()).sum();
        let rate = tokens as f64 / began.elapsed().as_secs_f64();
        self.console.say(format_args!("{} rows, {tokens} tokens, {rate:.1} tok/s", found.len()));
        Ok(())
    }
}
