//! Checks widening and quantizing against the bits of the `gguf` package (tests/golden, written by
//! tools/golden/blocks.py).

use lora_drop_compute::blocks::BlockType::*;
use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use safetensors::SafeTensors;

fn golden(name: &str) -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/blocks.safetensors");
    let file = std::fs::read(path).expect("golden file");
    let file = SafeTensors::deserialize(&file).unwrap();
    file.tensor(name).unwrap_or_else(|_| panic!("{name} in the golden file")).data().to_vec()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_type_widens_to_the_same_bits() {
    for kind in BlockType::ALL {
        let blocks = golden(&format!("widen.{}.blocks", kind.name()));
        let want = floats(&golden(&format!("widen.{}.values", kind.name())));
        let mut got = vec![7.0; want.len()];
        kind.widen(&blocks, &mut got);
        assert_eq!(bits(&got), bits(&want), "{}", kind.name());

        // Any part of a row widens to the same values as within the whole.
        let cols = want.len() / 2;
        let Some(matrix) = BlockMatrix::new(kind, 2, cols, blocks.clone()) else {
            panic!("two rows of {cols} {}", kind.name())
        };
        for row in 0..2 {
            for from in 0..cols {
                for to in [from, from + 1, from + 5, from + 16, from + 40, cols] {
                    let to = to.min(cols);
                    let mut piece = vec![7.0; to - from];
                    matrix.widen_row_range(row, from..to, &mut piece);
                    assert_eq!(bits(&piece), bits(&want[row * cols + from..row * cols + to]), "{from}..{to}");
                }
            }
        }
    }
}

#[test]
fn values_quantize_to_the_same_bytes() {
    let values = floats(&golden("quantise.values"));
    for kind in [F16, Bf16, Q8_0, Q4_0] {
        let got = BlockMatrix::quantize(kind, values.len() / 64, 64, &values).unwrap();
        assert_eq!(got.bytes(), golden(&format!("quantise.{}", kind.name())), "{}", kind.name());
    }
}
