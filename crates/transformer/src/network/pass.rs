//! Passes through a network: the order of segments, and what each block saves.
//!
//! Without a `Run`, a pass computes nothing and measures the memory that it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lora_drop_compute::device::{Cpu, Device, Operation, Piece, Relative, Store, Targets};
use lora_drop_compute::profile;
use lora_drop_compute::rotary::RotaryTable;

use super::cache::Cache;
use super::graph::Segment;
use super::run::{Result, Run, Stopped};
use super::saved::{Needs, Saved};
use super::space::Space;
use super::walk::Walk;
use super::{Network, Reads, Shape};
use crate::adapter::LoraTable;
use crate::batch::{PrefixOutput, Sequences, TextPart, Texts, TrainPart};
use crate::drops::DropoutPlan;
use crate::memory::{Keep, Memory, PassSize};
use crate::observer::Observing;
use crate::parameters::Values;

/// Options that only some passes have.
struct Options<'a, D: Device> {
    /// For passes with a backward pass.
    gradients: Option<&'a mut D::Buffer>,
    drops: Option<DropoutPlan<'a>>,
    /// Each token's position in its sequence, if positions do not start from 0.
    positions: Option<Vec<u32>>,
    caches: Option<Vec<&'a mut Cache<D>>>,
}

impl<D: Device> Default for Options<'_, D> {
    fn default() -> Self {
        Options { gradients: None, drops: None, positions: None, caches: None }
    }
}

/// Targets of a training pass.
#[derive(Clone, Copy)]
pub enum Goal<'a> {
    Head(Targets<'a>),
    /// The tokens to predict, and the factor on the gradient of their losses.
    Tokens(&'a [u32], f32),
    /// No targets: the pass only measures.
    None,
}

/// A pass in progress.
pub struct Pass<'p, 'a, D: Device> {
    net: &'p Network<D>,
    table: &'p LoraTable,
    shape: Shape,
    space: Space,
    run: Option<&'p mut Run<'a, D>>,
    chosen: &'a [usize],
    stop: Option<&'a AtomicBool>,
}

impl<D: Device> Network<D> {
    /// Runs `f` on a pass over these sequences, in which the head reads the tokens `chosen`.
    fn pass<'a, R>(
        &self,
        context: Context<'a, D>,
        (sequences, chosen): (Sequences<'a>, &'a [usize]),
        size: PassSize,
        options: Options<'a, D>,
        f: impl FnOnce(&mut Pass<D>) -> Result<R>,
    ) -> Result<R> {
        let Context { values, table, observing, memory, stop } = context;
        let Options { gradients, drops, positions, caches } = options;
        let Sequences { ids, types, offsets, .. } = sequences;
        let places = || offsets.windows(2).flat_map(|ends| 0..(ends[1] - ends[0]) as u32).collect();
        let positions = positions.unwrap_or_else(places);
        let rotary = self.rotary(&positions, memory);
        let len = self.floats(table, &size);
        memory.most = memory.most.max(len);
        let memory = self.device.room(&mut memory.buffer, len)?;
        let mut run = Run {
            device: &self.device,
            store: Store { memory, parameters: values.values, gradients },
            list: values.list,
            table,
            ids,
            types,
            positions: &positions,
            offsets,
            chosen,
            drops,
            rotary: &rotary,
            bias: None,
            dbias: None,
            observing,
            caches,
        };
        let shape = self.shape(&size);
        let mut pass = Pass {
            net: self,
            table,
            shape,
            space: Space::default(),
            run: Some(&mut run),
            chosen,
            stop: Some(stop),
        };
        pass.begin()?;
        f(&mut pass)
    }

    /// Returns the number of floats of activations that a pass of this size takes.
    pub fn floats(&self, table: &LoraTable, size: &PassSize) -> usize {
        let mut pass = Pass {
            net: self,
            table,
            shape: self.shape(size),
            space: Space::default(),
            run: None,
            chosen: &[],
            stop: None,
        };
        let measured = pass.begin().and_then(|()| match size.keep {
            Keep::One => pass.outputs().map(drop),
            Keep::Inputs => pass.train(Goal::None, true, None).map(drop),
            Keep::All => pass.train(Goal::None, false, None).map(drop),
        });
        measured.expect("nothing stops what computes nothing");
        pass.space.most()
    }

    fn shape(&self, size: &PassSize) -> Shape {
        let PassSize { tokens, sequences, learned, lora_dropout, scored, every_token, .. } = *size;
        let chosen = match self.graph.reads {
            Reads::First | Reads::Last => sequences,
            Reads::Labelled => learned,
            Reads::Learned => learned.min(self.chunk()),
        };
        Shape { tokens, chosen, lora_dropout, scored, every_token }
    }

    /// Returns rotary tables for the graph's frequencies. Those in `memory` are reused if they have
    /// the same frequencies and enough positions: the memory may have served another model.
    fn rotary(&self, positions: &[u32], memory: &mut Memory<D>) -> Vec<Arc<RotaryTable>> {
        let needed = positions.iter().max().map_or(1, |&p| p as usize + 1);
        let old = std::mem::take(&mut memory.rotary);
        let table = |frequencies: &Vec<f32>| match old.iter().find(|old| old.holds(needed, frequencies)) {
            Some(table) => table.clone(),
            None => Arc::new(RotaryTable::new(needed.next_power_of_two(), frequencies)),
        };
        memory.rotary = self.graph.rope.iter().map(table).collect();
        memory.rotary.clone()
    }
}

