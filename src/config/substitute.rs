//! Substitution: `${env:X}`, `${env:X:-default}` and `${file:/path}` in values, after parsing.
//!
//! What is put in counts as text, so that no variable can add a key or change the shape of the
//! config, and is never shown. `$${` stands for `${`.

use std::io::Read;
use std::path::Path;

use super::node::{Node, Span, Typed, Value};

/// Looks up an environment variable.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A larger file is no secret.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A substitution that cannot be made.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    pub span: Span,
    pub message: String,
    pub help: String,
}

/// Replaces in every value of `node`. `text` is the file, to place what is missing.
pub fn all(node: &mut Node, text: &str, base_dir: &Path, env: Env<'_>, missing: &mut Vec<Missing>) {
    match &mut node.value {
        Value::Null => {}
        Value::List(items) => {
            for item in items {
                all(item, text, base_dir, env, missing);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                all(&mut entry.node, text, base_dir, env, missing);
            }
        }
        Value::Scalar(scalar) => {
            if scalar.typed != Typed::Text || !scalar.text.contains("${") {
                return;
            }
            let (text, substituted) =
                replaced(&scalar.text, base_dir, env, |part, message, help| {
                    missing.push(Missing {
                        span: within(node.span, text, part),
                        message,
                        help,
                    });
                });
            (scalar.text, scalar.substituted) = (text, substituted);
        }
    }
}

/// The place of `part` in the value at `span`; of the whole value if it is written with escapes.
fn within(span: Span, text: &str, part: &str) -> Span {
    match text[span.start..span.end].find(part) {
        Some(at) => Span {
            start: span.start + at,
            end: span.start + at + part.len(),
        },
        None => span,
    }
}

/// `fail` is told the part of the value, what is wrong with it, and what to do.
fn replaced(
    value: &str,
    base_dir: &Path,
    env: Env<'_>,
    mut fail: impl FnMut(&str, String, String),
) -> (String, bool) {
    let (mut out, mut rest, mut substituted) = (String::new(), value, false);
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let Some(len) = rest[at..].find('}') else {
            fail(
                &rest[at..],
                "`${` without `}`".into(),
                "write `$${` for a literal `${`".into(),
            );
            return (out, true);
        };
        let part = &rest[at..=at + len];
        match one(&part[2..part.len() - 1], base_dir, env) {
            Ok(value) => out.push_str(&value),
            Err((message, help)) => fail(part, message, help),
        }
        substituted = true;
        rest = &rest[at + len + 1..];
    }
    out.push_str(rest);
    (out, substituted)
}

fn one(inner: &str, base_dir: &Path, env: Env<'_>) -> Result<String, (String, String)> {
    if let Some(variable) = inner.strip_prefix("env:") {
        let (name, default) = match variable.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (variable, None),
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(valid) {
            return Err((
                "this is not the name of an environment variable".into(),
                "write `${env:NAME}` or `${env:NAME:-default}`".into(),
            ));
        }
        return match (env(name), default) {
            (Some(value), None) => Ok(value),
            (Some(value), Some(_)) if !value.is_empty() => Ok(value),
            (_, Some(default)) => Ok(default.to_owned()),
            (None, None) => Err((
                format!("the environment variable `{name}` is not set"),
                format!("set it, or give a default: `${{env:{name}:-default}}`"),
            )),
        };
    }
    if let Some(path) = inner.strip_prefix("file:") {
        return file(&base_dir.join(path)).map_err(|why| {
            (
                format!("the file `{path}` cannot be read: {why}"),
                "a relative path starts at the folder of the config file".into(),
            )
        });
    }
    Err((
        "only `env` and `file` can be substituted".into(),
        "write `${env:NAME}`, `${env:NAME:-default}` or `${file:/path}`, and `$${` for a literal `${`"
            .into(),
    ))
}

/// A text file without its last line break.
fn file(path: &Path) -> Result<String, String> {
    let said = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::InvalidData => "it is not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    // Before opening: opening a pipe would wait for somebody to write to it.
    if !std::fs::metadata(path).map_err(said)?.is_file() {
        return Err("it is not a file".to_owned());
    }
    let file = std::fs::File::open(path).map_err(said)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(said)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err("it is larger than 1 MiB".to_owned());
    }
    let trimmed = text.strip_suffix('\n').unwrap_or(&text);
    Ok(trimmed.strip_suffix('\r').unwrap_or(trimmed).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_it(value: &str) -> (String, Vec<String>) {
        let env = |name: &str| match name {
            "SET" => Some("s3".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let mut wrong = Vec::new();
        let (text, _) = replaced(value, Path::new("/nowhere"), &env, |part, message, _| {
            wrong.push(format!("{part}: {message}"));
        });
        (text, wrong)
    }

    #[test]
    fn variables_and_defaults() {
        assert_eq!(
            try_it("a ${env:SET} b ${env:NO:-d:-e}${env:EMPTY:-x}|${env:EMPTY}").0,
            "a s3 b d:-ex|"
        );
    }

    #[test]
    fn a_doubled_dollar_is_literal() {
        assert_eq!(
            try_it("$${env:SET} $$ $x"),
            ("${env:SET} $$ $x".to_owned(), vec![])
        );
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let (_, wrong) = try_it("${env:NO} ${file:x} ${HOME} ${env:a b} ${env:SET");
        insta::assert_snapshot!(wrong.join("\n"), @r#"
${env:NO}: the environment variable `NO` is not set
${file:x}: the file `x` cannot be read: there is no such file
${HOME}: only `env` and `file` can be substituted
${env:a b}: this is not the name of an environment variable
${env:SET: `${` without `}`
"#);
    }

    #[test]
    fn what_is_put_in_is_not_looked_at_again() {
        let env = |_: &str| Some("${env:OTHER}".to_owned());
        let (text, _) = replaced("${env:A}", Path::new("."), &env, |_, _, _| panic!());
        assert_eq!(text, "${env:OTHER}");
    }

    #[test]
    fn a_file_loses_its_last_line_break_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("s"), "a\nb\n\n").unwrap();
        let none = |_: &str| None;
        let (text, _) = replaced("${file:s}", dir.path(), &none, |_, _, _| panic!());
        assert_eq!(text, "a\nb\n");
    }
}
