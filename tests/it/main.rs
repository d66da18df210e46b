mod config_examples;
mod config_keys;
mod config_problems;
