//! `signature:`, `secret:` and `secrets:` of an endpoint.

use std::path::Path;

use http::HeaderName;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use url::Url;

use super::field::Field;
use super::keys::Section;
use super::reader::{Map, Noted, Notes, suggestion};
use super::{keys, node};
use crate::deliver::signature::{self, check_secret};
use crate::subscription::{
    Encoding, Hash, HmacScheme, KeyForm, Scheme, Secret, SignedUrl, TimeUnit, Word, WordError,
    Worded,
};

/// More secrets at once than any rotation needs.
const MOST_SECRETS: usize = 5;
const LONGEST_PREFIX: usize = 100;
/// What they say would be lost.
static OF_THE_BODY: [HeaderName; 2] = [CONTENT_TYPE, CONTENT_ENCODING];

/// Whether the endpoint `map` says anything about it.
pub fn is_given(map: &Map<'_>) -> bool {
    ["signature", "secret", "secrets"]
        .into_iter()
        .any(|key| map.has(key))
}

/// Reads what signs the requests of the endpoint `map`.
pub fn read(map: &Map<'_>) -> (Scheme, Vec<Secret>) {
    let scheme = match map.take("signature") {
        Some(field) => match scheme(field) {
            Some(scheme) => scheme,
            // Which secrets would be right is not known, so they are not looked at.
            None => return (Scheme::default(), Vec::new()),
        },
        None => Scheme::default(),
    };
    let secrets = secrets(map, &scheme);
    (scheme, secrets)
}

/// Has `scheme` sign the URL as it is `written` in the config, where it is `sent` otherwise. A URL
/// that is `extended` for each event is signed as it is sent, and cannot be written beforehand.
pub fn sign_as_written(
    scheme: &mut Scheme,
    map: &Map<'_>,
    written: Option<&str>,
    sent: Option<&Url>,
    extended: bool,
) {
    let Some(signed) = scheme.signed_url_mut() else {
        return;
    };
    match (signed.is_written(), extended) {
        (true, true) => {
            if let Some(field) = map.take("signature") {
                field.note_key(
                    "`url` of the signature is one URL, and requests go to others",
                    "leave it out: each URL is signed as it is sent".to_owned(),
                );
            }
        }
        (false, false) => {
            if let (Some(written), Some(sent)) = (written, sent)
                && written != sent.as_str()
            {
                *signed = SignedUrl::written(written);
            }
        }
        _ => {}
    }
}

/// Reads a signature from a text of its own, such as `stripe` or `{ hmac: { header: x-sig } }`.
/// The error says all that is wrong with it.
pub fn parse(text: &str) -> Result<Scheme, String> {
    let node = node::read(text).map_err(|broken| broken.message)?;
    let notes = Notes::new(Path::new("."), text);
    let scheme = scheme(Field {
        notes: &notes,
        key: "signature",
        key_span: node.span,
        node: &node,
    });
    let problems = notes.into_found().problems;
    match scheme {
        Some(scheme) if problems.is_empty() => Ok(scheme),
        _ => {
            let said = |noted: Noted| match noted.help {
                Some(help) => format!("{} ({help})", noted.message),
                None => noted.message,
            };
            Err(problems
                .into_iter()
                .map(said)
                .collect::<Vec<_>>()
                .join("; "))
        }
    }
}

/// A signature as `signature:` of an endpoint has it.
pub fn scheme(field: Field<'_>) -> Option<Scheme> {
    if !field.is_map() {
        let name = field.one_of(&Scheme::NAMES)?;
        let scheme = Scheme::from_name(name);
        if scheme.is_none() {
            field.note(
                format!("signature `{name}` does not know its header"),
                format!("write `{{ {name}: {{ header: x-signature }} }}`"),
            );
        }
        return scheme;
    }
    let map = field.map(&keys::SIGNATURE)?;
    let given: Vec<_> = keys::SIGNATURE
        .keys
        .iter()
        .filter_map(|key| Some((map.take(key.name)?, key.form.section())))
        .collect();
    match given[..] {
        [(settings, Some(section))] if settings.key == "hmac" => hmac(settings.map(section)?),
        [(settings, section)] => preset(settings, section),
        _ => {
            if !map.means_one_of(&Scheme::NAMES) {
                field.note_key(
                    "`signature` has exactly one key, the name of a signature",
                    "such as `{ github: { event: \"{topic}\" } }`".to_owned(),
                );
            }
            None
        }
    }
}

fn preset(settings: Field<'_>, section: Option<&'static Section>) -> Option<Scheme> {
    let mut scheme = Scheme::from_name(settings.key)?;
    let map = settings.map(section.unwrap_or(&keys::NO_SETTINGS))?;
    if let Some(filled) = scheme.filled_mut() {
        let keys: Vec<_> = filled.keys().collect();
        for key in keys {
            if let Some(text) = map
                .take(key)
                .and_then(|field| worded(field, &Word::OF_EVENT))
            {
                filled.set(key, text);
            }
        }
    }
    if let Some(url) = scheme.signed_url_mut() {
        *url = map.take("url").and_then(signed_url).unwrap_or_default();
    }
    Some(scheme)
}

