//! Ctrl-C: the first raises the flag that running work looks at, the second ends the process at once.

use std::io::Write;

use lora_drop::Cancel;

/// The flag that Ctrl-C raises from now on.
pub fn on_ctrl_c() -> Cancel {
    let cancel = Cancel::new();
    let flag = cancel.clone();
    let handler = move || {
        if flag.is_raised() {
            std::process::exit(130);
        }
        flag.raise();
        let _ = writeln!(std::io::stderr(), "\nstopping; Ctrl-C again ends at once");
    };
    // Without a handler Ctrl-C ends the process as the system does it, which is no reason not to run.
    let _ = ctrlc::set_handler(handler);
    cancel
}
