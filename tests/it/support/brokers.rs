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
    in_cluster: bool,
    /// The other nodes of its cluster, where this is the first.
    others: Vec<Own>,
}

impl Own {
    pub fn rabbitmq() -> Self {
        Self::up("rabbitmq")
    }

    pub fn kafka() -> Self {
        Self::up("kafka")
    }

    /// A cluster of so many nodes.
    #[allow(dead_code, reason = "for the torture harness")]
    pub fn kafka_cluster(count: usize) -> Self {
        let node = |name| {
            let mut node = Self::named("kafka", name);
            node.in_cluster = true;
            node
        };
        let mut own = node(super::unique("own"));
        let others = (2..=count).map(|number| node(format!("{}-{number}", own.name)));
        own.others = others.collect();
        let nodes = count.to_string();
        own.run(&["up", "kafka", "--name", &own.name, "--nodes", &nodes]);
        own
    }

    fn up(kind: &'static str) -> Self {
        let own = Self::named(kind, super::unique("own"));
        own.call("up");
        own
    }

    fn named(kind: &'static str, name: String) -> Self {
        Self {
            kind,
            name,
            in_cluster: false,
            others: Vec::new(),
        }
    }

    /// A node by its number, from 1 on.
    #[allow(dead_code, reason = "for the torture harness")]
    pub fn node(&self, number: usize) -> &Self {
        match number {
            1 => self,
            _ => &self.others[number - 2],
        }
    }

    /// The address, as the variables of the shared brokers have it; of a cluster, those of all its nodes,
    /// with commas.
    pub fn address(&self) -> String {
        let others = self.others.iter().map(Self::address);
        let all: Vec<_> = std::iter::once(self.address_of_one())
            .chain(others)
            .collect();
        all.join(",")
    }

    fn address_of_one(&self) -> String {
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
        // A node that stops in good order waits long for others that are gone.
        let verbs: &[_] = match self.in_cluster {
            true => &["kill9", "down"],
            false => &["down"],
        };
        for verb in verbs {
            // A failure here must not hide the test's own.
            let _ = Command::new(script())
                .args([verb, self.kind, "--name", &self.name])
                .output();
        }
    }
}
