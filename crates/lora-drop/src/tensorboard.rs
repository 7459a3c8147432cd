//! TensorBoard's event file: the settings as text, and scalars for every step and evaluation,
//! written as they happen.
//!
//! A record is the length of its data, a checksum of the length, the data, and a checksum of the
//! data. The data is a protocol buffer, tensorflow.Event (event.proto, summary.proto and
//! tensor.proto in TensorFlow's repository); only a few of its fields are needed.

use std::path::Path;

use crate::Result;
use crate::events::{EvaluationRecord, Event, StepRecord};
use crate::growing_file::GrowingFile;
use crate::machine::now;

/// The part of a file's name by which TensorBoard recognises event files.
pub const EVENTS: &str = "events.out.tfevents.";

/// The event file of a run.
#[derive(Debug)]
pub struct EventFile {
    /// The file to which `handle` adds records.
    pub file: GrowingFile,
}

/// Returns the name of a new event file. It has the time in it because an open TensorBoard
/// continues at its old position in a file of the same name, and microseconds because a run may
/// replace one that began in the same second.
pub fn new_name() -> String {
    format!("{EVENTS}{:.6}.lora-drop", now())
}

impl EventFile {
    /// Starts a file, and replaces one that exists. `settings` is the text of recipe.toml.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn create(path: &Path, settings: &str) -> Result<Self> {
        let mut events = EventFile { file: GrowingFile::create(path)? };
        let version = Message::event(0).bytes(event::FILE_VERSION, b"brain.Event:2");
        let settings = Message::event(0).message(event::SUMMARY, text("settings", &code(settings)));
        events.append([version, settings])?;
        Ok(events)
    }

    /// Writes the scalars of a `Step` or an `Evaluation`; other events have none.
    ///
    /// # Errors
    /// `Error::Io` with the path, as when the disk is full. The record waits for the next call.
    pub fn handle(&mut self, event: &Event) -> Result<()> {
        let (step, scalars) = match event {
            Event::Step(record) => (record.step, of_step(record)),
            Event::Evaluation(record) => (record.step, of_evaluation(record)),
            _ => return Ok(()),
        };
        let summary = scalars.iter().fold(Message::default(), |summary, (tag, value)| {
            let value = Message::default()
                .bytes(value::TAG, tag.as_bytes())
                .float(value::SIMPLE_VALUE, *value as f32);
            summary.message(1, value)
        });
        self.append([Message::event(step).message(event::SUMMARY, summary)])
    }

    fn append<const N: usize>(&mut self, events: [Message; N]) -> Result<()> {
        self.file.append(&events.map(record).concat())
    }
}

/// Tags and values of a step. Both stages count their steps from 1, so each has its own tags.
fn of_step(r: &StepRecord) -> Vec<(String, f64)> {
    let stage = r.stage.of_metrics();
    let scalars = [
        ("loss", r.loss),
        ("learning_rate", r.learning_rate),
        ("grad_norm", r.grad_norm),
        ("tokens_per_second", r.tokens_per_second),
        ("epoch", r.epoch),
    ];
    scalars.map(|(name, value)| (format!("{stage}/{name}"), value)).into()
}

fn of_evaluation(r: &EvaluationRecord) -> Vec<(String, f64)> {
    let metrics = r.metrics.iter().map(|(name, value)| (format!("dev/{name}"), *value));
    std::iter::once(("dev/loss".to_string(), r.loss)).chain(metrics).collect()
}

/// Formats a text as a code block of Markdown, which TensorBoard renders.
fn code(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Builds a summary of one text.
fn text(tag: &str, text: &str) -> Message {
    let plugin = Message::default().bytes(1, b"text");
    let metadata = Message::default().message(1, plugin);
    let tensor = Message::default().varint(1, DT_STRING).bytes(8, text.as_bytes());
    let value = Message::default()
        .bytes(value::TAG, tag.as_bytes())
        .message(value::TENSOR, tensor)
        .message(value::METADATA, metadata);
    Message::default().message(1, value)
}

/// Fields of tensorflow.Event.
mod event {
    pub const WALL_TIME: u8 = 1;
    pub const STEP: u8 = 2;
    pub const FILE_VERSION: u8 = 3;
    pub const SUMMARY: u8 = 5;
}

/// Fields of tensorflow.Summary.Value.
mod value {
    pub const TAG: u8 = 1;
    pub const SIMPLE_VALUE: u8 = 2;
    pub const TENSOR: u8 = 8;
    pub const METADATA: u8 = 9;
}

/// tensorflow.DT_STRING.
const DT_STRING: u64 = 7;

/// Bytes of a protocol buffer. Field numbers are below 16, so each key is one byte.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Starts an event with the current time.
    fn event(step: usize) -> Self {
        let mut event = Message::default();
        event.0.push(event::WALL_TIME << 3 | 1);
        event.0.extend(now().to_le_bytes());
        event.varint(event::STEP, step as u64)
    }

    fn varint(mut self, field: u8, value: u64) -> Self {
        self.0.push(field << 3);
        self.number(value);
        self
    }

    fn float(mut self, field: u8, value: f32) -> Self {
        self.0.push(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u8, bytes: &[u8]) -> Self {
        self.0.push(field << 3 | 2);
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn message(self, field: u8, message: Message) -> Self {
        self.bytes(field, &message.0)
    }

    /// Appends a varint: seven bits a byte, the lowest first.
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// Frames a message as a record of the file.
fn record(Message(data): Message) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let (of_length, of_data) = (masked_crc(&length), masked_crc(&data));
    [&length[..], &of_length.to_le_bytes(), &data, &of_data.to_le_bytes()].concat()
}

/// CRC-32C, rotated by 15 bits and offset by a constant, because the CRC of data that contains its
/// own CRCs is a weak checksum.
fn masked_crc(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let crc = !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 })
    });
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720, appendix B.4: the sums of 32 zeros and of 0, 1, ... 31.
        let unmasked = |bytes: &[u8]| masked_crc(bytes).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked(&[0; 32]), 0x8a91_36aa);
        assert_eq!(unmasked(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn numbers_have_seven_bits_a_byte() {
        let bytes = |value| Message::default().varint(2, value).0;
        assert_eq!(bytes(0), [0x10, 0]);
        assert_eq!(bytes(127), [0x10, 127]);
        assert_eq!(bytes(300), [0x10, 0xac, 0x02]);
    }
}
