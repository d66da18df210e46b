//! Integration tests: one binary, a module per behaviour.

mod layering;
mod store_basics;
