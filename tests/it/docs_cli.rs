//! docs/cli.md has every command with its options, and whatever the documentation writes as a command
//! line is one.
//!
//! `HOOKBRIDGE_BLESS=1 cargo test --test it docs_cli` writes the list anew.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::error::ErrorKind;
use hookbridge::cli::command;

use crate::docs_blocks::{blocks, pages, words};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Replaces what is between `open` and the next `<!-- end -->` by `should`, or says that it differs.
pub fn same_or_bless(page: &str, open: &str, should: &str, same: impl Fn(&str, &str) -> bool) {
    let path = root().join(page);
    let text = std::fs::read_to_string(&path).expect("the page");
    let start = text
        .find(open)
        .unwrap_or_else(|| panic!("no {open} in {page}"))
        + open.len()
        + 1;
    let end = start + text[start..].find("<!-- end -->").expect("an end");
    if same(&text[start..end], should) {
        return;
    }
    if std::env::var_os("HOOKBRIDGE_BLESS").is_some() {
        let text = format!("{}{should}{}", &text[..start], &text[end..]);
        return std::fs::write(&path, text).expect("written");
    }
    panic!(
        "{page} is out of date below {open}: HOOKBRIDGE_BLESS=1 cargo test --test it docs_\n{should}"
    );
}

/// One command with its options, and those below it.
fn describe(out: &mut String, name: &str, command: &mut clap::Command) {
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let _ = writeln!(out, "### {name}\n\n{}.\n", about.trim_end_matches('.'));
    let usage = command.clone().bin_name(name).render_usage().to_string();
    let _ = writeln!(out, "    {}\n", usage.trim_start_matches("Usage: ").trim());
    let mut rows = String::new();
    for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let id = argument.get_id().as_str();
        if ["help", "version"].contains(&id) {
            continue;
        }
        let value = argument
            .get_value_names()
            .filter(|_| argument.get_action().takes_values())
            .map(|names| names.join(" "));
        let written = match (argument.get_long(), value) {
            (Some(long), Some(value)) => format!("--{long} {value}"),
            (Some(long), None) => format!("--{long}"),
            (None, value) => value.unwrap_or_else(|| id.to_owned()),
        };
        let mut help = help
            .trim_end_matches('.')
            .replace('|', "\\|")
            .replace('\n', " ");
        let possible: Vec<_> = argument
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !possible.is_empty() && argument.get_action().takes_values() {
            let _ = write!(help, "; {}", possible.join(", "));
        }
        let defaults: Vec<_> = argument
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy().into_owned())
            .filter(|value| !value.is_empty())
            .collect();
        if !defaults.is_empty() && argument.get_action().takes_values() {
            let _ = write!(help, "; default `{}`", defaults.join(" "));
        }
        if let Some(variable) = argument.get_env() {
            let _ = write!(help, "; or `{}`", variable.to_string_lossy());
        }
        let _ = writeln!(rows, "| `{written}` | {help} |");
    }
    if !rows.is_empty() {
        let _ = writeln!(out, "| option | |\n|---|---|\n{rows}");
    }
    for below in command
        .get_subcommands_mut()
        .filter(|one| one.get_name() != "help")
    {
        let name = format!("{name} {}", below.get_name());
        describe(out, &name, below);
    }
}

#[test]
fn the_page_has_every_command_with_its_options() {
    let mut list = String::new();
    let mut all = command();
    for one in all
        .get_subcommands_mut()
        .filter(|one| one.get_name() != "help")
    {
        let name = format!("hookbridge {}", one.get_name());
        describe(&mut list, &name, one);
    }
    assert!(list.matches("### hookbridge").count() >= 10);
    let list = format!("{}\n", list.trim_end());
    same_or_bless("docs/cli.md", "<!-- commands -->", &list, |is, should| {
        is == should
    });
}

