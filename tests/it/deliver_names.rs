//! Names of receivers: what a name server may do, a name that moves, and one that lies.
//!
//! The bridge runs with an /etc/resolv.conf of its own, so its system's resolver asks the name
//! server in here. Needs to be allowed to do that, and to be at port 53: as root it is.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Mortal, Receiver};
use crate::support::{SECRET, eventually};

const WITHIN: Duration = Duration::from_secs(45);
/// The first code of a response that says so.
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
/// What fits into a datagram where nobody has said that he takes more.
const DATAGRAM: usize = 512;

/// What the name server says of a name.
enum Reply {
    Addresses(Vec<Ipv4Addr>),
    /// The name is an alias of itself.
    Loop,
    Code(u8),
    Silence,
}

/// What is said of a name that was asked for so many times before.
type Zone = dyn Fn(&str, usize) -> Reply + Send + Sync;

/// A name server for IPv4 addresses, at a loopback address of its own.
struct NameServer {
    address: IpAddr,
    zone: Box<Zone>,
    asked: Mutex<HashMap<String, usize>>,
}

impl NameServer {
    fn start(zone: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Arc<Self> {
        let free = (1..255).find_map(|last| {
            let address = SocketAddr::from(([127, 0, 53, last], 53));
            Some((
                UdpSocket::bind(address).ok()?,
                TcpListener::bind(address).ok()?,
            ))
        });
        let (udp, tcp) = free.expect("port 53 can be taken: run this as root");
        let server = Arc::new(Self {
            address: udp.local_addr().expect("bound").ip(),
            zone: Box::new(zone),
            asked: Mutex::default(),
        });
        // The threads end with the process.
        let serving = server.clone();
        std::thread::spawn(move || {
            let mut query = [0; DATAGRAM];
            while let Ok((length, from)) = udp.recv_from(&mut query) {
                let Some(mut answer) = serving.answer(&query[..length], true) else {
                    continue;
                };
                if answer.len() > DATAGRAM {
                    // Truncated: it is asked again by TCP.
                    answer.truncate(length);
                    answer[2] |= 0b10;
                    answer[6..12].fill(0);
                }
                let _ = udp.send_to(&answer, from);
            }
        });
        let serving = server.clone();
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let mut query = [0; DATAGRAM];
                while stream.read_exact(&mut query[..2]).is_ok() {
                    let length = usize::from(u16::from_be_bytes([query[0], query[1]]));
                    if length > DATAGRAM || stream.read_exact(&mut query[..length]).is_err() {
                        break;
                    }
                    let Some(answer) = serving.answer(&query[..length], false) else {
                        break;
                    };
                    let written = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
                    if stream.write_all(&written).is_err() {
                        break;
                    }
                }
            }
        });
        server
    }

    /// Whether it was asked for `name` at all.
    fn was_asked(&self, name: &str) -> bool {
        self.asked.lock().unwrap().contains_key(name)
    }

    fn answer(&self, query: &[u8], counts: bool) -> Option<Vec<u8>> {
        let (name, end) = name_in(query)?;
        let is_v4 = query.get(end..end + 2)? == [0, 1];
        let before = {
            let mut asked = self.asked.lock().unwrap();
            let count = asked.entry(name.clone()).or_default();
            let before = *count;
            *count += usize::from(is_v4 && counts);
            before
        };
        let (code, records) = match (self.zone)(&name, before) {
            Reply::Silence => return None,
            Reply::Code(code) => (code, Vec::new()),
            Reply::Loop => (0, vec![(5_u8, query[12..end].to_vec())]),
            Reply::Addresses(_) if !is_v4 => (0, Vec::new()),
            Reply::Addresses(all) => {
                let record = |address: Ipv4Addr| (1, address.octets().to_vec());
                (0, all.into_iter().map(record).collect())
            }
        };
        let mut answer = query[..end + 4].to_vec();
        answer[2] = 0x84;
        answer[3] = 0x80 | code;
        answer[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        answer[8..12].fill(0);
        for (kind, data) in records {
            // The name asked for, class IN, good for no time at all.
            answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0]);
            answer.extend((data.len() as u16).to_be_bytes());
            answer.extend(data);
        }
        Some(answer)
    }

    /// The command by which a bridge asks this server and no other.
    fn through(&self, folder: &std::path::Path) -> Vec<String> {
        let file = folder.join("resolv.conf");
        std::fs::write(&file, format!("nameserver {}\n", self.address)).expect("written");
        let mount = format!(
            "mount --bind '{}' /etc/resolv.conf && exec \"$@\"",
            file.display()
        );
        let words = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
        words.map(str::to_owned).to_vec()
    }
}

/// The name in a query and where it ends.
fn name_in(query: &[u8]) -> Option<(String, usize)> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name.trim_end_matches('.').to_lowercase(), at));
        }
        name += &String::from_utf8_lossy(query.get(at..at + length)?);
        name.push('.');
        at += length;
    }
}

