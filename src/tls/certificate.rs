//! Certificates as `doctor` speaks of them: whose, by whom, and how many days they have left.

use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::finding::Findings;

/// With fewer days than this left somebody should be renewing it.
const FEW_DAYS: i64 = 21;
const DAY_SECONDS: i64 = 86_400;

/// What a certificate says of itself. Whether it is believed is the verifier's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    /// DNS names and addresses it is for.
    pub names: Vec<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Certificate {
    /// `None` when it cannot be read.
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let at = |seconds: i64| Timestamp::from_second(seconds).ok();
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|names| &names.value.general_names);
        Some(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            names: names.into_iter().flatten().filter_map(name).collect(),
            not_before: at(certificate.validity().not_before.timestamp())?,
            not_after: at(certificate.validity().not_after.timestamp())?,
        })
    }

    /// The first certificate of a PEM file: the one that speaks for whoever has the key.
    pub fn of_file(path: &Path) -> Result<Self, String> {
        let all = super::certificates(path)?;
        let read = all.first().and_then(Self::read);
        read.ok_or_else(|| format!("the certificate in {} cannot be read", path.display()))
    }

    pub fn is_self_signed(&self) -> bool {
        self.subject == self.issuer
    }

    /// Whole days until it expires; negative when it has.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        (self.not_after.as_second() - now.as_second()).div_euclid(DAY_SECONDS)
    }

    /// How long ago it expired, in words.
    fn since_its_end(&self, now: Timestamp) -> String {
        match (now.as_second() - self.not_after.as_second()) / DAY_SECONDS {
            0 => "today".to_owned(),
            days => format!("{days} days ago"),
        }
    }

    /// Whose it is, in few words: its first names, else its subject.
    fn shown(&self) -> String {
        match self.names.as_slice() {
            [] => self.subject.clone(),
            [one] => one.clone(),
            [one, rest @ ..] => format!("{one} and {} more", rest.len()),
        }
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// Says how long the certificates of a believed `chain` last.
pub async fn tell_of_chain(found: &Findings, who: &str, chain: &[Certificate], now: Timestamp) {
    let Some(own) = chain.first() else { return };
    let soonest = chain.iter().min_by_key(|one| one.not_after).unwrap_or(own);
    let days = soonest.days_left(now);
    let whose = match soonest == own {
        true => format!("{who}: the certificate"),
        false => format!("{who}: the intermediate certificate `{}`", soonest.subject),
    };
    if days < FEW_DAYS {
        let what = format!("{whose} expires in {days} days ({})", soonest.not_after);
        found
            .warning(what, "have it renewed: deliveries fail from then on")
            .await;
        return;
    }
    let (shown, length) = (own.shown(), chain.len());
    found
        .ok(format!(
            "{who}: TLS works; certificate for {shown}, chain of {length}, {days} days left"
        ))
        .await;
}

/// Says what is wrong with a chain that was not believed, for `why` as the verifier has it.
pub async fn tell_of_disbelief(
    found: &Findings,
    who: &str,
    chain: &[Certificate],
    why: &str,
    now: Timestamp,
) {
    let Some(own) = chain.first() else {
        found
            .problem(
                format!("{who}: TLS does not work: {why}"),
                "check that this port speaks TLS, and with which versions",
            )
            .await;
        return;
    };
    let days = own.days_left(now);
    let (what, advice) = if days < 0 {
        (
            format!("the certificate expired {}", own.since_its_end(now)),
            "have it renewed".to_owned(),
        )
    } else if own.not_before > now {
        (
            format!("the certificate is not valid before {}", own.not_before),
            "check the clocks of both sides".to_owned(),
        )
    } else if why.contains("UnknownIssuer") || why.contains("CaUsedAsEndEntity") {
        let by = match own.is_self_signed() {
            true => "the certificate is signed by itself".to_owned(),
            false => format!(
                "nobody believed has signed the certificate (`{}` has)",
                own.issuer
            ),
        };
        (
            by,
            "name its authority in `tls.ca`, or have the server send the whole chain".to_owned(),
        )
    } else if why.contains("not valid for name") || why.contains("NotValidForName") {
        (
            format!("the certificate is for {}", own.shown()),
            "use a name that the certificate has, or have one made for this host".to_owned(),
        )
    } else {
        (
            format!("TLS does not work: {why}"),
            "ask whoever runs the server".to_owned(),
        )
    };
    found.problem(format!("{who}: {what}"), advice).await;
}

/// Says how long our own client certificate lasts.
pub async fn tell_of_own(found: &Findings, path: &Path, now: Timestamp) {
    match Certificate::of_file(path) {
        Err(why) => {
            found
                .problem(why, "`tls.cert` has to name a PEM file that can be read")
                .await;
        }
        Ok(own) => {
            let days = own.days_left(now);
            let what = format!("our client certificate has {days} days left");
            if days < 0 {
                let what = format!("our client certificate expired {}", own.since_its_end(now));
                found.problem(what, "have it renewed").await;
            } else if days < FEW_DAYS {
                found.warning(what, "have it renewed").await;
            } else {
                found.ok(what).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_tells_its_names_and_its_days() {
        let mut params =
            rcgen::CertificateParams::new(vec!["a.test".to_owned(), "127.0.0.1".to_owned()])
                .unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 11);
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        let read = Certificate::read(made.der()).unwrap();
        assert_eq!(read.names, ["a.test", "127.0.0.1"]);
        assert!(read.is_self_signed());
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(read.days_left(at("2030-01-01T00:00:00Z")), 10);
        assert_eq!(read.days_left(at("2030-01-10T23:00:00Z")), 0);
        assert_eq!(read.days_left(at("2030-01-11T01:00:00Z")), -1);
        assert_eq!(Certificate::read(&CertificateDer::from(vec![1, 2])), None);
    }
}
