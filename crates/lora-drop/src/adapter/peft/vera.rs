//! VeRA in PEFT's files: each module's two vectors, and for all modules one A and one B, of which a
//! module has the first columns and the first rows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lora_drop_transformer::{Checkpoint, ModuleId, ModuleKind};

use super::config::Config;
use crate::adapter::file::{AdapterFile, StoredPair, pair_shape, read_tensor};
use crate::{Error, Result};

/// A (rank, in) and B (out, rank), as wide as the widest module.
pub(super) const PROJECTIONS: [&str; 2] = ["base_model.vera_A", "base_model.vera_B"];

impl AdapterFile {
    /// The names, shapes and values of A and B: those of the widest types, for all types' are
    /// slices of them.
    pub(super) fn projections(&self) -> Vec<(&'static str, [usize; 2], &[f32])> {
        let (a, b) = (
            self.pairs.iter().max_by_key(|pair| pair.input),
            self.pairs.iter().max_by_key(|pair| pair.output),
        );
        let a = a.map(|pair| (PROJECTIONS[0], [pair.rank, pair.input], &pair.a[..]));
        a.into_iter().chain(b.map(|pair| (PROJECTIONS[1], [pair.output, pair.rank], &pair.b[..]))).collect()
    }
}

/// The pair of each type, and the pair of each module; `outputs` are the modules' numbers of
/// outputs, as long as their vectors.
pub(super) fn shared_constants(
    file: &Checkpoint,
    path: &Path,
    config: &Config,
    outputs: &BTreeMap<ModuleId, usize>,
) -> Result<(Vec<StoredPair>, BTreeMap<ModuleId, usize>)> {
    let error = |problem: String| Error::Input(format!("{}: {problem}", path.display()));
    if let Some(name) = PROJECTIONS.into_iter().find(|name| !file.contains(name)) {
        return Err(error(format!(
            "tensor {name} is missing: without it the adapter depends on one machine's random numbers; save it with \
             save_projection: true"
        )));
    }
    let [(shape_a, a), (shape_b, b)] =
        [read_tensor(file, path, PROJECTIONS[0])?, read_tensor(file, path, PROJECTIONS[1])?];
    let (rank, input, output) = pair_shape(path, "vera", &shape_a, &shape_b)?;
    let expected = config.rank_of("");
    if rank != expected {
        return Err(error(format!(
            "{} has rank {rank} (it is {shape_a:?}), {} says {expected}",
            PROJECTIONS[0],
            config.path().display()
        )));
    }
    let kinds: BTreeSet<ModuleKind> = outputs.keys().map(|id| id.kind).collect();
    let (mut pairs, mut modules) = (Vec::new(), BTreeMap::new());
    for kind in kinds {
        let of_kind = || outputs.iter().filter(|(id, _)| id.kind == kind);
        // As many rows as its modules' vectors; how many columns is the model's to say.
        let rows = of_kind().map(|(_, rows)| *rows).min().unwrap_or(output);
        if rows > output {
            return Err(error(format!("{} is {shape_b:?}, expected {rows} rows at least", PROJECTIONS[1])));
        }
        let (a, b, alpha) = (a.clone(), b[..rows * rank].to_vec(), rank as f64);
        pairs.push(StoredPair { kind, shared: true, a, b, rank, input, output: rows, alpha });
        modules.extend(of_kind().map(|(id, _)| (*id, pairs.len() - 1)));
    }
    Ok((pairs, modules))
}
