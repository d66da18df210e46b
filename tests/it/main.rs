//! Integration tests, a module per behaviour, in one binary so that linking stays cheap.

mod deliver_http;
mod admin_api;
mod embedded_broker;
mod config_examples;
mod config_problems;
mod deliver_listen;
mod deliver_tls;
mod contract;
mod path;
mod support;
//! Integration tests: one binary, a module per behaviour.

mod layering;
mod store_basics;
mod kafka_group;
mod kafka_park;
mod kafka_support;
mod kafka_take;

fn main() {}
