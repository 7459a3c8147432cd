//! The `lora-drop` binary: everything is in `cli`, and the work in the library.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