/// Everything that a pass needs besides its sequences.
pub struct Context<'a, D: Device = Cpu> {
    /// Values of trained tensors and constants.
    pub values: Values<'a, D>,
    pub table: &'a LoraTable,
    /// The observer that is shown every module with an adapter.
    pub observing: Option<Observing<'a, D>>,
    pub memory: &'a mut Memory<D>,
    /// A flag that ends the pass when it is set.
    pub stop: &'a AtomicBool,
}

impl<'a, D: Device> Context<'a, D> {
    /// The context of passes without an observer.
    pub fn new(
        values: Values<'a, D>,
        table: &'a LoraTable,
        memory: &'a mut Memory<D>,
        stop: &'a AtomicBool,
    ) -> Self {
        Context { values, table, observing: None, memory, stop }
    }
}

impl<D: Device> Network<D> {
    /// Returns the head's outputs for packed sequences, (sequences, outputs), or for their labelled
    /// tokens, (labelled, outputs), without dropout.
    pub fn outputs(&self, context: Context<D>, sequences: Sequences) -> Result<Vec<f32>> {
        let size = PassSize::of_forward(sequences.offsets, context.observing.is_some());
        let size = PassSize { learned: sequences.labelled.len(), ..size };
        let chosen = self.chosen(sequences);
        self.pass(context, (sequences, &chosen), size, Options::default(), |pass| pass.outputs())
    }

    /// Runs one micro-batch of a training step, for a model with a head: adds to `gradients` and to
    /// the observations; returns the sum of the losses of sequences or labelled tokens.
    pub fn train(&self, context: Context<D>, gradients: &mut D::Buffer, part: TrainPart) -> Result<f64> {
        let sequences = part.sequences;
        let drops = part.dropout.drops(part.keys, sequences.offsets);
        let (dropped, scored) = (drops.lora.is_active(), context.observing.is_some());
        let size = PassSize::of_training(sequences.offsets, part.recompute, dropped, scored);
        let size = PassSize { learned: sequences.labelled.len(), ..size };
        let chosen = self.chosen(sequences);
        let options = Options { gradients: Some(gradients), drops: Some(drops), ..Options::default() };
        let goal = Goal::Head(part.targets());
        let train = |pass: &mut Pass<D>| pass.train(goal, part.recompute, part.below);
        self.pass(context, (sequences, &chosen), size, options, train)
    }

    /// Runs one micro-batch of a training step, for a decoder: adds to `gradients` and to the
    /// observations; returns the sum of the targets' losses.
    pub fn train_texts(&self, context: Context<D>, gradients: &mut D::Buffer, part: TextPart) -> Result<f64> {
        let texts = part.texts;
        let drops = part.dropout.drops(part.keys, texts.offsets);
        let (chosen, targets) = texts.targets();
        let (dropped, scored) = (drops.lora.is_active(), context.observing.is_some());
        let size = PassSize::of_training(texts.offsets, part.recompute, dropped, scored);
        let size = PassSize { learned: chosen.len(), ..size };
        let options = Options { gradients: Some(gradients), drops: Some(drops), ..Options::default() };
        let goal = Goal::Tokens(&targets, 1.0 / part.total as f32);
        let train = |pass: &mut Pass<D>| pass.train(goal, part.recompute, part.below);
        self.pass(context, (texts.sequences(), &chosen), size, options, train)
    }

