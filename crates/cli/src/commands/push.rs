//! `lora-drop push`: sends an adapter, or a fine-tuned model, to a repository on the Hugging Face hub.

use std::path::PathBuf;

use crate::report::terminal::rows;
use lora_drop::events::Event;
use lora_drop::format::bytes;
use lora_drop::hub::{HubOptions, Parcel, PushOptions, Pushed};
use lora_drop::{Error, Result};
use serde_json::json;

use super::Failure;
use super::console::{Console, Form};
use super::interrupt::Interrupt;

const EXAMPLES: &str = "\
Examples:
  lora-drop push org/mrpc-adapter --adapter runs/mrpc --dry-run
  lora-drop push org/mrpc-adapter --adapter runs/mrpc --private
  lora-drop push org/mrpc-adapter --adapter runs/mrpc --base-model sentence-transformers/all-MiniLM-L6-v2

The token is that of HF_TOKEN, or the one that `hf auth login` has saved. Rows of the data, logs and paths of
this machine are not sent.";

/// The message when Ctrl-C ends the push.
const NOTHING_COMMITTED: &str = "nothing was committed";

/// Send an adapter with its model card to the Hugging Face hub
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The repository, which is made if it is missing
    #[arg(value_name = "ORG/NAME")]
    repository: String,
    /// The folder of a run, of an adapter, or of a model that was fine-tuned as a whole
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    adapter: PathBuf,
    /// The base model's name on the hub, which card and adapter then give [default: the name that the
    /// model was trained by, if it is one on the hub]
    #[arg(long, value_name = "ORG/NAME")]
    base_model: Option<String>,
    /// Make a new repository private
    #[arg(long)]
    private: bool,
    /// The branch, which is made if it is missing
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    revision: String,
    /// The first line of the commit
    #[arg(long, value_name = "TEXT", default_value = "Upload with lora-drop")]
    message: String,
    /// List what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    form: Form,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> std::result::Result<(), Failure> {
    if args.message.trim().is_empty() {
        return Err(Error::Usage("--message is blank; give the first line of the commit".into()).into());
    }
    let parcel = Parcel::pack(&args.adapter, &args.repository, args.base_model.as_deref())?;
    for warning in &parcel.warnings {
        console.warn(Some(warning.clone()));
    }
    if args.dry_run {
        return Ok(list(&args, &parcel, console)?);
    }
    let options =
        PushOptions { revision: args.revision.clone(), message: args.message.clone(), private: args.private };
    let mut terminal = console.terminal();
    interrupt.put_at_stake();
    let pushed = HubOptions::from_env().push(&parcel, &options, &interrupt.cancel, &mut |part| {
        terminal.transfer("uploaded", part.file, part.done, part.total);
    });
    terminal.finish();
    let pushed = pushed.map_err(|error| match error {
        Error::Interrupted => Failure::Interrupted { saved: NOTHING_COMMITTED.to_string() },
        error => Failure::Error(error),
    })?;
    if args.private && !pushed.created {
        let known = "the repository was there, and --private does not change who can see it";
        terminal.handle(&Event::Warning(known));
    }
    Ok(console.result(&args.form, &pushed, || done(&args, &parcel, &pushed))?)
}

/// What would be sent.
fn list(args: &Args, parcel: &Parcel, console: &Console) -> Result<()> {
    let object = json!({ "repository": parcel.repository, "revision": args.revision, "message": args.message,
                         "private": args.private, "base_model": parcel.base,
                         "files": parcel.files, "left_out": parcel.left_out });
    console.result(&args.form, &object, || {
        let base = parcel.base.clone().unwrap_or_else(|| "not known".to_string());
        let mut files: Vec<(&str, String)> =
            parcel.files.iter().map(|file| (file.name.as_str(), bytes(file.bytes))).collect();
        files.push(("total", bytes(parcel.bytes())));
        let head = [
            ("repository", parcel.repository.clone()),
            ("branch", args.revision.clone()),
            ("message", args.message.clone()),
            ("if it is new", if args.private { "private" } else { "public" }.to_string()),
            ("base model", base),
            ("not sent", if parcel.left_out.is_empty() { "–".into() } else { parcel.left_out.join(", ") }),
        ];
        format!("{}\n{}", rows(&head), rows(&files))
    })
}

/// What was sent.
fn done(args: &Args, parcel: &Parcel, pushed: &Pushed) -> String {
    let sent = match &pushed.commit {
        None => "nothing: the hub has all files as they are".to_string(),
        Some(_) => {
            format!("{} of {} files, {}", pushed.sent.len(), parcel.files.len(), pushed.sent.join(", "))
        }
    };
    let mut lines =
        vec![("repository", pushed.url.clone()), ("branch", args.revision.clone()), ("sent", sent)];
    lines.extend(pushed.commit.iter().map(|commit| ("commit", commit.clone())));
    rows(&lines)
}
