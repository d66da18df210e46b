//! `fields`, `batch`, `encrypt`, `gzip` and `version` of an endpoint, and what of them fits together.

use std::time::Duration;

use http::Method;

use super::field::Field;
use super::formats::format;
use super::keys;
use super::reader::Map;
use super::versions::Versions;
use crate::deliver::signature::sets_header;
use crate::render::{check_batch, check_key};
use crate::subscription::{
    Batch, Encryption, FieldPath, FieldPathError, Fields, Format, Payload, Scheme,
};

const MOST_PATHS: usize = 1_000;
/// As long as any body that is made.
const LONGEST_BATCH: u64 = 16 << 20;
/// A receipt may not get old while its delivery waits for others.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Reads what the requests of the endpoint `map` carry.
pub fn read(map: &Map<'_>, scheme: &Scheme, method: &Method, versions: &Versions<'_>) -> Payload {
    let format_field = map.take("format");
    let format = format_field.and_then(|field| format(field, scheme));
    let version = map
        .take("version")
        .and_then(|field| versions.of_endpoint(field, scheme, method));
    let batch_field = map.take("batch");
    let encrypt_field = map.take("encrypt");
    let gzip_field = map.take("gzip");
    let payload = Payload {
        fields: map.take("fields").and_then(fields),
        format: format.unwrap_or_default(),
        batch: batch_field.and_then(batch),
        encrypt: encrypt_field.and_then(encrypt),
        gzip: gzip_field.and_then(|field| field.bool()).unwrap_or(false),
        version,
        of_sources: versions.of_sources(scheme),
    };
    if *method == Method::GET {
        let has_a_body = |field: Option<Field<'_>>, is: bool, what: &str| {
            if let Some(field) = field.filter(|_| is) {
                let help = "use another `method`, or leave it out".to_owned();
                field.note_key(format!("{what}, and a GET has no body"), help);
            }
        };
        has_a_body(
            encrypt_field,
            payload.encrypt.is_some(),
            "the body is encrypted",
        );
        has_a_body(gzip_field, payload.gzip, "the body is compressed");
        has_a_body(batch_field, payload.batch.is_some(), "a batch is a body");
        if let Some(what) = only_a_body(&payload.format) {
            has_a_body(format_field, true, &what);
        }
    }
    if let (Some(field), true) = (batch_field, payload.batch.is_some()) {
        check_batched(field, &payload, scheme);
    }
    payload
}

fn batch(field: Field<'_>) -> Option<Batch> {
    let map = field.map(&keys::BATCH)?;
    let defaults = Batch::default();
    let count = map.take("count");
    let count = count.and_then(|field| field.integer(keys::BATCH_COUNT));
    let bytes = map.take("bytes");
    let bytes = bytes.and_then(|field| field.bytes(1..=LONGEST_BATCH));
    let within = map.take("within");
    let within = within.and_then(|field| field.duration(Duration::from_millis(1)..=LONGEST_WAIT));
    Some(Batch {
        count: count.map_or(defaults.count, |count| count as usize),
        bytes: bytes.map_or(defaults.bytes, |bytes| bytes as usize),
        within: within.unwrap_or(defaults.within),
    })
}

/// Whether several bodies can be one, as a JSON array, and the signature be of it.
fn check_batched(field: Field<'_>, payload: &Payload, scheme: &Scheme) {
    let versions: Vec<_> = match &payload.version {
        Some(version) => vec![version],
        None => payload.of_sources.values().collect(),
    };
    let of_versions = versions.iter().flat_map(|version| {
        let formats = version.formats.iter().map(|(_, format)| format);
        formats.map(|format| (format, Some(&version.name)))
    });
    for (format, version) in [(&payload.format, None)].into_iter().chain(of_versions) {
        let Err(why) = check_batch(format) else {
            continue;
        };
        let name = format.name();
        let (of_version, help) = match version {
            None => (String::new(), "leave `batch` out, or use another `format`"),
            Some(version) => (
                format!(" of version `{version}`"),
                "leave `batch` out, or give the endpoint another `version`",
            ),
        };
        field.note_key(
            format!("a batch is a JSON array, and the format `{name}`{of_version} {why}"),
            help.to_owned(),
        );
        return;
    }
    if let Scheme::Mailchimp(_) | Scheme::Papertrail = scheme {
        let name = scheme.name();
        field.note_key(
            format!("a batch is a JSON array, and receivers of `{name}` read a form"),
            "leave `batch` out, or use another `signature`".to_owned(),
        );
    }
}

