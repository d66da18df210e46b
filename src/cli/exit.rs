//! Exit codes: 0 ok, 1 findings, 64 usage, 69 unavailable, 70 a bug or storage, 74 I/O, 78 config,
//! 130 interrupted.

use std::fmt;
use std::process::ExitCode;

/// An error that says with which code the command exits. Any other error exits with 1.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    /// Printed after `error: `; nothing is, where it is empty.
    message: String,
}

impl Exit {
    /// Somebody is not there who is needed: a broker, the admin API.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(69, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(64, message)
    }

    pub fn io(message: impl Into<String>) -> Self {
        Self::new(74, message)
    }

    /// What the app says is wrong, with its code.
    pub fn failure(failure: crate::app::Failure) -> Self {
        let code = u8::try_from(failure.code()).unwrap_or(1);
        Self::new(code, format!("{:#}", failure.into_error()))
    }

    /// The config cannot be used; its problems have been printed.
    pub fn config() -> Self {
        Self::new(78, "")
    }

    /// Ctrl-C, after the summary has been printed.
    pub fn interrupted() -> Self {
        Self::new(130, "")
    }

    fn new(code: u8, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}

/// Prints an error and says with which code to exit. Whoever closes our output early, as `head`
/// does, has had enough of it: that is no error.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let io = error
        .chain()
        .find_map(|e| e.downcast_ref::<std::io::Error>());
    if io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    // Not from the chain: a context is found by the error itself only.
    let exit = error.downcast_ref::<Exit>();
    if exit.is_none_or(|exit| !exit.message.is_empty()) {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(exit.map_or(1, |exit| exit.code))
}
