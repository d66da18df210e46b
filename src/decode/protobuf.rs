//! Protobuf: `.proto` text compiled, and a message of it as JSON by Protobuf's own mapping.

use std::collections::BTreeMap;
use std::io;

use prost_reflect::{
    DescriptorPool, DynamicMessage, FileDescriptor, Kind, MessageDescriptor, SerializeOptions,
};
use protox::Compiler;
use protox::file::{File, FileResolver, GoogleFileResolver};
use serde_json::ser::Formatter;

use super::out::{self, Out};
use super::{Why, wire};

/// A `.proto` file, ready to read with.
#[derive(Debug)]
pub(super) struct Schema {
    file: FileDescriptor,
}

/// Values in one message, however small they are: each takes some hundred bytes while it is read.
const MOST_VALUES: usize = 500_000;
/// As prost has it.
const DEEPEST: usize = 100;
const ANY: &str = "google.protobuf.Any";
/// Braces in `.proto` text; the compiler goes down with them.
const DEEPEST_TEXT: usize = 100;

impl Schema {
    /// Compiles `text`. `references` are the files that it imports, by the names by which it does;
    /// Google's and Confluent's own need not be among them.
    pub(super) fn compile(text: &str, references: &[(String, String)]) -> Result<Self, Why> {
        let mut files: BTreeMap<String, String> = BUILT_IN
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        files.extend(references.iter().cloned());
        let mut name = "schema.proto".to_owned();
        while files.contains_key(&name) {
            name.insert(0, '_');
        }
        files.insert(name.clone(), text.to_owned());
        if files.values().any(|text| is_too_deep(text)) {
            return Err("the schema is nested too deeply".into());
        }
        let files = Files {
            files,
            of_google: GoogleFileResolver::new(),
        };
        let mut compiler = Compiler::with_file_resolver(files);
        compiler
            .open_file(&name)
            .map_err(|error| format!("the schema does not compile: {error}"))?;
        let pool: DescriptorPool = compiler.descriptor_pool();
        let file = pool.get_file_by_name(&name);
        let file = file.ok_or_else(|| Why::from("the schema does not compile"))?;
        Ok(Self { file })
    }

    /// What comes after the schema's id, as JSON of `limit` bytes at most.
    pub(super) fn json(&self, bytes: &[u8], limit: usize) -> Result<Vec<u8>, Why> {
        let (indexes, start) = wire::message_indexes(bytes)?;
        let bytes = &bytes[start..];
        let message = self.message(&indexes);
        let message = message
            .ok_or_else(|| format!("the schema has no message with the index {indexes:?}"))?;
        let mut scales = Scales {
            bytes,
            at: 0,
            left: MOST_VALUES,
        };
        scales
            .message(Some(&message), bytes.len(), None, DEEPEST)
            .map_err(|misfit| match misfit {
                Misfit::Malformed => Why::from("it is not what Protobuf writes"),
                Misfit::TooMany => format!("it has more than {MOST_VALUES} values").into(),
            })?;
        let read = DynamicMessage::decode(message, bytes)
            .map_err(|error| format!("it is not what the schema describes: {error}"))?;
        let mut out = Out::new(limit);
        let mut json = serde_json::Serializer::with_formatter(&mut out, Depth(DEEPEST));
        let written = read.serialize_with_options(&mut json, &SerializeOptions::new());
        match written {
            Ok(()) => Ok(out.finish()),
            Err(_) if out.is_full() => Err(out::too_long(limit)),
            Err(error) => Err(format!("it has no JSON: {error}").into()),
        }
    }

    /// The entries of maps are messages to the compiler only: nobody who writes an index has seen them.
    fn message(&self, indexes: &[usize]) -> Option<MessageDescriptor> {
        let (first, inner) = indexes.split_first()?;
        let mut found = self.file.messages().nth(*first)?;
        for index in inner {
            let is_written = |it: &MessageDescriptor| !it.is_map_entry();
            let next = found.child_messages().filter(is_written).nth(*index)?;
            found = next;
        }
        Some(found)
    }
}

