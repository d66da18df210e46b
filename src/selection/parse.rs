//! Reading a filter. The first mistake is the error: it says where it is, and what was meant perhaps.

use std::fmt;

use jiff::{Timestamp, ToSpan as _};

use super::condition::{DataTest, Sign, Text};
use super::{Name, Status, Term, Test, is_digits, when};
use crate::attempt::ErrorClass;
use crate::delivery::Reason;

/// Longest filter, in bytes.
const MAX_BYTES: usize = 4_096;
/// Terms in one filter.
const MAX_TERMS: usize = 100;

/// What a term may begin with; `data` is followed by a path.
pub const KEYS: [&str; 11] = [
    "subscription",
    "reason",
    "type",
    "topic",
    "status",
    "since",
    "until",
    "id",
    "data.<path>",
    "source",
    "broker",
];

/// Why a filter cannot be read. Shown, it is several lines: the filter, a caret below the place, and
/// what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    text: String,
    /// In characters, from 0.
    at: usize,
    width: usize,
    message: String,
    help: Option<String>,
}

impl Mistake {
    /// The first wrong character, counted from 1.
    pub fn column(&self) -> usize {
        self.at + 1
    }

    pub fn message(&self) -> &str {
        &self.message
    }
}

impl std::error::Error for Mistake {}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (column, gap) = (self.column(), " ".repeat(self.at));
        let carets = "^".repeat(self.width.max(1));
        write!(
            f,
            "the filter cannot be read at column {column}\n  {}\n  {gap}{carets} {}",
            self.text, self.message
        )?;
        match &self.help {
            Some(help) => write!(f, "\n  {help}"),
            None => Ok(()),
        }
    }
}

/// A word of the filter with its place.
struct Word<'a> {
    text: &'a str,
    /// In bytes.
    start: usize,
}

/// A value as it was written.
struct Value<'a> {
    written: &'a str,
    /// Without the quotes, if it has any.
    unquoted: Option<String>,
    start: usize,
}

pub(super) fn terms(text: &str, now: Timestamp) -> Result<Vec<Term>, Mistake> {
    let reading = Reading { text, now };
    if text.len() > MAX_BYTES {
        return Err(reading.wrong(
            (0, 1),
            format!("a filter is at most {MAX_BYTES} bytes long"),
            None,
        ));
    }
    let mut terms: Vec<Term> = Vec::new();
    let words = reading.words()?;
    if words.len() > MAX_TERMS {
        return Err(reading.wrong(
            (words[MAX_TERMS].start, 1),
            format!("a filter has at most {MAX_TERMS} terms"),
            None,
        ));
    }
    for word in words {
        let term = reading.term(&word)?;
        if !terms.iter_mut().any(|earlier| earlier.takes_in(&term)) {
            if term.is_second_end(&terms) {
                return Err(reading.wrong(
                    (word.start, word.text.len()),
                    "this is given twice".into(),
                    None,
                ));
            }
            terms.push(term);
        }
    }
    Ok(terms)
}

impl Term {
    /// Takes in the values of a later term of the same key. Negations and comparisons stand for
    /// themselves: all of them have to hold.
    fn takes_in(&mut self, later: &Term) -> bool {
        if self.negated || later.negated {
            return false;
        }
        let is_comparison = |tests: &[DataTest]| matches!(tests, [DataTest::Compare(..)]);
        match (&mut self.test, &later.test) {
            (Test::Name(key, values), Test::Name(other, more)) if key == other => {
                values.extend_from_slice(more);
            }
            (Test::Status(values), Test::Status(more)) => values.extend_from_slice(more),
            (Test::Id(values), Test::Id(more)) => values.extend_from_slice(more),
            (Test::Data(path, values), Test::Data(other, more))
                if path == other && !is_comparison(values) && !is_comparison(more) =>
            {
                values.extend_from_slice(more);
            }
            _ => return false,
        }
        true
    }

    /// A second `since`, or a second `until`: one of them would mean nothing.
    fn is_second_end(&self, earlier: &[Term]) -> bool {
        earlier.iter().any(|other| {
            matches!(
                (&self.test, &other.test),
                (Test::Since(_), Test::Since(_)) | (Test::Until(_), Test::Until(_))
            )
        })
    }
}

struct Reading<'a> {
    text: &'a str,
    now: Timestamp,
}

