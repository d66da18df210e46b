//! The outcome of tests for people: a line each, and below it what differs.

use std::fmt::Write as _;

use super::Suite;
use super::compare::Difference;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// All of it, with a line of how many at the end; nothing when there are none.
pub fn all(suites: &[Suite], colour: bool) -> String {
    let paint = |text: &str, with: &str| match colour {
        true => format!("{with}{text}{PLAIN}"),
        false => text.to_owned(),
    };
    let mut out = String::new();
    let several = suites.len() > 1;
    for suite in suites {
        if several {
            let _ = writeln!(out, "{}:", suite.file);
        }
        for test in &suite.tests {
            let word = match test.passed {
                true => paint("ok  ", GREEN),
                false => paint("FAIL", RED),
            };
            let _ = writeln!(out, "{word}  {}", test.name);
            if let Some(error) = &test.error {
                let _ = writeln!(out, "      {error}");
            }
            for difference in &test.differences {
                out.push_str(&indented(difference, &paint));
            }
        }
    }
    let tests = || suites.iter().flat_map(|suite| &suite.tests);
    let (count, passed) = (tests().count(), tests().filter(|test| test.passed).count());
    if count == 0 {
        return out;
    }
    if passed < count {
        let _ = writeln!(out, "\n(- is expected, + is what would be sent)");
    }
    let s = if count == 1 { "" } else { "s" };
    let _ = writeln!(
        out,
        "{count} test{s}: {passed} passed, {} failed",
        count - passed
    );
    out
}

fn indented(difference: &Difference, paint: &impl Fn(&str, &str) -> String) -> String {
    let mut out = format!("      {}\n", difference.title());
    let sides = [
        ("-", &difference.expected, RED),
        ("+", &difference.found, GREEN),
    ];
    for (sign, side, with) in sides {
        for line in side.iter().flat_map(|side| side.split('\n')) {
            let _ = writeln!(out, "        {}", paint(&format!("{sign} {line}"), with));
        }
    }
    out
}

/// A difference as plain text, for JUnit.
pub fn plain(difference: &Difference) -> String {
    indented(difference, &|text: &str, _: &str| text.to_owned())
}
