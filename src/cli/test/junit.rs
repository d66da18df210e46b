//! JUnit's XML, as far as CI systems agree about it: `testsuites`, `testsuite`, `testcase`, with a
//! `failure` where something differs and an `error` where a test could not be carried out.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Suite, Tested, show};

/// The document.
pub fn write(suites: &[Suite]) -> String {
    let tests = || suites.iter().flat_map(|suite| &suite.tests);
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(out, "<testsuites {}>", counts(tests()));
    for suite in suites {
        let file = escaped(&suite.file);
        let counts = counts(suite.tests.iter());
        let _ = writeln!(out, "  <testsuite name=\"{file}\" {counts}>");
        for test in &suite.tests {
            write_test(&mut out, &file, test);
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

fn counts<'a>(tests: impl Iterator<Item = &'a Tested>) -> String {
    let (mut count, mut failures, mut errors, mut took) = (0, 0, 0, Duration::ZERO);
    for test in tests {
        count += 1;
        failures += usize::from(!test.differences.is_empty());
        errors += usize::from(test.error.is_some());
        took += test.took;
    }
    let time = seconds(took);
    format!("tests=\"{count}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{time}\"")
}

fn write_test(out: &mut String, file: &str, test: &Tested) {
    let (name, time) = (escaped(&test.name), seconds(test.took));
    let _ = write!(
        out,
        "    <testcase classname=\"{file}\" name=\"{name}\" file=\"{file}\" time=\"{time}\""
    );
    if test.passed {
        out.push_str("/>\n");
        return;
    }
    out.push_str(">\n");
    if let Some(error) = &test.error {
        let error = escaped(error);
        let _ = writeln!(out, "      <error type=\"error\" message=\"{error}\"/>");
    }
    if let Some(first) = test.differences.first() {
        let more = match test.differences.len() {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        let message = escaped(&format!("{}{more}", first.title()));
        let text: String = test.differences.iter().map(show::plain).collect();
        let text = escaped(&text);
        let _ = writeln!(
            out,
            "      <failure type=\"difference\" message=\"{message}\">\n{text}      </failure>"
        );
    }
    out.push_str("    </testcase>\n");
}

fn seconds(took: Duration) -> String {
    format!("{:.6}", took.as_secs_f64())
}

/// `text` as content or as an attribute's value. What XML 1.0 cannot have at all is replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\t' => out.push(c),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_xml_cannot_have_is_left() {
        assert_eq!(
            escaped("a<b>&\"'\n\u{1}\u{ffff}\r"),
            "a&lt;b&gt;&amp;&quot;&apos;\n\u{fffd}\u{fffd}\u{fffd}"
        );
    }
}
