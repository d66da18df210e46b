use proptest::prelude::*;
use serde_json::json;

use super::*;

fn read(schema: Value, bytes: &[u8]) -> Result<String, Why> {
    let schema = Schema::parse(&schema.to_string(), &[])?;
    let json = schema.json(bytes, 1000)?;
    Ok(String::from_utf8(json).unwrap())
}

fn long(number: i64) -> Vec<u8> {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    let mut bytes = Vec::new();
    while left > 0x7f {
        bytes.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes
}

fn logical(kind: &str, logical: &str) -> Value {
    json!({"type": kind, "logicalType": logical})
}

#[test]
fn every_type_has_its_json() {
    let all = json!({"type": "record", "name": "All", "namespace": "a.b", "fields": [
        {"name": "none", "type": "null"},
        {"name": "yes", "type": "boolean"},
        {"name": "int", "type": "int"},
        {"name": "long", "type": "long"},
        {"name": "float", "type": "float"},
        {"name": "double", "type": "double"},
        {"name": "bytes", "type": "bytes"},
        {"name": "te\"xt", "type": {"type": "string", "avro.java.string": "String"}},
        {"name": "fixed", "type": {"type": "fixed", "name": "F", "size": 2}},
        {"name": "enum", "type": {"type": "enum", "name": "E", "symbols": ["X", "Y"]}},
        {"name": "list", "type": {"type": "array", "items": "a.b.E"}},
        {"name": "map", "type": {"type": "map", "values": ["null", "F"]}},
        {"name": "self", "type": ["null", "All"]},
    ]});
    let mut bytes = vec![1];
    bytes.extend(long(-3));
    bytes.extend(long(i64::MAX));
    bytes.extend(0.1_f32.to_le_bytes());
    bytes.extend(0.1_f64.to_le_bytes());
    bytes.extend([4, 0xff, 0xfe]);
    bytes.extend([6, b'"', 0xc3, 0xa4]);
    bytes.extend([b'a', b'b']);
    bytes.push(2);
    bytes.extend([2, 0, 1, 2, 2, 0]); // a block of one, another one with its size
    bytes.extend([4, 2, b'k', 0, 2, b'l', 2, 1, 2, 0]);
    bytes.push(0);
    assert_eq!(
        read(all, &bytes).unwrap(),
        r#"{"none":null,"yes":true,"int":-3,"long":9223372036854775807,"float":0.1,"double":0.1,"bytes":"//4=","te\"xt":"\"ä","fixed":"YWI=","enum":"Y","list":["X","Y"],"map":{"k":null,"l":"AQI="},"self":null}"#
    );
    let floats = json!({"type": "array", "items": "double"});
    let mut bytes = vec![6];
    for float in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        bytes.extend(float.to_le_bytes());
    }
    bytes.push(0);
    let read = read(floats, &bytes).unwrap();
    assert_eq!(read, r#"["NaN","Infinity","-Infinity"]"#);
}

#[test]
fn logical_types_are_what_people_write() {
    for (schema, bytes, wanted) in [
        (logical("int", "date"), long(20_513), r#""2026-03-01""#),
        (logical("int", "date"), long(-1), r#""1969-12-31""#),
        (logical("int", "date"), long(i32::MAX.into()), "2147483647"),
        (
            logical("int", "time-millis"),
            long(43_200_500),
            r#""12:00:00.5""#,
        ),
        (
            logical("long", "time-micros"),
            long(1),
            r#""00:00:00.000001""#,
        ),
        (logical("long", "time-micros"), long(-1), "-1"),
        (
            logical("long", "timestamp-millis"),
            long(1_772_366_400_123),
            r#""2026-03-01T12:00:00.123Z""#,
        ),
        (
            logical("long", "timestamp-micros"),
            long(1_772_366_400_000_000),
            r#""2026-03-01T12:00:00Z""#,
        ),
        (
            logical("long", "timestamp-nanos"),
            long(1_772_366_400_000_000_001),
            r#""2026-03-01T12:00:00.000000001Z""#,
        ),
        (
            logical("long", "timestamp-millis"),
            long(i64::MAX),
            "9223372036854775807",
        ),
        (
            logical("long", "local-timestamp-millis"),
            long(1_772_366_400_000),
            r#""2026-03-01T12:00:00""#,
        ),
        (logical("long", "shoe-size"), long(43), "43"),
        (logical("string", "uuid"), vec![2, b'u'], r#""u""#),
        (
            json!({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}),
            vec![0x11; 16],
            r#""11111111-1111-1111-1111-111111111111""#,
        ),
        (
            json!({"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"}),
            vec![1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0],
            r#"{"months":1,"days":2,"millis":256}"#,
        ),
        (
            json!({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}),
            vec![4, 0x04, 0xe2],
            "12.50",
        ),
        (
            json!({"type": "fixed", "name": "M", "size": 3, "logicalType": "decimal", "precision": 6, "scale": 4}),
            vec![0xff, 0xff, 0xfb],
            "-0.0005",
        ),
        (
            json!({"type": "bytes", "logicalType": "decimal", "precision": 30}),
            {
                let mut bytes = vec![26, 1];
                bytes.extend([0; 12]);
                bytes
            },
            "79228162514264337593543950336",
        ),
        (
            json!({"type": "bytes", "logicalType": "decimal", "precision": 3, "scale": 1}),
            vec![0],
            "0.0",
        ),
    ] {
        let shown = schema.to_string();
        assert_eq!(read(schema, &bytes).as_deref(), Ok(wanted), "{shown}");
    }
}

#[test]
fn names_are_looked_for_where_they_are_used() {
    let schema = json!([
        {"type": "enum", "name": "x.E", "symbols": ["A"]},
        {"type": "record", "name": "R", "namespace": "x", "fields": [
            {"name": "e", "type": "E"},
            {"name": "f", "type": {"type": "fixed", "name": "y.F", "size": 1}},
            {"name": "g", "type": "y.F"},
        ]},
    ]);
    assert_eq!(
        read(schema, &[2, 0, 1, 2]).unwrap(),
        r#"{"e":"A","f":"AQ==","g":"Ag=="}"#
    );
    let why = read(json!({"type": "array", "items": "Gone"}), &[0]).unwrap_err();
    assert_eq!(why, "the schema names `Gone`, which nothing defines");
}

#[test]
fn bytes_that_are_the_whole_message_have_no_length() {
    assert_eq!(read(json!("bytes"), b"abc").unwrap(), r#""YWJj""#);
    let bare = Schema::parse("string", &[]).unwrap();
    assert_eq!(bare.json(&[2, b'a'], 100).unwrap(), br#""a""#);
}

#[test]
fn what_the_schema_does_not_describe_is_said() {
    let endless = json!({"type": "record", "name": "R", "fields": [{"name": "r", "type": "R"}]});
    for (schema, bytes, words) in [
        (json!("long"), vec![], "ends before"),
        (json!("long"), vec![0, 0], "1 bytes are left over"),
        (json!("int"), long(1 << 40), "more than 32 bits"),
        (json!("string"), vec![2, 0xff], "not UTF-8"),
        (json!("string"), vec![40, b'a'], "ends before"),
        (json!("string"), long(-1), "ends before"),
        (json!("boolean"), vec![2], "neither 0 nor 1"),
        (json!(["null"]), vec![2], "no such branch"),
        (
            json!({"type": "enum", "name": "E", "symbols": []}),
            vec![0],
            "no such symbol",
        ),
        (endless, vec![], "nested too deeply"),
        (
            json!({"type": "array", "items": "null"}),
            long(1 << 60),
            "longer than 1000 bytes",
        ),
        (
            json!({"type": "fixed", "name": "F", "size": 1_u64 << 60}),
            vec![],
            "ends before",
        ),
        (
            json!({"type": "bytes", "logicalType": "decimal"}),
            [long(65), vec![1; 65]].concat(),
            "more than 64 bytes",
        ),
        (
            json!({"type": "record", "name": "R"}),
            vec![],
            "`fields` is missing",
        ),
        (json!(1), vec![], "a type that is none"),
    ] {
        let shown = schema.to_string();
        let why = read(schema, &bytes).unwrap_err();
        assert!(why.contains(words), "{shown}: {why}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let schema = json!({"type": "record", "name": "R", "fields": [
            {"name": "a", "type": ["null", "string", {"type": "array", "items": ["null", "R"]}]},
            {"name": "b", "type": {"type": "map", "values": "double"}},
            {"name": "c", "type": {"type": "bytes", "logicalType": "decimal", "scale": 3}},
            {"name": "d", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "e", "type": {"type": "int", "logicalType": "time-millis"}},
        ]});
        if let Ok(text) = read(schema, &bytes) {
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_decimal_is_its_number(number in any::<i64>(), scale in 0_usize..20) {
        let bytes = number.to_be_bytes();
        let mut sized = vec![16];
        sized.extend(bytes);
        let shown = read(json!({"type": "bytes", "logicalType": "decimal", "scale": scale}), &sized).unwrap();
        let digits: String = shown.chars().filter(|c| *c != '.').collect();
        prop_assert_eq!(digits.parse::<i64>().unwrap(), number);
        prop_assert_eq!(shown.split_once('.').map_or(0, |(_, rest)| rest.len()), scale);
    }

    #[test]
    fn no_schema_makes_it_panic(text in "[\\[{\"a-z:,}\\]]{0,60}") {
        let _ = Schema::parse(&text, &[]);
    }
}
