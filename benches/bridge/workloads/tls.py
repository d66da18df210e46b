"""Receivers behind HTTPS, with HTTP/1.1 and with HTTP/2."""

from ..process import subscription
from . import Variant, Workload
from .drain import bare, drain


def variants(bench):
    found = []
    for words, port in (("HTTP/1.1", bench.sink.http1_port), ("HTTP/2", bench.sink.http2_port)):
        url, events = f"https://127.0.0.1:{port}/in", bench.events(50_000)
        subscriptions = {"tls": subscription(url, endpoint={"tls": {"ca": bench.sink.ca}})}
        floor = f"bare, {words}"
        found.append(Variant(floor, lambda u=url, e=events: bare(bench, u, e, ca=bench.sink.ca)))
        found.append(Variant(words, lambda s=subscriptions, e=events: drain(bench, "kafka", e, s), {"bare": floor}))
    return found


WORKLOADS = [Workload("tls", "TLS: HTTPS receivers, Kafka", variants, rounds=2, brokers=("kafka",))]
