//! route/mod.
