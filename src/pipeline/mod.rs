//! pipeline/mod.
