//! The shortest `target_modules` that matches exactly the adapted modules.

use std::collections::{BTreeMap, BTreeSet};

use lora_drop_transformer::{Architecture, ModuleId, ModuleKind};
use serde_json::Value;

/// Returns a list of short names if PEFT's suffix rule matches exactly `modules` with it; otherwise
/// a regular expression, which PEFT matches against full names. `layers` is the number of the
/// model's blocks.
pub(super) fn target_modules(
    architecture: Architecture,
    layers: usize,
    modules: &BTreeSet<ModuleId>,
) -> Value {
    let adapted: BTreeSet<String> = modules.iter().map(|id| architecture.module_path(*id)).collect();
    let kinds: BTreeSet<ModuleKind> = modules.iter().map(|id| id.kind).collect();
    let names: Vec<&str> = kinds.iter().map(|kind| architecture.short_name(*kind)).collect();
    let hit: BTreeSet<String> = architecture
        .linear_names(layers)
        .into_iter()
        .filter(|full| names.iter().any(|name| full == name || full.ends_with(&format!(".{name}"))))
        .collect();
    if hit == adapted { names.into() } else { expression(architecture, modules).into() }
}

/// Returns a regular expression that matches exactly `modules`:
/// `bert\.encoder\.layer\.((1|3)\.attention\.self\.query|(2)\.attention\.self\.value)`
fn expression(architecture: Architecture, modules: &BTreeSet<ModuleId>) -> String {
    let mut layers: BTreeMap<ModuleKind, Vec<String>> = BTreeMap::new();
    let output = modules.contains(&ModuleId::LM_HEAD).then(|| architecture.module_path(ModuleId::LM_HEAD));
    for id in modules.iter().filter(|id| **id != ModuleId::LM_HEAD) {
        layers.entry(id.kind).or_default().push(id.layer.to_string());
    }
    let kinds: Vec<String> = layers
        .iter()
        .map(|(kind, layers)| {
            format!(r"({})\.{}", layers.join("|"), regex::escape(architecture.module_name(*kind)))
        })
        .collect();
    let layers = regex::escape(architecture.layers());
    let blocks =
        (!kinds.is_empty()).then(|| format!(r"{}\.{layers}\.({})", architecture.prefix(), kinds.join("|")));
    output.into_iter().chain(blocks).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ModuleKind::*;

    const LAYERS: usize = 12;

    fn all(kinds: &[ModuleKind]) -> BTreeSet<ModuleId> {
        kinds.iter().flat_map(|&kind| (0..LAYERS).map(move |layer| ModuleId { layer, kind })).collect()
    }

    /// Python's re.fullmatch over every linear layer.
    fn hits(architecture: Architecture, expression: &str) -> BTreeSet<ModuleId> {
        let regex = regex::Regex::new(&format!("^(?:{expression})$")).expect("valid");
        let names = architecture.linear_names(LAYERS);
        let hit: Vec<_> = names.iter().filter(|name| regex.is_match(name)).collect();
        hit.iter().map(|name| architecture.module_at(name).expect("a module")).collect()
    }

    #[test]
    fn whole_types_are_a_list_of_names() {
        let of = |architecture, kinds: &[ModuleKind]| target_modules(architecture, LAYERS, &all(kinds));
        assert_eq!(of(Architecture::Bert, &[Query, Value]), serde_json::json!(["query", "value"]));
        assert_eq!(of(Architecture::Mpnet, &[Query, Value]), serde_json::json!(["q", "v"]));
        assert_eq!(of(Architecture::Mpnet, &[Output]), serde_json::json!(["output.dense"]));
        let linear =
            ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"];
        assert_eq!(
            of(Architecture::Roberta, &Architecture::Roberta.kinds().collect::<Vec<_>>()),
            serde_json::json!(linear)
        );
        let decoder = of(Architecture::Llama, &[Query, Value, Gate]);
        assert_eq!(decoder, serde_json::json!(["q_proj", "v_proj", "gate_proj"]));
        let mut modules = all(&[Query]);
        modules.insert(ModuleId::LM_HEAD);
        let decoder = target_modules(Architecture::Llama, LAYERS, &modules);
        assert_eq!(decoder, serde_json::json!(["q_proj", "lm_head"]));
    }

    #[test]
    fn targets_of_which_a_list_matches_too_many_are_an_expression() {
        let mut some = all(&[Query]);
        some.retain(|id| [1, 10, 11].contains(&id.layer));
        some.insert(ModuleId { layer: 2, kind: Value });
        let mut with_output = some.clone();
        with_output.insert(ModuleId::LM_HEAD);
        for (architecture, modules) in [
            (Architecture::Bert, all(&[Output])), // `output.dense` would mean attention.output.dense, too
            (Architecture::Bert, some.clone()),
            (Architecture::Roberta, all(&[Query, Output])),
            (Architecture::Mpnet, some),
            (Architecture::Llama, with_output),
        ] {
            let targets = target_modules(architecture, LAYERS, &modules);
            assert_eq!(hits(architecture, targets.as_str().expect("an expression")), modules);
        }
    }
}
