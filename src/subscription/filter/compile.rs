//! The grammar of filters: from JSON as written to nodes, or a refusal that says where and what.
//!
//! A filter is a map of conditions that must all hold. A key is a path (`data.total`,
//! `headers.region`, `topic`) or one of `$and`, `$or`, `$not` over whole filters. A condition is a
//! value to be equal to, or a map of operators that must all hold.

use jiff::Timestamp;
use regex::RegexBuilder;
use serde_json::{Map, Value};

use super::value::Literal;
use super::{Filter, FilterError, Node, Step, Subject, Test};

const OPERATORS: [&str; 15] = [
    "$eq",
    "$ne",
    "$gt",
    "$gte",
    "$lt",
    "$lte",
    "$in",
    "$nin",
    "$startsWith",
    "$endsWith",
    "$contains",
    "$exist",
    "$regex",
    "$or",
    "$and",
];
const NOT: &str = "$not";
const ROOTS: [&str; 6] = ["data", "headers", "id", "topic", "type", "time"];

/// Compiles a whole filter.
pub(super) fn filter(value: &Value) -> Result<Node, FilterError> {
    Compiler {
        path: Vec::new(),
        conditions: 0,
        regexes: 0,
        depth: 0,
    }
    .filter(value)
}

/// Where we are in the filter, and how much of it there was so far.
struct Compiler<'a> {
    path: Vec<Part<'a>>,
    conditions: usize,
    regexes: usize,
    depth: usize,
}

