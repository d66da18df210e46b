//! Adapters under a real bridge: the rates they keep, what their services' answers mean, and that
//! nothing that the bridge says holds a credential of theirs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::bridge::Bridge;
use crate::support::cli;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver, Request};

const SOON: Duration = Duration::from_secs(30);

fn config(subscriptions: &str) -> String {
    format!(
        "data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
attempts: {{ bodies: true }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ shop: {{ broker: here, topics: ['#'] }} }}
subscriptions:
{subscriptions}"
    )
}

/// Deliveries that have to wait longer than the test lasts are given up at once.
const RETRY: &str = "retry: { schedule: [100ms], jitter: 0, max_attempts: 50, give_up_after: 50s }";

async fn publish(bridge: &Bridge, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        let order = format!("{{\"number\": {number}}}");
        let (status, said) = bridge
            .post("/v1/topics/orders.created/events", &order)
            .await;
        assert_eq!(status, 202, "{said}");
    }
}

fn read(request: &Request) -> Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

async fn died(bridge: &Bridge, subscription: &str, reason: &str, count: f64) {
    let line = format!(
        "hookbridge_dead_letters_total{{subscription=\"{subscription}\",reason=\"{reason}\"}}"
    );
    eventually(&line, SOON, async || {
        (bridge.metric(&line).await >= count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slack_gets_one_message_a_second_and_ends_with_a_404() {
    let slack = Receiver::answering(|request, _| {
        let third = read(request)["text"] == "order 3";
        Answer::status(if third { 404 } else { 200 }).body("ok")
    })
    .await;
    let url = slack.url("/services/T0/B0/X0");
    let bridge = Bridge::start(&config(&format!(
        "  team: {{ topics: ['#'], endpoint: {{ url: '{url}', format: {{ slack: {{ text: 'order {{{{ data.number }}}}' }} }}, concurrency: 1 }}, {RETRY} }}\n"
    )))
    .await
    .ready()
    .await;
    publish(&bridge, 1..=1).await;
    slack.wait_for(1, SOON).await;
    publish(&bridge, 2..=2).await;
    slack.wait_for(2, SOON).await;
    publish(&bridge, 3..=3).await;
    let requests = slack.wait_for(3, SOON).await;
    for pair in requests.windows(2) {
        let apart = pair[1].at - pair[0].at;
        assert!(apart >= Duration::from_millis(900), "{apart:?}");
    }
    assert_eq!(read(&requests[0]), json!({"text": "order 1"}));
    assert!(!requests[0].headers.contains_key("webhook-signature"));

    // Held until it would be given up, which is before it would be looked at again.
    died(&bridge, "team", "gone", 1.0).await;
    let (_, said) = bridge.get("/v1/subscriptions").await;
    assert!(said.contains("\"disabled\""), "{said}");
    publish(&bridge, 4..=4).await;
    died(&bridge, "team", "gone", 2.0).await;
    assert_eq!(slack.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discord_says_in_three_places_how_long_to_wait() {
    let limited = r#"{"message":"You are being rate limited.","retry_after":1.5,"global":false}"#;
    let discord = Receiver::answering(move |request, before| {
        let embed = read(request)["embeds"][0].clone();
        match (embed["title"].as_str(), before) {
            // The body is of the three the longest, then the header, and then nothing is refused.
            (Some("1"), 0) => Answer::status(429)
                .header("x-ratelimit-reset-after", "0.1")
                .header("retry-after", "1")
                .body(limited),
            (Some("1"), 1) => Answer::status(429)
                .header("x-ratelimit-reset-after", "1.5")
                .body("slow down"),
            (Some("2"), _) => Answer::status(204)
                .header("x-ratelimit-remaining", "0")
                .header("x-ratelimit-reset-after", "1.5"),
            _ => Answer::status(204)
                .header("x-ratelimit-remaining", "4")
                .header("x-ratelimit-reset-after", "30"),
        }
    })
    .await;
    let url = discord.url("/api/webhooks/1/t");
    // The rate is ours, and goes before the adapter's, which is one in two seconds.
    let bridge = Bridge::start(&config(&format!(
        "  team: {{ topics: ['#'], endpoint: {{ url: '{url}', format: {{ discord: {{ title: '{{{{ data.number }}}}' }} }}, concurrency: 1, rate: 100/s }}, {RETRY} }}\n"
    )))
    .await
    .ready()
    .await;
    publish(&bridge, 1..=1).await;
    discord.wait_for(1, SOON).await;
    // Whatever comes meanwhile waits too.
    publish(&bridge, 2..=4).await;
    let requests = discord.wait_for(6, SOON).await;
    assert_eq!(requests.len(), 6);
    let wait = Duration::from_millis(1450);
    for (number, request) in requests.iter().enumerate().skip(1) {
        let before = &requests[number - 1];
        let title = read(before)["embeds"][0]["title"].clone();
        let held = before.answered == 429 || title == "2";
        let apart = request.at - before.at;
        assert!(!held || apart >= wait, "{number}: {apart:?}");
    }
    let held = requests.iter().filter(|request| request.answered == 429);
    assert_eq!(held.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pagerduty_takes_with_202_and_a_400_is_not_tried_again() {
    let pagerduty = Receiver::answering(|request, before| {
        let number = read(request)["payload"]["custom_details"]["number"].as_u64();
        Answer::status(match (number, before) {
            (Some(1), _) => 400,
            // No more than that somebody is there.
            (Some(2), 0) => 200,
            (Some(3), 0) => 429,
            _ => 202,
        })
    })
    .await;
    let url = pagerduty.url("/v2/enqueue");
    let of = |name: &str, retry: &str| {
        format!(
            "  {name}: {{ topics: ['#'], endpoint: {{ url: '{url}', format: {{ pagerduty: {{ routing_key: {name}-key, severity: info }} }}, rate: 100/s }}, {retry} }}\n"
        )
    };
    let own = RETRY.replace("retry: {", "retry: { no_retry: [], success: [2xx, 400],");
    let bridge = Bridge::start(&config(&(of("usual", RETRY) + &of("own", &own))))
        .await
        .ready()
        .await;
    publish(&bridge, 1..=3).await;
    died(&bridge, "usual", "no_retry", 1.0).await;
    let of_key = |key: &str| {
        let requests = pagerduty.requests().into_iter();
        let of_key = requests.filter(|request| read(request)["routing_key"] == key);
        let mut answers: Vec<_> = of_key
            .map(|request| {
                let alert = read(&request);
                let number = alert["payload"]["custom_details"]["number"].as_u64();
                (number.expect("a number"), request.answered)
            })
            .collect();
        answers.sort_unstable();
        answers
    };
    let delivered = |name: &str| {
        format!(
            "hookbridge_delivery_attempts_total{{subscription=\"{name}\",outcome=\"delivered\","
        )
    };
    eventually("all is settled", SOON, async || {
        let metrics = bridge.metrics().await;
        let count = |name: &str| -> f64 {
            let lines = metrics.lines();
            let lines = lines.filter(|line| line.starts_with(&delivered(name)));
            lines
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        (count("usual") == 2.0 && count("own") == 3.0).then_some(())
    })
    .await;
    // Which of the two comes first with an event is no matter: the receiver counts by it.
    let all: Vec<_> = [of_key("usual-key"), of_key("own-key")].concat();
    assert_eq!(all.iter().filter(|(_, status)| *status == 400).count(), 2);
    assert!(of_key("own-key").contains(&(1, 400)));
    let request = pagerduty.requests().remove(0);
    let alert = read(&request);
    assert_eq!(alert["dedup_key"], request.id.as_str());
    assert_eq!(alert["payload"]["severity"], "info");
}

/// All that is found below `folder`, as bytes.
fn files(folder: &Path, into: &mut Vec<u8>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files(&path, into),
            false => into.extend(std::fs::read(path).expect("read")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_the_bridge_says_holds_a_credential() {
    // Whoever answers repeats the request.
    let echo = |request: &Request, _| {
        let authorization = request.headers.get("authorization");
        let authorization = authorization.and_then(|value| value.to_str().ok());
        Answer::status(400).body(format!(
            "no {} {} of {} with {}",
            request.path,
            request.path.rsplit('/').next().unwrap_or_default(),
            String::from_utf8_lossy(&request.body).replace(['\n', ' '], ""),
            authorization.unwrap_or("-"),
        ))
    };
    let receiver = Receiver::answering(echo).await;
    const SECRETS: [&str; 5] = [
        "B0SLACKPART",
        "XtOkEnOfSlAcK24",
        "R0UT1NGK3YOFTEAM",
        "TW1L10T0K3N",
        "TR3LL0T0K3N",
    ];
    let [part, token, routing_key, password, trello] = SECRETS;
    let (slack, other) = (
        receiver.url(&format!("/services/T0ABC/{part}/{token}")),
        receiver.url("/other"),
    );
    let bridge = Bridge::start(&config(&format!(
        "  slack: {{ topics: ['#'], endpoint: {{ url: '{slack}', format: slack }}, {RETRY} }}
  pagerduty: {{ topics: ['#'], endpoint: {{ url: '{other}', format: {{ pagerduty: {{ routing_key: {routing_key} }} }} }}, {RETRY} }}
  twilio: {{ topics: ['#'], endpoint: {{ url: '{other}', auth: {{ basic: {{ user: AC1, password: {password} }} }}, format: {{ twilio: {{ to: '+1', from: '+2' }} }} }}, {RETRY} }}
  trello: {{ topics: ['#'], endpoint: {{ url: '{other}', format: {{ trello: {{ api_key: {trello}, token: {trello}, list: l }} }} }}, {RETRY} }}
"
    )))
    .await
    .ready()
    .await;
    publish(&bridge, 1..=1).await;
    for name in ["slack", "pagerduty", "twilio", "trello"] {
        died(&bridge, name, "no_retry", 1.0).await;
    }
    // They were sent.
    let sent = receiver.requests();
    let sent = format!("{sent:?}");
    for secret in [part, token, routing_key, trello] {
        assert!(sent.contains(secret), "{secret}");
    }

    let mut said = vec![
        ("the log", bridge.log()),
        ("metrics", bridge.metrics().await),
    ];
    let attempts = eventually("all attempts are recorded", SOON, async || {
        let (_, attempts) = bridge.get("/v1/attempts?limit=100").await;
        let read: Value = serde_json::from_str(&attempts).expect("JSON");
        (read["attempts"].as_array()?.len() == 4).then_some(attempts)
    })
    .await;
    let id = &receiver.requests()[0].id.clone();
    assert!(
        attempts.contains("routing_key"),
        "bodies are kept: {attempts}"
    );
    said.push(("attempts", attempts));
    for path in [
        "/v1/subscriptions",
        "/v1/dead-letters",
        "/v1/dead-letters/export",
        "/v1/dead-letters/groups",
        "/v1/sources",
        "/readyz",
        &format!("/v1/events/{id}/trace"),
    ] {
        let (status, text) = bridge.get(path).await;
        assert_eq!(status, 200, "{path}: {text}");
        said.push(("the API", text));
    }
    let (_, letters) = bridge.get("/v1/dead-letters").await;
    let letter = json_of(&letters)["letters"][0]["id"].clone();
    let letter = letter.as_str().expect("a letter").to_owned();
    for arguments in [
        &["dead", "list"][..],
        &["dead", "show", &letter],
        &["dead", "export"],
        &["attempts", "--json"],
        &["trace", id],
        &["echo"],
        &["doctor"],
        &["validate"],
    ] {
        let ran = cli::run(&bridge.config_path(), arguments).await;
        assert!(!ran.out.is_empty() || !ran.err.is_empty(), "{arguments:?}");
        said.push(("a command", ran.out + &ran.err));
    }
    let mut kept = Vec::new();
    files(&bridge.data_dir(), &mut kept);
    said.push(("a file", String::from_utf8_lossy(&kept).into_owned()));
    for (what, text) in &said {
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} in {what}:\n{text}");
        }
    }
    let log = &said[0].1;
    assert!(
        log.contains(&format!("http://{}", receiver.address)),
        "{log}"
    );
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn adapters_are_listed_and_shown() {
    let config = Path::new("/nowhere");
    let list = cli::run(config, &["preset", "list"]).await.ok();
    insta::assert_snapshot!(list, @r"
     NAME       MAKES                          METHOD  RATE   LIMITS
     slack      a message in a channel         POST    1/s    text 40,000; 50 blocks; section 3,000; header 150
     discord    an embed in a channel          POST    30/m   title 256; description 4,096; 25 fields; name 256; value 1,024; embed 6,000; content 2,000
     teams      an Adaptive Card in a channel  POST    4/s    28 KB in all; 20 facts
     pagerduty  an alert (Events API v2)       POST    2/s    summary 1,024; dedup_key 255; 512 KB in all
     twilio     an SMS                         POST    1/s    text 1,600
     zapier     a run of a Zap                 POST    30/s   10 MB in all
     jira       an issue                       POST    10/s   summary 255; description 32,767
     asana      a task                         POST    150/m  name 1,024; notes 65,000
     trello     a card                         POST    10/s   name 16,384; description 16,384
     jenkins    a build with parameters        POST    -      200,000 bytes in all
     hubspot    a contact                      POST    10/s   property 65,536

    signatures: standard, standard-ed25519, svix, stripe, github, slack, twilio, shopify, woocommerce, intercom, mailchimp, docusign, papertrail, zapier, hubspot, jira, trello, asana, gitlab, zoho, hmac, none
    ");
    let listed = cli::run(config, &["preset", "list", "--json"]).await.ok();
    let listed = json_of(&listed);
    let names = listed["adapters"].as_array().expect("adapters").iter();
    for adapter in names {
        let name = adapter["name"].as_str().expect("a name");
        let shown = cli::run(config, &["preset", "show", name]).await.ok();
        assert!(shown.starts_with(&format!("{{#- {name}: ")), "{shown}");
    }
    assert_eq!(listed["adapters"][3]["name"], "pagerduty");
    assert_eq!(listed["adapters"][3]["success"], "202");
    let wrong = cli::run(config, &["preset", "show", "myspace"]).await;
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(64), ""));
    assert!(
        wrong.err.contains("there is no adapter `myspace`"),
        "{}",
        wrong.err
    );
}

/// As the page says: printed, changed, and used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_was_printed_can_be_used() {
    let receiver = Receiver::accepting().await;
    let shown = cli::run(Path::new("/nowhere"), &["preset", "show", "slack"]).await;
    let shown = shown
        .ok()
        .replace("| truncate_to(40000)", "| truncate_to(6)");
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join("my.json.j2");
    std::fs::write(&template, shown).expect("written");
    let (url, template) = (receiver.url("/"), template.display());
    let bridge = Bridge::start(&config(&format!(
        "  team: {{ topics: ['#'], endpoint: {{ url: '{url}', signature: none, format: {{ template: {{ body: '${{file:{template}}}' }} }} }} }}\n"
    )))
    .await
    .ready()
    .await;
    publish(&bridge, 1..=1).await;
    let requests = receiver.wait_for(1, SOON).await;
    assert_eq!(read(&requests[0]), json!({"text": "order\u{2026}"}));
}
