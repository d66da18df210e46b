//! `hookbridge --help`: the commands in the order in which people come to need them.
//!
//! clap lists commands one after another without headings, so the list is put together here, from
//! the names below and what each command says of itself.

use std::fmt::Write as _;

use clap::Command;

/// Names of commands that there are not are passed over; those that are missing here come last,
/// which a test refuses.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "The first hour",
        &["demo", "init", "validate", "test", "send", "listen"],
    ),
    (
        "Running",
        &[
            "run",
            "reload",
            "pause",
            "resume",
            "log",
            "subscription",
            "secret",
            "topology",
        ],
    ),
    (
        "Incidents",
        &["dead", "parked", "replay", "trace", "attempts"],
    ),
    (
        "Diagnostics",
        &["doctor", "echo", "tap", "top", "sign", "verify"],
    ),
    (
        "Tooling",
        &["preset", "schema", "completions", "man", "help"],
    ),
];
const UNGROUPED: &str = "More";

const TEMPLATE: &str = "{about}

{usage-heading} {usage}{after-help}

Options:
{options}

`hookbridge help COMMAND` says more about one of them.
";

/// Gives `command` the grouped list in place of clap's.
pub fn grouped(command: Command) -> Command {
    let list = list(&command);
    command.after_help(list).help_template(TEMPLATE)
}

fn list(command: &Command) -> String {
    let mut left: Vec<(String, String)> = command
        .get_subcommands()
        .filter(|one| !one.is_hide_set())
        .map(|one| {
            let about = one.get_about().map(ToString::to_string).unwrap_or_default();
            (one.get_name().to_owned(), about)
        })
        .collect();
    left.push(("help".to_owned(), "Say more about a command".to_owned()));
    let width = left.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (heading, names) in GROUPS {
        let members: Vec<_> = names
            .iter()
            .filter_map(|name| {
                let at = left.iter().position(|(known, _)| known == name)?;
                Some(left.remove(at))
            })
            .collect();
        write_group(&mut out, heading, &members, width);
    }
    write_group(&mut out, UNGROUPED, &left, width);
    out.trim().to_owned()
}

fn write_group(out: &mut String, heading: &str, members: &[(String, String)], width: usize) {
    if members.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{heading}:");
    for (name, about) in members {
        let about = about.trim_end_matches('.');
        let _ = writeln!(out, "  {name:width$}  {about}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_group() {
        let list = list(&crate::cli::command());
        assert!(!list.contains(UNGROUPED), "add it to GROUPS:\n{list}");
        for command in crate::cli::command().get_subcommands() {
            let line = format!("\n  {} ", command.get_name());
            assert!(list.contains(&line), "{line} is missing in\n{list}");
        }
    }
}
