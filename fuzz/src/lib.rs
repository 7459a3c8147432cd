//! What the fuzz targets do with their bytes, one function a file format. `tests/mutations.rs` has
//! the same functions read mutated files with a stable compiler, so this crate's sources are
//! compiled there as a module.

mod meter;
mod seeds;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lora_drop::adapter::{AdapterFile, COMPACT_FILE};
use lora_drop::data::text::{ChatTemplate, Message, RawText, Role, SpecialTokens, Targets, TextColumnNames};
use lora_drop::data::{ColumnNames, GgufTokenizer, Labels, RawSplit, RowLimits, Rows, SplitName, Tokens};
use lora_drop::score::record::Record;
use lora_drop::settings::BadRows;
use lora_drop_compute::random::Key;
use lora_drop_transformer::gguf::{Array, Gguf, Header, Value, Writer};
use lora_drop_transformer::{
    Checkpoint, Head, Loading, Model, ModelConfig, ModuleKind, Parameters, Trained, json,
};

pub use meter::read_within;
pub use seeds::inputs;

/// A file format and the code that reads it.
pub struct Format {
    /// Of the fuzz target, and of its folders in `seeds` and `found`.
    pub name: &'static str,
    /// Reads the bytes as such a file. It panics where what was read is not as the reader promises.
    pub read: fn(&[u8]),
    /// The memory that reading may take; None where memory and time are not bounded here.
    pub memory: Option<Memory>,
    /// Words of the format's language, for mutations.
    pub words: &'static [&'static str],
}

/// Bytes of memory: some that any reading may take, and more for each byte of the input.
#[derive(Clone, Copy)]
pub struct Memory {
    pub base: usize,
    pub per_byte: usize,
}

/// JSON of small values takes more than ten times its text, so their number is bounded; this many
/// are read from any text.
const JSON: Option<Memory> = Some(Memory { base: 16 << 20, per_byte: 10 });
/// Regular expressions that split words take some megabytes whatever the vocabulary; those of a
/// tokenizer.json up to 20, as a class of letters takes 20 kB and four bytes of a pattern.
const TOKENS: Option<Memory> = Some(Memory { base: 32 << 20, per_byte: 10 });
/// Rows that are held for training take some hundred bytes beside their text, and four bytes are a
/// row of CSV.
const ROWS: Option<Memory> = Some(Memory { base: 2 << 20, per_byte: 50 });
/// A page is unpacked whole, and packed a thousandfold where it repeats, so pages may claim this
/// much whatever the file.
const PAGES: Option<Memory> = Some(Memory { base: 80 << 20, per_byte: 50 });
/// A line of two bytes is a string of nine in a GGUF file, for which a reading may take 90; the
/// lines and the file are held beside it.
const LINES: Option<Memory> = Some(Memory { base: 16 << 20, per_byte: 64 });

/// All formats.
pub const FORMATS: [Format; 11] = [
    Format { name: "config", read: config, memory: JSON, words: seeds::CONFIG_WORDS },
    Format { name: "safetensors", read: safetensors, memory: JSON, words: seeds::SAFETENSORS_WORDS },
    Format { name: "gguf", read: gguf, memory: TOKENS, words: seeds::GGUF_WORDS },
    Format { name: "tokenizer", read: tokenizer, memory: TOKENS, words: seeds::TOKENIZER_WORDS },
    Format { name: "gguf_tokenizer", read: gguf_tokenizer, memory: LINES, words: &[] },
    // The engine's fuel does not count what a single instruction takes; the program renders in a
    // process with limits.
    Format { name: "chat_template", read: chat_template, memory: None, words: seeds::TEMPLATE_WORDS },
    Format { name: "adapter", read: adapter, memory: JSON, words: seeds::ADAPTER_WORDS },
    Format { name: "json_lines", read: json_lines, memory: JSON, words: seeds::ROWS_WORDS },
    Format { name: "csv", read: csv, memory: ROWS, words: seeds::ROWS_WORDS },
    Format { name: "parquet", read: parquet, memory: PAGES, words: seeds::PARQUET_WORDS },
    Format { name: "importance", read: importance, memory: JSON, words: seeds::IMPORTANCE_WORDS },
];

/// The format of this name.
///
/// # Panics
/// There is none.
pub fn format(name: &str) -> &'static Format {
    FORMATS.iter().find(|format| format.name == name).expect("a format's name")
}

thread_local! {
    /// This thread's folder for files, since most readers take paths.
    static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a temporary folder");
}

/// Writes files into a folder that belongs to this place in the code, and gives the folder.
fn write(place: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let folder = FOLDER.with(|folder| folder.path().join(place));
    if !folder.exists() {
        fs::create_dir(&folder).expect("a folder");
    }
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).expect("written");
    }
    folder
}

