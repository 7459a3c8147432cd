//! One block of the encoder: attention and feed-forward part, each with dropout, residual and norm behind it.
//!
//! y₁ = norm(x + drop(O · attention(Q x, K x, V x))), y = norm(y₁ + drop(W₂ · act(W₁ y₁))). What the way back
//! needs is kept in `Saved`; act(…) is cheap and formed again.

use lora_drop_compute::Arena;
use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::{Attention, RelativeBias};
use lora_drop_compute::gemm::Start;
use lora_drop_compute::linear::Rows;
use lora_drop_compute::random::{Dropout, Key};

use crate::linear::{ActiveLora, Grads, LinearWeights, NormWeights, Values};
use crate::lora::{LoraPair, LoraTable};
use crate::module::{ModuleId, ModuleKind};

/// A block's weights.
#[derive(Clone, Debug)]
pub struct Block {
    pub number: usize,
    /// By `ModuleKind`.
    pub linears: [LinearWeights; ModuleKind::ALL.len()],
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
}

/// Dropout in a training pass.
#[derive(Clone, Copy)]
pub struct Drops<'a> {
    pub hidden: Dropout,
    pub attention: Dropout,
    pub lora: Dropout,
    /// One key per sequence, of this step and this sequence's place in it.
    pub keys: &'a [Key],
}

/// The places of a model that drop, as numbers to fold into a sequence's key.
#[derive(Clone, Copy)]
pub enum Site {
    Embedding,
    HeadInput,
    HeadInner,
    Attention(usize),
    AttentionOutput(usize),
    Output(usize),
    Lora(ModuleId),
}

impl Site {
    pub fn number(self) -> u64 {
        let in_block = |layer: usize, n: usize| (16 * (layer + 1) + n) as u64;
        match self {
            Site::Embedding => 0,
            Site::HeadInput => 1,
            Site::HeadInner => 2,
            Site::Attention(layer) => in_block(layer, 0),
            Site::AttentionOutput(layer) => in_block(layer, 1),
            Site::Output(layer) => in_block(layer, 2),
            Site::Lora(module) => in_block(module.layer, 8 + module.kind as usize),
        }
    }
}

/// Keys of a site, or none where nothing drops.
pub struct SiteKeys(Option<(Dropout, Vec<Key>)>);

impl SiteKeys {
    pub fn get(&self) -> Option<(Dropout, &[Key])> {
        self.0.as_ref().map(|(dropout, keys)| (*dropout, keys.as_slice()))
    }
}

impl Pass<'_> {
    pub fn tokens(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    /// A key for each row of a site.
    pub fn row_keys(&self, site: Site, which: impl Fn(&Drops) -> Dropout) -> SiteKeys {
        SiteKeys(self.drops.filter(|d| which(d).is_active()).map(|drops| {
            let rows = self.offsets.windows(2).zip(drops.keys).flat_map(|(ends, key)| {
                let key = key.fold(site.number());
                (0..ends[1] - ends[0]).map(move |position| key.fold(position as u64))
            });
            (which(&drops), rows.collect())
        }))
    }

    /// A key for each sequence of a site.
    pub fn sequence_keys(&self, site: Site, which: impl Fn(&Drops) -> Dropout) -> SiteKeys {
        SiteKeys(
            self.drops
                .filter(|d| which(d).is_active())
                .map(|drops| (which(&drops), drops.keys.iter().map(|key| key.fold(site.number())).collect())),
        )
    }
}

/// A block's activations that the way back needs. Shapes with t tokens, h hidden, i intermediate.
pub struct Saved<'a> {
    qkv: &'a mut [f32],                        // (t, 3h)
    lse: &'a mut [f32],                        // (t, heads)
    context: &'a mut [f32],                    // (t, h)
    attention_normed: &'a mut [f32],           // (t, h)
    attention_rstd: &'a mut [f32],             // (t)
    middle: &'a mut [f32],                     // (t, h): y₁
    pre: &'a mut [f32],                        // (t, i): before the activation
    output_normed: &'a mut [f32],              // (t, h)
    output_rstd: &'a mut [f32],                // (t)
    z: [&'a mut [f32]; ModuleKind::ALL.len()], // (t, rank) each, scaled; empty without LoRA
}

