//! The program `lora-drop`; everything is in the crate's library, so that tests and the Python
//! package reach it.

use std::process::ExitCode;

use lora_drop_cli::Program;

fn main() -> ExitCode {
    lora_drop_cli::main(Program::own(), std::env::args_os().skip(1)).into()
}
