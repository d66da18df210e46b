//! Contracts: what the body of an event has to be, for a source or a subscription.
//!
//! A contract is compiled once. A `$ref` leads to a place in the same schema, or to a published
//! meta-schema: nothing is asked of a network, and no file is opened. What is wrong with a body is
//! said by where it is in the body and in the schema, never by what stands there, which may be
//! confidential.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, Validator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::LazyJson;

/// What bodies have to be.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Contract {
    /// Bytes, as they come from the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
}

impl Contract {
    /// What an envelope says instead of an answer, where a body breaks its contract.
    pub const RESULT: &'static str = "invalid";

    /// Whether anything goes.
    pub fn is_none(&self) -> bool {
        self.max_body.is_none() && self.schema.is_none()
    }

    /// What is wrong with a message of so many bytes, of which `body` is what its source has read.
    pub fn check(&self, length: usize, body: &LazyJson<'_>) -> Result<(), String> {
        if let Some(most) = self.max_body
            && length as u64 > most
        {
            return Err(format!("the body has {length} bytes, {most} are allowed"));
        }
        match &self.schema {
            None => Ok(()),
            Some(schema) => match body.get() {
                None => Err("the body is not JSON".to_owned()),
                Some(body) => schema.check(body),
            },
        }
    }
}

/// A JSON Schema, compiled.
#[derive(Clone)]
pub struct Schema {
    written: Arc<Value>,
    validator: Arc<Validator>,
}

/// Why a schema is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SchemaError {
    /// JSON pointer to the wrong part; empty for the schema as a whole.
    pub path: String,
    pub message: String,
}

impl SchemaError {
    fn whole(message: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            message: message.into(),
        }
    }
}

impl Schema {
    /// Bytes of its JSON text: what the store keeps in one record has to hold it.
    pub const MAX_BYTES: usize = 64 << 10;
    /// Nesting of a body is limited, and so is what a schema may go through at one place of it.
    const MAX_STEPS_IN_PLACE: usize = 64;
    /// Each way from a schema to those about the same value is gone for each body.
    const MAX_WAYS_IN_PLACE: usize = 10_000;
    /// Memory of one compiled `pattern`, in bytes.
    const MAX_PATTERN_BYTES: usize = 256 << 10;

    /// Compiles a schema as it stands in the config. The first problem found is the error.
    pub fn compile(written: Value) -> Result<Self, SchemaError> {
        if !written.is_object() {
            return Err(SchemaError::whole("a schema is a map"));
        }
        if written.to_string().len() > Self::MAX_BYTES {
            let most = Self::MAX_BYTES >> 10;
            return Err(SchemaError::whole(format!(
                "the schema is longer than {most} KiB"
            )));
        }
        if let Some(path) = endless(&written) {
            let message = "this schema leads back to itself, or in too many ways to others, without going into the body".to_owned();
            return Err(SchemaError { path, message });
        }
        // Patterns of the `regex` crate take linear time, whatever a body is.
        let patterns = PatternOptions::regex().size_limit(Self::MAX_PATTERN_BYTES);
        let built = jsonschema::options()
            .with_pattern_options(patterns)
            .should_validate_formats(true)
            .build(&written);
        let validator = built.map_err(|error| {
            let message = match error.kind() {
                ValidationErrorKind::Referencing(why) => {
                    format!("a `$ref` leads nowhere: {why}; schemas are read from no other place")
                }
                _ => format!("this is not a schema: {}", error.masked()),
            };
            SchemaError {
                path: error.instance_path().as_str().to_owned(),
                message: shortened(&message),
            }
        })?;
        Ok(Self {
            written: Arc::new(written),
            validator: Arc::new(validator),
        })
    }

    fn check(&self, body: &Value) -> Result<(), String> {
        let Err(error) = self.validator.validate(body) else {
            return Ok(());
        };
        let place = match error.instance_path().as_str() {
            "" => "the body as a whole".to_owned(),
            path => format!("`{}`", shown(path)),
        };
        let keyword = shown(error.schema_path().as_str());
        Err(match error.kind() {
            // Its name comes from the schema.
            ValidationErrorKind::Required { property } => format!(
                "{place} has no {}, which `{keyword}` of the schema wants",
                shown(&property.to_string())
            ),
            _ => format!("{place} is not as `{keyword}` of the schema wants it"),
        })
    }
}

/// The longest pointer that is shown, in bytes.
const LONGEST_SHOWN: usize = 180;

/// A pointer on one line, and not too long.
fn shown(pointer: &str) -> String {
    let cut = pointer.floor_char_boundary(LONGEST_SHOWN);
    let start = pointer[..cut].chars();
    let mut shown: String = start
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if cut < pointer.len() {
        shown.push_str("...");
    }
    shown
}

fn shortened(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line[..line.floor_char_boundary(300)].to_owned()
}

const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];
/// Keywords whose schemas are about the same value as the schema that they stand in.
const IN_PLACE: [&str; 4] = ["not", "if", "then", "else"];
const IN_PLACE_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const IN_PLACE_MAPS: [&str; 2] = ["dependentSchemas", "dependencies"];

