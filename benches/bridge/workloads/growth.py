"""What happens to the cost as things grow: subscriptions per event, subscriptions, endpoints,
partitions, sizes, instances. All on Kafka, which leaves the bridge the most to do."""

from ..process import subscription
from . import Variant, Workload
from .drain import bare, drain


def fan_out(bench, subscribers):
    deliveries = bench.events(50_000)
    subscriptions = {
        f"s{n}": subscription(bench.sink.url(host=bench.sink.host(n)), concurrency=16) for n in range(subscribers)
    }
    return drain(bench, "kafka", max(deliveries // subscribers, 1), subscriptions, deliveries // subscribers * subscribers,
                 may_park=True)


def many_subscriptions(bench, count):
    """One of them matches; each has an endpoint of its own."""
    subscriptions = {
        f"s{n}": subscription(bench.sink.url(host=bench.sink.host(n)), types=["good" if n == 0 else f"e{n}"])
        for n in range(count)
    }
    return drain(bench, "kafka", bench.events(50_000), subscriptions)


def many_endpoints(bench, count):
    """Each event goes to one of them, in turn."""
    subscriptions = {
        f"s{n}": subscription(bench.sink.url(host=bench.sink.host(n)), concurrency=max(1, 64 // count), types=[f"e{n}"])
        for n in range(count)
    }
    return drain(bench, "kafka", bench.events(50_000), subscriptions, types=f"many:{count}", may_park=True)


def of_size(bench, size, floor=False):
    # About as many bytes each time, once events are large.
    events = min(bench.events(50_000), bench.events(50_000) * 6_000 // size)
    if floor:
        return bare(bench, events=events, size=size)
    return drain(bench, "kafka", events, size=size)


def fan_out_variants(bench):
    return [
        Variant(f"{n} subscription{'s' * (n > 1)}", lambda n=n: fan_out(bench, n), {"one": "1 subscription"} if n > 1 else {})
        for n in (1, 10, 100)
    ]


def size_variants(bench):
    found = []
    for size, words in ((200, "200 B"), (2 << 10, "2 KiB"), (20 << 10, "20 KiB"), (256 << 10, "256 KiB")):
        found.append(Variant(f"bare, {words}", lambda s=size: of_size(bench, s, floor=True), of={"bare_bytes": size}))
        found.append(Variant(words, lambda s=size: of_size(bench, s), {"bare": f"bare, {words}"}, {"bytes": size}))
    return found


def growth_variants(bench):
    def one(thing, count, measure):
        floors = {"one": f"1 {thing}"} if count > 1 else {}
        what = f"{count:,} {thing}{'s' * (count > 1)}"
        return Variant(what, lambda: measure(bench, count), floors, {f"{thing}s": count})

    found = [one("subscription", n, many_subscriptions) for n in (1, 100, 1_000, 10_000)]
    found += [one("endpoint", n, many_endpoints) for n in (1, 10, 100, 1_000)]
    found += [one("partition", n, lambda bench, n: drain(bench, "kafka", bench.events(50_000), partitions=n)) for n in (1, 8, 32)]
    return found


def instance_variants(bench):
    return [
        Variant("1 instance", lambda: drain(bench, "kafka", ready_first=True)),
        Variant("2 instances", lambda: drain(bench, "kafka", instances=2, ready_first=True), {"one": "1 instance"}),
    ]


WORKLOADS = [
    Workload("fanout", "Fan-out: each event to so many subscriptions, with an endpoint each", fan_out_variants, rounds=1,
             quick=("1 subscription", "100 subscriptions"),
             note="Per delivery. Parked are those that found their lane full for too long, and waited on the broker.", brokers=("kafka",)),
    Workload("sizes", "Sizes", size_variants, rounds=1, quick=("bare, 2 KiB", "2 KiB", "bare, 256 KiB", "256 KiB"), brokers=("kafka",)),
    Workload("growth", "Growth: subscriptions of which one matches, endpoints in turn, partitions", growth_variants, rounds=1,
             quick=("1 subscription", "10,000 subscriptions", "1 endpoint", "1,000 endpoints", "1 partition", "32 partitions"),
             brokers=("kafka",)),
    Workload("instances", "Instances: one topic of 8 partitions, one core", instance_variants, rounds=2, brokers=("kafka",),
             note="They are there before the events are published. Each has a core of its own on machines with four or more; else they share one."),
]