/// Writes no deeper JSON than this: what is inside an `Any` is read while it is written, as deep as it
/// goes.
struct Depth(usize);

impl Depth {
    fn deeper(&mut self) -> io::Result<()> {
        let left = self.0.checked_sub(1);
        self.0 = left.ok_or_else(|| io::Error::other("it is nested too deeply"))?;
        Ok(())
    }
}

impl Formatter for Depth {
    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.deeper()?;
        out.write_all(b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0 += 1;
        out.write_all(b"}")
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.deeper()?;
        out.write_all(b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0 += 1;
        out.write_all(b"]")
    }
}

/// Counts what a message is made of before it is built.
struct Scales<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
}

enum Misfit {
    Malformed,
    TooMany,
}

impl Scales<'_> {
    /// Fields up to `end`, or up to the end of the group of this number.
    fn message(
        &mut self,
        of: Option<&MessageDescriptor>,
        end: usize,
        group: Option<u64>,
        depth: usize,
    ) -> Result<(), Misfit> {
        let depth = depth.checked_sub(1).ok_or(Misfit::Malformed)?;
        while self.at < end {
            let key = self.varint(end)?;
            let (field, wire_type) = (key >> 3, key & 7);
            if wire_type == 4 {
                return match group == Some(field) {
                    true => Ok(()),
                    false => Err(Misfit::Malformed),
                };
            }
            self.count(1)?;
            let kind = || {
                let field = of?.get_field(u32::try_from(field).ok()?)?;
                Some(field.kind())
            };
            match wire_type {
                0 => {
                    self.varint(end)?;
                }
                1 => self.skip(8, end)?,
                5 => self.skip(4, end)?,
                2 => {
                    let length = self.varint(end)?;
                    let length = usize::try_from(length).map_err(|_| Misfit::Malformed)?;
                    let start = self.at;
                    self.skip(length, end)?;
                    match kind() {
                        // Read while it is written, so its values are not looked at here.
                        Some(Kind::Bytes) if of.is_some_and(|of| of.full_name() == ANY) => {
                            self.count(length / 2)?;
                        }
                        None | Some(Kind::String | Kind::Bytes) => {}
                        Some(Kind::Message(inner)) => {
                            let end = self.at;
                            self.at = start;
                            self.message(Some(&inner), end, None, depth)?;
                        }
                        Some(Kind::Fixed64 | Kind::Sfixed64 | Kind::Double) => {
                            self.count(length / 8)?;
                        }
                        Some(Kind::Fixed32 | Kind::Sfixed32 | Kind::Float) => {
                            self.count(length / 4)?;
                        }
                        // Each ends with a byte that says so.
                        Some(_) => {
                            let packed = &self.bytes[start..self.at];
                            let ends = packed.iter().filter(|byte| **byte < 0x80);
                            self.count(ends.count())?;
                        }
                    }
                }
                3 => {
                    let inner = match kind() {
                        Some(Kind::Message(inner)) => Some(inner),
                        _ => None,
                    };
                    self.message(inner.as_ref(), end, Some(field), depth)?;
                }
                _ => return Err(Misfit::Malformed),
            }
        }
        match group {
            None => Ok(()),
            Some(_) => Err(Misfit::Malformed),
        }
    }

    fn count(&mut self, values: usize) -> Result<(), Misfit> {
        self.left = self.left.checked_sub(values).ok_or(Misfit::TooMany)?;
        Ok(())
    }

    fn skip(&mut self, length: usize, end: usize) -> Result<(), Misfit> {
        let next = self.at.checked_add(length).filter(|next| *next <= end);
        self.at = next.ok_or(Misfit::Malformed)?;
        Ok(())
    }

    fn varint(&mut self, end: usize) -> Result<u64, Misfit> {
        let read = wire::varint(&self.bytes[self.at..end]);
        let (number, length) = read.ok_or(Misfit::Malformed)?;
        self.at += length;
        Ok(number)
    }
}

