//! The command line of the harness.

use std::time::Duration;

use crate::world::Kind;

pub const USAGE: &str =
    "usage: torture [--broker embedded|rabbitmq|kafka|all] [--scenario NAME|all|bounded]
               [--seed N] [--seconds N] [--full]
       torture --soak [--seed N] [--seconds N]

A scenario may be named by its number. --seconds is how long events are published while the
faults are on (default 6). --full is for the longest and the largest: three minutes instead of one,
a million instead of a hundred thousand. A soak has RabbitMQ and Kafka in one bridge, a fault every
few seconds, and lasts 1800 s unless told otherwise.";

/// What was asked for.
pub struct Args {
    pub brokers: Vec<Kind>,
    pub scenario: String,
    pub seed: u64,
    pub seconds: Duration,
    pub full: bool,
    pub soak: bool,
}

impl Args {
    /// Errors say which word was not understood.
    pub fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            brokers: Kind::ALL.to_vec(),
            scenario: "all".to_owned(),
            seed: 1,
            seconds: Duration::from_secs(6),
            full: false,
            soak: false,
        };
        let mut seconds = None;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--broker" => {
                    let name = value()?;
                    if name != "all" {
                        let kind = Kind::ALL.into_iter().find(|k| k.to_string() == name);
                        args.brokers = vec![kind.ok_or(format!("no broker '{name}'"))?];
                    }
                }
                "--scenario" => args.scenario = value()?,
                "--seed" => args.seed = number(&value()?)?,
                "--seconds" => seconds = Some(number(&value()?)?),
                "--full" => args.full = true,
                "--soak" => args.soak = true,
                _ => return Err(format!("'{word}' is not understood")),
            }
        }
        if let Some(seconds) = seconds {
            let most = if args.soak { 3_000 } else { 600 };
            args.seconds = Duration::from_secs(seconds.clamp(2, most));
        } else if args.soak {
            args.seconds = Duration::from_secs(1_800);
        }
        Ok(args)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}