/// config.json of a model: what is accepted has sizes that can be multiplied.
fn config(input: &[u8]) {
    let folder = write("config", &[("config.json", input)]);
    let Ok(config) = ModelConfig::read(&folder) else { return };
    assert!(config.max_tokens() > 0 && config.vocab_size > 0 && config.layers > 0);
    assert!(config.parameters(true) > config.block_parameters());
    let kinds: Vec<_> = config.architecture.kinds().collect();
    assert_eq!(config.modules(&kinds).len(), config.layers * kinds.len());
    assert!(!config.head_weights(Head::of_sequences(2)).is_empty());
}

static ENCODER: LazyLock<ModelConfig> = LazyLock::new(|| {
    ModelConfig::parse(&seeds::encoder_config(), Path::new("config.json")).expect("a valid configuration")
});

/// Weights: model.safetensors, or where the bytes begin with a brace the index of two shards. What
/// is accepted fits its shapes; a model is read from it.
fn safetensors(input: &[u8]) {
    let folder = match input.first() {
        Some(b'{') => {
            let [a, b] = seeds::shards();
            write(
                "shards",
                &[
                    ("model.safetensors.index.json", input),
                    (seeds::SHARD_FILES[0], &a),
                    (seeds::SHARD_FILES[1], &b),
                ],
            )
        }
        _ => write("weights", &[("model.safetensors", input)]),
    };
    let Ok(checkpoint) = Checkpoint::open(&folder) else { return };
    for name in checkpoint.names() {
        let shape = checkpoint.shape(name).expect("it is there");
        if let Ok(tensor) = checkpoint.tensor(name) {
            assert_eq!(tensor.len(), shape.iter().product::<usize>());
        }
        if let Some(matrix) = checkpoint.half_matrix(name) {
            assert_eq!(Some(matrix.bytes()), checkpoint.bytes(name));
        }
    }
    let (key, mut parameters) = (Key::new(1), Parameters::new());
    let loading =
        Loading { head: Some(Head::of_sequences(2)), trained: Trained::HeadAndPooler, quantize: None, key };
    let _ = Model::load(&checkpoint, &ENCODER, loading, &mut parameters);
}

/// A GGUF file: everything in it is as the header says, and is the same when it is written again; a
/// model and a tokenizer are read from it.
fn gguf(input: &[u8]) {
    let Ok(header) = Header::parse(input) else { return };
    for tensor in &header.tensors {
        assert!(tensor.start.is_multiple_of(header.alignment) && tensor.end <= input.len());
        assert_eq!(tensor.kind.size(&tensor.shape), Some(tensor.end - tensor.start));
    }
    let own = |key: &str| key == "general.alignment";
    let metadata: Vec<_> = header.metadata.into_iter().filter(|(key, _)| !own(key)).collect();
    let written = Writer::new(Vec::new(), &metadata, Vec::new()).expect("keys were checked");
    let again = Header::parse(&written.finish().expect("no tensors are missing")).expect("just written");
    // NaNs are not equal to themselves, so texts are compared.
    assert_eq!(format!("{:?}", again.metadata), format!("{metadata:?}"));

    let folder = write("gguf", &[("model.gguf", input)]);
    let Ok(file) = Gguf::open(&folder.join("model.gguf")) else { return };
    for name in file.names() {
        if let Ok(tensor) = file.tensor(name) {
            assert_eq!(tensor.len(), file.shape(name).expect("it is there").iter().product::<usize>());
        }
    }
    if let Ok(read) = GgufTokenizer::read(&file) {
        check_tokens(&read, "a 1234 b");
    }
    let Ok(config) = file.config() else { return };
    if let Ok(config) = ModelConfig::from_object(config, file.path()) {
        let loading = Loading { head: None, trained: Trained::Head, quantize: None, key: Key::new(1) };
        let _ = Model::load(&file, &config, loading, &mut Parameters::new());
    }
}

/// A text that no token covers may be refused; what comes out must be tokens, and be readable
/// again.
fn check_tokens(read: &GgufTokenizer, text: &str) {
    in_a_thread(|| {
        let Ok(encoding) = read.tokenizer.encode(text, true) else { return };
        let count = read.tokenizer.get_vocab_size(true);
        assert!(encoding.get_ids().iter().all(|id| (*id as usize) < count));
        let _ = read.tokenizer.decode(encoding.get_ids(), false);
    });
}

