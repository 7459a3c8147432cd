//! What transformers calls the parts of each architecture: modules, weights, and the targets that PEFT knows.

use crate::config::{Architecture, EncoderConfig};
use crate::error::{Error, Result};
use crate::module::{ModuleId, ModuleKind};

impl Architecture {
    /// Every architecture.
    pub const ALL: [Architecture; 4] =
        [Architecture::Bert, Architecture::Roberta, Architecture::Mpnet, Architecture::Llama];

    /// What it is called in messages and files: `bert`, `llama`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            encoder => encoder.prefix(),
        }
    }

    /// Attribute of the encoder in a transformers model with a head: every encoder weight's name starts with it and a
    /// dot, except in the checkpoint of a bare encoder.
    pub fn prefix(self) -> &'static str {
        match self {
            Architecture::Bert => "bert",
            Architecture::Roberta => "roberta",
            Architecture::Mpnet => "mpnet",
            Architecture::Llama => "model",
        }
    }

    /// The kinds of linear layers that a block has, in the order in which it computes them.
    pub fn kinds(self) -> &'static [ModuleKind] {
        use ModuleKind::*;
        match self {
            Architecture::Llama => &[Query, Key, Value, AttentionOutput, Gate, Intermediate, Output],
            _ => &[Query, Key, Value, AttentionOutput, Intermediate, Output],
        }
    }

    /// The module's name within its layer: `attention.self.query`.
    pub fn module_name(self, kind: ModuleKind) -> &'static str {
        use ModuleKind::*;
        match (self, kind) {
            (Architecture::Llama, Query) => "self_attn.q_proj",
            (Architecture::Llama, Key) => "self_attn.k_proj",
            (Architecture::Llama, Value) => "self_attn.v_proj",
            (Architecture::Llama, AttentionOutput) => "self_attn.o_proj",
            (Architecture::Llama, Intermediate) => "mlp.up_proj",
            (Architecture::Llama, Output) => "mlp.down_proj",
            (_, Gate) => "mlp.gate_proj",
            (Architecture::Mpnet, Query) => "attention.attn.q",
            (Architecture::Mpnet, Key) => "attention.attn.k",
            (Architecture::Mpnet, Value) => "attention.attn.v",
            (Architecture::Mpnet, AttentionOutput) => "attention.attn.o",
            (_, Query) => "attention.self.query",
            (_, Key) => "attention.self.key",
            (_, Value) => "attention.self.value",
            (_, AttentionOutput) => "attention.output.dense",
            (_, Intermediate) => "intermediate.dense",
            (_, Output) => "output.dense",
        }
    }

    /// The name by which PEFT's users target the module, and under which it is shown: `query`, `q`,
    /// `intermediate.dense`.
    ///
    /// By PEFT's suffix rule BERT's `output.dense` means `attention.output.dense` as well; to say exactly one of them,
    /// an adapter's configuration needs `module_path`.
    pub fn short_name(self, kind: ModuleKind) -> &'static str {
        let name = self.module_name(kind);
        match kind {
            ModuleKind::Query | ModuleKind::Key | ModuleKind::Value => last_part(name),
            _ if self == Architecture::Llama => last_part(name),
            ModuleKind::AttentionOutput if self == Architecture::Mpnet => last_part(name),
            _ => name,
        }
    }

    /// The module's full name in the transformers model with a head: `bert.encoder.layer.3.attention.self.query`.
    pub fn module_path(self, module: ModuleId) -> String {
        format!("{}.{}.{}", self.prefix(), self.layer(module.layer), self.module_name(module.kind))
    }

    /// The linear layers behind the blocks: the pooler with its prefix, the head without.
    pub fn head_linears(self) -> &'static [&'static str] {
        match self {
            Architecture::Bert => &["bert.pooler.dense", "classifier"],
            Architecture::Roberta | Architecture::Mpnet => &["classifier.dense", "classifier.out_proj"],
            Architecture::Llama => &["score"],
        }
    }

    /// Every linear layer's full name in the transformers model for sequence classification, in the model's order.
    pub fn linear_names(self, layers: usize) -> Vec<String> {
        let blocks = (0..layers).flat_map(|layer| {
            self.kinds().iter().map(move |&kind| self.module_path(ModuleId { layer, kind }))
        });
        blocks.chain(self.head_linears().iter().map(|s| s.to_string())).collect()
    }

    /// The module of a block with this full name, if it is one: the inverse of `module_path`.
    pub fn module_at(self, path: &str) -> Option<ModuleId> {
        let rest = path.strip_prefix(self.prefix())?.strip_prefix('.')?.strip_prefix(self.layers())?;
        let (number, name) = rest.strip_prefix('.')?.split_once('.')?;
        let kind = self.kinds().iter().copied().find(|k| self.module_name(*k) == name)?;
        let layer = number.parse().ok()?;
        (self.module_path(ModuleId { layer, kind }) == path).then_some(ModuleId { layer, kind })
    }

    /// The kinds of linear layers that these targets name, in block order, each once; in every layer.
    ///
    /// As in PEFT, a target names each module whose name is the target or ends with a dot and the target, here within
    /// a block. `all-linear` names every linear layer of the block; no target at all means query and value.
    ///
    /// # Errors
    /// `Error::Target` for a target that names nothing in a block.
    pub fn resolve_targets(self, targets: &[String]) -> Result<Vec<ModuleKind>> {
        if targets.is_empty() {
            return Ok(vec![ModuleKind::Query, ModuleKind::Value]);
        }
        let names = |target: &str, kind: ModuleKind| {
            let rest = self.module_name(kind).strip_suffix(target);
            target == "all-linear" || rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let known = |target: &&String| self.kinds().iter().any(|k| !target.is_empty() && names(target, *k));
        if let Some(unknown) = targets.iter().find(|t| !known(t)) {
            let mut known: Vec<_> = self.kinds().iter().map(|k| self.short_name(*k).to_string()).collect();
            known.push("all-linear".into());
            return Err(Error::Target { target: unknown.clone(), architecture: self.name().into(), known });
        }
        Ok(self.kinds().iter().copied().filter(|k| targets.iter().any(|t| names(t, *k))).collect())
    }

    /// Whether it reads from left to right.
    pub fn is_decoder(self) -> bool {
        self == Architecture::Llama
    }

    /// What the blocks' list is called, without the prefix.
    pub fn layers(self) -> &'static str {
        if self.is_decoder() { "layers" } else { "encoder.layer" }
    }

    /// A block, without the prefix: `encoder.layer.3`.
    pub fn layer(self, number: usize) -> String {
        format!("{}.{number}", self.layers())
    }

    // Names of weights, without the prefix, as `Weights::take` wants them.

    /// The linear layer of a block: the stem of its `.weight` (out, in) and `.bias` (out).
    pub fn linear(self, module: ModuleId) -> String {
        format!("{}.{}", self.layer(module.layer), self.module_name(module.kind))
    }

    /// The norm behind attention and its residual: the stem of `.weight` and `.bias` (hidden).
    pub fn attention_norm(self, number: usize) -> String {
        match self {
            Architecture::Mpnet => format!("{}.attention.LayerNorm", self.layer(number)),
            _ => format!("{}.attention.output.LayerNorm", self.layer(number)),
        }
    }

    /// The norm behind the feed-forward part and its residual: the stem of `.weight` and `.bias` (hidden).
    pub fn output_norm(self, number: usize) -> String {
        format!("{}.output.LayerNorm", self.layer(number))
    }

    /// (vocabulary, hidden)
    pub fn word_embeddings(self) -> &'static str {
        "embeddings.word_embeddings.weight"
    }

    /// (positions, hidden)
    pub fn position_embeddings(self) -> &'static str {
        "embeddings.position_embeddings.weight"
    }

    /// (types, hidden); MPNet has none.
    pub fn token_type_embeddings(self) -> Option<&'static str> {
        (self != Architecture::Mpnet).then_some("embeddings.token_type_embeddings.weight")
    }

    /// The norm of the embeddings' sum: the stem of `.weight` and `.bias` (hidden).
    pub fn embedding_norm(self) -> &'static str {
        "embeddings.LayerNorm"
    }

    /// (buckets, heads), one table for all layers; MPNet alone.
    pub fn relative_bias(self) -> Option<&'static str> {
        (self == Architecture::Mpnet).then_some("encoder.relative_attention_bias.weight")
    }

    /// BERT's pooler, whose classifier stands behind it: the stem of `.weight` (hidden, hidden) and `.bias`.
    pub fn pooler(self) -> Option<&'static str> {
        (self == Architecture::Bert).then_some("pooler.dense")
    }
}

