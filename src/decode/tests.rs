use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::event::{EventId, HeaderValue, Headers, Origin, Place};

/// A registry that answers by path, after a moment, or not at all.
#[derive(Default)]
struct Shelf {
    answers: BTreeMap<String, (u16, String)>,
    is_down: Mutex<bool>,
    asked: AtomicUsize,
}

impl Shelf {
    fn with(mut self, path: &str, answer: serde_json::Value) -> Self {
        self.answers
            .insert(path.to_owned(), (200, answer.to_string()));
        self
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn set_down(&self, down: bool) {
        *self.is_down.lock().unwrap() = down;
    }
}

#[async_trait]
impl Fetch for Shelf {
    async fn get(&self, url: &Url) -> Result<Fetched, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
        if *self.is_down.lock().unwrap() {
            return Err("connection refused".to_owned());
        }
        let unknown = (404, r#"{"error_code":40403,"message":"-"}"#.to_owned());
        let (status, body) = self.answers.get(url.path()).cloned().unwrap_or(unknown);
        let body = body.into();
        Ok(Fetched { status, body })
    }
}

const ORDER: &str = r#"{"type":"record","name":"Order","fields":[{"name":"id","type":"long"}]}"#;

fn settings() -> Settings {
    Settings {
        source: "orders".into(),
        coding: Coding::Auto,
        format: Format::Auto,
        max_bytes: 1000,
        registry: Some(RegistrySettings {
            url: "http://registry/base/".parse().unwrap(),
            cache: 2,
        }),
    }
}

fn decoder(settings: Settings, shelf: Shelf) -> (Arc<Decoder>, Arc<Shelf>) {
    let shelf = Arc::new(shelf);
    let decoder = Decoder::new(
        settings,
        Some(shelf.clone()),
        Room::new(1 << 20),
        DecodeMeters::default(),
    );
    (Arc::new(decoder), shelf)
}

fn event(body: &[u8]) -> Event {
    Event {
        id: EventId::kept("e1").unwrap(),
        topic: "orders".into(),
        kind: "orders".into(),
        source: "orders".into(),
        tenant: None,
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: Bytes::copy_from_slice(body),
        origin: Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: "orders".into(),
                sequence: 1,
            },
        },
    }
}

async fn text(decoder: &Decoder, event: &Event) -> Result<String, Problem> {
    let decoded = decoder.decode(event, Duration::from_secs(60)).await?;
    let decoded = decoded.expect("something is decoded");
    Ok(String::from_utf8(decoded.body.to_vec()).unwrap())
}

