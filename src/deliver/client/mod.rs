//! The HTTP client under the courier: hyper-util's pooled client over our own connections.
//!
//! Nothing above this folder names a type of hyper, so the client can be exchanged.
//! What is not here on purpose: redirects, proxies from the environment, cookies, decompression,
//! `accept-encoding`, and retries other than of a request that a dying pooled connection never sent.
//!
//! Pooled connections skip resolution and keep yesterday's certificates. So a pool lives for
//! [`POOL_LIFE`] and is then replaced: requests under way finish on the old one, new ones resolve,
//! verify and read the files of `tls:` again. The measurement behind the choice is in
//! `docs/decisions/0001-http-client-and-runtime.md`.

mod connector;
pub(super) mod inspect;
mod resolver;

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
/// The body of an answer, and the trait to read it by: `http_body`'s own words, under the client's name.
pub use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use super::guard::AddressPolicy;
use crate::attempt::{ErrorClass, Failure};
use crate::subscription::TlsFiles;

use connector::{ConnectFailure, Connector, TLS_MARK};
use resolver::Resolver;

/// A connection idle for longer is closed.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_PER_HOST: usize = 64;
/// How long connections are re-used, and how stale an address or a certificate file can get.
const POOL_LIFE: Duration = Duration::from_secs(5 * 60);
/// Pools kept at once; beyond it the oldest goes.
const MAX_POOLS: usize = 256;
/// The head of a response may be so long.
const MAX_HEAD_BYTES: usize = 64 << 10;

type Pool = Client<Connector, Full<Bytes>>;

/// One pool per TLS profile and connect timeout.
pub(super) struct Clients {
    policy: Arc<AddressPolicy>,
    resolver: Arc<Resolver>,
    pools: Mutex<Vec<Kept>>,
}

struct Kept {
    profile: Profile,
    pool: Arc<Pool>,
    made: Instant,
}

#[derive(Clone, PartialEq)]
struct Profile {
    tls: Option<Arc<TlsFiles>>,
    connect_timeout: Duration,
}

impl Clients {
    pub(super) fn new(policy: Arc<AddressPolicy>) -> Self {
        Self {
            policy,
            resolver: Arc::new(Resolver::new()),
            pools: Mutex::new(Vec::new()),
        }
    }

    /// Sends `request` and returns once the head of the response is here. Has no deadline but those
    /// of connecting.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        tls: Option<&Arc<TlsFiles>>,
        connect_timeout: Duration,
        now: Instant,
    ) -> Result<Response<Incoming>, Failure> {
        let pool = self.pool(tls, connect_timeout, now);
        pool.request(request).await.map_err(|error| failure(&error))
    }

    fn pool(
        &self,
        tls: Option<&Arc<TlsFiles>>,
        connect_timeout: Duration,
        now: Instant,
    ) -> Arc<Pool> {
        let mut pools = self.pools.lock().unwrap_or_else(|p| p.into_inner());
        let position = pools.iter().position(|kept| {
            kept.profile.connect_timeout == connect_timeout && kept.profile.tls.as_ref() == tls
        });
        if let Some(position) = position {
            let kept = &mut pools[position];
            if now.duration_since(kept.made) >= POOL_LIFE {
                kept.pool = self.make(&kept.profile);
                kept.made = now;
            }
            return kept.pool.clone();
        }
        if pools.len() >= MAX_POOLS
            && let Some(oldest) = (0..pools.len()).min_by_key(|i| pools[*i].made)
        {
            pools.swap_remove(oldest);
        }
        let profile = Profile {
            tls: tls.cloned(),
            connect_timeout,
        };
        let pool = self.make(&profile);
        pools.push(Kept {
            profile,
            pool: pool.clone(),
            made: now,
        });
        pool
    }

    fn make(&self, profile: &Profile) -> Arc<Pool> {
        let connector = Connector::new(
            self.policy.clone(),
            self.resolver.clone(),
            profile.tls.clone(),
            profile.connect_timeout,
        );
        let pool = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .http2_max_header_list_size(MAX_HEAD_BYTES as u32)
            // A half-open connection would otherwise fail every request of its host until the
            // pool is replaced.
            .http2_keep_alive_interval(Duration::from_secs(15))
            .http2_keep_alive_timeout(Duration::from_secs(10))
            .build(connector);
        Arc::new(pool)
    }
}

/// What went wrong, from what our connector and connections said at the bottom of hyper's errors.
fn failure(error: &ClientError) -> Failure {
    let mut texts = Vec::new();
    let mut cause: Option<&(dyn Error + 'static)> = Error::source(error);
    while let Some(error) = cause {
        if let Some(connect) = error.downcast_ref::<ConnectFailure>() {
            return Failure {
                class: connect.class,
                detail: connect.detail.clone(),
            };
        }
        let text = error.to_string();
        if let Some((_, of_tls)) = text.split_once(TLS_MARK) {
            return Failure {
                class: ErrorClass::Tls,
                detail: of_tls.to_owned(),
            };
        }
        // Some errors print their source themselves.
        if !texts
            .last()
            .is_some_and(|above: &String| above.ends_with(&text))
        {
            texts.push(text);
        }
        cause = error.source();
    }
    Failure {
        class: ErrorClass::Protocol,
        detail: match texts.is_empty() {
            true => error.to_string(),
            false => texts.join(": "),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Clients {
        Clients::new(Arc::new(AddressPolicy::default()))
    }

    #[tokio::test]
    async fn a_profile_keeps_its_pool_until_the_pool_is_too_old() {
        let clients = clients();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let first = clients.pool(None, second, now);
        let young = clients.pool(None, second, now + POOL_LIFE - Duration::from_millis(1));
        assert!(Arc::ptr_eq(&first, &young));
        let old = clients.pool(None, second, now + POOL_LIFE);
        assert!(!Arc::ptr_eq(&first, &old));
        assert!(!Arc::ptr_eq(&old, &clients.pool(None, 2 * second, now)));
    }

    #[tokio::test]
    async fn equal_tls_files_share_a_pool_and_pools_are_bounded() {
        let clients = clients();
        let now = Instant::now();
        let files = |n: usize| {
            Arc::new(TlsFiles {
                ca: Some(format!("{n}.pem").into()),
                cert: None,
                key: None,
            })
        };
        let second = Duration::from_secs(1);
        let one = clients.pool(Some(&files(1)), second, now);
        assert!(Arc::ptr_eq(
            &one,
            &clients.pool(Some(&files(1)), second, now)
        ));
        for n in 0..2 * MAX_POOLS {
            clients.pool(Some(&files(n)), second, now + second);
        }
        assert_eq!(clients.pools.lock().unwrap().len(), MAX_POOLS);
    }
}