fn loopback(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

/// A subscription of the receiver by this name, with two attempts.
fn named(name: &str, port: u16) -> String {
    format!(
        "  {name}: {{ topics: ['orders.#'], timeout: 12s, endpoint: {{ url: 'http://{name}.test:{port}/{name}', secret: '{SECRET}' }}, retry: {{ schedule: [1s], jitter: 0, max_attempts: 2 }} }}\n"
    )
}

async fn publish(bridge: &Bridge, topic: &str) {
    let path = format!("/v1/topics/{topic}/events");
    assert_eq!(bridge.post(&path, "{}").await.0, 202);
}

async fn failed(bridge: &Bridge, name: &str, class: &str) -> f64 {
    let line = format!(
        "hookbridge_delivery_attempts_total{{subscription=\"{name}\",outcome=\"failed\",status_class=\"{class}\"}}"
    );
    bridge.metric(&line).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_server_that_fails_hangs_or_floods_hurts_only_its_own_names() {
    let server = NameServer::start(|name, _| match name {
        "good.test" => Reply::Addresses(vec![loopback(1)]),
        "many.test" => Reply::Addresses((1..=200).map(loopback).collect()),
        "empty.test" => Reply::Addresses(Vec::new()),
        "servfail.test" => Reply::Code(SERVFAIL),
        "loop.test" => Reply::Loop,
        name if name.starts_with("hang") => Reply::Silence,
        _ => Reply::Code(NXDOMAIN),
    });
    let receiver = Receiver::accepting().await;
    let port = receiver.address.port();
    let failing = ["missing", "empty", "servfail", "loop", "hang"];
    let hanging: Vec<_> = (0..40).map(|number| format!("hang-{number}")).collect();
    let bad = failing
        .iter()
        .copied()
        .chain(hanging.iter().map(String::as_str));
    let mut subscriptions: String = bad.map(|name| named(name, port)).collect();
    subscriptions += &named("good", port).replace("'orders.#'", "'orders.#', ticks");
    subscriptions += &named("many", port);
    let folder = tempfile::tempdir().expect("a folder");
    let config = Bus::embedded().config(&subscriptions);
    let bridge = Bridge::start_through(&config, server.through(folder.path())).await;
    let bridge = bridge.ready().await;
    let began = Instant::now();
    publish(&bridge, "orders.made").await;
    eventually("both good names are reached", WITHIN, async || {
        let of = |path: &str| receiver.count_of(|request| request.path == path);
        (of("/good") == 1 && of("/many") == 1).then_some(())
    })
    .await;
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(9),
        "{took:?} beside names that hang"
    );
    for name in failing
        .iter()
        .copied()
        .chain(hanging.iter().map(String::as_str))
    {
        eventually(&format!("two failures of {name}"), WITHIN, async || {
            // Something that goes well, or it would be us who have no network.
            publish(&bridge, "ticks").await;
            (failed(&bridge, name, "dns").await == 2.0).then_some(())
        })
        .await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(45),
        "{:?}",
        began.elapsed()
    );
    assert!(
        server.was_asked("hang-39.test"),
        "the look-ups did not come here"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_turns_to_a_forbidden_address_is_not_followed() {
    let server = NameServer::start(|name, before| match (name, before) {
        ("turns.test", 0) => Reply::Addresses(vec![loopback(1)]),
        ("turns.test", _) => Reply::Addresses(vec![loopback(2)]),
        ("mixed.test", _) => Reply::Addresses(vec![loopback(1), loopback(2)]),
        _ => Reply::Code(NXDOMAIN),
    });
    // Each request takes a connection, and so a look-up, of its own.
    let open = Receiver::answering(|_, _| Answer::status(204).header("connection", "close")).await;
    let port = open.address.port();
    let inside = Receiver::answering_at((loopback(2), port).into(), |_, _| Answer::status(204));
    let inside = inside.await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = Bus::embedded()
        .config(&(named("turns", port) + &named("mixed", port)))
        .replace("[127.0.0.0/8]", "[127.0.0.1/32]");
    let bridge = Bridge::start_through(&config, server.through(folder.path())).await;
    let bridge = bridge.ready().await;
    publish(&bridge, "orders.made").await;
    eventually(
        "it is delivered while the name is good",
        WITHIN,
        async || (open.count_of(|request| request.path == "/turns") == 1).then_some(()),
    )
    .await;
    publish(&bridge, "orders.made").await;
    eventually("all others are denied", WITHIN, async || {
        let denied = (
            failed(&bridge, "turns", "denied").await,
            failed(&bridge, "mixed", "denied").await,
        );
        (denied == (2.0, 4.0)).then_some(())
    })
    .await;
    assert_eq!((open.count(), inside.count()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_moves_is_found_where_its_name_says() {
    let place = Arc::new(Mutex::new(loopback(1)));
    let told = place.clone();
    let server = NameServer::start(move |name, _| match name {
        "moves.test" => Reply::Addresses(vec![*told.lock().unwrap()]),
        _ => Reply::Code(NXDOMAIN),
    });
    let mut old = Mortal::at((loopback(1), 0).into(), Duration::ZERO);
    let port = old.receiver.address.port();
    let new = Receiver::answering_at((loopback(2), port).into(), |_, _| Answer::status(204)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = Bus::embedded().config(&named("moves", port));
    let bridge = Bridge::start_through(&config, server.through(folder.path())).await;
    let bridge = bridge.ready().await;
    for _ in 0..20 {
        publish(&bridge, "orders.made").await;
    }
    old.receiver.wait_for(20, WITHIN).await;
    let delivered = "hookbridge_delivery_attempts_total{subscription=\"moves\",outcome=\"delivered\",status_class=\"2xx\"}";
    eventually("the first are answered", WITHIN, async || {
        (bridge.metric(delivered).await == 20.0).then_some(())
    })
    .await;
    *place.lock().unwrap() = loopback(2);
    old.end();
    for _ in 0..20 {
        publish(&bridge, "orders.made").await;
    }
    new.wait_for(20, WITHIN).await;
    // Those that were sent just when the connections ended are sent again, once.
    let failures =
        failed(&bridge, "moves", "protocol").await + failed(&bridge, "moves", "connect").await;
    assert!(failures <= 1.0, "{failures} attempts failed");
    let dead =
        "hookbridge_dead_letters_total{subscription=\"moves\",reason=\"attempts_exhausted\"}";
    assert_eq!(bridge.metric(dead).await, 0.0);
}
