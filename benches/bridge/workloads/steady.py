"""Latency from publish to receipt at a rate far below what is possible."""

from ..process import Bridge, HardCoded, subscription, until
from . import Variant, Workload
from .drain import NAMES

RATE = 2_000  # events per second
WARM_UP = 2  # seconds


def steady(bench, kind, hard_coded=False):
    topic = bench.brokers.make(kind)
    seconds = bench.seconds(15, full=60)
    measured = None
    try:
        if hard_coded:
            measured, address = HardCoded(bench, kind, topic), None
        else:
            measured = Bridge(bench, kind, topic, {"steady": subscription(bench.sink.url("good"))})
            measured.ready()
            address = measured.admin if kind == "embedded" else None
        via = "admin" if kind == "embedded" else kind
        publish = dict(address=address, rate=RATE)
        warm = RATE * WARM_UP
        before = bench.sink.count()
        bench.brokers.publish(via, topic, count=warm, **publish).wait()
        until(lambda: bench.sink.count() >= before + warm, 60, "the first events do not arrive")
        bench.sink.reset()
        cpu, count = measured.cpu(), RATE * seconds
        behind_ms = bench.brokers.publish(via, topic, count=count, first=warm, **publish).wait()
        until(lambda: bench.sink.count() >= before + warm + count, 60, "not all events arrive")
        cpu = measured.cpu() - cpu
        peak = measured.peak_mib()
    finally:
        if measured:
            measured.stop()
        bench.brokers.remove(kind, topic)
    return {**latency(bench, "in" if hard_coded else "good"), "cpu_us": cpu / count * 1e6, "peak_mib": peak, "publisher_behind_ms": behind_ms}


def latency(bench, kind):
    stats = bench.sink.stats(kind)
    return {name.replace("_us", "_ms"): stats[name] / 1e3 for name in ("p50_us", "p99_us", "p999_us", "max_us")}


def variants(bench):
    found = []
    for kind in ("rabbitmq", "kafka"):
        by_hand = f"hard-coded, {NAMES[kind]}"
        found.append(Variant(by_hand, lambda k=kind: steady(bench, k, hard_coded=True)))
        found.append(Variant(NAMES[kind], lambda k=kind: steady(bench, k), {"hard-coded": by_hand}))
    return found


def of_embedded(bench):
    return [Variant("embedded", lambda: steady(bench, "embedded"))]


WORKLOADS = [
    Workload(
        "steady",
        "Steady: 2,000 events a second, from publish to receipt",
        variants,
        rounds=3,
        note="15 seconds a round (60 with `--full`). Kafka's producer lingers 5 ms; the queue of RabbitMQ is a quorum queue.",
    ),
    Workload(
        "steady-embedded",
        "Steady, embedded: published over HTTP, 2,000 events a second",
        of_embedded,
        rounds=1,
        brokers=(),
    ),
]
