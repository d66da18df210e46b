//! `encrypt`: the body as a JWE in its compact form (RFC 7516), for a receiver's public key.
//!
//! The content is always encrypted with A256GCM. Its key goes to an EC key by ECDH-ES+A256KW, to
//! an RSA key by RSA-OAEP-256. `cty` says what the content is, and `content-encoding` how the
//! message's body was encoded, if it was. Every attempt has a key of its own.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{
    self, ECDH_P256, ECDH_P384, ECDH_P521, EphemeralPrivateKey, UnparsedPublicKey,
};
use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderValue;
use serde_json::{Value, json};

use super::{Formed, RenderError};
use crate::subscription::Encryption;

const JOSE: HeaderValue = HeaderValue::from_static("application/jose");
const FEWEST_RSA_BITS: usize = 2048;

/// Encrypts for one receiver.
pub(super) struct Recipient {
    key: Key,
    kid: Option<String>,
}

enum Key {
    Ec {
        curve: &'static Curve,
        /// Uncompressed.
        point: Vec<u8>,
    },
    Rsa(OaepPublicEncryptingKey),
}

#[derive(Debug)]
struct Curve {
    name: &'static str,
    algorithm: &'static agreement::Algorithm,
    /// Of one coordinate.
    bytes: usize,
    /// As SPKI names it.
    oid: &'static str,
}

static CURVES: [Curve; 3] = [
    Curve {
        name: "P-256",
        algorithm: &ECDH_P256,
        bytes: 32,
        oid: "1.2.840.10045.3.1.7",
    },
    Curve {
        name: "P-384",
        algorithm: &ECDH_P384,
        bytes: 48,
        oid: "1.3.132.0.34",
    },
    Curve {
        name: "P-521",
        algorithm: &ECDH_P521,
        bytes: 66,
        oid: "1.3.132.0.35",
    },
];

/// Why a key cannot be used. Never contains any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    #[error("this is neither a JWK nor a public key in PEM (`-----BEGIN PUBLIC KEY-----`)")]
    Neither,
    #[error("this is a private key; give its public half")]
    Private,
    #[error(
        "keys of this kind are not supported: give an EC key (P-256, P-384, P-521) or an RSA key"
    )]
    Kind,
    #[error("`{0}` of the JWK is missing, or no base64url of a number of the right length")]
    Member(&'static str),
    #[error("the key's point is not on its curve")]
    Point,
    #[error("an RSA key has {FEWEST_RSA_BITS} bits or more")]
    Short,
    #[error("`{0}` of the JWK is not what this key is used for")]
    Use(&'static str),
}

/// Whether bodies can be encrypted for this key: a JWK or PEM.
pub fn check_key(key: &str) -> Result<(), KeyProblem> {
    read(key).map(drop)
}

fn read(key: &str) -> Result<(Key, Option<String>), KeyProblem> {
    let key = key.trim();
    if key.starts_with('{') {
        let jwk: Value = serde_json::from_str(key).map_err(|_| KeyProblem::Neither)?;
        let kid = jwk.get("kid").and_then(Value::as_str).map(str::to_owned);
        return Ok((of_jwk(&jwk)?, kid));
    }
    Ok((of_pem(key)?, None))
}

fn of_jwk(jwk: &Value) -> Result<Key, KeyProblem> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let number = |name: &'static str| {
        let bytes = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        bytes.ok_or(KeyProblem::Member(name))
    };
    if ["d", "p", "k"].iter().any(|name| jwk.get(name).is_some()) {
        return Err(KeyProblem::Private);
    }
    if text("use").is_some_and(|used| used != "enc") {
        return Err(KeyProblem::Use("use"));
    }
    let (key, algorithm) = match text("kty") {
        Some("EC") => {
            let curve = CURVES.iter().find(|curve| text("crv") == Some(curve.name));
            let curve = curve.ok_or(KeyProblem::Kind)?;
            let mut point = vec![4];
            for name in ["x", "y"] {
                let coordinate = number(name)?;
                if coordinate.len() != curve.bytes {
                    return Err(KeyProblem::Member(name));
                }
                point.extend(coordinate);
            }
            (ec(curve, point)?, "ECDH-ES+A256KW")
        }
        Some("RSA") => {
            let (n, e) = (number("n")?, number("e")?);
            let key: Result<PublicEncryptingKey, _> = PublicKeyComponents { n, e }.try_into();
            (
                rsa(key.map_err(|_| KeyProblem::Member("n"))?)?,
                "RSA-OAEP-256",
            )
        }
        _ => return Err(KeyProblem::Kind),
    };
    match text("alg") {
        Some(other) if other != algorithm => Err(KeyProblem::Use("alg")),
        _ => Ok(key),
    }
}

fn of_pem(key: &str) -> Result<Key, KeyProblem> {
    if key.contains("PRIVATE KEY-----") {
        return Err(KeyProblem::Private);
    }
    let inner = key
        .strip_prefix("-----BEGIN PUBLIC KEY-----")
        .and_then(|rest| rest.strip_suffix("-----END PUBLIC KEY-----"))
        .ok_or(KeyProblem::Neither)?;
    let inner: String = inner.split_ascii_whitespace().collect();
    let der = STANDARD.decode(inner).map_err(|_| KeyProblem::Neither)?;
    if let Ok(key) = PublicEncryptingKey::from_der(&der) {
        return rsa(key);
    }
    use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
    let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| KeyProblem::Neither)?;
    let parameters = info.algorithm.parameters.as_ref();
    let named = parameters.and_then(|named| named.as_oid().ok());
    let named = named
        .map(|oid| oid.to_id_string())
        .ok_or(KeyProblem::Kind)?;
    let curve = CURVES.iter().find(|curve| curve.oid == named);
    ec(
        curve.ok_or(KeyProblem::Kind)?,
        info.subject_public_key.data.to_vec(),
    )
}

