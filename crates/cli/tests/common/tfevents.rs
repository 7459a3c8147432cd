//! A reader of TensorBoard's event files, made from the description of their format and independent
//! of the writer.

use std::path::Path;

/// An event with what it holds: scalars, texts, or neither.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorBoardEvent {
    pub wall_time: f64,
    pub step: u64,
    pub version: Option<String>,
    pub scalars: Vec<(String, f32)>,
    pub texts: Vec<(String, String)>,
}

/// The event files in a folder.
pub fn event_files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("tfevents")).collect()
}

/// The events of the one file in a folder. Panics where a checksum or a length is wrong.
pub fn events(folder: &Path) -> Vec<TensorBoardEvent> {
    let names = event_files(folder);
    let [name] = &names[..] else { panic!("one event file: {names:?}") };
    let bytes = std::fs::read(folder.join(name)).unwrap();
    let (mut rest, mut events) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let (head, after) = rest.split_at(12);
        let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        let (data, after) = after.split_at(length);
        let (sum, after) = after.split_at(4);
        for (bytes, sum) in [(&head[..8], &head[8..]), (data, sum)] {
            assert_eq!(masked(crc32c(bytes)), u32::from_le_bytes(sum.try_into().unwrap()));
        }
        events.push(event(data));
        rest = after;
    }
    events
}

/// The CRC of Castagnoli's polynomial, by long division of the reflected bits.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut remainder = 0xffff_ffff_u32;
    for bit in bytes.iter().flat_map(|byte| (0..8).map(move |place| u32::from(byte >> place & 1))) {
        let out = (remainder & 1) ^ bit;
        remainder >>= 1;
        if out == 1 {
            remainder ^= 0x1edc_6f41_u32.reverse_bits();
        }
    }
    !remainder
}

fn masked(crc: u32) -> u32 {
    crc.rotate_left(17).wrapping_add(0xa282_ead8)
}

/// A field of a protocol buffer: a number, or bytes.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protocol buffer with their numbers.
fn fields(mut rest: &[u8]) -> Vec<(u64, Value<'_>)> {
    fn varint(rest: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = rest[0];
            *rest = &rest[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest);
        let fixed = |rest: &mut &[u8], size: usize| {
            let (bytes, after) = rest.split_at(size);
            *rest = after;
            bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)),
            1 => Value::Number(fixed(&mut rest, 8)),
            5 => Value::Number(fixed(&mut rest, 4)),
            2 => {
                let length = varint(&mut rest) as usize;
                let (bytes, after) = rest.split_at(length);
                rest = after;
                Value::Bytes(bytes)
            }
            wire => panic!("wire type {wire}"),
        };
        found.push((key >> 3, value));
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn event(data: &[u8]) -> TensorBoardEvent {
    let mut event = TensorBoardEvent::default();
    for field in fields(data) {
        match field {
            (1, Value::Number(bits)) => event.wall_time = f64::from_bits(bits),
            (2, Value::Number(step)) => event.step = step,
            (3, Value::Bytes(version)) => event.version = Some(text(version)),
            (5, Value::Bytes(summary)) => {
                for (number, value) in fields(summary) {
                    let (1, Value::Bytes(value)) = (number, value) else {
                        panic!("field {number} of a summary")
                    };
                    read_value(value, &mut event);
                }
            }
            (number, _) => panic!("field {number} of an event"),
        }
    }
    event
}

fn read_value(value: &[u8], event: &mut TensorBoardEvent) {
    let (mut tag, mut plugin) = (String::new(), String::new());
    for field in fields(value) {
        match field {
            (1, Value::Bytes(found)) => tag = text(found),
            (2, Value::Number(bits)) => event.scalars.push((tag.clone(), f32::from_bits(bits as u32))),
            (8, Value::Bytes(tensor)) => {
                for field in fields(tensor) {
                    match field {
                        (1, Value::Number(kind)) => assert_eq!(kind, 7, "a tensor of strings"),
                        (8, Value::Bytes(found)) => event.texts.push((tag.clone(), text(found))),
                        (number, _) => panic!("field {number} of a tensor"),
                    }
                }
            }
            (9, Value::Bytes(metadata)) => {
                let [(1, Value::Bytes(data))] = fields(metadata)[..] else { panic!("a summary's metadata") };
                let [(1, Value::Bytes(name))] = fields(data)[..] else { panic!("a plugin's data") };
                plugin = text(name);
            }
            (number, _) => panic!("field {number} of a value"),
        }
    }
    assert_eq!(plugin == "text", !event.texts.is_empty(), "{tag}");
}
