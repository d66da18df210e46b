//! Inspecting: the steps of a connection, one after the other, each with what came of it.
//!
//! The same code connects for real ([`super::connector`]): a name is resolved within its budget,
//! every address vetted by the guard, and only vetted ones are connected to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use super::connector::Connector;
use super::resolver::Resolver;
use crate::attempt::Failure;
use crate::deliver::guard::AddressPolicy;
use crate::subscription::TlsFiles;
use crate::tls::certificate::Certificate;

/// How far connecting came.
pub struct Steps {
    /// What the name resolved to, as far as the guard lets us connect; empty where it was refused.
    pub addresses: Vec<SocketAddr>,
    /// What the server has shown, the server's own certificate first, believed or not.
    pub chain: Vec<Certificate>,
    /// The step that failed, in the words of an attempt.
    pub failure: Option<Failure>,
}

/// Connects to the host of `uri` and hangs up.
pub async fn steps(
    policy: Arc<AddressPolicy>,
    uri: &Uri,
    files: Option<Arc<TlsFiles>>,
    connect_timeout: Duration,
) -> Steps {
    let connector = Connector::new(policy, Arc::new(Resolver::new()), files, connect_timeout);
    connector.inspect(uri).await
}
