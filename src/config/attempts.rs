//! The key `attempts`: the journal and its audit stream.

use std::time::Duration;

use super::brokers::{self, Kind};
use super::field::Field;
use super::reader::{Map, suggestion};
use super::{Attempts, Publish, keys};

const DEFAULT_KEEP: Duration = Duration::from_secs(7 * 86_400);
const DEFAULT_MAX_BYTES: u64 = 1 << 30;
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3_650 * 86_400);

/// `None` where a problem was noted, or attempts are not kept.
pub fn read(map: Option<&Map<'_>>, known: &[brokers::Read]) -> Option<Attempts> {
    let mut attempts = Attempts {
        keep: DEFAULT_KEEP,
        max_bytes: DEFAULT_MAX_BYTES,
        bodies: false,
        publish: None,
    };
    let Some(map) = map else {
        return Some(attempts);
    };
    let enabled = map.take("enabled").map(|field| field.bool());
    if let Some(field) = map.take("keep") {
        attempts.keep = field.duration(SHORTEST..=LONGEST).unwrap_or(DEFAULT_KEEP);
    }
    if let Some(field) = map.take("max_bytes") {
        let bytes = field.bytes(1 << 20..=1 << 44);
        attempts.max_bytes = bytes.unwrap_or(DEFAULT_MAX_BYTES);
    }
    if let Some(field) = map.take("bodies") {
        attempts.bodies = field.bool().unwrap_or_default();
    }
    let publish_field = map.take("publish");
    attempts.publish = publish_field.and_then(|field| publish(field, known));
    let enabled = enabled.flatten().unwrap_or(true);
    if let (false, Some(field)) = (enabled, publish_field) {
        field.note_key(
            "what is not kept cannot be published",
            "leave `publish` out, or `enabled: false`".to_owned(),
        );
    }
    enabled.then_some(attempts)
}

fn publish(field: Field<'_>, known: &[brokers::Read]) -> Option<Publish> {
    let map = field.map(&keys::PUBLISH)?;
    let broker = map.need("broker").and_then(|field| field.name());
    let topic = map.need("topic").and_then(|field| field.text());
    let exchange_field = map.take("exchange");
    let exchange = exchange_field.map_or(Some(""), |field| field.text());
    let broker = broker?;
    let Some(found) = known.iter().find(|known| known.name.text == broker.text) else {
        let names = known.iter().map(|known| &*known.name.text);
        field.notes.note(
            broker.span,
            format!("there is no broker {}", broker.shown),
            suggestion(&broker.text, names),
        );
        return None;
    };
    if let (Some(field), Some(Kind::Kafka | Kind::Embedded)) = (exchange_field, found.kind) {
        field.note_key(
            "only RabbitMQ has exchanges",
            "leave the key out".to_owned(),
        );
    }
    Some(Publish {
        broker: broker.text,
        exchange: exchange?.to_owned(),
        topic: topic?.to_owned(),
    })
}
