//! docs/metrics.md has every metric with its type and labels, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use hookbridge::delivery::{Reason, WaitKind};
use hookbridge::meters::Meters;

/// Metrics by name: their type and labels.
pub type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// All metrics there are, each with a value.
fn encoded() -> Metrics {
    let meters = Meters::new();
    let source = meters.of_source("orders");
    source.lag(3, 1);
    meters.of_tenant("acme", true);
    let subscription = meters.of_subscription("crm");
    subscription.failed("5xx");
    subscription.parked(WaitKind::Hold);
    subscription.dead(Reason::Gone);
    subscription.batched(3);
    subscription.stale();
    meters.refusals("shop").inc();
    meters.expired("shop").inc();
    meters.reloaded(true, 0);
    meters.config("0123456789ab");
    meters.brokers_with(|| vec![("shop".to_owned(), true)]);
    meters.count_with("log_lines_lost", "Log lines not written", || 0);
    let text = meters.encode();
    let mut found = Metrics::new();
    let mut types = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            types.insert(name.to_owned(), kind.to_owned());
        }
        if line.starts_with('#') {
            continue;
        }
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = match line.split_once('{') {
            Some((_, rest)) => rest.split('}').next().unwrap(),
            None => "",
        };
        let labels = labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .map(|(label, _)| label.to_owned())
            .filter(|label| label != "le");
        let histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .filter(|base| types.get(*base).is_some_and(|kind| kind == "histogram"));
        let name = histogram.unwrap_or(name);
        let base = name.strip_suffix("_total").unwrap_or(name);
        let kind = types[base].clone();
        let (_, known) = found
            .entry(name.to_owned())
            .or_insert((kind, BTreeSet::new()));
        known.extend(labels);
    }
    assert_eq!(found.len(), types.len(), "a metric without a value");
    found
}

pub fn documented() -> Metrics {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let table = text.split("<!-- metrics -->").nth(1).unwrap();
    let table = table.split("<!-- end -->").next().unwrap();
    let plain = |cell: &str| cell.trim().trim_matches('`').to_owned();
    table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|row| {
            let cells: Vec<_> = row.split('|').collect();
            let labels = cells[3].split(',').map(plain);
            let labels = labels.filter(|label| !label.is_empty()).collect();
            (plain(cells[1]), (plain(cells[2]), labels))
        })
        .collect()
}

#[test]
fn every_metric_is_documented_with_its_type_and_labels() {
    assert_eq!(documented(), encoded());
}

#[test]
fn labels_are_of_known_kinds() {
    // Names of the config; words of the code; a partition's number.
    let known = [
        "broker",
        "source",
        "subscription",
        "tenant",
        "outcome",
        "reason",
        "result",
        "status_class",
        "version",
        "partition",
        // Of what the release was built of, and of the config in force: one at a time.
        "commit",
        "hash",
    ];
    for (metric, (_, labels)) in encoded() {
        for label in labels {
            assert!(
                known.contains(&label.as_str()),
                "{metric} has the label {label}"
            );
        }
    }
    // Words of the code are `&'static str`, so that nothing from outside can be one.
    let labels = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/meters/labels.rs");
    let code = std::fs::read_to_string(labels).unwrap();
    for word in ["outcome", "reason", "result", "status_class"] {
        assert!(
            code.contains(&format!("    pub {word}: &'static str,")),
            "{word}"
        );
        assert!(!code.contains(&format!(" {word}: String,")), "{word}");
    }
}
