//! One block of the encoder: attention and feed-forward part, each with dropout, residual and norm behind it.
//!
//! y₁ = norm(x + drop(O · attention(Q x, K x, V x))), y = norm(y₁ + drop(W₂ · act(W₁ y₁))). What the way back
//! needs is kept in `Saved`; act(…) is cheap and formed again.

use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::{
    Attention, Columns, ColumnsMut, Inputs, Kept, Queries, RelativeBias, Sight,
};
use lora_drop_compute::gemm::{Mat, MatMut, Precision, Start, matmul};
use lora_drop_compute::linear::Rows;
use lora_drop_compute::random::Dropout;
use lora_drop_compute::{Arena, KeptValues, norm, profile};

use crate::drops::{Drops, Site, SiteKeys};
use crate::linear::{ActiveLora, Grads, LinearWeights, NormWeights, Values};
use crate::lora::{LoraPair, LoraTable};
use crate::module::{ModuleId, ModuleKind};
use crate::moments::Moments;

/// A block's weights.
#[derive(Clone, Debug)]
pub struct Block {
    pub number: usize,
    /// By `ModuleKind`.
    /// By kind, in the order of `Architecture::kinds`.
    pub linears: Vec<LinearWeights>,
    pub attention_norm: NormWeights,
    pub output_norm: NormWeights,
}

/// What is the same for every block of a pass.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub values: Values<'a>,
    pub table: &'a LoraTable,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub activation: Activation,
    /// Where sequences start, and the end: (sequences + 1).
    pub offsets: &'a [usize],
    pub bias: Option<RelativeBias<'a>>,
    pub drops: Option<Drops<'a>>,
    /// The tokens that the last block takes past its keys and values. The head reads first tokens alone, so in
    /// training nothing else of that block is needed.
    pub last: Queries,
    pub blocks: usize,
    /// What the blocks' linear layers multiply in.
    pub precision: Precision,
    /// Whether all weights train.
    pub trains_base: bool,
}

impl Pass<'_> {
    pub fn tokens(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    /// Which tokens a block takes past its keys and values.
    pub fn queries(&self, block: usize) -> Queries {
        if block + 1 == self.blocks { self.last } else { Queries::All }
    }

    /// How many tokens these are.
    pub fn rows(&self, queries: Queries) -> usize {
        match queries {
            Queries::All => self.tokens(),
            Queries::First => self.offsets.len() - 1,
            Queries::Last(n) => n * (self.offsets.len() - 1),
        }
    }

    /// A key for each row of a site, by sequence and position.
    pub fn row_keys(&self, queries: Queries, site: Site, which: impl Fn(&Drops) -> Dropout) -> SiteKeys {
        let first = queries == Queries::First;
        SiteKeys::of_rows(self.drops, self.offsets, |length| if first { 1 } else { length }, site, which)
    }

    /// A key for each sequence of a site.
    pub fn sequence_keys(&self, site: Site, which: impl Fn(&Drops) -> Dropout) -> SiteKeys {
        SiteKeys::of_sequences(self.drops, site, which)
    }
}

/// A block's activations that the way back needs. Shapes with t tokens, q tokens that have a query (t, or in
/// the last block one per sequence), h hidden, i intermediate.
pub struct Saved<'a> {
    x: &'a mut [f32],                // (q, h): the input's rows with a query; empty where q = t
    qkv: &'a mut [f32],              // (t, 3h); without queries (t, 2h)
    query: &'a mut [f32],            // (q, h) where q < t, else empty: they are in qkv
    lse: &'a mut [f32],              // (q, heads)
    context: &'a mut [f32],          // (q, h)
    attention_normed: &'a mut [f32], // (q, h)
    attention_rstd: &'a mut [f32],   // (q)
    middle: &'a mut [f32],           // (q, h): y₁, where it is multiplied with what trains, else empty
    pre: KeptValues<'a>,             // (q, i): before the activation
    output_normed: &'a mut [f32],    // (q, h)
    output_rstd: &'a mut [f32],      // (q)
    z: [&'a mut [f32]; ModuleKind::ALL.len()], // (t or q, rank) each, scaled; empty without LoRA
}

/// What a block's buffers are measured by.
#[derive(Clone, Copy)]
pub struct Sizes<'a> {
    pub layer: usize,
    pub table: &'a LoraTable,
    pub tokens: usize,
    /// Tokens that have a query.
    pub rows: usize,
    /// Whether these are first tokens alone.
    pub first: bool,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub lora_dropout: bool,
    pub scored: bool,
    pub precision: Precision,
    pub trains_base: bool,
}