enum Part<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> Compiler<'a> {
    fn filter(&mut self, value: &'a Value) -> Result<Node, FilterError> {
        let members = self.members(
            value,
            "a filter is a map such as `data.total: { $gte: 100 }`",
        )?;
        self.all(members, |this, key, value| match key {
            "$and" => this.several(value, Self::filter).map(all),
            "$or" => this.several(value, Self::filter).map(any),
            NOT => Ok(Node::Not(Box::new(this.deeper(|it| it.filter(value))?))),
            _ if key.starts_with('$') => Err(this.refuse(format!(
                "{}, not beside paths: only `$and`, `$or` and `$not` stand there",
                if OPERATORS.contains(&key) {
                    format!("`{key}` stands under a path, as in `data.total: {{ {key}: ... }}`")
                } else {
                    format!("there is no operator `{key}`")
                }
            ))),
            _ => {
                let subject = this.subject(key)?;
                this.condition(&subject, value)
            }
        })
    }

    /// What is said about one subject: a value to be equal to, or operators.
    fn condition(&mut self, subject: &Subject, value: &'a Value) -> Result<Node, FilterError> {
        let Value::Object(members) = value else {
            return Ok(test(subject, Test::Equals(self.literal(subject, value)?)));
        };
        if members.is_empty() {
            return Err(
                self.refuse("a condition may not be empty; `$exist: true` asks only for presence")
            );
        }
        self.all(members, |this, key, value| {
            this.operator(subject, key, value)
        })
    }

    fn operator(
        &mut self,
        subject: &Subject,
        key: &'a str,
        value: &'a Value,
    ) -> Result<Node, FilterError> {
        let compiled = match key {
            "$eq" => Test::Equals(self.literal(subject, value)?),
            "$ne" => {
                return Ok(not(test(
                    subject,
                    Test::Equals(self.literal(subject, value)?),
                )));
            }
            "$in" => Test::OneOf(self.literals(subject, value)?),
            "$nin" => {
                return Ok(not(test(
                    subject,
                    Test::OneOf(self.literals(subject, value)?),
                )));
            }
            "$gt" => Test::Greater(self.ordered(subject, value)?),
            "$gte" => Test::GreaterOrEqual(self.ordered(subject, value)?),
            "$lt" => Test::Less(self.ordered(subject, value)?),
            "$lte" => Test::LessOrEqual(self.ordered(subject, value)?),
            "$startsWith" => Test::StartsWith(self.text(subject, key, value)?.into()),
            "$endsWith" => Test::EndsWith(self.text(subject, key, value)?.into()),
            "$contains" => Test::Contains(match subject {
                Subject::Data(_) => self.literal(subject, value)?,
                _ => Literal::Text(self.text(subject, key, value)?.into()),
            }),
            "$exist" => Test::Exists(
                value
                    .as_bool()
                    .ok_or_else(|| self.refuse("`$exist` takes true or false"))?,
            ),
            "$regex" => {
                let text = self.text(subject, key, value)?;
                self.regexes += 1;
                if self.regexes > Filter::MAX_REGEXES {
                    let most = Filter::MAX_REGEXES;
                    return Err(self.refuse(format!(
                        "more than {most} regular expressions in one filter; one can have alternatives (`^(a|b)`)"
                    )));
                }
                let regex = RegexBuilder::new(text)
                    .size_limit(Filter::MAX_REGEX_BYTES)
                    .dfa_size_limit(Filter::MAX_REGEX_BYTES)
                    .nest_limit(32)
                    .build()
                    .map_err(|error| self.refuse(bad_regex(&error)))?;
                Test::Regex(regex)
            }
            "$and" => {
                return self
                    .several(value, |it, part| it.condition(subject, part))
                    .map(all);
            }
            "$or" => {
                return self
                    .several(value, |it, part| it.condition(subject, part))
                    .map(any);
            }
            NOT => return self.deeper(|it| it.condition(subject, value)).map(not),
            _ => return Err(self.unknown_operator(key)),
        };
        Ok(test(subject, compiled))
    }

    fn subject(&self, key: &str) -> Result<Subject, FilterError> {
        let (root, rest) = match key.split_once('.') {
            Some((root, rest)) => (root, Some(rest)),
            None => (key, None),
        };
        match (root, rest) {
            ("id", None) => Ok(Subject::Id),
            ("topic", None) => Ok(Subject::Topic),
            ("type", None) => Ok(Subject::Type),
            ("time", None) => Ok(Subject::Time),
            ("id" | "topic" | "type" | "time", Some(_)) => Err(self.refuse(format!(
                "`{root}` has no parts; write `{root}`, or `data.{key}` for the body"
            ))),
            ("headers", Some(name)) if !name.is_empty() => Ok(Subject::Header(name.into())),
            ("headers", _) => Err(self.refuse("which header? write `headers.<name>`")),
            ("data", None) => Ok(Subject::Data(Box::new([]))),
            ("data", Some(path)) => Ok(Subject::Data(self.steps(path)?)),
            _ => Err(self.unknown_root(key, root, rest)),
        }
    }

    /// A path into the body; `\.` is a dot inside a key, `\[` a bracket.
    fn steps(&self, path: &str) -> Result<Box<[Step]>, FilterError> {
        let mut keys = vec![String::new()];
        let mut characters = path.chars().peekable();
        while let Some(character) = characters.next() {
            match (character, characters.peek()) {
                ('\\', Some('.' | '\\' | '[')) => keys
                    .last_mut()
                    .expect("one key at least")
                    .extend(characters.next()),
                ('.', _) => keys.push(String::new()),
                ('[', _) => return Err(self.bracket(path)),
                _ => keys.last_mut().expect("one key at least").push(character),
            }
        }
        if keys.iter().any(String::is_empty) {
            return Err(
                self.refuse("a path may not have an empty step; `\\.` is a dot inside a key")
            );
        }
        Ok(keys
            .into_iter()
            .map(|key| Step {
                index: index(&key),
                key: key.into(),
            })
            .collect())
    }

    /// Others write `items[0]`, which would be a key that no body has.
    fn bracket(&self, path: &str) -> FilterError {
        let with_dots = path.replace('[', ".").replace(']', "");
        self.refuse(format!(
            "the entry of a list is a step of its own: `data.{}`; `\\[` is a bracket inside a key",
            with_dots.trim_start_matches('.')
        ))
    }

    fn literal(&mut self, subject: &Subject, value: &'a Value) -> Result<Literal, FilterError> {
        self.count()?;
        match (subject, value) {
            (Subject::Time, Value::String(text)) => {
                // The text may have been put in by substitution, and is not shown.
                text.parse::<Timestamp>()
                    .map(Literal::Time)
                    .map_err(|_| self.refuse("this is not a time such as `2026-01-31T12:00:00Z`"))
            }
            (Subject::Time, _) => {
                Err(self.refuse("`time` is compared with a time such as `2026-01-31T12:00:00Z`"))
            }
            (_, Value::String(text)) => Ok(Literal::Text(text.as_str().into())),
            (Subject::Id | Subject::Topic | Subject::Type, _) => {
                Err(self.refuse("ids, topics and types are text; put the value in quotes"))
            }
            (_, Value::Number(number)) => Ok(Literal::Number(number.clone())),
            (Subject::Header(_), Value::Array(_) | Value::Object(_)) => {
                Err(self.refuse("a header is compared with text, a number, true, false or null"))
            }
            (_, other) => Ok(Literal::Other(other.clone())),
        }
    }

    fn literals(
        &mut self,
        subject: &Subject,
        value: &'a Value,
    ) -> Result<Box<[Literal]>, FilterError> {
        self.entries(value, |this, entry| this.literal(subject, entry))
            .map(Vec::into_boxed_slice)
    }

    /// A value that others can be less or greater than.
    fn ordered(&mut self, subject: &Subject, value: &'a Value) -> Result<Literal, FilterError> {
        match self.literal(subject, value)? {
            Literal::Other(_) => {
                Err(self.refuse("only numbers, text and times are less or greater than others"))
            }
            literal => Ok(literal),
        }
    }

    fn text(
        &mut self,
        subject: &Subject,
        key: &str,
        value: &'a Value,
    ) -> Result<&'a str, FilterError> {
        self.count()?;
        if *subject == Subject::Time {
            return Err(self.refuse(format!(
                "`{key}` compares text; `time` is compared with `$gt`, `$gte`, `$lt`, `$lte`"
            )));
        }
        value
            .as_str()
            .ok_or_else(|| self.refuse(format!("`{key}` takes text")))
    }

    /// `$and` and `$or`: a list of alternatives one level deeper.
    fn several(
        &mut self,
        value: &'a Value,
        mut each: impl FnMut(&mut Self, &'a Value) -> Result<Node, FilterError>,
    ) -> Result<Vec<Node>, FilterError> {
        self.deeper(|it| it.entries(value, &mut each))
    }

    fn entries<T>(
        &mut self,
        value: &'a Value,
        mut each: impl FnMut(&mut Self, &'a Value) -> Result<T, FilterError>,
    ) -> Result<Vec<T>, FilterError> {
        match value {
            Value::Array(entries) if !entries.is_empty() => entries
                .iter()
                .enumerate()
                .map(|(index, entry)| self.within(Part::Index(index), |it| each(it, entry)))
                .collect(),
            _ => Err(self.refuse("a list with at least one entry is needed here")),
        }
    }

    fn members(
        &self,
        value: &'a Value,
        otherwise: &str,
    ) -> Result<&'a Map<String, Value>, FilterError> {
        match value {
            Value::Object(members) if !members.is_empty() => Ok(members),
            Value::Object(_) => {
                Err(self.refuse("an empty filter matches everything; leave it out"))
            }
            _ => Err(self.refuse(otherwise)),
        }
    }

    /// Everything in `members` must hold.
    fn all(
        &mut self,
        members: &'a Map<String, Value>,
        mut each: impl FnMut(&mut Self, &'a str, &'a Value) -> Result<Node, FilterError>,
    ) -> Result<Node, FilterError> {
        members
            .iter()
            .map(|(key, value)| self.within(Part::Key(key), |it| each(it, key, value)))
            .collect::<Result<Vec<_>, _>>()
            .map(all)
    }

    fn within<T>(
        &mut self,
        part: Part<'a>,
        then: impl FnOnce(&mut Self) -> Result<T, FilterError>,
    ) -> Result<T, FilterError> {
        self.path.push(part);
        let done = then(self);
        self.path.pop();
        done
    }

    fn deeper<T>(
        &mut self,
        then: impl FnOnce(&mut Self) -> Result<T, FilterError>,
    ) -> Result<T, FilterError> {
        self.depth += 1;
        if self.depth > Filter::MAX_DEPTH {
            return Err(self.refuse(format!("nested deeper than {} levels", Filter::MAX_DEPTH)));
        }
        let done = then(self);
        self.depth -= 1;
        done
    }

    fn count(&mut self) -> Result<(), FilterError> {
        self.conditions += 1;
        if self.conditions > Filter::MAX_CONDITIONS {
            return Err(self.refuse(format!(
                "more than {} values in one filter",
                Filter::MAX_CONDITIONS
            )));
        }
        Ok(())
    }

    fn unknown_operator(&self, key: &str) -> FilterError {
        let bare = key.trim_start_matches('$').to_lowercase();
        let alias = match bare.as_str() {
            "exists" => Some("$exist"),
            "neq" => Some("$ne"),
            "ge" => Some("$gte"),
            "le" => Some("$lte"),
            "matches" | "match" | "like" => Some("$regex"),
            "notin" => Some("$nin"),
            "includes" => Some("$contains"),
            _ => None,
        };
        let near = alias.or_else(|| {
            nearest(&bare, OPERATORS.into_iter().chain([NOT]), |name| {
                name[1..].to_lowercase()
            })
        });
        let advice = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None if key.starts_with('$') => format!("there are {} and $not", OPERATORS.join(", ")),
            None => format!(
                "write nested keys as one path (`data.a.{key}`), or `$eq: {{ {key}: ... }}` for the whole object"
            ),
        };
        self.refuse(format!("there is no operator `{key}`; {advice}"))
    }

    fn unknown_root(&self, key: &str, root: &str, rest: Option<&str>) -> FilterError {
        let known = match root.to_lowercase().as_str() {
            "body" | "payload" | "event" | "json" => Some("data"),
            "routing_key" | "subject" => Some("topic"),
            "kind" => Some("type"),
            "timestamp" | "published_at" => Some("time"),
            lower => nearest(lower, ROOTS.into_iter(), str::to_owned),
        };
        let meant = match (known, rest) {
            (Some(root @ ("data" | "headers")), Some(rest)) => format!("{root}.{rest}"),
            (Some(root), None) => root.to_owned(),
            _ => format!("data.{key}"),
        };
        self.refuse(format!(
            "a path begins with `data.` or `headers.`, or is `id`, `topic`, `type` or `time`; did you mean `{meant}`?"
        ))
    }

    fn refuse(&self, message: impl Into<String>) -> FilterError {
        let mut path = String::new();
        for part in &self.path {
            path.push('/');
            match part {
                Part::Key(key) => path.push_str(&key.replace('~', "~0").replace('/', "~1")),
                Part::Index(index) => path.push_str(&index.to_string()),
            }
        }
        FilterError {
            path,
            message: message.into(),
        }
    }
}

