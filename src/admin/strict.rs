//! JSON in which no key is there twice: which of them counts, readers do not agree on.

use serde::Deserialize;
use serde_json::Value;

/// See the module.
pub struct Strict(pub Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnlyOnce).map(Self)
    }
}

struct OnlyOnce;

impl<'de> serde::de::Visitor<'de> for OnlyOnce {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut read = serde_json::Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if read.contains_key(&key) {
                let twice = format!("`{key}` is there twice");
                return Err(serde::de::Error::custom(twice));
            }
            read.insert(key, value);
        }
        Ok(Value::Object(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_there_twice_is_refused() {
        let read = |text: &str| serde_json::from_str::<Strict>(text);
        let good = r#"{"a":[1,-2,2.5,null,true,"x"],"b":{"a":1}}"#;
        assert_eq!(read(good).unwrap().0.to_string(), good);
        let why = read(r#"{"b":{"a":1,"a":2}}"#).err().unwrap().to_string();
        assert!(why.contains("`a` is there twice"), "{why}");
    }
}
