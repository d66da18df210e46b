//! Standard Webhooks: `id.timestamp.body`, signed with HMAC-SHA256 (`v1`) or ed25519 (`v1a`).
//!
//! See <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::SecretError;
use crate::subscription::Secret;

const HMAC_SECRET: &str = "whsec_";
const ED25519_SECRET: &str = "whsk_";
const ED25519_PUBLIC: &str = "whpk_";
const HMAC_VERSION: &str = "v1,";
const ED25519_VERSION: &str = "v1a,";

/// HMAC states in which the keys are already absorbed; a signature starts from a copy.
pub(super) struct HmacKeys(Vec<Hmac<Sha256>>);

impl HmacKeys {
    pub(super) fn new(secrets: &[Secret]) -> Result<Self, SecretError> {
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
        secrets
            .iter()
            .map(prepare)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let timestamp = timestamp.to_string();
        let mut signatures = String::with_capacity(self.0.len() * 48);
        for tag in self.tags(id, &timestamp, body) {
            append(&mut signatures, HMAC_VERSION, &tag);
        }
        signatures
    }

    pub(super) fn verify(&self, id: &str, timestamp: &str, body: &[u8], given: &str) -> bool {
        let mut found = false;
        for tag in self.tags(id, timestamp, body) {
            let expected = BASE64.encode(tag);
            for signature in each(given, HMAC_VERSION) {
                found |= bool::from(signature.as_bytes().ct_eq(expected.as_bytes()));
            }
        }
        found
    }

    fn tags(&self, id: &str, timestamp: &str, body: &[u8]) -> impl Iterator<Item = [u8; 32]> {
        self.0.iter().map(move |prepared| {
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

    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let message = message(id, &timestamp.to_string(), body);
        let mut signatures = String::with_capacity(self.0.len() * 93);
        for key in &self.0 {
            append(
                &mut signatures,
                ED25519_VERSION,
                &key.sign(&message).to_bytes(),
            );
        }
        signatures
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

    pub(super) fn verify(&self, id: &str, timestamp: &str, body: &[u8], given: &str) -> bool {
        let message = message(id, timestamp, body);
        each(given, ED25519_VERSION)
            .filter_map(|signature| BASE64.decode(signature).ok())
            .filter_map(|bytes| Signature::from_slice(&bytes).ok())
            .any(|signature| {
                self.0
                    .iter()
                    .any(|key| key.verify_strict(&message, &signature).is_ok())
            })
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
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::super::{Signer, TOLERANCE, VerifyError, verify};
    use super::*;
    use crate::event::EventId;
    use crate::subscription::Scheme;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const KEY: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";

    fn signed(scheme: Scheme, secrets: &[&str], at: i64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let id = EventId::kept(ID).unwrap();
        signer(scheme, secrets)
            .unwrap()
            .sign(&id, at, BODY, &mut headers);
        headers
    }

    fn signer(scheme: Scheme, secrets: &[&str]) -> Result<Signer, SecretError> {
        Signer::new(scheme, &kept(secrets))
    }

    fn kept(secrets: &[&str]) -> Vec<Secret> {
        secrets.iter().copied().map(Secret::new).collect()
    }

    fn check(
        scheme: Scheme,
        secret: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(), VerifyError> {
        verify(scheme, &kept(&[secret]), headers, body, AT, TOLERANCE)
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
        let mut headers = HeaderMap::new();
        headers.insert("webhook-signature", "v1,forged".parse().unwrap());
        let id = EventId::kept(ID).unwrap();
        signer(Scheme::None, &[])
            .unwrap()
            .sign(&id, AT, BODY, &mut headers);
        assert_eq!(headers["webhook-id"], ID);
        assert!(!headers.contains_key("webhook-signature"));
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
            let id = EventId::random();
            for (scheme, secret) in [(Scheme::Standard, SECRET), (Scheme::StandardEd25519, KEY)] {
                let mut headers = HeaderMap::new();
                signer(scheme, &[secret]).unwrap().sign(&id, AT, &body, &mut headers);
                prop_assert_eq!(check(scheme, secret, &headers, &body), Ok(()));
                let mut changed = body.clone();
                changed[at.index(body.len())] ^= flip;
                prop_assert_eq!(check(scheme, secret, &headers, &changed), Err(VerifyError::Mismatch));
            }
        }
    }
}
