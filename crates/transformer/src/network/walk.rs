//! Forward and backward pass of a segment: assigns memory to every value and runs the operations on
//! the device.
//!
//! Without a device the same code measures how much memory it takes, so the estimate cannot differ
//! from the pass.

use lora_drop_compute::attention::Queries;
use lora_drop_compute::device::{At, Attend, Device, LayerNorm, Operation, Piece, RmsNorm};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::rotary::Rotation;

use super::graph::{DropoutSpec, Heads, LayerId, Op, Rows, Segment, TakenOver, Value, ValueId, WeightId};
use super::run::{Result, Run};
use super::saved::{Needs, Saved};
use super::space::Space;
use super::{Network, Shape};
use crate::adapter::{Adapter, AdapterMemory, AdapterTable, Extent};
use crate::dropout::SiteKeys;
use crate::linear::LinearWeights;

/// A walk over one segment.
pub struct Walk<'w, 'a, D: Device> {
    pub net: &'w Network<D>,
    pub segment: &'w Segment,
    /// Index of the block, if the segment is one.
    pub block: Option<usize>,
    pub table: &'w AdapterTable,
    pub shape: Shape,
    pub space: &'w mut Space,
    /// None if the walk only measures.
    pub run: Option<&'w mut Run<'a, D>>,
}

/// Memory of a value or a gradient.
#[derive(Clone, Copy, Default)]
struct Owned {
    piece: Piece,
    /// Whether the walk must free the memory.
    own: bool,
}

/// Memory of the values in the forward pass.
struct Places {
    of: Vec<Owned>,
    output: Piece,
}

