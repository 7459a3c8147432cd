//! Any bytes: the header is refused with a message, or everything in it is as the reader promises.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_drop_transformer::gguf::{Header, Writer};

fuzz_target!(|file: &[u8]| {
    let Ok(header) = Header::parse(file) else { return };
    for tensor in &header.tensors {
        assert!(tensor.start.is_multiple_of(header.alignment) && tensor.end <= file.len());
        assert_eq!(tensor.kind.size(&tensor.shape), Some(tensor.end - tensor.start));
    }
    // What was read is written; what is written is read, and is the same. NaNs are not equal to themselves, so texts
    // are compared.
    let own = |key: &str| key == "general.alignment";
    let metadata: Vec<_> = header.metadata.into_iter().filter(|(key, _)| !own(key)).collect();
    let written = Writer::new(Vec::new(), &metadata, Vec::new()).expect("keys were checked");
    let again = Header::parse(&written.finish().expect("no tensors are missing")).expect("just written");
    assert_eq!(format!("{:?}", again.metadata), format!("{metadata:?}"));
});
