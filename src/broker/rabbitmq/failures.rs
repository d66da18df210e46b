//! What lapin's errors mean to us.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// The broker's "no" that costs a channel and leaves the connection.
pub fn soft(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

/// The broker lets the user in, but not into this virtual host.
pub fn is_not_allowed(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if matches!(error.kind(), AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)))
}

/// The client library could not decode what came, and has given the connection up: somewhere among
/// the messages is a routing key, type, id or header name that is not UTF-8.
pub fn is_undecodable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<lapin::Error>()
            .is_some_and(|error| matches!(error.kind(), ErrorKind::ParsingError(_)))
    })
}
