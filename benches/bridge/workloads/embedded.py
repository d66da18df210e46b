"""The embedded broker: from publish to synced."""

import os

from ..brokers import embedded_file
from ..machine import empty
from ..process import Bridge, subscription
from . import Variant, Workload


def directly(bench, publishers):
    """Into the file, through the library."""
    folder = empty(os.path.join(bench.folder, "embedded-publish"))
    count = bench.scaled(100_000) if publishers > 1 else bench.scaled(5_000)
    return {"rate": bench.brokers.fill("file", "bench", embedded_file(folder), count=count, at_once=publishers)}


def over_the_api(bench, publishers):
    """Into a running bridge, which delivers at the same time."""
    bridge = None
    try:
        data_dir = empty(os.path.join(bench.folder, "embedded-api"))
        bridge = Bridge(bench, "embedded", "bench", {"all": subscription(bench.sink.url())}, data_dir=data_dir)
        bridge.ready()
        count = bench.scaled(100_000)
        cpu = bridge.cpu()
        rate = bench.brokers.fill("admin", "bench", bridge.admin, count=count, at_once=publishers)
        return {"rate": rate, "cpu_us": (bridge.cpu() - cpu) / count * 1e6, "peak_mib": bridge.peak_mib()}
    finally:
        if bridge:
            bridge.stop()


def variants(bench):
    return [
        Variant("1 publisher, library", lambda: directly(bench, 1)),
        Variant("64 publishers, library", lambda: directly(bench, 64)),
        Variant("64 publishers, HTTP, delivered meanwhile", lambda: over_the_api(bench, 64)),
    ]


WORKLOADS = [Workload("embedded", "Embedded broker: publish to synced", variants, rounds=2, brokers=())]
