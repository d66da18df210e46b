//! `format` of an endpoint: its name, or its name with settings.

use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};

use super::adapters;
use super::field::Field;
use super::keys;
use super::reader::Map;
use super::templates;
use crate::deliver::signature::sets_header;
use crate::render::adapters::named;
use crate::render::is_xml_name;
use crate::subscription::{
    CloudEvents, CloudEventsMode, FormFields, Format, Scheme, Template, XmlNames,
};

pub const MOST_PARTS: usize = 64;

/// A format, by its name or by its name with settings.
pub fn format(field: Field<'_>, scheme: &Scheme) -> Option<Format> {
    if !field.is_map() {
        let known = field.text().filter(|text| *text == "template");
        if known.is_some() {
            field.note(
                "format `template` needs a template",
                "write `{ template: { body: ... } }`".to_owned(),
            );
            return None;
        }
        if let Some(adapter) = field.text().and_then(named) {
            return adapters::plain(adapter, field);
        }
        return Some(plain(field.one_of(&keys::FORMATS)?, scheme));
    }
    let map = field.map(&keys::FORMAT)?;
    let names = keys::FORMAT.keys.iter().map(|key| key.name);
    let given: Vec<_> = names.filter_map(|name| map.take(name)).collect();
    let [settings] = given[..] else {
        if !map.means_one_of(&Format::NAMES) {
            field.note_key(
                "`format` has exactly one key, the name of a format",
                "such as `{ xml: { root: order } }`".to_owned(),
            );
        }
        return None;
    };
    match settings.key {
        "raw" | "envelope" => {
            settings.map(&keys::NO_SETTINGS)?;
            Some(plain(settings.key, scheme))
        }
        "form" => form(settings.map(&keys::FORM_FORMAT)?, scheme),
        "xml" => xml(settings.map(&keys::XML_FORMAT)?),
        "template" => template(settings.map(&keys::TEMPLATE_FORMAT)?, scheme),
        name if named(name).is_some() => adapters::format(settings),
        name => {
            let map = settings.map(&keys::CLOUDEVENTS_FORMAT)?;
            let source = map.take("source").and_then(uri_reference);
            let mode = mode(name);
            Some(Format::CloudEvents(CloudEvents { mode, source }))
        }
    }
}

fn mode(name: &str) -> CloudEventsMode {
    match name {
        "cloudevents-binary" => CloudEventsMode::Binary,
        "cloudevents-batch" => CloudEventsMode::Batch,
        _ => CloudEventsMode::Structured,
    }
}

/// A format with its defaults.
fn plain(name: &str, scheme: &Scheme) -> Format {
    match name {
        "envelope" => Format::Envelope,
        "form" => Format::Form(default_form(scheme)),
        "xml" => Format::Xml(XmlNames {
            root: "event".into(),
            item: "item".into(),
        }),
        name if name.starts_with("cloudevents") => Format::CloudEvents(CloudEvents {
            mode: mode(name),
            source: None,
        }),
        _ => Format::Raw,
    }
}

/// As the service sends it whose signature the requests have.
fn default_form(scheme: &Scheme) -> FormFields {
    match scheme {
        Scheme::Mailchimp(_) => FormFields::Whole("mandrill_events".into()),
        Scheme::Twilio(_) => FormFields::Flat,
        _ => FormFields::Whole("payload".into()),
    }
}

fn uri_reference(field: Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    let fits = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b);
    if text.bytes().all(fits) {
        return Some(text.into());
    }
    field.note(
        format!("{} is not a URI reference", field.shown()),
        "such as `/shop` or `https://shop.example.com/`".to_owned(),
    );
    None
}

fn form(map: Map<'_>, scheme: &Scheme) -> Option<Format> {
    let name = map.take("field");
    let flatten = map
        .take("flatten")
        .and_then(|field| Some((field, field.bool()?)));
    if let (Some(_), Some((flatten, true))) = (name, flatten) {
        flatten.note_key(
            "the whole body in one `field`, and flattened, are two forms",
            "keep one of them".to_owned(),
        );
    }
    let fields = match (name, flatten) {
        (_, Some((_, true))) => FormFields::Flat,
        (Some(name), _) => FormFields::Whole(name.text()?.into()),
        (None, Some((_, false))) => match default_form(scheme) {
            FormFields::Flat => FormFields::Whole("payload".into()),
            whole => whole,
        },
        (None, None) => default_form(scheme),
    };
    Some(Format::Form(fields))
}

fn xml(map: Map<'_>) -> Option<Format> {
    let name = |key, default: &str| match map.take(key) {
        Some(field) => {
            let text = field.text()?;
            if !is_xml_name(text) {
                let what = format!("{} cannot be the name of an element", field.shown());
                field.note(what, "letters, digits, `_`, `-` and `.`".to_owned());
            }
            Some(Arc::from(text))
        }
        None => Some(Arc::from(default)),
    };
    let (root, item) = (name("root", "event"), name("item", "item"));
    Some(Format::Xml(XmlNames {
        root: root?,
        item: item?,
    }))
}

fn template(map: Map<'_>, scheme: &Scheme) -> Option<Format> {
    let body = map.take("body").and_then(templates::text);
    let content_type = match map.take("content_type") {
        Some(field) => {
            let text = field.text()?;
            let type_of = text.split(';').next().unwrap_or_default();
            if HeaderValue::from_str(text).is_err() || !type_of.contains('/') || !text.is_ascii() {
                field.note(
                    format!("{} is not a content type", field.shown()),
                    "such as `application/json`".to_owned(),
                );
            }
            text
        }
        None => "application/json",
    };
    let entries = |key| {
        let field: Option<Field<'_>> = map.take(key);
        let entries = field.map(|field| field.entries()).unwrap_or_default();
        if let (Some(field), true) = (field, entries.len() > MOST_PARTS) {
            field.note_key(format!("more than {MOST_PARTS} of them"), None);
        }
        entries
    };
    let headers = entries("headers").into_iter();
    let headers = headers
        .filter_map(|entry| Some((header_name(entry, scheme)?, templates::text(entry)?)))
        .collect();
    let query = entries("query").into_iter();
    let query = query
        .filter_map(|entry| Some((entry.key.into(), templates::text(entry)?)))
        .collect();
    let path = map.take("path").map(|field| field.list());
    let path = path.unwrap_or_default().into_iter();
    let path = path.filter_map(templates::text).collect();
    let params = entries("params").into_iter();
    let params = params
        .filter_map(|entry| Some((entry.key.into(), entry.text_or_empty()?.into())))
        .collect();
    Some(Format::Template(Box::new(Template {
        body,
        content_type: content_type.into(),
        headers,
        query,
        path,
        params,
        adapted: None,
    })))
}

fn header_name(entry: Field<'_>, scheme: &Scheme) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(entry.key.as_bytes()) else {
        entry.note_key(
            format!("`{}` cannot be the name of a header", entry.key),
            None,
        );
        return None;
    };
    let of_the_body = name == CONTENT_TYPE || name == CONTENT_ENCODING;
    if of_the_body || super::endpoints::is_reserved(&name) || sets_header(scheme, &name) {
        entry.note_key(
            format!("the header `{name}` is not a template's to set"),
            "it belongs to HTTP, to the body, to the signature or to hookbridge".to_owned(),
        );
        return None;
    }
    Some(name)
}
