//! The binary on a terminal: what it shows in few columns, and a conversation that is typed.
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::common::{Fixture, QUICK};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::json;

/// The binary with a terminal of its own as standard input, output and error.
struct Session {
    child: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
    /// All that was shown so far.
    text: String,
}

/// Longer than anything here takes on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

impl Session {
    fn start(fixture: &Fixture, columns: u16, words: &[&str]) -> Self {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keys).unwrap();
        unlockpt(&keys).unwrap();
        let size = Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal: OwnedFd =
            open(ptsname(&keys, Vec::new()).unwrap(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        tcsetwinsize(&terminal, size).unwrap();
        let mut command = fixture.process("");
        command.args(words).env("TERM", "xterm").env_remove("NO_COLOR").env_remove("COLUMNS");
        command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap());
        command.stderr(Stdio::from(terminal));
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are system
        // calls.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        // The command's copies of the terminal are closed with it, so that reading ends when the
        // program does.
        drop(command);
        let (send, shown) = channel();
        let keys = File::from(keys);
        let mut screen = keys.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Session { child, keys, shown, text: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` was shown `times` times.
    #[track_caller]
    fn wait_for(&mut self, text: &str, times: usize) {
        let began = Instant::now();
        while self.text.matches(text).count() < times {
            match self.shown.recv_timeout(PATIENCE.saturating_sub(began.elapsed())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{text:?} was not shown {times} times ({error}): {:?}", self.text),
            }
        }
    }

    /// Waits for the end: the exit code and all that was shown.
    fn end(mut self) -> (Option<i32>, String) {
        while let Ok(bytes) = self.shown.recv_timeout(PATIENCE) {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        let code = self.child.wait().unwrap().code();
        (code, std::mem::take(&mut self.text))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines without colours; for a line that was redrawn, such as a bar, what was drawn last.
fn lines(shown: &str) -> Vec<String> {
    let plain = console::strip_ansi_codes(shown);
    let last = |line: &str| line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default().to_string();
    plain.split('\n').map(last).collect()
}

#[track_caller]
fn assert_fits(shown: &str, columns: usize, command: &str) {
    for line in lines(shown) {
        let width = console::measure_text_width(&line);
        // A word by itself, such as a long path, cannot be broken.
        assert!(width <= columns || !line.trim().contains(' '), "{command} in {columns} columns: {line:?}");
    }
}

/// No line of any command is longer than the terminal, so none is broken within a word.
#[test]
fn every_command_fits_its_terminal() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let folder = "a-folder-whose-name-is-long-enough/to-be-broken-in-eighty-columns";
    std::fs::create_dir_all(fixture.path(folder)).unwrap();
    std::fs::rename(fixture.path("data"), fixture.path(&format!("{folder}/data"))).unwrap();
    let data = format!("{folder}/data");
    for columns in [80, 60] {
        let quick = QUICK.replace("--epochs 8", "--epochs 2");
        // Once with a sample stage whose length the ranking decides.
        let quick = if columns == 80 { quick } else { format!("{quick} --sample-epochs 2") };
        let train = format!("train --model model --data {data} --threads 2 {quick} --overwrite --output");
        let lora = train.replace(" --sample-epochs 2", "");
        for command in [
            format!("{train} {folder}/plan --dry-run"),
            format!("{train} {folder}/out"),
            format!("{lora} {folder}/lora --method lora --profile {folder}/profile.json"),
            format!("{lora} {folder}/lora/within"),
            format!(
                "score --model model --data {data} --batch-size 4 --sample-epochs 2 --output {folder}/scores --overwrite"
            ),
            format!("eval --adapter {folder}/out --data {data}"),
            format!("inspect {folder}/out"),
            format!("inspect {folder}/out {folder}/lora"),
            format!("inspect {folder}/out/adapter_compact.safetensors"),
            "inspect model".into(),
            format!("inspect --data {data}"),
            format!("inspect --data {data} --model model"),
            format!("inspect --data {data}=1 --data {data}/train.jsonl=2 --model model"),
            "inspect decoder".into(),
            format!("merge --model model --adapter {folder}/out --output {folder}/merged --overwrite"),
            format!("export --adapter {folder}/out --to peft --output {folder}/peft --overwrite"),
            "bench --model model --batch 2 --length 8 --steps 1 --threads 1".into(),
            "bench --model decoder --batch 1 --length 8 --steps 1 --threads 1 --kernels".into(),
            "generate --model decoder --prompt w3".into(),
            "train --model model --data nowhere --output out --learning-rate 1e-3 --method lora".into(),
            "--help".into(),
        ] {
            let words: Vec<&str> = command.split_whitespace().collect();
            let (code, shown) = Session::start(&fixture, columns, &words).end();
            let expected = i32::from(command.contains("nowhere"));
            assert!(code == Some(expected) && !shown.contains("panicked"), "{command}: {code:?} {shown}");
            if !command.starts_with("generate") {
                assert_fits(&shown, columns.into(), &command);
            }
            if command.ends_with("/out") && command.starts_with("train") {
                let words =
                    console::strip_ansi_codes(&shown).split_whitespace().collect::<Vec<_>>().join(" ");
                let settled = words.matches("the ranking is stable").count();
                assert_eq!(settled, usize::from(columns == 80), "{shown}");
            }
        }
    }
}

/// A decoder with a template, a context of `context` tokens, and no end of text.
fn talker(fixture: &Fixture, context: usize) {
    fixture.write_decoder("decoder");
    let mut config = fixture.read_json("decoder/config.json");
    config["max_position_embeddings"] = json!(context);
    config["eos_token_id"] = json!(null);
    fixture.write("decoder/config.json", config.to_string());
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}";
    fixture.write("decoder/tokenizer_config.json", json!({ "chat_template": template }).to_string());
}

/// What an editor writes when it begins with a line: pasted text is to be marked.
const EDITING: &str = "\x1b[?2004h";

const CHAT: [&str; 4] = ["generate", "--model", "decoder", "--chat"];

#[test]
fn lines_of_a_conversation_are_edited_and_come_back() {
    let fixture = Fixture::new();
    talker(&fixture, 4096);
    let mut chat = Session::start(&fixture, 80, &[&CHAT[..], &["--max-new-tokens", "3"]].concat());
    chat.wait_for(EDITING, 1);
    // w4, the cursor to its left, w3 before it.
    chat.press("w4\x01w3 \r");
    chat.wait_for("3 tokens", 1);
    let shown = console::strip_ansi_codes(&chat.text).into_owned();
    assert!(shown.contains("w3 w4") && shown.contains("Ctrl-D ends the conversation"), "{shown:?}");
    // The line before, by the arrow key, with one more word.
    chat.wait_for(EDITING, 2);
    chat.press("\x1b[A w5\r");
    chat.wait_for("3 tokens", 2);
    // Ctrl-C clears the line, and Ctrl-D ends the conversation.
    chat.wait_for(EDITING, 3);
    chat.press("w7\x03");
    chat.wait_for(EDITING, 4);
    chat.press("w6\r");
    chat.wait_for(EDITING, 5);
    chat.press("\x04");
    let (code, shown) = chat.end();
    assert_eq!(code, Some(0), "{shown}");
    // The answers are those to the same lines from a pipe.
    let mut piped = fixture.command();
    piped.args(CHAT).args(["--max-new-tokens", "3"]).write_stdin("w3 w4\nw3 w4 w5\nw6\n");
    let answers = crate::common::Outcome::of(&mut piped).ok().stdout;
    assert_eq!(answers.lines().count(), 3, "{answers}");
    for answer in answers.lines() {
        assert!(shown.contains(&format!("\n{answer}\r")), "{answer:?} is not in {shown:?}");
    }
}

#[test]
fn ctrl_c_ends_an_answer_and_not_the_conversation() {
    let fixture = Fixture::new();
    talker(&fixture, 1 << 20);
    let mut chat = Session::start(&fixture, 80, &[&CHAT[..], &["--max-new-tokens", "1000000"]].concat());
    for turn in 1..=2 {
        chat.wait_for(EDITING, turn);
        let before = chat.text.matches(" w").count();
        chat.press("w3 w4\r");
        // Of the line itself two are shown, or three where it is drawn again.
        chat.wait_for(" w", before + 9);
        chat.press("\x03");
        chat.wait_for("stopped", turn);
    }
    chat.wait_for(EDITING, 3);
    chat.press("\r");
    let (code, shown) = chat.end();
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("interrupted"), "{shown}");
}

/// From a pipe a conversation is as before: a mark on standard error, answers alone on standard
/// output.
#[test]
fn a_piped_conversation_has_no_editor() {
    let fixture = Fixture::new();
    talker(&fixture, 4096);
    let mut command = fixture.command();
    command.args(CHAT).args(["--max-new-tokens", "2"]).write_stdin("w3\nw4\n");
    let found = crate::common::Outcome::of(&mut command).ok();
    assert_eq!(found.stdout.lines().count(), 2, "{}", found.stdout);
    assert_eq!(found.stderr.lines().filter(|line| *line == ">").count(), 3, "{}", found.stderr);
    assert!(!found.stdout.contains('\x1b') && !found.stderr.contains('\x1b'));
}

#[test]
fn generated_and_predicted_texts_are_escaped() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let tokenizer = fixture.read("decoder/tokenizer.json");
    // Each word that the decoder may write would clear the screen.
    fixture.write("decoder/tokenizer.json", tokenizer.replace("\"w", "\"\\u001b[2Jw"));
    let shown = |words: &[&str]| {
        let (code, shown) = Session::start(&fixture, 80, words).end();
        assert_eq!(code, Some(0), "{shown}");
        shown
    };
    let words = ["generate", "--model", "decoder", "--prompt", "x", "--max-new-tokens", "4", "--quiet"];
    let got = shown(&words);
    assert!(got.contains("\\u001b[2Jw") && !got.contains('\u{1b}'), "{got:?}");
    // Into a file or a pipe it goes as it is.
    let piped = fixture.run_words(&words).ok().stdout;
    assert!(piped.contains("\u{1b}[2Jw"), "{piped:?}");

    fixture.train("--method lora --epochs 1").ok();
    fixture.write("rows.jsonl", json!({ "text": "a film", "note": "\u{9b}2J\u{7f}" }).to_string() + "\n");
    let got = shown(&["predict", "--adapter", "out", "--input", "rows.jsonl", "--quiet"]);
    assert!(got.contains("\\u009b2J\\u007f") && !got.contains('\u{9b}'), "{got:?}");
    let line: serde_json::Value = serde_json::from_str(got.trim()).unwrap();
    assert_eq!(line["note"], "\u{9b}2J\u{7f}");
}
