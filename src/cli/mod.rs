//! The command line.

pub mod listen;
pub mod send;
