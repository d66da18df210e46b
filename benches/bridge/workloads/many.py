"""Thousands of endpoints on addresses of their own, a tenth of them dead."""

import time

from ..process import Bridge, subscription, wait_for
from ..sink import closed_port
from . import Variant, Workload

EVENTS_EACH = 5


def many(bench, count, dead):
    closed = closed_port()

    def url(n):
        host = bench.sink.host(n)
        is_dead = dead and n % 10 == 0
        return f"http://{host}:{closed}/in" if is_dead else bench.sink.url(f"in/{n}", host)

    subscriptions = {f"s{n}": subscription(url(n), concurrency=4, types=[f"e{n}"]) for n in range(count)}
    events = count * EVENTS_EACH
    alive = events * 9 // 10 if dead else events
    topic = bench.brokers.make("kafka")
    bridge = None
    try:
        bench.brokers.fill("kafka", topic, count=events, types=f"many:{count}")
        before = bench.sink.count()
        bridge = Bridge(bench, "kafka", topic, subscriptions, group=topic)
        ready_s = bridge.ready()
        began = time.monotonic()
        cpu = bridge.cpu()
        last = wait_for(bench.sink, [bridge], before + alive)
        peak = bridge.peak_mib()
    finally:
        if bridge:
            bridge.stop()
        bench.brokers.remove("kafka", topic, group=topic)
    return {
        "cpu_us": (last["cpu"] - cpu) / alive * 1e6,
        "rate": alive / (last["at"] - began),
        "peak_mib": peak,
        "ready_s": ready_s,
    }


def variants(bench):
    count = max(bench.scaled(10_000) // 10 * 10, 100)
    alone = f"{count:,} endpoints, all of them alive"
    return [
        Variant(alone, lambda: many(bench, count, False)),
        Variant(f"{count:,} endpoints, a tenth of them dead", lambda: many(bench, count, True), {"alone": alone}),
    ]


WORKLOADS = [
    Workload("many", "Many: endpoints on 127.x addresses of their own, five events each, Kafka", variants, rounds=1,
             note="CPU per delivery that arrives, from ready to the last one: a connection is opened for each endpoint.",
             brokers=("kafka",))
]