fn ec(curve: &'static Curve, point: Vec<u8>) -> Result<Key, KeyProblem> {
    if point.len() != 1 + 2 * curve.bytes || point[0] != 4 {
        return Err(KeyProblem::Point);
    }
    let key = Key::Ec { curve, point };
    // A point that is not on the curve agrees on nothing.
    let mut unused = [0; 32];
    match &key {
        Key::Ec { curve, point } => {
            agreed(curve, point, &mut unused).map_err(|_| KeyProblem::Point)?
        }
        Key::Rsa(_) => Vec::new(),
    };
    Ok(key)
}

fn rsa(key: PublicEncryptingKey) -> Result<Key, KeyProblem> {
    if key.key_size_bits() < FEWEST_RSA_BITS {
        return Err(KeyProblem::Short);
    }
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| KeyProblem::Kind)?;
    Ok(Key::Rsa(key))
}

/// A fresh point of ours, and into `shared` what A256KW gets by it from ECDH-ES (RFC 7518, 4.6.2).
fn agreed(curve: &Curve, point: &[u8], shared: &mut [u8; 32]) -> Result<Vec<u8>, Unspecified> {
    let ours = EphemeralPrivateKey::generate(curve.algorithm, &SystemRandom::new())?;
    let public = ours.compute_public_key()?.as_ref().to_vec();
    let theirs = UnparsedPublicKey::new(curve.algorithm, point);
    agreement::agree_ephemeral(ours, theirs, Unspecified, |secret| {
        let mut hash = digest::Context::new(&SHA256);
        hash.update(&1u32.to_be_bytes());
        hash.update(secret);
        let algorithm = b"ECDH-ES+A256KW";
        hash.update(&(algorithm.len() as u32).to_be_bytes());
        hash.update(algorithm);
        // Neither party has a name.
        hash.update(&[0; 8]);
        hash.update(&256u32.to_be_bytes());
        shared.copy_from_slice(hash.finish().as_ref());
        Ok(())
    })?;
    Ok(public)
}

impl Recipient {
    pub(super) fn new(encryption: &Encryption) -> Result<Self, KeyProblem> {
        let (key, kid) = read(&encryption.key)?;
        let kid = encryption.kid.as_deref().map(str::to_owned).or(kid);
        Ok(Self { key, kid })
    }

    /// The body of `formed` as a JWE. A request without a body stays as it is.
    pub(super) fn encrypt(&self, formed: Formed) -> Result<Formed, RenderError> {
        if formed.body.is_empty() {
            return Ok(formed);
        }
        let content_type = formed.content_type.as_ref();
        let said = content_type.and_then(|value| value.to_str().ok());
        let encoding = formed.content_encoding.as_ref();
        let encoding = encoding.and_then(|value| value.to_str().ok());
        let body = self
            .sealed(&formed.body, said, encoding)
            .map_err(|_| RenderError::new("the body could not be encrypted"))?;
        Ok(Formed {
            body: body.into(),
            content_type: Some(JOSE),
            content_encoding: None,
            ..formed
        })
    }

    fn sealed(
        &self,
        content: &[u8],
        content_type: Option<&str>,
        encoding: Option<&str>,
    ) -> Result<String, Unspecified> {
        let mut key = [0; 32];
        rand::fill(&mut key)?;
        let mut header = json!({ "enc": "A256GCM" });
        let wrapped = self.wrap(&key, &mut header)?;
        if let Some(kid) = &self.kid {
            header["kid"] = json!(kid);
        }
        if let Some(content_type) = content_type {
            // As RFC 7516 (4.1.12) shortens it.
            let short = content_type.strip_prefix("application/");
            let short = short.filter(|rest| !rest.contains('/'));
            header["cty"] = json!(short.unwrap_or(content_type));
        }
        if let Some(encoding) = encoding {
            header["content-encoding"] = json!(encoding);
        }
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        let mut nonce = [0; 12];
        rand::fill(&mut nonce)?;
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key)?);
        let mut sealed = content.to_vec();
        let tag = cipher.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(header.as_bytes()),
            &mut sealed,
        )?;
        let parts = [&wrapped[..], &nonce, &sealed, tag.as_ref()];
        let mut out = header;
        for part in parts {
            out.push('.');
            URL_SAFE_NO_PAD.encode_string(part, &mut out);
        }
        Ok(out)
    }

    /// The content's key as the receiver gets it; what he needs to know of that goes into `header`.
    fn wrap(&self, key: &[u8; 32], header: &mut Value) -> Result<Vec<u8>, Unspecified> {
        match &self.key {
            Key::Rsa(rsa) => {
                header["alg"] = json!("RSA-OAEP-256");
                let mut out = vec![0; rsa.ciphertext_size()];
                let length = rsa
                    .encrypt(&OAEP_SHA256_MGF1SHA256, key, &mut out, None)?
                    .len();
                out.truncate(length);
                Ok(out)
            }
            Key::Ec { curve, point } => {
                let mut shared = [0; 32];
                let ours = agreed(curve, point, &mut shared)?;
                let (x, y) = ours[1..].split_at(curve.bytes);
                header["alg"] = json!("ECDH-ES+A256KW");
                header["epk"] = json!({
                    "kty": "EC",
                    "crv": curve.name,
                    "x": URL_SAFE_NO_PAD.encode(x),
                    "y": URL_SAFE_NO_PAD.encode(y),
                });
                let mut out = vec![0; key.len() + 8];
                AesKek::new(&AES_256, &shared)?.wrap(key, &mut out)?;
                Ok(out)
            }
        }
    }
}
