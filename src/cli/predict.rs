//! `lora-drop predict`: JSON Lines in, JSON Lines with label and scores out, row by row as they arrive.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use lora_drop::evaluate::{Columns, Predictor};
use lora_drop::{Cancel, Error, Result};

use super::console::Console;
use super::predict_rows::{Row, next_line, parse, predicted};
use super::source::{ColumnOptions, Source};

/// Rows that are predicted together at most. Fewer go together when no more have arrived.
const CHUNK: usize = 64;
/// How long a wait for the next row may keep Ctrl-C waiting.
const PATIENCE: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  lora-drop predict --adapter runs/mrpc --input rows.jsonl --output labelled.jsonl
  echo '{\"text\": \"wheat exports rose\"}' | lora-drop predict --adapter runs/r8 | jq .label

Each line of the output has the row's own fields, then label, scores (the probability of each class) and logits; a
regression has value and logits. A field of the row that has one of these names is kept as input_NAME.";

/// Label rows: JSON Lines in, JSON Lines out
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// The rows, one JSON object a line; - is standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    input: PathBuf,
    /// Write to this file instead of standard output; it appears when all rows are done
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output file if it exists
    #[arg(long, requires = "output")]
    overwrite: bool,
    #[command(flatten)]
    columns: ColumnOptions,
}

pub fn run(args: Args, console: &Console, cancel: &Cancel) -> Result<()> {
    if let Some(output) = args.output.as_deref().filter(|output| output.exists() && !args.overwrite) {
        let shown = output.display();
        return Err(Error::Usage(format!(
            "--output {shown} exists; choose another file, or give --overwrite"
        )));
    }
    let (name, input): (String, Box<dyn BufRead + Send>) = if args.input.as_os_str() == "-" {
        ("standard input".to_string(), Box::new(BufReader::new(std::io::stdin())))
    } else {
        let file = File::open(&args.input).map_err(|e| Error::io(&args.input, e))?;
        (args.input.display().to_string(), Box::new(BufReader::new(file)))
    };
    let source = args.source.resolve(args.columns)?;
    let mut predictor = source.open()?;
    let lines = read_ahead(input, name.clone());
    let label = |out: &mut dyn Write, out_name: &Path| {
        let mut rows = Rows { lines, name: &name, columns: &source.columns, number: 0, failed: None };
        let mut total = 0;
        while let Some(chunk) = rows.next_chunk(cancel)? {
            total += chunk.len();
            let text = labelled(&mut predictor, chunk)?;
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::io(out_name, e))?;
        }
        console.say(format_args!("{total} rows labelled"));
        Ok(())
    };
    match args.output {
        None => label(&mut std::io::stdout().lock(), Path::new("standard output")),
        Some(path) => {
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| Error::io(&path, e))?;
            label(file.as_file_mut(), &path)?;
            file.as_file().sync_all().map_err(|e| Error::io(&path, e))?;
            file.persist(&path).map_err(|e| Error::io(&path, e.error))?;
            Ok(())
        }
    }
}

/// The lines of the output for a chunk of rows.
fn labelled(predictor: &mut Predictor, chunk: Vec<Row>) -> Result<String> {
    let texts: Vec<_> = chunk.iter().map(|row| row.texts.clone()).collect();
    let predictions = predictor.predict(&texts)?;
    let lines = chunk
        .into_iter()
        .zip(predictions)
        .map(|(row, prediction)| format!("{}\n", predicted(row, prediction)));
    Ok(lines.collect())
}

/// Reads lines on a thread of their own, a few chunks ahead, so that a wait for input can be interrupted.
fn read_ahead(mut input: Box<dyn BufRead + Send>, name: String) -> Receiver<Result<Vec<u8>>> {
    let (send, receive) = sync_channel(4 * CHUNK);
    std::thread::spawn(move || {
        let mut number = 1;
        while let Some(line) = next_line(&mut input, &name, number) {
            // Either end stops the reading: an error here, or nobody there any more.
            let end = line.is_err();
            if send.send(line).is_err() || end {
                break;
            }
            number += 1;
        }
    });
    receive
}

/// The rows of the input, in chunks.
struct Rows<'a> {
    lines: Receiver<Result<Vec<u8>>>,
    name: &'a str,
    columns: &'a Columns,
    /// Lines taken so far.
    number: usize,
    /// What was wrong behind the rows of the last chunk; told once they are written.
    failed: Option<Error>,
}

impl Rows<'_> {
    /// Waits for a row, then takes those that are there already; `None` at the end of the input.
    fn next_chunk(&mut self, cancel: &Cancel) -> Result<Option<Vec<Row>>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK {
            cancel.check()?;
            let line = if chunk.is_empty() {
                match self.lines.recv_timeout(PATIENCE) {
                    Ok(line) => line,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return Ok(None),
                }
            } else {
                match self.lines.try_recv() {
                    Ok(line) => line,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            };
            self.number += 1;
            match line.and_then(|line| parse(&line, self.name, self.number, self.columns)) {
                Ok(row) => chunk.extend(row),
                Err(error) if chunk.is_empty() => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(Some(chunk))
    }
}
