//! What editors and readers are told about the keys: the JSON Schema for YAML language servers,
//! and the tables of docs/configuration.md. Both are made from the key table and kept in the
//! repository; a test compares them.

use serde_json::{Value, json};

use super::keys::{Form, MANDATORY, Section, TOP};

/// The JSON Schema (draft 7) of a config file.
pub fn schema() -> Value {
    let sections = TOP.all();
    let definitions: serde_json::Map<String, Value> = sections
        .iter()
        .skip(1)
        .map(|section| (section.name.to_owned(), object(section)))
        .collect();
    let mut schema = object(&TOP);
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

fn object(section: &Section) -> Value {
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
                json!({ "description": said, "allOf": [form(&key.form)] }),
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

fn form(of: &Form) -> Value {
    let to = |section: &Section| json!({ "$ref": format!("#/definitions/{}", section.name) });
    // A value that is put in is text until it is read.
    let or_put_in =
        |form: Value| json!({ "anyOf": [form, { "type": "string", "pattern": "\\$\\{" }] });
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
        Form::List(of) => json!({ "type": "array", "items": form(of) }),
        Form::Map(Form::Text) => {
            json!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } })
        }
        Form::Map(of) => json!({ "type": "object", "additionalProperties": form(of) }),
        Form::Named(section) => json!({
            "type": "object",
            "propertyNames": { "pattern": "^[a-z][a-z0-9_.-]{0,62}$" },
            "additionalProperties": to(section),
        }),
        Form::Section(section) => to(section),
        Form::One(section) => {
            json!({ "allOf": [to(section)], "minProperties": 1, "maxProperties": 1 })
        }
        Form::Either(a, b) => json!({ "anyOf": [form(a), form(b)] }),
        Form::Any => json!({ "type": "object" }),
        Form::Json => json!({}),
        Form::Empty => json!({ "type": "object", "maxProperties": 0 }),
    }
}
