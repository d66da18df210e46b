//! How events and deliveries are written in the file.
//!
//! Every record begins with a version byte. Headers are written in binary (a JSON form of byte
//! values would be four times as long), the body lies behind them as it is.
//!
//! - an event: `1`, accepted at (ms, 8 bytes), its own fields, the application's headers, body;
//! - a delivery: `1`, the headers that [`Envelope::write`](crate::broker::envelope::Envelope::write)
//!   made, body.
//!
//! Numbers are little-endian. A record that cannot be read is kept as it is, never dropped.

use bytes::{Buf, BufMut, Bytes};
use jiff::Timestamp;

use crate::broker::envelope::Written;
use crate::event::{EventId, HeaderValue, Headers};

const VERSION: u8 = 1;
/// How deep lists and maps may be nested in a header.
const MAX_DEPTH: usize = 64;

/// Why a record is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("record version {0} is not known to this release")]
    Version(u8),
    #[error("record is cut off or malformed")]
    Malformed,
}

/// An event as it was published.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub topic: String,
    /// The id that the publisher gave.
    pub given_id: Option<Bytes>,
    /// The id that it gets where neither the publisher nor the source's rules give one.
    pub placed_id: EventId,
    pub kind: Option<String>,
    pub key: Option<Bytes>,
    pub content_type: Option<String>,
    pub published_at: Timestamp,
    pub headers: Headers,
    pub body: Bytes,
}

impl Stored {
    pub fn write(&self) -> Vec<u8> {
        let mut own = Headers::default();
        let mut put = |name: &str, value: Option<Bytes>| {
            if let Some(value) = value {
                own.push(name, HeaderValue::Bytes(value));
            }
        };
        let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        put("topic", Some(text(&self.topic)));
        put("id", self.given_id.clone());
        put("placed-id", Some(text(self.placed_id.as_str())));
        put("type", self.kind.as_deref().map(text));
        put("key", self.key.clone());
        put("content-type", self.content_type.as_deref().map(text));
        let size = own.size_bytes() + self.headers.size_bytes() + self.body.len();
        let mut out = Vec::with_capacity(size + 64);
        out.put_u8(VERSION);
        out.put_u64_le(self.published_at.as_millisecond().max(0).cast_unsigned());
        put_headers(&mut out, &own);
        put_headers(&mut out, &self.headers);
        out.put_slice(&self.body);
        out
    }

    pub fn read(mut record: Bytes) -> Result<Self, Unreadable> {
        version(&mut record)?;
        let at_ms = record.try_get_u64_le().map_err(|_| Unreadable::Malformed)?;
        let own = take_headers(&mut record)?;
        let headers = take_headers(&mut record)?;
        let bytes = |name: &str| match own.get(name) {
            Some(HeaderValue::Bytes(bytes)) => Some(bytes.clone()),
            _ => None,
        };
        let text = |name: &str| {
            bytes(name)
                .map(|bytes| String::from_utf8(bytes.into()).map_err(|_| Unreadable::Malformed))
                .transpose()
        };
        let at_ms = i64::try_from(at_ms).map_err(|_| Unreadable::Malformed)?;
        Ok(Self {
            topic: text("topic")?.ok_or(Unreadable::Malformed)?,
            given_id: bytes("id"),
            placed_id: text("placed-id")?
                .and_then(|id| EventId::kept(&id))
                .ok_or(Unreadable::Malformed)?,
            kind: text("type")?,
            key: bytes("key"),
            content_type: text("content-type")?,
            published_at: Timestamp::from_millisecond(at_ms).map_err(|_| Unreadable::Malformed)?,
            headers,
            body: record,
        })
    }

    /// When the event in `record` was accepted, without reading the rest.
    pub fn accepted_ms(record: &[u8]) -> Option<u64> {
        record.get(1..9)?.try_into().ok().map(u64::from_le_bytes)
    }
}

/// The record of a delivery.
pub fn write_delivery(written: &Written) -> Vec<u8> {
    let mut out = Vec::with_capacity(written.headers.size_bytes() + written.body.len() + 256);
    out.put_u8(VERSION);
    put_headers(&mut out, &written.headers);
    out.put_slice(&written.body);
    out
}

pub fn read_delivery(mut record: Bytes) -> Result<Written, Unreadable> {
    version(&mut record)?;
    let headers = take_headers(&mut record)?;
    Ok(Written {
        headers,
        body: record,
    })
}

fn version(record: &mut Bytes) -> Result<(), Unreadable> {
    match record.try_get_u8() {
        Ok(VERSION) => Ok(()),
        Ok(other) => Err(Unreadable::Version(other)),
        Err(_) => Err(Unreadable::Malformed),
    }
}

fn put_headers(out: &mut Vec<u8>, headers: &Headers) {
    put_entries(out, &headers.0);
}