struct Files {
    files: BTreeMap<String, String>,
    of_google: GoogleFileResolver,
}

impl FileResolver for Files {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match self.files.get(name) {
            Some(text) => File::from_source(name, text),
            None => self.of_google.open_file(name),
        }
    }
}

/// Whether its brackets are nested more deeply than anybody writes them. Those in comments and texts
/// count, which makes no difference to a file that people have written.
fn is_too_deep(text: &str) -> bool {
    let mut depth = 0_usize;
    text.bytes().any(|byte| {
        match byte {
            b'{' | b'[' | b'<' => depth += 1,
            b'}' | b']' | b'>' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > DEEPEST_TEXT
    })
}

/// What Confluent's serializers know without being told.
const BUILT_IN: [(&str, &str); 2] = [
    (
        "confluent/meta.proto",
        r#"syntax = "proto3";
package confluent;
import "google/protobuf/descriptor.proto";
message Meta { string doc = 1; map<string, string> params = 2; repeated string tags = 3; }
extend google.protobuf.FileOptions { Meta file_meta = 1088; }
extend google.protobuf.MessageOptions { Meta message_meta = 1088; }
extend google.protobuf.FieldOptions { Meta field_meta = 1088; }
extend google.protobuf.EnumOptions { Meta enum_meta = 1088; }
extend google.protobuf.EnumValueOptions { Meta enum_value_meta = 1088; }
"#,
    ),
    (
        "confluent/type/decimal.proto",
        r#"syntax = "proto3";
package confluent.type;
message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }
"#,
    ),
];

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const ORDER: &str = r#"syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "confluent/meta.proto";
import "shop/customer.proto";
message Ignored {}
message Order {
  option (confluent.message_meta).doc = "an order";
  map<string, int32> counts = 1;
  message Item { string sku = 1; double price = 2; }
  repeated Item items = 2;
  int64 total_cents = 3;
  google.protobuf.Timestamp made_at = 4;
  State state = 5;
  bytes token = 6;
  Customer customer = 7;
  repeated uint32 marks = 8;
  Order replaces = 9;
}
enum State { NEW = 0; PAID = 1; }
"#;
    const CUSTOMER: &str =
        "syntax = \"proto3\"; package shop; message Customer { string name = 1; }";

    fn order() -> &'static Schema {
        static COMPILED: LazyLock<Schema> = LazyLock::new(|| {
            let references = [("shop/customer.proto".to_owned(), CUSTOMER.to_owned())];
            Schema::compile(ORDER, &references).unwrap()
        });
        &COMPILED
    }

    fn json(bytes: &[u8]) -> Result<String, Why> {
        let json = order().json(bytes, 1000)?;
        Ok(String::from_utf8(json).unwrap())
    }

    #[test]
    fn a_message_is_written_by_the_mapping_of_protobuf() {
        let mut bytes = vec![2, 2]; // the second message
        bytes.extend([0x0a, 5, 0x0a, 1, b'a', 0x10, 3]); // counts
        bytes.extend([0x12, 3, 0x0a, 1, b'x']); // items
        bytes.extend([0x18, 0x96, 1]); // total_cents
        bytes.extend([0x22, 6, 0x08, 0xc0, 0xd4, 0x90, 0xcd, 6]); // made_at
        bytes.extend([0x28, 1, 0x32, 2, 0xff, 0xfe]); // state, token
        bytes.extend([0x3a, 5, 0x0a, 3, b'A', b'd', b'a']); // customer
        bytes.extend([0x42, 3, 1, 0x80, 1]); // marks
        let wanted = r#"{"counts":{"a":3},"items":[{"sku":"x"}],"totalCents":"150","madeAt":"2026-03-01T12:00:00Z","state":"PAID","token":"//4=","customer":{"name":"Ada"},"marks":[1,128]}"#;
        assert_eq!(json(&bytes).unwrap(), wanted);
    }

    #[test]
    fn messages_inside_are_found_and_entries_of_maps_are_not_among_them() {
        assert_eq!(json(&[4, 2, 0, 0x0a, 1, b'x']).unwrap(), r#"{"sku":"x"}"#);
        assert_eq!(json(&[0]).unwrap(), "{}");
        let why = json(&[4, 2, 2]).unwrap_err();
        assert!(why.contains("no message with the index [1, 1]"), "{why}");
    }

    #[test]
    fn what_is_no_message_is_said() {
        for bad in [
            &[2, 2, 0x12, 9, 0x0a][..],
            &[2, 2, 0x0b],
            &[2, 2, 0x0c],
            &[2, 2, 0x0e],
            &[2, 2, 0x18],
            &[2, 2, 0x3a, 3, 0x0a, 1, 0xff],
            &[2, 0],
        ] {
            let why = json(bad);
            assert_eq!(why.is_err(), bad.len() > 2, "{bad:?}: {why:?}");
        }
        let why = order().json(&[2, 2, 0x32, 2, 0xff, 0xfe], 10).unwrap_err();
        assert!(why.contains("longer than 10 bytes"), "{why}");
    }

    #[test]
    fn a_bomb_of_empty_values_is_counted_before_it_is_built() {
        let mut items = vec![2, 2];
        items.extend([0x12, 0].repeat(MOST_VALUES + 1));
        let mut marks = vec![2, 2, 0x42, 0xc0, 0x84, 0x3d];
        marks.extend([1].repeat(1_000_000));
        for bomb in [items, marks] {
            let why = order().json(&bomb, 16 << 20).unwrap_err();
            assert!(why.contains("more than 500000 values"), "{why}");
        }
        let mut deep = vec![0x4a, 0];
        for _ in 0..150 {
            let mut outer = vec![0x4a];
            let mut length = deep.len();
            while length > 0x7f {
                outer.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            outer.push(length as u8);
            outer.append(&mut deep);
            deep = outer;
        }
        deep.splice(0..0, [2, 2]);
        assert!(order().json(&deep, 1 << 20).is_err());
    }

    #[test]
    fn what_is_packed_into_itself_ends() {
        let text = r#"syntax = "proto3";
import "google/protobuf/any.proto";
import "google/protobuf/empty.proto";
message Packed { google.protobuf.Any any = 1; }"#;
        let schema = Schema::compile(text, &[]).unwrap();
        let field = |number: u8, inner: &[u8]| {
            let mut bytes = vec![number << 3 | 2];
            let mut length = inner.len();
            while length > 0x7f {
                bytes.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            bytes.push(length as u8);
            bytes.extend(inner);
            bytes
        };
        let packed = |levels: usize| {
            let name = field(1, b"/google.protobuf.Any");
            let mut any = field(1, b"/google.protobuf.Empty");
            for _ in 0..levels {
                any = [name.clone(), field(2, &any)].concat();
            }
            [vec![0], field(1, &any)].concat()
        };
        assert!(schema.json(&packed(20), 1 << 20).is_ok());
        let why = schema.json(&packed(20_000), 16 << 20).unwrap_err();
        assert!(why.contains("nested too deeply"), "{why}");
    }

    #[test]
    fn a_schema_that_does_not_compile_is_said() {
        for (text, words) in [
            ("nonsense", "does not compile"),
            ("syntax = \"proto3\"; import \"gone.proto\";", "gone.proto"),
            (
                &format!("syntax = \"proto3\"; {}", "message A {".repeat(200)),
                "nested too deeply",
            ),
        ] {
            let why = Schema::compile(text, &[]).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let schema = order();
            let _ = schema.json(&bytes, 1000);
            let mut named = vec![2, 2];
            named.extend(bytes);
            let _ = schema.json(&named, 1000);
        }
    }
}
