"""From rounds to medians and ratios, to tables, and to the targets."""

import statistics

# Figures in the order in which they are shown: name, heading, digits, what it is multiplied with.
COLUMNS = (
    ("cpu_us", "CPU us/delivery", 1, 1),
    ("arrived_share", "arrived %", 1, 100),
    ("rate", "per second", 0, 1),
    ("p50_ms", "p50 ms", 2, 1),
    ("calm_p99_ms", "calm p99 ms", 2, 1),
    ("p99_ms", "p99 ms", 2, 1),
    ("p999_ms", "p99.9 ms", 2, 1),
    ("max_ms", "max ms", 1, 1),
    ("caught_up_s", "caught up after s", 2, 1),
    ("asked_share", "asked while down %", 2, 100),
    ("repeated", "sent twice", 0, 1),
    ("parked_share", "parked %", 1, 100),
    ("parking_rate", "parked/s", 0, 1),
    ("ready_s", "ready after s", 1, 1),
    ("ns_per_event", "ns/event", 0, 1),
    ("ns_per_match", "ns/match", 0, 1),
    ("subscription_bytes", "bytes", 0, 1),
    ("index_bytes", "of index", 0, 1),
    ("compile_ms", "compile ms", 0, 1),
    ("build_ms", "build ms", 0, 1),
    ("reload_ms", "reload ms", 0, 1),
    ("write_ms", "write ms", 0, 1),
    ("open_ms", "open ms", 0, 1),
    ("read_ms", "read ms", 0, 1),
    ("peak_mib", "peak MiB", 0, 1),
)
# Figures of which ratios are shown.
COMPARED = {"cpu_us": "CPU", "rate": "rate", "p99_ms": "p99"}


def medians(workload, rows):
    by_name = {row["what"]: row for row in rows}
    for row in rows:
        names = {name for figures in row["rounds"] for name in figures}
        row["median"] = {name: statistics.median(f[name] for f in row["rounds"] if name in f) for name in sorted(names)}
        row["ratios"] = {}
        for kind, floor in row["floors"].items():
            for name in COMPARED:
                # Of the same round: the machine was as busy for both.
                pairs = zip(row["rounds"], by_name[floor]["rounds"]) if floor in by_name else ()
                ratios = [f[name] / g[name] for f, g in pairs if f.get(name) and g.get(name)]
                if ratios:
                    row["ratios"].setdefault(kind, {})[name] = statistics.median(ratios)
    return {"name": workload.name, "title": workload.title, "note": workload.note, "rows": rows}


