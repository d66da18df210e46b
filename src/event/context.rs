//! Trace context: what a message says of the trace that it belongs to.
//!
//! `traceparent` and `tracestate` as <https://www.w3.org/TR/trace-context/> has them, `baggage` as
//! <https://www.w3.org/TR/baggage/>: headers of the message, or else attributes of a CloudEvent
//! (<https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/distributed-tracing.md>).
//! What is not valid is as if it were not there, so that whatever is handed on can be read, and what
//! is too long is cut between its members. Nothing is allocated for what is handed on as it came.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;

use super::{Event, HeaderValue, cloud};

pub const TRACEPARENT: &str = "traceparent";
pub const TRACESTATE: &str = "tracestate";
pub const BAGGAGE: &str = "baggage";

/// Members of `tracestate`; with more it is not valid.
const STATE_MEMBERS: usize = 32;
/// Bytes of `tracestate`; beyond them members are left out.
const STATE_BYTES: usize = 512;
/// Members of `tracestate` that are longer than this are left out first.
const LONG_MEMBER: usize = 128;
/// Bytes of `baggage`; beyond them members are left out.
const BAGGAGE_BYTES: usize = 8192;
/// How often one of the headers is read: a message may have any number of them.
const REPEATED: usize = 64;

/// A valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub flags: u8,
}

impl Parent {
    /// As the specification says: of a later version than 00 what is known of it, never `ff`, no
    /// upper case, no ids of zeros only.
    pub fn parse(text: &str) -> Option<Self> {
        const LENGTH: usize = 55;
        let bytes = text.as_bytes();
        let (known, rest) = bytes.split_at_checked(LENGTH)?;
        let lower = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-');
        if !known.iter().all(lower) || [2, 35, 52].iter().any(|at| known[*at] != b'-') {
            return None;
        }
        let mut version = [0];
        let (mut trace_id, mut span_id, mut flags) = ([0; 16], [0; 8], [0]);
        hex::decode_to_slice(&known[..2], &mut version).ok()?;
        hex::decode_to_slice(&known[3..35], &mut trace_id).ok()?;
        hex::decode_to_slice(&known[36..52], &mut span_id).ok()?;
        hex::decode_to_slice(&known[53..], &mut flags).ok()?;
        let ends = match version[0] {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        let is_some = trace_id != [0; 16] && span_id != [0; 8];
        (ends && is_some).then_some(Self {
            trace_id,
            span_id,
            flags: flags[0],
        })
    }

    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (hex::encode(self.trace_id), hex::encode(self.span_id));
        write!(f, "00-{trace}-{span}-{:02x}", self.flags)
    }
}

/// What of a message's context is valid, and within the limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext<'a> {
    pub traceparent: Option<Cow<'a, str>>,
    /// Never without `traceparent`.
    pub tracestate: Option<Cow<'a, str>>,
    pub baggage: Option<Cow<'a, str>>,
}

/// The values of one kind, in the order in which they came.
#[derive(Default)]
struct Given<'a>([Vec<&'a str>; 3]);

/// Whether a header may be one of them, by how it begins: an attribute of a CloudEvent begins with `ce`
/// or `cloudEvents`.
fn may_be(name: &str) -> bool {
    matches!(
        name.as_bytes().first(),
        Some(b't' | b'T' | b'b' | b'B' | b'c' | b'C')
    )
}

impl<'a> TraceContext<'a> {
    /// Whether there may be any: of most messages it is known at once that there is none.
    pub fn is_likely(event: &Event) -> bool {
        event.headers.iter().any(|(name, _)| may_be(name))
            || cloud::is_structured(event.content_type.as_deref())
    }

    /// Of the headers, else of the attributes of a CloudEvent, which say where the event began.
    pub fn of(event: &'a Event) -> Self {
        let mut plain = Given::default();
        let mut attributes = Given::default();
        for (name, value) in event.headers.iter() {
            if let Some(at) = index(name) {
                plain.take(at, value);
            } else if let Some(at) = cloud::attribute(name).and_then(index) {
                attributes.take(at, value);
            }
        }
        let mut found = plain.valid();
        if found.traceparent.is_none() || found.baggage.is_none() {
            let attributes = attributes.valid();
            if found.traceparent.is_none() {
                (found.traceparent, found.tracestate) =
                    (attributes.traceparent, attributes.tracestate);
            }
            found.baggage = found.baggage.or(attributes.baggage);
        }
        if found == Self::default() && cloud::is_structured(event.content_type.as_deref()) {
            found = Self::of_members(&event.body);
        }
        found
    }