impl<'w, 'a, D: Device> Walk<'w, 'a, D> {
    pub(super) fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.shape.tokens,
            Rows::Chosen => self.shape.chosen,
        }
    }

    pub(super) fn value(&self, value: ValueId) -> Value {
        self.segment.values[value]
    }

    /// Number of floats in a value.
    pub(super) fn count(&self, value: ValueId) -> usize {
        let Value { rows, width } = self.value(value);
        self.rows(rows) * width
    }

    pub(super) fn adapter(&self, layer: LayerId) -> Option<Adapter> {
        self.net.layers[layer].module.and_then(|module| self.table.get(module))
    }

    pub(super) fn trains(&self, layer: LayerId) -> bool {
        let LinearWeights { weight, bias, .. } = &self.net.layers[layer];
        weight.trains() || bias.as_ref().is_some_and(|bias| bias.trains()) || self.adapter(layer).is_some()
    }

    /// Runs an operation, unless the walk only measures.
    fn call(&mut self, operation: Operation<D>) -> Result<()> {
        self.run.as_mut().map_or(Ok(()), |run| run.compute(operation))
    }

    /// Returns the tokens that the head reads.
    fn chosen(&self) -> &'a [usize] {
        self.run.as_ref().map_or(&[], |run| run.chosen)
    }

    /// Returns a weight as the device reads it, and the place of its gradient if it trains;
    /// placeholders if the walk only measures.
    fn weight(&self, weight: WeightId) -> (At<'w, D>, Option<Piece>) {
        let weights = &self.net.weights;
        match &self.run {
            Some(run) => (weights[weight].at(run.list), weights[weight].gradient(run.list)),
            None => (At::Memory(Piece::default()), None),
        }
    }

    /// Returns the dropout of an operation and its keys, if it drops anything.
    fn keys(&self, dropout: Option<DropoutSpec>, rows: Rows) -> SiteKeys {
        match (&self.run, dropout) {
            (Some(run), Some(dropout)) => run.keys(dropout, rows),
            _ => SiteKeys::default(),
        }
    }

    /// Whether an operation drops anything; a walk that only measures assumes that it does.
    fn drops_any(&self, dropout: Option<DropoutSpec>) -> bool {
        match (&self.run, dropout) {
            (_, None) => false,
            (Some(run), Some(dropout)) => run.dropout.is_some_and(|plan| dropout.rate.of(&plan).is_active()),
            (None, Some(_)) => true,
        }
    }

    /// Assigns memory to y, which is about to be computed: x's if y takes it over, else the
    /// segment's output, memory of `saved`, or the walk's own.
    fn assign_memory(
        &mut self,
        places: &mut Places,
        x: Option<ValueId>,
        y: ValueId,
        saved: Option<&Saved>,
    ) -> Piece {
        let exact = |value: ValueId| saved.and_then(|saved| saved.exact(value));
        let over = x.filter(|&x| match self.segment.taken_over[x] {
            Some((next, how)) => next == y && (how == TakenOver::Always || exact(x).is_none()),
            None => false,
        });
        if let Some(x) = over {
            places.of[y] = places.of[x];
            places.of[x].own = false;
            return places.of[y].piece;
        }
        // y's memory is that of the last value that will take it over.
        let mut last = y;
        let (piece, own) = loop {
            if last == self.segment.output {
                break (places.output.first(self.count(y)), false);
            }
            if let Some(piece) = exact(last) {
                break (piece, false);
            }
            match self.segment.taken_over[last] {
                Some((next, _)) => last = next,
                None => break (self.space.take(self.count(y)), true),
            }
        };
        places.of[y] = Owned { piece, own };
        piece
    }

    /// Computes the output from the input. What `saved` has memory for is computed there.
    pub fn forward(&mut self, input: Piece, output: Piece, saved: Option<&Saved>) -> Result<()> {
        let segment = self.segment;
        let values = segment.values.len();
        let mut places = Places { of: vec![Owned::default(); values], output };
        if let Some(value) = segment.input {
            places.of[value].piece = input.first(self.count(value));
        }
        for (i, op) in segment.ops.iter().enumerate() {
            let saved_aux = saved.map(|saved| &saved.aux[i]).filter(|aux| !aux.is_empty());
            let aux = match (saved_aux, op) {
                (Some(saved_aux), _) => saved_aux.clone(),
                // `adapter_memory` allocates it for one layer after the other.
                (None, Op::Linear { .. }) => Vec::new(),
                (None, _) => self.allocate_aux(i),
            };
            self.forward_op(op, &mut places, &aux, saved)?;
            if saved_aux.is_none() {
                aux.into_iter().for_each(|piece| self.space.give(piece));
            }
            for value in op.reads().into_iter().chain(op.writes()) {
                let over = segment.last_read[value].is_none_or(|last| last == i);
                if over && value != segment.output && std::mem::take(&mut places.of[value].own) {
                    self.space.give(places.of[value].piece);
                }
            }
        }
        Ok(())
    }

    /// Runs one operation forward.
    fn forward_op(
        &mut self,
        op: &Op,
        places: &mut Places,
        aux: &[Piece],
        saved: Option<&Saved>,
    ) -> Result<()> {
        let rounded = |value: ValueId| saved.and_then(|saved| saved.rounded(value));
        match op {
            Op::Embed { tables, y } => {
                let width = self.value(*y).width;
                let y = self.assign_memory(places, None, *y, saved);
                match &mut self.run {
                    Some(run) => run.embed(self.net, tables, width, y),
                    None => Ok(()),
                }
            }
            Op::Gather { x, y } => {
                let (from, width) = (places.of[*x].piece, self.value(*y).width);
                let y = self.assign_memory(places, Some(*x), *y, saved);
                self.call(Operation::Gather { x: from, rows: self.chosen(), width, y })
            }
            Op::Linear { x, layers } => {
                for (j, (layer, y)) in layers.iter().enumerate() {
                    let y = self.assign_memory(places, None, *y, saved);
                    self.linear(*layer, *x, y, places, aux.get(j).copied())?;
                }
                Ok(())
            }
            Op::LayerNorm { x, residual, dropout, gamma, beta, epsilon, y } => {
                let (keys, epsilon) = (self.keys(*dropout, self.value(*y).rows), *epsilon);
                let residual = residual.map(|residual| places.of[residual].piece);
                let (x, y) = (places.of[*x].piece, self.assign_memory(places, Some(*x), *y, saved));
                let (gamma, beta) = (self.weight(*gamma).0, self.weight(*beta).0);
                let norm = LayerNorm { gamma, beta, normed: aux[0], rstd: aux[1], dropout: keys.get() };
                self.call(Operation::LayerNorm { norm, epsilon, x, residual, y })
            }
            Op::RmsNorm { x, gamma, offset, epsilon, y } => {
                let (x, y) = (places.of[*x].piece, self.assign_memory(places, Some(*x), *y, saved));
                let norm = RmsNorm { gamma: self.weight(*gamma).0, offset: *offset, x, rstd: aux[0] };
                self.call(Operation::RmsNorm { norm, epsilon: *epsilon, y })
            }
            Op::Rotary { x, rope, y } => {
                let y = self.assign_memory(places, Some(*x), *y, saved);
                match &mut self.run {
                    Some(run) => run.rotary(*rope, Rotation::Forward, y),
                    None => Ok(()),
                }
            }
            Op::Attention { qkv, heads, dropout, y } => {
                let [q, k, v] = qkv.map(|value| places.of[value].piece);
                let few = self.value(*y).rows == Rows::Chosen;
                let out = self.assign_memory(places, None, *y, saved);
                self.attention(heads, *dropout, few, [q, k, v, out, aux[0]], None)
            }
            Op::Activation { f, x, y } => {
                let rounded = rounded(*x);
                let (x, y) = (places.of[*x].piece, self.assign_memory(places, Some(*x), *y, saved));
                self.call(Operation::Activation { f: *f, x, y, rounded })
            }
            Op::Gate { f, gate, up, y } => {
                let rounded = rounded(*gate).zip(rounded(*up)).map(|(gate, up)| [gate, up]);
                let gate_and_up = [places.of[*gate].piece, places.of[*up].piece];
                let y = self.assign_memory(places, Some(*gate), *y, saved);
                self.call(Operation::Gate { f: *f, gate_and_up, y, rounded })
            }
            Op::Add { x, branch, y } => {
                let (x, to) = (places.of[*x].piece, self.assign_memory(places, Some(*branch), *y, saved));
                self.call(Operation::Add { to, x })
            }
            Op::Scale { x, factor, y } => {
                let x = self.assign_memory(places, Some(*x), *y, saved);
                self.call(Operation::Scale { x, factor: *factor })
            }
            Op::Dropout { x, dropout, y } => {
                let rows = self.value(*y).rows;
                let (from, to) = (places.of[*x].piece, self.assign_memory(places, Some(*x), *y, saved));
                if from.start != to.start {
                    self.call(Operation::Copy { from, to })?;
                }
                self.dropout(*dropout, rows, to)
            }
        }
    }

    fn dropout(&mut self, dropout: DropoutSpec, rows: Rows, x: Piece) -> Result<()> {
        let keys = self.keys(Some(dropout), rows);
        let Some((dropout, keys)) = keys.get() else { return Ok(()) };
        self.call(Operation::Dropout { x, dropout, keys })
    }

    /// Returns the sizes of a layer's pass over this number of rows, for its adapter.
    pub(super) fn extent(&self, layer: LayerId, rows: usize, backward_follows: bool) -> Extent {
        let LinearWeights { input, output, .. } = self.net.layers[layer];
        Extent { rows, input, output, dropout: self.shape.lora_dropout, backward_follows }
    }

    /// Allocates memory of a layer's adapter for one pass. `saved` is memory for what it saves for
    /// the backward pass, if there is one.
    fn adapter_memory(
        &mut self,
        layer: LayerId,
        rows: usize,
        saved: Option<Piece>,
        backward: bool,
    ) -> AdapterMemory {
        let Some(adapter) = self.adapter(layer) else { return AdapterMemory::default() };
        let extent = self.extent(layer, rows, saved.is_some());
        let adapter = adapter.on::<D>();
        AdapterMemory {
            saved: saved.unwrap_or_else(|| self.space.take(adapter.saved(extent))),
            scratch: self.space.take(adapter.scratch(extent, backward)),
            backward_follows: extent.backward_follows,
        }
    }

    /// Computes y of one of the layers that read x. `saved` is memory for what its adapter saves
    /// for the backward pass, if there is one.
    fn linear(
        &mut self,
        layer: LayerId,
        x: ValueId,
        y: Piece,
        places: &Places,
        saved: Option<Piece>,
    ) -> Result<()> {
        let Value { rows: of, .. } = self.value(x);
        let rows = self.rows(of);
        let memory = self.adapter_memory(layer, rows, saved, false);
        let adapter = self.adapter(layer);
        if let Some(run) = &mut self.run {
            let keys = run.lora_keys(&self.net.layers[layer], of);
            let mut layer = run.layer(&self.net.layers[layer], rows, keys.get());
            let xy = [places.of[x].piece, y];
            match adapter {
                None => layer.forward(xy, layer.bias(), None)?,
                Some(adapter) => adapter.on().forward(&mut layer, xy, memory)?,
            }
        }
        self.space.give(memory.scratch);
        self.score(layer, x, places, memory.saved)?;
        if saved.is_none() {
            self.space.give(memory.saved);
        }
        Ok(())
    }

    /// Shows a module to the observer, over all tokens. If its z was computed for first tokens
    /// only, z is computed for all tokens here, which is cheap because z is narrow.
    fn score(&mut self, layer: LayerId, x: ValueId, places: &Places, saved: Piece) -> Result<()> {
        let scored = self.shape.scored && self.net.layers[layer].in_block();
        let Some(adapter) = self.adapter(layer).filter(|_| scored) else { return Ok(()) };
        let pair = adapter.on::<D>().pair();
        let (tokens, width) = (self.shape.tokens, pair.rank);
        let producer = self.segment.producer[x].map(|producer| &self.segment.ops[producer]);
        let all = match (self.value(x).rows, producer) {
            (Rows::Tokens, _) => None,
            (Rows::Chosen, Some(Op::Gather { x, .. })) => Some(places.of[*x].piece),
            (Rows::Chosen, _) => {
                unreachable!("only layers that read the block's input are scored for first tokens")
            }
        };
        let own = self.space.take(if all.is_some() { tokens * width } else { 0 });
        if let Some(run) = &mut self.run {
            let weights = &self.net.layers[layer];
            if let Some(x) = all {
                pair.project(&mut run.layer(weights, tokens, None), x, own)?;
            }
            let seen = all.map_or_else(|| [places.of[x].piece, saved.first(tokens * width)], |x| [x, own]);
            run.observe(weights, seen, width)?;
        }
        self.space.give(own);
        Ok(())
    }

    /// Runs attention on these pieces: q, k and v, its output, and its log-sum-exps. With
    /// `backward`, runs the backward pass from the output's gradient to those of q, k and v.
    fn attention(
        &mut self,
        heads: &Heads,
        dropout: DropoutSpec,
        few: bool,
        [q, k, v, out, lse]: [Piece; 5],
        backward: Option<(Piece, [Piece; 3])>,
    ) -> Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let keys = run.keys(dropout, Rows::Tokens);
        let attend = Attend {
            q,
            k,
            v,
            out,
            lse,
            offsets: run.offsets,
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            width: heads.width,
            scale: heads.scale,
            bias: run.bias.filter(|_| heads.biased),
            dropout: keys.get(),
            queries: if few { Queries::First } else { Queries::All },
            mask: heads.mask,
            precision: if run.caches.is_some() { Precision::F32 } else { self.net.precision() },
        };
        let block = self.block.expect("attention is in blocks");
        match (backward, &mut run.caches) {
            (Some((dout, dqkv)), _) => {
                let dbias = run.dbias;
                run.compute(Operation::AttentionBackward { attend, dout, dqkv, dbias })
            }
            (None, Some(caches)) => {
                let mut caches: Vec<_> = caches.iter_mut().map(|cache| cache.layer(block)).collect();
                Ok(run.device.attention_cached(run.store.memory, attend, &mut caches)?)
            }
            (None, None) => run.compute(Operation::Attention(attend)),
        }
    }

    /// Returns a value that is saved, or recomputes it from saved values.
    fn saved_or_recomputed(&mut self, value: ValueId, input: Piece, saved: &Saved) -> Result<Owned> {
        if Some(value) == self.segment.input {
            return Ok(Owned { piece: input, own: false });
        }
        if let Some(piece) = saved.exact(value) {
            return Ok(Owned { piece, own: false });
        }
        let producer = self.segment.producer[value].expect("only the input has no producer");
        let y = self.space.take(self.count(value));
        let of = |x: ValueId| saved.values[x].expect("it is saved for that");
        match &self.segment.ops[producer] {
            Op::RmsNorm { x, gamma, offset, .. } => {
                let x = if Some(*x) == self.segment.input { input } else { of(*x).piece };
                let (gamma, rstd) = (self.weight(*gamma).0, saved.aux[producer][0]);
                let norm = RmsNorm { gamma, offset: *offset, x, rstd };
                self.call(Operation::RecomputeRmsNorm { norm, y })?;
            }
            Op::Activation { f, x, .. } => {
                self.call(Operation::RecomputeActivation { f: *f, x: of(*x), y })?;
            }
            Op::Gate { f, gate, up, .. } => {
                self.call(Operation::RecomputeGate { f: *f, saved: [*gate, *up].map(of), y })?;
            }
            Op::Gather { x, y: gathered } => {
                let width = self.value(*gathered).width;
                let x = self.saved_or_recomputed(*x, input, saved)?;
                self.call(Operation::Gather { x: x.piece, rows: self.chosen(), width, y })?;
                self.release(x);
            }
            other => unreachable!("{other:?} is not recomputed"),
        }
        Ok(Owned { piece: y, own: true })
    }

    /// Returns the place of a value's gradient, and whether it has contents to add to.
    fn gradient(&mut self, grads: &mut Grads, value: ValueId) -> (Piece, bool) {
        if let Some(gradient) = grads.of[value] {
            return (gradient.piece, true);
        }
        let piece = self.space.take(self.count(value));
        grads.of[value] = Some(Owned { piece, own: true });
        (piece, false)
    }

    fn release(&mut self, memory: Owned) {
        if memory.own {
            self.space.give(memory.piece);
        }
    }

    /// Computes the input's gradient, if `needs` says so, from the output's gradient `d`, which is
    /// overwritten. The result is in `d` or in other memory, depending on the operations, or is
    /// added to `into`. Adds to the gradients of what trains.
    pub fn backward(
        &mut self,
        input: Piece,
        d: Piece,
        into: Option<Piece>,
        saved: &Saved,
        needs: &Needs,
    ) -> Result<Option<Piece>> {
        let segment = self.segment;
        let mut grads = Grads { of: vec![None; segment.values.len()] };
        if let Some(value) = segment.input {
            grads.of[value] = into.map(|piece| Owned { piece, own: false });
        }
        grads.of[segment.output] = Some(Owned { piece: d.first(self.count(segment.output)), own: false });
        for (i, op) in segment.ops.iter().enumerate().rev() {
            if op.writes().iter().any(|&y| needs.gradient[y]) {
                self.backward_op(i, op, input, &mut grads, saved, needs)?;
            }
        }
        let dx = segment.input.and_then(|value| grads.of[value].take());
        // Attention also computes gradients that are not needed.
        grads.of.into_iter().flatten().for_each(|gradient| self.release(gradient));
        Ok(dx.map(|gradient| gradient.piece))
    }

    /// Runs one operation backward.
    fn backward_op(
        &mut self,
        number: usize,
        op: &Op,
        input: Piece,
        grads: &mut Grads,
        saved: &Saved,
        needs: &Needs,
    ) -> Result<()> {
        let aux = &saved.aux[number];
        match op {
            Op::Embed { tables, y } => {
                let g = grads.take(*y);
                let width = self.value(*y).width;
                if let Some(run) = &mut self.run {
                    run.embed_backward(self.net, tables, width, g.piece)?;
                }
                self.release(g);
            }
            Op::Gather { x, y } => {
                let g = grads.take(*y);
                if needs.gradient[*x] {
                    let (dx, add) = self.gradient(grads, *x);
                    if !add {
                        self.call(Operation::Fill { piece: dx, value: 0.0 })?;
                    }
                    self.call(Operation::Scatter { y: g.piece, rows: self.chosen(), x: dx, add })?;
                }
                self.release(g);
            }
            Op::Linear { x, layers } => {
                let reads = layers.iter().any(|(layer, _)| self.trains(*layer));
                let from = match reads {
                    true => self.saved_or_recomputed(*x, input, saved)?,
                    false => Owned { piece: input, own: false },
                };
                for (j, (layer, y)) in layers.iter().enumerate().filter(|(_, (_, y))| needs.gradient[*y]) {
                    let g = grads.take(*y);
                    let dx = needs.gradient[*x].then(|| self.gradient(grads, *x));
                    let (rows, xdy) = (self.value(*x).rows, [from.piece, g.piece]);
                    self.linear_backward(*layer, rows, xdy, dx, aux.get(j).copied())?;
                    self.release(g);
                }
                self.release(from);
            }
            Op::LayerNorm { x, residual, dropout, gamma, beta, y, .. } => {
                let g = grads.take(*y);
                let keys = self.keys(*dropout, self.value(*y).rows);
                // The gradient of the sum is the residual's and, without dropout, x's too.
                let whole = residual.filter(|&residual| needs.gradient[residual]);
                let du = match whole {
                    Some(residual) => {
                        let (piece, add) = self.gradient(grads, residual);
                        assert!(!add, "a norm's residual gets its first gradient from it");
                        Owned { piece, own: false }
                    }
                    None => Owned { piece: self.space.take(self.count(*y)), own: true },
                };
                let dx = self.drops_any(*dropout).then(|| self.space.take(self.count(*x)));
                let ((gamma, dgamma), (beta, dbeta)) = (self.weight(*gamma), self.weight(*beta));
                let gradients = dgamma.zip(dbeta).map(|(gamma, beta)| [gamma, beta]);
                let norm = LayerNorm { gamma, beta, normed: aux[0], rstd: aux[1], dropout: keys.get() };
                let op = Operation::LayerNormBackward { norm, dy: g.piece, du: du.piece, dx, gradients };
                self.call(op)?;
                self.release(g);
                let of_x = match dx {
                    Some(dx) => {
                        self.release(du);
                        Owned { piece: dx, own: true }
                    }
                    None => du,
                };
                if needs.gradient[*x] {
                    grads.of[*x] = Some(of_x);
                } else {
                    self.release(of_x);
                }
            }
            Op::RmsNorm { x, gamma, offset, y, .. } => {
                let g = grads.take(*y);
                let from = self.saved_or_recomputed(*x, input, saved)?;
                let (dx, add) = match needs.gradient[*x] {
                    true => self.gradient(grads, *x),
                    false => (self.space.take(self.count(*x)), false),
                };
                if !add {
                    self.call(Operation::Fill { piece: dx, value: 0.0 })?;
                }
                let (gamma, gradient) = self.weight(*gamma);
                let norm = RmsNorm { gamma, offset: *offset, x: from.piece, rstd: aux[0] };
                self.call(Operation::RmsNormBackward { norm, dy: g.piece, dx, gradient })?;
                self.release(from);
                self.release(Owned { piece: dx, own: !needs.gradient[*x] });
                self.release(g);
            }
            Op::Rotary { x, rope, y } => {
                let g = grads.take(*y);
                if let Some(run) = &mut self.run {
                    run.rotary(*rope, Rotation::Backward, g.piece)?;
                }
                grads.of[*x] = Some(g);
            }
            Op::Attention { qkv, heads, dropout, y } => {
                let g = grads.take(*y);
                let dqkv = qkv.map(|value| self.gradient(grads, value).0);
                let of = |value: ValueId| saved.exact(value).expect("attention saves what it reads");
                let [q, k, v] = qkv.map(of);
                let few = self.value(*y).rows == Rows::Chosen;
                let pieces = [q, k, v, of(*y), aux[0]];
                self.attention(heads, *dropout, few, pieces, Some((g.piece, dqkv)))?;
                self.release(g);
            }
            Op::Activation { f, x, y } => {
                let g = grads.take(*y);
                let input = saved.values[*x].expect("an activation saves its input");
                self.call(Operation::ActivationBackward { f: *f, x: input, dy: g.piece })?;
                grads.of[*x] = Some(g);
            }
            Op::Gate { f, gate, up, y } => {
                let g = grads.take(*y);
                let inputs =
                    [gate, up].map(|value| saved.values[*value].expect("a gate saves what it reads"));
                let (dgate, _) = self.gradient(grads, *gate);
                self.call(Operation::GateBackward { f: *f, saved: inputs, dy: g.piece, dgate })?;
                grads.of[*up] = Some(g);
            }
            Op::Add { x, branch, y } => {
                // Both terms share one gradient. The branch's is read before anything is added to
                // x's, because the operation that computed the branch is the one before.
                let g = grads.take(*y);
                assert!(grads.of[*x].is_none(), "a sum's first term gets its first gradient from it");
                let (for_x, for_branch) = (needs.gradient[*x], needs.gradient[*branch]);
                if for_x {
                    grads.of[*x] = Some(g);
                }
                if for_branch {
                    grads.of[*branch] = Some(Owned { own: g.own && !for_x, ..g });
                }
            }
            Op::Scale { x, factor, y } => {
                let g = grads.take(*y);
                self.call(Operation::Scale { x: g.piece, factor: *factor })?;
                grads.of[*x] = Some(g);
            }
            Op::Dropout { x, dropout, y } => {
                let g = grads.take(*y);
                self.dropout(*dropout, self.value(*y).rows, g.piece)?;
                grads.of[*x] = Some(g);
            }
        }
        Ok(())
    }

    /// Runs a layer's backward pass from x and dy; overwrites `dx`, or adds to it if the flag is
    /// set. `saved` is what its adapter has saved.
    fn linear_backward(
        &mut self,
        layer: LayerId,
        of: Rows,
        [x, dy]: [Piece; 2],
        dx: Option<(Piece, bool)>,
        saved: Option<Piece>,
    ) -> Result<()> {
        let rows = self.rows(of);
        let memory = self.adapter_memory(layer, rows, Some(saved.unwrap_or_default()), true);
        let adapter = self.adapter(layer);
        if let Some(run) = &mut self.run {
            let weights = &self.net.layers[layer];
            let keys = run.lora_keys(weights, of);
            let mut layer = run.layer(weights, rows, keys.get());
            if let Some(adapter) = adapter {
                adapter.on().backward(&mut layer, [x, dy], dx, memory)?;
            } else {
                layer.weight_gradient(x, dy)?;
                layer.bias_gradient(dy)?;
                if let Some(dx) = dx {
                    layer.input_gradient(dy, dx, None)?;
                }
            }
        }
        self.space.give(memory.scratch);
        Ok(())
    }
}

/// Gradients of values in the backward pass.
struct Grads {
    of: Vec<Option<Owned>>,
}

impl Grads {
    fn take(&mut self, value: ValueId) -> Owned {
        self.of[value].take().expect("a value whose gradient is needed has one")
    }
}
