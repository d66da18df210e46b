//! The dashboard and the alert rules in `deploy/` are made of metrics and labels that there are.

use std::collections::BTreeSet;
use std::path::PathBuf;

use regex::Regex;
use serde_json::Value;

use crate::docs_metrics::{Metrics, documented};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Labels that Prometheus gives to every metric.
const OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];

/// The names of metrics in an expression, those of a histogram's parts as the histogram's. Panics
/// where there is none of this name.
fn used(expression: &str, known: &Metrics) -> BTreeSet<String> {
    let names = Regex::new(r"hookbridge_[a-z0-9_]+").unwrap();
    let base = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"];
        let found = parts.iter().find_map(|part| name.strip_suffix(part));
        let histogram = found.filter(|base| known.get(*base).is_some_and(|it| it.0 == "histogram"));
        histogram.unwrap_or(name).to_owned()
    };
    let found: BTreeSet<_> = names
        .find_iter(expression)
        .map(|name| base(name.as_str()))
        .collect();
    for name in &found {
        assert!(
            known.contains_key(name),
            "`{name}` is not in docs/metrics.md: {expression}"
        );
    }
    found
}

/// Whether all labels that an expression names are those of a metric in it, and its brackets match.
fn check(expression: &str, known: &Metrics) -> BTreeSet<String> {
    let found = used(expression, known);
    let theirs: BTreeSet<&str> = found
        .iter()
        .flat_map(|name| known[name].1.iter().map(String::as_str))
        .chain(OF_PROMETHEUS)
        .collect();
    let by = Regex::new(r"\b(?:by|on|without)\s*\(([^)]*)\)").unwrap();
    let matched = Regex::new(r#"([a-z_]+)\s*=~?"#).unwrap();
    let braces = Regex::new(r"\{([^}]*)\}").unwrap();
    let grouped = by.captures_iter(expression).flat_map(|found| {
        let list = found.get(1).unwrap().as_str();
        list.split(',')
            .map(|label| label.trim().to_owned())
            .collect::<Vec<_>>()
    });
    let selected = braces.captures_iter(expression).flat_map(|found| {
        let inside = found.get(1).unwrap().as_str().to_owned();
        let names = matched.captures_iter(&inside);
        names.map(|name| name[1].to_owned()).collect::<Vec<_>>()
    });
    for label in grouped.chain(selected) {
        assert!(
            theirs.contains(label.as_str()),
            "no label `{label}`: {expression}"
        );
    }
    let mut open = Vec::new();
    for c in expression.chars() {
        match c {
            '(' | '{' | '[' => open.push(c),
            ')' | '}' | ']' => {
                let pair = (open.pop().unwrap_or(' '), c);
                assert!(
                    [('(', ')'), ('{', '}'), ('[', ']')].contains(&pair),
                    "{expression}"
                );
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "{expression}");
    found
}

#[test]
fn the_alert_rules_are_about_metrics_that_there_are() {
    let known = documented();
    let rules: Value = serde_saphyr::from_str(&read("deploy/prometheus/alerts.yaml")).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules: Vec<_> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() > 10);
    let labels = Regex::new(r"\$labels\.([a-z_]+)").unwrap();
    let mut names = BTreeSet::new();
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(
            names.insert(name) && name.starts_with("Hookbridge"),
            "{name}"
        );
        let expression = rule["expr"].as_str().unwrap();
        let found = check(expression, &known);
        assert!(!found.is_empty() || name == "HookbridgeDown", "{name}");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}"
        );
        let annotations = &rule["annotations"];
        let told = ["summary", "description"].map(|key| annotations[key].as_str().unwrap());
        for text in told {
            for label in labels.captures_iter(text).map(|found| found[1].to_owned()) {
                let is_there = found.iter().any(|metric| known[metric].1.contains(&label));
                assert!(is_there || label == "instance", "{name} tells `{label}`");
            }
        }
        let runbook = annotations["runbook"].as_str().unwrap();
        assert!(root().join(runbook).exists(), "{name}: {runbook}");
    }
}

#[test]
fn the_dashboard_shows_every_metric_that_there_is() {
    let known = documented();
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/hookbridge.json")).unwrap();
    let mut shown = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            !panel["description"].as_str().unwrap().is_empty(),
            "{title}"
        );
        for target in panel["targets"].as_array().unwrap() {
            shown.extend(check(target["expr"].as_str().unwrap(), &known));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            shown.extend(used(query, &known));
        }
    }
    let metrics: BTreeSet<_> = known.into_keys().collect();
    let missing: Vec<_> = metrics.difference(&shown).collect();
    // Those are for people who look for something else.
    let elsewhere = [
        "hookbridge_attempt_records_unpublished_total",
        "hookbridge_dead_letters_expired_total",
        "hookbridge_filter_not_json_total",
        "hookbridge_source_messages_gone_total",
        "hookbridge_spans_exported_total",
    ];
    assert_eq!(missing, elsewhere.iter().collect::<Vec<_>>());
}

#[test]
fn what_is_wrong_in_an_expression_is_found() {
    let known = documented();
    for wrong in [
        "hookbridge_nothing_total",
        "sum by (colour) (hookbridge_breaker_state)",
        "hookbridge_breaker_state{colour=\"red\"}",
        "sum(hookbridge_breaker_state",
    ] {
        let checked = std::panic::catch_unwind(|| check(wrong, &known));
        assert!(checked.is_err(), "{wrong}");
    }
}
