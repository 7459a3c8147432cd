//! `lora-drop predict`: rows in, JSON Lines with label and scores out, row by row as they arrive.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use lora_drop::data::{self, Labels, LeftOut, Row, RowText, Rows, TextReader};
use lora_drop::evaluate::{Prediction, Predictor};
use lora_drop::files::write_atomically;
use lora_drop::settings::BadRows;
use lora_drop::{Cancel, Error, Result};
use serde_json::{Map, Value};

use super::console::{Console, Results};
use super::interrupt::Interrupt;
use super::outputs::check_file;
use super::source::{Predict, Source, open};

/// The most rows that are predicted together: fewer when no more have arrived.
const CHUNK: usize = 64;
/// The longest time that a wait for the next row delays Ctrl-C.
const PATIENCE: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  lora-drop predict --adapter runs/mrpc --input rows.csv --output labelled.jsonl
  echo '{\"text\": \"wheat exports rose\"}' | lora-drop predict --adapter runs/r8 | jq .label

Each line of the output has the row's own fields, then label, scores (the probability of each class) and
logits; labels instead of label where a row may have several classes; for words tags, scores and logits of
each, and entities, after the words of a row of text; a regression has value and logits. A field of the row that
has one of these names is kept as input_NAME.";

/// Predict the label of each row of a file or of standard input: JSON Lines out
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: Source<Predict>,
    /// The rows: a file of any format that `train` reads, by its ending, else one JSON object per
    /// line; - is standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    input: PathBuf,
    /// Write to this file instead of standard output; it appears when all rows are done
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output file if it exists
    #[arg(long, requires = "output")]
    overwrite: bool,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    if let Some(output) = &args.output {
        check_file("--output", output, args.overwrite)?;
    }
    let rows = if args.input.as_os_str() == "-" {
        Rows::json_lines(BufReader::new(io::stdin()), Path::new("standard input"))
    } else if Rows::is_known(&args.input) {
        Rows::open(&args.input)?
    } else {
        let file = File::open(&args.input).map_err(|e| Error::io(&args.input, e))?;
        Rows::json_lines(BufReader::new(file), &args.input)
    };
    let name = rows.file.clone();
    let source = args.source.resolve()?;
    let predictor = open(&source, console, interrupt)?;
    // From here on Ctrl-C must leave whole lines and whole files.
    interrupt.put_at_stake();
    let cancel = &interrupt.cancel;
    let bad_rows = source.reading.bad_rows;
    let rows = read_ahead(rows);
    let out = args.output.as_deref().unwrap_or(Path::new("standard output"));
    let task = predictor.labels().map(Labels::task);
    let texts = TextReader::new(&name, task, &source.reading);
    let left_out = LeftOut::default();
    let mut work = Work { predictor, rows, texts, bad_rows, left_out, cancel, out, total: 0 };
    match &args.output {
        None => work.label(&mut Results::new())?,
        Some(path) => {
            let mut stopped = None;
            let written = write_atomically(path, |out| {
                work.label(out).map_err(|error| {
                    stopped = Some(error);
                    io::Error::other("stopped")
                })
            });
            // The error that stopped the work comes before that of the abandoned file.
            stopped.map_or(written, Err)?;
        }
    }
    console.note(work.left_out.warning(name.display()));
    console.say(format_args!("{} rows labelled", work.total));
    Ok(())
}

/// Reads rows on a thread of their own, a few chunks ahead, so that a wait for input can be
/// interrupted.
fn read_ahead(rows: Rows) -> Receiver<std::result::Result<Row, data::Error>> {
    let (send, receive) = sync_channel(4 * CHUNK);
    std::thread::spawn(move || {
        for row in rows {
            // Reading ends when the rows are no longer wanted.
            if send.send(row).is_err() {
                break;
            }
        }
    });
    receive
}

/// A stream of rows and the model that labels them.
struct Work<'a> {
    predictor: Predictor,
    rows: Receiver<std::result::Result<Row, data::Error>>,
    texts: TextReader,
    bad_rows: BadRows,
    /// Rows that are wrong and have no prediction.
    left_out: LeftOut,
    cancel: &'a Cancel,
    /// What errors call the output.
    out: &'a Path,
    /// Rows written.
    total: usize,
}

