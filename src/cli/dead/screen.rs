//! Letters, groups and one letter whole, as text for people.
//!
//! Times are UTC. What comes from services and receivers is shown without control characters, which
//! could otherwise move the cursor or rewrite what stands above.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde_json::Value;

use crate::operations::dead::{Groups, Page, Shown};

/// Of an id in a table: enough to name one, and to be given to `dead show`.
const ID_CHARS: usize = 16;
/// Of a response in a table.
const EXCERPT_CHARS: usize = 60;
/// Of a body that is text.
const BODY_BYTES: usize = 16 << 10;
/// Of a body that is not.
const HEX_BYTES: usize = 256;
/// Longest body that is written into the curl command itself.
const INLINE_BYTES: usize = 1 << 10;

pub fn page(page: &Page) -> String {
    if page.letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut table = table([
        "DIED",
        "SUBSCRIPTION",
        "REASON",
        "LAST",
        "TOPIC",
        "EVENT",
        "ID",
    ]);
    for letter in &page.letters {
        table.add_row([
            time(letter.dead_at),
            named(&letter.subscription),
            letter.reason.clone(),
            letter.last_result.clone().unwrap_or_else(|| "-".into()),
            plain(&letter.topic),
            short(&letter.event_id, 24),
            short(&letter.id, ID_CHARS),
        ]);
    }
    let mut text = finished(&table);
    if page.next_cursor.is_some() {
        let shown = page.letters.len();
        let _ = writeln!(
            text,
            "the oldest {shown}; there are more: --limit, or a filter"
        );
    }
    text
}

pub fn groups(groups: &Groups) -> String {
    if groups.groups.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut table = table([
        "COUNT",
        "SUBSCRIPTION",
        "REASON",
        "LAST",
        "FIRST DIED",
        "LAST DIED",
        "EXAMPLE",
        "ANSWER",
    ]);
    for group in &groups.groups {
        table.add_row([
            group.count.to_string(),
            named(&group.subscription),
            group.reason.clone(),
            group.last_result.clone().unwrap_or_else(|| "-".into()),
            time(group.first),
            time(group.last),
            short(&group.example, ID_CHARS),
            short(group.excerpt.as_deref().unwrap_or_default(), EXCERPT_CHARS),
        ]);
    }
    let mut text = finished(&table);
    let (count, causes) = (groups.count, groups.groups.len());
    let letters = if count == 1 { "letter" } else { "letters" };
    let many = if causes == 1 { "cause" } else { "causes" };
    let _ = writeln!(text, "{count} {letters}, {causes} {many}");
    if groups.ungrouped > 0 {
        let _ = writeln!(text, "{} of further causes are not shown", groups.ungrouped);
    }
    text
}

pub fn notes(notes: &[String]) {
    for note in notes {
        eprintln!("{note}");
    }
}

pub fn letter(letter: &Shown) -> String {
    let mut text = format!("Letter {}\n", plain(&letter.id));
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<13} {}", plain(value));
    };
    line("subscription", &named(&letter.subscription));
    if let Some(receiver) = &letter.receiver {
        line(
            "receiver",
            &format!("{} {} ({})", receiver.method, receiver.url, receiver.state),
        );
    } else if !letter.subscription.is_empty() {
        line("receiver", "gone: there is no such subscription any more");
    }
    if let Some(why) = letter.unfit.as_ref().filter(|_| letter.receiver.is_some()) {
        line("not sent", why);
    }
    line("reason", &letter.reason);
    line("event", &letter.event_id);
    line("type", &letter.r#type);
    line("topic", &letter.topic);
    line("source", &letter.source);
    line("origin", &letter.origin.to_string());
    if letter.broker != *letter.origin.broker {
        line("lies on", &letter.broker);
    }
    if let Some(key) = &letter.key {
        line("key", &value(key));
    }
    if letter.generation > 0 {
        line("sent again", &format!("{} times before", letter.generation));
    }
    if let Some(of) = &letter.replay_of {
        line("made of", &format!("letter {of}, with another body"));
    }
    text += "\nHistory\n";
    text += &history(letter);
    if !letter.headers.is_empty() {
        text += "\nHeaders\n";
        for header in &letter.headers {
            let _ = writeln!(text, "  {}: {}", plain(&header.name), value(&header.value));
        }
    }
    text += &body(letter);
    if let Some(curl) = curl(letter) {
        let _ = write!(text, "\nBy hand\n{curl}");
    }
    text
}

