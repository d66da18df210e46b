//! Secrets as a scheme wants them, made for those who have none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::standard::{ED25519_SECRET, HMAC_SECRET};
use crate::subscription::{Encoding, KeyForm, Scheme, Secret};

/// A new secret for `scheme`, from 32 random bytes; `None` where it signs nothing.
pub fn new_secret(scheme: &Scheme) -> Option<Secret> {
    let bytes: [u8; 32] = rand::random();
    let base64 = || BASE64.encode(bytes);
    Some(Secret::new(match scheme {
        scheme if !scheme.is_signed() => return None,
        Scheme::Standard | Scheme::Svix => format!("{HMAC_SECRET}{}", base64()),
        Scheme::StandardEd25519 => format!("{ED25519_SECRET}{}", base64()),
        Scheme::Hmac(hmac) if hmac.key == KeyForm::Encoded(Encoding::Base64) => base64(),
        _ => hex::encode(bytes),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::signature::check_secret;

    #[test]
    fn what_is_made_is_what_the_scheme_wants() {
        for name in Scheme::NAMES {
            let Some(scheme) = Scheme::from_name(name) else {
                continue;
            };
            match new_secret(&scheme) {
                Some(secret) => {
                    assert_eq!(check_secret(&scheme, secret.expose()), Ok(()), "{name}")
                }
                None => assert!(!scheme.is_signed(), "{name}"),
            }
        }
    }
}
