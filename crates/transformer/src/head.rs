//! The classification head on a sequence's first token: a dense layer with tanh, then the output layer.
//!
//! BERT: drop(tanh(pooler x)), RoBERTa and MPNet: drop(tanh(dense drop(x))). With one output it is a regression.

use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::Queries;
use lora_drop_compute::gemm::Start;
use lora_drop_compute::linear::Rows;
use lora_drop_compute::norm::dropout_rows;
use lora_drop_compute::random::Dropout;

use crate::block::Pass;
use crate::drops::Site;
use crate::linear::{Grads, LinearWeights};

/// The head's weights.
#[derive(Clone, Debug)]
pub struct Head {
    /// BERT's pooler, or the head's own dense layer: (hidden, hidden).
    pub dense: LinearWeights,
    /// (outputs, hidden)
    pub output: LinearWeights,
    /// Whether the dense layer's input drops as well.
    pub drops_input: bool,
}

/// What the way back needs; n sequences, h hidden.
pub struct HeadSaved {
    first: Vec<f32>, // (n, h): after dropout
    pre: Vec<f32>,   // (n, h): before tanh
    inner: Vec<f32>, // (n, h): after tanh and dropout
}

impl Head {
    fn keys(
        &self,
        pass: &Pass,
        dropout: Dropout,
        site: Site,
    ) -> Option<(Dropout, Vec<lora_drop_compute::random::Key>)> {
        let drops = pass.drops.filter(|_| dropout.is_active())?;
        Some((dropout, drops.keys.iter().map(|k| k.fold(site.number())).collect()))
    }

    /// x: the last block's output, (tokens, hidden) or, as `pass.last` says, first tokens alone (sequences, hidden). Returns the logits (sequences, outputs).
    pub fn forward(&self, pass: &Pass, dropout: Dropout, x: &[f32]) -> (Vec<f32>, HeadSaved) {
        let (n, h) = (pass.offsets.len() - 1, pass.hidden);
        let mut first: Vec<f32> = match pass.last {
            Queries::First => x[..n * h].to_vec(),
            _ => pass.offsets[..n].iter().flat_map(|&t| &x[t * h..(t + 1) * h]).copied().collect(),
        };
        if let Some((dropout, keys)) = self.keys(pass, dropout, Site::HeadInput).filter(|_| self.drops_input)
        {
            dropout_rows(&mut first, dropout, &keys);
        }
        let mut pre = vec![0.0; n * h];
        self.dense.forward(pass.values, n, &first, None, &mut pre, h, &mut [], &mut []);
        let mut inner = vec![0.0; n * h];
        Activation::Tanh.forward(&pre, &mut inner);
        if let Some((dropout, keys)) = self.keys(pass, dropout, Site::HeadInner) {
            dropout_rows(&mut inner, dropout, &keys);
        }
        let outputs = self.output.output;
        let mut logits = vec![0.0; n * outputs];
        self.output.forward(pass.values, n, &inner, None, &mut logits, outputs, &mut [], &mut []);
        (logits, HeadSaved { first, pre, inner })
    }

    /// Overwrites dx (as x in `forward`), where something under the head trains: zero but for first tokens.
    pub fn backward(
        &self,
        pass: &Pass,
        grads: &mut Grads,
        dropout: Dropout,
        saved: &HeadSaved,
        dlogits: &[f32],
        dx: Option<&mut [f32]>,
    ) {
        let (n, h) = (pass.offsets.len() - 1, pass.hidden);
        let wanted = dx.is_some() || self.dense.weight.id().is_some();
        let mut dinner = vec![0.0; n * h];
        let dy = Rows { data: dlogits, stride: self.output.output };
        let to_inner = wanted.then_some((&mut dinner[..], Start::Zero));
        self.output.backward(pass.values, grads, n, &saved.inner, None, &[], dy, to_inner, &mut [], &mut []);
        if !wanted {
            return;
        }
        if let Some((dropout, keys)) = self.keys(pass, dropout, Site::HeadInner) {
            dropout_rows(&mut dinner, dropout, &keys);
        }
        Activation::Tanh.backward(&saved.pre, &mut dinner);
        let mut dfirst = vec![0.0; n * h];
        let dy = Rows { data: &dinner, stride: h };
        let to_first = dx.is_some().then_some((&mut dfirst[..], Start::Zero));
        self.dense.backward(pass.values, grads, n, &saved.first, None, &[], dy, to_first, &mut [], &mut []);
        let Some(dx) = dx else { return };
        if let Some((dropout, keys)) = self.keys(pass, dropout, Site::HeadInput).filter(|_| self.drops_input)
        {
            dropout_rows(&mut dfirst, dropout, &keys);
        }
        match pass.last {
            Queries::First => dx[..n * h].copy_from_slice(&dfirst),
            _ => {
                dx[..pass.tokens() * h].fill(0.0);
                for (row, &t) in dfirst.chunks_exact(h).zip(pass.offsets) {
                    dx[t * h..(t + 1) * h].copy_from_slice(row);
                }
            }
        }
    }
}
