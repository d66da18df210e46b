//! Kafka headers, read without trusting their names.
//!
//! A header's name may be any bytes, and the client library panics on one that is not UTF-8 (on
//! one message of one producer, for ever). So names are read beneath it; bytes that are not UTF-8
//! are percent-encoded, and the event is delivered.

use std::ffi::{CStr, c_void};
use std::{ptr, slice};

use bytes::Bytes;
use rdkafka::bindings as native;
use rdkafka::message::{BorrowedMessage, Header, OwnedHeaders};

use crate::event::{HeaderValue, Headers};

/// All headers of a message, in order.
pub fn read(message: &BorrowedMessage<'_>) -> Headers {
    let mut found = Headers::default();
    let mut list = ptr::null_mut();
    // SAFETY: the message is alive, and so are its headers, which belong to it.
    let error = unsafe { native::rd_kafka_message_headers(message.ptr(), &raw mut list) };
    if error != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || list.is_null() {
        return found;
    }
    for index in 0.. {
        let mut name = ptr::null();
        let mut value: *const c_void = ptr::null();
        let mut size = 0;
        // SAFETY: `list` is the message's; an index past the end is answered with an error.
        let error = unsafe {
            native::rd_kafka_header_get_all(
                list,
                index,
                &raw mut name,
                &raw mut value,
                &raw mut size,
            )
        };
        if error != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            break;
        }
        // SAFETY: names are NUL-terminated, values have `size` bytes, both owned by the message.
        let (name, value) = unsafe {
            let name = CStr::from_ptr(name).to_bytes();
            let value = (!value.is_null()).then(|| {
                if size == 0 {
                    Bytes::new()
                } else {
                    Bytes::copy_from_slice(slice::from_raw_parts(value.cast::<u8>(), size))
                }
            });
            (name, value)
        };
        found.push(
            readable(name),
            value.map_or(HeaderValue::Null, HeaderValue::Bytes),
        );
    }
    found
}

/// A name as text: bytes that are not UTF-8 as `%XX`.
fn readable(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Headers as the client library takes them. Values that Kafka has no form for (AMQP's numbers and
/// tables) must have been moved into the body before: see [`has_typed_values`].
pub fn write(headers: &Headers) -> OwnedHeaders {
    let mut list = OwnedHeaders::new_with_capacity(headers.0.len());
    for (name, value) in headers.iter() {
        list = list.insert(Header {
            key: name,
            value: value.as_bytes(),
        });
    }
    list
}

/// Whether a value is neither bytes nor null, and so would be lost in a Kafka header.
pub fn has_typed_values<'a>(values: impl IntoIterator<Item = &'a HeaderValue>) -> bool {
    values
        .into_iter()
        .any(|value| !matches!(value, HeaderValue::Bytes(_) | HeaderValue::Null))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_utf8_is_percent_encoded() {
        assert_eq!(readable(b"a\xff\xfeb"), "a%FF%FEb");
        assert_eq!(readable("\u{fc}ber".as_bytes()), "\u{fc}ber");
    }
}
