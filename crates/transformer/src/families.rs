//! Architectures as graphs: what each is, in a function a segment.

use lora_drop_compute::activation;
use lora_drop_compute::attention::Sight;
use lora_drop_compute::device::{Cpu, Relative};

use crate::config::{Activation, Architecture, EncoderConfig};
use crate::decoder_config::DecoderConfig;
use crate::drops::Site;
use crate::linear::{LinearWeights, Weight};
use crate::module::{ModuleId, ModuleKind};
use crate::network::graph::{self, Builder, Drop, Heads, Index, LayerId, Rate, Rows, Segment, WeightId};
use crate::network::{Network, Reads};

/// Finds a weight by its name, each once.
pub type Find<'a> = &'a mut dyn FnMut(&str) -> Weight;

/// Weights and layers as segments name them.
struct Parts<'a> {
    layers: Vec<LinearWeights>,
    weights: Vec<Weight>,
    widths: Vec<usize>,
    find: Find<'a>,
}

impl Parts<'_> {
    fn weight(&mut self, name: &str, width: usize) -> WeightId {
        self.weights.push((self.find)(name));
        self.widths.push(width);
        self.weights.len() - 1
    }

    /// A norm's γ and β.
    fn norm(&mut self, stem: &str, width: usize) -> [WeightId; 2] {
        ["weight", "bias"].map(|part| self.weight(&format!("{stem}.{part}"), width))
    }

    fn layer(
        &mut self,
        stem: &str,
        bias: bool,
        (output, input): (usize, usize),
        module: Option<ModuleId>,
    ) -> LayerId {
        let weight = (self.find)(&format!("{stem}.weight"));
        let bias = bias.then(|| (self.find)(&format!("{stem}.bias")));
        self.layers.push(LinearWeights {
            weight,
            bias,
            input,
            output,
            precision: Default::default(),
            module,
        });
        self.layers.len() - 1
    }
}

fn drop(site: Site, rate: Rate, by_row: bool) -> Drop {
    Drop { site, rate, by_row }
}

/// BERT, RoBERTa and MPNet: y₁ = norm(x + drop(O · attention(Q x, K x, V x))), y = norm(y₁ + drop(W₂ · act(W₁ y₁))), and on the
/// first token a dense layer with tanh and the output layer.
pub fn encoder(config: &EncoderConfig, outputs: usize, find: Find) -> Network {
    let (arch, h) = (config.architecture, config.hidden_size);
    let mut parts = Parts { layers: Vec::new(), weights: Vec::new(), widths: Vec::new(), find };
    // BERT counts positions from 0, the others behind the padding's.
    let first = match arch {
        Architecture::Bert => 0,
        Architecture::Roberta | Architecture::Mpnet | Architecture::Llama => config.pad_token_id as u32 + 1,
    };
    let mut tables = vec![
        (parts.weight(arch.word_embeddings(), h), Index::Tokens),
        (parts.weight(arch.position_embeddings(), h), Index::Positions(first)),
    ];
    if let Some(name) = arch.token_type_embeddings() {
        tables.push((parts.weight(name, h), Index::Types));
    }
    let norm = parts.norm(arch.embedding_norm(), h);
    let mut b = Builder::new(None);
    let sum = b.embed(tables, h);
    let normed = b.layer_norm(sum, None, norm, config.layer_norm_eps);
    let dropped = b.dropout(normed, drop(Site::Embedding, Rate::Hidden, true));
    let embedding = b.finish(dropped);

    let layers: Vec<EncoderLayer> = (0..config.layers)
        .map(|number| {
            let linears = arch.kinds().iter().map(|&kind| {
                let module = ModuleId { layer: number, kind };
                parts.layer(&arch.linear(module), true, config.linear_shape(kind), Some(module))
            });
            EncoderLayer {
                number,
                linears: linears.collect(),
                attention_norm: parts.norm(&arch.attention_norm(number), h),
                output_norm: parts.norm(&arch.output_norm(number), h),
            }
        })
        .collect();
    let blocks: Vec<Segment> = layers.iter().map(|layer| layer.block(config, false)).collect();
    let relative = arch.relative_bias().map(|name| {
        let of = Relative { buckets: config.relative_buckets, heads: config.heads, reach: 0 };
        (parts.weight(name, config.heads), of)
    });
    let [dense, output] = match arch {
        Architecture::Bert => ["pooler.dense", "classifier"],
        Architecture::Roberta | Architecture::Mpnet | Architecture::Llama => {
            ["classifier.dense", "classifier.out_proj"]
        }
    };
    let head = EncoderHead {
        dense: parts.layer(dense, true, (h, h), None),
        output: parts.layer(output, true, (outputs, h), None),
        outputs,
        drops_input: arch != Architecture::Bert,
    };
    let last = layers.last().expect("a model has a block");
    let Parts { layers, weights, widths, .. } = parts;
    Network {
        device: Cpu,
        first: Some([last.block(config, true), head.head(h, Rows::Chosen)]),
        head: head.head(h, Rows::Tokens),
        layers,
        weights,
        widths,
        embedding,
        blocks,
        hidden: h,
        reads: Reads::First,
        tied: false,
        relative,
        frequencies: Vec::new(),
    }
}

