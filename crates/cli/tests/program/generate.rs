//! Generation against transformers' generate, token for token (tests/golden, written by
//! tools/golden/golden_decoders.py), and what does not depend on numbers: batches, ends, limits.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use lora_drop::data::Tokens;
use lora_drop::generate::{Finish, GenerateEvent, GenerateOptions, Generated, Model, generate};
use lora_drop::{Cancel, Error};
use lora_drop_compute::random::Key;
use lora_drop_transformer::{
    Adapter, AdapterTable, Checkpoint, Context, Group, Loading, LoraPair, Memory, Model as Decoder,
    ModelConfig, ModuleId, ModuleKind, Parameters, Texts, Trained,
};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};

const MODELS: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma3"];
const VOCABULARY: u32 = 96;
/// Positions of the golden models.
const CONTEXT: usize = 64;
const END: u32 = 2;

struct Golden(Vec<u8>);

impl Golden {
    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("{name} in the golden file"));
        tensor.data().chunks_exact(4).map(|b| b.try_into().unwrap()).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    fn integers(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }
}

/// A golden model with its LoRA pairs.
struct Case {
    golden: Golden,
    decoder: Decoder,
    parameters: Parameters,
    table: AdapterTable,
    tokens: Option<Tokens>,
}

impl Case {
    fn load(model: &str) -> Self {
        let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(model);
        let golden = Golden(std::fs::read(folder.join("golden.safetensors")).unwrap());
        let config = ModelConfig::read(&folder).unwrap();
        let (mut parameters, mut table) = (Parameters::new(), AdapterTable::empty(config.layers));
        let loading = Loading { head: None, trained: Trained::Head, quantize: None, key: Key::new(0) };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let decoder = Decoder::load(&checkpoint, &config, loading, &mut parameters).unwrap();
        for layer in 0..config.layers {
            for kind in config.architecture.kinds() {
                let name = format!("lora.layers.{layer}.{}", kind.name());
                let (output, input) = config.linear_shape(kind);
                let a = golden.floats(&format!("{name}.lora_A"));
                let b = golden.floats(&format!("{name}.lora_B"));
                // The file has B as (out, rank), the model as (rank, out).
                let b: Vec<f32> = (0..b.len()).map(|i| b[i % output * 4 + i / output]).collect();
                let mut add = |part: &str, width, values: &[f32]| {
                    parameters.add(&format!("{name}.{part}"), &[4, width], Group::Lora, true, values)
                };
                let (a, b) = (add("lora_A", input, &a), add("lora_B", output, &b));
                table.set(
                    ModuleId { layer, kind },
                    Some(Adapter::Lora(LoraPair { a, b, rank: 4, scale: 2.0 })),
                );
            }
        }
        Case { golden, decoder, parameters, table, tokens: None }
    }

    /// With a tokenizer whose token n is the text ` wn`, but token 70 the special `<|70|>`.
    fn with_tokens(model: &str) -> Self {
        let name = |id: u32| if id == 70 { "<|70|>".into() } else { format!("\u{120}w{id}") };
        let vocabulary: Map<String, Value> = (0..VOCABULARY).map(|id| (name(id), json!(id))).collect();
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "added_tokens": [{"id": 70, "content": "<|70|>", "special": true, "single_word": false,
                              "lstrip": false, "rstrip": false, "normalized": false}],
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), whole.to_string()).unwrap();
        Case { tokens: Some(Tokens::open(folder.path()).unwrap()), ..Case::load(model) }
    }

    fn prompts(&self) -> Vec<Vec<u32>> {
        (0..2).map(|i| self.golden.integers(&format!("generate.prompt{i}"))).collect()
    }

    fn try_generate(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
    ) -> lora_drop::Result<Vec<Generated>> {
        let Case { decoder, parameters, table, .. } = self;
        let model = Model { decoder, parameters, table, tokens: self.tokens.as_ref() };
        let (mut told, mut done) = (vec![Vec::new(); prompts.len()], vec![None; prompts.len()]);
        let mut listen = |prompt: usize, new: GenerateEvent| match new {
            GenerateEvent::Token(token) => told[prompt].push(token),
            GenerateEvent::Done(found) => done[prompt] = Some(found.clone()),
        };
        let found = generate(model, prompts, options, &mut Memory::default(), &Cancel::new(), &mut listen)?;
        let tokens: Vec<_> = found.iter().map(|g| g.tokens.clone()).collect();
        assert_eq!(told, tokens);
        assert_eq!(done, found.iter().cloned().map(Some).collect::<Vec<_>>());
        Ok(found)
    }

    fn generate(&self, prompts: &[Vec<u32>], options: &GenerateOptions) -> Vec<Generated> {
        self.try_generate(prompts, options).unwrap()
    }
}

