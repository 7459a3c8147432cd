//! Damaged GGUF files, and files that are not GGUF: all are refused, with what was seen and what
//! was expected.

use lora_drop_transformer::gguf::{Gguf, Header};

/// Builds the bytes of a file, piece by piece.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn start(version: u32, tensors: u64, entries: u64) -> Self {
        Bytes(b"GGUF".to_vec()).u32(version).u64(tensors).u64(entries)
    }

    fn u8(mut self, v: u8) -> Self {
        self.0.push(v);
        self
    }

    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn text(self, text: &[u8]) -> Self {
        let mut bytes = self.u64(text.len() as u64);
        bytes.0.extend(text);
        bytes
    }

    /// Appends a metadata entry without its value.
    fn key(self, key: &str, kind: u32) -> Self {
        self.text(key.as_bytes()).u32(kind)
    }

    /// Appends a tensor's entry; dimensions are in the file's order.
    fn tensor(self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        let named = self.text(name.as_bytes()).u32(dimensions.len() as u32);
        dimensions.iter().fold(named, |bytes, d| bytes.u64(*d)).u32(kind).u64(offset)
    }

    fn data(mut self, alignment: usize, bytes: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(alignment) + bytes, 0);
        self
    }
}

const F32: u32 = 0;
const Q8_0: u32 = 8;
const MOST: u64 = u64::MAX;

