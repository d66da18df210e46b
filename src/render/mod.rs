//! render/mod.
