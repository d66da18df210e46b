//! Reaching: whether somebody takes a TCP connection, without sending anything.
//!
//! The guard against our own outage asks it, of an endpoint (as for a delivery: the address guard
//! holds) or of the place that the operator names for this (whose address may be any).

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use super::{AddressPolicy, client};

/// For the name and the connection together.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether `host` resolves and takes a connection at `port`. No address is denied.
pub async fn place(host: &str, port: u16) -> bool {
    let connecting = TcpStream::connect((host, port));
    matches!(timeout(PATIENCE, connecting).await, Ok(Ok(_)))
}

/// Whether the host of `url` takes a connection, if `policy` lets it be called. TLS is not begun.
pub(super) async fn endpoint(policy: Arc<AddressPolicy>, url: &Url) -> bool {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return false;
    };
    let Ok(plain) = Uri::try_from(format!("http://{host}:{port}/")) else {
        return false;
    };
    if policy.check_url(url).is_err() {
        return false;
    }
    let connecting = client::inspect::steps(policy, &plain, None, PATIENCE);
    matches!(timeout(PATIENCE, connecting).await, Ok(steps) if steps.failure.is_none())
}