    /// Returns −log p of every target, in order, without dropout.
    pub fn losses(&self, context: Context<D>, texts: Texts) -> Result<Vec<f32>> {
        let (chosen, targets) = texts.targets();
        let size = PassSize::of_forward(texts.offsets, context.observing.is_some());
        let size = PassSize { learned: chosen.len(), ..size };
        let sequences = (texts.sequences(), &chosen[..]);
        self.pass(context, sequences, size, Options::default(), |pass| pass.losses(&targets))
    }

    /// Returns the output of the `blocks` lowest blocks (not all) for packed sequences without
    /// dropout, (tokens, hidden), for [`PrefixOutput`]. A sequence's values do not depend on the
    /// others.
    pub fn below(&self, context: Context<D>, sequences: Sequences, blocks: usize) -> Result<Vec<f32>> {
        assert!(blocks < self.graph.blocks.len(), "the last block may compute first tokens alone");
        let size = PassSize::of_forward(sequences.offsets, false);
        self.pass(context, (sequences, &[]), size, Options::default(), |pass| pass.below(blocks))
    }

    /// Calls `see` with the hidden states of packed sequences without dropout, (tokens, hidden):
    /// number 0 is the embedding's output, then each block's.
    pub fn hidden_states(
        &self,
        context: Context<D>,
        sequences: Sequences,
        see: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let size = PassSize { every_token: true, ..PassSize::of_forward(sequences.offsets, false) };
        self.pass(context, (sequences, &[]), size, Options::default(), |pass| pass.hidden_states(see))
    }

    /// Returns the outputs after the last of each text's new tokens, (texts, vocabulary). New
    /// tokens follow those in the caches, which grow by their keys and values.
    pub fn extend(
        &self,
        context: Context<D>,
        sequences: Sequences,
        caches: &mut [&mut Cache<D>],
    ) -> Result<Vec<f32>> {
        let offsets = sequences.offsets;
        assert_eq!(caches.len() + 1, offsets.len());
        let from = |text: usize| caches[text].tokens() as u32;
        let place = |text: usize| (0..(offsets[text + 1] - offsets[text]) as u32).map(move |i| (text, i));
        let positions = (0..caches.len()).flat_map(place).map(|(text, i)| from(text) + i).collect();
        let size = PassSize { learned: caches.len(), ..PassSize::of_forward(offsets, false) };
        let chosen = last_tokens(offsets);
        let caches = Some(caches.iter_mut().map(|cache| &mut **cache).collect());
        let options = Options { positions: Some(positions), caches, ..Options::default() };
        self.pass(context, (sequences, &chosen), size, options, |pass| pass.outputs_cached())
    }

    /// Returns the tokens that a head for labels reads.
    fn chosen(&self, Sequences { offsets, labelled, .. }: Sequences) -> Vec<usize> {
        match self.graph.reads {
            Reads::First => offsets[..offsets.len() - 1].to_vec(),
            Reads::Last | Reads::Learned => last_tokens(offsets),
            Reads::Labelled => labelled.to_vec(),
        }
    }
}

/// Returns the last token of each sequence.
fn last_tokens(offsets: &[usize]) -> Vec<usize> {
    offsets[1..].iter().map(|end| end - 1).collect()
}

