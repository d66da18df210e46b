//! The broker's greeting: which RabbitMQ it is.
//!
//! The client library reads the server's properties and keeps them to itself, so we say hello once
//! more on a short connection of our own and read the first frame (`connection.start`). From 4.0 on
//! quorum queues drop what was delivered 20 times, unless they were declared with another limit;
//! before 4.0 the same argument would do harm.

use std::io;

use anyhow::{Context as _, ensure};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use lapin::tcp::{AMQPUriTcpExt as _, OwnedTLSConfig};
use lapin::types::{AMQPValue, parsing::parse_field_table};
use lapin::uri::AMQPUri;

const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Type, channel and size of a frame.
const FRAME_HEADER_BYTES: usize = 7;
/// A greeting is about 500 bytes.
const MAX_GREETING_BYTES: usize = 64 * 1024;
/// Class and method `connection.start`, and the protocol's version.
const START: [u8; 6] = [0, 10, 0, 10, 0, 9];

/// A RabbitMQ release, `4.1` for instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// Whether quorum queues have a delivery limit unless they are told otherwise.
    pub fn limits_deliveries(self) -> bool {
        self >= Self { major: 4, minor: 0 }
    }
}

/// Says hello to the node of `uri` and hangs up.
pub async fn version(uri: &AMQPUri, tls: &OwnedTLSConfig) -> anyhow::Result<Version> {
    let runtime = lapin::runtime::default_runtime().context("no runtime for the client")?;
    let mut stream = uri
        .connect_with_config_async(tls.as_ref(), &runtime)
        .await?;
    stream.write_all(PROTOCOL_HEADER).await?;
    stream.flush().await?;
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
    ensure!(size <= MAX_GREETING_BYTES, "a greeting of {size} bytes");
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await?;
    in_greeting(&payload)
}

fn in_greeting(payload: &[u8]) -> anyhow::Result<Version> {
    let table = payload
        .strip_prefix(&START)
        .context("the first frame is not a greeting")?;
    let (_, properties) = parse_field_table(table)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
        .context("the server's properties cannot be read")?;
    let version = match properties.inner().get("version") {
        Some(AMQPValue::LongString(version)) => {
            String::from_utf8_lossy(version.as_bytes()).into_owned()
        }
        _ => String::new(),
    };
    let mut numbers = version.split(['.', '-', '+']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok(Version { major, minor }),
        _ => anyhow::bail!("the server names no version (`{version}`)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `connection.start` with these server properties, as RabbitMQ writes it.
    fn greeting(properties: &[(&str, &str)]) -> Vec<u8> {
        let mut table = Vec::new();
        for (name, value) in properties {
            table.push(name.len() as u8);
            table.extend(name.as_bytes());
            table.push(b'S');
            table.extend((value.len() as u32).to_be_bytes());
            table.extend(value.as_bytes());
        }
        let mut payload = START.to_vec();
        payload.extend((table.len() as u32).to_be_bytes());
        payload.extend(table);
        payload.extend(b"\x00\x00\x00\x0ePLAIN AMQPLAIN\x00\x00\x00\x05en_US");
        payload
    }

    #[test]
    fn the_version_is_read_from_the_greeting() {
        let of = |version| in_greeting(&greeting(&[("product", "RabbitMQ"), ("version", version)]));
        assert_eq!(
            of("3.10.8").unwrap(),
            Version {
                major: 3,
                minor: 10
            }
        );
        assert_eq!(of("4.2.0-rc.1").unwrap(), Version { major: 4, minor: 2 });
        assert!(of("unknown").is_err());
        assert!(in_greeting(&greeting(&[])).is_err());
        assert!(in_greeting(b"HTTP/1.1 400 Bad Request").is_err());
    }

    #[test]
    fn deliveries_are_limited_from_4_0_on() {
        let limits = |major, minor| Version { major, minor }.limits_deliveries();
        assert!(!limits(3, 13) && limits(4, 0) && limits(5, 0));
    }
}
