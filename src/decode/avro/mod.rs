//! Avro: schemas as a registry has them, and what is written with one as JSON.
//!
//! What is read is read with the schema that it was written with, so nothing is resolved against
//! another one. The rule by which Avro becomes JSON is in docs/decoding.md; reading is in
//! [`datum`].
//!
//! The crate `apache-avro` was looked at and left: it builds a tree of everything before a limit can
//! be felt (a list of nulls costs no byte in Avro), and its JSON writes bytes as lists of numbers.

mod datum;

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Why;

/// A schema, ready to read with.
#[derive(Debug)]
pub(super) struct Schema {
    nodes: Vec<Node>,
    root: usize,
}

/// Numbers are those of other nodes.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    /// Symbols, quoted.
    Enum(Vec<Box<str>>),
    List(usize),
    Map(usize),
    Union(Vec<usize>),
    /// Names, quoted and with their colons.
    Record(Vec<(Box<str>, usize)>),
    Decimal {
        scale: usize,
        /// Of a fixed.
        size: Option<usize>,
    },
    Date,
    /// Of the day.
    Time(Unit),
    /// A point in time.
    Instant(Unit),
    /// A date and a time of the day, wherever that is.
    Local(Unit),
    /// In 16 bytes; as text it is text.
    Uuid,
    Duration,
    /// A record or the like that is being read.
    Pending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Millis,
    Micros,
    Nanos,
}

/// A decimal's digits after the point; more is no decimal to us.
const LARGEST_SCALE: u64 = 100;
/// serde_json stops at 128 levels of text; names could lead deeper only through [`Node::Pending`].
const DEEPEST: usize = 128;

impl Schema {
    /// Reads a schema. `references` are others whose names it uses, each after those that it uses
    /// itself.
    pub(super) fn parse(text: &str, references: &[(String, String)]) -> Result<Self, Why> {
        let mut reader = Reader::default();
        for (_, text) in references {
            reader.whole(text)?;
        }
        let root = reader.whole(text)?;
        Ok(Self {
            nodes: reader.nodes,
            root,
        })
    }

    /// `bytes` as JSON of `limit` bytes at most.
    pub(super) fn json(&self, bytes: &[u8], limit: usize) -> Result<Vec<u8>, Why> {
        datum::json(self, bytes, limit)
    }
}

#[derive(Default)]
struct Reader {
    nodes: Vec<Node>,
    /// By full name.
    names: HashMap<String, usize>,
}

impl Reader {
    fn whole(&mut self, text: &str) -> Result<usize, Why> {
        // A registry keeps the schema of a primitive as a bare word, or as JSON text of it.
        let json = match serde_json::from_str(text) {
            Ok(json) => json,
            Err(_) if primitive(text.trim()).is_some() => Value::from(text.trim()),
            Err(error) => return Err(format!("the schema is not JSON: {error}").into()),
        };
        self.schema(&json, "", DEEPEST)
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn schema(&mut self, json: &Value, space: &str, depth: usize) -> Result<usize, Why> {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| Why::from("the schema is nested too deeply"))?;
        match json {
            Value::String(name) => self.named(name, space),
            Value::Array(branches) => {
                let branches = branches
                    .iter()
                    .map(|branch| self.schema(branch, space, depth));
                let branches = branches.collect::<Result<_, _>>()?;
                Ok(self.add(Node::Union(branches)))
            }
            Value::Object(object) => self.object(object, space, depth),
            _ => Err("the schema has a type that is none".into()),
        }
    }

    fn named(&mut self, name: &str, space: &str) -> Result<usize, Why> {
        if let Some(node) = primitive(name) {
            return Ok(self.add(node));
        }
        let full = full_name(name, space);
        let found = self.names.get(&full).or_else(|| self.names.get(name));
        found
            .copied()
            .ok_or_else(|| format!("the schema names `{full}`, which nothing defines").into())
    }

