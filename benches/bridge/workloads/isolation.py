"""Half of the events go to an endpoint that is bad in some way: what the other half feels."""

import time

from ..process import Bridge, subscription, until
from . import Variant, Workload
from .drain import NAMES
from .steady import latency

RATE = 1_000  # events per second, both halves
GRACE = 1  # seconds in which the last ones may arrive


def isolated(bench, kind, bad):
    subscriptions = {"good": subscription(bench.sink.url("good"), concurrency=16, types=["good"])}
    if bad:
        url = bench.sink.url(bad, host="127.0.0.2")
        subscriptions["bad"] = subscription(url, concurrency=16, types=["bad"])
    topic = bench.brokers.make(kind)
    count = RATE * bench.seconds(10)
    bridge = publisher = None
    try:
        bridge = Bridge(bench, kind, topic, subscriptions, group=topic)
        bridge.ready()
        bench.sink.reset()
        # Connections and caches are warm, and the endpoint is known to be bad or not.
        publisher = bench.brokers.publish(kind, topic, count=RATE * 2, rate=RATE, types="good,bad")
        publisher.wait()
        until(lambda: bench.sink.stats("good")["distinct"] >= RATE, 60, "the good half does not arrive")
        bench.sink.reset()
        cpu = bridge.cpu()
        publisher = bench.brokers.publish(kind, topic, count=count, rate=RATE, types="good,bad", first=RATE * 2)
        publisher.wait()
        time.sleep(GRACE)
        stats = bench.sink.stats("good")
        cpu = bridge.cpu() - cpu
    finally:
        if publisher:
            publisher.stop()
        if bridge:
            bridge.stop()
        bench.brokers.remove(kind, topic, group=topic)
    return {
        "arrived_share": stats["distinct"] / (count / 2),
        "rate": stats["distinct"] / max(stats["seconds"], 1e-9),
        **latency(bench, "good"),
        "cpu_us": cpu / count * 1e6,
    }


def variants(bench):
    found = []
    for kind in ("rabbitmq", "kafka"):
        alone = f"{NAMES[kind]}, alone"
        found.append(Variant(alone, lambda k=kind: isolated(bench, k, None)))
        for bad, words in (("hang", "hangs"), ("slow", "answers in 1 s"), ("fail", "fails at once"), ("drip", "drips")):
            what = f"{NAMES[kind]}, the other {words}"
            found.append(Variant(what, lambda k=kind, b=bad: isolated(bench, k, b), {"alone": alone}))
    return found


WORKLOADS = [
    Workload(
        "isolation",
        "Isolation: the good half of 1,000 events a second, beside a bad endpoint",
        variants,
        rounds=3,
        quick=("RabbitMQ, alone", "RabbitMQ, the other answers in 1 s", "Kafka, alone", "Kafka, the other answers in 1 s"),
        note="Both endpoints with the default concurrency of 16. Alone, nobody wants the other half. "
        "The share has arrived a second after the last event was published.",
    )
]
