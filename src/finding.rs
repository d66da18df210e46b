//! Findings: what a look at a broker, an endpoint or this machine has told, for people and programs.
//!
//! A finding is one line: how bad it is, what it is about, what was seen, and what to do about it.
//! It never holds a password, or more of a URL than scheme, host and port.

use std::fmt::{self, Display};

use serde::Serialize;
use tokio::sync::mpsc;

/// How bad it is, from good to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// It works, and will hurt one day.
    Warning,
    /// Events are lost, refused or stuck as it is.
    Problem,
    /// Somebody does not answer, so nothing more can be said about them.
    Unreachable,
}

/// One thing that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// `broker shop`, `endpoint crm`, `bridge`.
    pub subject: String,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::Unreachable => "unreachable",
        }
    }
}

impl Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where the findings about one subject go.
#[derive(Debug, Clone)]
pub struct Findings {
    subject: String,
    to: mpsc::Sender<Finding>,
}

impl Findings {
    pub fn new(subject: impl Into<String>, to: mpsc::Sender<Finding>) -> Self {
        let subject = subject.into();
        Self { subject, to }
    }

    pub async fn ok(&self, what: impl Display) {
        self.say(Level::Ok, what, None).await;
    }

    pub async fn warning(&self, what: impl Display, advice: impl Display) {
        self.say(Level::Warning, what, Some(advice.to_string()))
            .await;
    }

    pub async fn problem(&self, what: impl Display, advice: impl Display) {
        self.say(Level::Problem, what, Some(advice.to_string()))
            .await;
    }

    pub async fn unreachable(&self, what: impl Display, advice: impl Display) {
        self.say(Level::Unreachable, what, Some(advice.to_string()))
            .await;
    }

    /// Waits for room. Whoever asked may have gone: then nobody wants to know.
    pub async fn say(&self, level: Level, what: impl Display, advice: Option<String>) {
        let finding = Finding {
            level,
            subject: self.subject.clone(),
            what: what.to_string(),
            advice,
        };
        let _ = self.to.send(finding).await;
    }
}
