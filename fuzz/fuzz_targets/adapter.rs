//! Any header and any configuration: an adapter's files are refused with a message, or hold what their shapes say, and
//! come back the same when they are written again.
//!
//! The first byte chooses between the compact file and PEFT's folder. Up to the first zero byte stands PEFT's
//! configuration, up to the second the safetensors header (its length is put before it), then the tensors' bytes.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lora_drop::adapter::{AdapterFile, COMPACT_FILE};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, rest)) = input.split_first() else { return };
    let mut parts = rest.splitn(3, |byte| *byte == 0);
    let [config, header, data] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("written");
    let weights = [&(header.len() as u64).to_le_bytes(), header, data].concat();
    if choice & 1 == 0 {
        write(COMPACT_FILE, &weights);
    } else {
        write("adapter_config.json", config);
        write("adapter_model.safetensors", &weights);
    }
    let Ok(adapter) = AdapterFile::open(folder.path()) else { return };
    for pair in &adapter.pairs {
        assert_eq!((pair.a.len(), pair.b.len()), (pair.rank * pair.input, pair.rank * pair.output));
    }
    assert!(adapter.modules.values().all(|pair| *pair < adapter.pairs.len()));
    let again = folder.path().join("again.safetensors");
    if adapter.write_compact(&again).is_ok() {
        same(&adapter, &again);
    }
});

/// Names and layers are the file's to choose, so the rest is compared.
fn same(adapter: &AdapterFile, path: &Path) {
    let read = AdapterFile::open(path).expect("just written");
    assert_eq!((&read.modules, &read.pairs, &read.head), (&adapter.modules, &adapter.pairs, &adapter.head));
}
