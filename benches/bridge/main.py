"""Measures the bridge beside its floors, prints a table with the targets, and writes JSON.

Everything takes about twenty-five minutes; `--quick` takes about three and tells orders of magnitude, `--full`
takes about an hour.
Each round runs every variant of a workload once. Medians of the rounds are shown; a ratio is the median
of the ratios of each round. The measured process has a core of its own; brokers, receiver and
publishers have the others. CPU is user and system time of the measured process.
"""

import argparse
import datetime
import json
import os
import signal
import sys
import time

from . import page, plots, report, workloads
from .brokers import Brokers
from .machine import ROOT, WORK, Cores, Failed, about, build, built_before, empty
from .sink import Sink


class Bench:
    """What a workload measures with."""

    def __init__(self, options, cores, programs, brokers, sink):
        self.options, self.cores, self.programs = options, cores, programs
        self.brokers, self.sink = brokers, sink
        self.folder = WORK
        self.index = None

    def events(self, most=None):
        """As many as were asked for, `most` of them where that is enough."""
        return min(self.options.events, most or self.options.events)

    def scaled(self, number):
        return number // 20 if self.options.quick else number

    def seconds(self, number, full=None):
        if self.options.full:
            return full or number
        return max(number // 5, 2) if self.options.quick else number


def main():
    every = workloads.every()
    options = arguments(every)
    if options.render:
        with open(options.json) as file:
            result = json.load(file)
    else:
        result = measure([w for w in every if w.name in options.only], options)
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)
        print(report.text(result))
    if options.write:
        result = page.with_the_rest(result)
        page.write(result)
    plots.write(result, page.FOLDER if options.write else WORK)
    if any("failed" in row for workload in result["workloads"] for row in workload["rows"]):
        sys.exit("some variants have failed; see above")


def arguments(every):
    names = [workload.name for workload in every]
    parser = argparse.ArgumentParser(prog="benches/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=names, type=lambda text: text.split(","), metavar="NAME,...", help=f"of {', '.join(names)}")
    parser.add_argument("--events", type=int, help="in a drain (default: 100000)")
    parser.add_argument("--rounds", type=int, help="at the most; some workloads have fewer (default: 3)")
    parser.add_argument("--quick", action="store_true", help="small numbers, one round")
    parser.add_argument("--full", action="store_true", help="200000 events in a drain, five rounds, 60 s where it is steady")
    parser.add_argument("--write", action="store_true", help="write the figures and plots into docs/; with --only just those")
    parser.add_argument("--render", action="store_true", help="measure nothing; make page and plots of the JSON")
    parser.add_argument("--variant", metavar="TEXT", help="only variants with this in their name, and their floors")
    parser.add_argument("--bridge", action="append", default=[], metavar="NAME=PATH", help="other builds of hookbridge, beside each other")
    parser.add_argument("--profile", default="release", choices=("release", "dev"), help="how to build")
    parser.add_argument("--as-built", action="store_true", help="build nothing; take what was built last")
    parser.add_argument("--workers", type=int, help="limits.workers of the bridge")
    parser.add_argument("--perf", metavar="FILE", help="profile the bridge with perf record (the last variant's is kept)")
    parser.add_argument("--keep", action="store_true", help="leave the brokers running")
    parser.add_argument("--json", default=os.path.join(ROOT, "target", "bench", "results.json"), metavar="FILE")
    options = parser.parse_args()
    unknown = set(options.only) - set(names)
    if unknown:
        parser.error(f"no workload `{unknown.pop()}`; there are {', '.join(names)}")
    options.events = options.events or (200_000 if options.full else 10_000 if options.quick else 100_000)
    options.rounds = options.rounds or (5 if options.full else 1 if options.quick else 3)
    if options.render:
        options.json = page.JSON if options.write else options.json
    return options


def measure(chosen, options):
    began = time.monotonic()
    # What was started is stopped then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    cores = Cores()
    machine = about(cores)
    programs = built_before(options.profile) if options.as_built else build(options.profile)
    empty(WORK)
    os.environ.setdefault("HOOKBRIDGE_TEST_DIR", os.path.join(ROOT, "target", "bench-brokers"))
    os.environ.setdefault("RUST_LOG", "warn")
    brokers = sink = None
    measured = []
    try:
        brokers = Brokers(programs["client"], cores, {kind for workload in chosen for kind in workload.brokers})
        # This script polls; it is not to disturb what is measured.
        os.sched_setaffinity(0, {int(core) for core in cores.theirs.split(",")})
        sink = Sink(programs["client"], cores, WORK)
        bench = Bench(options, cores, programs, brokers, sink)
        for workload in chosen:
            measured.append(rounds_of(workload, bench))
    finally:
        if sink:
            sink.stop()
        if brokers and not options.keep:
            brokers.down()
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["benches/run", *sys.argv[1:]]),
        "profile": options.profile,
        "events": options.events,
        "rounds": options.rounds,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": machine,
        "workloads": measured,
    }


def rounds_of(workload, bench):
    """Runs a workload's variants in turn, several times; its rows with their medians."""
    variants = beside_each_other(workload.variants(bench), bench)
    if bench.options.quick and workload.quick:
        variants = [v for v in variants if v.what.partition(" [")[0] in workload.quick]
    if not bench.options.full:
        variants = [v for v in variants if v.what.partition(" [")[0] not in workload.full]
    if bench.options.variant:
        named = [v for v in variants if bench.options.variant in v.what]
        floors = {floor for v in named for floor in v.floors.values()}
        variants = [v for v in variants if v in named or v.what in floors]
    rows = {v.what: {"what": v.what, "of": v.of, "floors": v.floors, "rounds": []} for v in variants}
    rounds = min(bench.options.rounds, workload.rounds)
    for number in range(1, rounds + 1):
        print(f"{workload.name}, round {number} of {rounds}", file=sys.stderr)
        for variant in variants:
            try:
                figures = variant.measure()
            except Failed as failed:
                rows[variant.what]["failed"] = str(failed)
                print(f"  {variant.what}: {failed}", file=sys.stderr)
                figures = {}
            else:
                shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                print(f"  {variant.what}: {shown}", file=sys.stderr, flush=True)
            rows[variant.what]["rounds"].append(figures)
    return report.medians(workload, list(rows.values()))


def beside_each_other(variants, bench):
    """Each variant that runs the bridge once for each build of it that was named."""
    if not bench.options.bridge:
        return variants
    floors = {v.what for v in variants if v.what.startswith(("bare", "hard-coded"))}
    found = []
    for variant in variants:
        if variant.what in floors:
            found.append(variant)
            continue
        for text in bench.options.bridge:
            label, _, path = text.rpartition("=")
            label, path = label or path, os.path.abspath(path)

            def with_build(measure=variant.measure, path=path):
                bench.programs["hookbridge"] = path
                return measure()

            of_build = {kind: what if what in floors else f"{what} [{label}]" for kind, what in variant.floors.items()}
            found.append(workloads.Variant(f"{variant.what} [{label}]", with_build, of_build, variant.of))
    return found
