//! One block of a decoder: x₁ = x + O · attention(rotated Q n, K n, V n), y = x₁ + W₂(SiLU(W_g n₁) · W₁ n₁), with
//! n and n₁ the RMS norms of x and x₁.
//!
//! What the way back needs is kept in `Saved`; the norms' outputs and SiLU(…) · … are cheap and formed again.

use lora_drop_compute::attention::{Attention, Columns, ColumnsMut, Inputs, Kept, Queries, Sight};
use lora_drop_compute::gemm::{Precision, Start};
use lora_drop_compute::linear::Rows;
use lora_drop_compute::rotary::{RotaryTable, Turn};
use lora_drop_compute::{Arena, KeptValues, activation, norm, profile, rms_norm};

use super::config::DecoderConfig;
use crate::drops::{Drops, Site, SiteKeys};
use crate::linear::{ActiveLora, Grads, LinearWeights, Values, Weight};
use crate::lora::{LoraPair, LoraTable};
use crate::module::{ModuleId, ModuleKind};

/// A block's weights.
#[derive(Clone, Debug)]
pub struct Block {
    pub number: usize,
    /// By `ModuleKind`.
    pub linears: [LinearWeights; ModuleKind::ALL.len()],
    /// (hidden)
    pub input_norm: Weight,
    /// (hidden)
    pub middle_norm: Weight,
    /// The norms of each head of q and k, (head_dim) each, where the model has them.
    pub head_norms: Option<[Weight; 2]>,
}

/// What is the same for every block of a pass.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub values: Values<'a>,
    pub table: &'a LoraTable,
    pub config: &'a DecoderConfig,
    /// Where sequences start, and the end: (sequences + 1).
    pub offsets: &'a [usize],
    /// Each token's place in its sequence: (tokens).
    pub positions: &'a [u32],
    pub rotary: &'a RotaryTable,
    pub drops: Option<Drops<'a>>,
    /// Whether few rows are multiplied with each weight as it is read, which rounds otherwise than training's products.
    pub infer: bool,
    /// What training's products multiply in.
    pub precision: Precision,
}

impl Pass<'_> {
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }
}

/// A block's activations that the way back needs. Shapes with t tokens, h hidden, q and k the widths of all heads of
/// queries and of keys, i intermediate.
pub struct Saved<'a> {
    rstd: &'a mut [f32],                       // (t)
    q: &'a mut [f32],                          // (t, q): turned
    k: &'a mut [f32],                          // (t, k): turned
    v: &'a mut [f32],                          // (t, k)
    plain_q: &'a mut [f32],                    // (t, q): before its norm, where heads are normalised
    plain_k: &'a mut [f32],                    // (t, k)
    head_rstd: [&'a mut [f32]; 2],             // (t, heads), (t, kv heads)
    lse: &'a mut [f32],                        // (t, heads)
    context: &'a mut [f32],                    // (t, q)
    middle: &'a mut [f32],                     // (t, h): x₁
    middle_rstd: &'a mut [f32],                // (t)
    gate: KeptValues<'a>,                      // (t, i)
    up: KeptValues<'a>,                        // (t, i)
    z: [&'a mut [f32]; ModuleKind::ALL.len()], // (t, rank) each, scaled; empty without LoRA
}

impl<'a> Saved<'a> {
    pub fn take(arena: &mut Arena<'a>, pass: &Pass, layer: usize) -> Self {
        let c = pass.config;
        let t = pass.tokens();
        let (q, k) = (t * c.heads * c.head_dim, t * c.kv_heads * c.head_dim);
        let normed = usize::from(c.qk_norm);
        let inner = t * c.intermediate_size;
        let kept = |arena: &mut Arena<'a>| {
            KeptValues::new(pass.precision, inner, arena.take(KeptValues::floats(pass.precision, inner)))
        };
        Saved {
            rstd: arena.take(t),
            q: arena.take(q),
            k: arena.take(k),
            v: arena.take(k),
            plain_q: arena.take(normed * q),
            plain_k: arena.take(normed * k),
            head_rstd: [arena.take(normed * t * c.heads), arena.take(normed * t * c.kv_heads)],
            lse: arena.take(t * c.heads),
            context: arena.take(q),
            middle: arena.take(t * c.hidden_size),
            middle_rstd: arena.take(t),
            gate: kept(arena),
            up: kept(arena),
            z: ModuleKind::ALL.map(|kind| {
                let rank = pass.table.rank(ModuleId { layer, kind });
                arena.take(t * rank)
            }),
        }
    }

    /// The scaled z = s·A x of a module, (tokens, rank); empty where it has no LoRA.
    pub fn z(&self, kind: ModuleKind) -> &[f32] {
        self.z[kind as usize]
    }
}

