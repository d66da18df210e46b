//! Logs: one line per event to stderr, in words or as JSON.
//!
//! Logging never holds a delivery up: lines go through a bounded channel to a thread that writes
//! them, and when stderr takes no more (a stopped pager, a full pipe) further lines are dropped and
//! counted ([`lost_lines`], the metric `hookbridge_log_lines_lost_total`). What is logged, and that
//! nothing secret is, is the business of those who log.

pub mod otlp;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Human,
    Json,
}

/// What is logged when nobody says anything.
const DEFAULT: &str = "info";
/// Libraries that talk much, quiet unless they are named.
const QUIET: &str = "lapin=off,rdkafka=warn,librdkafka=warn,rustls_platform_verifier=off";
/// Lines waiting to be written.
const WAITING: usize = 1_024;
/// A longer line is cut off.
const LONGEST_LINE_BYTES: usize = 16 << 10;
/// How long the last lines may take at the end.
const FLUSH: Duration = Duration::from_secs(1);

static LOST: AtomicU64 = AtomicU64::new(0);

/// What is logged by this process, once that is set up.
static LOGGED: OnceLock<Mutex<Logged>> = OnceLock::new();

struct Logged {
    filter: String,
    handle: reload::Handle<EnvFilter, Registry>,
}

/// Lines that were not written because stderr was too slow or gone.
pub fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("bad log filter `{filter}` ({from})")]
    Filter {
        filter: String,
        from: &'static str,
        source: ParseError,
    },
    #[error("cannot start the thread that writes logs")]
    Thread(#[source] io::Error),
    #[error("logging is set up already")]
    Twice(#[source] TryInitError),
}

/// Sets logging up for the process. `filter` goes before `HOOKBRIDGE_LOG`, that before `RUST_LOG`.
/// The lines still waiting are written when the guard is dropped.
#[must_use = "dropping the guard writes the last lines"]
pub fn init(format: Format, filter: Option<&str>) -> Result<Guard, InitError> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let asked = [
        (filter.map(str::to_owned), "the command line"),
        (variable("HOOKBRIDGE_LOG"), "HOOKBRIDGE_LOG"),
        (variable("RUST_LOG"), "RUST_LOG"),
    ];
    let asked = asked
        .into_iter()
        .find_map(|(filter, from)| Some((filter?, from)));
    let (filter, from) = asked.unwrap_or((DEFAULT.to_owned(), "the default"));
    let (filter, handle) = {
        let (layer, handle) = reload::Layer::new(parse(filter.clone(), from)?);
        (layer, Logged { filter, handle })
    };
    let (lines, guard) = start(io::stderr()).map_err(InitError::Thread)?;
    let colours = io::stderr().is_terminal() && variable("NO_COLOR").is_none();
    subscriber(format, filter, colours, lines)
        .try_init()
        .map_err(InitError::Twice)?;
    // A process that comes here twice has failed above.
    let _ = LOGGED.set(Mutex::new(handle));
    Ok(guard)
}

/// What is logged, as it was asked for; empty where nothing is.
pub fn filter() -> String {
    LOGGED.get().map_or_else(String::new, |logged| {
        let logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.filter.clone()
    })
}

/// Why something else is not logged.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("`{filter}` is no log filter: {why}")]
    Filter { filter: String, why: String },
    #[error("nothing is logged by this process")]
    Off,
}

/// Has something else logged from now on, until the process ends.
pub fn set_filter(filter: &str) -> Result<(), SetError> {
    let wrong = |why: String| SetError::Filter {
        filter: filter.to_owned(),
        why,
    };
    if filter.trim().is_empty() {
        return Err(wrong("it is empty; `off` logs nothing".to_owned()));
    }
    let parsed = parse(filter.to_owned(), "the API").map_err(|error| match error {
        InitError::Filter { source, .. } => wrong(source.to_string()),
        other => wrong(other.to_string()),
    })?;
    let logged = LOGGED.get().ok_or(SetError::Off)?;
    let mut logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
    // The subscriber lives as long as the process.
    logged.handle.reload(parsed).map_err(|_| SetError::Off)?;
    filter.clone_into(&mut logged.filter);
    Ok(())
}

