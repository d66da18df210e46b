//! Standard Webhooks: `id.timestamp.body`, signed with HMAC-SHA256 (`v1`) or ed25519 (`v1a`).
//!
//! Svix, from which it comes, has the same under other names. See
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderName;
use sha2::Sha256;

use super::mac::same;
use super::{Clock, ID, Received, SIGNATURE, SecretError, TIMESTAMP, VerifyError, put, text_of};
use crate::outgoing::Outgoing;
use crate::subscription::{Secret, TimeUnit};

pub(super) const HMAC_SECRET: &str = "whsec_";
pub(super) const ED25519_SECRET: &str = "whsk_";
const ED25519_PUBLIC: &str = "whpk_";
const HMAC_VERSION: &str = "v1,";
const ED25519_VERSION: &str = "v1a,";

/// Where a receiver looks.
pub(super) struct Names {
    id: HeaderName,
    timestamp: HeaderName,
    signature: HeaderName,
}

pub(super) static NAMES: Names = Names {
    id: ID,
    timestamp: TIMESTAMP,
    signature: SIGNATURE,
};
pub(super) static SVIX_NAMES: Names = Names {
    id: HeaderName::from_static("svix-id"),
    timestamp: HeaderName::from_static("svix-timestamp"),
    signature: HeaderName::from_static("svix-signature"),
};

impl Names {
    pub(super) fn has(&self, name: &HeaderName) -> bool {
        [&self.id, &self.timestamp, &self.signature].contains(&name)
    }

    /// What a request says: id, timestamp and signatures.
    fn read<'a>(
        &self,
        request: &Received<'a>,
        clock: Clock,
    ) -> Result<(&'a str, &'a str, &'a str), VerifyError> {
        let id = text_of(request.headers, &self.id)?;
        let timestamp = text_of(request.headers, &self.timestamp)?;
        clock.check(timestamp, TimeUnit::Seconds, &self.timestamp)?;
        let signatures = text_of(request.headers, &self.signature)?;
        Ok((id, timestamp, signatures))
    }
}

/// HMAC states in which the keys are already absorbed; a signature starts from a copy.
pub(super) struct HmacKeys {
    macs: Vec<Hmac<Sha256>>,
    names: &'static Names,
}

impl HmacKeys {
    pub(super) fn new(names: &'static Names, secrets: &[Secret]) -> Result<Self, SecretError> {
        let prepare = |secret: &Secret| {
            let key = decode(secret, HMAC_SECRET)?;
            if !(24..=64).contains(&key.len()) {
                return Err(SecretError::Length {
                    found: key.len(),
                    wanted: "24 to 64",
                });
            }
            Ok(Hmac::new_from_slice(&key).expect("HMAC takes keys of any length"))
        };
        let macs = secrets.iter().map(prepare).collect::<Result<_, _>>()?;
        Ok(Self { macs, names })
    }

    pub(super) fn sign(&self, id: &str, timestamp: i64, request: &mut Outgoing) {
        let timestamp = timestamp.to_string();
        let mut signatures = String::with_capacity(self.macs.len() * 48);
        for tag in self.tags(id, &timestamp, &request.body) {
            append(&mut signatures, HMAC_VERSION, &tag);
        }
        let (names, headers) = (self.names, &mut request.headers);
        put(headers, names.signature.clone(), signatures);
        // Under the names of the standard they are there already.
        if names.id != ID {
            put(headers, names.id.clone(), id.to_owned());
            put(headers, names.timestamp.clone(), timestamp);
        }
    }

    pub(super) fn verify(&self, request: &Received<'_>, clock: Clock) -> Result<(), VerifyError> {
        let (id, timestamp, signatures) = self.names.read(request, clock)?;
        let mut found = false;
        for tag in self.tags(id, timestamp, request.body) {
            let expected = BASE64.encode(tag);
            for given in each(signatures, HMAC_VERSION) {
                found |= same(given, &expected);
            }
        }
        found.then_some(()).ok_or(VerifyError::Mismatch)
    }

