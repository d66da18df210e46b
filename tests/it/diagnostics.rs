//! What people read when something is wrong, word for word: command lines, configs that are not
//! there, brokers and bridges that are not there, folders and files that cannot be used. What can
//! be wrong inside a config is in `config_problems`.
//!
//! Each has to say what is wrong, where, and what to do; and has the exit code of its kind.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::bridge::Bridge;

const EMBEDDED: &str = "\
data_dir: data
admin: { listen: '127.0.0.1:1' }
delivery: { allow_http: true, allow_networks: [127.0.0.0/8] }
brokers: { here: { embedded: {} } }
sources: { local: { broker: here, topics: ['#'] } }
subscriptions: { crm: { topics: ['#'], endpoint: { url: 'http://127.0.0.1:1/', signature: none } } }
";

/// A folder with `hookbridge.yaml`.
fn folder(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("hookbridge.yaml"), config).expect("written");
    folder
}

fn run(folder: &Path, arguments: &str, env: &[(&str, &str)]) -> String {
    // None of these should run for long; one that does shows as exit code 124.
    let output = Command::new("timeout")
        .args(["20", env!("CARGO_BIN_EXE_hookbridge")])
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        // Of a bridge that has started to run only its last words.
        let lines = text.lines().filter(|line| !line.starts_with("20"));
        let text = lines.collect::<Vec<_>>().join("\n");
        text.replace(&folder.display().to_string(), "DIR")
    };
    let code = output.status.code().expect("it exits by itself");
    let parts = [
        text(&output.stdout),
        text(&output.stderr),
        format!("exit {code}"),
    ];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("\n")
}

/// What a command says in a folder with the embedded broker's config.
fn said(arguments: &str) -> String {
    run(folder(EMBEDDED).path(), arguments, &[])
}

/// A port that was free a moment ago.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

