//! An adapter in llama.cpp's format: a GGUF file with each adapted layer's A and B.

use std::path::Path;

use lora_drop_transformer::gguf::{AdapterPair, GgufArchitecture, write_adapter};
use lora_drop_transformer::{ModelConfig, ModuleId};

use super::file::AdapterFile;
use super::spec;
use crate::files::write_atomically;
use crate::{Error, Result};

impl AdapterFile {
    /// Writes the adapter of a causal language model; `config` is the base's.
    ///
    /// The file has one alpha, and a layer's scale is alpha / rank. If ranks or scales differ, the
    /// remaining factor of a layer's scale is multiplied into its B, and so are a module's own
    /// vectors. A shared pair is written once for every layer that uses it.
    ///
    /// # Errors
    /// The adapter has no LoRA, has a head, or does not fit the model; the file cannot be written.
    pub fn write_gguf(&self, path: &Path, config: &ModelConfig) -> Result<()> {
        self.check_fit(config)?;
        let refuse = |problem: String| Error::file(path, problem);
        if let Some(name) = self.head.keys().next() {
            return Err(refuse(format!(
                "the adapter has a head ({name}), which GGUF adapters cannot store; merge it to safetensors instead"
            )));
        }
        if config.tied && self.modules.contains_key(&ModuleId::LM_HEAD) {
            return Err(refuse(
                "the adapter has a LoRA on lm_head, which is the table of embeddings in this model, and llama.cpp finds \
                 no such tensor; write its merged model as GGUF instead"
                    .into(),
            ));
        }
        let plain = self.folded(Some(config));
        if let Some(vector) = spec(plain.method).vectors.first() {
            return Err(refuse(format!(
                "a {} adapter, and llama.cpp's adapters cannot store its {} vectors; write its merged model as GGUF instead",
                self.method.name(),
                vector.name
            )));
        }
        let architecture = GgufArchitecture::of_config(config).map_err(refuse)?;
        let alpha = |pair: usize| plain.scale(&plain.pairs[pair]) * plain.pairs[pair].rank as f64;
        let Some(common) = plain.modules.values().next().map(|pair| alpha(*pair)) else {
            return Err(refuse("no module has a LoRA, so there is no adapter to write".into()));
        };
        if !(common.is_finite() && common != 0.0 && (common as f32).is_finite()) {
            return Err(refuse(format!("the adapter's alpha is {common}, expected a number that is not 0")));
        }
        let scaled = plain.pairs.iter().enumerate().map(|(number, pair)| {
            let factor = alpha(number) / common;
            match factor == 1.0 {
                true => pair.b.clone(),
                false => pair.b.iter().map(|b| (f64::from(*b) * factor) as f32).collect(),
            }
        });
        let scaled: Vec<Vec<f32>> = scaled.collect();
        let names: Vec<_> = plain.modules.keys().map(|id| config.architecture.module_path(*id)).collect();
        let pairs = names.iter().zip(plain.modules.values()).map(|(module, &number)| AdapterPair {
            module,
            rank: plain.pairs[number].rank,
            a: &plain.pairs[number].a,
            b: &scaled[number],
        });
        let pairs: Vec<_> = pairs.collect();
        let heads = (config.heads, config.kv_heads);
        write_atomically(path, |out| write_adapter(out, architecture, common as f32, heads, &pairs).map(drop))
    }
}