impl<'a> Saved<'a> {
    pub fn floats(tokens: usize, hidden: usize, intermediate: usize, heads: usize, ranks: usize) -> usize {
        tokens * (8 * hidden + intermediate + heads + 2 + ranks)
    }

    pub fn take(arena: &mut Arena<'a>, pass: &Pass, layer: usize) -> Self {
        let (t, h) = (pass.tokens(), pass.hidden);
        Saved {
            qkv: arena.take(t * 3 * h),
            lse: arena.take(t * pass.heads),
            context: arena.take(t * h),
            attention_normed: arena.take(t * h),
            attention_rstd: arena.take(t),
            middle: arena.take(t * h),
            pre: arena.take(t * pass.intermediate),
            output_normed: arena.take(t * h),
            output_rstd: arena.take(t),
            z: ModuleKind::ALL.map(|kind| {
                let rank = pass.table.get(ModuleId { layer, kind }).map_or(0, |p| p.rank);
                arena.take(t * rank)
            }),
        }
    }

    /// The scaled z = s·A x of a module, (tokens, rank); empty where it has no LoRA.
    pub fn z(&self, kind: ModuleKind) -> &[f32] {
        self.z[kind as usize]
    }
}

impl Block {
    fn pair(&self, pass: &Pass, kind: ModuleKind) -> Option<LoraPair> {
        pass.table.get(ModuleId { layer: self.number, kind })
    }

    /// Floats of scratch that forward and backward use on top of what is saved.
    pub fn scratch(
        tokens: usize,
        hidden: usize,
        intermediate: usize,
        rank: usize,
        lora_dropout: bool,
    ) -> usize {
        let dropped = if lora_dropout { hidden.max(intermediate) } else { 0 };
        tokens * (6 * hidden + 2 * intermediate + rank + dropped)
    }

    fn lora_keys(&self, pass: &Pass, kind: ModuleKind) -> SiteKeys {
        match self.pair(pass, kind) {
            Some(_) => pass.row_keys(Site::Lora(ModuleId { layer: self.number, kind }), |d| d.lora),
            None => SiteKeys(None),
        }
    }

