//! Checks each operation, forward and backward, against PyTorch's numbers (tests/golden, written by
//! tools/golden).

use lora_drop_compute::activation::Activation;
use lora_drop_compute::adamw;
use lora_drop_compute::attention::{
    Attention, Columns, ColumnsMut, Inputs, Mask, Queries, RelativeBias, SavedForward,
};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::saved_values::SavedValues;
use lora_drop_compute::{embedding, loss, norm};
use safetensors::SafeTensors;

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/ops.safetensors");
        Golden(std::fs::read(path).expect("golden file"))
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("{name} in the golden file"));
        tensor.data().chunks_exact(4).map(|b| b.try_into().unwrap()).collect()
    }

    fn get(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        self.words(name).into_iter().map(|b| i32::from_le_bytes(b) as usize).collect()
    }

    /// Asserts that `got` is the golden tensor, to 1e-5 of its largest value.
    fn check(&self, name: &str, got: &[f32]) {
        self.check_to(1e-5, name, got);
    }

    /// Asserts that `got` is the golden tensor, to `part` of its largest value.
    fn check_to(&self, part: f32, name: &str, got: &[f32]) {
        let want = self.get(name);
        assert_eq!(got.len(), want.len(), "{name}");
        let size = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!((g - w).abs() <= part * size, "{name}[{i}] = {g}, PyTorch has {w}");
        }
    }
}

#[test]
fn layer_norm() {
    let golden = Golden::open();
    let [x, gamma, beta, dy] = ["x", "gamma", "beta", "dy"].map(|n| golden.get(&format!("layer_norm.{n}")));
    let (mut y, mut normed, mut rstd) = (vec![0.0; 80], vec![0.0; 80], vec![0.0; 5]);
    let forward =
        norm::Forward { x: &x, residual: None, dropout: None, gamma: &gamma, beta: &beta, epsilon: 1e-12 };
    forward.run(&mut y, &mut normed, &mut rstd);
    golden.check("layer_norm.y", &y);

    let (mut du, mut dgamma, mut dbeta) = (vec![0.0; 80], vec![0.0; 16], vec![0.0; 16]);
    let backward = norm::Backward { dy: &dy, normed: &normed, rstd: &rstd, gamma: &gamma, dropout: None };
    backward.run(&mut du, None, Some([&mut dgamma, &mut dbeta]));
    golden.check("layer_norm.d_x", &du);
    golden.check("layer_norm.d_gamma", &dgamma);
    golden.check("layer_norm.d_beta", &dbeta);

    // The residual is added before the norm.
    let half: Vec<f32> = x.iter().map(|x| 0.5 * x).collect();
    let forward = norm::Forward { x: &half, residual: Some(&half), ..forward };
    forward.run(&mut y, &mut normed, &mut rstd);
    golden.check("layer_norm.y", &y);
}

#[test]
fn gelu() {
    let golden = Golden::open();
    let (x, dy) = (golden.get("gelu.x"), golden.get("gelu.dy"));
    for (f, name) in [(Activation::Gelu, "erf"), (Activation::GeluTanh, "tanh")] {
        let mut y = vec![0.0; x.len()];
        f.forward(&SavedValues::Floats(&x), &mut y);
        golden.check(&format!("gelu.{name}.y"), &y);
        let mut dx = dy.clone();
        f.backward(&SavedValues::Floats(&x), &mut dx);
        golden.check(&format!("gelu.{name}.d_x"), &dx);
    }
}

#[test]
fn activations_against_finite_differences() {
    let x: Vec<f32> = (-40..40).map(|i| i as f32 / 8.0 + 0.03).collect();
    for f in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh] {
        let at = |shift: f32| {
            let moved: Vec<f32> = x.iter().map(|x| x + shift).collect();
            let mut y = vec![0.0; x.len()];
            f.forward(&SavedValues::Floats(&moved), &mut y);
            y
        };
        let (above, below) = (at(0.01), at(-0.01));
        let mut slope = vec![1.0; x.len()];
        f.backward(&SavedValues::Floats(&x), &mut slope);
        for i in 0..x.len() {
            let want = (above[i] - below[i]) / 0.02;
            assert!(
                (slope[i] - want).abs() < 2e-3,
                "{f:?}′({}) = {}, differences give {want}",
                x[i],
                slope[i]
            );
        }
    }
}