/// Without what a shell does with the output, which is its own business. Within filters such
/// characters stand without spaces.
fn of_one_command(line: &str) -> &str {
    let ends = ["; ", " | ", " > ", " 2> "].into_iter();
    let end = ends.filter_map(|what| line.find(what)).min();
    line[..end.unwrap_or(line.len())].trim()
}

/// What is written as a command of ours, with where: lines of code blocks, and code within a line.
fn written() -> Vec<(String, Vec<String>, bool)> {
    let mut found = Vec::new();
    for (name, text) in pages() {
        let mut fenced = false;
        for line in text.lines() {
            fenced ^= line.starts_with("```");
            let code = fenced || line.starts_with("    ");
            let place = format!("{name}: {line}");
            let whole = line.trim_start().trim_start_matches("$ ");
            let whole = whole.strip_prefix("cargo run --release -- ").or_else(|| {
                let rest = whole.strip_prefix("hookbridge ")?;
                // Usage lines of docs/cli.md are no command lines.
                let is_usage = rest.contains(['<', '[']) || rest == "COMMAND";
                (!is_usage).then_some(rest)
            });
            if let (true, Some(arguments)) = (code, whole) {
                found.push((place, words(of_one_command(arguments)), true));
            } else if !code {
                for quoted in line.split('`').skip(1).step_by(2) {
                    if let Some(arguments) = quoted.strip_prefix("hookbridge ") {
                        found.push((place.clone(), words(arguments), false));
                    }
                }
            }
        }
    }
    found
}

#[test]
fn whatever_is_written_as_a_command_is_one() {
    let written = written();
    assert!(written.len() > 25, "{}", written.len());
    for (place, arguments, whole) in written {
        let arguments = [&["hookbridge".to_owned()][..], &arguments].concat();
        let parsed = command().try_get_matches_from(&arguments);
        let Err(error) = parsed else { continue };
        let shown = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind());
        // Within a sentence a command is named, not given in full.
        let unfinished = [
            ErrorKind::MissingRequiredArgument,
            ErrorKind::MissingSubcommand,
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ]
        .contains(&error.kind());
        let placeholder = arguments
            .iter()
            .any(|word| word == "COMMAND" || word.starts_with('<'));
        assert!(
            shown || placeholder || (!whole && unfinished),
            "{place}\n{error}"
        );
    }
}

#[test]
fn what_is_no_command_would_be_noticed() {
    for wrong in [
        "hookbridge sned",
        "hookbridge run --confg x",
        "hookbridge validate now",
    ] {
        assert!(
            command().try_get_matches_from(words(wrong)).is_err(),
            "{wrong}"
        );
    }
}

/// Commands that need nobody, and no more than files.
const ALONE: [&str; 7] = [
    "validate",
    "echo",
    "schema",
    "completions",
    "man",
    "init",
    "preset",
];

#[test]
fn commands_that_need_nobody_are_run_as_they_are_written() {
    let config = "brokers: { here: { embedded: {} } }\n";
    let mut run = 0;
    for (name, text) in pages() {
        let lines = blocks(&text, "sh").into_iter().flat_map(str::lines);
        for line in lines.filter_map(|line| line.strip_prefix("hookbridge ")) {
            let mut arguments = words(of_one_command(line));
            if !ALONE.contains(&arguments[0].as_str()) {
                continue;
            }
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("the-config.yaml");
            std::fs::write(&path, config).expect("written");
            // Whatever the config is called there, here it is this one.
            for at in 1..arguments.len() {
                if arguments[at - 1] == "--config" {
                    arguments[at] = path.display().to_string();
                } else if arguments[at - 1] == "--dir" {
                    arguments[at] = folder.path().join("out").display().to_string();
                }
            }
            let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
                .args(&arguments)
                .current_dir(folder.path())
                .env_remove("HOOKBRIDGE_CONFIG")
                .stdin(Stdio::null())
                .output()
                .expect("it runs");
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {line}\n{complaints}");
            run += 1;
        }
    }
    assert!(run >= 8, "{run}");
}