/// Where a chain of schemas about one and the same value begins that does not end, or is longer or
/// has more ways than is allowed. It would use up the stack, or a core.
fn endless(root: &Value) -> Option<String> {
    fn walk<'a>(chains: &mut Chains<'a>, at: &'a Value, path: &mut String) -> Option<String> {
        if chains.is_endless(at) {
            return Some(path.clone());
        }
        let mut into = |key: &str, child: &'a Value| {
            let length = path.len();
            path.push('/');
            path.push_str(&key.replace('~', "~0").replace('/', "~1"));
            let found = walk(chains, child, path);
            path.truncate(length);
            found
        };
        match at {
            Value::Object(members) => members.iter().find_map(|(key, child)| into(key, child)),
            Value::Array(items) => {
                let mut items = items.iter().enumerate();
                items.find_map(|(number, child)| into(&number.to_string(), child))
            }
            _ => None,
        }
    }
    let mut chains = Chains {
        root,
        open: Vec::new(),
        ended: HashMap::new(),
    };
    walk(&mut chains, root, &mut String::new())
}

/// Chains of schemas about one value, each schema looked at once.
struct Chains<'a> {
    root: &'a Value,
    open: Vec<*const Value>,
    /// And in how many ways it can be gone through.
    ended: HashMap<*const Value, usize>,
}

impl<'a> Chains<'a> {
    fn is_endless(&mut self, at: &'a Value) -> bool {
        self.ways(at).is_none()
    }

    /// How often a schema is come upon from here for one value; `None` where that is too often.
    fn ways(&mut self, at: &'a Value) -> Option<usize> {
        let Value::Object(schema) = at else {
            return Some(1);
        };
        let this = std::ptr::from_ref(at);
        if let Some(ways) = self.ended.get(&this) {
            return Some(*ways);
        }
        if self.open.contains(&this) || self.open.len() >= Schema::MAX_STEPS_IN_PLACE {
            return None;
        }
        let root = self.root;
        let refs = REFERENCES.iter();
        let refs = refs.filter_map(|key| target(root, schema.get(*key)?.as_str()?));
        let single = IN_PLACE.iter().filter_map(|key| schema.get(*key));
        let lists = IN_PLACE_LISTS.iter();
        let lists = lists.filter_map(|key| schema.get(*key)?.as_array());
        let maps = IN_PLACE_MAPS.iter();
        let maps = maps.filter_map(|key| schema.get(*key)?.as_object());
        let next: Vec<&'a Value> = refs
            .chain(single)
            .chain(lists.flatten())
            .chain(maps.flat_map(|map| map.values()))
            .collect();
        self.open.push(this);
        let ways = next.into_iter().try_fold(1, |ways, child| {
            Some(ways + self.ways(child)?).filter(|ways| *ways <= Schema::MAX_WAYS_IN_PLACE)
        });
        self.open.pop();
        if let Some(ways) = ways {
            self.ended.insert(this, ways);
        }
        ways
    }
}

/// What a reference within the schema is to.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
    let root = match base {
        "" => root,
        base => named(root, "$id", base)?,
    };
    match fragment {
        "" => Some(root),
        pointer if pointer.starts_with('/') => {
            let decoded = pointer.replace("%25", "%").replace("%24", "$");
            root.pointer(&decoded)
        }
        anchor => named(root, "$anchor", anchor).or_else(|| named(root, "$dynamicAnchor", anchor)),
    }
}

fn named<'a>(at: &'a Value, key: &str, name: &str) -> Option<&'a Value> {
    match at {
        Value::Object(members) => {
            let own = members.get(key).and_then(Value::as_str);
            let is_it = own.is_some_and(|own| own == name || own.ends_with(&format!("/{name}")));
            if is_it {
                return Some(at);
            }
            members.values().find_map(|child| named(child, key, name))
        }
        Value::Array(items) => items.iter().find_map(|child| named(child, key, name)),
        _ => None,
    }
}

/// What was written, which makes the same schema again.
impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.fmt(f)
    }
}

impl Serialize for Schema {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Value::deserialize(deserializer)?;
        Self::compile(written).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(schema: Value, body: &str) -> Result<(), String> {
        let contract = Contract {
            max_body: Some(1000),
            schema: Some(Schema::compile(schema).unwrap()),
        };
        contract.check(body.len(), &LazyJson::new(body.as_bytes()))
    }

    fn order() -> Value {
        json!({
            "type": "object",
            "required": ["id"],
            "properties": {
                "id": { "type": "string", "pattern": "^o_[0-9]+$" },
                "items": { "type": "array", "items": { "$ref": "#/$defs/item" } },
            },
            "additionalProperties": false,
            "$defs": { "item": { "type": "object", "properties": { "price": { "minimum": 0 } } } },
        })
    }

