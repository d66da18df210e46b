//! `hookbridge test`: what it says of tests that pass, fail and are wrong, and that it says it of what a
//! bridge would really send.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::support::receiver::Receiver;

const CONFIG: &str = r##"data_dir: '{data}'
brokers: { here: { embedded: {} } }
sources: { shop: { broker: here, topics: ["orders.#", notes] } }
subscriptions:
  crm:
    topics: ["orders.*"]
    filter: { data.total: { $gte: 100 } }
    endpoint:
      url: https://crm.example.com/T0K3N/hooks
      secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
      headers: { x-team: hunter2hunter2 }
      format: envelope
      gzip: true
  sms:
    topics: ["orders.*"]
    endpoint:
      url: https://sms.example.com/in
      secret: 0123456789abcdef
      signature: twilio
      format: { form: { flatten: true } }
  audit:
    topics: ["#"]
    types: [order.made]
    endpoint:
      url: https://audit.example.com/in?key=hunter2hunter2
      signature: none
      auth: { api_key: { query: token, key: hunter3hunter3 } }
      format: { template: { body: '{"id": {{ data.id }}}', path: ["{{ data.id }}"], query: { a: b } } }
"##;

const PASSING: &str = r#"
tests:
  a-large-order:
    message: { topic: orders.created, id: evt_1, time: 2026-01-31T12:00:00Z, body: { id: 7, total: 150.0 } }
    expect:
      crm:
        method: POST
        url: https://crm.example.com/***
        headers: { webhook-id: evt_1, webhook-timestamp: 1769860800, content-encoding: gzip, x-team: hunter2hunter2 }
        body: { type: orders.created, timestamp: "2026-01-31T12:00:00Z", data: { id: 7, total: 150 } }
        signature: valid
      sms: { body: "id=7&total=150.0", signature: valid }
  a-made-order:
    message: { topic: notes, type: order.made, body: '{"id": 7}' }
    at: 2026-01-31
    expect:
      audit:
        url: https://audit.example.com/in/7?key=hunter2hunter2&a=b&token=hunter3hunter3
        body: { id: 7 }
        signature: none
  one-without-an-id:
    message: { topic: notes, type: order.made, body: {} }
    expect: { audit: { error: { reason: render_failed, text: undefined } } }
  a-small-one:
    message: { topic: orders.created, body: { total: 99 } }
    expect: [sms]
  nobody-s:
    message: { topic: notes, headers: { ce_type: order.gone } }
    expect: {}
"#;

