//! The text that is written: JSON, never longer than it may be.

use std::fmt::Display;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Why;

/// Bytes with a limit. Every value that is read writes at least one, so that a message which claims
/// a billion of them ends here.
pub(super) struct Out {
    bytes: Vec<u8>,
    limit: usize,
    is_full: bool,
}

impl Out {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
            is_full: false,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Why> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.is_full = true;
            return Err(too_long(self.limit));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// As it is printed.
    pub(super) fn shown(&mut self, value: impl Display) -> Result<(), Why> {
        self.push(value.to_string().as_bytes())
    }

    /// A JSON string. It may need no escapes.
    pub(super) fn quoted(&mut self, text: &str) -> Result<(), Why> {
        if text.len() > self.limit {
            return Err(too_long(self.limit));
        }
        let quoted = serde_json::to_string(text).expect("text is JSON");
        self.push(quoted.as_bytes())
    }

    /// Bytes as a JSON string: base64, as in Protobuf's mapping.
    pub(super) fn base64(&mut self, bytes: &[u8]) -> Result<(), Why> {
        if bytes.len() > self.limit {
            return Err(too_long(self.limit));
        }
        self.push(b"\"")?;
        self.push(STANDARD.encode(bytes).as_bytes())?;
        self.push(b"\"")
    }

    /// Whether something did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

impl io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.push(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(why) => Err(io::Error::other(why)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn too_long(limit: usize) -> Why {
    format!("decoded it would be longer than {limit} bytes (`decode.max_bytes`)").into()
}
