//! What editors and readers are told about the keys: the JSON Schema for YAML language servers,
//! and the tables of docs/configuration.md. Both are made from the key table and kept in the
//! repository; a test compares them.

use serde_json::{Map, Value, json};

use super::keys::{Form, MANDATORY, SUBSCRIPTION, Section, TLS, TOP};

/// The JSON Schema (draft 7) of a config file.
pub fn schema() -> Value {
    let sections = TOP.all();
    let definitions: serde_json::Map<String, Value> = sections
        .iter()
        .skip(1)
        .map(|section| (section.name.to_owned(), object(section, &Style::File)))
        .collect();
    let mut schema = object(&TOP, &Style::File);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("hookbridge config");
    schema["definitions"] = Value::Object(definitions);
    schema
}

/// The rows of one section, as Markdown.
pub fn table(section: &Section) -> String {
    let mut out = String::from("| key | takes | default | meaning |\n|---|---|---|---|\n");
    for key in section.keys {
        let takes = key.form.to_string();
        out.push_str(&format!(
            "| `{}` | {takes} | {} | {} |\n",
            key.name, key.default, key.meaning
        ));
    }
    out
}

/// For whom a schema is.
enum Style {
    /// A file, in which values can be put in.
    File,
    /// The API's description, where schemas are among others.
    Api,
}

impl Style {
    fn place(&self, section: &Section) -> String {
        match self {
            Self::File => format!("#/definitions/{}", section.name),
            Self::Api => format!("#/components/schemas/{}", in_api(section)),
        }
    }
}

/// Apart from the names of others.
fn in_api(section: &Section) -> String {
    format!("config.{}", section.name.replace(' ', "_"))
}

/// The schemas of a subscription that comes over the API, by their names: as the file has it, but for
/// what reaches into this machine. `subscription` is what that of a subscription is called.
pub fn registered(subscription: &str) -> Map<String, Value> {
    let mut schemas = Map::new();
    for section in SUBSCRIPTION.all() {
        let mut schema = object(section, &Style::Api);
        if section.name == SUBSCRIPTION.name {
            schema["properties"]["name"] = json!({
                "description": "What it is called; 1 to 63 characters.",
                "allOf": [form(&Form::Name, &Style::Api)],
            });
            leave_out(&mut schema, "was");
            schemas.insert(subscription.to_owned(), schema);
            continue;
        }
        leave_out(&mut schema, "tls");
        schemas.insert(in_api(section), schema);
    }
    schemas.remove(&in_api(&TLS));
    schemas
}

fn leave_out(schema: &mut Value, key: &str) {
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.remove(key);
    }
}

fn object(section: &Section, style: &Style) -> Value {
    let properties: serde_json::Map<String, Value> = section
        .keys
        .iter()
        .map(|key| {
            let said = match key.default {
                "" | MANDATORY => key.meaning.to_owned(),
                default => format!("{} Default: {default}.", key.meaning),
            };
            // Beside `$ref`, draft 7 ignores everything, so the description goes around it.
            (
                key.name.to_owned(),
                json!({ "description": said, "allOf": [form(&key.form, style)] }),
            )
        })
        .collect();
    let required: Vec<&str> = section
        .keys
        .iter()
        .filter(|key| key.default == MANDATORY)
        .map(|key| key.name)
        .collect();
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": required,
    })
}

fn form(of: &Form, style: &Style) -> Value {
    let to = |section: &Section| json!({ "$ref": style.place(section) });
    // A value that is put in is text until it is read.
    let or_put_in = |form: Value| match style {
        Style::File => json!({ "anyOf": [form, { "type": "string", "pattern": "\\$\\{" }] }),
        Style::Api => form,
    };
    let pattern = |pattern: &str| or_put_in(json!({ "type": "string", "pattern": pattern }));
    match of {
        Form::Text => json!({ "type": ["string", "number"] }),
        Form::Name => pattern("^[a-z][a-z0-9_.-]{0,62}$"),
        Form::Bool => or_put_in(json!({ "type": "boolean" })),
        Form::Integer(min, max) => {
            or_put_in(json!({ "type": "integer", "minimum": min, "maximum": max }))
        }
        Form::Number(min, max) => {
            or_put_in(json!({ "type": "number", "minimum": min, "maximum": max }))
        }
        Form::Duration => pattern("^([0-9]+(ms|s|m|h|d))+$"),
        Form::Bytes => json!({ "anyOf": [
            { "type": "integer", "minimum": 0 },
            pattern("^[0-9]+ *([kKMGT]?B|[KMGT]iB)?$"),
        ] }),
        Form::Rate => pattern("^[0-9]+ */ *[smh]$"),
        Form::Status => json!({ "anyOf": [
            { "type": "integer", "minimum": 200, "maximum": 599 },
            pattern("^([2-5][0-9][0-9]( *- *[2-5][0-9][0-9])?|[2-5][xX][xX])$"),
        ] }),
        Form::OneOf(names) => or_put_in(json!({ "enum": names })),
        Form::List(of) => json!({ "type": "array", "items": form(of, style) }),
        Form::Map(Form::Text) => {
            json!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } })
        }
        Form::Map(of) => json!({ "type": "object", "additionalProperties": form(of, style) }),
        Form::Named(section) => json!({
            "type": "object",
            "propertyNames": { "pattern": "^[a-z][a-z0-9_.-]{0,62}$" },
            "additionalProperties": to(section),
        }),
        Form::Section(section) => to(section),
        Form::One(section) => {
            json!({ "allOf": [to(section)], "minProperties": 1, "maxProperties": 1 })
        }
        Form::Either(a, b) => json!({ "anyOf": [form(a, style), form(b, style)] }),
        Form::Any => json!({ "type": "object" }),
        Form::Json => json!({}),
        Form::Empty => json!({ "type": "object", "maxProperties": 0 }),
    }
}