fn options() -> GenerateOptions {
    GenerateOptions { max_new_tokens: 16, end_tokens: vec![END], ..GenerateOptions::default() }
}

/// Prompts of these lengths, each of other tokens.
fn made_prompts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let prompt = |(n, &length): (usize, &usize)| {
        (0..length).map(|i| 3 + ((n * 31 + i * 17 + i * i * 5) % 93) as u32).collect()
    };
    lengths.iter().enumerate().map(prompt).collect()
}

#[test]
fn tokens_are_those_of_transformers() {
    let settings = [
        ("greedy", options()),
        ("penalty", GenerateOptions { repetition_penalty: 1.3, ..options() }),
        ("beam", GenerateOptions { num_beams: 4, length_penalty: 0.8, ..options() }),
        (
            "beam_early",
            GenerateOptions { num_beams: 3, length_penalty: 1.5, early_stopping: true, ..options() },
        ),
    ];
    for model in MODELS {
        let case = Case::load(model);
        for (name, options) in &settings {
            for batch_size in [1, 8] {
                let options = GenerateOptions { batch_size, ..options.clone() };
                for (i, found) in case.generate(&case.prompts(), &options).into_iter().enumerate() {
                    let mut want = case.golden.integers(&format!("generate.{name}{i}"));
                    let ended = want.iter().position(|&token| token == END);
                    want.truncate(ended.unwrap_or(want.len()));
                    let finish = if ended.is_some() { Finish::EndOfText } else { Finish::Length };
                    assert_eq!((&found.tokens, found.finish), (&want, finish), "{model} {name}{i}");
                    assert_eq!(found.score.is_some(), options.num_beams > 1);
                }
            }
        }
    }
}

