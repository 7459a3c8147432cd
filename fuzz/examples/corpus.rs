//! Writes each target's inputs to start from into `corpus`, and its words as `corpus/NAME.dict`, in
//! the current folder.

use std::fmt::Write;
use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for format in &lora_drop_fuzz::FORMATS {
        let folder = Path::new("corpus").join(format.name);
        fs::create_dir_all(&folder)?;
        for (number, input) in lora_drop_fuzz::inputs(format.name, root).iter().enumerate() {
            fs::write(folder.join(format!("seed_{number}")), input)?;
        }
        let mut words = String::new();
        for word in format.words {
            let bytes = word.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
            writeln!(words, "\"{bytes}\"").expect("memory takes it");
        }
        fs::write(Path::new("corpus").join(format!("{}.dict", format.name)), words)?;
    }
    Ok(())
}
