//! ARCHITECTURE.md and README.md name things that exist, and the invariants that only the text of
//! the sources can show.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file below `folder` with its path from the root, comments and the unit tests at its
/// end left out.
fn sources(folder: &str) -> Vec<(String, String)> {
    fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    collect(&root().join(folder), &mut paths);
    assert!(!paths.is_empty(), "no sources in {folder}");
    let mut found = Vec::new();
    for path in paths {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if name.ends_with("/tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        found.push((name, code.collect::<Vec<_>>().join("\n")));
    }
    found.sort();
    found
}

/// Files in which one of `words` stands.
fn naming(sources: &[(String, String)], words: &[&str]) -> Vec<String> {
    sources
        .iter()
        .filter(|(_, code)| words.iter().any(|word| code.contains(word)))
        .map(|(name, _)| name.clone())
        .collect()
}

/// What stands between backticks in `text`.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The Markdown links in `text`: what is shown and where it leads.
fn links(text: &str) -> Vec<(&str, &str)> {
    text.split("](")
        .zip(text.split("](").skip(1))
        .filter_map(|(before, after)| {
            let shown = before.rsplit('[').next()?;
            Some((shown, after.split(')').next()?))
        })
        .collect()
}

#[test]
fn the_map_has_the_modules_in_their_order() {
    let lib = read("src/lib.rs");
    let modules: Vec<_> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    let text = read("ARCHITECTURE.md");
    let map = text.split("## The map").nth(1).unwrap();
    let map = map.split("\n## ").next().unwrap();
    let listed: Vec<_> = map
        .lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|row| links(row.split('|').nth(2)?).first().map(|(name, _)| *name))
        .collect();
    assert_eq!(listed, modules);
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let text = read("ARCHITECTURE.md");
    let table = text.split("## Invariants").nth(1).unwrap();
    let rows: Vec<_> = table
        .split("\n## ")
        .next()
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| |"))
        .collect();
    assert_eq!(rows.len(), 11);
    for row in rows {
        let held_by = row.split('|').nth(3).unwrap();
        let mut tests = 0;
        // `test`, `test` in [file](file), `test` in [file](file)
        for part in held_by.split_inclusive("](") {
            if !part.ends_with("](") {
                continue;
            }
            let file = part.trim_end_matches("](").rsplit('[').next().unwrap();
            let code = read(file);
            for test in quoted(part) {
                assert!(
                    code.contains(&format!("fn {test}(")),
                    "{file} has no test {test}"
                );
                tests += 1;
            }
        }
        assert!(tests > 0, "no test in: {row}");
    }
}

#[test]
fn links_to_sources_say_where_they_lead() {
    let text = read("ARCHITECTURE.md");
    for (shown, target) in links(&text) {
        let shown = shown.trim_matches('`');
        if shown.contains('/') && !shown.contains(' ') {
            assert!(target.starts_with(shown), "{shown} leads to {target}");
        }
    }
}

#[test]
fn every_decision_is_in_the_index() {
    let text = read("ARCHITECTURE.md");
    for entry in fs::read_dir(root().join("docs/decisions")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            text.contains(&format!("(docs/decisions/{name})")),
            "{name} is not in the index of ARCHITECTURE.md"
        );
    }
}

#[test]
fn every_page_is_on_the_readme_s_map() {
    let readme = read("README.md");
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            assert!(
                readme.contains(&format!("(docs/{name})")),
                "{name} is not on the map of README.md"
            );
        }
    }
}

#[test]
fn one_function_calls_the_courier() {
    let calling = naming(
        &sources("src"),
        &["courier\n                    .watched(", "courier.attempt("],
    );
    // A ping of `doctor` is no delivery.
    assert_eq!(
        calling,
        ["src/deliver/inspect.rs", "src/pipeline/attempt.rs"]
    );
    let (_, code) = &sources("src/pipeline")
        .into_iter()
        .find(|(name, _)| name.ends_with("/attempt.rs"))
        .unwrap();
    assert_eq!(code.matches("courier").count(), 1);
    // Who could call it: those who know the type.
    let mut knowing = naming(&sources("src"), &["Courier"]);
    knowing.retain(|name| !name.starts_with("src/deliver/"));
    assert_eq!(knowing, ["src/app/mod.rs", "src/pipeline/mod.rs"]);
}

#[test]
fn verdicts_know_no_clock_and_no_chance() {
    let words = [
        "::now(",
        "Instant",
        "SystemTime",
        "rand::",
        "async ",
        "std::env",
        "std::fs",
        "std::net",
        "tokio",
        "tracing",
        "static ",
        "Mutex",
        "Atomic",
    ];
    assert_eq!(naming(&sources("src/verdict"), &words), [""; 0]);
}

#[test]
fn no_channel_is_unbounded() {
    let words = ["unbounded_channel", "unbounded()", "mpsc::channel()"];
    let mut open = naming(&sources("src"), &words);
    // The embedded broker's writer says once that it has ended.
    open.retain(|name| name != "src/broker/embedded/mod.rs");
    assert_eq!(open, [""; 0]);
}