impl Sizes<'_> {
    fn rank(&self, kind: ModuleKind) -> usize {
        self.table.rank(ModuleId { layer: self.layer, kind })
    }

    /// Of these modules' LoRAs, the scratch of the largest: dz, and with dropout the input of `width`.
    fn lora(&self, kinds: &[ModuleKind], width: usize) -> usize {
        let rows = |kind| if of_all_tokens(kind) { self.tokens } else { self.rows };
        let dz = kinds.iter().map(|&kind| rows(kind) * self.rank(kind)).max().unwrap_or(0);
        dz + self.dropped(kinds, width)
    }

    fn dropped(&self, kinds: &[ModuleKind], width: usize) -> usize {
        let some = self.lora_dropout && kinds.iter().any(|&kind| self.rank(kind) > 0);
        if some { self.tokens * width } else { 0 }
    }

    /// Floats that `Saved` takes.
    pub fn saved(&self) -> usize {
        let Sizes { tokens: t, rows: q, hidden: h, intermediate: i, heads, .. } = *self;
        let qkv = if self.first { 2 * t * h + 2 * q * h } else { 3 * t * h };
        let rows = |kind| if of_all_tokens(kind) { t } else { q };
        let z: usize = ModuleKind::ALL.iter().map(|&kind| rows(kind) * self.rank(kind)).sum();
        let middle = if self.keeps_middle() { q * h } else { 0 };
        qkv + q * (3 * h + heads + 2) + middle + KeptValues::floats(self.precision, q * i) + z
    }

    fn keeps_middle(&self) -> bool {
        keeps_middle(self.trains_base, self.table, self.layer)
    }

    /// Floats of scratch of `Block::forward`, and of `add_moments`.
    pub fn forward(&self) -> usize {
        use ModuleKind::*;
        let Sizes { rows: q, hidden: h, intermediate: i, .. } = *self;
        let inputs = self.dropped(&[Query, Key, Value], h);
        // What `add_moments` takes.
        let scored = if self.first && self.scored { self.tokens * self.rank(Query) } else { 0 };
        let middle = if self.keeps_middle() { 0 } else { q * h };
        let inner = q * i + self.dropped(&[Intermediate], h).max(self.dropped(&[Output], i));
        inputs.max(q * h + self.dropped(&[AttentionOutput], h).max(middle + inner)).max(scored)
    }

    /// Floats of scratch of `Block::backward`.
    pub fn backward(&self) -> usize {
        use ModuleKind::*;
        let Sizes { tokens: t, rows: q, hidden: h, intermediate: i, .. } = *self;
        let inner = 2 * q * i + self.lora(&[Output], i).max(self.lora(&[Intermediate], h));
        let aside = if self.first { q * h } else { 0 };
        let context = aside + q * h + self.lora(&[AttentionOutput], h);
        let qkv = aside + 2 * q * h + 2 * t * h + self.lora(&[Query, Key, Value], h);
        2 * q * h + inner.max(context).max(qkv)
    }
}

/// Whether a block's y₁ is multiplied with what trains.
fn keeps_middle(trains_base: bool, table: &LoraTable, layer: usize) -> bool {
    trains_base || table.rank(ModuleId { layer, kind: ModuleKind::Intermediate }) > 0
}

/// Whether a module computes all tokens even where few of them have a query.
fn of_all_tokens(kind: ModuleKind) -> bool {
    matches!(kind, ModuleKind::Key | ModuleKind::Value)
}

impl<'a> Saved<'a> {
    pub fn take(arena: &mut Arena<'a>, pass: &Pass, layer: usize) -> Self {
        let (t, h) = (pass.tokens(), pass.hidden);
        let queries = pass.queries(layer);
        let q = pass.rows(queries);
        let apart = if queries == Queries::First { q * h } else { 0 };
        let thirds = if queries == Queries::First { 2 } else { 3 };
        let inner = q * pass.intermediate;
        let keeps_middle = keeps_middle(pass.trains_base, pass.table, layer);
        Saved {
            x: arena.take(apart),
            qkv: arena.take(t * thirds * h),
            query: arena.take(apart),
            lse: arena.take(q * pass.heads),
            context: arena.take(q * h),
            attention_normed: arena.take(q * h),
            attention_rstd: arena.take(q),
            middle: arena.take(if keeps_middle { q * h } else { 0 }),
            pre: KeptValues::new(
                pass.precision,
                inner,
                arena.take(KeptValues::floats(pass.precision, inner)),
            ),
            output_normed: arena.take(q * h),
            output_rstd: arena.take(q),
            z: ModuleKind::ALL.map(|kind| {
                let rank = pass.table.rank(ModuleId { layer, kind });
                let rows = if of_all_tokens(kind) { t } else { q };
                arena.take(rows * rank)
            }),
        }
    }