def table(workload):
    """Markdown, as it stands in the documentation."""
    rows = workload["rows"]
    shown = [c for c in COLUMNS if any(c[0] in row["median"] for row in rows)]
    ratios = []
    for row in rows:
        for kind, figures in row["ratios"].items():
            ratios += [(kind, name) for name in figures if (kind, name) not in ratios]
    if any(name == "p99_ms" for _, name in ratios):
        ratios = [pair for pair in ratios if pair[1] == "p99_ms"]
    else:
        ratios = [pair for pair in ratios if pair[1] == "cpu_us" or pair[0] == "hard-coded"]
    spread = "cpu_us" if any("cpu_us" in row["median"] for row in rows) else None
    if any(name == "p99_ms" for _, name in ratios):
        spread = "p99_ms"
    several = any(len(row["rounds"]) > 1 for row in rows)
    heads = ["what", *(c[1] for c in shown), *(f"{COMPARED[name]} x {kind}" for kind, name in ratios)]
    if spread and several:
        heads.append(f"{COMPARED[spread]} min to max")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = [row["what"] + (" (failed)" if "failed" in row else "")]
        for name, _, digits, factor in shown:
            value = row["median"].get(name)
            cells.append("" if value is None else f"{value * factor:.{digits}f}")
        for kind, name in ratios:
            value = row["ratios"].get(kind, {}).get(name)
            cells.append("" if value is None else f"{value:.2f}")
        if spread and several:
            values = [figures[spread] for figures in row["rounds"] if spread in figures]
            cells.append(f"{min(values):.1f} to {max(values):.1f}" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


class Figures:
    """The medians of a result, by workload and variant."""

    def __init__(self, result):
        self.rows = {(w["name"], row["what"]): row for w in result["workloads"] for row in w["rows"] if row["median"]}

    def median(self, workload, what, name):
        return self.rows.get((workload, what), {}).get("median", {}).get(name)

    def ratio(self, workload, what, kind, name):
        return self.rows.get((workload, what), {}).get("ratios", {}).get(kind, {}).get(name)

    def worst(self, workload, name, of=lambda what: True, better=max):
        values = [row["median"][name] for (w, what), row in self.rows.items() if w == workload and of(what) and name in row["median"]]
        return better(values, default=None)


def targets(result):
    """What we are to reach: what, in which unit, measured, gate, goal, and whether less is better."""
    f = Figures(result)
    slow = [f"{broker}, the other answers in 1 s" for broker in ("RabbitMQ", "Kafka")]
    p99_beside = [ratio for ratio in (f.ratio("isolation", what, "alone", "p99_ms") for what in slow) if ratio]
    a_million = [f.median("index", f"1,000,000 {patterns}, 1 match", "ns_per_event") for patterns in ("exact", "wildcard")]
    sizes = [
        (f.median("index", "1,000,000 exact, 1 match", name) or 0) for name in ("subscription_bytes", "index_bytes")
    ]
    ours = lambda what: not what.startswith(("bare", "hard-coded"))
    return [
        ("CPU per delivery, Kafka", "x bare", f.ratio("drain", "Kafka", "bare", "cpu_us"), 1.25, 0.9, True),
        ("CPU per delivery, RabbitMQ quorum", "x bare", f.ratio("drain", "RabbitMQ quorum", "bare", "cpu_us"), 1.9, 1.4, True),
        ("CPU per delivery, RabbitMQ classic", "x bare", f.ratio("drain", "RabbitMQ classic", "bare", "cpu_us"), 1.9, 1.4, True),
        ("deliveries/s, Kafka", "x hard-coded", f.ratio("drain", "Kafka", "hard-coded", "rate"), 0.85, 1.2, False),
        ("deliveries/s, RabbitMQ quorum", "x hard-coded", f.ratio("drain", "RabbitMQ quorum", "hard-coded", "rate"), 1.0, 1.3, False),
        ("deliveries/s, RabbitMQ classic", "x hard-coded", f.ratio("drain", "RabbitMQ classic", "hard-coded", "rate"), 1.0, 1.3, False),
        ("p99 at 2,000/s, RabbitMQ", "x hard-coded", f.ratio("steady", "RabbitMQ", "hard-coded", "p99_ms"), 2, 1.1, True),
        ("p99 at 2,000/s, Kafka", "x hard-coded", f.ratio("steady", "Kafka", "hard-coded", "p99_ms"), 1.2, 1.0, True),
        ("good half beside one that answers in 1 s: p99", "x alone", max(p99_beside, default=None), 2, 1.1, True),
        ("good half beside one that answers in 1 s: arrived", "share", f.worst("isolation", "arrived_share", lambda w: w in slow, min), 1, 1, False),
        ("caught up after 20 s down at 500/s", "s", f.worst("catch-up", "caught_up_s"), 5, 2, True),
        ("requests to an endpoint while it is down", "share", f.worst("catch-up", "asked_share"), 0.1, 0.02, True),
        ("routing among 1,000,000 subscriptions", "ns/event", max((ns for ns in a_million if ns), default=None), 1000, 300, True),
        ("memory of one of 1,000,000 subscriptions", "bytes", sum(sizes) if all(sizes) else None, 1024, 1024, True),
        ("embedded, publish to synced, 64 publishers", "per second", f.median("embedded", "64 publishers, library", "rate"), 10_000, 30_000, False),
        ("peak memory in a drain", "MiB", f.worst("drain", "peak_mib", ours), 100, 60, True),
    ]


def target_table(result):
    lines = ["| figure | in | measured | gate | goal | |", "|---|---|---:|---:|---:|---|"]
    for what, unit, value, gate, goal, less in targets(result):
        def reached(limit):
            return value <= limit if less else value >= limit

        sign = "<=" if less else ">="
        if value is None:
            continue
        state = "goal met" if reached(goal) else "gate met, goal not" if reached(gate) else "**not met**"
        number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        lines.append(f"| {what} | {unit} | {number} | {sign} {gate:,} | {sign} {goal:,} | {state} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def text(result):
    parts = list(filter(None, [target_table(result)]))
    for workload in result["workloads"]:
        parts.append(f"{workload['title']}\n\n{table(workload)}")
        parts += [f"{row['what']}: {row['failed']}" for row in workload["rows"] if "failed" in row]
    return "\n\n".join(parts)