/// What a block's buffers are measured by.
#[derive(Clone, Copy)]
pub struct Sizes<'a> {
    pub layer: usize,
    pub table: &'a LoraTable,
    pub config: &'a DecoderConfig,
    pub tokens: usize,
    pub lora_dropout: bool,
    pub precision: Precision,
}

impl Sizes<'_> {
    fn rank(&self, kind: ModuleKind) -> usize {
        self.table.rank(ModuleId { layer: self.layer, kind })
    }

    /// The widths of all heads of queries and of keys.
    fn widths(&self) -> (usize, usize) {
        let c = self.config;
        (c.heads * c.head_dim, c.kv_heads * c.head_dim)
    }

    fn dropped(&self, kinds: &[ModuleKind], width: usize) -> usize {
        let some = self.lora_dropout && kinds.iter().any(|&kind| self.rank(kind) > 0);
        if some { width } else { 0 }
    }

    /// Of these modules' LoRAs, the scratch of the largest for a token: dz, and with dropout the input of `width`.
    fn lora(&self, kinds: &[ModuleKind], width: usize) -> usize {
        kinds.iter().map(|&kind| self.rank(kind)).max().unwrap_or(0) + self.dropped(kinds, width)
    }

    /// Floats that `Saved` takes.
    pub fn saved(&self) -> usize {
        let (c, (q, k)) = (self.config, self.widths());
        let plain = if c.qk_norm { q + k + c.heads + c.kv_heads } else { 0 };
        let z: usize = ModuleKind::ALL.iter().map(|&kind| self.rank(kind)).sum();
        let inner = KeptValues::floats(self.precision, self.tokens * c.intermediate_size);
        self.tokens * (2 + 2 * q + 2 * k + plain + c.heads + c.hidden_size + z) + 2 * inner
    }

    /// Floats of scratch of `Block::forward`.
    pub fn forward(&self) -> usize {
        use ModuleKind::*;
        let (h, i, (q, _)) = (self.config.hidden_size, self.config.intermediate_size, self.widths());
        let norm = h + self.dropped(&[Query, Key, Value], h);
        let plain_up = if self.precision == Precision::Bf16 { i } else { 0 };
        let wide = self.dropped(&[Output], i).max(self.dropped(&[Gate, Intermediate], h));
        let inner = h + i + plain_up + wide;
        self.tokens * norm.max(self.dropped(&[AttentionOutput], q)).max(inner)
    }

    /// Floats of scratch of `Block::backward`.
    pub fn backward(&self) -> usize {
        use ModuleKind::*;
        let (h, i, (q, k)) = (self.config.hidden_size, self.config.intermediate_size, self.widths());
        let inner = 2 * i + self.lora(&[Output], i).max(2 * h + self.lora(&[Gate, Intermediate], h));
        let normed = if self.config.qk_norm { q + k } else { 0 };
        let qkv = 2 * q + 2 * k + normed + 2 * h + self.lora(&[Query, Key, Value], h);
        self.tokens * inner.max(q + self.lora(&[AttentionOutput], q)).max(qkv)
    }
}

/// The keys and values of the tokens before, (tokens, kv heads · head_dim) each, in one layer of one sequence.
pub struct Cached<'a> {
    pub k: &'a mut Vec<f32>,
    pub v: &'a mut Vec<f32>,
}

impl Block {
    fn pair(&self, pass: &Pass, kind: ModuleKind) -> Option<LoraPair> {
        pass.table.get(ModuleId { layer: self.number, kind })
    }

    fn lora_keys(&self, pass: &Pass, kind: ModuleKind) -> SiteKeys {
        match self.pair(pass, kind) {
            Some(_) => {
                let site = Site::Lora(ModuleId { layer: self.number, kind });
                SiteKeys::of_rows(pass.drops, pass.offsets, |length| length, site, |d| d.lora)
            }
            None => SiteKeys::NONE,
        }
    }

