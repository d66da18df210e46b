//! verdict/mod.