#[test]
fn attention_with_and_without_bias() {
    let golden = Golden::open();
    let [q, k, v, dy] = ["q", "k", "v", "dy"].map(|n| golden.get(&format!("attention.{n}")));
    let offsets = golden.integers("attention.offsets");
    let inputs = Inputs {
        q: Columns { data: &q, stride: 16 },
        k: Columns { data: &k, stride: 16 },
        v: Columns { data: &v, stride: 16 },
    };
    let run = |attention: Attention, dbias: Option<&mut [f32]>| {
        let (mut out, mut lse) = (vec![0.0; 240], vec![0.0; 30]);
        let (mut dq, mut dk, mut dv) = (vec![9.0; 240], vec![9.0; 240], vec![9.0; 240]);
        attention.forward(inputs, &mut out, &mut lse);
        let gradients = [&mut dq, &mut dk, &mut dv].map(|data| ColumnsMut { data, stride: 16 });
        attention.backward(SavedForward { inputs, out: &out, lse: &lse }, &dy, gradients, dbias);
        (out, [dq, dk, dv])
    };
    let plain = Attention {
        offsets: &offsets,
        heads: 2,
        kv_heads: 2,
        width: 8,
        scale: 1.0 / 8f32.sqrt(),
        bias: None,
        dropout: None,
        queries: Queries::All,
        mask: Mask::Bidirectional,
        precision: Precision::F32,
    };
    let (out, dqkv) = run(plain, None);
    golden.check("attention.plain.y", &out);
    for (i, name) in ["d_q", "d_k", "d_v"].iter().enumerate() {
        golden.check(&format!("attention.plain.{name}"), &dqkv[i]);
    }

    let (table, reach) = (golden.get("attention.bias"), 9);
    let biased = Attention { bias: Some(RelativeBias { table: &table, reach }), ..plain };
    let mut dbias = vec![0.0; 34];
    let (out, dqkv) = run(biased, Some(&mut dbias));
    golden.check("attention.biased.y", &out);
    for (i, name) in ["d_q", "d_k", "d_v"].iter().enumerate() {
        golden.check(&format!("attention.biased.{name}"), &dqkv[i]);
    }
    golden.check("attention.biased.d_bias", &dbias);

    // Queries of first tokens only: as if all other queries had no gradient.
    let firsts = |x: &[f32]| -> Vec<f32> {
        offsets[..3].iter().flat_map(|&t| x[16 * t..16 * (t + 1)].to_vec()).collect()
    };
    let mut sparse = vec![0.0; 240];
    for &t in &offsets[..3] {
        sparse[16 * t..16 * (t + 1)].copy_from_slice(&dy[16 * t..16 * (t + 1)]);
    }
    let (mut lse, mut all) = (vec![0.0; 30], vec![0.0; 240]);
    let mut want = [vec![0.0; 240], vec![0.0; 240], vec![0.0; 240]];
    biased.forward(inputs, &mut all, &mut lse);
    let gradients = want.each_mut().map(|data| ColumnsMut { data, stride: 16 });
    biased.backward(SavedForward { inputs, out: &all, lse: &lse }, &sparse, gradients, None);

    let first = Attention { queries: Queries::First, ..biased };
    let (q, dy) = (firsts(&q), firsts(&dy));
    let inputs = Inputs { q: Columns { data: &q, stride: 16 }, ..inputs };
    let (mut out, mut lse, mut dq) = (vec![0.0; 48], vec![0.0; 6], vec![0.0; 48]);
    let (mut dk, mut dv) = (vec![0.0; 240], vec![0.0; 240]);
    first.forward(inputs, &mut out, &mut lse);
    let gradients = [&mut dq, &mut dk, &mut dv].map(|data| ColumnsMut { data, stride: 16 });
    first.backward(SavedForward { inputs, out: &out, lse: &lse }, &dy, gradients, None);
    for (got, want) in [(&out, &firsts(&all)), (&dq, &firsts(&want[0])), (&dk, &want[1]), (&dv, &want[2])] {
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}\n{want:?}");
    }
}

#[test]
fn losses() {
    let golden = Golden::open();
    let logits = golden.get("loss.cross_entropy.logits");
    let labels = golden.integers("loss.cross_entropy.labels");
    for (name, smoothing) in [("plain", 0.0), ("smoothed", 0.1)] {
        let mut dlogits = vec![0.0; logits.len()];
        let sum = loss::cross_entropy(&logits, &labels, &[], smoothing, 6.0, Some(&mut dlogits));
        golden.check(&format!("loss.cross_entropy.{name}.loss"), &[(sum / 6.0) as f32]);
        golden.check(&format!("loss.cross_entropy.{name}.d_logits"), &dlogits);
    }
    let (logits, targets) = (golden.get("loss.mse.logits"), golden.get("loss.mse.targets"));
    let mut gradient = vec![0.0; 6];
    let sum = loss::squared_error(&logits, &targets, 6.0, Some(&mut gradient));
    golden.check("loss.mse.loss", &[(sum / 6.0) as f32]);
    golden.check("loss.mse.d_logits", &gradient);
}

#[test]
fn adamw_steps() {
    let golden = Golden::open();
    let gradients = golden.get("adamw.gradients");
    // The constants in f64, as in Python; those in the file are rounded to f32.
    let (learning_rate, beta1, beta2, epsilon) = (1e-2, 0.9, 0.999, 1e-8);
    for (name, weight_decay) in [("plain", 0.0), ("decayed", 0.1)] {
        let mut values = golden.get("adamw.start");
        let (mut first, mut second, mut all) = (vec![0.0; 16], vec![0.0; 16], Vec::new());
        for step in 0..3 {
            // Twice the gradient with half the scale: the factor of clipping is part of the update.
            let doubled: Vec<f32> = gradients[16 * step..16 * (step + 1)].iter().map(|g| 2.0 * g).collect();
            let update = adamw::Update {
                learning_rate,
                weight_decay,
                beta1,
                beta2,
                epsilon,
                step: step as i32 + 1,
                gradient_scale: 0.5,
            };
            adamw::update(update, &mut values, &doubled, &mut first, &mut second);
            all.extend_from_slice(&values);
        }
        golden.check_to(2.5e-7, &format!("adamw.{name}.values"), &all);
    }
}

#[test]
fn embeddings() {
    let golden = Golden::open();
    let ids: Vec<u32> = golden.integers("embedding.ids").into_iter().map(|i| i as u32).collect();
    let (table, dy) = (golden.get("embedding.table"), golden.get("embedding.dy"));
    let mut y = vec![0.0; dy.len()];
    embedding::forward(&[(&table, &ids)], 6, &mut y);
    golden.check("embedding.y", &y);
    let mut dtable = vec![0.0; table.len()];
    embedding::backward(&dy, &ids, 6, &mut dtable);
    golden.check("embedding.d_table", &dtable);
}
