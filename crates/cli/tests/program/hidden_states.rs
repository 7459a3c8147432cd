//! Hidden states, and what criteria make of them, against PyTorch's
//! (tools/golden/hidden_states.py).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use lora_drop::adapter::{LoraBank, NewPairs};
use lora_drop::assignment::Assignment;
use lora_drop::score::{Evidence, HiddenStates, criterion};
use lora_drop::settings::CriterionName;
use lora_drop_compute::random::Key;
use lora_drop_transformer::{
    AdapterMethod, AdapterTable, Checkpoint, Context, Head, Loading, Memory, Model, ModelConfig, ModuleId,
    ModuleKind, Observations, Parameters, Sequences, Trained,
};
use safetensors::SafeTensors;

static GO: AtomicBool = AtomicBool::new(false);

/// The tensors of a golden file, as bits.
fn golden(folder: &Path, name: &str) -> BTreeMap<String, Vec<u32>> {
    let bytes = std::fs::read(folder.join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |data: &[u8]| data.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    file.iter().map(|(name, tensor)| (name.to_string(), words(tensor.data()))).collect()
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&word| f32::from_bits(word)).collect()
}

fn agrees(model: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(model);
    let (inputs, want) =
        (golden(&folder, "golden.safetensors"), golden(&folder, "hidden_states.safetensors"));
    let config = ModelConfig::read(&folder).unwrap();
    let mut parameters = Parameters::new();
    let head = (!config.architecture.is_decoder()).then_some(Head::of_sequences(3));
    let loading = Loading { head, trained: Trained::Head, quantize: None, key: Key::new(0) };
    let loaded = Model::load(&Checkpoint::open(&folder).unwrap(), &config, loading, &mut parameters).unwrap();

    let offsets: Vec<usize> = want["offsets"].iter().map(|&offset| offset as usize).collect();
    let types = inputs.get("input.token_types").map_or(&[][..], Vec::as_slice);
    let sequences = Sequences { ids: &inputs["input.ids"], types, offsets: &offsets, labelled: &[] };
    let (table, mut memory) = (AdapterTable::empty(config.layers), Memory::default());
    let mut states = HiddenStates::default();
    let context = Context::new(parameters.read(), &table, &mut memory, &GO);
    let see = |level: usize, seen: &[f32]| {
        let want = floats(&want[&format!("states.{level}")]);
        let most = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert_eq!(seen.len(), want.len());
        let farthest = seen.iter().zip(&want).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(farthest < 1e-5 * most, "{model}, level {level}: {farthest} of {most}");
        states.add(level, &offsets, seen);
    };
    loaded.net.hidden_states(context, sequences, see).unwrap();

    let modules = config.modules(&[ModuleKind::Query, ModuleKind::Value]);
    let dims = |kind| {
        let (output, input) = config.linear_shape(kind);
        (input, output)
    };
    let method = AdapterMethod::Lora;
    let lora = NewPairs { method, rank: 2, alpha: 2.0, rslora: false, shared_a: false };
    let bank = LoraBank::new(&Assignment::all_own(modules), lora, dims, 0, &mut parameters);
    let (observations, hidden_states) = (&Observations::new(), &states);
    let evidence = Evidence { bank: &bank, parameters: &parameters, observations, hidden_states, seed: 0 };
    for name in [CriterionName::Activation, CriterionName::Cka] {
        let scores = criterion(name).scores(&evidence);
        assert_eq!(scores.len(), 2 * config.layers);
        for (ModuleId { layer, kind }, score) in scores {
            let want = f64::from(floats(&want[name.name()])[layer]);
            assert!(
                (score / want - 1.0).abs() < 1e-4,
                "{model}, {kind:?} {layer} by {name:?}: {score} {want}"
            );
        }
    }
}

#[test]
fn of_encoders_every_token_of_the_last_block_too() {
    agrees("bert");
    agrees("mpnet");
}

#[test]
fn of_decoders_before_the_final_norm() {
    agrees("llama");
    agrees("gemma3");
}