    /// Of a CloudEvent that is all in its body.
    fn of_members(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Members {
            traceparent: Option<String>,
            tracestate: Option<String>,
            baggage: Option<String>,
        }
        let Ok(members) = serde_json::from_slice::<Members>(body) else {
            return Self::default();
        };
        let parent = members.traceparent.filter(|it| Parent::parse(it).is_some());
        let state = members.tracestate.filter(|_| parent.is_some());
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Self {
            tracestate: state.and_then(|it| tracestate(Cow::Borrowed(&it)).map(owned)),
            traceparent: parent.map(Cow::Owned),
            baggage: (members.baggage).and_then(|it| baggage(Cow::Borrowed(&it)).map(owned)),
        }
    }

    pub fn parent(&self) -> Option<Parent> {
        self.traceparent.as_deref().and_then(Parent::parse)
    }

    /// Names and values, of what there is.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            (TRACEPARENT, &self.traceparent),
            (TRACESTATE, &self.tracestate),
            (BAGGAGE, &self.baggage),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

impl<'a> Given<'a> {
    fn take(&mut self, at: usize, value: &'a HeaderValue) {
        let values = &mut self.0[at];
        if values.len() < REPEATED {
            // What is not text makes it invalid.
            values.push(value.as_str().unwrap_or("\0"));
        }
    }

    fn valid(self) -> TraceContext<'a> {
        let [parents, states, bags] = self.0;
        // Of two parents nobody can say which it is.
        let parent = match parents[..] {
            [one] => Some(one.trim()).filter(|one| Parent::parse(one).is_some()),
            _ => None,
        };
        TraceContext {
            tracestate: parent.and_then(|_| tracestate(joined(states)?)),
            traceparent: parent.map(Cow::Borrowed),
            baggage: joined(bags).and_then(baggage),
        }
    }
}

/// Which of the three a name is, in whatever case.
fn index(name: &str) -> Option<usize> {
    let (at, known) = match name.len() {
        11 => (0, TRACEPARENT),
        10 => (1, TRACESTATE),
        7 => (2, BAGGAGE),
        _ => return None,
    };
    name.eq_ignore_ascii_case(known).then_some(at)
}

/// A header that is there several times is one, as HTTP has it.
fn joined(values: Vec<&str>) -> Option<Cow<'_, str>> {
    match values[..] {
        [] => None,
        [one] => Some(Cow::Borrowed(one)),
        _ => Some(Cow::Owned(values.join(","))),
    }
}

fn members(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    let trimmed = text
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']));
    trimmed.filter(|member| !member.is_empty())
}

/// `text` as `tracestate`, if it is that, within its limits.
pub fn tracestate(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    let all: Vec<&str> = members(&text).take(STATE_MEMBERS + 1).collect();
    let keys: Option<Vec<&str>> = all.iter().map(|member| state_key(member)).collect();
    let keys = keys?;
    let is_twice = |at: usize| keys[..at].contains(&keys[at]);
    if all.is_empty() || all.len() > STATE_MEMBERS || (1..keys.len()).any(is_twice) {
        return None;
    }
    if text.len() <= STATE_BYTES {
        return Some(text);
    }
    let mut kept = all;
    let length = |kept: &[&str]| kept.iter().map(|member| member.len() + 1).sum::<usize>() - 1;
    while let Some(last) = kept.len().checked_sub(1)
        && length(&kept) > STATE_BYTES
    {
        let long = kept.iter().rposition(|member| member.len() > LONG_MEMBER);
        kept.remove(long.unwrap_or(last));
    }
    (!kept.is_empty()).then(|| Cow::Owned(kept.join(",")))
}

