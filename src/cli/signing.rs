//! What `sign` and `verify` share: the scheme and its secrets, and the request that they are about.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::Url;

use super::exit::Exit;
use super::settings::ConfigFile;
use crate::config;
use crate::subscription::{Scheme, Secret};

/// As large as what `listen` takes.
const MAX_BODY_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, clap::Args)]
pub struct Signing {
    /// `stripe` or any other name, or `{ hmac: { header: x-signature } }`, as in the config.
    /// Default: that of --endpoint, else `standard`
    #[arg(long, value_name = "SIGNATURE", value_parser = config::parse_signature)]
    signature: Option<Scheme>,

    /// Secret, newest first; may be given more than once. Others can read it in the list of
    /// processes: better in a file or in the environment
    #[arg(
        long = "secret",
        value_name = "SECRET",
        env = "WEBHOOK_SECRET",
        hide_env_values = true
    )]
    secrets: Vec<String>,

    /// File with a secret; may be given more than once
    #[arg(long, value_name = "FILE")]
    secret_file: Vec<PathBuf>,

    /// Endpoint of the config (or subscription that has one of its own) whose signature, secrets
    /// and URL are meant. The URL of an adapter is a credential: it is to be given by --url
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,

    #[command(flatten)]
    config: ConfigFile,

    /// URL of the request, as the sender has it
    #[arg(long, value_name = "URL", value_parser = url)]
    url: Option<String>,

    #[arg(long, value_name = "METHOD", default_value = "POST")]
    method: Method,

    /// Header of the request, as `Name: value`; may be given more than once
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// File with the body; `-` is standard input
    #[arg(value_name = "BODY", default_value = "-")]
    body: PathBuf,
}

/// A request and what proves it.
pub struct Case {
    pub scheme: Scheme,
    pub secrets: Vec<Secret>,
    pub method: Method,
    /// As it is written.
    pub url: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Signing {
    pub fn case(self) -> anyhow::Result<Case> {
        let mut secrets: Vec<Secret> = self.secrets.into_iter().map(Secret::new).collect();
        for file in &self.secret_file {
            secrets.push(secret_in(file)?);
        }
        let mut scheme = self.signature;
        let mut url = self.url;
        if let Some(name) = &self.endpoint {
            let config = self.config.load()?;
            let endpoint = config.endpoints.get(name.as_str());
            let endpoint = endpoint.ok_or_else(|| {
                Exit::usage(format!("there is no endpoint `{name}` in the config"))
            })?;
            if secrets.is_empty() {
                secrets.clone_from(&endpoint.secrets);
            }
            scheme.get_or_insert_with(|| endpoint.signature.clone());
            if url.is_none() && endpoint.payload.adapted().is_some() {
                let message =
                    format!("the URL of `{name}` is a credential and is not shown: give --url");
                return Err(Exit::usage(message).into());
            }
            url.get_or_insert_with(|| endpoint.url.as_str().to_owned());
        }
        let scheme = scheme.unwrap_or_default();
        if scheme.is_signed() && secrets.is_empty() {
            let message = "no secret: set WEBHOOK_SECRET, or give --secret-file or --endpoint";
            return Err(Exit::usage(message).into());
        }
        let url = match url {
            Some(url) => url,
            None if scheme.covers_url() => {
                let message = format!("signature `{}` is over the URL: give --url", scheme.name());
                return Err(Exit::usage(message).into());
            }
            None => "https://localhost/".to_owned(),
        };
        Ok(Case {
            scheme,
            secrets,
            method: self.method,
            url,
            headers: self.headers.into_iter().collect(),
            body: read(&self.body)?,
        })
    }
}

fn url(text: &str) -> Result<String, String> {
    match Url::parse(text) {
        Ok(url) if url.has_host() => Ok(text.to_owned()),
        _ => Err("not an absolute URL".to_owned()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("not `Name: value`")?;
    let name = name
        .trim()
        .parse()
        .map_err(|_| "not the name of a header")?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| "not the value of a header")?;
    Ok((name, value))
}

/// The text of a file without its last line break, as `${file:...}` in the config.
fn secret_in(path: &Path) -> anyhow::Result<Secret> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Exit::io(format!("cannot read {}: {error}", path.display())))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let io = |error: std::io::Error| Exit::io(format!("cannot read {}: {error}", path.display()));
    let mut body = Vec::new();
    let mut limited = |source: &mut dyn std::io::Read| {
        source
            .take(MAX_BODY_BYTES + 1)
            .read_to_end(&mut body)
            .map_err(io)
    };
    if path == Path::new("-") {
        limited(&mut std::io::stdin().lock())?;
    } else {
        limited(&mut File::open(path).map_err(io)?)?;
    }
    if body.len() as u64 > MAX_BODY_BYTES {
        return Err(Exit::io(format!(
            "a body has {MAX_BODY_BYTES} bytes at most"
        )))
        .context("too large");
    }
    Ok(body)
}