/// What says that requests of this format have a body, which cannot be put into a query.
fn only_a_body(format: &Format) -> Option<String> {
    match format {
        Format::Xml(_) | Format::CloudEvents(_) => Some(format!("`{}` is a body", format.name())),
        Format::Template(template) if template.body.is_some() => {
            Some("the template has a `body`".to_owned())
        }
        _ => None,
    }
}

/// Why an endpoint of this signature and method cannot have a format that was read for another.
pub fn misfit(format: &Format, scheme: &Scheme, method: &Method) -> Option<String> {
    if let Some(what) = only_a_body(format).filter(|_| *method == Method::GET) {
        return Some(format!("{what}, and a GET has no body"));
    }
    let Format::Template(template) = format else {
        return None;
    };
    let mut names = template.headers.iter().map(|(name, _)| name);
    let taken = names.find(|name| sets_header(scheme, name))?;
    Some(format!(
        "the template sets the header `{taken}`, which belongs to signature `{}`",
        scheme.name()
    ))
}

/// Whether requests go to another URL than that of the endpoint, by more than a signature adds.
pub fn extends_url(payload: &Payload, method: &Method) -> bool {
    let of_version = payload.version.iter().chain(payload.of_sources.values());
    let mut formats = of_version
        .flat_map(|version| version.formats.iter().map(|(_, format)| format))
        .chain([&payload.format]);
    *method == Method::GET
        || formats.any(|format| match format {
            Format::Template(template) => !template.query.is_empty() || !template.path.is_empty(),
            _ => false,
        })
}

fn fields(field: Field<'_>) -> Option<Fields> {
    let map = field.map(&keys::FIELDS)?;
    let paths = |key| -> Vec<FieldPath> {
        let field: Option<Field<'_>> = map.take(key);
        let list = field.map(|field| field.full_list()).unwrap_or_default();
        if let (Some(field), true) = (field, list.len() > MOST_PATHS) {
            field.note_key(format!("more than {MOST_PATHS} paths"), None);
        }
        list.into_iter().filter_map(path).collect()
    };
    let fields = Fields {
        keep: paths("keep"),
        drop: paths("drop"),
        mask: paths("mask"),
    };
    (fields != Fields::default()).then_some(fields)
}

fn path(field: Field<'_>) -> Option<FieldPath> {
    let text = field.text()?;
    match text.parse() {
        Ok(path) => Some(path),
        Err(error) => {
            let help = match error {
                FieldPathError::Root if !field.is_substituted() => {
                    Some(format!("such as `data.{text}`"))
                }
                _ => None,
            };
            field.note(error.to_string(), help);
            None
        }
    }
}

