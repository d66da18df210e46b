//! Panics: what the last one on this thread said, and where.

use std::cell::RefCell;
use std::panic::PanicHookInfo;
use std::sync::Once;

/// A longer message is cut off.
const LONGEST: usize = 300;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Remembers panics from now on, beside what is done with them anyway.
pub fn witness() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // A thread that is ending has no place for it any more.
            let _ = LAST.try_with(|last| last.replace(described(panic)));
            before(panic);
        }));
    });
}

/// Message and location of the last panic on this thread.
pub fn last() -> String {
    LAST.with(|last| last.borrow().clone())
}

fn described(panic: &PanicHookInfo<'_>) -> String {
    let message: String = panic
        .payload_as_str()
        .unwrap_or("no message")
        .chars()
        .take(LONGEST)
        .collect();
    match panic.location() {
        Some(location) => format!("{message} ({location})"),
        None => message,
    }
}
