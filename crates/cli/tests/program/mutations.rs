//! Damaged files of every format, thousands of them from a fixed seed: each is read within bounds
//! of memory and time, and without a panic. The same readings are fuzzed at length
//! (fuzz/README.md); inputs that fuzzing found are read here too.

// The processor's time is asked for as Unix has it.
#[path = "../../../../fuzz/src/lib.rs"]
mod formats;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use formats::{Format, Memory};
use lora_drop::data::random::Stream;

/// Mutated files of each format.
const FILES: usize = 4000;
/// Files of each format with a range that comes again and again, and their least size.
const LARGE_FILES: usize = 40;
const LARGE: usize = 1 << 20;
/// Processor time that a reading may take: ten times what it takes with the optimiser.
const MOST: Duration = Duration::from_secs(10);

/// Memory and time are measured for the whole process, so one format is read at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Reads the format's sound files, what fuzzing found, and mutations of both.
fn check(name: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let format = formats::format(name);
    let inputs = formats::inputs(name, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz"));
    assert!(!inputs.is_empty());
    // The first reading fills tables that stay.
    (format.read)(&inputs[0]);
    for input in &inputs {
        read(format, input);
    }
    let mut random = Random(Stream::new(0x1d5e_ed0f_f122, name.len() as u64));
    for _ in 0..FILES {
        let mut file = inputs[random.below(inputs.len())].clone();
        for _ in 0..1 + random.below(4) {
            mutate(&mut file, &inputs, format.words, &mut random);
        }
        read(format, &file);
    }
    // What a large template takes is bounded by the process that it is rendered in.
    let large = if format.memory.is_some() { LARGE_FILES } else { 0 };
    for _ in 0..large {
        let mut file = inputs[random.below(inputs.len())].clone();
        inflate(&mut file, &mut random);
        read(format, &file);
    }
}

/// Reads one input; where that fails, the input lies in a file that the message names.
fn read(format: &Format, input: &[u8]) {
    // Written before, as some failures (a stack that overflows, an allocation that nobody can fill)
    // end the process.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mutation_{}", format.name));
    std::fs::write(&kept, input).unwrap();
    let done = catch_unwind(AssertUnwindSafe(|| formats::read_within(format, input, MOST)));
    assert!(done.is_ok(), "the input is in {}", kept.display());
}

/// Places in files, always the same.
struct Random(Stream);

impl Random {
    fn next(&mut self) -> u64 {
        self.0.draw()
    }

    /// Below n, which is above 0.
    fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u64) as usize
    }
}

/// Numbers at which sizes, counts and offsets go wrong.
const NUMBERS: [u64; 12] =
    [0, 1, 2, 127, 255, 1 << 15, 1 << 24, (1 << 31) - 1, 1 << 31, u32::MAX as u64, 1 << 62, u64::MAX];

/// Changes one thing in a file: bits, bytes, numbers, ranges, words of the format, or its end.
fn mutate(file: &mut Vec<u8>, others: &[Vec<u8>], words: &[&str], random: &mut Random) {
    if file.is_empty() {
        file.push(random.next() as u8);
        return;
    }
    let at = random.below(file.len());
    let length = 1 + random.below((file.len() - at).min(64));
    match random.below(11) {
        0 => file[at] ^= 1 << random.below(8),
        1 => file[at] = random.next() as u8,
        2 => file[at] = file[at].wrapping_add([1, 255][random.below(2)]),
        3 => drop(file.drain(at..at + length)),
        4 => file.truncate(at),
        5 => {
            let copied = file[at..at + length].to_vec();
            let to = random.below(file.len());
            file.splice(to..to, copied);
        }
        6 => {
            let width = [1, 2, 4, 8][random.below(4)].min(file.len() - at);
            let number = NUMBERS[random.below(NUMBERS.len())];
            file[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        7 => {
            // The next number that is written in digits.
            let Some(start) = (at..file.len()).find(|&i| file[i].is_ascii_digit()) else { return };
            let end = (start..file.len()).find(|&i| !file[i].is_ascii_digit()).unwrap_or(file.len());
            let number = NUMBERS[random.below(NUMBERS.len())].to_string();
            file.splice(start..end, number.into_bytes());
        }
        8 => {
            let other = &others[random.below(others.len())];
            let from = random.below(other.len().max(1)).min(other.len());
            let until = other.len().min(from + 1 + random.below(256));
            let end = file.len().min(at + random.below(256));
            file.splice(at..end, other[from..until].iter().copied());
        }
        9 if !words.is_empty() => {
            let word = words[random.below(words.len())].bytes();
            let end = if random.below(2) == 0 { at } else { at + length };
            file.splice(at..end, word);
        }
        // A range many times over: depth and counts.
        _ => {
            let copied = file[at..at + length].repeat(1 + random.below(32));
            file.splice(at..at, copied);
        }
    }
}

/// Repeats a range of a file until the file is large.
fn inflate(file: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(file.len());
    let length = 1 + random.below((file.len() - at).min(80));
    let copied = file[at..at + length].repeat(LARGE / length + 1);
    file.splice(at..at, copied);
}

#[test]
fn config() {
    check("config");
}

#[test]
fn safetensors() {
    check("safetensors");
}

#[test]
fn gguf() {
    check("gguf");
}

#[test]
fn tokenizer() {
    check("tokenizer");
}

#[test]
fn gguf_tokenizer() {
    check("gguf_tokenizer");
}

#[test]
fn chat_template() {
    check("chat_template");
}

#[test]
fn adapter() {
    check("adapter");
}

#[test]
fn json_lines() {
    check("json_lines");
}

#[test]
fn csv() {
    check("csv");
}

#[test]
fn parquet() {
    check("parquet");
}

#[test]
fn importance() {
    check("importance");
}

#[test]
fn bounds_are_kept_watch_over() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let within = |read: fn(&[u8])| {
        let format =
            Format { name: "test", read, memory: Some(Memory { base: 1000, per_byte: 10 }), words: &[] };
        let most = Duration::from_millis(50);
        catch_unwind(AssertUnwindSafe(|| formats::read_within(&format, &[0; 100], most))).is_ok()
    };
    assert!(within(|input| drop(std::hint::black_box(input.repeat(10)))));
    assert!(!within(|input| drop(std::hint::black_box(input.repeat(1000)))), "memory");
    assert!(!within(|_| drop(std::hint::black_box(vec![0u8; 1 << 30]))), "memory that is not touched");
    let spin = |_: &[u8]| {
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(400) {}
    };
    assert!(!within(spin), "time");
    assert!(!within(|input| assert!(input.is_empty())), "panic");
}