impl<'a> Reading<'a> {
    /// Words are parted by white space outside quotes.
    fn words(&self) -> Result<Vec<Word<'a>>, Mistake> {
        let mut words = Vec::new();
        let mut start = None;
        let (mut quote, mut escaped) = (None, false);
        for (at, c) in self.text.char_indices() {
            match (quote, c) {
                (Some(_), _) if escaped => escaped = false,
                (Some(_), '\\') => escaped = true,
                (Some(_), '"') => quote = None,
                (Some(_), _) => {}
                (None, c) if c.is_whitespace() => {
                    if let Some(start) = start.take() {
                        let text = &self.text[start..at];
                        words.push(Word { text, start });
                    }
                }
                (None, c) => {
                    start.get_or_insert(at);
                    if c == '"' {
                        quote = Some(at);
                    }
                }
            }
        }
        if let Some(at) = quote {
            return Err(self.wrong((at, 1), "this quote is not closed".into(), None));
        }
        if let Some(start) = start {
            let text = &self.text[start..];
            words.push(Word { text, start });
        }
        Ok(words)
    }

    fn term(&self, word: &Word<'a>) -> Result<Term, Mistake> {
        let negated = word.text.starts_with('-');
        let body = &word.text[usize::from(negated)..];
        let start = word.start + usize::from(negated);
        let Some((key, written)) = body.split_once(':').filter(|_| !body.starts_with('"')) else {
            return Err(self.no_term(body, start));
        };
        let value = self.value(written, start + key.len() + 1)?;
        let test = self.test(key, start, &value, negated)?;
        Ok(Term { negated, test })
    }

    fn test(
        &self,
        key: &str,
        start: usize,
        value: &Value<'_>,
        negated: bool,
    ) -> Result<Test, Mistake> {
        let name = |name| Ok(Test::Name(name, vec![value.text()]));
        match key {
            "subscription" | "sub" => name(Name::Subscription),
            "type" => name(Name::Type),
            "topic" => name(Name::Topic),
            "source" => name(Name::Source),
            "broker" => name(Name::Broker),
            "reason" => {
                self.check_reason(value)?;
                name(Name::Reason)
            }
            "id" => Ok(Test::Id(vec![value.text()])),
            "status" => self.status(value).map(|status| Test::Status(vec![status])),
            "since" | "until" if negated => Err(self.wrong(
                (start - 1, 1),
                format!("`{key}` is not negated"),
                Some(format!(
                    "`since` is from a time on, `until` is before it: use {}",
                    if key == "since" { "`until`" } else { "`since`" }
                )),
            )),
            "since" => self.time(value).map(Test::Since),
            "until" => self.time(value).map(Test::Until),
            _ if key.starts_with("data.") => {
                let path: Vec<_> = key[5..].split('.').map(str::to_owned).collect();
                if path.iter().any(String::is_empty) {
                    let help = "a path is names with dots between them: `data.customer.id:42`";
                    return Err(self.wrong(
                        (start, key.len()),
                        format!("`{key}` has an empty step"),
                        Some(help.into()),
                    ));
                }
                Ok(Test::Data(path, vec![self.data(value)?]))
            }
            "data" => Err(self.wrong(
                (start, key.len()),
                "`data` needs a path into the body".into(),
                Some("for instance `data.total:>=100`".into()),
            )),
            _ => Err(self.unknown_key(key, start)),
        }
    }

    /// The value with its quotes taken off.
    fn value(&self, written: &'a str, start: usize) -> Result<Value<'a>, Mistake> {
        if written.is_empty() {
            return Err(self.wrong(
                (start.saturating_sub(1), 1),
                "there is no value after this".into(),
                Some("text with spaces needs quotes: `topic:\"a b\"`".into()),
            ));
        }
        let mut value = Value {
            written,
            unquoted: None,
            start,
        };
        let Some(inside) = written.strip_prefix('"') else {
            if let Some(at) = written.find('"') {
                return Err(self.wrong(
                    (start + at, 1),
                    "a quote in the middle of a value".into(),
                    Some("quotes go around the whole value, `\\\"` is a quote inside".into()),
                ));
            }
            return Ok(value);
        };
        let (mut text, mut escaped) = (String::new(), false);
        for (at, c) in inside.char_indices() {
            match c {
                _ if escaped => {
                    text.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' if at + 1 == inside.len() => break,
                '"' => {
                    return Err(self.wrong(
                        (start + at + 2, inside.len() - at - 1),
                        "this follows a closed quote".into(),
                        Some("put a space between two terms".into()),
                    ));
                }
                c => text.push(c),
            }
        }
        value.unquoted = Some(text);
        Ok(value)
    }

    fn check_reason(&self, value: &Value<'_>) -> Result<(), Mistake> {
        let text = value.text();
        if Reason::ALL
            .iter()
            .any(|reason| text.matches(reason.as_str()))
        {
            return Ok(());
        }
        let names = Reason::ALL.map(Reason::as_str);
        let help = suggestion(value.written, &names)
            .unwrap_or_else(|| format!("reasons are {}", names.join(", ")));
        Err(self.wrong(
            value.place(),
            format!("there is no reason `{}`", value.written),
            Some(help),
        ))
    }

    fn status(&self, value: &Value<'_>) -> Result<Status, Mistake> {
        let text = value.written.to_ascii_lowercase();
        let classes = ErrorClass::ALL.map(ErrorClass::as_str);
        let bytes = text.as_bytes();
        if text == "none" {
            return Ok(Status::None);
        }
        if classes.contains(&&*text) || ["unsendable", "unrenderable"].contains(&&*text) {
            return Ok(Status::Is(text));
        }
        if bytes.len() == 3 && (b'1'..=b'5').contains(&bytes[0]) {
            if &bytes[1..] == b"xx" {
                return Ok(Status::Class(bytes[0]));
            }
            if is_digits(&text) {
                return Ok(Status::Is(text));
            }
        }
        let words = [&classes[..], &["unsendable", "unrenderable", "none"]].concat();
        let help = suggestion(&text, &words)
            .unwrap_or_else(|| format!("a status is `503`, `5xx` or one of {}", words.join(", ")));
        Err(self.wrong(
            value.place(),
            format!("`{}` is no status", value.written),
            Some(help),
        ))
    }

    /// A time, or an age counted back from now.
    fn time(&self, value: &Value<'_>) -> Result<Timestamp, Mistake> {
        let text = value.unquoted.as_deref().unwrap_or(value.written);
        when::parse(text, self.now).map_err(|_| {
            let example = self.now.checked_sub(2.hours()).unwrap_or(self.now);
            let example = example.strftime("%Y-%m-%dT%H:%M:%SZ");
            self.wrong(
                value.place(),
                format!("`{}` is neither a time nor an age", value.written),
                Some(format!("for instance `2h`, `3d` or `{example}`")),
            )
        })
    }

    fn data(&self, value: &Value<'_>) -> Result<DataTest, Mistake> {
        if let Some(text) = &value.unquoted {
            return Ok(DataTest::Text(text.clone()));
        }
        let signed = Sign::ALL
            .into_iter()
            .find_map(|(sign, means)| Some((means, sign, value.written.strip_prefix(sign)?)));
        match signed {
            Some((_, sign, "")) => Err(self.wrong(
                value.place(),
                format!("there is nothing after `{sign}`"),
                Some("for instance `data.total:>=100`".into()),
            )),
            Some((sign, _, text)) => Ok(DataTest::Compare(sign, text.to_owned())),
            None if value.written == "*" => Ok(DataTest::There),
            None => Ok(DataTest::Loose(Text::written(value.written))),
        }
    }

    fn no_term(&self, word: &str, start: usize) -> Mistake {
        let bare = word.trim_matches('"');
        let is_id = ["dlv_", "evt_", "msg_", "id_"]
            .iter()
            .any(|prefix| bare.starts_with(prefix));
        let key = if is_id { "id" } else { "subscription" };
        let help = if KEYS.contains(&bare) {
            format!("a value is missing: `{bare}:…`").replace('…', "...")
        } else {
            format!("did you mean `{key}:{word}`?")
        };
        self.wrong(
            (start, word.len()),
            "a term is a key, a colon and a value".into(),
            Some(help),
        )
    }

    fn unknown_key(&self, key: &str, start: usize) -> Mistake {
        let help =
            suggestion(key, &KEYS).unwrap_or_else(|| format!("keys are {}", KEYS.join(", ")));
        self.wrong(
            (start, key.len().max(1)),
            format!("there is no key `{key}`"),
            Some(help),
        )
    }

    /// `place` is start and length, in bytes.
    fn wrong(&self, place: (usize, usize), message: String, help: Option<String>) -> Mistake {
        let (start, length) = place;
        let characters = |to: usize| {
            let to = to.min(self.text.len());
            self.text.char_indices().filter(|(at, _)| *at < to).count()
        };
        let at = characters(start);
        let width = characters(start + length).saturating_sub(at);
        // Line breaks and tabs would move the caret.
        let text = self.text.replace(|c: char| c.is_control(), " ");
        let most = at + width + 40;
        let text = match text.char_indices().nth(most) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        };
        Mistake {
            text,
            at,
            width,
            message,
            help,
        }
    }
}

impl Value<'_> {
    fn text(&self) -> Text {
        match &self.unquoted {
            Some(text) => Text::Whole(text.clone()),
            None => Text::written(self.written),
        }
    }

    fn place(&self) -> (usize, usize) {
        (self.start, self.written.len())
    }
}

fn suggestion(written: &str, known: &[&str]) -> Option<String> {
    let near = |name: &&&str| strsim::osa_distance(written, name) <= 2.min(written.len() / 2);
    let nearest = known
        .iter()
        .filter(near)
        .min_by_key(|name| strsim::osa_distance(written, name));
    let begun = || {
        let longer = |name: &&&str| written.len() >= 3 && name.starts_with(written);
        known.iter().find(longer)
    };
    nearest
        .or_else(begun)
        .map(|name| format!("did you mean `{name}`?"))
}
