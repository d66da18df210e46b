//! Reading: a record as the event that it is, the same however often it is read.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Message as _};

use super::headers;
use crate::broker::{Naming, Taken};
use crate::event::{Event, EventId, HeaderValue, Headers, Origin, Place};

/// What the events of a source have in common.
pub struct Reading<'a> {
    pub naming: &'a Naming,
    /// The broker's name in the config.
    pub broker: &'a Arc<str>,
    /// The cluster's id, which is part of the ids that are made from a record's place.
    pub cluster: &'a str,
}

impl Reading<'_> {
    pub fn event(&self, message: &BorrowedMessage<'_>, topic: &Arc<str>) -> Event {
        let headers = headers::read(message);
        let (partition, offset) = (message.partition(), message.offset());
        let stamp = message.timestamp().to_millis();
        let placed_id = EventId::hashed(
            "kfk",
            &[
                self.cluster.as_bytes(),
                topic.as_bytes(),
                &partition.to_be_bytes(),
                &offset.to_be_bytes(),
                &stamp.unwrap_or(-1).to_be_bytes(),
            ],
        );
        self.naming.event(Taken {
            topic: topic.clone(),
            kind: None,
            message_id: None,
            placed_id: Some(placed_id),
            published_at: stamp.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            content_type: text(&headers, "content-type"),
            content_encoding: text(&headers, "content-encoding"),
            key: message.key().map(Bytes::copy_from_slice),
            headers,
            properties: Vec::new(),
            body: message
                .payload()
                .map(Bytes::copy_from_slice)
                .unwrap_or_default(),
            origin: Origin {
                broker: self.broker.clone(),
                place: Place::Kafka {
                    topic: topic.clone(),
                    partition,
                    offset,
                },
            },
        })
    }
}

fn text(headers: &Headers, name: &str) -> Option<Arc<str>> {
    headers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .and_then(|(_, value): (_, &HeaderValue)| value.as_str())
        .map(Arc::from)
}