    /// Scratch for a LoRA's input with dropout.
    fn dropped<'s>(
        &self,
        pass: &Pass,
        kind: ModuleKind,
        width: usize,
        scratch: &mut Arena<'s>,
    ) -> &'s mut [f32] {
        let needed = self.pair(pass, kind).is_some() && pass.drops.is_some_and(|d| d.lora.is_active());
        scratch.take(if needed { pass.tokens() * width } else { 0 })
    }

    fn linear_forward(
        &self,
        pass: &Pass,
        kind: ModuleKind,
        x: &[f32],
        y: &mut [f32],
        z: &mut [f32],
        scratch: &mut Arena,
    ) {
        let linear = &self.linears[kind as usize];
        let keys = self.lora_keys(pass, kind);
        let lora = self.pair(pass, kind).map(|pair| ActiveLora { pair, dropout: keys.get() });
        if pass.infer {
            return linear.infer(pass.values, pass.tokens(), x, lora, y, linear.output, z);
        }
        let dropped = self.dropped(pass, kind, linear.input, &mut scratch.scope());
        linear.forward(pass.values, pass.tokens(), x, lora, y, linear.output, z, dropped);
    }

    #[allow(clippy::too_many_arguments)]
    fn linear_backward(
        &self,
        pass: &Pass,
        grads: &mut Grads,
        kind: ModuleKind,
        x: &[f32],
        z: &[f32],
        dy: &[f32],
        dx: Option<(&mut [f32], Start)>,
        scratch: &mut Arena,
    ) {
        let linear = &self.linears[kind as usize];
        let keys = self.lora_keys(pass, kind);
        let pair = self.pair(pass, kind);
        let lora = pair.map(|pair| ActiveLora { pair, dropout: keys.get() });
        let mut scratch = scratch.scope();
        let dz = scratch.take(pass.tokens() * pair.map_or(0, |p| p.rank));
        let dropped = self.dropped(pass, kind, linear.input, &mut scratch);
        let dy = Rows { data: dy, stride: linear.output };
        linear.backward(pass.values, grads, pass.tokens(), x, lora, z, dy, dx, dz, dropped);
    }

    fn attention<'a>(&self, pass: &Pass<'a>, keys: &'a SiteKeys) -> Attention<'a> {
        let c = pass.config;
        Attention {
            offsets: pass.offsets,
            heads: c.heads,
            kv_heads: c.kv_heads,
            width: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            bias: None,
            dropout: keys.get(),
            queries: Queries::All,
            sight: Sight::Causal { window: c.windows[self.number] },
            precision: if pass.infer { Precision::F32 } else { pass.precision },
        }
    }

    fn attention_keys(&self, pass: &Pass) -> SiteKeys {
        SiteKeys::of_sequences(pass.drops, Site::Attention(self.number), |d| d.attention)
    }

    /// x, y: (tokens, hidden).
    pub fn forward(&self, pass: &Pass, x: &[f32], y: &mut [f32], saved: &mut Saved, mut scratch: Arena) {
        let _block = profile::block(self.number);
        self.project(pass, x, saved, scratch.scope());
        let keys = self.attention_keys(pass);
        let inputs = inputs(pass.config, saved.q, saved.k, saved.v);
        self.attention(pass, &keys).forward(inputs, saved.context, saved.lse);
        self.finish(pass, x, y, saved, scratch);
    }

    /// The same for tokens that stand behind those of a cache: one cache for each sequence, which grows by the new
    /// keys and values.
    pub fn forward_cached(
        &self,
        pass: &Pass,
        x: &[f32],
        y: &mut [f32],
        saved: &mut Saved,
        caches: &mut [Cached],
        mut scratch: Arena,
    ) {
        let _block = profile::block(self.number);
        let c = pass.config;
        self.project(pass, x, saved, scratch.scope());
        let (wide, pair) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        for (cache, ends) in caches.iter_mut().zip(pass.offsets.windows(2)) {
            let (from, to) = (ends[0], ends[1]);
            cache.k.extend_from_slice(&saved.k[from * pair..to * pair]);
            cache.v.extend_from_slice(&saved.v[from * pair..to * pair]);
            let offsets = [0, cache.k.len() / pair];
            let attention = Attention {
                offsets: &offsets,
                queries: Queries::Last(to - from),
                ..self.attention(pass, &SiteKeys::NONE)
            };
            let inputs = inputs(c, &saved.q[from * wide..to * wide], cache.k, cache.v);
            let context = &mut saved.context[from * wide..to * wide];
            attention.forward(inputs, context, &mut saved.lse[from * c.heads..to * c.heads]);
        }
        self.finish(pass, x, y, saved, scratch);
    }

    /// From x to q, k and v, turned.
    fn project(&self, pass: &Pass, x: &[f32], saved: &mut Saved, mut scratch: Arena) {
        use ModuleKind::*;
        let c = pass.config;
        let n = scratch.take(x.len());
        rms_norm::forward(x, self.input_norm.get(pass.values), c.rms_norm_eps, n, saved.rstd);
        let (q, k) = match self.head_norms {
            Some(_) => (&mut *saved.plain_q, &mut *saved.plain_k),
            None => (&mut *saved.q, &mut *saved.k),
        };
        self.linear_forward(pass, Query, n, q, saved.z[Query as usize], &mut scratch);
        self.linear_forward(pass, Key, n, k, saved.z[Key as usize], &mut scratch);
        self.linear_forward(pass, Value, n, saved.v, saved.z[Value as usize], &mut scratch);
        if let Some([q_norm, k_norm]) = &self.head_norms {
            let [q_rstd, k_rstd] = &mut saved.head_rstd;
            rms_norm::forward(saved.plain_q, q_norm.get(pass.values), c.rms_norm_eps, saved.q, q_rstd);
            rms_norm::forward(saved.plain_k, k_norm.get(pass.values), c.rms_norm_eps, saved.k, k_rstd);
        }
        pass.rotary.turn(Turn::Forward, saved.q, pass.positions);
        pass.rotary.turn(Turn::Forward, saved.k, pass.positions);
    }

    /// From attention's context to y.
    fn finish(&self, pass: &Pass, x: &[f32], y: &mut [f32], saved: &mut Saved, mut scratch: Arena) {
        use ModuleKind::*;
        let c = pass.config;
        let z = &mut *saved.z[AttentionOutput as usize];
        self.linear_forward(pass, AttentionOutput, saved.context, saved.middle, z, &mut scratch);
        norm::add(saved.middle, x);
        let n = scratch.take(x.len());
        let gamma = self.middle_norm.get(pass.values);
        rms_norm::forward(saved.middle, gamma, c.rms_norm_eps, n, saved.middle_rstd);
        let inner = scratch.take(saved.gate.len());
        // Where they are kept rounded, gate and up themselves are in scratch.
        let mut plain_up: &mut [f32] = &mut [];
        let (gate, up) = match (&mut saved.gate, &mut saved.up) {
            (KeptValues::Floats(gate), KeptValues::Floats(up)) => (&mut **gate, &mut **up),
            _ => {
                plain_up = scratch.take(inner.len());
                (&mut *inner, &mut *plain_up)
            }
        };
        self.linear_forward(pass, Gate, n, gate, saved.z[Gate as usize], &mut scratch);
        self.linear_forward(pass, Intermediate, n, up, saved.z[Intermediate as usize], &mut scratch);
        activation::gated_forward(&mut saved.gate, &mut saved.up, plain_up, inner);
        self.linear_forward(pass, Output, inner, y, saved.z[Output as usize], &mut scratch);
        norm::add(y, saved.middle);
    }

    /// d: (tokens, hidden), dy on entry and dx on return; x is the block's input. With `below` false nothing under
    /// this block trains, and d is left undefined: the way back ends at the block's lowest LoRA.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        pass: &Pass,
        grads: &mut Grads,
        x: &[f32],
        d: &mut [f32],
        saved: &Saved,
        below: bool,
        mut scratch: Arena,
    ) {
        use ModuleKind::*;
        let _block = profile::block(self.number);
        let c = pass.config;
        let trains = |kinds: &[ModuleKind]| kinds.iter().any(|&k| self.pair(pass, k).is_some());
        let needs_qkv = below || trains(&[Query, Key, Value]);
        let needs_attention = needs_qkv || trains(&[AttentionOutput]);
        let needs_inner = needs_attention || trains(&[Gate, Intermediate]);
        {
            let mut scratch = scratch.scope();
            let inner = scratch.take(saved.gate.len());
            if trains(&[Output]) {
                activation::gated_forward_again(&saved.gate, &saved.up, inner);
            }
            // inner's gradient becomes up's.
            let dup = scratch.take(saved.gate.len());
            let to_inner = needs_inner.then_some((&mut *dup, Start::Zero));
            self.linear_backward(pass, grads, Output, inner, saved.z(Output), d, to_inner, &mut scratch);
            if !needs_inner {
                return;
            }
            let dgate = inner;
            activation::gated_backward(&saved.gate, &saved.up, dup, dgate);
            let gamma = self.middle_norm.get(pass.values);
            let n = scratch.take(x.len());
            if trains(&[Gate, Intermediate]) {
                rms_norm::again(saved.middle, gamma, saved.middle_rstd, n);
            }
            let dn = scratch.take(x.len());
            for (kind, dy, start) in [(Gate, &*dgate, Start::Zero), (Intermediate, &*dup, Start::Keep)] {
                let to_n = needs_attention.then_some((&mut *dn, start));
                self.linear_backward(pass, grads, kind, n, saved.z(kind), dy, to_n, &mut scratch);
            }
            if !needs_attention {
                return;
            }
            rms_norm::backward(dn, saved.middle, gamma, saved.middle_rstd, d, None);
        }
        // d is now x₁'s gradient.
        let dcontext = scratch.take(saved.context.len());
        let to_context = needs_qkv.then_some((&mut *dcontext, Start::Zero));
        let z = saved.z(AttentionOutput);
        self.linear_backward(pass, grads, AttentionOutput, saved.context, z, d, to_context, &mut scratch);
        if !needs_qkv {
            return;
        }
        let (dq, dk, dv) =
            (scratch.take(saved.q.len()), scratch.take(saved.k.len()), scratch.take(saved.v.len()));
        let (wide, pair) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let dqkv = [
            ColumnsMut { data: &mut *dq, stride: wide },
            ColumnsMut { data: &mut *dk, stride: pair },
            ColumnsMut { data: &mut *dv, stride: pair },
        ];
        let keys = self.attention_keys(pass);
        let inputs = inputs(c, saved.q, saved.k, saved.v);
        let kept = Kept { inputs, out: saved.context, lse: saved.lse };
        self.attention(pass, &keys).backward(kept, dcontext, dqkv, None);
        pass.rotary.turn(Turn::Back, dq, pass.positions);
        pass.rotary.turn(Turn::Back, dk, pass.positions);
        let (dq, dk) = match &self.head_norms {
            None => (dq, dk),
            Some([q_norm, k_norm]) => {
                let mut back = |dy: &[f32], x: &[f32], gamma: &Weight, rstd: &[f32]| {
                    let dx = scratch.take(x.len());
                    dx.fill(0.0);
                    rms_norm::backward(dy, x, gamma.get(pass.values), rstd, dx, None);
                    dx
                };
                let [q_rstd, k_rstd] = &saved.head_rstd;
                (back(dq, saved.plain_q, q_norm, q_rstd), back(dk, saved.plain_k, k_norm, k_rstd))
            }
        };
        let gamma = self.input_norm.get(pass.values);
        let n = scratch.take(x.len());
        if trains(&[Query, Key, Value]) {
            rms_norm::again(x, gamma, saved.rstd, n);
        }
        let dn = scratch.take(x.len());
        let parts = [(Query, &*dq, Start::Zero), (Key, &*dk, Start::Keep), (Value, &*dv, Start::Keep)];
        for (kind, dy, start) in parts {
            let to_n = below.then_some((&mut *dn, start));
            self.linear_backward(pass, grads, kind, n, saved.z(kind), dy, to_n, &mut scratch);
        }
        if below {
            rms_norm::backward(dn, x, gamma, saved.rstd, d, None);
        }
    }
}

fn inputs<'a>(config: &DecoderConfig, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Inputs<'a> {
    let pair = config.kv_heads * config.head_dim;
    Inputs {
        q: Columns { data: q, stride: config.heads * config.head_dim },
        k: Columns { data: k, stride: pair },
        v: Columns { data: v, stride: pair },
    }
}
