"""The benchmark of the whole bridge: `benches/run`. Only the standard library."""
