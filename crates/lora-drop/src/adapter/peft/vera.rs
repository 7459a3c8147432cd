//! VeRA in PEFT's files: each module's two vectors, and one A and one B for all modules. A module
//! uses the first columns of A and the first rows of B.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lora_drop_transformer::{Checkpoint, ModuleId, ModuleKind};

use super::config::Config;
use super::{ModuleTensors, Tensors};
use crate::adapter::file::{AdapterFile, StoredPair, pair_shape, read_tensor};
use crate::adapter::spec;
use crate::adapter::tensors::Tensor;
use crate::{Error, Result};

/// Names of A (rank, in) and B (out, rank), which are as wide as the widest module.
pub(super) const PROJECTIONS: [&str; 2] = ["base_model.vera_A", "base_model.vera_B"];

impl AdapterFile {
    /// Returns A and B of the widest types; those of all types are slices of them.
    pub(super) fn projections(&self) -> Vec<Tensor<'_>> {
        let a = self.pairs.iter().max_by_key(|pair| pair.input);
        let a = a.map(|pair| (PROJECTIONS[0].to_string(), vec![pair.rank, pair.input], &pair.a[..]));
        let b = self.pairs.iter().max_by_key(|pair| pair.output);
        let b = b.map(|pair| (PROJECTIONS[1].to_string(), vec![pair.output, pair.rank], &pair.b[..]));
        a.into_iter().chain(b).collect()
    }
}

/// Returns a pair for each module type, and the index of each module's pair. A module's output
/// width is the length of its last vector.
pub(super) fn shared_constants(
    file: &Checkpoint,
    path: &Path,
    config: &Config,
    tensors: &Tensors,
) -> Result<(Vec<StoredPair>, BTreeMap<ModuleId, usize>)> {
    let error = |problem: String| Error::file(path, problem);
    if let Some(name) = PROJECTIONS.into_iter().find(|name| !file.contains(name)) {
        return Err(error(format!(
            "tensor {name} is missing: without it the adapter depends on one machine's random numbers; save it with \
             save_projection: true"
        )));
    }
    let [(shape_a, a), (shape_b, b)] =
        [read_tensor(file, path, PROJECTIONS[0])?, read_tensor(file, path, PROJECTIONS[1])?];
    let (rank, input, output) = pair_shape(path, "vera", &shape_a, &shape_b)?;
    let expected = config.rank_of("")?;
    if rank != expected {
        return Err(error(format!(
            "{} has rank {rank} (it is {shape_a:?}), {} says {expected}",
            PROJECTIONS[0],
            config.path().display()
        )));
    }
    let last = spec(config.method).vectors.last().and_then(|vector| vector.peft_name).unwrap_or_default();
    let rows = |tensors: &ModuleTensors| file.shape(tensors.names.get(last)?)?.first().copied();
    let outputs: BTreeMap<ModuleId, usize> =
        tensors.modules.iter().map(|(id, tensors)| (*id, rows(tensors).unwrap_or(0))).collect();
    let kinds: BTreeSet<ModuleKind> = outputs.keys().map(|id| id.kind).collect();
    let (mut pairs, mut modules) = (Vec::new(), BTreeMap::new());
    for kind in kinds {
        let of_kind = || outputs.iter().filter(|(id, _)| id.kind == kind);
        // B gets as many rows as the modules' vectors have values; A is cut later, when the model's
        // widths are known.
        let rows = of_kind().map(|(_, rows)| *rows).min().unwrap_or(output);
        if rows > output {
            return Err(error(format!("{} is {shape_b:?}, expected at least {rows} rows", PROJECTIONS[1])));
        }
        let (a, b, alpha) = (a.clone(), b[..rows * rank].to_vec(), rank as f64);
        pairs.push(StoredPair { kind, shared: true, a, b, rank, input, output: rows, alpha });
        modules.extend(of_kind().map(|(id, _)| (*id, pairs.len() - 1)));
    }
    Ok((pairs, modules))
}
