"""Draining what waits: RabbitMQ, Kafka and embedded, beside the bare and the hard-coded loop."""

import subprocess
import time

from ..brokers import embedded_file
from ..machine import Failed, empty
from ..process import Bridge, HardCoded, subscription, wait_for
from . import Variant, Workload

NAMES = {"rabbitmq": "RabbitMQ", "kafka": "Kafka", "embedded": "embedded"}
SHARED_OUT = 5  # seconds until partitions have been shared out among the instances


def bare(bench, url=None, events=None, **pairs):
    """One reqwest client and HMAC, 64 at once, without a broker."""
    command = ["taskset", "-c", bench.cores.ours, bench.programs["client"]]
    command += ["send", "reqwest", "multi1", url or bench.sink.url(), f"count={events or bench.events()}"]
    command += [f"{name}={value}" for name, value in pairs.items()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed("the bare loop has failed")
    rate, cpu, peak = map(float, done.stdout.split())
    return {"cpu_us": cpu, "rate": rate, "peak_mib": peak}


def drain(bench, kind, events=None, subscriptions=None, deliveries=None, size=512, partitions=8, queue="quorum",
          types="good", hard_coded=False, instances=1, ready_first=False, may_park=False, **more):
    """Fills a queue or topic, has it drained, and measures between the first twentieth of the
    deliveries and the last. With `ready_first` the bridge is there before the events are."""
    events = events or bench.events()
    deliveries = deliveries or events
    subscriptions = subscriptions or {"drain": subscription(bench.sink.url())}
    topic = bench.brokers.make(kind, partitions=partitions, queue=queue)
    measured = []
    more["perf"] = bench.options.perf

    def start():
        for number in range(instances):
            measured.append(Bridge(bench, kind, topic, subscriptions, number, **more))

    try:
        if ready_first:
            start()
            for one in measured:
                one.ready()
            time.sleep(SHARED_OUT)
        before = bench.sink.count()
        pairs = {"count": events, "size": size, "partitions": partitions, "types": types}
        if kind == "embedded":
            data_dir = empty(f"{bench.folder}/embedded-drain")
            bench.brokers.fill("file", topic, embedded_file(data_dir), at_once=512, **pairs)
            more["data_dir"] = data_dir
        else:
            bench.brokers.fill(kind, topic, **pairs)
        if hard_coded:
            measured.append(HardCoded(bench, kind, topic))
        elif not measured:
            start()
        first = wait_for(bench.sink, measured, before + deliveries // 20)
        last = wait_for(bench.sink, measured, before + deliveries)
        peak = max(one.peak_mib() for one in measured)
        parked = measured[0].check(deliveries, may_park) if instances == 1 else 0
    finally:
        for one in measured:
            one.stop()
        bench.brokers.remove(kind, topic)
    done = last["count"] - first["count"]
    figures = {
        "cpu_us": (last["cpu"] - first["cpu"]) / done * 1e6,
        "rate": done / (last["at"] - first["at"]),
        "peak_mib": peak,
    }
    return {**figures, "parked_share": parked} if may_park else figures


def variants(bench):
    found = [Variant("bare", lambda: bare(bench))]
    for kind, queue in (("rabbitmq", "quorum"), ("rabbitmq", "classic"), ("kafka", "")):
        name = " ".join(filter(None, [NAMES[kind], queue]))
        by_hand = f"hard-coded, {name}"
        floors = {"bare": "bare", "hard-coded": by_hand}
        found.append(Variant(by_hand, lambda k=kind, q=queue: drain(bench, k, queue=q, hard_coded=True), {"bare": "bare"}))
        found.append(Variant(name, lambda k=kind, q=queue: drain(bench, k, queue=q), floors))
    found.append(Variant("embedded", lambda: drain(bench, "embedded"), {"bare": "bare"}))
    return found


WORKLOADS = [
    Workload(
        "drain",
        "Drain: events of 512 bytes wait; one subscription, 64 at once",
        variants,
        quick=("bare", "hard-coded, RabbitMQ quorum", "RabbitMQ quorum", "hard-coded, Kafka", "Kafka", "embedded"),
        note="Kafka has 8 partitions, uncompressed. `bare` has no broker; `hard-coded` consumes, posts and acknowledges in one loop.",
    )
]
