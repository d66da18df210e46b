//! deliver/mod.