fn hmac(map: Map<'_>) -> Option<Scheme> {
    let header = map.need("header").and_then(header);
    let prefix = map.take("prefix").and_then(prefix);
    let hash = map
        .take("hash")
        .and_then(|field| field.one_of(&Hash::NAMES))
        .and_then(Hash::from_name);
    let encoding = map
        .take("encoding")
        .and_then(|field| field.one_of(&Encoding::NAMES))
        .and_then(Encoding::from_name);
    let key = map
        .take("key")
        .and_then(|field| field.one_of(&KeyForm::NAMES))
        .and_then(KeyForm::from_name);
    let signed = match map.take("signed") {
        Some(field) => signed(field),
        None => "{body}".parse().ok(),
    };
    let id_header = map.take("id_header").and_then(self::header);
    let timestamp_header = map.take("timestamp_header").and_then(self::header);
    let unit = map
        .take("timestamp")
        .and_then(|field| field.one_of(&TimeUnit::NAMES))
        .and_then(TimeUnit::from_name);
    let url = map.take("url").and_then(signed_url).unwrap_or_default();
    let header = header?;
    let id_header = id_header.unwrap_or(signature::ID);
    let timestamp_header = timestamp_header.unwrap_or(signature::TIMESTAMP);
    if header == id_header || header == timestamp_header || id_header == timestamp_header {
        map.note(
            map.span,
            "signature, id and timestamp need a header each",
            None,
        );
    }
    if unit == Some(TimeUnit::Milliseconds) && timestamp_header == signature::TIMESTAMP {
        map.note(
            map.span,
            format!("`{timestamp_header}` counts seconds"),
            "give milliseconds a `timestamp_header` of their own".to_owned(),
        );
    }
    Some(Scheme::Hmac(Box::new(HmacScheme {
        header,
        prefix: prefix.unwrap_or_default(),
        hash: hash.unwrap_or(Hash::Sha256),
        encoding: encoding.unwrap_or(Encoding::Hex),
        key: key.unwrap_or(KeyForm::Text),
        signed: signed?,
        id_header,
        timestamp_header,
        unit: unit.unwrap_or(TimeUnit::Seconds),
        url,
    })))
}

fn header(field: Field<'_>) -> Option<HeaderName> {
    let text = field.text()?;
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    match name {
        None => field.note(
            format!("{} cannot be the name of a header", field.shown()),
            None,
        ),
        Some(name) if super::endpoints::is_reserved(&name) || OF_THE_BODY.contains(&name) => {
            field.note(
                format!("the header `{name}` is not free"),
                "it belongs to HTTP, to the body or to hookbridge".to_owned(),
            );
            return None;
        }
        _ => {}
    }
    name
}

fn prefix(field: Field<'_>) -> Option<Box<str>> {
    let text = field.text_or_empty()?;
    let visible = text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if text.len() <= LONGEST_PREFIX && visible && !text.starts_with(' ') {
        return Some(text.into());
    }
    field.note(
        format!("a prefix has {LONGEST_PREFIX} characters at most, all of them visible ASCII, and no space before it"),
        None,
    );
    None
}

fn signed(field: Field<'_>) -> Option<Worded> {
    let text = worded(field, &Word::OF_REQUEST)?;
    if text.has(Word::Body) {
        return Some(text);
    }
    field.note(
        "a signature that does not cover `{body}` proves nothing about it",
        "such as `{timestamp}.{body}`".to_owned(),
    );
    None
}

fn worded(field: Field<'_>, known: &[Word]) -> Option<Worded> {
    match Worded::parse(field.text()?, known) {
        Ok(text) => Some(text),
        Err(error) => {
            let names = known.iter().map(|word| word.name());
            let help = match &error {
                WordError::Unknown(_) if field.is_substituted() => None,
                WordError::Unknown(word) => suggestion(word, names),
                _ => None,
            };
            match field.is_substituted() {
                true => field.note(format!("{} is no text with words", field.shown()), help),
                false => field.note(error.to_string(), help),
            }
            None
        }
    }
}

fn signed_url(field: Field<'_>) -> Option<SignedUrl> {
    let text = field.text()?;
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && text.is_ascii() => {
            Some(SignedUrl::written(text))
        }
        _ => {
            field.note(
                "this is not an absolute `https:` URL",
                "write it as the receiver has it".to_owned(),
            );
            None
        }
    }
}

fn secrets(map: &Map<'_>, scheme: &Scheme) -> Vec<Secret> {
    let fields = match (map.take("secret"), map.take("secrets")) {
        (Some(one), None) => vec![one],
        (None, Some(many)) => {
            let fields = many.full_list();
            if fields.len() > MOST_SECRETS {
                many.note_key(format!("more than {MOST_SECRETS} secrets"), None);
            }
            fields
        }
        (Some(_), Some(many)) => {
            many.note_key(
                "`secret` and `secrets` are both given",
                "keep one of them".to_owned(),
            );
            Vec::new()
        }
        (None, None) => {
            if scheme.is_signed() {
                map.note(
                    map.span,
                    format!(
                        "`secret` is missing: signature `{}` needs one",
                        scheme.name()
                    ),
                    format!("{}, or say `signature: none`", how_to_make(scheme)),
                );
            }
            Vec::new()
        }
    };
    let good = |field: Field<'_>| {
        let text = field.text()?;
        let checked = check_secret(scheme, text);
        if let Err(why) = &checked {
            field.note(why.to_string(), how_to_make(scheme).to_owned());
        }
        checked.is_ok().then(|| Secret::new(text))
    };
    fields.into_iter().filter_map(good).collect()
}

fn how_to_make(scheme: &Scheme) -> &'static str {
    match scheme {
        Scheme::Standard | Scheme::Svix => "make one with `echo whsec_$(openssl rand -base64 32)`",
        Scheme::StandardEd25519 => "`whsk_` and base64 of the private key",
        Scheme::Hmac(hmac) if hmac.key == KeyForm::Encoded(Encoding::Base64) => {
            "make one with `openssl rand -base64 32`"
        }
        _ => "make one with `openssl rand -hex 32`",
    }
}