impl<'p, 'a, D: Device> Pass<'p, 'a, D> {
    /// Computes the relative position bias, if the network has one, and clears its gradient, if it
    /// trains.
    fn begin(&mut self) -> Result<()> {
        let Some((weight, of)) = self.net.graph.relative else { return Ok(()) };
        let size = |reach: usize| of.heads * (2 * reach - 1);
        let [table, gradient] = [(); 2].map(|()| self.space.take(size(self.shape.tokens.max(1))));
        if let Some(run) = &mut self.run {
            let reach = run.offsets.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0).max(1);
            let [table, gradient] = [table, gradient].map(|piece| piece.first(size(reach)));
            let weight = &self.net.weights[weight];
            let of = Relative { reach, ..of };
            run.compute(Operation::RelativeBias { weight: weight.at(run.list), of, table })?;
            run.bias = Some((table, reach));
            if weight.trains() {
                run.compute(Operation::Fill { piece: gradient, value: 0.0 })?;
                run.dbias = Some(gradient);
            }
        }
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        match self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => Err(Stopped::Asked),
            _ => Ok(()),
        }
    }

    fn walk<'s>(&'s mut self, segment: &'s Segment, block: Option<usize>) -> Walk<'s, 'a, D> {
        let Pass { net, table, shape, space, run, .. } = self;
        Walk { net, segment, block, table, shape: *shape, space, run: run.as_deref_mut() }
    }

    fn block(&self, number: usize) -> &'p Segment {
        let net: &'p Network<D> = self.net;
        if number + 1 == net.graph.blocks.len() {
            net.tail(self.table, &self.shape)[0]
        } else {
            &net.graph.blocks[number]
        }
    }

    fn row(&mut self) -> Piece {
        self.space.take(self.shape.tokens * self.net.graph.hidden)
    }

    /// Computes the output of the first `blocks` blocks into `into`, (tokens, hidden): from the
    /// tokens, or from the output of the blocks `below`. The activations of one block exist at a
    /// time.
    fn lower(&mut self, blocks: usize, below: Option<PrefixOutput>, into: Piece) -> Result<()> {
        let first = below.map_or(0, |below| below.blocks);
        let mut x = if blocks == first { into } else { self.row() };
        match (below, &mut self.run) {
            (Some(below), Some(run)) => run.device.write(run.store.memory, x, below.output)?,
            (Some(_), None) => {}
            (None, _) => {
                let net = self.net;
                self.walk(&net.graph.embedding, None).forward(Piece::default(), x, None)?;
            }
        }
        for number in first..blocks {
            self.go_on()?;
            let y = if number + 1 == blocks { into } else { self.row() };
            let segment = self.block(number);
            let _block = self.run.is_some().then(|| profile::block(number));
            self.walk(segment, Some(number)).forward(x, y, None)?;
            self.space.give(x);
            x = y;
        }
        Ok(())
    }

    /// Returns the output of the first `blocks` blocks, (tokens, hidden).
    pub fn below(&mut self, blocks: usize) -> Result<Vec<f32>> {
        let into = self.row();
        self.lower(blocks, None, into)?;
        let run = self.run.as_ref().expect("what is measured has no output");
        Ok(run.device.read(run.store.memory, into)?)
    }

    /// Calls `see` with the output of the embedding and of each block, (tokens, hidden).
    pub fn hidden_states(&mut self, mut see: impl FnMut(usize, &[f32])) -> Result<()> {
        let into = self.row();
        let mut output = Vec::new();
        for blocks in 0..=self.net.graph.blocks.len() {
            let below = blocks.checked_sub(1).map(|blocks| PrefixOutput { blocks, output: &output });
            self.lower(blocks, below, into)?;
            let run = self.run.as_ref().expect("what is measured has no output");
            output = run.device.read(run.store.memory, into)?;
            see(blocks, &output);
        }
        Ok(())
    }

    /// Computes the output of the last block, (tokens, hidden).
    fn body(&mut self) -> Result<Piece> {
        let _phase = self.run.is_some().then(|| profile::phase("forward"));
        let into = self.row();
        self.lower(self.net.graph.blocks.len(), None, into)?;
        Ok(into)
    }

    /// Returns the head's outputs for the chosen tokens, (chosen, outputs).
    pub fn outputs(&mut self) -> Result<Vec<f32>> {
        let x = self.body()?;
        let name = if self.net.graph.reads == Reads::Learned { "logits" } else { "head" };
        let _phase = self.run.is_some().then(|| profile::phase(name));
        let logits = self.head_forward(x)?;
        match &self.run {
            Some(run) => Ok(run.device.read(run.store.memory, logits)?),
            None => Ok(Vec::new()),
        }
    }

    /// Returns the same for tokens that follow those in the caches, which count the new tokens.
    pub fn outputs_cached(&mut self) -> Result<Vec<f32>> {
        let found = self.outputs()?;
        if let Some(run) = &mut self.run
            && let Some(caches) = &mut run.caches
        {
            for (cache, ends) in caches.iter_mut().zip(run.offsets.windows(2)) {
                cache.grow(ends[1] - ends[0]);
            }
        }
        Ok(found)
    }

    /// Returns −log p of every target.
    pub fn losses(&mut self, targets: &[u32]) -> Result<Vec<f32>> {
        let x = self.body()?;
        let mut found = Vec::with_capacity(targets.len());
        for (chosen, targets) in self.chunks(targets) {
            self.go_on()?;
            self.choose(chosen);
            let logits = self.head_forward(x)?;
            if let Some(run) = &mut self.run {
                found.extend(run.device.token_losses(run.store.memory, logits, targets, None)?);
            }
            self.space.give(logits);
        }
        Ok(found)
    }

    /// Splits the chosen tokens and their targets into chunks whose logits exist at once.
    fn chunks<'t>(&self, targets: &'t [u32]) -> Vec<(&'a [usize], &'t [u32])> {
        let each = self.net.chunk();
        self.chosen.chunks(each).zip(targets.chunks(each)).collect()
    }

    /// Sets the tokens that the head reads.
    fn choose(&mut self, chosen: &'a [usize]) {
        self.shape.chosen = chosen.len();
        if let Some(run) = &mut self.run {
            run.chosen = chosen;
        }
    }

    fn head(&self) -> &'p Segment {
        let net: &'p Network<D> = self.net;
        net.tail(self.table, &self.shape)[1]
    }

    /// Allocates memory for the head's outputs.
    fn logits(&mut self) -> Piece {
        let head = self.head();
        self.space.take(self.shape.chosen * head.values[head.output].width)
    }

    fn head_forward(&mut self, x: Piece) -> Result<Piece> {
        let (head, logits) = (self.head(), self.logits());
        self.walk(head, None).forward(x, logits, None)?;
        Ok(logits)
    }

    /// Runs a forward and a backward pass. Adds to the gradients of what trains and to the
    /// observations; returns the sum of the losses. With `recompute`, only the blocks' inputs are
    /// saved, and the backward pass recomputes everything else.
    pub fn train(&mut self, goal: Goal, recompute: bool, below: Option<PrefixOutput>) -> Result<f64> {
        let net = self.net;
        let (blocks, embeds) = (net.graph.blocks.len(), net.trains_embeddings());
        let lowest = net.lowest(self.table);
        // Blocks below the lowest one that trains save nothing.
        let kept = lowest.unwrap_or(blocks);
        let computed = below.map_or(0, |below| below.blocks);
        assert!(kept >= computed, "block {kept} trains, but those below {computed} were not computed");
        let reaches = |number: usize| embeds || lowest.is_some_and(|lowest| number > lowest);

        let phase = self.run.is_some().then(|| profile::phase("forward"));
        let inputs: Vec<Piece> = (kept..=blocks).map(|_| self.row()).collect();
        let embedding = if embeds {
            let mut walk = self.walk(&net.graph.embedding, None);
            let needs = walk.needs(false);
            let saved = walk.save(&needs);
            walk.forward(Piece::default(), inputs[0], Some(&saved))?;
            Some((needs, saved))
        } else {
            self.lower(kept, below, inputs[0])?;
            None
        };
        let mut saved: Vec<(Needs, Saved)> = Vec::with_capacity(blocks - kept);
        for number in kept..blocks {
            self.go_on()?;
            let [x, y] = [number, number + 1].map(|number| inputs[number - kept]);
            let segment = self.block(number);
            let _block = self.run.is_some().then(|| profile::block(number));
            let mut walk = self.walk(segment, Some(number));
            if recompute {
                walk.forward(x, y, None)?;
            } else {
                let needs = walk.needs(reaches(number));
                let own = walk.save(&needs);
                walk.forward(x, y, Some(&own))?;
                saved.push((needs, own));
            }
        }
        drop(phase);

        let (sum, d) = self.head_back(goal, inputs[blocks - kept], lowest.is_some())?;
        let Some(mut d) = d else { return Ok(sum) };
        let _phase = self.run.is_some().then(|| profile::phase("backward"));
        for number in (kept..blocks).rev() {
            self.go_on()?;
            let [x, y] = [number, number + 1].map(|number| inputs[number - kept]);
            let segment = self.block(number);
            let _block = self.run.is_some().then(|| profile::block(number));
            let mut walk = self.walk(segment, Some(number));
            let (needs, own) = match saved.pop() {
                Some(saved) => saved,
                None => {
                    // Recomputes the block's output too, in the memory that already has it. Scores
                    // were taken in the first pass.
                    walk.shape.scored = false;
                    let needs = walk.needs(reaches(number));
                    let own = walk.save(&needs);
                    walk.forward(x, y, Some(&own))?;
                    (needs, own)
                }
            };
            let dx = walk.backward(x, d, None, &own, &needs)?;
            own.release(&mut self.space);
            if let Some(dx) = dx.filter(|dx| dx.start != d.start) {
                self.space.give(d);
                d = dx;
            }
        }
        if let Some((needs, saved)) = embedding {
            self.walk(&net.graph.embedding, None).backward(Piece::default(), d, None, &saved, &needs)?;
        }
        if let (Some(run), Some((weight, of))) = (&mut self.run, net.graph.relative)
            && let (Some(dtable), Some((_, reach))) = (run.dbias, run.bias)
            && let Some(gradient) = net.weights[weight].gradient(run.list)
        {
            let of = Relative { reach, ..of };
            run.compute(Operation::RelativeBiasBackward { of, dtable, gradient })?;
        }
        Ok(sum)
    }

    /// Runs the head forward and backward, with the loss in between. Returns the sum of the losses
    /// and, with `below`, the gradient of the last block's output.
    fn head_back(&mut self, goal: Goal, x: Piece, below: bool) -> Result<(f64, Option<Piece>)> {
        let name = if self.net.graph.reads == Reads::Learned { "logits and loss" } else { "head and loss" };
        let _phase = self.run.is_some().then(|| profile::phase(name));
        if self.net.graph.reads != Reads::Learned {
            return self.head_part(goal, x, None, below);
        }
        // Rows that predict nothing have a gradient of zero.
        let d = self.row();
        if let Some(run) = &mut self.run {
            run.compute(Operation::Fill { piece: d, value: 0.0 })?;
        }
        let Goal::Tokens(targets, scale) = goal else {
            // A pass that only measures has one chunk.
            return self.head_part(goal, x, Some(d), below).map(|(sum, _)| (sum, Some(d)));
        };
        let mut sum = 0.0;
        for (chosen, targets) in self.chunks(targets) {
            self.go_on()?;
            self.choose(chosen);
            sum += self.head_part(Goal::Tokens(targets, scale), x, Some(d), below)?.0;
        }
        Ok((sum, below.then_some(d)))
    }

    /// Does the same for the chosen tokens; adds the gradient to `into`, if given.
    fn head_part(
        &mut self,
        goal: Goal,
        x: Piece,
        into: Option<Piece>,
        below: bool,
    ) -> Result<(f64, Option<Piece>)> {
        let head = self.head();
        let logits = self.logits();
        let mut walk = self.walk(head, None);
        let needs = walk.needs(below);
        let saved = walk.save(&needs);
        walk.forward(x, logits, Some(&saved))?;
        // Logits of tokens are wide, so their gradient overwrites them.
        let dlogits = if self.net.graph.reads == Reads::Learned { logits } else { self.logits() };
        let mut sum = 0.0;
        if let Some(run) = &mut self.run {
            let memory = &mut *run.store.memory;
            sum = match goal {
                Goal::Head(targets) => run.device.head_loss(memory, logits, targets, dlogits)?,
                Goal::Tokens(targets, scale) => {
                    let losses = run.device.token_losses(memory, logits, targets, Some(scale))?;
                    losses.iter().map(|&loss| loss as f64).sum()
                }
                Goal::None => 0.0,
            };
        }
        let dx = self.walk(head, None).backward(x, dlogits, into, &saved, &needs)?;
        saved.release(&mut self.space);
        self.space.give(logits);
        if dlogits.start != logits.start {
            self.space.give(dlogits);
        }
        Ok((sum, dx))
    }
}