fn hookbridge(folder: &Path, tests: &str, arguments: &[&str]) -> Output {
    let config = CONFIG.replace("{data}", &folder.join("data").display().to_string());
    std::fs::write(folder.join("hookbridge.yaml"), config + tests).expect("written");
    Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .arg("test")
        .args(arguments)
        .current_dir(folder)
        .env_remove("HOOKBRIDGE_CONFIG")
        .stdin(Stdio::null())
        .output()
        .expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_is_as_expected_passes_and_is_told_in_a_line_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = hookbridge(folder.path(), PASSING, &[]);
    insta::assert_snapshot!(said(&output), @r"
    ok    a-large-order
    ok    a-made-order
    ok    one-without-an-id
    ok    a-small-one
    ok    nobody-s
    5 tests: 5 passed, 0 failed
    ");
    assert_eq!(output.status.code(), Some(0));
    assert!(!folder.path().join("data").exists(), "nothing is opened");
    let one = hookbridge(folder.path(), PASSING, &["--filter", "small"]);
    assert_eq!(
        said(&one),
        "ok    a-small-one\n1 test: 1 passed, 0 failed\n"
    );
    let none = hookbridge(folder.path(), PASSING, &["--filter", "enormous"]);
    assert_eq!((none.status.code(), &*said(&none)), (Some(1), ""));
    assert_eq!(none.stderr, b"no test has such a name\n");
}

const FAILING: &str = r#"
tests:
  another-body:
    message: { topic: orders.created, id: evt_1, body: { id: 7, total: 150, tags: [a, b] } }
    expect:
      crm:
        method: PUT
        url: https://crm.example.com/T0K3N/books
        headers: { webhook-id: evt_2, x-team: hunter4hunter4, x-more: "1" }
        body: { type: orders.created, timestamp: "2026-01-01T00:00:00Z", data: { id: 7, total: "150", tags: [a], "a b": 1 } }
        signature: none
      sms: { body: "id=7&total=151", signature: none }
  others-match:
    message: { topic: notes, type: order.made, body: { id: "<7>" } }
    expect:
      crm: {}
      audit:
        url: https://audit.example.com/in/8?key=hunter2hunter2&a=b&token=hunter3hunter3
        signature: valid
  nothing-fails:
    message: { topic: notes, type: order.made, body: {} }
    expect: { audit: {} }
  something-else-fails:
    message: { topic: notes, type: order.made, body: { id: 1 } }
    expect: { audit: { error: render_failed } }
  a-file-is-missing:
    message: { topic: notes, body_file: no-such.json }
    expect: {}
"#;

#[test]
fn what_differs_is_told_by_path_and_credentials_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = hookbridge(folder.path(), FAILING, &[]);
    insta::assert_snapshot!(said(&output), @r#"
    FAIL  another-body
          crm: method
            - PUT
            + POST
          crm: url, in what is not shown
            - https://crm.example.com/***
            + https://crm.example.com/***
          crm: header webhook-id
            - evt_2
            + evt_1
          crm: header x-team, in what is not shown
            - ***
            + ***
          crm: header x-more is missing
            - 1
          crm: body at data["a b"]
            - 1
          crm: body at data.tags[1]
            + "b"
          crm: body at data.total
            - "150"
            + 150
          crm: signature
            - none
            + one of `standard`
          sms: body, from line 1
            - id=7&total=151
            + id=7&tags%5B0%5D=a&tags%5B1%5D=b&total=150
          sms: signature
            - none
            + one of `twilio`
    FAIL  others-match
          audit: url
            - https://audit.example.com/***/8?***&a=b&token=***
            + https://audit.example.com/***/%3C7%3E?***&a=b&token=***
          audit: signature
            - valid
            + none: `none` proves nothing
          crm: is expected, and does not match
    FAIL  nothing-fails
          audit: error
            - a request
            + render_failed: body, line 1: undefined value: `data.id` is undefined
    FAIL  something-else-fails
          audit: error
            - render_failed
            + a request
    FAIL  a-file-is-missing
          `body_file` no-such.json cannot be read: No such file or directory (os error 2)

    (- is expected, + is what would be sent)
    5 tests: 0 passed, 5 failed
    "#);
    assert_eq!(output.status.code(), Some(1));
    assert!(!said(&output).contains("hunter") && !said(&output).contains("T0K3N"));
}

#[test]
fn junit_is_read_by_another_parser() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = hookbridge(folder.path(), FAILING, &["--junit", "report.xml", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(json["passed"] == 0 && json["failed"] == 5, "{json}");
    let first = &json["suites"][0]["tests"][1];
    assert_eq!(first["name"], "others-match");
    assert_eq!(first["differences"][0]["subscription"], "audit");
    let script = "
import sys, xml.etree.ElementTree as E
root = E.parse('report.xml').getroot()
print(root.tag, root.get('tests'), root.get('failures'), root.get('errors'))
for suite in root:
    print(suite.tag, suite.get('name'), suite.get('tests'))
    for case in suite:
        print(case.tag, case.get('classname'), case.get('name'), [(one.tag, one.get('message')) for one in case], float(case.get('time')) >= 0)
print(root[0][1][0].text)
";
    let python = Command::new("python3")
        .args(["-c", script])
        .current_dir(folder.path())
        .output()
        .expect("python");
    assert!(
        python.status.success(),
        "{}",
        String::from_utf8_lossy(&python.stderr)
    );
    insta::assert_snapshot!(said(&python), @r#"
    testsuites 5 4 1
    testsuite hookbridge.yaml 5
    testcase hookbridge.yaml another-body [('failure', 'crm: method, and 10 more')] True
    testcase hookbridge.yaml others-match [('failure', 'audit: url, and 2 more')] True
    testcase hookbridge.yaml nothing-fails [('failure', 'audit: error')] True
    testcase hookbridge.yaml something-else-fails [('failure', 'audit: error')] True
    testcase hookbridge.yaml a-file-is-missing [('error', '`body_file` no-such.json cannot be read: No such file or directory (os error 2)')] True

          audit: url
            - https://audit.example.com/***/8?***&a=b&token=***
            + https://audit.example.com/***/%3C7%3E?***&a=b&token=***
          audit: signature
            - valid
            + none: `none` proves nothing
          crm: is expected, and does not match
    "#);
}

#[test]
fn tests_that_are_wrong_are_problems_at_their_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let wrong = r#"
tests:
  one:
    message: { source: ship, topic: orders.created }
    expect: { crn: {}, sms: { signature: good, error: render_failed, body: x } }
  two:
    message: { topic: payments, body: a, body_file: b, tipe: x }
    at: noon
    expect: [audit, books]
  three: { message: {}, expect: { audit: { headers: { "a b": c }, error: { text: x } } } }
"#;
    let output = hookbridge(folder.path(), wrong, &[]);
    assert_eq!(output.status.code(), Some(78));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let told: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("error:") || line.contains("--> "))
        .map(|line| line.trim_start().trim_start_matches("--> hookbridge.yaml:"))
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    error: there is no source `ship`
    32:24
    error: there is no subscription `crn`
    33:15
    error: `good` is not a value of `signature`
    33:42
    error: with an `error` there is no `body`: nothing is sent
    33:48
    error: with an `error` there is no `signature`: nothing is sent
    33:48
    error: the source `shop` does not take `payments`
    35:23
    error: `body` and `body_file` are both given
    35:42
    error: unknown key `tipe` in `message`
    35:56
    error: `noon` is not a time
    36:9
    error: there is no subscription `books`
    37:21
    error: `topic` is missing
    38:12
    error: `a b` cannot be the name of a header
    38:55
    error: `reason` is missing
    38:67
    error: with an `error` there is no `headers`: nothing is sent
    38:67
    ");
    let other = folder.path().join("more.yaml");
    std::fs::write(
        &other,
        "tests: { one: { message: { topic: notes }, expect: [crn] } }",
    )
    .unwrap();
    let output = hookbridge(folder.path(), "", &["--tests", "more.yaml"]);
    assert_eq!(output.status.code(), Some(78));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        stderr.contains("there is no subscription `crn`"),
        "{stderr}"
    );
    assert!(stderr.contains("more.yaml:1:"), "{stderr}");
    std::fs::write(
        &other,
        "tests: { one: { message: { topic: notes }, expect: {} } }",
    )
    .unwrap();
    let output = hookbridge(
        folder.path(),
        PASSING,
        &["--tests", "more.yaml", "--filter", "one"],
    );
    insta::assert_snapshot!(said(&output), @r"
    hookbridge.yaml:
    ok    one-without-an-id
    ok    a-small-one
    more.yaml:
    ok    one
    3 tests: 3 passed, 0 failed
    ");
}

#[test]
fn what_the_documentation_shows_passes() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/testing.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let config = crate::docs_blocks::blocks(&page, "yaml")[0];
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("hookbridge.yaml"), config).expect("written");
    let run = |large: &str| {
        let path = folder.path().join("hookbridge.yaml");
        std::fs::write(&path, config.replacen("total: 150", large, 1)).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
            .args(["test", "--config"])
            .arg(path)
            .env("CRM_SECRET", SECRET)
            .output();
        said(&output.expect("it runs"))
    };
    let passed = run("total: 150");
    assert!(
        passed.ends_with("2 tests: 2 passed, 0 failed\n"),
        "{passed}"
    );
    let failed = run("total: 120");
    let shown = page.split("```text\n").nth(1).expect("a screen");
    let shown = shown.split("```").next().expect("its end");
    assert!(failed.starts_with(shown), "{failed}");
}