struct EncoderLayer {
    number: usize,
    /// By kind.
    linears: Vec<LayerId>,
    attention_norm: [WeightId; 2],
    output_norm: [WeightId; 2],
}

impl EncoderLayer {
    /// With `first`, past keys and values for first tokens alone.
    fn block(&self, config: &EncoderConfig, first: bool) -> Segment {
        use ModuleKind::*;
        let (number, epsilon) = (self.number, config.layer_norm_eps);
        let of = |kind: ModuleKind| (self.linears[kind as usize], config.linear_shape(kind).0);
        let mut b = Builder::new(Some(graph::Value { rows: Rows::Tokens, width: config.hidden_size }));
        let x = b.input();
        let (asking, qkv) = if first {
            let asking = b.gather(x);
            let [q] = b.linear(asking, [of(Query)]);
            let [k, v] = b.linear(x, [of(Key), of(Value)]);
            (asking, [q, k, v])
        } else {
            (x, b.linear(x, [of(Query), of(Key), of(Value)]))
        };
        let heads = Heads {
            heads: config.heads,
            kv_heads: config.heads,
            width: config.head_size(),
            scale: 1.0 / (config.head_size() as f32).sqrt(),
            sight: Sight::All,
            biased: true,
        };
        let context = b.attention(qkv, heads, drop(Site::Attention(number), Rate::Attention, false));
        let [branch] = b.linear(context, [of(AttentionOutput)]);
        let residual = (asking, drop(Site::AttentionOutput(number), Rate::Hidden, true));
        let middle = b.layer_norm(branch, Some(residual), self.attention_norm, epsilon);
        let [pre] = b.linear(middle, [of(Intermediate)]);
        let inner = b.activation(
            pre,
            match config.activation {
                Activation::Gelu => activation::Activation::Gelu,
                Activation::GeluTanh => activation::Activation::GeluTanh,
                Activation::Relu => activation::Activation::Relu,
            },
        );
        let [branch] = b.linear(inner, [of(Output)]);
        let residual = (middle, drop(Site::Output(number), Rate::Hidden, true));
        let y = b.layer_norm(branch, Some(residual), self.output_norm, epsilon);
        b.finish(y)
    }
}

struct EncoderHead {
    /// BERT's pooler, or the head's own: (hidden, hidden).
    dense: LayerId,
    output: LayerId,
    outputs: usize,
    /// BERT: drop(tanh(dense x)), RoBERTa and MPNet: drop(tanh(dense drop(x))).
    drops_input: bool,
}

impl EncoderHead {
    fn head(&self, hidden: usize, rows: Rows) -> Segment {
        let mut b = Builder::new(Some(graph::Value { rows, width: hidden }));
        let input = b.input();
        let mut x = b.gather(input);
        if self.drops_input {
            x = b.dropout(x, drop(Site::HeadInput, Rate::Head, false));
        }
        let [pre] = b.linear(x, [(self.dense, hidden)]);
        let inner = b.activation(pre, activation::Activation::Tanh);
        let dropped = b.dropout(inner, drop(Site::HeadInner, Rate::Head, false));
        let [logits] = b.linear(dropped, [(self.output, self.outputs)]);
        b.finish(logits)
    }
}

