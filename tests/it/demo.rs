//! `hookbridge demo`, as the README's first command: it ends by itself, says what happened, and
//! leaves nothing behind.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::eventually;

/// The demo with a folder of its own for what it makes, and settings around it that it must not
/// fall for.
fn demo(temp: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .arg("demo")
        .env("TMPDIR", temp)
        .env("HOOKBRIDGE_CONFIG", "/nowhere/hookbridge.yaml")
        .env("HOOKBRIDGE_INSTANCE", "not a name")
        .env("HOOKBRIDGE_LOG", "off")
        .env("HOOKBRIDGE_TOKEN", "t")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder)
        .expect("a folder")
        .next()
        .is_none()
}

/// Times, ports and process numbers differ from run to run.
fn masked(text: &str) -> String {
    let numbers = [
        (r"(?m)^ *[0-9]+\.[0-9] s", "  T s"),
        (r"process [0-9]+", "process P"),
        (r"127\.0\.0\.1:[0-9]+", "127.0.0.1:PORT"),
    ];
    let masked = numbers.iter().fold(text.to_owned(), |text, (from, to)| {
        let from = regex::Regex::new(from).expect("a pattern");
        from.replace_all(&text, *to).into_owned()
    });
    masked.trim().to_owned()
}

#[test]
fn the_demo_ends_well_within_twenty_seconds() {
    let temp = tempfile::tempdir().expect("a folder");
    let began = Instant::now();
    let output = demo(temp.path()).wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}\n{complaints}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(complaints, "");
    assert!(is_empty(temp.path()), "something is left behind");
    insta::assert_snapshot!(masked(&said), @r#"
A bridge with a broker inside (process P), a receiver on 127.0.0.1:PORT, both gone at the end.

  T s  1. the bridge starts
  T s  2. its broker is ready
  T s  3. three events are published, and the warehouse has taken them
  T s  4. the crm has refused order-1001 twice and taken it the third time
  T s  5. billing is dead: order-1002 was given up after two attempts, and is a dead letter
  T s  6. billing is healed; its letter is sent again
  T s  7. billing has taken it under the same webhook-id; no dead letter is left
  T s  8. every request was verified with its endpoint's secret, and none came twice

EVENT       SUBSCRIPTION  ATTEMPTS  ANSWERS      OUTCOME                               VERIFIED
order-1001  crm           3         503 503 204  delivered after retries               3 of 3
order-1001  warehouse     1         204          delivered                             1 of 1
order-1002  billing       3         503 503 204  dead-lettered, sent again, delivered  3 of 3
order-1002  warehouse     1         204          delivered                             1 of 1
order-1003  warehouse     1         204          delivered                             1 of 1

9 requests, all as they should be.
"#);
}

#[tokio::test]
async fn ctrl_c_ends_it_at_once_and_all_of_it() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut demo = demo(temp.path());
    let mut lines = BufReader::new(demo.stdout.take().expect("piped"));
    let mut first = String::new();
    lines.read_line(&mut first).expect("it says something");
    let process = first.split("(process ").nth(1).expect("its process");
    let process: u32 = process
        .split(')')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number");
    let proc = format!("/proc/{process}");
    assert!(Path::new(&proc).exists(), "{first}");
    let asked = Instant::now();
    let kill = Command::new("kill")
        .args(["-INT", &demo.id().to_string()])
        .status();
    assert!(kill.expect("kill runs").success());
    let status = eventually("it ends", Duration::from_secs(5), async || {
        demo.try_wait().expect("a child of ours")
    })
    .await;
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("text");
    assert_eq!(status.code(), Some(130), "{first}{rest}");
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert!(!Path::new(&proc).exists(), "the bridge runs on");
    assert!(is_empty(temp.path()), "its folder is there");
}

#[test]
fn without_room_for_its_files_it_says_so() {
    let output = demo(Path::new("/nowhere"))
        .wait_with_output()
        .expect("it ends");
    assert_eq!(output.status.code(), Some(74));
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr), @r#"
error: no folder in /nowhere: No such file or directory (os error 2)
"#);
}