/// Makes tokens in a thread that ends with it: the tokenizers crate keeps a table of each thread's
/// words for every tokenizer until the thread ends, which is not the memory of this reading.
fn in_a_thread(tokens: impl FnOnce() + Send) {
    let done = std::thread::scope(|scope| scope.spawn(tokens).join());
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

/// A tokenizer: tokenizer.json where the bytes begin with a brace, else BERT's vocab.txt. Texts and
/// pairs become tokens within the limit, and texts again.
fn tokenizer(input: &[u8]) {
    const MOST: usize = 12;
    let limits = RowLimits { max_length: MOST, vocabulary: 1 << 20, token_types: Some(2) };
    let folder = match input.first() {
        Some(b'{') => write("tokenizer", &[("tokenizer.json", input)]),
        _ => write("vocabulary", &[("vocab.txt", input)]),
    };
    in_a_thread(|| {
        let Ok(tokens) = Tokens::open(&folder) else { return };
        for (text, pair) in [("Hello, w\u{f6}rld 12", None), ("a b", Some("it was a good film"))] {
            if tokens.check_max_length(MOST, pair.is_some()).is_err() {
                continue;
            }
            let Ok(encoded) = tokens.encode(text, pair, limits) else { continue };
            assert!(encoded.ids.len() <= MOST && encoded.types.len() == encoded.ids.len());
            let _ = tokens.decode(&encoded.ids);
        }
    });
}

/// Kinds with a pattern of their own take long to build, so most inputs have the others.
const KINDS: [&str; 2] = ["gpt-2", "smollm"];
const SLOW_KINDS: [&str; 4] = ["llama-bpe", "qwen2", "tekken", "none"];

/// A GGUF file's tokenizer of any tokens, merges, scores and types: it reads any text into tokens
/// that exist.
///
/// The input is lines. The first one's bytes choose the kind and which keys there are; then come
/// tokens, an empty line, merges, an empty line, the template and the text to read.
fn gguf_tokenizer(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (choice, rest) = text.split_once('\n').unwrap_or(("", &text));
    let choice = |i: usize| choice.as_bytes().get(i).copied().unwrap_or(b'0');
    let mut blocks = rest.splitn(3, "\n\n");
    let mut lines = || blocks.next().unwrap_or("").split('\n').map(String::from).collect::<Vec<_>>();
    let (mut tokens, merges) = (lines(), lines());
    // Tokens of a text take far more memory than the text, which is no affair of the file.
    let text: String = blocks.next().unwrap_or(rest).chars().take(1000).collect();
    // All bytes, as real files have them, where the input asks for it.
    if choice(0) & 1 == 1 {
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    }
    let count = tokens.len();
    let each = |i: usize| usize::from(choice(i)) % (count + 1);
    let strings = |values: Vec<String>| Value::Array(Array::String(values));
    let pre = match usize::from(choice(2)) {
        number @ 0x7c..=0x7f => SLOW_KINDS[number - 0x7c],
        number => KINDS[number % 2],
    };
    let mut metadata = vec![
        ("ggml.model", if choice(1) & 1 == 1 { "llama" } else { "gpt2" }.into()),
        ("ggml.pre", pre.into()),
        ("ggml.tokens", strings(tokens)),
        ("ggml.add_bos_token", Value::Bool(choice(3) & 1 == 1)),
        ("ggml.add_eos_token", Value::Bool(choice(3) & 2 == 2)),
        ("ggml.add_space_prefix", Value::Bool(choice(3) & 4 == 4)),
        ("chat_template", text.as_str().into()),
    ];
    if choice(4) & 1 == 1 {
        metadata.push(("ggml.merges", strings(merges)));
    }
    if choice(4) & 2 == 2 {
        let score =
            |i: usize| f32::from_bits(u32::from(choice(5)).wrapping_mul(i as u32).wrapping_mul(0x0101_0101));
        metadata.push(("ggml.scores", Value::Array(Array::F32((0..count).map(score).collect()))));
    }
    if choice(4) & 4 == 4 {
        let kinds = (0..count).map(|i| i32::from(input[i % input.len().max(1)] % 8)).collect();
        metadata.push(("ggml.token_type", Value::Array(Array::I32(kinds))));
    }
    let names = ["ggml.bos_token_id", "ggml.eos_token_id", "ggml.unknown_token_id", "ggml.padding_token_id"];
    for (i, name) in names.into_iter().enumerate() {
        if choice(6) >> i & 1 == 1 {
            metadata.push((name, Value::U32(each(7 + i) as u32)));
        }
    }
    let metadata: Vec<_> =
        metadata.into_iter().map(|(key, value)| (format!("tokenizer.{key}"), value)).collect();
    let written = Writer::new(Vec::new(), &metadata, Vec::new()).expect("the keys are valid");
    let folder = write("gguf_tokenizer", &[("model.gguf", &written.finish().expect("written"))]);
    let file = Gguf::open(&folder.join("model.gguf")).expect("just written");
    let Ok(read) = GgufTokenizer::read(&file) else { return };
    assert_eq!(read.tokenizer.get_vocab_size(true), count);
    check_tokens(&read, &text);
}

/// A chat template: it renders a conversation within its limits of work and output.
fn chat_template(input: &[u8]) {
    let Ok(source) = std::str::from_utf8(input) else { return };
    let special =
        SpecialTokens(vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]);
    let Ok(template) = ChatTemplate::parse(source, special) else { return };
    // A fixed time, so that a finding repeats.
    let template = template.at_time(0);
    let conversation =
        [(Role::System, "Be brief."), (Role::User, "What is 2 + 2?"), (Role::Assistant, "4 \u{e9}")];
    let messages = conversation.map(|(role, text)| Message::new(role, text));
    let Ok((text, turns)) = template.render_marked(&messages, None, true) else { return };
    assert!(text.len() < 2 << 20);
    let mut end = 0;
    for turn in turns {
        assert!(end <= turn.start && turn.start < turn.end && text.get(turn.clone()).is_some());
        end = turn.end;
    }
}