fn test(subject: &Subject, test: Test) -> Node {
    Node::Test(subject.clone(), test)
}

fn not(node: Node) -> Node {
    Node::Not(Box::new(node))
}

fn all(nodes: Vec<Node>) -> Node {
    joined(nodes, Node::All)
}

fn any(nodes: Vec<Node>) -> Node {
    joined(nodes, Node::Any)
}

/// What needs the body goes last: often the rest decides, and the body is not parsed at all.
fn joined(mut nodes: Vec<Node>, join: fn(Box<[Node]>) -> Node) -> Node {
    if nodes.len() == 1 {
        return nodes.remove(0);
    }
    nodes.sort_by_key(Node::needs_data);
    join(nodes.into())
}

/// The entry of an array that a step names, written as JSON pointers write it.
fn index(key: &str) -> Option<usize> {
    let plain =
        key.bytes().all(|byte| byte.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
    plain.then(|| key.parse().ok()).flatten()
}

fn nearest(
    wrong: &str,
    names: impl Iterator<Item = &'static str>,
    form: impl Fn(&str) -> String,
) -> Option<&'static str> {
    let limit = (wrong.chars().count() / 3).clamp(1, 2);
    names
        .map(|name| (strsim::damerau_levenshtein(wrong, &form(name)), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn bad_regex(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => format!(
            "the regular expression needs more than {} KiB",
            Filter::MAX_REGEX_BYTES >> 10
        ),
        // The last line of the regex crate's report says what; the lines before draw where.
        other => format!(
            "bad regular expression, {}",
            other
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
        ),
    }
}
