//! A TCP proxy with faults, between the bridge and its broker or a receiver.
//!
//! Kafka tells its clients where it is: what it says of its own address is replaced on the way, in
//! whole answers so that no address is cut in two, and clients stay with the proxy. Whether they did
//! is asked of the kernel ([`Proxy::bypassed_by`]). Its requests go through whole as well, so that those of
//! one kind can be lost.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Pass,
    /// Each piece comes so much later.
    Latency(Duration),
    /// Nothing gets through and nothing is lost, as between hosts that cannot reach each other.
    Stall,
    /// Connections older than this one swallow everything and stay open; new ones work.
    HalfOpen {
        since: u64,
    },
    /// On connections older than this one Kafka's groups never hear that a member wants to join.
    JoinsLost {
        since: u64,
    },
    /// Connections are closed, new ones at once.
    Cut,
    /// The same with RST.
    Reset,
    /// One side is closed, the other a second later.
    SlowClose,
    /// Bytes a second.
    Bandwidth(u32),
    /// In pieces of so many bytes.
    Slice(usize),
}

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// See the module. Gone when it is dropped, connections included.
pub struct Proxy {
    pub address: SocketAddr,
    target: SocketAddr,
    mode: watch::Sender<Mode>,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        Self::between(target, false).await
    }

    /// In front of a Kafka broker.
    pub async fn to_kafka(target: SocketAddr) -> Self {
        Self::between(target, true).await
    }

    async fn between(target: SocketAddr, is_kafka: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (mode, watched) = watch::channel(Mode::Pass);
        let counts = Arc::new(Counts::default());
        let route = Route {
            target,
            address,
            is_kafka,
        };
        let task = tokio::spawn(accept(listener, route, watched, counts.clone()));
        Self {
            address,
            target,
            mode,
            counts,
            task,
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Every connection that there is now is dead and does not know it.
    pub fn half_open(&self) {
        let since = self.connections();
        self.set(Mode::HalfOpen { since });
    }

    /// Those who are connected now do not get into their groups any more.
    pub fn lose_joins(&self) {
        let since = self.connections();
        self.set(Mode::JoinsLost { since });
    }

    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// Bytes that went through, both ways.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::SeqCst)
    }

    /// How many connections the process has to what lies behind the proxy, past it.
    pub fn bypassed_by(&self, pid: u32) -> usize {
        let sockets: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
            .filter_map(|link| {
                let name = link.to_str()?.strip_prefix("socket:[")?;
                Some(name.strip_suffix(']')?.to_owned())
            })
            .collect();
        let port = format!(":{:04X}", self.target.port());
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
        let past = table.lines().filter(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // Remote address, and the socket's number.
            fields.len() > 9 && fields[2].ends_with(&port) && sockets.contains(fields[9])
        });
        past.count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Cut);
        self.task.abort();
    }
}

#[derive(Clone, Copy)]
struct Route {
    target: SocketAddr,
    address: SocketAddr,
    is_kafka: bool,
}