/// An adapter's files: what is accepted holds what its shapes say, comes back the same when it is
/// written again, and fits a model or is refused.
///
/// The first byte chooses between the compact file and PEFT's folder. Up to the first zero byte
/// stands PEFT's configuration, up to the second the safetensors header (its length is put before
/// it), then the tensors' bytes.
fn adapter(input: &[u8]) {
    let Some((&choice, rest)) = input.split_first() else { return };
    let mut parts = rest.splitn(3, |byte| *byte == 0);
    let [config, header, data] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let weights = [&(header.len() as u64).to_le_bytes(), header, data].concat();
    let folder = if choice & 1 == 0 {
        write("compact", &[(COMPACT_FILE, &weights)])
    } else {
        write("peft", &[("adapter_config.json", config), ("adapter_model.safetensors", &weights)])
    };
    let Ok(adapter) = AdapterFile::open(&folder) else { return };
    for pair in &adapter.pairs {
        assert_eq!((pair.a.len(), pair.b.len()), (pair.rank * pair.input, pair.rank * pair.output));
    }
    assert!(adapter.modules.values().all(|pair| *pair < adapter.pairs.len()));
    let again = write("again", &[]).join(COMPACT_FILE);
    if adapter.write_compact(&again).is_ok() {
        // Names and layers are the file's to choose, so the rest is compared.
        let read = AdapterFile::open(&again).expect("just written");
        assert_eq!(
            (&read.modules, &read.pairs, &read.vectors, &read.head),
            (&adapter.modules, &adapter.pairs, &adapter.vectors, &adapter.head)
        );
    }
    let mut parameters = Parameters::new();
    if adapter.to_bank(&ENCODER, &mut parameters).is_ok() {
        let _ = adapter.load_head(&mut parameters);
    }
}

/// JSON Lines, and the same bytes as a JSON file.
fn json_lines(input: &[u8]) {
    rows(input, "rows.jsonl");
    rows(input, "rows.json");
}

/// CSV, and the same bytes as TSV.
fn csv(input: &[u8]) {
    rows(input, "rows.csv");
    rows(input, "rows.tsv");
}

/// A Parquet file.
fn parquet(input: &[u8]) {
    rows(input, "rows.parquet");
}

/// A thousand bytes of Parquet may be a billion rows, all the same, so not all are read.
const MOST_ROWS: usize = 1 << 14;

/// Reads a file of data: its rows, which come to an end; labelled texts; texts to learn generation
/// from.
fn rows(input: &[u8], name: &str) {
    let file = write("rows", &[(name, input)]).join(name);
    if let Ok(rows) = Rows::open(&file) {
        let mut last = 1;
        let read = rows.take(MOST_ROWS).inspect(|row| {
            if let Ok(row) = row {
                assert!(row.line >= last, "rows come in the order of the file");
                last = row.line;
            }
        });
        if read.count() == MOST_ROWS {
            return;
        }
    }
    let files = [file];
    if let Ok(split) = RawSplit::read(SplitName::Test, &files, &ColumnNames::default(), BadRows::Skip)
        && let Ok(labels) = Labels::of(&split, None, None)
        && let Ok(Some(read)) = split.labels(&labels)
    {
        assert_eq!(read.len(), split.rows.len());
    }
    let _ =
        RawText::read(SplitName::Test, &files, &TextColumnNames::default(), Targets::Optional, BadRows::Skip);
}

/// importance.json: what is accepted is the same when it is written again.
fn importance(input: &[u8]) {
    let name = |kind: ModuleKind| kind.name().to_string();
    let Ok(document) = json::from_slice(input) else { return };
    let Ok(record) = Record::from_json(&document, name) else { return };
    let again = record.to_json(name);
    let read = Record::from_json(&again, name).expect("just written");
    assert_eq!(read.to_json(name), again);
    let kept: BTreeMap<_, _> = record.assignment.kept().into_iter().collect();
    assert!(kept.values().flatten().all(|layer| record.importance.modules.iter().any(|m| m.layer == *layer)));
}
