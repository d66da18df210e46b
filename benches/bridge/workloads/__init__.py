"""What is measured: a file per family. A workload is a name, what it is, and its variants, which
are run one after the other in each round, so that what else the machine does falls on all of them.

A variant's `measure` gives figures by name: `cpu_us` per delivery, `rate` of deliveries per second,
`peak_mib`, and others whose names end in their unit.
"""

import dataclasses
import typing


@dataclasses.dataclass
class Variant:
    what: str
    measure: typing.Callable[[], dict]
    # What it is compared with: "bare", "hard-coded", "alone", by the name of a variant of the same workload.
    floors: dict = dataclasses.field(default_factory=dict)
    # What grows from one variant to the next, for the plots.
    of: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Workload:
    name: str
    title: str
    variants: typing.Callable  # of the bench; gives a list
    rounds: int = 100  # at the most
    # Variants that do without `--quick`; none is all.
    quick: tuple = ()
    # Variants for `--full` alone.
    full: tuple = ()
    note: str = ""
    brokers: tuple = ("rabbitmq", "kafka")  # that it needs


def every():
    """In the order in which they are run and shown."""
    from . import cost, drain, embedded, growth, index, isolation, many, outage, steady, storm, tls

    modules = (drain, steady, isolation, outage, growth, tls, cost, many, storm, embedded, index)
    return [workload for module in modules for workload in module.WORKLOADS]