async fn accept(
    listener: TcpListener,
    route: Route,
    mode: watch::Receiver<Mode>,
    counts: Arc<Counts>,
) {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                eprintln!("the proxy in front of {}: {error}", route.target);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let number = counts.connections.fetch_add(1, Ordering::SeqCst);
        let now = *mode.borrow();
        if matches!(now, Mode::Cut | Mode::Reset) {
            if now == Mode::Reset {
                let _ = client.set_zero_linger();
            }
            continue;
        }
        // By itself: a target that is starting or stopped may let one wait for minutes.
        let (mode, counts) = (mode.clone(), counts.clone());
        tokio::spawn(async move {
            let connecting = TcpStream::connect(route.target);
            let Ok(Ok(server)) = tokio::time::timeout(CONNECT_WITHIN, connecting).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let (there, back) = match route.is_kafka {
                true => (
                    Content::Requests(Frames::default()),
                    Content::Answers(Frames::default(), route),
                ),
                false => (Content::Any, Content::Any),
            };
            let there = pump(
                from_client,
                to_server,
                mode.clone(),
                number,
                there,
                counts.clone(),
            );
            tokio::join!(
                there,
                pump(from_server, to_client, mode, number, back, counts)
            );
        });
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    number: u64,
    mut content: Content,
    counts: Arc<Counts>,
) {
    let mut buffer = vec![0; 64 * 1024];
    // What a network has swallowed does not come later: a connection that goes on behind a hole
    // would be one that no network makes.
    let mut is_dead = false;
    loop {
        let now = *mode.borrow_and_update();
        is_dead |= matches!(now, Mode::HalfOpen { since } if number < since);
        match now {
            _ if is_dead && !matches!(now, Mode::Cut | Mode::Reset) => {}
            Mode::Stall => {
                if mode.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Mode::Cut => return,
            Mode::Reset => {
                let _ = from.as_ref().set_zero_linger();
                return;
            }
            Mode::SlowClose => {
                let _ = to.shutdown().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                return;
            }
            _ => {}
        }
        let read = tokio::select! {
            changed = mode.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            read = from.read(&mut buffer) => read,
        };
        let Ok(length @ 1..) = read else { return };
        counts.bytes.fetch_add(length as u64, Ordering::SeqCst);
        if is_dead {
            continue;
        }
        let loses_joins = matches!(now, Mode::JoinsLost { since } if number < since);
        let piece = content.of(&buffer[..length], loses_joins);
        if pass(&piece, &mut to, now).await.is_err() {
            return;
        }
    }
}

async fn pass(piece: &[u8], to: &mut OwnedWriteHalf, mode: Mode) -> std::io::Result<()> {
    match mode {
        Mode::Latency(by) => {
            tokio::time::sleep(by).await;
            to.write_all(piece).await
        }
        Mode::Bandwidth(rate) => {
            let seconds = piece.len() as f64 / f64::from(rate);
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            to.write_all(piece).await
        }
        Mode::Slice(length) => {
            for part in piece.chunks(length) {
                to.write_all(part).await?;
                tokio::task::yield_now().await;
            }
            Ok(())
        }
        _ => to.write_all(piece).await,
    }
}

/// What goes through in one direction.
enum Content {
    Any,
    Requests(Frames),
    Answers(Frames, Route),
}

impl Content {
    /// What is to be passed on of this piece and of those before it.
    fn of<'a>(&mut self, piece: &'a [u8], loses_joins: bool) -> Cow<'a, [u8]> {
        match self {
            Self::Any => Cow::Borrowed(piece),
            Self::Requests(frames) => {
                let mut whole = frames.whole(piece);
                if loses_joins {
                    whole.retain(|request| !is_join(request));
                }
                Cow::Owned(whole.concat())
            }
            Self::Answers(frames, route) => {
                let mut whole = frames.whole(piece).concat();
                route.rename(&mut whole);
                Cow::Owned(whole)
            }
        }
    }
}

/// Kafka's requests or answers, each with its length in front.
#[derive(Default)]
struct Frames {
    kept: Vec<u8>,
}

impl Frames {
    /// Those that are complete with `piece`.
    fn whole(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        self.kept.extend_from_slice(piece);
        let mut whole = Vec::new();
        while let Some(length) = self.kept.first_chunk::<4>() {
            let end = 4 + u32::from_be_bytes(*length) as usize;
            if end > self.kept.len() {
                break;
            }
            let rest = self.kept.split_off(end);
            whole.push(std::mem::replace(&mut self.kept, rest));
        }
        whole
    }
}

/// The key of the request stands behind its length: <https://kafka.apache.org/protocol#protocol_api_keys>.
fn is_join(request: &[u8]) -> bool {
    const JOIN_GROUP: [u8; 2] = 11u16.to_be_bytes();
    request.get(4..6) == Some(&JOIN_GROUP)
}

impl Route {
    /// Replaces the target's host and port, as Kafka writes them, by the proxy's.
    fn rename(&self, bytes: &mut [u8]) {
        let written = |address: SocketAddr| {
            let mut bytes = address.ip().to_string().into_bytes();
            bytes.extend(u32::from(address.port()).to_be_bytes());
            bytes
        };
        let (old, new) = (written(self.target), written(self.address));
        let found: Vec<usize> = bytes
            .windows(old.len())
            .enumerate()
            .filter(|(_, window)| *window == old)
            .map(|(at, _)| at)
            .collect();
        for at in found {
            bytes[at..at + new.len()].copy_from_slice(&new);
        }
    }
}