    fn tags(&self, id: &str, timestamp: &str, body: &[u8]) -> impl Iterator<Item = [u8; 32]> {
        self.macs.iter().map(move |prepared| {
            let mut mac = prepared.clone();
            mac.update(id.as_bytes());
            mac.update(b".");
            mac.update(timestamp.as_bytes());
            mac.update(b".");
            mac.update(body);
            mac.finalize().into_bytes().into()
        })
    }
}

pub(super) struct Ed25519Keys(Vec<SigningKey>);

impl Ed25519Keys {
    pub(super) fn new(secrets: &[Secret]) -> Result<Self, SecretError> {
        secrets
            .iter()
            .map(signing_key)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn sign(&self, id: &str, timestamp: i64, request: &mut Outgoing) {
        let message = message(id, &timestamp.to_string(), &request.body);
        let mut signatures = String::with_capacity(self.0.len() * 93);
        for key in &self.0 {
            append(
                &mut signatures,
                ED25519_VERSION,
                &key.sign(&message).to_bytes(),
            );
        }
        put(&mut request.headers, SIGNATURE, signatures);
    }

    pub(super) fn verifiers(&self) -> Ed25519Verifiers {
        Ed25519Verifiers(self.0.iter().map(SigningKey::verifying_key).collect())
    }
}

/// Public keys, given as such or taken from signing keys.
pub(super) struct Ed25519Verifiers(Vec<VerifyingKey>);

impl Ed25519Verifiers {
    pub(super) fn new(secrets: &[Secret]) -> Result<Self, SecretError> {
        let key = |secret: &Secret| {
            if !secret.expose().starts_with(ED25519_PUBLIC) {
                return signing_key(secret).map(|key| key.verifying_key());
            }
            let bytes = decode(secret, ED25519_PUBLIC)?;
            let bytes: [u8; 32] =
                bytes
                    .try_into()
                    .map_err(|bytes: Vec<u8>| SecretError::Length {
                        found: bytes.len(),
                        wanted: "32",
                    })?;
            VerifyingKey::from_bytes(&bytes).map_err(|_| SecretError::KeyPair)
        };
        secrets.iter().map(key).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn verify(&self, request: &Received<'_>, clock: Clock) -> Result<(), VerifyError> {
        let (id, timestamp, signatures) = NAMES.read(request, clock)?;
        let message = message(id, timestamp, request.body);
        let found = each(signatures, ED25519_VERSION)
            .filter_map(|signature| BASE64.decode(signature).ok())
            .filter_map(|bytes| Signature::from_slice(&bytes).ok())
            .any(|signature| {
                self.0
                    .iter()
                    .any(|key| key.verify_strict(&message, &signature).is_ok())
            });
        found.then_some(()).ok_or(VerifyError::Mismatch)
    }
}

/// The seed (32 bytes), or the seed and its public key (64 bytes, as the reference libraries write it).
fn signing_key(secret: &Secret) -> Result<SigningKey, SecretError> {
    let bytes = decode(secret, ED25519_SECRET)?;
    if let Ok(pair) = <[u8; 64]>::try_from(bytes.as_slice()) {
        return SigningKey::from_keypair_bytes(&pair).map_err(|_| SecretError::KeyPair);
    }
    match <[u8; 32]>::try_from(bytes.as_slice()) {
        Ok(seed) => Ok(SigningKey::from_bytes(&seed)),
        Err(_) => Err(SecretError::Length {
            found: bytes.len(),
            wanted: "32 or 64",
        }),
    }
}

fn decode(secret: &Secret, prefix: &'static str) -> Result<Vec<u8>, SecretError> {
    let encoded = secret
        .expose()
        .strip_prefix(prefix)
        .ok_or(SecretError::Prefix(prefix))?;
    BASE64
        .decode(encoded)
        .map_err(|_| SecretError::Base64(prefix))
}

/// ed25519 goes over the message twice, so it needs it in one piece.
fn message(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat()
}

fn append(signatures: &mut String, version: &str, bytes: &[u8]) {
    if !signatures.is_empty() {
        signatures.push(' ');
    }
    signatures.push_str(version);
    BASE64.encode_string(bytes, signatures);
}

/// The signatures of one version in a space-separated list.
fn each<'a>(list: &'a str, version: &'static str) -> impl Iterator<Item = &'a str> {
    list.split(' ').filter_map(move |s| s.strip_prefix(version))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::super::tests::{AT, ID, check as check_request, kept, request, sign_at};
    use super::super::{Signer, VerifyError};
    use super::*;
    use crate::subscription::Scheme;

    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const KEY: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";

    fn signed(scheme: Scheme, secrets: &[&str], at: i64) -> HeaderMap {
        let mut request = request("https://h/", "application/json", BODY);
        sign_at(&scheme, secrets, at * 1000, &mut request);
        request.headers
    }

    fn signer(scheme: Scheme, secrets: &[&str]) -> Result<Signer, SecretError> {
        Signer::new(&scheme, &kept(secrets))
    }

    fn check(
        scheme: Scheme,
        secret: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(), VerifyError> {
        let mut request = request("https://h/", "application/json", body);
        request.headers = headers.clone();
        check_request(&scheme, secret, &request, AT)
    }

    #[test]
    fn the_published_hmac_vector() {
        let headers = signed(Scheme::Standard, &[SECRET], AT);
        assert_eq!(headers["webhook-id"], ID);
        assert_eq!(headers["webhook-timestamp"], "1614265330");
        assert_eq!(
            headers["webhook-signature"],
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        assert_eq!(check(Scheme::Standard, SECRET, &headers, BODY), Ok(()));
    }

    #[test]
    fn the_published_ed25519_vector() {
        let headers = signed(Scheme::StandardEd25519, &[KEY], AT);
        assert_eq!(
            headers["webhook-signature"],
            "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
        );
        assert_eq!(check(Scheme::StandardEd25519, KEY, &headers, BODY), Ok(()));
        let public = format!(
            "whpk_{}",
            BASE64.encode(signing_key(&Secret::new(KEY)).unwrap().verifying_key())
        );
        assert_eq!(
            check(Scheme::StandardEd25519, &public, &headers, BODY),
            Ok(())
        );
        assert_eq!(
            check(Scheme::StandardEd25519, &public, &headers, b"other"),
            Err(VerifyError::Mismatch)
        );
    }

    #[test]
    fn while_rotating_both_secrets_sign_and_either_verifies() {
        let headers = signed(Scheme::Standard, &[OTHER, SECRET], AT);
        let list = headers["webhook-signature"].to_str().unwrap();
        assert_eq!(list.split(' ').count(), 2);
        assert!(list.ends_with(" v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
        assert_eq!(check(Scheme::Standard, SECRET, &headers, BODY), Ok(()));
        assert_eq!(check(Scheme::Standard, OTHER, &headers, BODY), Ok(()));
    }

    #[test]
    fn an_unsigned_request_still_has_the_id_and_drops_a_forged_signature() {
        let mut request = request("https://h/", "application/json", BODY);
        let forged = "v1,forged".parse().unwrap();
        request.headers.insert("webhook-signature", forged);
        sign_at(&Scheme::None, &[], AT * 1000, &mut request);
        assert_eq!(request.headers["webhook-id"], ID);
        assert!(!request.headers.contains_key("webhook-signature"));
    }

    #[test]
    fn svix_has_names_of_its_own() {
        let headers = signed(Scheme::Svix, &[SECRET], AT);
        assert_eq!(headers["svix-id"], ID);
        assert_eq!(headers["svix-timestamp"], "1614265330");
        assert_eq!(
            headers["svix-signature"],
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        assert!(!headers.contains_key("webhook-signature"));
        assert_eq!(check(Scheme::Svix, SECRET, &headers, BODY), Ok(()));
    }

    #[test]
    fn secrets_are_checked_and_never_shown() {
        for (secret, wrong) in [
            (
                "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                SecretError::Prefix("whsec_"),
            ),
            ("whsec_not base64", SecretError::Base64("whsec_")),
            (
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
                SecretError::Base64("whsec_"),
            ),
            (
                "whsec_c2hvcnQ=",
                SecretError::Length {
                    found: 5,
                    wanted: "24 to 64",
                },
            ),
        ] {
            let error = signer(Scheme::Standard, &[SECRET, secret]).unwrap_err();
            assert_eq!(error, wrong);
            assert!(!error.to_string().contains("MfKQ"));
        }
        assert_eq!(
            signer(Scheme::Standard, &[]).unwrap_err(),
            SecretError::Missing("standard")
        );
        let torn = KEY.replace("whsk_6Xb", "whsk_7Xb");
        assert_eq!(
            signer(Scheme::StandardEd25519, &[&torn]).unwrap_err(),
            SecretError::KeyPair
        );
    }

    #[test]
    fn keys_of_24_and_64_bytes_are_the_limits() {
        for (length, fits) in [(23, false), (24, true), (64, true), (65, false)] {
            let secret = format!("whsec_{}", BASE64.encode(vec![7u8; length]));
            assert_eq!(
                signer(Scheme::Standard, &[&secret]).is_ok(),
                fits,
                "{length}"
            );
        }
    }

    #[test]
    fn old_and_early_timestamps_are_refused_at_the_tolerance() {
        let at = |offset| {
            check(
                Scheme::Standard,
                SECRET,
                &signed(Scheme::Standard, &[SECRET], AT + offset),
                BODY,
            )
        };
        assert_eq!(at(-300), Ok(()));
        assert_eq!(at(300), Ok(()));
        assert_eq!(at(-301), Err(VerifyError::TooOld(301)));
        assert_eq!(at(301), Err(VerifyError::TooNew(301)));
    }

    #[test]
    fn hostile_headers_are_errors_not_panics() {
        let headers = signed(Scheme::Standard, &[SECRET], AT);
        for (name, value) in [
            ("webhook-timestamp", "9223372036854775807"),
            ("webhook-timestamp", "-9223372036854775808"),
            ("webhook-timestamp", "soon"),
            ("webhook-timestamp", "+1614265330"),
            ("webhook-id", ""),
            ("webhook-signature", "v1"),
            ("webhook-signature", "v1,"),
            (
                "webhook-signature",
                "v1a,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
            (
                "webhook-signature",
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE",
            ),
        ] {
            let mut changed = headers.clone();
            changed.insert(name, value.parse().unwrap());
            assert!(
                check(Scheme::Standard, SECRET, &changed, BODY).is_err(),
                "{name}: {value}"
            );
            changed.remove(name);
            assert!(
                check(Scheme::Standard, SECRET, &changed, BODY).is_err(),
                "no {name}"
            );
        }
    }

    /// The reference library accepts what we sign, and nothing that was changed.
    #[test]
    fn the_reference_library_agrees() {
        let now = jiff::Timestamp::now().as_second();
        let reference = standardwebhooks::Webhook::new(SECRET).unwrap();
        let good = signed(Scheme::Standard, &[OTHER, SECRET], now);
        assert!(reference.verify(BODY, &good).is_ok());
        assert!(reference.verify(b"{}", &good).is_err());
        assert!(
            standardwebhooks::Webhook::new(KEY.trim_start_matches("whsk_"))
                .unwrap()
                .verify(BODY, &good)
                .is_err()
        );
        for (name, value) in [
            ("webhook-id", "msg_other".to_owned()),
            ("webhook-timestamp", (now - 1).to_string()),
        ] {
            let mut changed = good.clone();
            changed.insert(name, value.parse().unwrap());
            assert!(reference.verify(BODY, &changed).is_err(), "{name}");
        }
    }

    proptest! {
        // ed25519 takes its time in an unoptimised build.
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_flipped_byte_is_noticed(body in prop::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(), flip in 1u8..) {
            for (scheme, secret) in [(Scheme::Standard, SECRET), (Scheme::StandardEd25519, KEY)] {
                let mut request = request("https://h/", "application/json", &body);
                sign_at(&scheme, &[secret], AT * 1000, &mut request);
                prop_assert_eq!(check_request(&scheme, secret, &request, AT), Ok(()));
                let mut changed = body.clone();
                changed[at.index(body.len())] ^= flip;
                request.body = Bytes::from(changed);
                prop_assert_eq!(check_request(&scheme, secret, &request, AT), Err(VerifyError::Mismatch));
            }
        }
    }
}
