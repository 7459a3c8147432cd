//! Panics of other crates over damaged input, turned into errors and not printed.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is inside `caught`, so that its panics are not printed.
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, and returns its result or the message of its panic. After a panic, nothing that
/// `work` changes may be used.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // The hook is global, so it is wrapped once instead of replaced in each call: panics of other
    // threads are still printed.
    static WRAP: Once = Once::new();
    WRAP.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !SILENT.get() {
                usual(panic);
            }
        }));
    });
    let before = SILENT.replace(true);
    let found = catch_unwind(AssertUnwindSafe(work));
    SILENT.set(before);
    found.map_err(message)
}

fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast::<String>().map(|text| *text);
    text.unwrap_or_else(|panic| panic.downcast_ref::<&str>().unwrap_or(&"no reason given").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_message() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(caught(|| panic!("of {}", 2)), Err::<(), _>("of 2".to_string()));
        assert_eq!(caught(|| panic!("plain")), Err::<(), _>("plain".to_string()));
        assert_eq!(caught(|| caught(|| panic!("within")).is_err() && SILENT.get()), Ok(true));
        assert!(!SILENT.get(), "panics of this thread are printed again");
    }
}
