//! The demo's table: what became of each event at each endpoint, from what the receiver has heard.

use comfy_table::{Table, presets};

use super::checks::of;
use super::receiver::Heard;

/// A line for each event and endpoint. `replayed` are the letters that were sent again, by endpoint
/// and event.
pub fn of_what_happened(heard: &[Heard], replayed: &[(String, String)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "EVENT",
        "SUBSCRIPTION",
        "ATTEMPTS",
        "ANSWERS",
        "OUTCOME",
        "VERIFIED",
    ]);
    for (event, endpoint) in pairs(heard) {
        let all: Vec<_> = of(heard, endpoint, event).collect();
        let answers: Vec<_> = all.iter().map(|one| one.status.to_string()).collect();
        let again = replayed
            .iter()
            .any(|(of, letter)| of == endpoint && letter == event);
        let delivered = all
            .last()
            .is_some_and(|one| (200..300).contains(&one.status));
        let outcome = match (delivered, again) {
            (true, true) => "dead-lettered, sent again, delivered",
            (true, false) if all.len() > 1 => "delivered after retries",
            (true, false) => "delivered",
            (false, true) => "dead-lettered, sent again, not delivered",
            (false, false) => "not delivered",
        };
        let verified = all.iter().filter(|one| one.unverified.is_none()).count();
        table.add_row([
            event.to_owned(),
            endpoint.to_owned(),
            all.len().to_string(),
            answers.join(" "),
            outcome.to_owned(),
            format!("{verified} of {}", all.len()),
        ]);
    }
    // Without the space that the first column begins with.
    let text = table.trim_fmt();
    let lines = text
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Event and endpoint, sorted: requests of several lanes overtake each other.
fn pairs(heard: &[Heard]) -> Vec<(&str, &str)> {
    let mut pairs: Vec<_> = heard
        .iter()
        .map(|one| (one.event.as_str(), one.endpoint.as_str()))
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fate_has_its_words() {
        let heard = |event: &str, endpoint: &str, status, unverified: Option<&str>| Heard {
            endpoint: endpoint.to_owned(),
            event: event.to_owned(),
            status,
            unverified: unverified.map(str::to_owned),
        };
        let all = [
            heard("order-1", "warehouse", 204, None),
            heard("order-1", "crm", 503, None),
            heard("order-2", "billing", 503, None),
            heard("order-1", "crm", 204, None),
            heard("order-2", "billing", 204, None),
            heard("order-3", "crm", 401, Some("no signature matches")),
        ];
        let replayed = [("billing".to_owned(), "order-2".to_owned())];
        insta::assert_snapshot!(of_what_happened(&all, &replayed), @r#"
EVENT    SUBSCRIPTION  ATTEMPTS  ANSWERS  OUTCOME                               VERIFIED
order-1  crm           2         503 204  delivered after retries               2 of 2
order-1  warehouse     1         204      delivered                             1 of 1
order-2  billing       2         503 204  dead-lettered, sent again, delivered  2 of 2
order-3  crm           1         401      not delivered                         0 of 1
"#);
    }
}
