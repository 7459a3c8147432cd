//! The program `lora-drop`; everything is in the crate's library, so that tests reach it.

fn main() -> std::process::ExitCode {
    lora_drop_cli::main()
}