impl EncoderConfig {
    /// Every weight of the encoder with its shape, named without the prefix, from input to output; BERT's pooler
    /// included, the head not.
    pub fn encoder_weights(&self) -> Vec<(String, Vec<usize>)> {
        let (a, hidden) = (self.architecture, self.hidden_size);
        let affine = |stem: &str, out: usize, weight: Vec<usize>| {
            [(format!("{stem}.weight"), weight), (format!("{stem}.bias"), vec![out])]
        };
        let norm = |stem: &str| affine(stem, hidden, vec![hidden]);
        let mut list = vec![
            (a.word_embeddings().to_string(), vec![self.vocab_size, hidden]),
            (a.position_embeddings().to_string(), vec![self.max_positions, hidden]),
        ];
        if let Some(name) = a.token_type_embeddings() {
            list.push((name.to_string(), vec![self.type_vocab_size, hidden]));
        }
        list.extend(norm(a.embedding_norm()));
        for layer in 0..self.layers {
            for &kind in a.kinds() {
                let (out, input) = self.linear_shape(kind);
                list.extend(affine(&a.linear(ModuleId { layer, kind }), out, vec![out, input]));
                match kind {
                    ModuleKind::AttentionOutput => list.extend(norm(&a.attention_norm(layer))),
                    ModuleKind::Output => list.extend(norm(&a.output_norm(layer))),
                    _ => {}
                }
            }
        }
        if let Some(name) = a.relative_bias() {
            list.push((name.to_string(), vec![self.relative_buckets, self.heads]));
        }
        if let Some(stem) = a.pooler() {
            list.extend(affine(stem, hidden, vec![hidden, hidden]));
        }
        list
    }

