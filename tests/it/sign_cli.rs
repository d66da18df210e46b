//! `hookbridge sign` and `hookbridge verify`, and `listen` as the receiver of other services'
//! signatures.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const SLACK_BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
const SLACK_SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
const TEXT: &str = "0123456789abcdef";
const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const WHSK: &str = "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

/// Runs the binary with this on its standard input.
fn hookbridge(args: &[&str], secret: &str, body: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(args)
        .env_remove("HOOKBRIDGE_CONFIG")
        .env("WEBHOOK_SECRET", secret)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    // Whoever refuses its arguments does not read.
    let _ = child
        .stdin
        .take()
        .expect("piped")
        .write_all(body.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn slacks_example_is_signed_and_verified() {
    let at = "1531420618";
    let args = [
        "sign",
        "--signature",
        "slack",
        "--id",
        "msg.1",
        "--timestamp",
        at,
    ];
    let signed = hookbridge(&args, SLACK_SECRET, SLACK_BODY);
    insta::assert_snapshot!(said(&signed), @r"
    webhook-id: msg%2E1
    webhook-timestamp: 1531420618
    x-slack-signature: v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503
    x-slack-request-timestamp: 1531420618
    ");
    let mut args = vec!["verify", "--signature", "slack", "--at", at];
    let headers = said(&signed);
    for line in headers.lines() {
        args.extend(["-H", line]);
    }
    let good = hookbridge(&args, SLACK_SECRET, SLACK_BODY);
    assert_eq!((good.status.code(), &*said(&good)), (Some(0), "verified\n"));
    let changed = hookbridge(&args, SLACK_SECRET, &SLACK_BODY.replace("foobar", "foobaz"));
    assert_eq!(changed.status.code(), Some(1));
    assert_eq!(said(&changed), "not verified: no signature matches\n");
    args[4] = "1531421000";
    let late = hookbridge(&args, SLACK_SECRET, SLACK_BODY);
    assert_eq!(said(&late), "not verified: the timestamp is 382 s old\n");
}

#[test]
fn what_is_signed_is_verified_for_every_scheme() {
    for name in hookbridge::subscription::Scheme::NAMES {
        let (signature, secret) = match name {
            "standard" | "svix" => (name, WHSEC),
            "standard-ed25519" => (name, WHSK),
            "hmac" => (
                "{ hmac: { header: x-sig, signed: '{method} {url} {body}' } }",
                TEXT,
            ),
            _ => (name, TEXT),
        };
        let form = "content-type: application/x-www-form-urlencoded";
        let common = [
            "--signature",
            signature,
            "--url",
            "https://H.example.com",
            "-H",
            form,
        ];
        let signed = hookbridge(&[&["sign", "--json"], &common[..]].concat(), secret, "a=b");
        let signed: serde_json::Value = serde_json::from_slice(&signed.stdout).expect(name);
        let headers: Vec<String> = signed["headers"]
            .as_object()
            .expect("headers")
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.as_str().expect("text")))
            .collect();
        let mut args = [&["verify"], &common[..4]].concat();
        for header in &headers {
            args.extend(["-H", header]);
        }
        let verified = hookbridge(&args, secret, "a=b");
        let unsigned = ["papertrail", "zapier", "zoho", "none"].contains(&name);
        assert_eq!(
            verified.status.success(),
            !unsigned,
            "{name}: {}",
            said(&verified)
        );
        let other = format!("{}x", said(&verified));
        assert!(other.contains("verified"), "{other}");
    }
}

#[test]
fn an_endpoint_of_the_config_says_it_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(folder.path().join("body"), "{}").unwrap();
    std::fs::write(folder.path().join("secret"), format!("{TEXT}\n")).unwrap();
    let config = "brokers: { here: { embedded: {} } }
endpoints: { sms: { url: 'https://h.example.com/in', signature: twilio, secret: '${file:secret}' } }
";
    std::fs::write(folder.path().join("c.yaml"), config).unwrap();
    let sign = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
            .args(["sign", "--json", "--id", "m", "--timestamp", "0"])
            .args(args)
            .arg(Path::new(&path("body")))
            .env_remove("WEBHOOK_SECRET")
            .output()
            .unwrap();
        (output.status.code(), said(&output))
    };
    let by_config = sign(&["--config", &path("c.yaml"), "--endpoint", "sms"]);
    let by_hand = [
        "--signature",
        "twilio",
        "--secret-file",
        &path("secret"),
        "--url",
        "https://h.example.com/in",
    ];
    assert_eq!(by_config, sign(&by_hand));
    assert!(
        by_config.1.contains("/in?bodySHA256=44136fa"),
        "{by_config:?}"
    );
    assert_eq!(sign(&["--signature", "twilio"]).0, Some(64));
    assert_eq!(
        sign(&["--config", &path("c.yaml"), "--endpoint", "no"]).0,
        Some(64)
    );
    assert_eq!(sign(&["--signature", "twillio"]).0, Some(64));
}

#[test]
fn the_url_of_an_adapter_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    let text = "brokers: { here: { embedded: {} } }
endpoints: { chat: { url: 'https://hooks.slack.com/services/T0/B0/confidential', format: slack } }
";
    std::fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let args = ["sign", "--json", "--config", &config, "--endpoint", "chat"];
    let refused = hookbridge(&args, TEXT, "{}");
    assert_eq!(refused.status.code(), Some(64));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("give --url"), "{why}");
    assert!(!format!("{why}{}", said(&refused)).contains("confidential"));
}