#[test]
fn scores_are_log_probabilities_over_the_length() {
    for model in MODELS {
        let case = Case::load(model);
        let options = GenerateOptions { num_beams: 4, length_penalty: 0.8, ..options() };
        for (prompt, found) in case.prompts().into_iter().zip(case.generate(&case.prompts(), &options)) {
            let mut ids = [&prompt[..], &found.tokens].concat();
            ids.extend((found.finish == Finish::EndOfText).then_some(END));
            let learn: Vec<bool> = (0..ids.len()).map(|i| i >= prompt.len()).collect();
            let texts = Texts { ids: &ids, offsets: &[0, ids.len()], learn: &learn };
            let (memory, stop) = (&mut Memory::default(), &AtomicBool::new(false));
            let context = Context::new(case.parameters.read(), &case.table, memory, stop);
            let losses = case.decoder.net.losses(context, texts);
            let length = (ids.len() - prompt.len()) as f32;
            let want = -losses.unwrap().iter().sum::<f32>() / length.powf(0.8);
            let score = found.score.unwrap();
            assert!((score - want).abs() <= 1e-4 * want.abs(), "{model}: {score}, the losses say {want}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_batch() {
    // 20 together are more than a pass has room for, so that prompts go through in parts.
    let lengths: Vec<usize> = (0..20).map(|n| 1 + n * 23 % 47).collect();
    let prompts = made_prompts(&lengths);
    let all = [
        GenerateOptions { end_tokens: vec![2, 11, 45], ..options() },
        GenerateOptions { temperature: 0.9, top_k: 30, top_p: 0.95, seed: 4, ..options() },
        GenerateOptions { num_beams: 3, end_tokens: vec![2, 45], ..options() },
    ];
    let case = Case::load("llama");
    for options in all {
        let one = case.generate(&prompts, &GenerateOptions { batch_size: 1, ..options.clone() });
        for batch_size in [3, 20] {
            let together = case.generate(&prompts, &GenerateOptions { batch_size, ..options.clone() });
            for (one, other) in one.iter().zip(&together) {
                assert_eq!((&one.tokens, one.finish), (&other.tokens, other.finish), "{batch_size}");
            }
        }
    }
}

#[test]
fn draws_follow_the_seed() {
    let case = Case::load("qwen2");
    let prompts = vec![case.prompts()[0].clone(); 2];
    let draw = |seed| case.generate(&prompts, &GenerateOptions { temperature: 1.0, seed, ..options() });
    let first = draw(1);
    assert_eq!(first, draw(1));
    assert_ne!(first, draw(2));
    // The same prompt at another place draws other tokens.
    assert_ne!(first[0].tokens, first[1].tokens);
}

#[test]
fn generation_ends_where_the_context_ends() {
    let case = Case::load("llama");
    let prompts = made_prompts(&[CONTEXT - 1, CONTEXT - 5]);
    for num_beams in [1, 3] {
        let options = GenerateOptions { num_beams, end_tokens: Vec::new(), ..options() };
        let found = case.generate(&prompts, &options);
        let ends: Vec<_> = found.iter().map(|g| (g.tokens.len(), g.finish)).collect();
        assert_eq!(ends, [(1, Finish::Length), (5, Finish::Length)]);
    }
}

#[test]
fn prompts_that_do_not_fit_are_errors() {
    let case = Case::load("llama");
    let message = |prompt: Vec<u32>| match case.try_generate(&[vec![5], prompt], &options()) {
        Err(Error::Input(message)) => message,
        other => panic!("{other:?}"),
    };
    let long = message(made_prompts(&[CONTEXT]).remove(0));
    assert!(["prompt 2", "has 64 tokens", "context is 64"].iter().all(|part| long.contains(part)), "{long}");
    assert!(message(Vec::new()).contains("prompt 2: it has no tokens"));
    assert!(message(vec![4, 96]).contains("token 96"));
}

#[test]
fn stop_strings_end_the_text() {
    let case = Case::with_tokens("llama");
    let prompt = &case.prompts()[..1];
    // Greedy: 84 68 70 51 61 68 61 13 …
    let stop = |stop: &[&str], num_beams| {
        let stop = stop.iter().map(|s| s.to_string()).collect();
        case.generate(prompt, &GenerateOptions { stop, num_beams, ..options() }).remove(0)
    };
    let all = stop(&[], 1);
    assert!(all.text.as_ref().unwrap().starts_with(" w84 w68 w51 w61 w68"), "{all:?}");
    let found = stop(&["xyz", "1 w6"], 1);
    assert_eq!(found.tokens, [84, 68, 70, 51, 61]);
    assert_eq!((found.text.as_deref(), found.finish), (Some(" w84 w68 w5"), Finish::Stop));
    // A special token's name.
    let found = stop(&["<|70|>"], 1);
    assert_eq!((found.tokens, found.finish), (vec![84, 68], Finish::EndOfText));
    // Each beam has a text of its own. The best of four: 11 21 90 70 18 6 …
    let strings = ["1 w21", " w1", " w6", " w3"];
    let found = stop(&strings, 4);
    assert_eq!(found.finish, Finish::Stop);
    assert!(!strings.iter().any(|stop| found.text.as_ref().unwrap().contains(stop)), "{found:?}");
}

#[test]
fn stop_strings_without_a_tokenizer_are_refused() {
    let case = Case::load("llama");
    let options = GenerateOptions { stop: vec!["x".into()], ..options() };
    assert!(matches!(case.try_generate(&case.prompts(), &options), Err(Error::Usage(_))));
}

#[test]
fn more_beams_than_tokens_are_refused() {
    let case = Case::load("llama");
    let beams = |num_beams| case.try_generate(&[vec![5]], &GenerateOptions { num_beams, ..options() });
    assert!(beams(48).is_ok());
    assert!(matches!(beams(49), Err(Error::Usage(_))));
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    for num_beams in [1, 2] {
        let mut case = Case::load("llama");
        let module = ModuleId { layer: 2, kind: ModuleKind::Output };
        let (_, values, _) = case.parameters.split();
        values[values.len() - 1] = f32::NAN;
        assert!(case.table.get(module).is_some());
        match case.try_generate(&case.prompts(), &GenerateOptions { num_beams, ..options() }) {
            Err(Error::NotFinite(message)) => {
                assert!(message.contains("prompt 1, after ") && message.contains("logit NaN"), "{message}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_raised_flag_interrupts() {
    let case = Case::load("llama");
    let Case { decoder, parameters, table, .. } = &case;
    let model = Model { decoder, parameters, table, tokens: None };
    let cancel = Cancel::new();
    let mut told = 0;
    let mut listen = |_: usize, _: GenerateEvent| {
        told += 1;
        if told == 3 {
            cancel.raise();
        }
    };
    let prompts = &case.prompts()[..1];
    let found = generate(model, prompts, &options(), &mut Memory::default(), &cancel, &mut listen);
    assert!(matches!(found, Err(Error::Interrupted)));
    assert_eq!(told, 3);
}