    fn dropped<'s>(pass: &Pass, width: usize, scratch: &mut Arena<'s>) -> &'s mut [f32] {
        let needed = pass.drops.is_some_and(|d| d.lora.is_active());
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
        let dropped = Self::dropped(pass, linear.input, &mut scratch.scope());
        linear.forward(pass.values, pass.tokens(), x, lora, y, stride, z, dropped);
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
        let dz = scratch.take(pass.tokens() * pair.map_or(0, |p| p.rank));
        let dropped = Self::dropped(pass, linear.input, &mut scratch);
        linear.backward(pass.values, grads, pass.tokens(), x, lora, z, dy, dx, dz, dropped);
    }

    fn attention<'a>(&self, pass: &Pass<'a>, keys: &'a SiteKeys) -> Attention<'a> {
        let width = pass.hidden / pass.heads;
        Attention {
            offsets: pass.offsets,
            heads: pass.heads,
            width,
            scale: 1.0 / (width as f32).sqrt(),
            bias: pass.bias,
            dropout: keys.get(),
        }
    }

    /// x, y: (tokens, hidden).
    pub fn forward(&self, pass: &Pass, x: &[f32], y: &mut [f32], saved: &mut Saved, mut scratch: Arena) {
        use ModuleKind::*;
        let (t, h, i) = (pass.tokens(), pass.hidden, pass.intermediate);
        for (third, kind) in [Query, Key, Value].into_iter().enumerate() {
            let out = &mut saved.qkv[third * h..];
            self.linear_forward(pass, kind, x, out, 3 * h, saved.z[kind as usize], &mut scratch);
        }
        let keys = pass.sequence_keys(Site::Attention(self.number), |d| d.attention);
        self.attention(pass, &keys).forward(saved.qkv, saved.context, saved.lse);
        let branch = scratch.take(t * h);
        let z = &mut *saved.z[AttentionOutput as usize];
        self.linear_forward(pass, AttentionOutput, saved.context, branch, h, z, &mut scratch);
        let keys = pass.row_keys(Site::AttentionOutput(self.number), |d| d.hidden);
        self.attention_norm.forward(pass.values, branch, Some(x), keys.get()).run(
            saved.middle,
            saved.attention_normed,
            saved.attention_rstd,
        );

        let z = &mut *saved.z[Intermediate as usize];
        self.linear_forward(pass, Intermediate, saved.middle, saved.pre, i, z, &mut scratch);
        let inner = scratch.take(t * i);
        pass.activation.forward(saved.pre, inner);
        let z = &mut *saved.z[Output as usize];
        self.linear_forward(pass, Output, inner, branch, h, z, &mut scratch);
        let keys = pass.row_keys(Site::Output(self.number), |d| d.hidden);
        self.output_norm.forward(pass.values, branch, Some(saved.middle), keys.get()).run(
            y,
            saved.output_normed,
            saved.output_rstd,
        );
    }

    /// From d = dy to d = dx in place, (tokens, hidden); x is the block's input. With `below` false nothing
    /// under this block trains, and d is left undefined: the way back ends at the block's lowest LoRA.
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
        let (t, h, i) = (pass.tokens(), pass.hidden, pass.intermediate);
        let trains = |kinds: &[ModuleKind]| {
            kinds
                .iter()
                .any(|&k| self.pair(pass, k).is_some() || self.linears[k as usize].weight.id().is_some())
        };
        let needs_qkv = below || trains(&[Query, Key, Value]);
        let needs_attention = needs_qkv || trains(&[AttentionOutput]);
        let needs_middle = needs_attention || trains(&[Intermediate]);

        let residual = scratch.take(t * h);
        let keys = pass.row_keys(Site::Output(self.number), |d| d.hidden);
        let dropped = keys.get().map(|_| scratch.take(t * h));
        let norm = (&*saved.output_normed, &*saved.output_rstd);
        let mut branch = dropped;
        self.output_norm.backward(pass.values, grads, d, norm, keys.get(), residual, branch.as_deref_mut());
        {
            let dy = branch.as_deref().unwrap_or(residual);
            let mut scratch = scratch.scope();
            let inner = scratch.take(t * i);
            if trains(&[Output]) {
                pass.activation.forward(saved.pre, inner);
            }
            let dinner = scratch.take(t * i);
            let dx = needs_middle.then_some((&mut *dinner, Start::Zero));
            let dy = Rows { data: dy, stride: h };
            self.linear_backward(pass, grads, Output, inner, saved.z(Output), dy, dx, &mut scratch);
            if !needs_middle {
                return;
            }
            pass.activation.backward(saved.pre, dinner);
            let dx = needs_attention.then_some((&mut *residual, Start::Keep));
            let dy = Rows { data: dinner, stride: i };
            self.linear_backward(
                pass,
                grads,
                Intermediate,
                saved.middle,
                saved.z(Intermediate),
                dy,
                dx,
                &mut scratch,
            );
        }
        if !needs_attention {
            return;
        }
        // `residual` is now dy₁; the norm's way back goes to d, which takes up the block's input gradient.
        let keys = pass.row_keys(Site::AttentionOutput(self.number), |d| d.hidden);
        let mut branch = keys.get().map(|_| branch.unwrap_or_else(|| scratch.take(t * h)));
        let norm = (&*saved.attention_normed, &*saved.attention_rstd);
        self.attention_norm.backward(
            pass.values,
            grads,
            residual,
            norm,
            keys.get(),
            d,
            branch.as_deref_mut(),
        );
        let dcontext = scratch.take(t * h);
        let dy = Rows { data: branch.as_deref().unwrap_or(d), stride: h };
        let dx = needs_qkv.then_some((&mut *dcontext, Start::Zero));
        let z = saved.z(AttentionOutput);
        self.linear_backward(pass, grads, AttentionOutput, saved.context, z, dy, dx, &mut scratch);
        if !needs_qkv {
            return;
        }
        let dqkv = scratch.take(t * 3 * h);
        let keys = pass.sequence_keys(Site::Attention(self.number), |d| d.attention);
        let dbias = grads.relative.as_deref_mut();
        self.attention(pass, &keys).backward(saved.qkv, saved.context, saved.lse, dcontext, dqkv, dbias);
        for (third, kind) in [Query, Key, Value].into_iter().enumerate() {
            let dy = Rows { data: &dqkv[third * h..], stride: 3 * h };
            let dx = below.then_some((&mut *d, Start::Keep));
            self.linear_backward(pass, grads, kind, x, saved.z(kind), dy, dx, &mut scratch);
        }
    }
}
