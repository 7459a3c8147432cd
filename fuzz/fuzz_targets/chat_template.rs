#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use lora_drop_fuzz::{format, read_within};

fuzz_target!(|input: &[u8]| read_within(format("chat_template"), input, Duration::from_secs(1)));
