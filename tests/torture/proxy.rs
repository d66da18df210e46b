//! A TCP proxy with faults, between the bridge and its broker or a receiver.
//!
//! Kafka tells its clients where it is: what it says of its own address is replaced on the way, so
//! that they stay with the proxy.

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

/// See the module. Gone when it is dropped, connections included.
pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    connections: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (mode, watched) = watch::channel(Mode::Pass);
        let connections = Arc::new(AtomicU64::new(0));
        let route = Route { target, address };
        let task = tokio::spawn(accept(listener, route, watched, connections.clone()));
        Self {
            address,
            mode,
            connections,
            task,
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Every connection that there is now is dead and does not know it.
    pub fn half_open(&self) {
        let since = self.connections.load(Ordering::SeqCst);
        self.set(Mode::HalfOpen { since });
    }

    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
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
}

async fn accept(
    listener: TcpListener,
    route: Route,
    mode: watch::Receiver<Mode>,
    connections: Arc<AtomicU64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let number = connections.fetch_add(1, Ordering::SeqCst);
        let now = *mode.borrow();
        if matches!(now, Mode::Cut | Mode::Reset) {
            if now == Mode::Reset {
                let _ = client.set_zero_linger();
            }
            continue;
        }
        let Ok(server) = TcpStream::connect(route.target).await else {
            continue;
        };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::spawn(pump(from_client, to_server, mode.clone(), number, None));
        tokio::spawn(pump(
            from_server,
            to_client,
            mode.clone(),
            number,
            Some(route),
        ));
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    number: u64,
    renamed: Option<Route>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let now = *mode.borrow_and_update();
        match now {
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
        let piece = &mut buffer[..length];
        if let Some(route) = renamed {
            rename(piece, route);
        }
        if pass(piece, &mut to, now, number).await.is_err() {
            return;
        }
    }
}

async fn pass(
    piece: &[u8],
    to: &mut OwnedWriteHalf,
    mode: Mode,
    number: u64,
) -> std::io::Result<()> {
    match mode {
        Mode::HalfOpen { since } if number < since => Ok(()),
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

/// Replaces the target's address by the proxy's, host and port as Kafka writes them.
fn rename(piece: &mut [u8], route: Route) {
    let written = |address: SocketAddr| {
        let mut bytes = address.ip().to_string().into_bytes();
        bytes.extend(u32::from(address.port()).to_be_bytes());
        bytes
    };
    let (old, new) = (written(route.target), written(route.address));
    let found: Vec<usize> = piece
        .windows(old.len())
        .enumerate()
        .filter(|(_, window)| *window == old)
        .map(|(at, _)| at)
        .collect();
    for at in found {
        piece[at..at + new.len()].copy_from_slice(&new);
    }
}
