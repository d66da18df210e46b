//! Inspecting: the steps to a broker that every protocol has in common: resolve, TCP, TLS.
//!
//! The client libraries connect by themselves and tell little of why they cannot. So each step is
//! made once beside them, with a deadline of its own; what comes after it (login, queues, topics)
//! is the business of each broker's own `inspect`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::finding::Findings;
use crate::subscription::TlsFiles;
use crate::tls::{self, certificate};

const STEP: Duration = Duration::from_secs(5);
/// Clocks that are further apart than this are worth a warning.
const APART: SignedDuration = SignedDuration::from_secs(5);

/// A node of a broker, as its URL or bootstrap address names it.
pub struct Node<'a> {
    pub host: &'a str,
    pub port: u16,
    /// `Some` where TLS is spoken by the files of the config.
    pub tls: Option<&'a TlsFiles>,
    /// Nothing is encrypted, by another library's settings neither.
    pub plain: bool,
}

impl Node<'_> {
    fn shown(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Goes through the steps and says what came of them. `true`: the node can be talked to.
pub async fn reach(found: &Findings, node: &Node<'_>) -> bool {
    let shown = node.shown();
    let addresses: Vec<SocketAddr> = match timeout(STEP, lookup_host((node.host, node.port))).await
    {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            found
                .unreachable(
                    format!("{shown}: the name does not resolve: {error}"),
                    "check the host's name, and this machine's name servers",
                )
                .await;
            return false;
        }
        Err(_) => {
            found
                .unreachable(
                    format!("{shown}: no answer from the name server within {STEP:?}"),
                    "check this machine's name servers",
                )
                .await;
            return false;
        }
    };
    let mut last = "the name has no addresses".to_owned();
    let mut stream = None;
    for address in &addresses {
        match timeout(STEP, TcpStream::connect(address)).await {
            Ok(Ok(connected)) => {
                stream = Some(connected);
                break;
            }
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = format!("no answer within {STEP:?}"),
        }
    }
    let Some(stream) = stream else {
        found
            .unreachable(
                format!("{shown}: no TCP connection: {last}"),
                "check that the broker runs, the port, and what firewalls stand between",
            )
            .await;
        return false;
    };
    let Some(files) = node.tls else {
        let remote = node.plain
            && stream
                .peer_addr()
                .is_ok_and(|peer| !peer.ip().is_loopback());
        if remote {
            found
                .warning(
                    format!("{shown}: connected without TLS"),
                    "password and events can be read on the way: use TLS",
                )
                .await;
        } else {
            found.ok(format!("{shown}: TCP works")).await;
        }
        return true;
    };
    encrypted(found, node, files, stream, &shown).await
}

async fn encrypted(
    found: &Findings,
    node: &Node<'_>,
    files: &TlsFiles,
    stream: TcpStream,
    shown: &str,
) -> bool {
    let owned = files.clone();
    let config = tokio::task::spawn_blocking(move || tls::witnessed_config(Some(&owned))).await;
    let (mut config, witness) = match config.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(config) => config,
        Err(why) => {
            found.problem(why, "check the files that `tls` names").await;
            return false;
        }
    };
    // No protocol but the broker's own is spoken here.
    config.alpn_protocols.clear();
    let Ok(name) = ServerName::try_from(node.host.to_owned()) else {
        found
            .problem(
                format!("{shown}: the host cannot be a certificate's name"),
                "use a host name",
            )
            .await;
        return false;
    };
    let connector = TlsConnector::from(Arc::new(config));
    let now = Timestamp::now();
    let shaken = match timeout(STEP, connector.connect(name, stream)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no handshake within {STEP:?}")),
    };
    let chain = witness.chain();
    match &shaken {
        Ok(()) => certificate::tell_of_chain(found, shown, &chain, now).await,
        Err(why) => certificate::tell_of_disbelief(found, shown, &chain, why, now).await,
    }
    shaken.is_ok()
}

/// Says how long our own client certificate lasts, where there is one.
pub async fn own_certificate(found: &Findings, files: Option<&TlsFiles>) {
    if let Some(path) = files.and_then(|files| files.cert.as_deref()) {
        certificate::tell_of_own(found, path, Timestamp::now()).await;
    }
}

/// Warns where the broker's clock, which shows something between these now, is far from ours.
pub async fn clocks(found: &Findings, earliest: Timestamp, latest: Timestamp) {
    let apart = apart(earliest, latest, Timestamp::now());
    if apart.abs() <= APART {
        return;
    }
    let (seconds, how) = (
        apart.abs().as_secs(),
        match apart.is_positive() {
            true => "ahead of",
            false => "behind",
        },
    );
    found
        .warning(
            format!("its clock is {seconds} s {how} ours"),
            "signatures say our time, and receivers refuse those that are minutes off; `max_age` \
             compares both: have both set by NTP",
        )
        .await;
}

/// How far a clock that shows something between `earliest` and `latest` is ahead of ours, at least.
fn apart(earliest: Timestamp, latest: Timestamp, ours: Timestamp) -> SignedDuration {
    let (ahead, behind) = (earliest.duration_since(ours), latest.duration_since(ours));
    match (ahead.is_positive(), behind.is_negative()) {
        (true, _) => ahead,
        (_, true) => behind,
        _ => SignedDuration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_apart_by_what_is_sure() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let apart = |earliest, latest| apart(at(earliest), at(latest), at(100)).as_secs();
        assert_eq!(apart(99, 101), 0);
        assert_eq!(apart(130, 131), 30);
        assert_eq!(apart(60, 62), -38);
    }
}
