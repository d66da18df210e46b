//! Integration tests, a module per behaviour, in one binary so that linking stays cheap.

mod admin_api;
mod chaos_broker;
mod chaos_isolation;
mod chaos_kill;
mod chaos_parking;
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
mod life_letters;
mod life_subscription;
mod path;
mod run_process;
mod run_rate;
mod store_basics;
mod support;