fn parse(filter: String, from: &'static str) -> Result<EnvFilter, InitError> {
    EnvFilter::builder()
        .parse(format!("{QUIET},{filter}"))
        .map_err(|source| InitError::Filter {
            filter,
            from,
            source,
        })
}

fn subscriber(
    format: Format,
    filter: impl Layer<Registry> + Send + Sync + 'static,
    colours: bool,
    lines: Lines,
) -> Box<dyn Subscriber + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_writer(lines);
    let registry = Registry::default().with(filter);
    match format {
        Format::Human => Box::new(registry.with(layer.with_ansi(colours))),
        Format::Json => Box::new(registry.with(layer.with_ansi(false).json().flatten_event(true))),
    }
}

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Where the subscriber writes: hands lines to the thread, or counts them as lost.
#[derive(Clone)]
struct Lines(SyncSender<Message>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut kept = line[..line.len().min(LONGEST_LINE_BYTES)].to_vec();
        if kept.len() < line.len() {
            kept.push(b'\n');
        }
        if self.0.try_send(Message::Line(kept)).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Writes what still waits when it is dropped, for at most a second.
pub struct Guard(SyncSender<Message>);

impl Drop for Guard {
    fn drop(&mut self) {
        let (written, done) = sync_channel(1);
        let until = Instant::now() + FLUSH;
        let mut flush = Message::Flush(written);
        while let Err(TrySendError::Full(back)) = self.0.try_send(flush) {
            if Instant::now() >= until {
                return;
            }
            flush = back;
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = done.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn start(to: impl Write + Send + 'static) -> io::Result<(Lines, Guard)> {
    let (lines, waiting) = sync_channel(WAITING);
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write_all(&waiting, to))?;
    Ok((Lines(lines.clone()), Guard(lines)))
}

fn write_all(waiting: &Receiver<Message>, mut to: impl Write) {
    for message in waiting {
        match message {
            Message::Line(line) => {
                if to.write_all(&line).is_err() {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
            }
            Message::Flush(written) => {
                let _ = to.flush();
                let _ = written.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, filter: &str, log: impl FnOnce()) -> String {
        let page = Page::default();
        let (lines, guard) = start(page.clone()).unwrap();
        let filter = parse(filter.to_owned(), "a test").unwrap();
        tracing::subscriber::with_default(subscriber(format, filter, false, lines), log);
        drop(guard);
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn lines_are_written_before_the_guard_is_gone() {
        let text = logged(Format::Human, DEFAULT, || {
            for number in 0..100 {
                tracing::info!(number, "said");
            }
            tracing::debug!("not said");
        });
        assert_eq!(text.lines().count(), 100);
        assert!(text.lines().last().unwrap().contains("number=99"));
    }

    #[test]
    fn json_has_the_fields_of_an_event_at_its_top() {
        let text = logged(Format::Json, DEFAULT, || {
            tracing::warn!(subscription = "crm", "not delivered");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["subscription"], "crm");
        assert_eq!(line["message"], "not delivered");
        assert_eq!(line["level"], "WARN");
    }

    #[test]
    fn talkative_libraries_are_quiet_unless_they_are_named() {
        let say = || tracing::info!(target: "lapin", "hello");
        assert_eq!(logged(Format::Human, "debug", say), "");
        assert!(logged(Format::Human, "lapin=info", say).contains("hello"));
    }

    #[test]
    fn a_blocked_stderr_loses_lines_and_holds_nobody_up() {
        struct Blocked(Receiver<()>);
        impl Write for Blocked {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, blocked) = sync_channel(0);
        let (mut lines, guard) = start(Blocked(blocked)).unwrap();
        let before = lost_lines();
        let started = Instant::now();
        for _ in 0..WAITING + 100 {
            lines.write_all(b"line\n").unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(1));
        assert!(lost_lines() - before >= 99);
        drop(release);
        drop(guard);
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = parse("info,=".into(), "RUST_LOG").err().unwrap();
        assert_eq!(error.to_string(), "bad log filter `info,=` (RUST_LOG)");
    }
}
