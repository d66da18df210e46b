"""Routing (`benches/index.rs`): `Routes` built directly, and one load through the store."""

import json
import subprocess

from ..machine import Failed
from . import Variant, Workload


def index(bench):
    """Measured once for all variants: it takes its medians itself."""
    if bench.index is None:
        most, stored = bench.scaled(1_000_000), bench.scaled(100_000)
        command = ["taskset", "-c", bench.cores.ours, bench.programs["index"], f"most={most}", f"stored={stored}", "--bench"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise Failed("the index benchmark has failed")
        bench.index = json.loads(done.stdout)
    return bench.index


def variants(bench):
    found = []
    for count in (1, 1_000, 100_000, 1_000_000):
        for matches in (1, 100):
            for patterns in ("exact", "wildcard"):
                if matches > count or count > max(bench.scaled(1_000_000), 1_000):
                    continue

                def row(key=(count, patterns, matches)):
                    rows = {(r["subscriptions"], r["patterns"], r["matches"]): r for r in index(bench)["rows"]}
                    return {name: value for name, value in rows[key].items() if name.endswith(("_ms", "_bytes")) or name.startswith("ns_")}

                of = {"indexed": count} if (patterns, matches) == ("exact", 1) else {}
                found.append(Variant(f"{count:,} {patterns}, {matches} match{'es' * (matches > 1)}", row, of=of))
    found.append(Variant("through the store", lambda: {k: v for k, v in index(bench)["stored"].items() if k != "error"}))
    return found


WORKLOADS = [Workload("index", "Index: which subscriptions an event is for", variants, rounds=1, brokers=(),
                      note="The bytes are of one subscription with an endpoint of its own, and of its place in the index. "
                      "A reload compiles and builds everything anew.")]
