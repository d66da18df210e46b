//! Hostile receivers: each a process of its own, so that what it does costs nobody else their time.
//!
//! The process is this program again, told what to do to each request. It says what came, a line of
//! JSON each, and ends when it is dropped.

mod serve;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::support::receiver::Request;

/// The first word of the command line that makes this program a hostile receiver.
const COMMAND: &str = "hostile-receiver";
/// In the folder of one with TLS: the authority that the bridge is told to believe.
const CA: &str = "ca.pem";

/// What it does to a request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Mode {
    HangBeforeHead,
    /// 200 and nothing after the head: a success.
    HangAfterHead,
    /// A byte of the head each 200 ms.
    Drip,
    /// 200, and a body without an end: a success.
    EndlessBody,
    ResetBeforeStatus,
    /// RST after the head of a 200 that announces more: a success.
    ResetAfterHead,
    HeaderFlood,
    EndlessInformational,
    /// 200 with 100 MB of zeros in 100 KB: a success, and nobody opens it.
    GzipBomb,
    Redirect(&'static str),
    /// 429 and this `Retry-After`.
    TooMany(&'static str),
    Status(u16),
    Tls(TlsFault),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum TlsFault {
    Expired,
    WrongHost,
    SelfSigned,
    ClientCertificateAsked,
}

impl Mode {
    /// The status that counts, where there is one.
    fn answered(self) -> u16 {
        match self {
            Self::EndlessBody | Self::ResetAfterHead | Self::GzipBomb | Self::HangAfterHead => 200,
            Self::Redirect(_) => 302,
            Self::TooMany(_) => 429,
            Self::Status(status) => status,
            _ => 0,
        }
    }
}

/// What the process says, a line each.
#[derive(Serialize, Deserialize)]
enum Said {
    Listening(SocketAddr),
    Connected,
    Asked {
        at: Duration,
        path: String,
        /// Those that are text.
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        verified: bool,
        answered: u16,
    },
}

impl Said {
    fn say(&self) {
        let line = serde_json::to_string(self).expect("it can be written");
        // Nobody listens any more: the process is about to end.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }

    /// The request that it speaks of, if it does.
    fn request(self) -> Option<Request> {
        let Self::Asked {
            at,
            path,
            headers,
            body,
            verified,
            answered,
        } = self
        else {
            return None;
        };
        let header = |(name, value): (String, String)| {
            let name = HeaderName::try_from(name).ok()?;
            Some((name, HeaderValue::try_from(value).ok()?))
        };
        let mut named = axum::http::HeaderMap::new();
        for (name, value) in headers.into_iter().filter_map(header) {
            named.append(name, value);
        }
        let id = named.get("webhook-id").and_then(|id| id.to_str().ok());
        Some(Request {
            at: Instant::now() - monotonic().saturating_sub(at),
            path,
            query: None,
            id: id.unwrap_or_default().to_owned(),
            headers: named,
            body: body.into(),
            verified,
            answered,
        })
    }
}

/// The time of a clock that all processes see alike.
fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes to a place that is there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// See the module. Stops when it is dropped.
pub struct Hostile {
    address: SocketAddr,
    has_tls: bool,
    record: Arc<Record>,
    process: Child,
    folder: tempfile::TempDir,
}

#[derive(Default)]
struct Record {
    requests: Mutex<Vec<Request>>,
    connections: Mutex<usize>,
}

/// What this process is to be, when it was started as a hostile receiver.
pub async fn serve_if_told() -> bool {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [command, mode, folder] = words.as_slice() else {
        return false;
    };
    if command != COMMAND {
        return false;
    }
    // Its texts are borrowed for as long as the process lasts.
    let mode = serde_json::from_str(mode.clone().leak()).expect("a mode");
    serve::run(mode, Path::new(folder)).await;
    true
}

impl Hostile {
    pub fn new(mode: Mode) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .arg(COMMAND)
            .arg(serde_json::to_string(&mode).expect("it can be written"))
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let out = process.stdout.take().expect("piped");
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        let mut said = lines.map(|line| serde_json::from_str(&line).expect("as it was written"));
        let Some(Said::Listening(address)) = said.next() else {
            panic!("a hostile receiver did not start");
        };
        let record = Arc::new(Record::default());
        let kept = record.clone();
        std::thread::spawn(move || {
            for one in said {
                match one {
                    Said::Connected => *kept.connections.lock().unwrap() += 1,
                    one => kept.requests.lock().unwrap().extend(one.request()),
                }
            }
        });
        Self {
            address,
            has_tls: matches!(mode, Mode::Tls(_)),
            record,
            process,
            folder,
        }
    }

    /// The keys `url` and `tls` of its endpoint.
    pub fn endpoint(&self) -> String {
        if !self.has_tls {
            return format!("url: 'http://{}/'", self.address);
        }
        let (port, ca) = (self.address.port(), self.folder.path().join(CA));
        let ca = ca.display();
        format!("url: 'https://127.0.0.1:{port}/', tls: {{ ca: '{ca}' }}")
    }

    pub fn requests(&self) -> Vec<Request> {
        self.record.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        *self.record.connections.lock().unwrap()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