/// Name of a case, its file, and parts of the message.
type Case = (&'static str, Bytes, &'static [&'static str]);

fn cases() -> Vec<Case> {
    let start = Bytes::start;
    let one = || start(3, 1, 0);
    let entry = || start(3, 0, 1);
    let deep = (0..5).fold(entry().key("k", 9), |bytes, _| bytes.u32(9).u64(1)).data(1, 64);
    vec![
        ("too short for the magic number", Bytes(b"GG".to_vec()), &["truncated", "magic"]),
        ("another format", Bytes(b"PK\x03\x04rest of a file".to_vec()), &[r"PK\x03\x04", "not a GGUF file"]),
        ("nothing behind the magic number", Bytes(b"GGUF".to_vec()), &["truncated", "version"]),
        ("version 1", start(1, 0, 0), &["version 1", "expected 2 or 3"]),
        ("version 4", start(4, 0, 0), &["version 4", "expected 2 or 3"]),
        ("version 0", start(0, 0, 0), &["version 0"]),
        ("big-endian", start(3u32.swap_bytes(), 0, 0), &["big-endian", "version 3"]),
        ("no counts", Bytes(b"GGUF".to_vec()).u32(3).u32(7), &["truncated", "number of tensors"]),
        (
            "an absurd number of entries",
            start(3, 0, MOST),
            &["metadata entries: 18446744073709551615", "at most 0"],
        ),
        ("an absurd number of tensors", start(3, MOST, 0), &["tensors: 18446744073709551615"]),
        ("more entries than the file has", start(3, 0, 3).key("a", 0).u8(1), &["3 of them are claimed"]),
        (
            "an entry too few",
            start(3, 0, 2).key("a", 7).u8(1).data(1, 13),
            &["metadata entry 1: its key has 0 bytes"],
        ),
        (
            "a key past the end",
            entry().u64(1 << 40).data(1, 9),
            &["key of metadata entry 0", "runs past the end"],
        ),
        ("a key's length that overflows", entry().u64(MOST).data(1, 9), &["18446744073709551615 bytes"]),
        ("an empty key", entry().key("", 0).data(1, 9), &["0 bytes, expected 1 to 65535"]),
        (
            "a key that is too long",
            entry().key(&"k".repeat(65536), 0).u8(0),
            &["65536 bytes, expected 1 to 65535"],
        ),
        ("a key that is not UTF-8", entry().text(b"ab\xff").u32(0).data(1, 8), &["not UTF-8 (byte 2"]),
        ("a key twice", start(3, 0, 2).key("k", 0).u8(1).key("k", 0).u8(1), &[r#"key "k" occurs twice"#]),
        (
            "an unknown type of value",
            entry().key("k", 13).data(1, 9),
            &[r#""k""#, "number 13, expected 0 to 12"],
        ),
        ("a value past the end", entry().key("key", 10).u8(1), &[r#""key""#, "needs 8 bytes"]),
        ("a bool that is none", entry().key("k", 7).u8(2), &["byte 2, expected 0 or 1"]),
        ("a string past the end", entry().key("k", 8).u64(100).u8(1), &[r#""k""#, "100 bytes runs past"]),
        ("a string that overflows", entry().key("k", 8).u64(MOST), &["runs past the end"]),
        ("a string that is not UTF-8", entry().key("k", 8).text(b"\xc3("), &["not UTF-8 (byte 0"]),
        ("an array without a type", entry().key("kkkkk", 9).u8(1), &["truncated", r#""kkkkk""#]),
        ("an unknown type of elements", entry().key("k", 9).u32(77).u64(1), &["elements' type is number 77"]),
        ("an array past the end", entry().key("k", 9).u32(6).u64(3).u64(0), &["3 of them", "at most 2"]),
        ("an array whose size overflows", entry().key("k", 9).u32(12).u64(MOST / 4), &["at most 0"]),
        ("an array of absurdly many strings", entry().key("k", 9).u32(8).u64(1 << 60).u64(0), &["at most 1"]),
        (
            "a string of an array past the end",
            entry().key("k", 9).u32(8).u64(1).u64(9),
            &["9 bytes runs past"],
        ),
        ("an array of bools that are none", entry().key("k", 9).u32(7).u64(2).u8(1).u8(9), &["byte 9"]),
        ("absurdly many arrays in an array", entry().key("k", 9).u32(9).u64(MOST), &["at most 0"]),
        ("arrays too deep in arrays", deep, &["more than 4 nested arrays"]),
        (
            "an alignment of 0",
            entry().key("general.alignment", 4).u32(0),
            &["general.alignment", "is 0 (u32)"],
        ),
        ("an alignment of 24", entry().key("general.alignment", 4).u32(24), &["is 24", "power of two"]),
        ("an alignment of 4", entry().key("general.alignment", 4).u32(4), &["is 4"]),
        (
            "an alignment of another type",
            entry().key("general.alignment", 10).u64(32),
            &["is 32 (u64)", "(u32)"],
        ),
        (
            "an alignment beyond the file",
            start(3, 1, 1).key("general.alignment", 4).u32(1 << 31).tensor("w", &[1], F32, 0).data(32, 32),
            &["truncated: tensor w"],
        ),
        (
            "a tensor without a name",
            one().tensor("", &[4], F32, 0).data(32, 16),
            &["name of tensor 0 has 0 bytes"],
        ),
        (
            "a tensor's name that is too long",
            one().tensor(&"n".repeat(65), &[4], F32, 0),
            &["65 bytes, expected 1 to 64"],
        ),
        (
            "a tensor's name past the end",
            one().u64(1 << 50).data(1, 32),
            &["name of tensor 0", "runs past the end"],
        ),
        (
            "a tensor twice",
            start(3, 2, 0).tensor("w", &[4], F32, 0).tensor("w", &[4], F32, 32).data(32, 64),
            &["tensor w occurs twice"],
        ),
        (
            "no dimensions",
            one().tensor("w", &[], F32, 0).data(1, 32),
            &["tensor w has 0 dimensions, expected 1 to 4"],
        ),
        ("five dimensions", one().tensor("w", &[1; 5], F32, 0), &["5 dimensions"]),
        ("absurdly many dimensions", one().text(b"w").u32(u32::MAX).data(1, 32), &["4294967295 dimensions"]),
        ("a dimension of 0", one().tensor("w", &[4, 0], F32, 0), &["a dimension is 0"]),
        ("a shape that overflows", one().tensor("w", &[1 << 32, 1 << 32], F32, 0), &["overflows"]),
        ("a size that overflows", one().tensor("w", &[MOST / 2], F32, 0), &["tensor w", "overflows"]),
        (
            "a type that is not read",
            one().tensor("w", &[256], 16, 0),
            &["tensor w", "IQ2_XXS", "expected one of F32, F16, Q4_0", "BF16"],
        ),
        (
            "a type that is none",
            one().tensor("w", &[256], 99, 0),
            &["tensor w", "number 99, which is not a type"],
        ),
        ("a type that was taken back", one().tensor("w", &[256], 4, 0), &["number 4, which is not a type"]),
        (
            "rows that are no whole blocks",
            one().tensor("w", &[33, 2], Q8_0, 0).data(32, 99),
            &["33 values, expected a multiple of 32 for Q8_0"],
        ),
        (
            "an offset beside the alignment",
            one().tensor("w", &[4], F32, 8).data(32, 64),
            &["offset 8 is not a multiple of the alignment 32"],
        ),
        (
            "an offset that overflows",
            one().tensor("w", &[4], F32, MOST - 31).data(32, 64),
            &["tensor w", "overflow"],
        ),
        ("values past the end", one().tensor("w", &[64], F32, 0).data(32, 255), &["truncated: tensor w"]),
        (
            "values far past the end",
            one().tensor("w", &[4], F32, 1 << 40).data(32, 16),
            &["truncated: tensor w"],
        ),
        ("no values", one().tensor("wwwwwwww", &[4], F32, 0), &["truncated: tensor wwwwwwww"]),
        (
            "tensors that overlap",
            start(3, 2, 0).tensor("a", &[16], F32, 0).tensor("b", &[16], F32, 32).data(32, 128),
            &["tensors a (bytes", "and b (bytes", "overlap"],
        ),
        (
            "tensors in one place",
            start(3, 2, 0).tensor("a", &[4], F32, 0).tensor("b", &[4], F32, 0).data(32, 128),
            &["overlap"],
        ),
        (
            "a list of tensors that is cut",
            start(3, 2, 0).tensor("w", &[4], F32, 0).data(1, 20),
            &["tensors: 2 of them are claimed"],
        ),
    ]
}

#[test]
fn every_kind_of_damage_is_reported() {
    let cases = cases();
    assert!(cases.len() >= 30);
    let mut wrong = Vec::new();
    for (name, file, parts) in cases {
        let message = Header::parse(&file.0).expect_err(name);
        if !parts.iter().all(|part| message.contains(part)) {
            wrong.push(format!("{name}: {message:?} lacks one of {parts:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_error_of_opening_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let message = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Gguf::open(&path).unwrap_err().to_string()
    };
    assert!(message("empty.gguf", b"").ends_with("empty.gguf: an empty file; download it again"));
    assert!(message("zip.gguf", b"PK\x03\x04").contains("zip.gguf: starts with"));
    let missing = Gguf::open(&folder.path().join("none.gguf")).unwrap_err().to_string();
    assert!(missing.contains("none.gguf: "), "{missing}");
    assert!(Gguf::open(folder.path()).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn every_truncation_of_a_valid_file_is_refused() {
    let whole = Bytes::start(3, 2, 3)
        .key("general.architecture", 8)
        .text(b"llama")
        .key("strings", 9)
        .u32(8)
        .u64(2)
        .text(b"a")
        .text(b"bc")
        .key("nested", 9)
        .u32(9)
        .u64(1)
        .u32(5)
        .u64(2)
        .u64(7)
        .tensor("a", &[4, 2], F32, 0)
        .tensor("b", &[32], Q8_0, 32)
        .data(32, 32 + 34);
    let header = Header::parse(&whole.0).unwrap();
    assert_eq!((header.metadata.len(), header.tensors.len()), (3, 2));
    assert_eq!(header.tensors[0].shape, [2, 4]);
    for end in 0..whole.0.len() {
        assert!(Header::parse(&whole.0[..end]).is_err(), "{end} of {} bytes", whole.0.len());
    }
}
