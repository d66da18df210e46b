//! deliver/mod.
pub mod lane;
