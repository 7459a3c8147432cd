//! Whole weights of the embeddings and the output layer, which PEFT saves with an adapter unasked
//! if a module of that name is targeted or the vocabulary may have been resized. Weights that equal
//! the base's are left out; others would be lost, so they are refused.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use lora_drop_compute::blocks::BlockType;
use lora_drop_transformer::{Checkpoint, Source, Stored};

use crate::{Error, Result};

/// Modules that PEFT may save whole, by their names in its configuration.
const MODULES: [&str; 2] = ["embed_tokens", "lm_head"];

/// Whether an entry of `modules_to_save` is one of `MODULES`.
pub(super) fn is_known(module: &str) -> bool {
    MODULES.iter().any(|known| module == *known || module.ends_with(&format!(".{known}")))
}

/// Whether a tensor of this name in the model is a weight of one of `MODULES`.
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
                "it has to be the base's, but that is stored as {} in {}; export the adapter to PEFT's format with \
                 the unquantized base, which leaves it out, and give that one",
                kind.name(),
                base.place().display()
            ));
        }
        let (shape, of_base) = (file.shape(tensor).unwrap_or_default(), base.shape(&own).unwrap_or_default());
        let seen = match shape == of_base {
            false => format!("its shape is {shape:?}, the base's {of_base:?}"),
            // The training may have loaded the base in another type than it is stored in.
            true => match first_difference(
                &file.stored(tensor)?,
                &base.stored(&own)?,
                shape,
                [storage, file.storage(tensor)],
            ) {
                Some(row) => format!("it differs from the base's from row {row} on"),
                None => continue,
            },
        };
        return problem(format!(
            "{seen}, so the training changed it as a whole (modules_to_save, or a resized vocabulary); merge the adapter \
             into its base with PEFT (merge_and_unload, save_pretrained) and give the merged model"
        ));
    }
    Ok(Some(format!("{place} has whole weights of {names}, which are the base's and are left out")))
}

/// Returns the base's name of a weight; an output layer may be tied to the embeddings.
fn base_name(base: &dyn Source, name: &str) -> Option<String> {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let words = ["model.embed_tokens.weight", "embed_tokens.weight"];
    let tied = words.into_iter().filter(|_| bare == "lm_head.weight");
    [name, bare].into_iter().chain(tied).find(|name| base.contains(name)).map(str::to_string)
}

/// Returns the first row in which two (rows, cols) matrices differ after rounding to the coarser of
/// their types. Rows are read one by one, because embeddings are large.
fn first_difference(x: &Stored, y: &Stored, shape: &[usize], types: [Option<BlockType>; 2]) -> Option<usize> {
    let &[rows, cols] = shape else { return Some(0) };
    let round = rounding(types);
    let mut both = [vec![0.0; cols], vec![0.0; cols]];
    (0..rows).find(|&row| {
        for (stored, out) in [x, y].into_iter().zip(&mut both) {
            match stored {
                Stored::F32(tensor) => out.copy_from_slice(&tensor[row * cols..][..cols]),
                Stored::Blocks(matrix) => matrix.widen_row_range(row, 0..cols, out),
            }
        }
        both[0].iter().zip(&both[1]).any(|(x, y)| round(*x) != round(*y))
    })
}

/// Returns the function that rounds to the coarser of two types; `None` is f32.
fn rounding(types: [Option<BlockType>; 2]) -> fn(f32) -> f32 {
    match types {
        _ if types.contains(&Some(BlockType::Bf16)) => |x| bf16::from_f32(x).to_f32(),
        _ if types.contains(&Some(BlockType::F16)) => |x| f16::from_f32(x).to_f32(),
        _ => |x| x,
    }
}
