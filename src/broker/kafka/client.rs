//! How we connect: properties, TLS and SASL, and what every client of ours has in common.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings as native;
use rdkafka::client::Client;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use tracing::debug;

use crate::subscription::{Secret, TlsFiles};

/// Longest wait for an answer to one request about metadata or offsets.
pub const ASK: Duration = Duration::from_secs(8);

/// Who we are to the broker.
#[derive(Debug, Clone, PartialEq)]
pub struct Sasl {
    pub mechanism: SaslMechanism,
    pub username: String,
    pub password: Secret,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl SaslMechanism {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Where the cluster is and how it is reached.
#[derive(Debug, Clone)]
pub struct Connection {
    pub bootstrap: Vec<String>,
    /// `Some` turns TLS on.
    pub tls: Option<TlsFiles>,
    pub sasl: Option<Sasl>,
    /// Further librdkafka properties; ours win.
    pub properties: BTreeMap<String, String>,
}

impl Connection {
    /// What all clients share. Holds the password: never printed.
    fn common(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        // Only if something is said here: `properties` may speak of Kerberos and the like.
        if protocol != "plaintext" || !self.properties.contains_key("security.protocol") {
            config.set("security.protocol", protocol);
        }
        if let Some(TlsFiles { ca, cert, key }) = &self.tls {
            let files = [
                ("ssl.ca.location", ca),
                ("ssl.certificate.location", cert),
                ("ssl.key.location", key),
            ];
            for (property, file) in files {
                if let Some(file) = file {
                    config.set(property, file.to_string_lossy());
                }
            }
            if ca.is_none() && !self.properties.contains_key("ssl.ca.location") {
                // OpenSSL is linked in and knows no system store of its own.
                config.set("ssl.ca.location", "probe");
            }
        }
        if let Some(sasl) = &self.sasl {
            config
                .set("sasl.mechanism", sasl.mechanism.as_str())
                .set("sasl.username", &sasl.username)
                .set("sasl.password", sasl.password.expose());
        }
        config
            .set("bootstrap.servers", self.servers())
            .set("client.id", "hookbridge")
            .set("socket.keepalive.enable", "true")
            // After this a connection that answers nothing is replaced; by default a fetch waits for
            // a minute. A message of 16 MiB still gets through at 1 MB/s.
            .set("socket.timeout.ms", "20000")
            .set("statistics.interval.ms", "0")
            .set("reconnect.backoff.max.ms", "2000")
            .set("topic.metadata.refresh.interval.ms", "10000")
            .set_log_level(match self.properties.contains_key("debug") {
                // Somebody wants to see what the library does.
                true => RDKafkaLogLevel::Debug,
                false => RDKafkaLogLevel::Warning,
            });
        config
    }

    /// As the library wants them.
    pub fn servers(&self) -> String {
        self.bootstrap.join(",")
    }

    pub fn admin(&self) -> ClientConfig {
        self.common()
    }

    /// `acks=all`, in order and without duplicates of one send; given up before the caller does.
    pub fn producer(&self, give_up: Duration) -> ClientConfig {
        let mut config = self.common();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", give_up.as_millis().to_string())
            .set("message.max.bytes", "100000000")
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.kbytes", "65536");
        config
    }

    /// A member of a group whose offsets only we store and commit.
    pub fn member(&self, group: &str, instance: Option<&str>, reset: Reset) -> ClientConfig {
        let mut config = self.reader(group);
        config
            .set("auto.offset.reset", reset.as_str())
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", "10000")
            .set("heartbeat.interval.ms", "2000");
        if let Some(instance) = instance {
            config.set("group.instance.id", instance);
        }
        config
    }

    /// A consumer that is told what to read and leaves no trace in any group.
    pub fn reader(&self, group: &str) -> ClientConfig {
        let mut config = self.common();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("allow.auto.create.topics", "false")
            // A bounded local queue starves a fast drain unless it is looked after often.
            .set("queued.max.messages.kbytes", "4096")
            // Per partition and before decompression: what comes at once can be many times that.
            // A larger message comes all the same, alone.
            .set("fetch.message.max.bytes", "262144")
            .set("fetch.queue.backoff.ms", "10");
        config
    }
}

/// What a member does when it finds its offset gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// Say so: sources.
    Error,
    /// Go on with what is left: tiers, which we trim ourselves.
    Earliest,
}

impl Reset {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Earliest => "earliest",
        }
    }
}

/// The library's own log lines: connection trouble repeats by the second, and [`super::watch`]
/// says once what it means.
#[derive(Debug, Clone, Default)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "hookbridge::kafka", ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(target: "hookbridge::kafka", %error, "{reason}");
    }
}

/// The error that makes a client useless for good, if it has one. Asked after *every* error: the
/// one that reports it does not say that it is fatal.
pub fn fatal<C: ClientContext>(client: &Client<C>) -> Option<String> {
    client
        .fatal_error()
        .map(|(code, reason)| format!("{code}: {reason}"))
}

/// What a client is told of its bootstrap servers besides its config. The library forgets the brokers that
/// are not in an answer about the cluster, and a cluster that goes on after a pause says for a moment that it
/// has none: then there may be nobody left whom it would ask again.
pub struct Bootstrap {
    servers: CString,
    left: u32,
}

impl Bootstrap {
    /// The library keeps what it is told each time, and goes through all of it when it begins anew.
    const TIMES: u32 = 10_000;

    /// `servers`: as in `bootstrap.servers`.
    pub fn new(servers: &str) -> Self {
        Self {
            servers: CString::new(servers).unwrap_or_default(),
            left: Self::TIMES,
        }
    }

    /// Tells `client`, which has to be the same each time.
    pub fn again<C: ClientContext>(&mut self, client: &Client<C>) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        // SAFETY: the client is alive, and the call copies what it needs of the text.
        unsafe { native::rd_kafka_brokers_add(client.native_ptr(), self.servers.as_ptr()) };
    }
}

/// A client that is not waited for when it is dropped. Its drop waits for its threads, and a timed wait
/// of the library ends at a time of the wall clock: when that was set back, an hour later.
pub struct Apart<T: Send + 'static>(Option<T>);

impl<T: Send> Apart<T> {
    pub fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send> std::ops::Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl<T: Send> Drop for Apart<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        let thread = std::thread::Builder::new().name("kafka-drop".into());
        let _ = thread.spawn(move || drop(client));
    }
}

/// Runs a blocking call of the library on a thread where it may block.
pub async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(call).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection {
            bootstrap: vec!["a:1".into(), "b:2".into()],
            tls: Some(TlsFiles {
                ca: Some("/ca.pem".into()),
                ..TlsFiles::default()
            }),
            sasl: Some(Sasl {
                mechanism: SaslMechanism::ScramSha512,
                username: "bridge".into(),
                password: Secret::new("hush"),
            }),
            properties: BTreeMap::from([("enable.auto.commit".into(), "true".into())]),
        }
    }

    #[test]
    fn our_properties_win_over_those_given() {
        let config = connection().member("g", Some("i"), Reset::Error);
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
        assert_eq!(config.get("auto.offset.reset"), Some("error"));
        assert_eq!(config.get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(config.get("bootstrap.servers"), Some("a:1,b:2"));
        assert_eq!(config.get("group.instance.id"), Some("i"));
    }

    #[test]
    fn the_password_is_not_in_debug() {
        assert!(!format!("{:?}", connection()).contains("hush"));
    }
}
