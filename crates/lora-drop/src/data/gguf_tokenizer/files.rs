//! A GGUF file's tokenizer as the files that transformers loads.

use std::path::Path;

use lora_drop_transformer::gguf::{Gguf, Value};
use serde_json::{Map, json};

use super::GgufTokenizer;
use crate::files::{write_bytes_atomically, write_json};
use crate::{Error, Result};

/// The files that [`write_tokenizer`] writes.
pub(crate) const WRITTEN_FILES: [&str; 3] =
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// Writes tokenizer.json, tokenizer_config.json with the special tokens and the chat template, and
/// generation_config.json into a folder that exists.
///
/// # Errors
/// Those of [`GgufTokenizer::read`], and of writing.
pub fn write_tokenizer(file: &Gguf, folder: &Path) -> Result<()> {
    let found = GgufTokenizer::read(file)?;
    let [tokenizer, config_file, generation_file] = WRITTEN_FILES;
    let path = folder.join(tokenizer);
    let text = found.tokenizer.to_string(true);
    let text = text.map_err(|e| Error::file(&path, e))?;
    write_bytes_atomically(&path, text.as_bytes())?;

    // This class takes everything from tokenizer.json; the architectures' own classes would add
    // rules.
    let mut config = Map::from_iter([
        ("tokenizer_class".to_string(), json!("PreTrainedTokenizerFast")),
        ("clean_up_tokenization_spaces".to_string(), json!(false)),
    ]);
    if let Ok(architecture) = file.architecture() {
        let length = file.value(&format!("{}.context_length", architecture.name)).and_then(Value::as_u64);
        config.extend(length.map(|length| ("model_max_length".to_string(), json!(length))));
    }
    let mut generation = Map::new();
    let ids = [("bos", found.bos), ("eos", found.eos), ("unk", found.unknown), ("pad", found.padding)];
    for (name, id) in ids {
        let Some(id) = id else { continue };
        config.extend(found.tokenizer.id_to_token(id).map(|text| (format!("{name}_token"), json!(text))));
        if name != "unk" {
            generation.insert(format!("{name}_token_id"), json!(id));
        }
    }
    config.extend(found.chat_template.map(|template| ("chat_template".to_string(), json!(template))));
    write_json(&folder.join(config_file), &config)?;
    write_json(&folder.join(generation_file), &generation)
}
