//! The one place where the config asks whether an endpoint's URL may be called at all.
//!
//! The rules are those of the guard that checks every attempt. Only hosts written as addresses are
//! looked at, and `localhost`; other names are resolved, and their answers checked, when called.

use ipnet::IpNet;
use url::Url;

use crate::deliver::guard::AddressPolicy;

/// Why `url` may not be called, if so. `allowed` are networks opened on purpose.
pub fn refused(url: &Url, allowed: &[IpNet]) -> Option<String> {
    let policy = AddressPolicy {
        // The scheme has been checked, with a message of its own.
        allow_http: true,
        allow_networks: allowed.to_vec(),
    };
    policy.check_url(url).err().map(|denied| denied.to_string())
}
