"""What filters and signatures cost over an event that is passed on as it is."""

from ..process import subscription
from . import Variant, Workload
from .drain import drain

RAW = "raw, standard signature"


def variants(bench):
    url = bench.sink.url()
    filled = {"event": "{topic.first}", "delivery": "{uuid}"}
    kinds = {
        RAW: subscription(url),
        "filter, two conditions on the body": subscription(url, filter={"data.total": {"$gte": 100}, "data.seq": {"$exist": True}}),
        "no signature": subscription(url, endpoint={"signature": "none"}),
        "standard-ed25519": subscription(
            url, endpoint={"signature": "standard-ed25519", "secret": "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="}
        ),
        "svix": subscription(url, endpoint={"signature": "svix"}),
        "stripe": subscription(url, endpoint={"signature": "stripe"}),
        "slack": subscription(url, endpoint={"signature": "slack"}),
        "github": subscription(url, endpoint={"signature": {"github": filled}}),
    }
    return [
        Variant(
            what,
            lambda one=one: drain(bench, "kafka", bench.events(50_000), {"one": one}),
            {} if what == RAW else {"raw": RAW},
        )
        for what, one in kinds.items()
    ]


WORKLOADS = [Workload("cost", "Filters and signatures, Kafka", variants, rounds=1, quick=(RAW, "filter, two conditions on the body", "standard-ed25519"), brokers=("kafka",))]
