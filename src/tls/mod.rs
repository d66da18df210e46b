//! TLS: whom we believe, and who we say we are.
//!
//! The platform's authorities are believed, and those of `tls.ca` beside them. TLS 1.2 and 1.3.
//! There is no way to skip verification. Errors name files, never their contents. What `doctor`
//! tells of a certificate is in [`certificate`]; it sees them by way of a [`Witness`].

pub mod certificate;
mod witness;

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_platform_verifier::Verifier;

use crate::subscription::TlsFiles;

pub use witness::Witness;

/// Reads the platform's authorities and `files`. Blocks for some milliseconds.
pub fn client_config(files: Option<&TlsFiles>) -> Result<ClientConfig, String> {
    config_verified_by(files, |verifier| verifier)
}

/// The same, with somebody who remembers what certificates the server has shown, believed or not.
pub fn witnessed_config(files: Option<&TlsFiles>) -> Result<(ClientConfig, Arc<Witness>), String> {
    let mut witness = None;
    let config = config_verified_by(files, |verifier| {
        witness.insert(Arc::new(Witness::of(verifier))).clone()
    })?;
    Ok((config, witness.expect("every config has a verifier")))
}

fn config_verified_by(
    files: Option<&TlsFiles>,
    verified_by: impl FnOnce(Arc<dyn ServerCertVerifier>) -> Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let own_authorities = match files.and_then(|files| files.ca.as_deref()) {
        Some(path) => certificates(path)?,
        None => Vec::new(),
    };
    let verifier = Verifier::new_with_extra_roots(own_authorities, provider.clone())
        .map_err(|error| format!("cannot use the certificate authorities: {error}"))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous() // only the name of the method: the platform verifier verifies everything
        .with_custom_certificate_verifier(verified_by(Arc::new(verifier)));
    let mut config = match files.map(|files| (files.cert.as_deref(), files.key.as_deref())) {
        Some((Some(cert), key)) => {
            // A PEM file often holds both.
            let key = key.unwrap_or(cert);
            builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .map_err(|error| format!("cannot use {}: {error}", cert.display()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    match found.is_empty() {
        true => Err(format!("no certificate in {}", path.display())),
        false => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| format!("cannot read a private key from {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(contents: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        file
    }

    fn with_ca(path: &Path) -> Result<ClientConfig, String> {
        client_config(Some(&TlsFiles {
            ca: Some(path.to_owned()),
            cert: None,
            key: None,
        }))
    }

    #[test]
    fn unusable_files_are_named() {
        let missing = with_ca(Path::new("/nowhere/ca.pem")).unwrap_err();
        assert!(missing.contains("/nowhere/ca.pem"), "{missing}");
        let empty = file(b"not a certificate");
        let problem = with_ca(empty.path()).unwrap_err();
        assert!(problem.starts_with("no certificate in"), "{problem}");
    }

    #[test]
    fn a_certificate_without_its_key_is_refused_without_showing_it() {
        let cert = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let pem = file(cert.cert.pem().as_bytes());
        let problem = client_config(Some(&TlsFiles {
            ca: Some(pem.path().to_owned()),
            cert: Some(pem.path().to_owned()),
            key: None,
        }))
        .unwrap_err();
        assert!(problem.contains("private key"), "{problem}");
        assert!(!problem.contains("BEGIN"), "{problem}");
    }
}
