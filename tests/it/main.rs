mod config_examples;
mod config_problems;
