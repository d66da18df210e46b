//! The address guard: which addresses a webhook may be sent to.
//!
//! A URL comes from an operator or a team, and its name from somebody's DNS; neither may make the
//! bridge a way into the network that it stands in. Everything that is not plain public unicast is
//! denied, for addresses written in the URL ([`AddressPolicy::check_url`], when saved and when sent)
//! and for every answer of the resolver ([`AddressPolicy::vet`], to which connections are then
//! pinned). `allow_networks` opens ranges on purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use url::{Host, Url};

/// What an operator allows beyond https to public addresses.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    /// Plain `http:` URLs.
    pub allow_http: bool,
    /// Otherwise denied ranges.
    pub allow_networks: Vec<IpNet>,
}

/// Why a URL or an answer of the resolver is not used. Shows the address, never the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("plain http is not allowed (`delivery.allow_http`)")]
    PlainHttp,
    #[error("`{0}:` is not a scheme of webhooks")]
    Scheme(String),
    #[error("the URL has no host")]
    NoHost,
    #[error("localhost is denied (`delivery.allow_networks`)")]
    Localhost,
    #[error("address {address} is denied: {range} (`delivery.allow_networks`)")]
    Address {
        address: IpAddr,
        range: &'static str,
    },
}

impl AddressPolicy {
    /// Checks the scheme, and the host where it is an address (in any spelling: `url` has brought
    /// `0x7f.1`, `2130706433` and full-width digits into one form) or a name of this host.
    pub fn check_url(&self, url: &Url) -> Result<(), Denied> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err(Denied::PlainHttp),
            other => return Err(Denied::Scheme(other.to_owned())),
        }
        match url.host().ok_or(Denied::NoHost)? {
            Host::Ipv4(address) => self.check(address.into()),
            Host::Ipv6(address) => self.check(address.into()),
            Host::Domain(name) if is_localhost(name) => match self.loopback().is_empty() {
                true => Err(Denied::Localhost),
                false => Ok(()),
            },
            Host::Domain(_) => Ok(()),
        }
    }

    /// Passes on what a name resolved to, if all of it is allowed: one forbidden answer among
    /// public ones is a rebinding attempt or a mistake, and neither is worth a request.
    pub fn vet(&self, answers: &[SocketAddr]) -> Result<Vec<SocketAddr>, Denied> {
        for answer in answers {
            self.check(answer.ip())?;
        }
        Ok(answers.to_vec())
    }

    /// What `localhost` means here: those of the two loopback addresses that are allowed. The
    /// resolver is not asked, since it would name both where only one was opened.
    pub fn loopback(&self) -> Vec<IpAddr> {
        let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        both.into_iter()
            .filter(|address| self.check(*address).is_ok())
            .collect()
    }

    fn check(&self, address: IpAddr) -> Result<(), Denied> {
        if self.opens(address) {
            return Ok(());
        }
        let range = match address {
            IpAddr::V4(v4) => special_v4(v4),
            IpAddr::V6(v6) => match embedded(v6) {
                // The packet ends at the IPv4 address, so that is the one to judge.
                Some(v4) if self.opens(v4.into()) => None,
                Some(v4) => special_v4(v4),
                None => special_v6(v6),
            },
        };
        match range {
            Some(range) => Err(Denied::Address { address, range }),
            None => Ok(()),
        }
    }

    fn opens(&self, address: IpAddr) -> bool {
        self.allow_networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

/// `localhost` and names below it, which RFC 6761 keeps for this host; with or without a last dot.
pub fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let last = name.rsplit('.').next().unwrap_or(name);
    last.eq_ignore_ascii_case("localhost")
}

/// The IPv4 address inside an IPv6 address that leads to it: IPv4-mapped, 6to4 and NAT64.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(v4(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// The special range (IANA IPv4 Special-Purpose Address Registry, and multicast) of an address.
fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [0, ..] => "this network",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "shared by carriers",
        [127, ..] => "loopback",
        [169, 254, ..] => "link-local, cloud metadata",
        [192, 0, 0, _] => "protocol assignments",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "documentation",
        [192, 88, 99, _] => "6to4 relays",
        [198, 18..=19, ..] => "benchmarking",
        [224..=239, ..] => "multicast",
        [240..=255, ..] => "reserved or broadcast",
        _ => return None,
    })
}

