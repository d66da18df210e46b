//! The one place where the config asks whether an endpoint's URL may be called at all.
//!
//! Only hosts written as addresses are looked at, and `localhost`; other names are resolved, and
//! their answers checked, when they are called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// Why `url` may not be called, if so. `allowed` are networks opened on purpose.
pub fn refused(url: &Url, allowed: &[IpNet]) -> Option<String> {
    let open = |address: &IpAddr| allowed.iter().any(|network| network.contains(address));
    let address = match url.host()? {
        Host::Ipv4(address) => IpAddr::V4(address),
        Host::Ipv6(address) => IpAddr::V6(address),
        Host::Domain(name) if name == "localhost" || name.ends_with(".localhost") => {
            let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return (!both.iter().any(open)).then(|| "localhost is refused".to_owned());
        }
        Host::Domain(_) => return None,
    };
    (is_special(address) && !open(&address))
        .then(|| format!("{address} is a private or special address, and refused"))
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
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
            }
        },
    }
}