impl Work<'_> {
    /// Labels all rows. The rows before a wrong one are written before its error is returned.
    fn label(&mut self, out: &mut dyn Write) -> Result<()> {
        loop {
            let Chunk { rows, end } = self.next_chunk()?;
            let texts: Vec<_> = rows.iter().map(|(_, texts)| texts.clone()).collect();
            if !texts.is_empty() {
                let predictions = self.predictor.predict_until(&texts, self.cancel)?;
                let pairs = rows.into_iter().zip(predictions);
                let lines: String = pairs
                    .map(|((row, text), prediction)| format!("{}\n", labelled(row, &text, prediction)))
                    .collect();
                let written = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
                written.map_err(|e| Error::io(self.out, e))?;
                self.total += texts.len();
            }
            match end {
                // If no row was labelled, the error is that of the first row that was left out.
                Some(Ok(())) if self.total == 0 => {
                    return self.left_out.take_first().map_or(Ok(()), |error| Err(error.into()));
                }
                Some(end) => return end,
                None => {}
            }
        }
    }

    /// Waits for a row, then takes those that have arrived already.
    fn next_chunk(&mut self) -> Result<Chunk> {
        let mut rows = Vec::new();
        while rows.len() < CHUNK {
            self.cancel.check()?;
            let patience = if rows.is_empty() { PATIENCE } else { Duration::ZERO };
            let row = match self.rows.recv_timeout(patience) {
                Ok(row) => row,
                Err(RecvTimeoutError::Timeout) if rows.is_empty() => continue,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Ok(Chunk { rows, end: Some(Ok(())) }),
            };
            match row.and_then(|row| Ok((self.texts.read(&row)?, row))) {
                Ok((texts, row)) => rows.push((row, texts)),
                Err(error) => {
                    if let Err(error) = self.left_out.add(error, self.bad_rows) {
                        return Ok(Chunk { rows, end: Some(Err(error.into())) });
                    }
                }
            }
        }
        Ok(Chunk { rows, end: None })
    }
}

/// Rows that are predicted together, and after them the input's end or the error that ends it.
struct Chunk {
    rows: Vec<(Row, RowText)>,
    end: Option<Result<()>>,
}

/// The row's own fields with the prediction's after them. A field of the row that has the name of
/// one of these is kept as `input_NAME`.
fn labelled(row: Row, text: &RowText, prediction: Prediction) -> Value {
    let found = prediction.fields(text.is_words());
    let mut out = Map::new();
    for (name, value) in row.fields {
        let taken = found.iter().any(|(new, _)| *new == name);
        out.insert(if taken { format!("input_{name}") } else { name }, value);
    }
    out.extend(found.into_iter().map(|(name, value)| (name.to_string(), value)));
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lora_drop::settings::Task;
    use serde_json::json;

    #[test]
    fn own_fields_are_kept() {
        let row = |fields: Value| Row { line: 1, fields: fields.as_object().unwrap().clone() };
        let text = RowText::One("t".into());
        let prediction = |task, logits: &[f32]| Prediction {
            task,
            label: "b".into(),
            scores: vec![("a".into(), 0.25), ("b".into(), 0.75)],
            logits: logits.to_vec(),
            ..Prediction::default()
        };
        let own = row(json!({"text": "t", "label": "a", "id": 9}));
        let out = labelled(own, &text, prediction(Task::Classification, &[0.0, 1.5]));
        assert_eq!(
            out.to_string(),
            r#"{"text":"t","input_label":"a","id":9,"label":"b","scores":{"a":0.25,"b":0.75},"logits":[0.0,1.5]}"#
        );
        let out = labelled(row(json!({"text": "t"})), &text, prediction(Task::Regression, &[3.5]));
        assert_eq!(out.to_string(), r#"{"text":"t","value":3.5,"logits":[3.5]}"#);
    }
}
