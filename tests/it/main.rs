//! Integration tests, a module per behaviour, in one binary so that linking stays cheap.

mod admin_api;
mod chaos_broker;
mod chaos_isolation;
mod chaos_kill;
mod config_examples;
mod config_keys;
mod config_problems;
mod contract;
mod deliver_http;
mod deliver_listen;
mod deliver_tls;
mod embedded_broker;
mod embedded_crash;
mod kafka_group;
mod kafka_park;
mod kafka_support;
mod kafka_take;
mod layering;
mod path;
mod store_basics;
mod support;
