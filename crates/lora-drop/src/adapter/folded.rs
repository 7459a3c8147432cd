//! Folding of the vectors u and v, which scale the inputs and outputs of B, into each module's own
//! B' = diag(v) B diag(u). The result is plain LoRA, which every format except a method's own
//! needs.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lora_drop_transformer::{AdapterMethod, ModelConfig};

use super::bank::scale;
use super::file::{AdapterFile, StoredPair};
use super::{PeftFormat, Side, spec};

impl AdapterFile {
    /// Returns the same adapter as plain LoRA, with the vectors multiplied into each module's own
    /// B, or the adapter itself if no vector scales B. AdaLoRA's triplets with E = 0 are left out,
    /// and so are modules without other triplets. VeRA's A is cut to each layer's input width if
    /// `config` is given.
    pub(super) fn folded(&self, config: Option<&ModelConfig>) -> Cow<'_, Self> {
        let spec = spec(self.method);
        if !spec.vectors.iter().any(|vector| vector.side != Side::Weight) {
            return Cow::Borrowed(self);
        }
        let (mut pairs, mut modules) = (Vec::new(), BTreeMap::new());
        for (&id, &pair) in &self.modules {
            let pair = &self.pairs[pair];
            let Some(values) = self.vectors.get(&id) else {
                modules.insert(id, pairs.len());
                pairs.push(StoredPair { shared: false, ..pair.clone() });
                continue;
            };
            let input = config.map_or(pair.input, |config| config.linear_shape(id.kind).1);
            let Some(folded) = self.folded_pair(pair, values, input, spec.peft == PeftFormat::Never) else {
                continue;
            };
            modules.insert(id, pairs.len());
            pairs.push(folded);
        }
        Cow::Owned(self.with_modules(AdapterMethod::Lora, pairs, modules, BTreeMap::new()))
    }

    /// Returns the first `input` columns of A, and B with u and, if the method has one, v
    /// multiplied in. With `pruned`, directions whose u is 0 are left out; `None` if none remains.
    fn folded_pair(
        &self,
        pair: &StoredPair,
        vectors: &[f32],
        input: usize,
        pruned: bool,
    ) -> Option<StoredPair> {
        let (inner, outer) = vectors.split_at(pair.rank);
        let kept: Vec<usize> = (0..pair.rank).filter(|&i| !pruned || inner[i] != 0.0).collect();
        if kept.is_empty() {
            return None;
        }
        // At a lower rank, the same alpha gives another scale; this factor restores it.
        let factor = self.scale(pair) / scale(pair.alpha, kept.len(), self.rslora);
        let mut b = Vec::with_capacity(kept.len() * pair.output);
        for (number, row) in pair.b.chunks_exact(pair.rank).enumerate() {
            let factor = factor * outer.get(number).map_or(1.0, |v| f64::from(*v));
            b.extend(kept.iter().map(|&i| (factor * f64::from(inner[i]) * f64::from(row[i])) as f32));
        }
        let a = kept.iter().flat_map(|&i| pair.a[i * pair.input..][..input].iter().copied());
        Some(StoredPair { shared: false, a: a.collect(), b, rank: kept.len(), input, ..pair.clone() })
    }
}