    /// The head's weights with their shapes and full names (heads have no prefix), for this many outputs.
    pub fn head_weights(&self, outputs: usize) -> Vec<(&'static str, Vec<usize>)> {
        let hidden = self.hidden_size;
        match self.architecture {
            Architecture::Bert => {
                vec![("classifier.weight", vec![outputs, hidden]), ("classifier.bias", vec![outputs])]
            }
            _ => vec![
                ("classifier.dense.weight", vec![hidden, hidden]),
                ("classifier.dense.bias", vec![hidden]),
                ("classifier.out_proj.weight", vec![outputs, hidden]),
                ("classifier.out_proj.bias", vec![outputs]),
            ],
        }
    }

    /// (out, in) of a block's linear layer.
    pub fn linear_shape(&self, kind: ModuleKind) -> (usize, usize) {
        match kind {
            ModuleKind::Intermediate => (self.intermediate_size, self.hidden_size),
            ModuleKind::Output => (self.hidden_size, self.intermediate_size),
            _ => (self.hidden_size, self.hidden_size),
        }
    }
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ModuleKind::*;

    fn resolve(architecture: Architecture, targets: &[&str]) -> Result<Vec<ModuleKind>> {
        architecture.resolve_targets(&targets.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn targets_follow_the_suffix_rule() {
        use Architecture::*;
        assert_eq!(resolve(Bert, &[]).unwrap(), [Query, Value]);
        assert_eq!(resolve(Bert, &["value", "query", "value"]).unwrap(), [Query, Value]);
        assert_eq!(resolve(Bert, &["self.key"]).unwrap(), [Key]);
        assert_eq!(resolve(Bert, &["output.dense"]).unwrap(), [AttentionOutput, Output]);
        assert_eq!(resolve(Mpnet, &["output.dense"]).unwrap(), [Output]);
        assert_eq!(resolve(Roberta, &["dense"]).unwrap(), [AttentionOutput, Intermediate, Output]);
        assert_eq!(resolve(Mpnet, &["o", "attention.attn.q"]).unwrap(), [Query, AttentionOutput]);
        assert_eq!(resolve(Roberta, &["all-linear"]).unwrap(), Roberta.kinds());
        assert_eq!(resolve(Llama, &["all-linear"]).unwrap(), Llama.kinds());
        assert_eq!(resolve(Llama, &["gate_proj", "q_proj"]).unwrap(), [Query, Gate]);
    }

    #[test]
    fn an_unknown_target_is_an_error_that_lists_the_names() {
        // `ense` and `lf.query` end a name, but not behind a dot; a layer's number cannot be a target.
        for target in ["q_proj", "ense", "lf.query", "", "layer.0.attention.self.query", "classifier"] {
            let text = resolve(Architecture::Bert, &["query", target]).unwrap_err().to_string();
            assert!(text.contains(&format!("target module {target:?} ")), "{text}");
            assert!(text.contains("query, key, value, attention.output.dense, intermediate.dense"), "{text}");
        }
        let text = resolve(Architecture::Mpnet, &["query"]).unwrap_err().to_string();
        assert!(text.contains("q, k, v, o, intermediate.dense, output.dense, all-linear"), "{text}");
    }

    #[test]
    fn a_path_leads_back_to_its_module() {
        for architecture in
            [Architecture::Bert, Architecture::Roberta, Architecture::Mpnet, Architecture::Llama]
        {
            for &kind in architecture.kinds() {
                let module = ModuleId { layer: 11, kind };
                assert_eq!(architecture.module_at(&architecture.module_path(module)), Some(module));
            }
        }
        let bert = Architecture::Bert;
        assert_eq!(
            bert.module_path(ModuleId { layer: 3, kind: Query }),
            "bert.encoder.layer.3.attention.self.query"
        );
        for path in [
            "bert.pooler.dense",
            "bert.encoder.layer.03.output.dense",
            "roberta.encoder.layer.3.output.dense",
        ] {
            assert_eq!(bert.module_at(path), None, "{path}");
        }
    }
}