fn history(letter: &Shown) -> String {
    let mut steps: Vec<(Timestamp, String)> = Vec::new();
    if let Some(at) = letter.published_at {
        steps.push((at, "published".into()));
    }
    steps.push((letter.taken_at, "taken".into()));
    let answer = match (&letter.last_result, &letter.last_excerpt) {
        (Some(result), Some(excerpt)) if !excerpt.is_empty() => format!(": {result}, {excerpt}"),
        (Some(result), _) => format!(": {result}"),
        (None, _) => String::new(),
    };
    let last = letter.last_attempt_at;
    if let Some(at) = letter.first_attempt_at.filter(|at| Some(*at) != last) {
        steps.push((at, "attempt 1".into()));
    }
    if let Some(at) = last {
        steps.push((at, format!("attempt {}{answer}", letter.attempts)));
    }
    steps.push((letter.dead_at, format!("dead: {}", letter.reason)));
    let mut text = String::new();
    for (at, what) in steps {
        let _ = writeln!(text, "  {}  {}", time(at), plain(&what));
    }
    text
}

fn body(letter: &Shown) -> String {
    let size = letter.size_bytes;
    let kind = letter.content_type.as_deref().unwrap_or("no media type");
    let mut text = format!("\nBody ({size} bytes, {})\n", plain(kind));
    let Some(bytes) = letter.body() else {
        text += "  not here: it was too large for the broker; the origin says where it was\n";
        return text;
    };
    match std::str::from_utf8(&bytes) {
        Ok(written) => {
            let pretty = serde_json::from_slice::<Value>(&bytes)
                .ok()
                .and_then(|json| serde_json::to_string_pretty(&json).ok());
            let whole = pretty.as_deref().unwrap_or(written);
            let end = whole.floor_char_boundary(BODY_BYTES);
            for line in whole[..end].lines() {
                let _ = writeln!(text, "  {}", plain(line));
            }
            if end < whole.len() {
                let _ = writeln!(text, "  ... --body prints all of it");
            }
        }
        Err(_) => {
            let start = &bytes[..bytes.len().min(HEX_BYTES)];
            for chunk in start.chunks(16) {
                let hex: Vec<_> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
                let _ = writeln!(text, "  {}", hex.join(" "));
            }
            if start.len() < bytes.len() {
                let _ = writeln!(text, "  ... --body prints all of it");
            }
        }
    }
    text
}

/// The request as a command; `None` where nobody is there to receive it, or there is no body.
fn curl(letter: &Shown) -> Option<String> {
    let receiver = letter.receiver.as_ref()?;
    let bytes = letter.body()?;
    let mut text = format!(
        "  curl -X {} {}",
        receiver.method,
        quoted(&format!("{}/PATH", receiver.url))
    );
    let mut header = |name: &str, value: &str| {
        let _ = write!(
            text,
            " \\\n    -H {}",
            quoted(&format!("{name}: {}", plain(value)))
        );
    };
    if let Some(kind) = &letter.content_type {
        header("content-type", kind);
    }
    header("webhook-id", &letter.event_id);
    let inline = std::str::from_utf8(&bytes).ok().filter(|text| {
        text.len() <= INLINE_BYTES && !text.contains(|c: char| c.is_control() && c != '\n')
    });
    let id = short(&letter.id, ID_CHARS);
    match inline {
        Some(inline) => {
            let _ = writeln!(text, " \\\n    --data-binary {}", quoted(inline));
        }
        None => {
            let _ = writeln!(
                text,
                " \\\n    --data-binary @body   # hookbridge dead show {id} --body > body"
            );
        }
    }
    text += "  (the path is not shown, since it is often a credential; signature and timestamp are missing)\n";
    Some(text)
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn table<const N: usize>(headers: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headers);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// Without the space around the outer columns.
fn finished(table: &Table) -> String {
    let mut text = String::new();
    for line in table.trim_fmt().lines() {
        let _ = writeln!(
            text,
            "{}",
            line.strip_prefix(' ').unwrap_or(line).trim_end()
        );
    }
    text
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn named(subscription: &str) -> String {
    match subscription {
        "" => "(none)".into(),
        name => plain(name),
    }
}

fn short(text: &str, most: usize) -> String {
    let text = plain(text);
    match text.char_indices().nth(most) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

fn value(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        other => plain(&other.to_string()),
    }
}