    /// The scaled z = s·A x of a module, (rows, rank); empty where it has no LoRA.
    pub fn z(&self, kind: ModuleKind) -> &[f32] {
        self.z[kind as usize]
    }
}

/// Where queries, keys and values lie.
fn inputs<'a>(qkv: &'a [f32], query: &'a [f32], hidden: usize) -> Inputs<'a> {
    let third = |n: usize, of: usize| Columns { data: &qkv[n * hidden..], stride: of * hidden };
    if query.is_empty() {
        Inputs { q: third(0, 3), k: third(1, 3), v: third(2, 3) }
    } else {
        Inputs { q: Columns { data: query, stride: hidden }, k: third(0, 2), v: third(1, 2) }
    }
}

impl Block {
    fn pair(&self, pass: &Pass, kind: ModuleKind) -> Option<LoraPair> {
        pass.table.get(ModuleId { layer: self.number, kind })
    }

    /// The rows that a module of this block computes.
    fn queries(&self, pass: &Pass, kind: ModuleKind) -> Queries {
        if of_all_tokens(kind) { Queries::All } else { pass.queries(self.number) }
    }

    fn lora_keys(&self, pass: &Pass, kind: ModuleKind) -> SiteKeys {
        match self.pair(pass, kind) {
            Some(_) => {
                let site = Site::Lora(ModuleId { layer: self.number, kind });
                pass.row_keys(self.queries(pass, kind), site, |d| d.lora)
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

    #[allow(clippy::too_many_arguments)]
    fn linear_forward(
        &self,
        pass: &Pass,
        kind: ModuleKind,
        x: &[f32],
        y: &mut [f32],
        stride: usize,
        z: &mut [f32],
        scratch: &mut Arena,
    ) {
        let linear = &self.linears[kind as usize];
        let keys = self.lora_keys(pass, kind);
        let lora = self.pair(pass, kind).map(|pair| ActiveLora { pair, dropout: keys.get() });
        let rows = pass.rows(self.queries(pass, kind));
        let dropped = self.dropped(pass, kind, linear.input, &mut scratch.scope());
        linear.forward(pass.values, rows, x, lora, y, stride, z, dropped);
    }

    #[allow(clippy::too_many_arguments)]
    fn linear_backward(
        &self,
        pass: &Pass,
        grads: &mut Grads,
        kind: ModuleKind,
        x: &[f32],
        z: &[f32],
        dy: Rows,
        dx: Option<(&mut [f32], Start)>,
        scratch: &mut Arena,
    ) {
        let linear = &self.linears[kind as usize];
        let keys = self.lora_keys(pass, kind);
        let pair = self.pair(pass, kind);
        let lora = pair.map(|pair| ActiveLora { pair, dropout: keys.get() });
        let mut scratch = scratch.scope();
        let rows = pass.rows(self.queries(pass, kind));
        let dz = scratch.take(rows * pair.map_or(0, |p| p.rank));
        let dropped = self.dropped(pass, kind, linear.input, &mut scratch);
        linear.backward(pass.values, grads, rows, x, lora, z, dy, dx, dz, dropped);
    }

    fn attention<'a>(&self, pass: &Pass<'a>, keys: &'a SiteKeys) -> Attention<'a> {
        let width = pass.hidden / pass.heads;
        Attention {
            offsets: pass.offsets,
            heads: pass.heads,
            kv_heads: pass.heads,
            width,
            scale: 1.0 / (width as f32).sqrt(),
            bias: pass.bias,
            dropout: keys.get(),
            queries: pass.queries(self.number),
            sight: Sight::All,
            precision: pass.precision,
        }
    }

    /// x: (tokens, hidden); y: (tokens, hidden), or in the last block (sequences, hidden) where it stops at first
    /// tokens.
    pub fn forward(&self, pass: &Pass, x: &[f32], y: &mut [f32], saved: &mut Saved, mut scratch: Arena) {
        use ModuleKind::*;
        let _block = profile::block(self.number);
        let (h, i) = (pass.hidden, pass.intermediate);
        let queries = pass.queries(self.number);
        let q = pass.rows(queries);
        let y = &mut y[..q * h];
        let thirds: &[ModuleKind] = if queries == Queries::First {
            for (row, &token) in saved.x.chunks_exact_mut(h).zip(pass.offsets) {
                row.copy_from_slice(&x[token * h..(token + 1) * h]);
            }
            let z = &mut *saved.z[Query as usize];
            self.linear_forward(pass, Query, saved.x, saved.query, h, z, &mut scratch);
            &[Key, Value]
        } else {
            &[Query, Key, Value]
        };
        for (third, &kind) in thirds.iter().enumerate() {
            let out = &mut saved.qkv[third * h..];
            self.linear_forward(pass, kind, x, out, thirds.len() * h, saved.z[kind as usize], &mut scratch);
        }
        let keys = pass.sequence_keys(Site::Attention(self.number), |d| d.attention);
        let attention = self.attention(pass, &keys);
        attention.forward(inputs(saved.qkv, saved.query, h), saved.context, saved.lse);
        let branch = scratch.take(q * h);
        let z = &mut *saved.z[AttentionOutput as usize];
        self.linear_forward(pass, AttentionOutput, saved.context, branch, h, z, &mut scratch);
        let keys = pass.row_keys(queries, Site::AttentionOutput(self.number), |d| d.hidden);
        let x = if saved.x.is_empty() { x } else { &*saved.x };
        let middle = match saved.middle.is_empty() {
            true => scratch.take(q * h),
            false => &mut *saved.middle,
        };
        self.attention_norm.forward(pass.values, branch, Some(x), keys.get()).run(
            middle,
            saved.attention_normed,
            saved.attention_rstd,
        );

        let z = &mut *saved.z[Intermediate as usize];
        let inner = scratch.take(q * i);
        let pre = match &mut saved.pre {
            KeptValues::Floats(pre) => &mut **pre,
            KeptValues::Rounded(_) => &mut *inner,
        };
        self.linear_forward(pass, Intermediate, middle, pre, i, z, &mut scratch);
        pass.activation.forward_kept(&mut saved.pre, inner);
        let z = &mut *saved.z[Output as usize];
        self.linear_forward(pass, Output, inner, branch, h, z, &mut scratch);
        let keys = pass.row_keys(queries, Site::Output(self.number), |d| d.hidden);
        self.output_norm.forward(pass.values, branch, Some(middle), keys.get()).run(
            y,
            saved.output_normed,
            saved.output_rstd,
        );
    }

    /// Adds the second moments of the modules' z over all tokens; x is the block's input, without dropout where the block
    /// stops at first tokens. The query's z is then made for all of them here: it is thin.
    pub fn add_moments(
        &self,
        pass: &Pass,
        x: &[f32],
        saved: &Saved,
        moments: &mut Moments,
        mut scratch: Arena,
    ) {
        let apart =
            self.pair(pass, ModuleKind::Query).filter(|_| pass.queries(self.number) == Queries::First);
        let query: &[f32] = match apart {
            None => saved.z(ModuleKind::Query),
            Some(pair) => {
                let (t, h) = (pass.tokens(), pass.hidden);
                let z = scratch.take(t * pair.rank);
                let a = Mat::new(pass.values.get(pair.a), pair.rank, h);
                let out = MatMut::new(z, t, pair.rank);
                matmul(pass.precision, out, Start::Zero, pair.scale, &[(Mat::new(x, t, h), a.t())]);
                z
            }
        };
        moments.add(self.number, pass.table, |kind| match kind {
            ModuleKind::Query => query,
            kind => saved.z(kind),
        });
    }

    /// From dy (as y in `forward`) to dx (tokens, hidden); x is the block's input. dy is used up. With `below`
    /// false nothing under this block trains, and dx is left undefined: the way back ends at the block's
    /// lowest LoRA.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        pass: &Pass,
        grads: &mut Grads,
        x: &[f32],
        dy: &mut [f32],
        dx: &mut [f32],
        saved: &Saved,
        below: bool,
        mut scratch: Arena,
    ) {
        use ModuleKind::*;
        let _block = profile::block(self.number);
        let (t, h, i) = (pass.tokens(), pass.hidden, pass.intermediate);
        let queries = pass.queries(self.number);
        let q = pass.rows(queries);
        let dy = &mut dy[..q * h];
        let trains = |kinds: &[ModuleKind]| {
            kinds
                .iter()
                .any(|&k| self.pair(pass, k).is_some() || self.linears[k as usize].weight.id().is_some())
        };
        let needs_qkv = below || trains(&[Query, Key, Value]);
        let needs_attention = needs_qkv || trains(&[AttentionOutput]);
        let needs_middle = needs_attention || trains(&[Intermediate]);

        let residual = scratch.take(q * h);
        let branch = scratch.take(q * h);
        let keys = pass.row_keys(queries, Site::Output(self.number), |d| d.hidden);
        let norm = (&*saved.output_normed, &*saved.output_rstd);
        let to_branch = keys.get().map(|_| &mut *branch);
        self.output_norm.backward(pass.values, grads, dy, norm, keys.get(), residual, to_branch);
        {
            let dy = if keys.get().is_some() { &*branch } else { &*residual };
            let mut scratch = scratch.scope();
            let inner = scratch.take(q * i);
            if trains(&[Output]) {
                pass.activation.forward_again(&saved.pre, inner);
            }
            let dinner = scratch.take(q * i);
            let to_inner = needs_middle.then_some((&mut *dinner, Start::Zero));
            let dy = Rows { data: dy, stride: h };
            self.linear_backward(pass, grads, Output, inner, saved.z(Output), dy, to_inner, &mut scratch);
            if !needs_middle {
                return;
            }
            pass.activation.backward_kept(&saved.pre, dinner);
            let to_middle = needs_attention.then_some((&mut *residual, Start::Keep));
            let dy = Rows { data: dinner, stride: i };
            let z = saved.z(Intermediate);
            self.linear_backward(pass, grads, Intermediate, saved.middle, z, dy, to_middle, &mut scratch);
        }
        if !needs_attention {
            return;
        }
        // `residual` is now dy₁. The norm's way back goes to dx where that has a row for each query, else aside.
        let keys = pass.row_keys(queries, Site::AttentionOutput(self.number), |d| d.hidden);
        let norm = (&*saved.attention_normed, &*saved.attention_rstd);
        let aside = scratch.take(if queries == Queries::First { q * h } else { 0 });
        let du = if queries == Queries::First { &mut *aside } else { &mut *dx };
        let to_branch = keys.get().map(|_| &mut *branch);
        self.attention_norm.backward(pass.values, grads, residual, norm, keys.get(), du, to_branch);
        let dcontext = scratch.take(q * h);
        let dy = Rows { data: if keys.get().is_some() { branch } else { du }, stride: h };
        let to_context = needs_qkv.then_some((&mut *dcontext, Start::Zero));
        let z = saved.z(AttentionOutput);
        self.linear_backward(pass, grads, AttentionOutput, saved.context, z, dy, to_context, &mut scratch);
        if !needs_qkv {
            return;
        }
        let keys = pass.sequence_keys(Site::Attention(self.number), |d| d.attention);
        let (dq, dk, dv) = (scratch.take(q * h), scratch.take(t * h), scratch.take(t * h));
        let dqkv = [&mut *dq, &mut *dk, &mut *dv].map(|data| ColumnsMut { data, stride: h });
        let inputs = inputs(saved.qkv, saved.query, h);
        let kept = Kept { inputs, out: saved.context, lse: saved.lse };
        self.attention(pass, &keys).backward(kept, dcontext, dqkv, grads.relative.as_deref_mut());

        let (to_query, x_query) = match queries {
            Queries::First => (&mut *aside, &*saved.x),
            _ => (&mut *dx, x),
        };
        let to_query = below.then_some((to_query, Start::Keep));
        let dy = Rows { data: dq, stride: h };
        self.linear_backward(pass, grads, Query, x_query, saved.z(Query), dy, to_query, &mut scratch);
        // Where queries are few, dx has nothing in it yet.
        let first = if queries == Queries::First { Start::Zero } else { Start::Keep };
        for (kind, dy, start) in [(Key, dk, first), (Value, dv, Start::Keep)] {
            let dy = Rows { data: dy, stride: h };
            let to_x = below.then_some((&mut *dx, start));
            self.linear_backward(pass, grads, kind, x, saved.z(kind), dy, to_x, &mut scratch);
        }
        if below {
            for (row, &token) in aside.chunks_exact(h).zip(pass.offsets) {
                norm::add(&mut dx[token * h..(token + 1) * h], row);
            }
        }
    }
}