/// The special range of an address. Only 2000::/3 is given out as public unicast, so everything
/// else is denied, whatever it may be called one day.
fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0, 0, 0, 0, 0, 0, _, _] => "IPv4-compatible",
        [0x64, 0xff9b, 1, ..] => "local NAT64",
        [0x100, 0, 0, 0 | 1, ..] => "discard",
        [0x2001, 0..=0x1ff, ..] => "protocol assignments, Teredo",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "documentation",
        [0x2000..=0x3fff, ..] => return None,
        [0x5f00, ..] => "segment routing",
        [0xfc00..=0xfdff, ..] => "unique local",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "site-local",
        [0xff00..=0xffff, ..] => "multicast",
        _ => "not public unicast",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strict() -> AddressPolicy {
        AddressPolicy {
            allow_http: true,
            allow_networks: Vec::new(),
        }
    }

    fn opening(networks: &[&str]) -> AddressPolicy {
        AddressPolicy {
            allow_http: true,
            allow_networks: networks.iter().map(|n| n.parse().unwrap()).collect(),
        }
    }

    fn check(policy: &AddressPolicy, url: &str) -> Result<(), Denied> {
        policy.check_url(&Url::parse(url).unwrap())
    }

    #[test]
    fn private_addresses_are_denied_in_every_spelling() {
        for host in [
            "127.0.0.1",
            "127.1",
            "127.0.0.1.",
            "0x7f.1",
            "0x7f000001",
            "017700000001",
            "0177.0.0.1",
            "2130706433",
            "127.0.0x1",
            "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
            "\u{2460}\u{2461}\u{2466}.0.0.1",
            "127\u{3002}0\u{3002}0\u{3002}1",
            "%31%32%37.0.0.1",
            "0",
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.169.254",
            "0xa9fea9fe",
            "2852039166",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.2",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::127.0.0.1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2002:a9fe:a9fe::1]",
            "[2001::1]",
            "[2001:0:7f00:1::]",
            "[2001:1ff::1]",
            "[2001:db8::1]",
            "[3fff::1]",
            "[100::1]",
            "[5f00::1]",
            "[4000::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.localhost",
            "a.LocalHost.",
        ] {
            let denied = check(&strict(), &format!("http://{host}:8080/in"));
            assert!(
                matches!(denied, Err(Denied::Address { .. } | Denied::Localhost)),
                "{host}: {denied:?}"
            );
        }
    }

    #[test]
    fn public_addresses_and_names_pass() {
        for host in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "[2606:4700:4700::1111]",
            "[2001:200::1]",
            "[2001:4860:4860::8888]",
            "[::ffff:1.1.1.1]",
            "[64:ff9b::101:101]",
            "[2002:101:101::1]",
            "example.com",
            "localhost.example.com",
            "mylocalhost",
        ] {
            assert_eq!(
                check(&strict(), &format!("https://{host}/")),
                Ok(()),
                "{host}"
            );
        }
    }

    #[test]
    fn schemes() {
        let https_only = AddressPolicy::default();
        assert_eq!(check(&https_only, "https://example.com/"), Ok(()));
        assert_eq!(
            check(&https_only, "http://example.com/"),
            Err(Denied::PlainHttp)
        );
        for url in [
            "file:///etc/passwd",
            "ftp://example.com/",
            "unix:/run/docker.sock",
            "data:,x",
        ] {
            assert!(
                matches!(check(&strict(), url), Err(Denied::Scheme(_))),
                "{url}"
            );
        }
    }

    #[test]
    fn a_range_opened_on_purpose_is_open_and_no_other() {
        let policy = opening(&["127.0.0.0/8", "10.1.0.0/16", "fd12::/16"]);
        for host in [
            "127.0.0.1",
            "10.1.255.1",
            "[fd12::1]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::10.1.0.1]",
            "localhost",
        ] {
            assert_eq!(check(&policy, &format!("http://{host}/")), Ok(()), "{host}");
        }
        for host in [
            "10.2.0.1",
            "[::1]",
            "[fd13::1]",
            "169.254.169.254",
            "[::127.0.0.1]",
        ] {
            assert!(
                check(&policy, &format!("http://{host}/")).is_err(),
                "{host}"
            );
        }
        assert_eq!(policy.loopback(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(strict().loopback(), Vec::<IpAddr>::new());
        // A name of this host is of no use while loopback is shut.
        assert_eq!(
            check(&opening(&["10.0.0.0/8"]), "http://localhost/"),
            Err(Denied::Localhost)
        );
    }

    #[test]
    fn one_forbidden_answer_rejects_them_all() {
        let public: SocketAddr = "1.1.1.1:443".parse().unwrap();
        let private: SocketAddr = "[::ffff:10.0.0.1]:443".parse().unwrap();
        assert_eq!(strict().vet(&[public]), Ok(vec![public]));
        assert_eq!(
            strict().vet(&[public, private]),
            Err(Denied::Address {
                address: private.ip(),
                range: "private"
            })
        );
    }

    proptest! {
        #[test]
        fn embedding_an_address_never_changes_the_verdict(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from(bits);
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let plain = strict().check(v4.into()).is_ok();
            for v6 in [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ] {
                prop_assert_eq!(strict().check(v6.into()).is_ok(), plain);
            }
            prop_assert!(strict().check(v4.to_ipv6_compatible().into()).is_err());
        }

        #[test]
        fn every_spelling_of_a_number_is_judged_alike(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from(bits);
            let [a, b, c, d] = v4.octets();
            let plain = strict().check(v4.into()).is_ok();
            for spelling in [
                format!("{bits}"),
                format!("0x{bits:x}"),
                format!("0{bits:o}"),
                format!("{a}.{b}.{}", u16::from_be_bytes([c, d])),
                format!("{a}.{}", bits & 0xff_ffff),
                format!("0x{a:x}.0{b:o}.{c}.{d}."),
            ] {
                prop_assert_eq!(check(&strict(), &format!("https://{spelling}/")).is_ok(), plain, "{}", spelling);
            }
        }

        #[test]
        fn std_calls_nothing_private_that_we_let_through(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from(bits);
            if v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_multicast()
                || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified() {
                prop_assert!(strict().check(v4.into()).is_err());
            }
        }

        #[test]
        fn only_2000_slash_3_and_what_leads_to_public_ipv4_is_open(bits in any::<u128>()) {
            let v6 = Ipv6Addr::from(bits);
            if strict().check(v6.into()).is_ok() {
                prop_assert!(embedded(v6).is_some() || v6.segments()[0] >> 13 == 1);
            }
        }
    }
}
