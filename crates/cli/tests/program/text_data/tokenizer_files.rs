//! A tokenizer's folder in the ways that models have it, and prompts with completions, against the
//! tokens of transformers (tests/golden/tokenizer_files.json, written by
//! tools/golden/tokenizer_files.py).

use lora_drop::data::text::TextOptions;
use lora_drop::data::{RowLimits, Tokens};
use serde_json::{Value, json};

use super::fixture::Folder;

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tokenizer_files.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A folder with these files beside the golden tokenizer, or with another.
fn folder(golden: &Value, files: &Value) -> Folder {
    let folder = Folder::new();
    folder.write("tokenizer.json", golden["tokenizer"].to_string());
    for (name, content) in files.as_object().unwrap() {
        folder.write(name, content.to_string());
    }
    folder
}

fn case<'a>(golden: &'a Value, name: &str) -> &'a Value {
    golden["files"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap()
}

#[test]
fn added_tokens_are_those_of_transformers() {
    let golden = golden();
    for case in golden["files"].as_array().unwrap() {
        let tokens = folder(&golden, &case["files"]).tokens();
        let size = tokens.tokenizer().get_vocab_size(true) as u64;
        assert_eq!(case["tokens"], size, "{}", case["name"]);
        for text in case["texts"].as_array().unwrap() {
            let limits = RowLimits { max_length: 1000, vocabulary: 1000, token_types: None };
            let seen = tokens.encode(text[0].as_str().unwrap(), None, limits).unwrap();
            assert_eq!(seen.ids, ids(&text[1]), "{}: {}", case["name"], text[0]);
        }
    }
}

#[test]
fn special_tokens_of_other_files_are_special() {
    let golden = golden();
    let special = |name: &str, token: &str| {
        folder(&golden, &case(&golden, name)["files"]).tokens().special(token).is_some()
    };
    assert!(special("decoder", "<new>") && !special("decoder", "<two>"));
    assert!(special("decoder_and_named", "<new>") && special("named", "<two>"));
    assert!(!special("added_tokens", "<new>") && special("added_tokens_special", "<new>"));
    assert!(special("in_vocabulary", "</s>"));
}

#[test]
fn settings_that_have_no_effect_are_named() {
    let golden = golden();
    let note =
        |name: &str| folder(&golden, &case(&golden, name)["files"]).tokens().note().map(str::to_string);
    let told = note("flags_LlamaTokenizer").unwrap();
    assert!(told.contains("tokenizer_config.json: add_bos_token and add_eos_token has no effect"), "{told}");
    assert!(note("flags_PreTrainedTokenizerFast").is_some());
    assert_eq!([note("flags_off"), note("nothing")], [None, None]);
    // The token is there.
    let files = json!({ "tokenizer_config.json": { "add_bos_token": true } });
    assert_eq!(folder(&golden, &files).tokens().note(), None);
}

#[test]
fn values_that_are_no_tokens_are_named() {
    let golden = golden();
    let refused = |files: Value| Tokens::open(folder(&golden, &files).path()).err().unwrap().to_string();
    for (decoder, expected) in [
        (json!([1]), "added_tokens_decoder is [1], expected an object"),
        (json!({ "first": "<new>" }), "the key \"first\", expected a token's number"),
        (json!({ "300": { "lstrip": true } }), "added_tokens_decoder has {\"lstrip\":true}"),
        (json!({ "300": 7 }), "added_tokens_decoder has 7"),
    ] {
        let told = refused(json!({ "tokenizer_config.json": { "added_tokens_decoder": decoder } }));
        assert!(told.contains("tokenizer_config.json") && told.contains(expected), "{told}");
    }
    let told = refused(json!({ "added_tokens.json": { "<new>": "last" } }));
    assert!(told.contains("added_tokens.json: the number of \"<new>\" is \"last\""), "{told}");
}

/// A row's ids and how many of them are the prompt's.
fn row(tokenizer: &Value, prompt: &str, completion: &str) -> (Vec<u32>, usize, bool) {
    let folder = Folder::new();
    folder.write("tokenizer.json", tokenizer.to_string());
    let row = json!({ "prompt": prompt, "completion": completion }).to_string();
    folder.write("train.jsonl", &row);
    folder.write("dev.jsonl", &row);
    let options = TextOptions { max_length: 100, ..TextOptions::new(1000, Some(2)) };
    let data = folder.load(None, &options).unwrap();
    let joined = data.warnings.iter().any(|warning| warning.contains("reaches back into the prompt"));
    let example = &data.train.examples[0];
    (example.ids.clone(), example.prompt(), joined)
}

/// Where the tokenizer puts a space before a text, a completion's tokens are those of prompt and
/// completion as one text; elsewhere the two are tokenised one after the other.
#[test]
fn no_space_comes_between_prompt_and_completion() {
    for case in golden()["prompts"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        for given in case["rows"].as_array().unwrap() {
            let [prompt, completion] = [0, 1].map(|i| given[i].as_str().unwrap());
            let [asked, whole, alone] = [2, 3, 4].map(|i| ids(&given[i]));
            let (seen, learned_from, joined) = row(&case["tokenizer"], prompt, completion);
            let apart = [&asked[..], &alone, &[2]].concat();
            let together = [&whole[..], &[2]].concat();
            let what = format!("{name}: {prompt:?} {completion:?}");
            assert_eq!(seen, if name == "never" { apart } else { together }, "{what}");
            // The prompt's tokens are what generation starts from, unless a token reaches back.
            assert_eq!(joined, name != "never" && !whole.starts_with(&asked), "{what}");
            let common = asked.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            assert_eq!(learned_from, if name == "never" { asked.len() } else { common }, "{what}");
        }
    }
}

/// Cut rows keep the tokens of whole ones, on either side.
#[test]
fn long_rows_are_cut_as_before() {
    let golden = golden();
    for side in ["right", "left"] {
        let files = json!({ "tokenizer_config.json": { "truncation_side": side } });
        let folder = folder(&golden, &files);
        let row = json!({ "prompt": "ab ".repeat(30), "completion": "c ab" }).to_string();
        folder.write("train.jsonl", &row);
        folder.write("dev.jsonl", &row);
        let options = TextOptions {
            max_length: 12,
            over_length: lora_drop::settings::OverLength::Truncate,
            ..TextOptions::new(1000, Some(2))
        };
        match (side, folder.load(None, &options)) {
            ("left", data) => {
                let example = &data.unwrap().train.examples[0];
                assert_eq!((example.ids.len(), example.ids[0], example.learned()), (12, 1, 3));
                assert_eq!(example.ids[9..], [269, 266, 2]);
            }
            (_, cut) => assert!(cut.is_err(), "nothing of the completion is left"),
        }
    }
}