/// What a decoder's head is: its layer, whether it has a bias, and what it reads.
pub struct DecoderHead<'a> {
    /// The stem of its names.
    pub name: &'a str,
    pub outputs: usize,
    pub reads: Reads,
}

/// Llama's kind: x₁ = x + O · attention(rotated Q n, K n, V n), y = x₁ + W₂(SiLU(W_g n₁) · W₁ n₁), with n and n₁ the RMS norms of x
/// and x₁; and behind the last norm a linear layer.
pub fn decoder(config: &DecoderConfig, head: DecoderHead, find: Find) -> Network {
    use ModuleKind::*;
    let (arch, h, epsilon) = (config.architecture, config.hidden_size, config.rms_norm_eps);
    let mut parts = Parts { layers: Vec::new(), weights: Vec::new(), widths: Vec::new(), find };
    let mut b = Builder::new(None);
    let tokens = b.embed(vec![(parts.weight("embed_tokens.weight", h), Index::Tokens)], h);
    let embedding = b.finish(tokens);
    let mut block = |number: usize| {
        let layer = arch.layer(number);
        let mut linear = |kind: ModuleKind| {
            let module = ModuleId { layer: number, kind };
            let shape = config.linear_shape(kind);
            (parts.layer(&arch.linear(module), config.has_bias(kind), shape, Some(module)), shape.0)
        };
        let linears = ModuleKind::ALL.map(&mut linear);
        let of = |kind: ModuleKind| linears[kind as usize];
        let mut b = Builder::new(Some(graph::Value { rows: Rows::Tokens, width: h }));
        let x = b.input();
        let n = b.rms_norm(x, parts.weight(&format!("{layer}.input_layernorm.weight"), h), epsilon);
        let [mut q, mut k, v] = b.linear(n, [of(Query), of(Key), of(Value)]);
        if config.qk_norm {
            let mut norm =
                |part: &str| parts.weight(&format!("{layer}.self_attn.{part}.weight"), config.head_dim);
            q = b.rms_norm(q, norm("q_norm"), epsilon);
            k = b.rms_norm(k, norm("k_norm"), epsilon);
        }
        let qkv = [b.rotary(q), b.rotary(k), v];
        let heads = Heads {
            heads: config.heads,
            kv_heads: config.kv_heads,
            width: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            sight: Sight::Causal { window: config.windows[number] },
            biased: false,
        };
        let context = b.attention(qkv, heads, drop(Site::Attention(number), Rate::Attention, false));
        let [branch] = b.linear(context, [of(AttentionOutput)]);
        let middle = b.add(x, branch);
        let gamma = parts.weight(&format!("{layer}.post_attention_layernorm.weight"), h);
        let n = b.rms_norm(middle, gamma, epsilon);
        let [gate, up] = b.linear(n, [of(Gate), of(Intermediate)]);
        let inner = b.gate(gate, up);
        let [branch] = b.linear(inner, [of(Output)]);
        let y = b.add(middle, branch);
        b.finish(y)
    };
    let blocks = (0..config.layers).map(&mut block).collect();
    let mut b = Builder::new(Some(graph::Value { rows: Rows::Tokens, width: h }));
    let x = b.input();
    let x = b.gather(x);
    let n = b.rms_norm(x, parts.weight("norm.weight", h), epsilon);
    let [logits] = b.linear(n, [(parts.layer(head.name, false, (head.outputs, h), None), head.outputs)]);
    let head_segment = b.finish(logits);
    let Parts { layers, weights, widths, .. } = parts;
    Network {
        device: Cpu,
        layers,
        weights,
        widths,
        embedding,
        blocks,
        head: head_segment,
        first: None,
        hidden: h,
        reads: head.reads,
        tied: head.reads == Reads::Learned && config.tied,
        relative: None,
        frequencies: config.rope_frequencies.clone(),
    }
}