    fn object(
        &mut self,
        object: &Map<String, Value>,
        space: &str,
        depth: usize,
    ) -> Result<usize, Why> {
        let kind = match object.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(inner) => return self.schema(inner, space, depth),
            None => return Err("the schema has a type that is none".into()),
        };
        let logical = object.get("logicalType").and_then(Value::as_str);
        match kind {
            "array" => {
                let items = self.schema(part(object, "items")?, space, depth)?;
                Ok(self.add(Node::List(items)))
            }
            "map" => {
                let values = self.schema(part(object, "values")?, space, depth)?;
                Ok(self.add(Node::Map(values)))
            }
            "record" | "error" => {
                let (number, space) = self.begin(object, space)?;
                let fields = part(object, "fields")?.as_array();
                let fields = fields.ok_or_else(|| Why::from("`fields` of a record is no list"))?;
                let mut read = Vec::with_capacity(fields.len());
                for field in fields {
                    let field = field
                        .as_object()
                        .ok_or_else(|| Why::from("a field of a record is no object"))?;
                    let name = text(field, "name")?;
                    let mut quoted = quoted(name);
                    quoted.push(':');
                    let kind = self.schema(part(field, "type")?, &space, depth)?;
                    read.push((quoted.into(), kind));
                }
                self.nodes[number] = Node::Record(read);
                Ok(number)
            }
            "enum" => {
                let (number, _) = self.begin(object, space)?;
                let symbols = part(object, "symbols")?.as_array();
                let symbols = symbols.into_iter().flatten().filter_map(Value::as_str);
                self.nodes[number] = Node::Enum(symbols.map(|it| quoted(it).into()).collect());
                Ok(number)
            }
            "fixed" => {
                let (number, _) = self.begin(object, space)?;
                let size = part(object, "size")?.as_u64();
                let size = size
                    .and_then(|size| usize::try_from(size).ok())
                    .ok_or_else(|| Why::from("`size` of a fixed is no size"))?;
                self.nodes[number] = match (logical, size) {
                    (Some("decimal"), _) => decimal(object, Some(size)),
                    (Some("duration"), 12) => Some(Node::Duration),
                    (Some("uuid"), 16) => Some(Node::Uuid),
                    _ => None,
                }
                .unwrap_or(Node::Fixed(size));
                Ok(number)
            }
            kind => {
                let node = match (kind, logical) {
                    ("bytes", Some("decimal")) => decimal(object, None),
                    ("int", Some("date")) => Some(Node::Date),
                    ("int", Some("time-millis")) => Some(Node::Time(Unit::Millis)),
                    ("long", Some("time-micros")) => Some(Node::Time(Unit::Micros)),
                    ("long", Some(logical)) => point(logical),
                    _ => None,
                };
                match node {
                    Some(node) => Ok(self.add(node)),
                    None => self.named(kind, space),
                }
            }
        }
    }

    /// A place for a type with a name, which it may use itself, and the namespace inside of it.
    fn begin(&mut self, object: &Map<String, Value>, space: &str) -> Result<(usize, String), Why> {
        let name = text(object, "name")?;
        let given = object.get("namespace").and_then(Value::as_str);
        let full = full_name(name, given.unwrap_or(space));
        let inside = full.rsplit_once('.').map_or("", |(space, _)| space);
        let inside = inside.to_owned();
        let number = self.add(Node::Pending);
        self.names.insert(full, number);
        Ok((number, inside))
    }
}

fn primitive(name: &str) -> Option<Node> {
    Some(match name {
        "null" => Node::Null,
        "boolean" => Node::Boolean,
        "int" => Node::Int,
        "long" => Node::Long,
        "float" => Node::Float,
        "double" => Node::Double,
        "bytes" => Node::Bytes,
        "string" => Node::Text,
        _ => return None,
    })
}

/// The points in time that a long can be.
fn point(logical: &str) -> Option<Node> {
    let (is_local, unit) = match logical.strip_prefix("local-") {
        Some(unit) => (true, unit),
        None => (false, logical),
    };
    let unit = match unit {
        "timestamp-millis" => Unit::Millis,
        "timestamp-micros" => Unit::Micros,
        "timestamp-nanos" => Unit::Nanos,
        _ => return None,
    };
    Some(match is_local {
        true => Node::Local(unit),
        false => Node::Instant(unit),
    })
}

/// `None`: a decimal that is none is what it is made of.
fn decimal(object: &Map<String, Value>, size: Option<usize>) -> Option<Node> {
    let scale = match object.get("scale") {
        None => 0,
        Some(scale) => scale.as_u64().filter(|scale| *scale <= LARGEST_SCALE)?,
    };
    let fits = size.is_none_or(|size| size <= datum::LONGEST_DECIMAL);
    fits.then_some(Node::Decimal {
        scale: scale as usize,
        size,
    })
}

fn full_name(name: &str, space: &str) -> String {
    match space.is_empty() || name.contains('.') {
        true => name.trim_start_matches('.').to_owned(),
        false => format!("{space}.{name}"),
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

fn part<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a Value, Why> {
    object
        .get(key)
        .ok_or_else(|| format!("`{key}` is missing in the schema").into())
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, Why> {
    let found = part(object, key)?.as_str();
    found.ok_or_else(|| format!("`{key}` of the schema is no text").into())
}

#[cfg(test)]
mod tests;