#[test]
fn wrong_command_lines() {
    insta::assert_snapshot!(said("validte"), @r#"
error: unrecognized subcommand 'validte'

  tip: some similar subcommands exist: 'listen', 'validate'

Usage: hookbridge <COMMAND>

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(said("run --confg x"), @r#"
error: unexpected argument '--confg' found

  tip: a similar argument exists: '--config'

Usage: hookbridge run --config <CONFIG>

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(said("send orders"), @r#"
error: the following required arguments were not provided:
  <--data <TEXT>|--file <FILE>|->

Usage: hookbridge send <--data <TEXT>|--file <FILE>|-> <TOPIC>

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(said("send orders --data x --header novalue"), @r#"
error: invalid value 'novalue' for '--header <NAME=VALUE>': `novalue` is not NAME=VALUE

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(said("listen --answer 999"), @r#"
error: invalid value '999' for '--answer <STATUSES>': `999` is not a status such as `200` or `500x2`

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(said("listen --secret short"), @r#"
error: cannot use `--secret`: the secret does not begin with `whsec_`
exit 64
"#);
    insta::assert_snapshot!(said("validate --format xml"), @r#"
error: invalid value 'xml' for '--format <FORMAT>'
  [possible values: human, json, github]

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(said("validate --format github --json"), @r#"
error: the argument '--format <FORMAT>' cannot be used with '--json'

Usage: hookbridge validate --format <FORMAT>

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(said("init --broker redis"), @r#"
error: invalid value 'redis' for '--broker <BROKER>'
  [possible values: rabbitmq, kafka, embedded]

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(said("completions csh"), @r#"
error: invalid value 'csh' for '<SHELL>'
  [possible values: bash, elvish, fish, powershell, zsh]

  tip: a similar value exists: 'zsh'

For more information, try '--help'.
exit 64
"#);
    insta::assert_snapshot!(run(folder(EMBEDDED).path(), "run --config hookbridge.yaml", &[("HOOKBRIDGE_LOG", "a=b=c")]), @r#"
error: bad log filter `a=b=c` (HOOKBRIDGE_LOG): error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
exit 64
"#);
}

#[test]
fn configs_that_cannot_be_read() {
    insta::assert_snapshot!(said("validate --config nowhere.yaml"), @r#"
error: there is no such file
--> nowhere.yaml:1:1
 = help: name a config file with `--config`; `hookbridge init` writes one to start from

1 problem in nowhere.yaml
exit 78
"#);
    insta::assert_snapshot!(said("run --config nowhere.yaml"), @r#"
error: there is no such file
--> nowhere.yaml:1:1
 = help: name a config file with `--config`; `hookbridge init` writes one to start from

1 problem in nowhere.yaml
exit 78
"#);
    insta::assert_snapshot!(said("validate --config ."), @r#"
error: the file cannot be read: Is a directory (os error 21)
--> .:1:1
 = help: name a config file with `--config`; `hookbridge init` writes one to start from

1 problem in .
exit 78
"#);
    let folder = folder(EMBEDDED);
    std::fs::write(folder.path().join("latin1.yaml"), b"# caf\xe9\n").expect("written");
    insta::assert_snapshot!(run(folder.path(), "echo --config latin1.yaml", &[]), @r#"
error: the file is not UTF-8 (at byte 5)
--> latin1.yaml:1:1
 = help: save it as UTF-8

1 problem in latin1.yaml
exit 78
"#);
    std::fs::write(folder.path().join("empty.yaml"), "").expect("written");
    insta::assert_snapshot!(run(folder.path(), "validate --config empty.yaml", &[]), @r#"
error: `brokers` is missing
--> empty.yaml:1:1

1 problem in empty.yaml
exit 78
"#);
    insta::assert_snapshot!(run(folder.path(), "validate --config hookbridge.yaml", &[("HOOKBRIDGE_INSTANCE", "a b")]), @r#"
error: the value of `HOOKBRIDGE_INSTANCE` cannot be an instance's name
 --> hookbridge.yaml:1:1
  |
1 | data_dir: data
  | ^
  |
  = help: `auto`, or up to 200 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`

1 problem in hookbridge.yaml
exit 78
"#);
}

#[test]
fn an_admin_address_for_everybody_needs_tokens() {
    let folder = folder(&EMBEDDED.replace("127.0.0.1:1'", "0.0.0.0:8400'"));
    insta::assert_snapshot!(run(folder.path(), "run --config hookbridge.yaml", &[]), @r#"
error: the admin API may not be open to other machines without `tokens`
 --> hookbridge.yaml:2:18
  |
2 | admin: { listen: '0.0.0.0:8400' }
  |                  ^^^^^^^^^^^^^^
  |
  = help: add `tokens: [{ name: ..., token: ..., scopes: [read] }]`, or listen on 127.0.0.1

1 problem in hookbridge.yaml
exit 78
"#);
}

#[test]
fn files_that_are_in_the_way() {
    insta::assert_snapshot!(said("init"), @r#"
error: hookbridge.yaml is there already, and is left as it is: name another file
exit 74
"#);
    insta::assert_snapshot!(said("init nowhere/hookbridge.yaml"), @r#"
error: nowhere/hookbridge.yaml cannot be written: No such file or directory (os error 2)
exit 74
"#);
    insta::assert_snapshot!(said("send orders --config hookbridge.yaml --file nowhere.json"), @r#"
error: nowhere.json cannot be read: No such file or directory (os error 2)
exit 74
"#);
    insta::assert_snapshot!(said("man --dir hookbridge.yaml"), @r#"
error: the pages cannot be written to hookbridge.yaml: File exists (os error 17)
exit 74
"#);
}

#[test]
fn brokers_that_are_not_meant() {
    let two = EMBEDDED.replace("brokers: {", "brokers: { there: { embedded: {} },");
    let folder = folder(&two);
    let send = |more: &str| {
        let arguments = format!("send orders --config hookbridge.yaml --data x {more}");
        run(folder.path(), &arguments, &[])
    };
    insta::assert_snapshot!(send("--broker ther"), @r#"
error: no broker `ther` in the config: there is `here`, `there`
exit 64
"#);
    insta::assert_snapshot!(send(""), @r#"
error: the config has several brokers: say which with --broker (`here`, `there`)
exit 64
"#);
    insta::assert_snapshot!(said("send orders --config hookbridge.yaml --data x --exchange e"), @r#"
error: the embedded broker has no exchanges: leave out --exchange
exit 64
"#);
}

#[test]
fn nobody_and_somebody_else() {
    insta::assert_snapshot!(said("send orders --config hookbridge.yaml --data x"), @r#"
error: nobody answers on 127.0.0.1:1 (`admin.listen`): start `hookbridge run` with this config
exit 69
"#);
    // A web server that is none of ours.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = other.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in other.incoming().take(2) {
            use std::io::{Read as _, Write as _};
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\nnope",
            );
        }
    });
    let folder = folder(&EMBEDDED.replace("127.0.0.1:1'", &format!("127.0.0.1:{port}'")));
    let said = run(
        folder.path(),
        "send orders --config hookbridge.yaml --data x",
        &[],
    );
    insta::assert_snapshot!(said.replace(&port.to_string(), "PORT"), @r#"
error: 127.0.0.1:PORT (`admin.listen`) answers, but not as hookbridge does: 404 Not Found
exit 69
"#);
}

#[test]
fn a_rabbitmq_that_is_away() {
    let port = closed_port();
    let folder = folder(&format!(
        "group: g\nbrokers: {{ shop: {{ rabbitmq: {{ url: 'amqp://a:hunter2@127.0.0.1:{port}' }} }} }}\n"
    ));
    let said = run(
        folder.path(),
        "send orders --config hookbridge.yaml --data x",
        &[],
    );
    insta::assert_snapshot!(said.replace(&port.to_string(), "PORT"), @r#"
error: broker `shop` has not taken it: broker `shop` is not available: 127.0.0.1:PORT cannot be connected: IO error: Connection refused (os error 111): Connection refused (os error 111)
exit 69
"#);
}

#[test]
fn ports_that_are_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let masked = |said: String| said.replace(&port.to_string(), "PORT");
    insta::assert_snapshot!(masked(said(&format!("listen --listen 127.0.0.1:{port}"))), @r#"
error: cannot listen on 127.0.0.1:PORT (choose another address with --listen): Address already in use (os error 98)
exit 74
"#);
    let folder = folder(&EMBEDDED.replace("127.0.0.1:1'", &format!("127.0.0.1:{port}'")));
    insta::assert_snapshot!(masked(run(folder.path(), "run --config hookbridge.yaml", &[])), @r#"
error: the admin address 127.0.0.1:PORT (`admin.listen`) cannot be listened on: Address already in use (os error 98)
exit 74
"#);
}

#[test]
fn data_that_cannot_be_used() {
    let config = EMBEDDED.replace("127.0.0.1:1'", "127.0.0.1:0'");
    let start = |folder: &Path| run(folder, "run --config hookbridge.yaml", &[]);
    let file = folder(&config);
    std::fs::write(file.path().join("data"), "a file").expect("written");
    insta::assert_snapshot!(start(file.path()), @r#"
error: data (`data_dir`) cannot be made: File exists (os error 17)
exit 74
"#);

    let broken_store = folder(&config);
    std::fs::create_dir_all(broken_store.path().join("data/store")).expect("made");
    std::fs::write(broken_store.path().join("data/store/db"), [7; 4096]).expect("written");
    std::fs::write(broken_store.path().join("data/store/conf"), "nonsense\n").expect("written");
    insta::assert_snapshot!(start(broken_store.path()), @r#"
error: the store in data/store is damaged (Read corrupted data at file offset None backtrace ()); it was not emptied or rebuilt. Put a backup of that folder in its place, or move it away: a new one is then made from the config, without subscriptions made over the API and without what was paused or disabled
exit 70
"#);

    let broken_broker = folder(&config);
    std::fs::create_dir(broken_broker.path().join("data")).expect("made");
    std::fs::write(
        broken_broker.path().join("data/embedded-here.redb"),
        [7; 4096],
    )
    .expect("written");
    insta::assert_snapshot!(start(broken_broker.path()), @r#"
error: broker `here`: data/embedded-here.redb is damaged (Not a redb database: magic number mismatch) and was left as it is: restore it from a backup, or move it away to start with an empty broker
exit 70
"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_another_process_has() {
    let config = EMBEDDED
        .replace("'127.0.0.1:1'", "'{admin}'")
        .replace("data_dir: data", "data_dir: '{data}'");
    let bridge = Bridge::start(&config).await;
    let data = bridge.data_dir().display().to_string();
    let second = config
        .replace("{admin}", "127.0.0.1:0")
        .replace("{data}", &data);
    let folder = folder(&second);
    let said = run(folder.path(), "run --config hookbridge.yaml", &[]);
    insta::assert_snapshot!(said.replace(&data, "DATA"), @r#"
error: DATA is in use by another process; stop it, or give this one a `data_dir` of its own
exit 70
"#);
}
