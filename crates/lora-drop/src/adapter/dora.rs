//! DoRA in the bank and in files: a pair, and each module's magnitude vector, which is never shared
//! because its initial values are the row norms of that module's own weight.

use lora_drop_transformer::adapter::{Dora, weight_norms};
use lora_drop_transformer::{Adapter, LoraPair, Model, ModuleId, Parameters, Stopped};

use super::{MethodSpec, PeftFormat, Side, Vector, VectorInit, lora};
use crate::{Error, Result};

pub(super) const SPEC: MethodSpec = MethodSpec {
    peft: PeftFormat::Lora(Some("use_dora")),
    vectors: &[Vector {
        name: "magnitude",
        peft_name: Some("lora_magnitude_vector"),
        side: Side::Weight,
        init: VectorInit::FromWeight(norms),
    }],
    only_if_shared: false,
    init_pair: lora::init_pair,
    constant: Some(norms),
    adapter: |pair, vectors, norms| Adapter::Dora(Dora { pair, magnitude: vectors[0], norms }),
    merge: |row, magnitude| {
        let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
        // A row of zeros has no direction.
        if norm > 0.0 {
            row.iter_mut().for_each(|w| *w *= magnitude / norm);
        }
    },
};

/// Returns the row norms, (out), of W or, with a pair, of W + s · B A.
fn norms(
    model: &Model,
    parameters: &Parameters,
    module: ModuleId,
    pair: Option<LoraPair>,
) -> Result<Vec<f32>> {
    let weights = model.linear(module).ok_or_else(|| Error::Input(format!("the model has no {module:?}")))?;
    Ok(weight_norms(weights, pair, parameters.read()).map_err(Stopped::Device)?)
}