fn encrypt(field: Field<'_>) -> Option<Encryption> {
    let map = field.map(&keys::ENCRYPT)?;
    let kid = map.take("kid").and_then(|field| field.text());
    let field = map.need("key")?;
    let key = match field.is_map() {
        true => field.node.to_json().to_string(),
        false => field.text()?.to_owned(),
    };
    if let Err(why) = check_key(&key) {
        let help = "such as `${file:receiver.pem}`; `openssl pkey -in key.pem -pubout` prints it";
        field.note(why.to_string(), help.to_owned());
        // It may be a private key.
        field.notes.unread(field.node);
        return None;
    }
    Some(Encryption {
        key: key.into(),
        kid: kid.map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::*;
    use crate::subscription::FormFields;

    fn env(name: &str) -> Option<String> {
        (name == "BODY").then(|| "{\n  {{ hidden here }}".to_owned())
    }

    /// Place and words of each problem of a config with these endpoints.
    fn problems(endpoints: &str) -> String {
        let text = format!("brokers: {{ here: {{ embedded: {{}} }} }}\nendpoints:\n{endpoints}");
        let Err(problems) = parse(&text, "x", Path::new("."), &env) else {
            return "none".to_owned();
        };
        let list = problems.list().iter();
        let lines = list.map(|problem| {
            let help = problem.help.as_deref().unwrap_or("-");
            format!(
                "{}:{}: {} ({help})",
                problem.line, problem.col, problem.message
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn read_one(rest: &str) -> Payload {
        let text = format!(
            "brokers: {{ here: {{ embedded: {{}} }} }}\nendpoints:\n  e: {{ url: 'https://h/', signature: none, {rest} }}\n"
        );
        let config = parse(&text, "x", Path::new("."), &env);
        config
            .unwrap_or_else(|problems| panic!("{problems}"))
            .endpoints["e"]
            .payload
            .as_ref()
            .clone()
            .clone()
    }

    #[test]
    fn mistakes_are_named_where_they_are() {
        insta::assert_snapshot!(problems(
            "  a: { url: 'https://h/', signature: none, format: jsonx }
  b: { url: 'https://h/', signature: none, format: template }
  c: { url: 'https://h/', signature: none, format: { xml: { root: 1a }, form: {} } }
  d: { url: 'https://h/', signature: none, format: { form: { field: x, flatten: true } } }
  e: { url: 'https://h/', signature: none, format: { xml: { root: '1 a' } } }
  f: { url: 'https://h/', signature: none, fields: { keep: [], drop: [card, data..x] } }
  g: { url: 'https://h/', signature: none, encrypt: { key: 'abc' } }
  h: { url: 'https://h/', signature: none, encrypt: { key: { kty: EC, crv: P-256, x: AA, y: AA } } }
  i: { url: 'https://h/', signature: none, encrypt: { key: { kty: oct, k: AA } } }
  j: { url: 'https://h/', signature: none, version: v9 }
  k: { url: 'https://h/', signature: none, method: GET, gzip: true, format: xml }
"
        ), @r#"
        3:52: `jsonx` is not a value of `format` (known here: `raw`, `envelope`, `cloudevents`, `cloudevents-binary`, `cloudevents-batch`, `form`, `xml`, `slack`, `discord`, `teams`, `zapier`, `jenkins`)
        4:52: format `template` needs a template (write `{ template: { body: ... } }`)
        5:44: `format` has exactly one key, the name of a format (such as `{ xml: { root: order } }`)
        6:72: the whole body in one `field`, and flattened, are two forms (keep one of them)
        7:67: `1 a` cannot be the name of an element (letters, digits, `_`, `-` and `.`)
        8:60: `keep` is empty (-)
        8:71: a path begins with `data.`, which is the body (such as `data.card`)
        8:77: a path may not have an empty step; `\.` is a dot inside a key (-)
        9:60: this is neither a JWK nor a public key in PEM (`-----BEGIN PUBLIC KEY-----`) (such as `${file:receiver.pem}`; `openssl pkey -in key.pem -pubout` prints it)
        10:60: `x` of the JWK is missing, or no base64url of a number of the right length (such as `${file:receiver.pem}`; `openssl pkey -in key.pem -pubout` prints it)
        11:60: this is a private key; give its public half (such as `${file:receiver.pem}`; `openssl pkey -in key.pem -pubout` prints it)
        12:53: there is no version `v9` (write it under `versions:`)
        13:57: the body is compressed, and a GET has no body (use another `method`, or leave it out)
        13:69: `xml` is a body, and a GET has no body (use another `method`, or leave it out)
        "#);
    }

    #[test]
    fn what_makes_no_batch_is_named_at_it() {
        insta::assert_snapshot!(problems(
            "  a: { url: 'https://h/', signature: none, batch: { count: 0, bytes: 17MiB, within: 1m } }
  b: { url: 'https://h/', signature: none, batch: {}, format: xml }
  c: { url: 'https://h/', signature: none, batch: {}, format: { template: { body: '1', path: ['1'] } } }
  d: { url: 'https://h/', signature: none, batch: {}, format: cloudevents-binary }
  e: { url: 'https://h/', signature: none, batch: {}, method: GET }
  f: { url: 'https://h/', secret: 0123456789abcdef, batch: {}, signature: mailchimp }
  g: { url: 'https://h/', signature: none, batch: {}, version: v1 }
  h: { url: 'https://h/', signature: none, batch: 100 }
versions: { v1: { formats: { 'a.#': envelope, '#': form } } }
"
        ), @r#"
        3:60: `0` is not a whole number from 1 to 10000 (-)
        3:70: `bytes` must be from 1 to 16777216 bytes (-)
        3:85: `within` must be from 1ms to 30s (-)
        4:44: a batch is a JSON array, and the format `xml` is not JSON (leave `batch` out, or use another `format`)
        5:44: a batch is a JSON array, and the format `template` has a URL of one event (leave `batch` out, or use another `format`)
        6:44: a batch is a JSON array, and the format `cloudevents-binary` has attributes of one event in its headers (leave `batch` out, or use another `format`)
        7:44: a batch is a body, and a GET has no body (use another `method`, or leave it out)
        8:53: a batch is a JSON array, and receivers of `mailchimp` read a form (leave `batch` out, or use another `signature`)
        9:44: a batch is a JSON array, and the format `form` of version `v1` is not JSON (leave `batch` out, or give the endpoint another `version`)
        10:51: `batch` is a map, not a number (its keys: `count`, `bytes`, `within`)
        "#);
    }

    #[test]
    fn a_batch_has_limits_of_its_own() {
        let of = |rest: &str| read_one(rest).batch;
        assert_eq!(of("gzip: true"), None);
        assert_eq!(of("batch: {}"), Some(Batch::default()));
        let all = Batch {
            count: 7,
            bytes: 2048,
            within: Duration::from_millis(50),
        };
        let given = "batch: { count: 7, bytes: 2KiB, within: 50ms }, format: cloudevents-batch";
        assert_eq!(of(given), Some(all));
    }

    #[test]
    fn mistakes_in_templates_have_their_own_line_and_column() {
        insta::assert_snapshot!(problems(
            "  a:
    url: https://h/
    signature: none
    format:
      template:
        body: |
          {
            \"a\": {{ data.a b }}
          }
        headers: { content-type: x, 'webhook-id': x, 'b c': x, x-d: \"{{ dta }}\" }
        query: { q: '{% if %}' }
        path: [a, '{{ id']
  b:
    url: https://h/
    signature: none
    format: { template: { body: '${env:BODY}', content_type: json } }
"
        ), @r#"
        10:28: syntax error: unexpected identifier, expected end of variable block (-)
        12:20: the header `content-type` is not a template's to set (it belongs to HTTP, to the body, to the signature or to hookbridge)
        12:37: the header `webhook-id` is not a template's to set (it belongs to HTTP, to the body, to the signature or to hookbridge)
        12:54: `b c` cannot be the name of a header (-)
        12:73: a name that templates do not know: `dta`; there are id, topic, type, time, source, tenant, headers, data, body, params, version (-)
        13:28: syntax error: unexpected end of block (-)
        14:23: syntax error: unexpected end of input, expected end of variable block (-)
        18:33: syntax error at line 2, column 13 of the value of `${env:BODY}` (-)
        18:62: `json` is not a content type (such as `application/json`)
        "#);
    }

    #[test]
    fn a_url_that_is_extended_is_signed_as_it_is_sent() {
        let secret = "0123456789abcdef";
        let given = |rest: &str| {
            problems(&format!(
                "  a: {{ url: 'https://h', secret: {secret}, {rest} }}\n"
            ))
        };
        assert_eq!(given("signature: twilio, method: GET"), "none");
        insta::assert_snapshot!(given("signature: { twilio: { url: 'https://p/' } }, method: GET"), @"3:52: `url` of the signature is one URL, and requests go to others (leave it out: each URL is signed as it is sent)");
    }

    #[test]
    fn a_form_is_that_of_the_service_whose_signature_it_has() {
        let form = |rest: &str| read_one(rest).format;
        let whole = |name: &str| Format::Form(FormFields::Whole(name.into()));
        assert_eq!(form("format: form"), whole("payload"));
        let key = "secret: 0123456789abcdef";
        let of = |signature: &str, format: &str| {
            let text = format!(
                "brokers: {{ here: {{ embedded: {{}} }} }}\nendpoints: {{ e: {{ url: 'https://h/', signature: {signature}, {key}, format: {format} }} }}\n"
            );
            let config = parse(&text, "x", Path::new("."), &env).unwrap();
            config.endpoints["e"].payload.format.clone()
        };
        assert_eq!(of("mailchimp", "form"), whole("mandrill_events"));
        assert_eq!(of("twilio", "form"), Format::Form(FormFields::Flat));
        assert_eq!(
            of("twilio", "{ form: { flatten: false } }"),
            whole("payload")
        );
        assert_eq!(of("mailchimp", "{ form: { field: x } }"), whole("x"));
    }

    #[test]
    fn what_says_nothing_is_nothing() {
        let said = "fields: {}, gzip: false, format: raw";
        assert_eq!(read_one(said), Payload::default());
    }
}
