//! The one place where the config asks whether an endpoint's URL may be called at all.
//!
//! Only addresses written as such are looked at; names are resolved, and their answers checked,
//! when they are called. The rules are those of the guard that checks every attempt.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// The address in `url` that may not be called, if there is one.
pub fn denied(url: &Url, allowed: &[IpNet]) -> Option<IpAddr> {
    let address = match url.host()? {
        Host::Ipv4(address) => IpAddr::V4(address),
        Host::Ipv6(address) => IpAddr::V6(address),
        Host::Domain(_) => return None,
    };
    let open = allowed.iter().any(|network| network.contains(&address));
    (!open && is_special(address)).then_some(address)
}

fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_documentation()
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_special(IpAddr::V4(v4)),
            None => {
                v6.is_loopback()
                    || v6 == Ipv6Addr::UNSPECIFIED
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
            }
        },
    }
}
