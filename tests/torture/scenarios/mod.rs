//! Every scenario by its number in docs/reliability.md.

mod bridges;
mod brokers;
mod hosts;
mod large;
mod many;
mod receivers;

use std::pin::Pin;

use crate::judge::Report;
use crate::world::{Kind, Setting};

use Kind::{Embedded, Kafka, RabbitMq};

/// One scenario, and where it applies.
pub struct Scenario {
    pub name: &'static str,
    on: &'static [Kind],
    /// On which brokers it is part of the quick subset that scripts/test runs.
    bounded: &'static [Kind],
    pub run: fn(Setting) -> Pin<Box<dyn Future<Output = Report>>>,
}

const EACH: &[Kind] = &[Embedded, RabbitMq, Kafka];
const BOTH: &[Kind] = &[RabbitMq, Kafka];

/// `name, on, bounded => function`.
macro_rules! scenarios {
    ($($name:literal, $on:expr, $bounded:expr => $run:path;)*) => {
        pub const ALL: &[Scenario] = &[$(Scenario {
            name: $name,
            on: $on,
            bounded: $bounded,
            run: |setting| Box::pin($run(setting)),
        }),*];
    };
}

scenarios! {
    "01-broker-kill", BOTH, &[] => brokers::killed;
    "01-broker-restart", BOTH, &[] => brokers::restarted;
    "02-partition", BOTH, &[RabbitMq] => brokers::partitioned;
    "02-bad-network", BOTH, &[] => brokers::bad_network;
    "02-cut-and-reset", BOTH, &[Kafka] => brokers::cut_and_reset;
    "02-long-partition", BOTH, &[] => brokers::partitioned_long;
    "03-half-open", BOTH, &[] => brokers::half_open;
    "04-disk-alarm", &[RabbitMq], &[] => brokers::disk_alarm;
    "04-memory-alarm", &[RabbitMq], &[RabbitMq] => brokers::memory_alarm;
    "05-queue-deleted", &[RabbitMq], &[RabbitMq] => brokers::queue_deleted;
    "07-dead-letters-deleted", &[RabbitMq], &[] => brokers::dead_letters_deleted;
    "08-dead-letters-full", &[RabbitMq], &[RabbitMq] => brokers::dead_letters_full;
    "11-permission-revoked", &[RabbitMq], &[] => brokers::permission_revoked;
    "12-more-instances", BOTH, &[] => bridges::joined_and_left;
    "13-bridge-paused", BOTH, &[] => bridges::paused;
    "13-joins-lost", &[Kafka], &[Kafka] => brokers::joins_lost;
    "14-hundreds-hang", EACH, &[] => many::hundreds_hang;
    "17-broker-paused", BOTH, &[] => brokers::paused;
    "17-producer-full", &[Kafka], &[] => brokers::producer_full;
    "18-stop-while-paused", BOTH, &[] => brokers::paused_at_the_stop;
    "20-hangs", EACH, &[Embedded] => receivers::hangs;
    "20-ten-thousand-drips", &[Embedded], &[] => many::drips;
    "21-endless-body", EACH, &[Kafka] => receivers::endless_body;
    "22-reset", EACH, &[RabbitMq] => receivers::resets;
    "22-bad-network", EACH, &[] => receivers::bad_network;
    "23-floods", EACH, &[Embedded] => receivers::floods;
    "24-gzip-bomb", EACH, &[] => receivers::gzip_bomb;
    "25-redirects", EACH, &[Kafka] => receivers::redirects;
    "26-gone", EACH, &[] => receivers::gone;
    "26-too-many", EACH, &[Embedded] => receivers::too_many;
    "27-tls", EACH, &[RabbitMq] => receivers::tls;
    "31-backlog", EACH, &[] => receivers::backlog;
    "31-hundred-thousand", EACH, &[] => many::hundred_thousand;
    "32-bridge-kill", EACH, EACH => bridges::killed;
    "33-disk-full", &[Embedded], &[] => hosts::disk_full;
    "36-clock-jumps", EACH, &[] => hosts::clock_jumps;
    "37-large-messages", EACH, &[] => large::messages;
    "38-sigterm", EACH, &[Kafka] => bridges::terminated;
    "41-secret-rotated", EACH, &[] => bridges::secret_rotated;
    "43-rolling-upgrade", BOTH, &[] => bridges::upgraded;
    "44-two-instances", &[Embedded], &[] => bridges::same_data;
    "46-clocks-apart", BOTH, &[] => hosts::clocks_apart;
    "48-leaders-move", &[Kafka], &[Kafka] => brokers::leaders_move;
}

impl Scenario {
    /// Whether it is meant by `wanted` on this broker.
    pub fn runs(&self, kind: Kind, wanted: &str) -> bool {
        match wanted {
            "all" => self.on.contains(&kind),
            "bounded" => self.bounded.contains(&kind),
            name => {
                self.on.contains(&kind)
                    && (self.name == name || self.name.split('-').next() == Some(name))
            }
        }
    }

    /// The brokers it applies to.
    pub fn on(&self) -> String {
        let names: Vec<_> = self.on.iter().map(ToString::to_string).collect();
        names.join(", ")
    }
}
