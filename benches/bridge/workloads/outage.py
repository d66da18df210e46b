"""An endpoint is down for a while: how soon it has caught up, and how often it was asked meanwhile."""

import time

from ..machine import Failed
from ..process import Bridge, subscription, until
from . import Variant, Workload
from .drain import NAMES

RATE = 500  # events per second
BEFORE, AFTER = 3, 10  # seconds


def outage(bench, kind):
    topic = bench.brokers.make(kind)
    down = bench.seconds(20)
    bridge = publisher = None
    try:
        bridge = Bridge(bench, kind, topic, {"switch": subscription(bench.sink.url("switch"), concurrency=16)}, group=topic)
        bridge.ready()
        bench.sink.up()
        bench.sink.reset()
        count = RATE * (BEFORE + down + AFTER)
        publisher = bench.brokers.publish(kind, topic, count=count, rate=RATE)
        until(lambda: bench.sink.stats("switch")["answered"] > RATE, 60, "nothing arrives")
        time.sleep(BEFORE - 1)
        bench.sink.down()
        before = bench.sink.stats("switch")
        time.sleep(down)
        while_down = bench.sink.stats("switch")
        bench.sink.up()
        publisher.wait()
        until(lambda: bench.sink.stats("switch")["distinct"] >= count, 120, "not all events arrive")
        after = bench.sink.stats("switch")
    finally:
        bench.sink.up()
        if publisher:
            publisher.stop()
        if bridge:
            bridge.stop()
        bench.brokers.remove(kind, topic, group=topic)
    asked = while_down["requests"] - before["requests"]
    if while_down["answered"] > before["answered"] + RATE:
        raise Failed("the endpoint was not down")
    return {
        "caught_up_s": after["caught_up_s"],
        "asked_share": asked / (RATE * down),
        "repeated": after["answered"] - after["distinct"],
    }


def variants(bench):
    return [Variant(NAMES[kind], lambda k=kind: outage(bench, k)) for kind in ("rabbitmq", "kafka")]


WORKLOADS = [
    Workload(
        "catch-up",
        "Catch-up: an endpoint is down (503) for 20 s at 500 events a second",
        variants,
        rounds=1,
        note="Caught up when the last event that was published before it came back has arrived. "
        "The share is requests sent to it while it was down, of the events for it.",
    )
]
