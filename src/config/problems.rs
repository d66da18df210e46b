//! Problems of a config, and how they are shown: to people, as JSON, and to GitHub.
//!
//! A snippet of the file is shown with each problem, so what is secret in the file is masked
//! before anything is rendered (see `mask`).

use std::fmt::{self, Write as _};

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

use super::mask::{self, Masked};
use super::node::Span;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub span: Span,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub col: usize,
    /// A lower-case fragment; never shows a substituted or secret value.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// All that is wrong with a config file; at least one problem.
#[derive(Clone, PartialEq, Eq)]
pub struct Problems {
    file: String,
    /// The text with its secrets masked; empty when the file could not be read.
    masked: Masked,
    list: Vec<Problem>,
}

/// How problems are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// With the lines concerned, and carets.
    #[default]
    Human,
    /// One JSON object a line: `file`, `line`, `col`, `message`, `help`.
    Json,
    /// GitHub's workflow commands, which put the messages beside the lines of a pull request.
    Github,
}

impl Format {
    pub const NAMES: [&'static str; 3] = ["human", "json", "github"];

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "human" => Some(Self::Human),
            "json" => Some(Self::Json),
            "github" => Some(Self::Github),
            _ => None,
        }
    }
}

impl Problems {
    /// Sorted by place; the same problem at the same place (by way of an alias) is said once.
    pub(super) fn new(file: &str, masked: Masked, mut list: Vec<Problem>) -> Self {
        for problem in &mut list {
            problem.message = mask::message(&problem.message);
            problem.help = problem.help.as_deref().map(mask::message);
        }
        list.sort_by(|a, b| (a.line, a.col, &a.message).cmp(&(b.line, b.col, &b.message)));
        list.dedup_by(|a, b| (a.span, &a.message) == (b.span, &b.message));
        Self {
            file: file.to_owned(),
            masked,
            list,
        }
    }

    /// The file itself is the problem.
    pub(super) fn of_file(file: &str, message: String, help: &str) -> Self {
        let problem = Problem {
            span: Span::default(),
            line: 1,
            col: 1,
            message,
            help: Some(help.to_owned()),
        };
        Self::new(file, Masked::default(), vec![problem])
    }

    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// All problems as text that ends with a newline. `colour` concerns [`Format::Human`] only.
    pub fn render(&self, format: Format, colour: bool) -> String {
        let mut out = String::new();
        for problem in &self.list {
            match format {
                Format::Human => out.push_str(&self.human(problem, colour)),
                Format::Json => out.push_str(&self.json(problem)),
                Format::Github => out.push_str(&self.github(problem)),
            }
            out.push('\n');
        }
        if format == Format::Human {
            let count = self.list.len();
            let s = if count == 1 { "" } else { "s" };
            let _ = writeln!(out, "{count} problem{s} in {}", self.file);
        }
        out
    }

    fn human(&self, problem: &Problem, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let line = self.masked.line(problem.span);
        let title = Level::ERROR.primary_title(problem.message.as_str());
        let origin = Origin::path(self.file.as_str())
            .line(problem.line)
            .char_column(problem.col);
        let snippet = Snippet::source(line.text).line_start(problem.line);
        let marked = AnnotationKind::Primary.span(line.marked.clone());
        let shown_col = line.text[..line.marked.start].chars().count() + 1;
        let mut report = if self.masked.text().is_empty() {
            title.element(origin)
        } else if shown_col == problem.col {
            title.element(snippet.path(self.file.as_str()).annotation(marked))
        } else {
            // Something before it is masked, so that the shown line would give a wrong column.
            title.element(origin).element(snippet.annotation(marked))
        };
        if let Some(help) = &problem.help {
            report = report.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[report]) + "\n"
    }

    fn json(&self, problem: &Problem) -> String {
        #[derive(serde::Serialize)]
        struct Line<'a> {
            file: &'a str,
            line: usize,
            col: usize,
            message: &'a str,
            help: Option<&'a str>,
        }
        let line = Line {
            file: &self.file,
            line: problem.line,
            col: problem.col,
            message: &problem.message,
            help: problem.help.as_deref(),
        };
        serde_json::to_string(&line).expect("texts and numbers are JSON")
    }

    fn github(&self, problem: &Problem) -> String {
        let said = match &problem.help {
            Some(help) => format!("{}\nhelp: {help}", problem.message),
            None => problem.message.clone(),
        };
        let data = said
            .replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A");
        let file = self
            .file
            .replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A")
            .replace(':', "%3A")
            .replace(',', "%2C");
        format!(
            "::error file={file},line={},col={}::{data}",
            problem.line, problem.col
        )
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(Format::Human, false).trim_end())
    }
}

impl fmt::Debug for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.render(Format::Human, false))
    }
}

impl std::error::Error for Problems {}
