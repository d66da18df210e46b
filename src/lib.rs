//! hookbridge: events from RabbitMQ, Kafka or an embedded broker become signed webhooks.
//!
//! The modules in reading order, which is the order of an event's life. A module may use those
//! above it; stages never use each other, and only `pipeline` puts them together
//! (`tests/it/layering.rs` holds this). ARCHITECTURE.md tells the same story at more length.

// nouns
pub mod attempt;
pub mod delivery;
pub mod event;
pub mod finding;
pub mod outgoing;
pub mod selection;
pub mod subscription;

// what every stage counts with, whom those that connect believe, where a test has them fail
pub mod failpoint;
pub mod meters;
pub mod spans;
pub mod tls;

// stages
pub mod broker;
pub mod decode;
pub mod deliver;
pub mod journal;
pub mod render;
pub mod route;
pub mod store;
pub mod verdict;

// flow
pub mod pipeline;

// after the fact
pub mod operations;

// edge
pub mod admin;

// assembly
pub mod app;
pub mod config;
pub mod shutdown;
pub mod telemetry;

// the command line
pub mod cli;
