//! Documents: subscriptions as their callers write them, changed and compared as JSON.

use serde_json::{Map, Value};

/// Stands for a secret wherever a document is shown.
const MASK: &str = "***";

/// `patch` merged into `target`, as RFC 7396 says.
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        unreachable!("it was just made one")
    };
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(&key);
            }
            value => merge(target.entry(key).or_insert(Value::Null), value),
        }
    }
}

/// Puts secrets back into a document that was shown (`masked`) and comes back changed: what is masked
/// and still the same there is what it was in `old`. A list of secrets comes back whole or not at
/// all: by its place a mask in a list that was changed could stand for another secret.
pub fn unmask(new: &mut Value, masked: &Value, old: &Value) {
    match (new, masked, old) {
        (new @ Value::String(_), Value::String(shown), old)
            if shown.contains(MASK) && *new == *shown =>
        {
            *new = old.clone();
        }
        (new @ Value::Array(_), masked @ Value::Array(_), old) if new == masked => {
            *new = old.clone();
        }
        (Value::Array(new), Value::Array(masked), Value::Array(old)) => {
            let each = new.iter_mut().zip(masked).zip(old);
            for ((new, masked), old) in each.filter(|((new, _), _)| !new.is_string()) {
                unmask(new, masked, old);
            }
        }
        (Value::Object(new), Value::Object(masked), Value::Object(old)) => {
            for (key, new) in new {
                if let (Some(masked), Some(old)) = (masked.get(key), old.get(key)) {
                    unmask(new, masked, old);
                }
            }
        }
        _ => {}
    }
}

/// JSON pointers of masks that stand for nothing.
pub fn masks_left(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(value, String::new(), "", &mut found);
    found
}

fn walk(value: &Value, pointer: String, key: &str, found: &mut Vec<String>) {
    match value {
        // In other texts it may be meant.
        Value::String(text) if text == MASK || (is_url(key) && text.contains(MASK)) => {
            found.push(pointer);
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                walk(item, format!("{pointer}/{at}"), key, found);
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                let escaped = key.replace('~', "~0").replace('/', "~1");
                walk(value, format!("{pointer}/{escaped}"), key, found);
            }
        }
        _ => {}
    }
}

fn is_url(key: &str) -> bool {
    key.ends_with("url") || key.ends_with("uri")
}

/// The endpoint that is written in it.
pub fn own_endpoint(document: &Value) -> Option<&Map<String, Value>> {
    document.get("endpoint")?.as_object()
}

/// Its secrets, newest first.
pub fn secrets(document: &Value) -> Vec<Value> {
    let Some(endpoint) = own_endpoint(document) else {
        return Vec::new();
    };
    match (endpoint.get("secret"), endpoint.get("secrets")) {
        (Some(secret), _) => vec![secret.clone()],
        (None, Some(Value::Array(secrets))) => secrets.clone(),
        _ => Vec::new(),
    }
}

/// Gives its own endpoint these secrets, newest first.
pub fn set_secrets(document: &mut Value, mut secrets: Vec<Value>) {
    let endpoint = document.get_mut("endpoint").and_then(Value::as_object_mut);
    let Some(endpoint) = endpoint else { return };
    endpoint.remove("secret");
    endpoint.remove("secrets");
    match secrets.len() {
        0 => {}
        1 => {
            endpoint.insert("secret".to_owned(), secrets.remove(0));
        }
        _ => {
            endpoint.insert("secrets".to_owned(), Value::Array(secrets));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merging_is_as_rfc_7396_says() {
        for (target, patch, merged) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [1]}),
                json!({"a": [2, 3]}),
                json!({"a": [2, 3]}),
            ),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
        ] {
            let mut target = target;
            merge(&mut target, patch);
            assert_eq!(target, merged);
        }
    }

    #[test]
    fn what_was_shown_masked_comes_back_as_it_was() {
        let old = json!({ "endpoint": { "url": "https://h/T0", "secrets": ["s1", "s2"], "rate": "1/s" } });
        let masked = json!({ "endpoint": { "url": "https://h/***", "secrets": ["***", "***"], "rate": "1/s" } });
        let mut new = masked.clone();
        new["endpoint"]["rate"] = json!("2/s");
        new["endpoint"]["headers"] = json!({ "x": "***" });
        unmask(&mut new, &masked, &old);
        let endpoint = &new["endpoint"];
        assert_eq!(endpoint["url"], "https://h/T0");
        assert_eq!(endpoint["secrets"], json!(["s1", "s2"]));
        assert_eq!(masks_left(&new), ["/endpoint/headers/x"]);
    }

    #[test]
    fn a_mask_in_a_changed_list_stands_for_nothing() {
        let old = json!({ "secrets": ["s1", "s2"] });
        let masked = json!({ "secrets": ["***", "***"] });
        let mut new = json!({ "secrets": ["s0", "***"] });
        unmask(&mut new, &masked, &old);
        assert_eq!(masks_left(&new), ["/secrets/1"]);
    }

    #[test]
    fn a_url_with_a_mask_anywhere_is_not_a_url() {
        for url in ["https://h?***", "https://h/***/x", "https://h/***"] {
            let document = json!({ "endpoint": { "url": url }, "template": "so ***bold***" });
            assert_eq!(masks_left(&document), ["/endpoint/url"], "{url}");
        }
    }

    #[test]
    fn one_secret_or_several() {
        let mut document = json!({ "endpoint": { "secret": "a" } });
        assert_eq!(secrets(&document), ["a"]);
        set_secrets(&mut document, vec![json!("b"), json!("a")]);
        assert_eq!(document, json!({ "endpoint": { "secrets": ["b", "a"] } }));
        set_secrets(&mut document, vec![json!("b")]);
        assert_eq!(document, json!({ "endpoint": { "secret": "b" } }));
        assert!(secrets(&json!({ "endpoint": "shared" })).is_empty());
    }
}