fn why(problem: Result<String, Problem>) -> String {
    match problem {
        Err(Problem::Undecodable(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_schema_is_asked_for_once_however_many_need_it() {
    let shelf = Shelf::default().with("/base/schemas/ids/7", json!({"schema": ORDER}));
    let (decoder, shelf) = decoder(settings(), shelf);
    let all = (0..20).map(|_| {
        let decoder = decoder.clone();
        tokio::spawn(async move { text(&decoder, &event(&[0, 0, 0, 0, 7, 84])).await })
    });
    for each in all.collect::<Vec<_>>() {
        assert_eq!(each.await.unwrap().unwrap(), r#"{"id":42}"#);
    }
    assert_eq!(shelf.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_used_longest_ago_is_forgotten_first() {
    let mut shelf = Shelf::default();
    for id in 1..=3 {
        shelf = shelf.with(&format!("/base/schemas/ids/{id}"), json!({"schema": ORDER}));
    }
    let (decoder, shelf) = decoder(settings(), shelf);
    for (id, asked) in [(1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)] {
        text(&decoder, &event(&[0, 0, 0, 0, id, 2])).await.unwrap();
        assert_eq!(shelf.asked(), asked, "schema {id}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_id_is_undecodable_and_not_asked_for_again_at_once() {
    let (decoder, shelf) = decoder(settings(), Shelf::default());
    let unknown = event(&[0, 0, 0, 0, 9, 1]);
    for _ in 0..3 {
        let why = why(text(&decoder, &unknown).await);
        assert_eq!(why, "schema 9: the registry does not have it");
    }
    assert_eq!(shelf.asked(), 1);
    tokio::time::sleep(Duration::from_secs(6)).await;
    why(text(&decoder, &unknown).await);
    assert_eq!(shelf.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn while_the_registry_is_down_it_is_asked_again_with_growing_pauses() {
    let shelf = Shelf::default().with("/base/schemas/ids/7", json!({"schema": ORDER}));
    let (decoder, shelf) = decoder(settings(), shelf);
    shelf.set_down(true);
    let order = event(&[0, 0, 0, 0, 7, 84]);
    let short = decoder.decode(&order, Duration::ZERO).await;
    assert!(matches!(short, Err(Problem::Unavailable(_))), "{short:?}");
    let said = decoder.why_waiting().unwrap();
    assert!(said.ends_with("connection refused"), "{said}");
    // It is known, so nobody asks.
    assert!(decoder.decode(&order, Duration::ZERO).await.is_err());
    assert_eq!(shelf.asked(), 1);

    let waiting = tokio::spawn({
        let decoder = decoder.clone();
        async move {
            let patience = Duration::from_secs(600);
            decoder.decode(&event(&[0, 0, 0, 0, 7, 84]), patience).await
        }
    });
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!((10..25).contains(&shelf.asked()), "{}", shelf.asked());
    shelf.set_down(false);
    let decoded = waiting.await.unwrap().unwrap().unwrap();
    assert_eq!(&decoded.body[..], br#"{"id":42}"#);
    assert_eq!(decoder.why_waiting(), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_none_of_a_registry_is_no_answer() {
    for (status, body) in [
        (404, "<html>not here</html>"),
        (401, r#"{"error_code":40101}"#),
        (500, r#"{"error_code":50001}"#),
        (200, "[]"),
    ] {
        let mut shelf = Shelf::default();
        shelf
            .answers
            .insert("/base/schemas/ids/7".into(), (status, body.into()));
        let (decoder, _) = decoder(settings(), shelf);
        let decoded = decoder
            .decode(&event(&[0, 0, 0, 0, 7, 2]), Duration::ZERO)
            .await;
        assert!(
            matches!(decoded, Err(Problem::Unavailable(_))),
            "{decoded:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn references_are_followed_in_their_order() {
    let of = |name: &str| json!({"name": name, "subject": name, "version": 3});
    let record = |name: &str, kind: &str| {
        json!({"type": "record", "name": name, "fields": [{"name": "it", "type": kind}]})
            .to_string()
    };
    let shelf = Shelf::default()
        .with(
            "/base/schemas/ids/7",
            json!({"schema": record("a.A", "a.B"), "references": [of("a.B"), of("a.C")]}),
        )
        .with(
            "/base/subjects/a.B/versions/3",
            json!({"schema": record("a.B", "a.C"), "references": [of("a.C")]}),
        )
        .with(
            "/base/subjects/a.C/versions/3",
            json!({"schema": record("a.C", "string")}),
        )
        .with(
            "/base/schemas/ids/8",
            json!({"schema": record("a.A", "a.D"), "references": [of("a.D")]}),
        );
    let (decoder, shelf) = decoder(settings(), shelf);
    let body = [0, 0, 0, 0, 7, 4, b'h', b'i'];
    let read = text(&decoder, &event(&body)).await.unwrap();
    assert_eq!(read, r#"{"it":{"it":{"it":"hi"}}}"#);
    assert_eq!(shelf.asked(), 3);
    let gone = why(text(&decoder, &event(&[0, 0, 0, 0, 8, 0])).await);
    assert_eq!(
        gone,
        "schema 8: it refers to version 3 of \"a.D\": the registry does not have it"
    );
}

#[tokio::test(start_paused = true)]
async fn json_with_an_id_before_it_is_that_json_and_no_copy() {
    let shelf = Shelf::default()
        .with(
            "/base/schemas/ids/7",
            json!({"schema": "{}", "schemaType": "JSON"}),
        )
        .with(
            "/base/schemas/ids/8",
            json!({"schema": "<x/>", "schemaType": "XSD"}),
        );
    let (decoder, _) = decoder(settings(), shelf);
    let whole = event(b"\0\0\0\0\x07{\"a\": 1}");
    let patience = Duration::from_secs(1);
    let decoded = decoder.decode(&whole, patience).await.unwrap().unwrap();
    assert_eq!(&decoded.body[..], b"{\"a\": 1}");
    assert!(decoded.is_json);
    assert_eq!(decoded.body.as_ptr(), whole.body[5..].as_ptr());
    let none = why(text(&decoder, &event(b"\0\0\0\0\x07{\"a\"")).await);
    assert!(
        none.starts_with("what comes after the id is not JSON"),
        "{none}"
    );
    let other = why(text(&decoder, &event(b"\0\0\0\0\x08{}")).await);
    assert!(other.contains("\"XSD\" is not known"), "{other}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_in_the_format_of_a_registry_is_undecodable() {
    let shelf = Shelf::default().with("/base/schemas/ids/7", json!({"schema": ORDER}));
    let settings = Settings {
        format: Format::Protobuf,
        ..settings()
    };
    let (decoder, shelf) = decoder(settings, shelf);
    for (body, words) in [
        (&b"{}"[..], "too short"),
        (b"{\"a\": 1}", "0x7b"),
        (&[0, 0, 0, 0, 7, 84], "schema 7 is Avro"),
    ] {
        let why = why(text(&decoder, &event(body)).await);
        assert!(why.contains(words), "{why}");
    }
    assert_eq!(shelf.asked(), 1);
    // A tombstone.
    assert_eq!(decoder.decode(&event(b""), Duration::ZERO).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn a_compressed_message_is_read_by_what_it_says_of_itself() {
    let shelf = Shelf::default().with("/base/schemas/ids/7", json!({"schema": ORDER}));
    let (decoder, _) = decoder(settings(), shelf);
    let mut order = event(&zstd::encode_all(&[0_u8, 0, 0, 0, 7, 84][..], 1).unwrap());
    order
        .headers
        .push("content-encoding", HeaderValue::text("zstd"));
    assert_eq!(text(&decoder, &order).await.unwrap(), r#"{"id":42}"#);

    let plain = Settings {
        registry: None,
        ..settings()
    };
    let (decoder, _) = self::decoder(plain, Shelf::default());
    let mut note = event(&zstd::encode_all(&b"a note"[..], 1).unwrap());
    note.content_encoding = Some("zstd".into());
    let decoded = decoder
        .decode(&note, Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (&decoded.body[..], decoded.is_json),
        (&b"a note"[..], false)
    );
    let not_compressed = decoder.decode(&event(b"{}"), Duration::ZERO).await;
    assert_eq!(not_compressed, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn room_is_given_back_when_the_last_lets_go() {
    let room = Room::new(4096);
    let now = Instant::now();
    let whole = room.keep(vec![1; 4000].into(), now).await.unwrap();
    let part = whole.slice(..10);
    drop(whole);
    assert!(room.keep(vec![1; 10].into(), now).await.is_err());
    drop(part);
    let larger = room.keep(vec![1; 1 << 20].into(), now).await;
    assert!(
        larger.is_ok(),
        "one that is larger than all of it goes alone"
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_registry_when_the_source_is_stopped() {
    let (decoder, shelf) = decoder(settings(), Shelf::default());
    shelf.set_down(true);
    let waiting = tokio::spawn({
        let decoder = decoder.clone();
        async move {
            let order = event(&[0, 0, 0, 0, 7, 84]);
            decoder.decode(&order, Duration::from_secs(600)).await
        }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    decoder.leave();
    let ended = tokio::time::timeout(Duration::from_millis(1), waiting).await;
    let ended = ended.expect("at once").unwrap();
    assert!(matches!(ended, Err(Problem::Unavailable(_))), "{ended:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..60), known in any::<bool>(), compressed in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let mut bytes = body;
        if known {
            bytes.splice(0..0, [0, 0, 0, 0, 7]);
        }
        if compressed {
            bytes = zstd::encode_all(&bytes[..], 1).unwrap();
        }
        let shelf = Shelf::default().with("/base/schemas/ids/7", json!({"schema": ORDER}));
        let settings = Settings { coding: if compressed { Coding::Zstd } else { Coding::None }, ..settings() };
        let decoded = runtime.block_on(async {
            let (decoder, _) = decoder(settings, shelf);
            decoder.decode(&event(&bytes), Duration::from_secs(1)).await
        });
        if let Ok(Some(decoded)) = decoded {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&decoded.body).is_ok());
        }
    }
}