    #[test]
    fn a_body_is_held_to_its_schema() {
        assert_eq!(
            check(order(), r#"{"id": "o_1", "items": [{"price": 1}]}"#),
            Ok(())
        );
    }

    #[test]
    fn what_is_wrong_is_said_by_its_place_and_not_by_its_value() {
        let wrong = |body: &str| check(order(), body).unwrap_err();
        insta::assert_snapshot!(wrong(r#"{"id": "geheim"}"#), @"`/id` is not as `/properties/id/pattern` of the schema wants it");
        insta::assert_snapshot!(wrong(r#"{"items": []}"#), @r#"the body as a whole has no "id", which `/required` of the schema wants"#);
        let price = wrong(r#"{"id": "o_1", "items": [{}, {"price": -4711}]}"#);
        assert!(price.starts_with("`/items/1/price` is not as"), "{price}");
        assert!(!price.contains("4711"), "{price}");
        let more = wrong(r#"{"id": "o_1", "geheim": 1}"#);
        assert!(!more.contains("geheim"), "{more}");
        insta::assert_snapshot!(wrong("id=o_1"), @"the body is not JSON");
        let long = format!("\"{}\"", "x".repeat(999));
        insta::assert_snapshot!(wrong(&long), @"the body has 1001 bytes, 1000 are allowed");
    }

    #[test]
    fn a_place_is_shown_short_and_on_one_line() {
        let schema = json!({ "additionalProperties": { "type": "string" } });
        let body = format!(r#"{{"a\n{}": 1}}"#, "x".repeat(600));
        let wrong = check(schema, &body).unwrap_err();
        assert!(wrong.len() < 400 && wrong.starts_with("`/a?xxx"), "{wrong}");
        assert!(!wrong.contains('\n'), "{wrong}");
    }

    #[test]
    fn formats_and_newer_keywords_are_known() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "properties": { "at": { "format": "date-time" } },
            "unevaluatedProperties": false,
        });
        assert_eq!(
            check(schema.clone(), r#"{"at": "2026-01-31T12:00:00Z"}"#),
            Ok(())
        );
        assert!(check(schema.clone(), r#"{"at": "yesterday"}"#).is_err());
        assert!(check(schema, r#"{"more": 1}"#).is_err());
    }

    #[test]
    fn what_is_no_schema_is_said_with_its_place() {
        let error = |schema: Value| Schema::compile(schema).unwrap_err();
        let wrong = error(json!({ "properties": { "id": { "type": "strnig" } } }));
        assert!(wrong.path.starts_with("/properties/id/type"), "{wrong:?}");
        assert_eq!(error(json!(true)).message, "a schema is a map");
        let long = json!({ "description": "x".repeat(Schema::MAX_BYTES) });
        assert_eq!(error(long).message, "the schema is longer than 64 KiB");
        error(json!({ "pattern": "(" }));
        error(json!({ "pattern": "(?=x)" }));
    }

    #[test]
    fn nothing_is_fetched_or_opened() {
        for reference in [
            "http://127.0.0.1:1/schema.json",
            "https://example.com/schema.json",
            "file:///etc/passwd",
            "other.json",
            "#/$defs/missing",
        ] {
            let error = Schema::compile(json!({ "$ref": reference })).unwrap_err();
            assert!(
                error.message.starts_with("a `$ref` leads nowhere"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_schema_that_leads_to_itself_is_refused() {
        for schema in [
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "$ref": "#" }] }),
            json!({ "properties": { "a": { "$ref": "#/$defs/a" } },
                    "$defs": { "a": { "anyOf": [{ "$ref": "#/$defs/b" }] }, "b": { "not": { "$ref": "#/$defs/a" } } } }),
            json!({ "$id": "https://example.com/a", "$anchor": "a", "oneOf": [{ "$ref": "#a" }] }),
        ] {
            let error = Schema::compile(schema).unwrap_err();
            assert!(error.message.contains("leads back"), "{error:?}");
        }
        // Each of forty goes to the next in two ways.
        let twice = |number| {
            let next = json!({ "$ref": format!("#/$defs/a{}", number + 1) });
            (format!("a{number}"), json!({ "allOf": [next, next] }))
        };
        let mut defs: serde_json::Map<_, _> = (0..40).map(twice).collect();
        defs.insert("a40".to_owned(), json!({ "type": "object" }));
        let many = json!({ "$ref": "#/$defs/a0", "$defs": defs });
        assert!(Schema::compile(many).is_err());
        let tree = json!({ "properties": { "children": { "items": { "$ref": "#" } } } });
        assert_eq!(check(tree, r#"{"children": [{"children": []}]}"#), Ok(()));
    }

    #[test]
    fn a_contract_is_kept_as_it_was_written() {
        let contract = Contract {
            max_body: Some(7),
            schema: Some(Schema::compile(order()).unwrap()),
        };
        let text = serde_json::to_string(&contract).unwrap();
        assert_eq!(serde_json::from_str::<Contract>(&text).unwrap(), contract);
        assert_eq!(serde_json::to_string(&Contract::default()).unwrap(), "{}");
    }
}
