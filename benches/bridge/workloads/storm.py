"""Many parked deliveries come due at once: what new events feel meanwhile."""

import time

from ..process import Bridge, subscription, until
from . import Variant, Workload
from .drain import NAMES
from .steady import latency

RATE = 500  # new events per second


def storm(bench, kind):
    count = bench.scaled(100_000)
    # One hop through one tier, and time enough to park them all before the first comes back.
    wait_s = 60 if count > 20_000 else 15
    retry = {"schedule": [f"{wait_s}s"], "jitter": 0.0}
    subscriptions = {
        "storm": subscription(
            # With 404, so that the breaker has no part in it.
            bench.sink.url("refuse"), types=["storm"], retry=retry, max_parked={"count": 1_000_000, "bytes": "4GiB"},
        ),
        "new": subscription(bench.sink.url("good", "127.0.0.2"), concurrency=16, types=["new"]),
    }
    topic = bench.brokers.make(kind)
    bridge = publisher = None
    try:
        bench.brokers.fill(kind, topic, count=count, types="storm")
        bench.sink.reset()
        bench.sink.down()
        bridge = Bridge(bench, kind, topic, subscriptions, group=topic)
        until(lambda: bench.sink.stats("refuse")["requests"] > 0, 60, "nothing is attempted")
        first = time.monotonic()
        until(lambda: bridge.total("hookbridge_deliveries_parked_total", 'reason="retry"') >= count, 180, "not all are parked")
        parking_s = time.monotonic() - first
        bench.sink.up()

        calm, seconds = 0.0, int(min(first + wait_s - time.monotonic() - 2, bench.seconds(10)))
        if seconds > 1:
            publisher = new(bench, kind, topic, seconds, 1_000_000)
            calm = latency(bench, "good")["p99_ms"]
        time.sleep(max(0, first + wait_s - time.monotonic()))
        publisher = new(bench, kind, topic, bench.seconds(20), 2_000_000)
        during, arrived = latency(bench, "good"), bench.sink.stats("good")["distinct"] / publisher.count
        until(lambda: bench.sink.stats("refuse")["distinct"] >= count, 180, "not all come back")
        back = bench.sink.stats("refuse")
        peak = bridge.peak_mib()
    finally:
        bench.sink.up()
        if publisher:
            publisher.stop()
        if bridge:
            bridge.stop()
        bench.brokers.remove(kind, topic, group=topic)
    return {
        "calm_p99_ms": calm,
        **during,
        "arrived_share": arrived,
        "parking_rate": count / parking_s,
        "rate": count / max(back["seconds"], 1e-9),
        "peak_mib": peak,
    }


def new(bench, kind, topic, seconds, first):
    """Publishes new events, and waits for those that are prompt."""
    bench.sink.reset("good")
    publisher = bench.brokers.publish(kind, topic, count=RATE * seconds, rate=RATE, types="new", first=first)
    publisher.wait()
    time.sleep(1)
    return publisher


def variants(bench):
    return [Variant(NAMES[kind], lambda k=kind: storm(bench, k)) for kind in ("rabbitmq", "kafka")]


WORKLOADS = [
    Workload("storm", "Retry storm: 100,000 parked deliveries come due, beside 500 new events a second", variants, rounds=1, full=("Kafka",),
             note="The p99 is that of new events while the storm goes on, beside that in the calm before it. "
             "The rate is that at which parked deliveries arrive.")
]