fn put_entries(out: &mut Vec<u8>, entries: &[(String, HeaderValue)]) {
    out.put_u32_le(entries.len() as u32);
    for (name, value) in entries {
        put_bytes(out, name.as_bytes());
        put_value(out, value);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &HeaderValue) {
    match value {
        HeaderValue::Null => out.put_u8(0),
        HeaderValue::Bytes(bytes) => {
            out.put_u8(1);
            put_bytes(out, bytes);
        }
        HeaderValue::Bool(yes) => {
            out.put_u8(2);
            out.put_u8(u8::from(*yes));
        }
        HeaderValue::Int(number) => {
            out.put_u8(3);
            out.put_i64_le(*number);
        }
        HeaderValue::Float(number) => {
            out.put_u8(4);
            out.put_f64_le(*number);
        }
        HeaderValue::Time(seconds) => {
            out.put_u8(5);
            out.put_u64_le(*seconds);
        }
        HeaderValue::List(items) => {
            out.put_u8(6);
            out.put_u32_le(items.len() as u32);
            for item in items {
                put_value(out, item);
            }
        }
        HeaderValue::Map(entries) => {
            out.put_u8(7);
            put_entries(out, entries);
        }
    }
}

fn take_headers(record: &mut Bytes) -> Result<Headers, Unreadable> {
    take_entries(record, 0).map(Headers)
}

fn take_entries(
    record: &mut Bytes,
    depth: usize,
) -> Result<Vec<(String, HeaderValue)>, Unreadable> {
    let count = take_count(record)?;
    let mut entries = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let name = String::from_utf8(take_bytes(record)?.into());
        let name = name.map_err(|_| Unreadable::Malformed)?;
        entries.push((name, take_value(record, depth)?));
    }
    Ok(entries)
}

fn take_count(record: &mut Bytes) -> Result<usize, Unreadable> {
    let count = record.try_get_u32_le();
    count
        .map(|count| count as usize)
        .map_err(|_| Unreadable::Malformed)
}

fn take_bytes(record: &mut Bytes) -> Result<Bytes, Unreadable> {
    let length = take_count(record)?;
    if length > record.len() {
        return Err(Unreadable::Malformed);
    }
    Ok(record.split_to(length))
}

fn take_value(record: &mut Bytes, depth: usize) -> Result<HeaderValue, Unreadable> {
    if depth > MAX_DEPTH {
        return Err(Unreadable::Malformed);
    }
    let cut = |_| Unreadable::Malformed;
    Ok(match record.try_get_u8().map_err(cut)? {
        0 => HeaderValue::Null,
        1 => HeaderValue::Bytes(take_bytes(record)?),
        2 => HeaderValue::Bool(record.try_get_u8().map_err(cut)? != 0),
        3 => HeaderValue::Int(record.try_get_i64_le().map_err(cut)?),
        4 => HeaderValue::Float(record.try_get_f64_le().map_err(cut)?),
        5 => HeaderValue::Time(record.try_get_u64_le().map_err(cut)?),
        6 => {
            let count = take_count(record)?;
            let mut items = Vec::with_capacity(count.min(64));
            for _ in 0..count {
                items.push(take_value(record, depth + 1)?);
            }
            HeaderValue::List(items)
        }
        7 => HeaderValue::Map(take_entries(record, depth + 1)?),
        _ => return Err(Unreadable::Malformed),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = HeaderValue> {
        let leaf = prop_oneof![
            Just(HeaderValue::Null),
            proptest::collection::vec(any::<u8>(), 0..20)
                .prop_map(|bytes| HeaderValue::Bytes(bytes.into())),
            any::<bool>().prop_map(HeaderValue::Bool),
            any::<i64>().prop_map(HeaderValue::Int),
            (-1e9f64..1e9).prop_map(HeaderValue::Float),
            any::<u64>().prop_map(HeaderValue::Time),
        ];
        leaf.prop_recursive(4, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(HeaderValue::List),
                proptest::collection::vec((".{0,8}", inner), 0..4).prop_map(HeaderValue::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_event_is_read_back_whole(
            topic in ".{1,20}",
            id in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            headers in proptest::collection::vec((".{0,10}", value()), 0..6),
            body in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let stored = Stored {
                topic,
                given_id: id.map(Bytes::from),
                placed_id: EventId::random(),
                kind: Some("t".into()),
                key: None,
                content_type: None,
                published_at: Timestamp::from_millisecond(1_700_000_000_123).unwrap(),
                headers: Headers(headers),
                body: body.into(),
            };
            let record = stored.write();
            prop_assert_eq!(Stored::accepted_ms(&record), Some(1_700_000_000_123));
            prop_assert_eq!(Stored::read(record.into()).unwrap(), stored);
        }

        #[test]
        fn a_cut_or_foreign_record_is_an_error_not_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = Stored::read(bytes.clone().into());
            if let Some(first) = bytes.first_mut() { *first = VERSION; }
            let _ = Stored::read(bytes.clone().into());
            let _ = read_delivery(bytes.into());
        }
    }

    #[test]
    fn a_record_of_a_later_version_is_named() {
        assert_eq!(
            read_delivery(Bytes::from_static(&[9, 0, 0])),
            Err(Unreadable::Version(9))
        );
    }
}
