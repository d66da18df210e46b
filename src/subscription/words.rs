//! Texts with words in braces, such as `{topic.first}` or `v0:{timestamp}:{body}`: what signatures
//! are made over, and what fills their headers.
//!
//! They are read once, with the config; what each word stands for is up to whoever uses them. `{{`
//! and `}}` are braces.

use std::fmt;
use std::str::FromStr;

/// A text in which words stand for something that each request brings along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worded {
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Literal(Box<str>),
    Word(Word),
}

/// What may stand in braces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The event's id.
    Id,
    /// A UUID made of the event's id.
    Uuid,
    Topic,
    /// The topic's first segment, and its last.
    TopicFirst,
    TopicLast,
    Type,
    /// The configured source that took the event.
    Source,
    /// The attempt's time.
    Timestamp,
    Url,
    Method,
    Body,
}

impl Word {
    /// What a header can say of an event.
    pub const OF_EVENT: [Self; 7] = [
        Self::Id,
        Self::Uuid,
        Self::Topic,
        Self::TopicFirst,
        Self::TopicLast,
        Self::Type,
        Self::Source,
    ];
    /// What a signature can be made over.
    pub const OF_REQUEST: [Self; 5] = [
        Self::Id,
        Self::Timestamp,
        Self::Url,
        Self::Method,
        Self::Body,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Uuid => "uuid",
            Self::Topic => "topic",
            Self::TopicFirst => "topic.first",
            Self::TopicLast => "topic.last",
            Self::Type => "type",
            Self::Source => "source",
            Self::Timestamp => "timestamp",
            Self::Url => "url",
            Self::Method => "method",
            Self::Body => "body",
        }
    }
}

/// Why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    #[error("`{{{0}}}` is no word here")]
    Unknown(String),
    #[error("a brace is not closed; a brace that is meant is written twice")]
    Open,
    #[error("a brace is closed that is not open; a brace that is meant is written twice")]
    Close,
}

impl Worded {
    /// Reads `text`, in which the words of `known` may stand.
    pub fn parse(text: &str, known: &[Word]) -> Result<Self, WordError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let (brace, after) = rest[at..].split_at(1);
            if after.starts_with(brace) {
                literal.push_str(brace);
                rest = &after[1..];
                continue;
            }
            if brace == "}" {
                return Err(WordError::Close);
            }
            let (name, after) = after.split_once('}').ok_or(WordError::Open)?;
            let word = known.iter().find(|word| word.name() == name);
            let word = word.ok_or_else(|| WordError::Unknown(name.to_owned()))?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into()));
            }
            parts.push(Part::Word(*word));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { parts })
    }

    pub fn has(&self, word: Word) -> bool {
        self.parts.contains(&Part::Word(word))
    }
}

/// As it is written in the config.
impl fmt::Display for Worded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Literal(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}")),
            Part::Word(word) => write!(f, "{{{}}}", word.name()),
        })
    }
}

/// Of requests and events alike; for texts of ours.
impl FromStr for Worded {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        Self::parse(text, &[&Word::OF_EVENT[..], &Word::OF_REQUEST].concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_and_what_is_between_them() {
        let read = Worded::parse("v0:{timestamp}:{{{body}}}", &Word::OF_REQUEST).unwrap();
        assert_eq!(
            read.parts,
            [
                Part::Literal("v0:".into()),
                Part::Word(Word::Timestamp),
                Part::Literal(":{".into()),
                Part::Word(Word::Body),
                Part::Literal("}".into()),
            ]
        );
        assert_eq!(read.to_string(), "v0:{timestamp}:{{{body}}}");
    }

    #[test]
    fn what_is_no_word_is_said() {
        let error = |text| Worded::parse(text, &Word::OF_EVENT).unwrap_err();
        assert_eq!(error("{body}"), WordError::Unknown("body".to_owned()));
        assert_eq!(error("{Topic}").to_string(), "`{Topic}` is no word here");
        assert_eq!(error("a{topic"), WordError::Open);
        assert_eq!(error("topic}"), WordError::Close);
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "([a-z{}]|\\{id\\}|\\{\\{|\\}\\}){0,12}") {
            if let Ok(read) = text.parse::<Worded>() {
                prop_assert_eq!(read.to_string(), text);
            }
        }
    }
}
