//! Reads the golden files and compares with them.

#![allow(dead_code)] // each test file has a use for some of it

use std::path::PathBuf;

use safetensors::SafeTensors;

pub fn folder(architecture: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")).join(architecture)
}

pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(architecture: &str) -> Self {
        Golden::file(architecture, "golden.safetensors")
    }

    pub fn file(architecture: &str, name: &str) -> Self {
        Golden(std::fs::read(folder(architecture).join(name)).expect("golden file"))
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("{name} in the golden file"));
        tensor.data().chunks_exact(4).map(|b| b.try_into().unwrap()).collect()
    }

    pub fn get(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    pub fn integers(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }

    pub fn names(&self, prefix: &str) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.names().iter().filter(|n| n.starts_with(prefix)).map(|n| n.to_string()).collect()
    }
}

/// `got` is `want` to 1e-4, relative to the tensor's largest value (or to `floor`, for tensors that are zero).
pub fn close(what: &str, got: &[f32], want: &[f32], floor: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(floor, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-4 * size, "{what}[{i}] = {g}, PyTorch has {w}");
    }
}

pub fn transposed(x: &[f32], rows: usize) -> Vec<f32> {
    let cols = x.len() / rows;
    (0..x.len()).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// ‖got − want‖ / ‖want‖
pub fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(&g, &w)| g as f64 - w as f64));
    off / norm(&mut want.iter().map(|&w| w as f64))
}
