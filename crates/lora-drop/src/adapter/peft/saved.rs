//! Whole weights of the embeddings and the output layer, which PEFT saves with an adapter unasked if
//! a module of that name is targeted or the vocabulary may have been resized. Those of the base are
//! left out; others would be lost, so they are refused.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use lora_drop_compute::blocks::BlockType;
use lora_drop_transformer::{Checkpoint, Source, Stored};

use super::read_tensor;
use crate::{Error, Result};

/// The modules that PEFT may save as a whole, by the names that its configuration has.
const MODULES: [&str; 2] = ["embed_tokens", "lm_head"];

/// Whether a module of `modules_to_save` is one of them.
pub(super) fn is_known(module: &str) -> bool {
    MODULES.iter().any(|known| module == *known || module.ends_with(&format!(".{known}")))
}

/// Whether a tensor of this name in the model is a weight of one of them.
pub(super) fn is_saved(name: &str) -> bool {
    name.strip_suffix(".weight").is_some_and(is_known)
}

/// Compares whole weights (name in the model → name in `file`) with the base's. Returns a note if
/// there are some.
///
/// # Errors
/// One differs from the base's, or cannot be compared with it.
pub(super) fn compare(
    file: &Checkpoint,
    path: &Path,
    saved: &BTreeMap<String, String>,
    base: Option<&dyn Source>,
) -> Result<Option<String>> {
    if saved.is_empty() {
        return Ok(None);
    }
    let names = saved.keys().map(|name| name.trim_end_matches(".weight")).collect::<Vec<_>>().join(" and ");
    let place = path.display();
    let Some(base) = base else {
        return Ok(Some(format!(
            "{place} has whole weights of {names}, which are compared with the base's where the adapter is used"
        )));
    };
    for (name, tensor) in saved {
        let problem = |problem: String| Err(Error::file(path, format!("tensor {tensor}: {problem}")));
        let Some(own) = base_name(base, name) else {
            return problem(format!("{} has no such weight", base.place().display()));
        };
        let storage = base.storage(&own);
        if let Some(kind) = storage.filter(|kind| kind.values() > 1) {
            return problem(format!(
                "it has to be the base's, but that is stored as {} in {}; with the unquantized base, `lora-drop export \
                 --to peft` writes the adapter without it",
                kind.name(),
                base.place().display()
            ));
        }
        let (shape, values) = read_tensor(file, path, tensor)?;
        let of_base = match base.stored(&own)? {
            Stored::F32(tensor) => (tensor.shape().to_vec(), tensor.to_vec()),
            Stored::Blocks(matrix) => (vec![matrix.rows(), matrix.cols()], matrix.values()),
        };
        // The training may have loaded the base in another type than it is stored in.
        let round = rounding([storage, file.storage(tensor)]);
        let differs = |(x, y): (&f32, &f32)| round(*x) != round(*y);
        let row = match shape == of_base.0 {
            true => values.iter().zip(&of_base.1).position(differs).map(|at| at / shape[shape.len() - 1]),
            false => Some(usize::MAX),
        };
        let seen = match row {
            None => continue,
            Some(usize::MAX) => format!("its shape is {shape:?}, the base's {:?}", of_base.0),
            Some(row) => format!("it differs from the base's from row {row} on"),
        };
        return problem(format!(
            "{seen}, so the training changed it as a whole (modules_to_save, or a resized vocabulary); merge the adapter \
             into its base with PEFT (merge_and_unload, save_pretrained) and give the merged model"
        ));
    }
    Ok(Some(format!("{place} has whole weights of {names}, which are the base's and are left out")))
}

/// The base's name of a weight; an output layer may be the table of embeddings.
fn base_name(base: &dyn Source, name: &str) -> Option<String> {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let words = ["model.embed_tokens.weight", "embed_tokens.weight"];
    let tied = words.into_iter().filter(|_| bare == "lm_head.weight");
    [name, bare].into_iter().chain(tied).find(|name| base.contains(name)).map(str::to_string)
}

/// Rounds to the coarser of two types; None is f32.
fn rounding(types: [Option<BlockType>; 2]) -> fn(f32) -> f32 {
    match types {
        _ if types.contains(&Some(BlockType::Bf16)) => |x| bf16::from_f32(x).to_f32(),
        _ if types.contains(&Some(BlockType::F16)) => |x| f16::from_f32(x).to_f32(),
        _ => |x| x,
    }
}