#[test]
fn the_tests_of_the_full_example_pass() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    let key = "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    write("secrets/rabbit", "p");
    write("secrets/warehouse", key);
    write(
        "expected/order.json",
        r#"{"order": {"id": 7}, "total": 150}"#,
    );
    write("samples/payment.json", "{}");
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/full.yaml");
    let full = std::fs::read_to_string(full).expect("the example");
    write("hookbridge.yaml", &full);
    let names = full.split("${env:").skip(1);
    let names = names.filter_map(|rest| rest.split(['}', ':']).next());
    let value = |name: &str| match name {
        "STORE_KEY" => "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        name if name.contains("SECRET") => SECRET,
        _ => "0123456789abcdef",
    };
    let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .arg("test")
        .current_dir(folder.path())
        .envs(names.map(|name| (name, value(name))))
        .env_remove("HOOKBRIDGE_CONFIG")
        .output()
        .expect("it runs");
    let said = said(&output);
    assert!(
        said.ends_with("3 tests: 3 passed, 0 failed\n"),
        "{output:?}"
    );
}

/// The bytes and the signature that a test expects are those of a bridge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_sends_what_the_test_says() {
    let receiver = Receiver::accepting().await;
    let config = format!(
        "data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ shop: {{ broker: here, topics: ['#'] }} }}
subscriptions:
  crm: {{ topics: ['orders.*'], endpoint: {{ url: '{}', secret: '{SECRET}', format: {{ xml: {{ root: order }} }}, headers: {{ x-a: b }} }} }}
",
        receiver.url("/in")
    );
    let bridge = Bridge::start(&config).await.ready().await;
    let url = format!("http://{}/v1/topics/orders.made/events", bridge.admin);
    let request = reqwest::Client::new()
        .post(url)
        .header("hookbridge-id", "evt_1");
    let answer = request.body(r#"{"id":7}"#).send().await.expect("an answer");
    assert_eq!(answer.status(), 202);
    let got = receiver
        .wait_for(1, Duration::from_secs(20))
        .await
        .remove(0);
    let header = |name: &str| got.headers[name].to_str().expect("text").to_owned();
    let at = jiff::Timestamp::from_second(header("webhook-timestamp").parse().expect("seconds"));
    let mut headers = String::new();
    for name in [
        "webhook-signature",
        "webhook-timestamp",
        "content-type",
        "user-agent",
        "x-a",
    ] {
        headers.push_str(&format!("{name}: {:?}, ", header(name)));
    }
    let body = String::from_utf8_lossy(&got.body).into_owned();
    let tests = format!(
        "tests: {{ same: {{ message: {{ topic: orders.made, id: evt_1, body: '{{\"id\":7}}' }}, at: {}, expect: {{ crm: {{ url: '{}', headers: {{ {headers} }}, body: {body:?} }} }} }} }}\n",
        at.expect("a time"),
        receiver.url("/in"),
    );
    bridge.write_config(&(config + &tests));
    let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(["test", "--config"])
        .arg(bridge.config_path())
        .output()
        .expect("it runs");
    assert_eq!(
        said(&output),
        "ok    same\n1 test: 1 passed, 0 failed\n",
        "{output:?}"
    );
}

#[test]
fn a_contract_that_is_broken_can_be_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = r##"
brokers: { here: { embedded: {} } }
sources: { shop: { broker: here, topics: ["#"], max_body: 30 } }
subscriptions:
  crm:
    topics: ["#"]
    schema: { properties: { total: { minimum: 0 } } }
    endpoint: { url: "https://crm.example.com/", signature: none }
tests:
  it-goes:
    message: { topic: t, body: { total: 1 } }
    expect: [crm]
  less-than-nothing:
    message: { topic: t, body: { total: -1 } }
    expect: { crm: { error: { reason: invalid_payload, text: "`/total`" } } }
  too-long:
    message: { topic: t, body: { total: 1, more: "0123456789012345678901234567890" } }
    expect: { crm: { error: { reason: invalid_payload, text: 30 are allowed } } }
"##;
    std::fs::write(folder.path().join("hookbridge.yaml"), config).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(["test", "--config", "hookbridge.yaml"])
        .current_dir(folder.path())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}