/// The key of a valid member.
fn state_key(member: &str) -> Option<&str> {
    let (key, value) = member.split_once('=')?;
    let begins = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let goes_on = |b: u8| begins(b) || b"_-*/@".contains(&b);
    let is_key = key.len() <= 256
        && key.bytes().next().is_some_and(begins)
        && key.bytes().all(goes_on)
        && key.matches('@').count() <= 1;
    let is_value = (1..=256).contains(&value.len())
        && value.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=');
    (is_key && is_value).then_some(key)
}

/// `text` as `baggage`, if a header can carry it, within its limit.
pub fn baggage(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    let visible = |b: u8| matches!(b, b' '..=b'~' | b'\t');
    if !text.bytes().all(visible) {
        return None;
    }
    let is_member = |member: &str| {
        let key = member.split_once('=').map(|(key, _)| key.trim());
        key.is_some_and(|key| !key.is_empty())
    };
    if text.len() <= BAGGAGE_BYTES && members(&text).all(is_member) {
        let has_one = members(&text).next().is_some();
        return has_one.then_some(text);
    }
    let mut kept = String::new();
    for member in members(&text).filter(|member| is_member(member)) {
        if kept.len() + 1 + member.len() > BAGGAGE_BYTES {
            break;
        }
        if !kept.is_empty() {
            kept.push(',');
        }
        kept.push_str(member);
    }
    (!kept.is_empty()).then_some(Cow::Owned(kept))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::event::{EventId, Headers, Origin, Place};

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn event(headers: &[(&str, &str)], content_type: &str, body: &str) -> Event {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), HeaderValue::text(*value)));
        Event {
            id: EventId::kept("e1").unwrap(),
            topic: "orders".into(),
            kind: "orders".into(),
            source: "local".into(),
            tenant: None,
            published_at: None,
            content_type: Some(content_type.into()),
            content_encoding: None,
            key: None,
            headers: Headers(headers.collect()),
            properties: Vec::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            origin: Origin {
                broker: "here".into(),
                place: Place::Embedded {
                    topic: "orders".into(),
                    sequence: 1,
                },
            },
        }
    }

    /// The three as they are handed on.
    fn handed_on(headers: &[(&str, &str)]) -> [Option<String>; 3] {
        let event = event(headers, "application/json", "{}");
        let context = TraceContext::of(&event);
        let owned = |value: Option<Cow<'_, str>>| value.map(Cow::into_owned);
        [
            owned(context.traceparent),
            owned(context.tracestate),
            owned(context.baggage),
        ]
    }

    #[test]
    fn a_parent_is_read_and_written() {
        let parent = Parent::parse(PARENT).unwrap();
        assert!(parent.is_sampled());
        assert_eq!(parent.to_string(), PARENT);
        let later = format!("cc{}-what-comes-later", &PARENT[2..]);
        assert_eq!(Parent::parse(&later), Some(parent));
    }

    #[test]
    fn a_parent_that_is_not_valid_is_none() {
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.x",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319\u{e9}-b7ad6b7169203331-0",
        ] {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
            let given = [
                ("traceparent", wrong),
                ("tracestate", "a=1"),
                ("baggage", "b=2"),
            ];
            assert_eq!(handed_on(&given), [None, None, Some("b=2".to_owned())]);
        }
    }

    #[test]
    fn names_are_found_in_any_case_and_second_parents_are_nobodys() {
        let text = |text: &str| Some(text.to_owned());
        let given = [
            ("Traceparent", PARENT),
            ("TraceState", "a=1"),
            ("tracestate", "b=2"),
            ("Baggage", "k=v;p"),
        ];
        assert_eq!(
            handed_on(&given),
            [text(PARENT), text("a=1,b=2"), text("k=v;p")]
        );
        let twice = [("traceparent", PARENT), ("traceparent", PARENT)];
        assert_eq!(handed_on(&twice), [None, None, None]);
        assert_eq!(handed_on(&[("tracestate", "a=1")]), [None, None, None]);
    }

    #[test]
    fn attributes_of_a_cloudevent_are_second_to_headers() {
        let other = PARENT.replace("b7ad", "c8be");
        let of_event = [
            ("ce_traceparent", &*other),
            ("cloudEvents:tracestate", "a=1"),
        ];
        assert_eq!(
            handed_on(&of_event),
            [Some(other.clone()), Some("a=1".into()), None]
        );
        let both = [of_event[0], of_event[1], ("traceparent", PARENT)];
        assert_eq!(handed_on(&both), [Some(PARENT.to_owned()), None, None]);

        let body = format!(r#"{{"id":"1","traceparent":"{PARENT}","tracestate":"a=1"}}"#);
        let whole = event(&[], "application/cloudevents+json", &body);
        let context = TraceContext::of(&whole);
        let fields: Vec<_> = context.fields().collect();
        assert_eq!(fields, [("traceparent", PARENT), ("tracestate", "a=1")]);
        let no_event = event(&[], "application/json", &body);
        assert_eq!(TraceContext::of(&no_event), TraceContext::default());
    }

    #[test]
    fn a_state_is_cut_between_members_the_long_ones_first() {
        let state = |text: &str| tracestate(Cow::Borrowed(text)).map(Cow::into_owned);
        let long = format!("long={}", "x".repeat(200));
        let short = |count: usize| (0..count).map(|n| format!("k{n}={}", "y".repeat(40)));
        let all: Vec<_> = short(3).chain([long]).chain(short(9).skip(3)).collect();
        let cut = state(&all.join(",")).unwrap();
        assert_eq!(cut, short(9).collect::<Vec<_>>().join(","));
        let all: Vec<_> = short(32).collect();
        let cut = state(&all.join(",")).unwrap();
        assert!(cut.len() <= STATE_BYTES && all.join(",").starts_with(&cut) && cut.len() > 450);
        let many: Vec<_> = (0..33).map(|n| format!("k{n}=1")).collect();
        assert!(state(&many[1..].join(",")).is_some());
        assert_eq!(state(&many.join(",")), None);
        for wrong in [
            "", " , ", "a", "A=1", "a=", "a=1,a=2", "a=b=c", "a@b@c=1", "a=\u{e9}",
        ] {
            assert_eq!(state(wrong), None, "{wrong}");
        }
        assert_eq!(state("t@v=1 2, b=x").as_deref(), Some("t@v=1 2, b=x"));
    }

    #[test]
    fn baggage_is_cut_between_members() {
        let bag = |text: &str| baggage(Cow::Borrowed(text)).map(Cow::into_owned);
        let all: Vec<_> = (0..100)
            .map(|n| format!("k{n}={}", "z".repeat(90)))
            .collect();
        let cut = bag(&all.join(",")).unwrap();
        assert!(cut.len() <= BAGGAGE_BYTES && cut.len() > BAGGAGE_BYTES - 200);
        assert!(all.join(",").starts_with(&cut) && cut.ends_with('z'));
        assert_eq!(bag("a=1, nothing ,b=2").as_deref(), Some("a=1,b=2"));
        for wrong in ["", ",", "a", "=1", "a=\u{e9}", "a=1\r\nx: 1"] {
            assert_eq!(bag(wrong), None, "{wrong}");
        }
        assert_eq!(bag(&format!("a={}", "x".repeat(BAGGAGE_BYTES))), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_what_is_handed_on_is_valid(
            parent in "\\PC{0,60}|0[0-9a-f]-[0-9a-f]{32}-[0-9a-f]{16}-0[01]",
            state in "\\PC{0,600}|([a-z]{1,9}=[a-z]{1,200},){0,40}",
            bag in "\\PC{0,100}|([a-z]{1,9}=[a-z]{1,900},){0,40}",
        ) {
            let given = [("traceparent", &*parent), ("tracestate", &*state), ("baggage", &*bag)];
            let [parent, state, bag] = handed_on(&given);
            prop_assert!(parent.as_deref().is_none_or(|it| Parent::parse(it).is_some()));
            prop_assert!(parent.is_some() || state.is_none());
            prop_assert!(state.is_none_or(|it| it.len() <= 512 && it.split(',').count() <= 33));
            prop_assert!(bag.is_none_or(|it| it.len() <= 8192 && it.is_ascii()));
        }
    }
}
