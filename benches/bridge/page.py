"""docs/performance.md: the section between the marks is made from the JSON, the rest is prose."""

import json
import os

from . import plots, report
from .machine import ROOT

FOLDER = os.path.join(ROOT, "docs", "performance")
JSON = os.path.join(FOLDER, "results.json")
PAGE = os.path.join(ROOT, "docs", "performance.md")
BEGIN, END = "<!-- figures: benches/run --write -->", "<!-- end of the figures -->"


def with_the_rest(result):
    """What was measured by itself takes the place of the same in the last JSON of everything."""
    try:
        with open(JSON) as file:
            whole = json.load(file)
    except FileNotFoundError:
        return result
    again = {w["name"]: {**w, "again": {k: result[k] for k in ("date", "command")}} for w in result["workloads"]}
    if not {w["name"] for w in whole["workloads"]} - set(again):
        return result
    return {**whole, "workloads": [again.get(w["name"], w) for w in whole["workloads"]]}


def write(result):
    """Rewrites the section, and keeps the JSON beside it."""
    os.makedirs(FOLDER, exist_ok=True)
    with open(JSON, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    with open(PAGE) as file:
        before, _, rest = file.read().partition(BEGIN)
        _, _, after = rest.partition(END)
    with open(PAGE, "w") as file:
        file.write(f"{before}{BEGIN}\n\n{section(result)}\n\n{END}{after}")


def section(result):
    machine = result["machine"]
    rounds = {1: "one round"}.get(result["rounds"], f"{result['rounds']} rounds at the most")
    parts = [
        f"{result['date']}, {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, load {machine['load_before']} before it began. "
        f"`{result['command']}`, {result['events']:,} events in a drain, {rounds}, {result['minutes']} minutes."
        + " [The same as JSON](performance/results.json)."
        + ("" if result["profile"] == "release" else f" This was a **{result['profile']} build: its figures mean nothing**."),
        "## The targets\n\n" + unmet(result) + "\n\n" + report.target_table(result),
    ]
    parts.append(capacity(result))
    for workload in result["workloads"]:
        part = f"## {workload['title'].partition(':')[0]}\n\n{workload['title']}."
        if workload["note"]:
            part += f" {workload['note']}"
        if "again" in workload:
            part += f" Measured by itself: {workload['again']['date']}, `{workload['again']['command']}`."
        part += "\n\n" + report.table(workload)
        for picture in plots.made(result):
            if picture.workload == workload["name"]:
                part += f"\n\n![{picture.title}](performance/{picture.file})"
        for row in workload["rows"]:
            if "failed" in row:
                part += f"\n\n`{row['what']}` has failed: {row['failed']}."
        parts.append(part)
    return "\n\n".join(parts)


def capacity(result):
    """What one core, one partition and one instance can do, and what a second instance adds."""
    f = report.Figures(result)
    said = (
        ("one core, RabbitMQ (quorum queue)", f.median("drain", "RabbitMQ quorum", "rate")),
        ("one core, Kafka, 8 partitions", f.median("drain", "Kafka", "rate")),
        ("one core, Kafka, 1 partition", f.median("growth", "1 partition", "rate")),
        ("one instance, Kafka", f.median("instances", "1 instance", "rate")),
        ("two instances, Kafka", f.median("instances", "2 instances", "rate")),
    )
    lines = [f"- {what}: {rate:,.0f} deliveries a second" for what, rate in said if rate]
    return "\n".join(["## What one can do", "", "The other cores are the brokers' and the receiver's.", "", *lines])


def unmet(result):
    """What is not reached, in a sentence."""
    missed = []
    for what, unit, value, gate, _, less in report.targets(result):
        if value is not None and (value > gate if less else value < gate):
            missed.append(f"{what} ({value:,.3g} {unit}; the gate is {gate:,})")
    if not missed:
        return "Every gate that was measured is met."
    return f"Gates that are **not met**: {'; '.join(missed)}."
