//! Real brokers: the shared ones that `make test` has started, and own ones that a test may kill.

use std::process::Command;

/// A variable that `scripts/brokers env` prints.
pub fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `scripts/brokers up` and `eval \"$(scripts/brokers env)\"`, or `make test`")
    })
}

/// Where it is when nobody says otherwise, since a broker of one's own needs none that is up.
fn script() -> String {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/brokers");
    std::env::var("HOOKBRIDGE_TEST_BROKERS").unwrap_or_else(|_| here.to_owned())
}

/// A broker of a test's own, taken down with it.
pub struct Own {
    kind: &'static str,
    name: String,
}

impl Own {
    pub fn rabbitmq() -> Self {
        Self::up("rabbitmq")
    }

    pub fn kafka() -> Self {
        Self::up("kafka")
    }

    fn up(kind: &'static str) -> Self {
        let own = Self {
            kind,
            name: super::unique("own"),
        };
        own.call("up");
        own
    }

    /// The address, as the variables of the shared brokers have it.
    pub fn address(&self) -> String {
        let printed = self.call("env");
        let variable = if self.kind == "kafka" {
            "HOOKBRIDGE_TEST_KAFKA="
        } else {
            "HOOKBRIDGE_TEST_AMQP="
        };
        let line = printed.lines().find_map(|line| line.split_once(variable));
        line.expect("env prints the address")
            .1
            .trim_matches('\'')
            .to_owned()
    }

    /// The broker's own tool (`rabbitmqctl`).
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut all = vec!["ctl", self.kind, "--name", &self.name, "--"];
        all.extend(arguments);
        self.run(&all)
    }

    pub fn kill9(&self) {
        self.call("kill9");
    }

    /// Starts it again on its data and ports.
    pub fn start_again(&self) {
        self.call("up");
    }

    /// A command of `scripts/brokers` to this instance: `pause`, `resume`, `restart`.
    pub fn call(&self, verb: &str) -> String {
        self.run(&[verb, self.kind, "--name", &self.name])
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(script())
            .args(arguments)
            .output()
            .expect("scripts/brokers runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "scripts/brokers {arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // A failure here must not hide the test's own.
        let _ = Command::new(script())
            .args(["down", self.kind, "--name", &self.name])
            .output();
    }
}
