"""The processes that are measured: the bridge with a config, and the hard-coded loop."""

import json
import os
import subprocess
import time
import urllib.request
import zlib

from .brokers import TIERS
from .machine import Failed, cpu_seconds, peak_mib, stop

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
FIRST_ADMIN_PORT = 18490
STALLED_AFTER = 60  # seconds without a delivery


class Measured:
    """A process, and what it has used."""

    def __init__(self, command, log):
        self.log = log
        with open(log, "a") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def ended(self):
        return self.process.poll() is not None

    def cpu(self):
        return cpu_seconds(self.process.pid)

    def peak_mib(self):
        return peak_mib(self.process.pid)

    def stop(self):
        stop(self.process)


class HardCoded(Measured):
    """Consume, POST, acknowledge (`benches/client/consume.rs`)."""

    def __init__(self, bench, kind, topic):
        address = bench.brokers.addresses[kind]
        command = ["taskset", "-c", bench.cores.ours, bench.programs["client"]]
        command += ["consume", kind, address, topic, bench.sink.url()]
        super().__init__(command, os.path.join(bench.folder, "hard-coded.log"))

    def check(self, deliveries, may_park):
        return 0


class Bridge(Measured):
    """One instance. `topic` is its only source, a queue or topic that exists."""

    def __init__(self, bench, kind, topic, subscriptions, number=0, group="bench", data_dir=None, perf=None):
        self.admin = f"127.0.0.1:{FIRST_ADMIN_PORT + number}"
        self.kind, self.perf = kind, perf
        folder = os.path.join(bench.folder, f"{kind}-{number}")
        os.makedirs(folder, exist_ok=True)
        # An older build may not read what a newer one has stored.
        build = zlib.crc32(bench.programs["hookbridge"].encode())
        self.data_dir = data_dir or os.path.join(folder, f"{group}-{build:08x}")
        address = bench.brokers.addresses[kind]
        of_broker, of_source = {
            "rabbitmq": ({"url": address}, {"queue": topic, "declare": False}),
            "kafka": ({"bootstrap": [address]}, {"topics": [topic], "start": "earliest"}),
            "embedded": ({"max_bytes": "8GiB"}, {"topics": ["#"]}),
        }[kind]
        tiers = {"tiers": [f"{seconds}s" for seconds in TIERS]}
        settings = {
            "group": group,
            # Leaves the consumer group when it ends: the next one has another topic.
            "instance": "auto",
            "data_dir": self.data_dir,
            "admin": {"listen": self.admin},
            "delivery": {"allow_http": True, "allow_networks": ["127.0.0.0/8"]},
            "brokers": {"bench": {kind: of_broker, **({} if kind == "embedded" else tiers)}},
            "sources": {"bench": {"broker": "bench", **of_source}},
            "subscriptions": subscriptions,
        }
        if bench.options.workers:
            settings["limits"] = {"workers": bench.options.workers}
        config = os.path.join(folder, "bench.yaml")
        with open(config, "w") as file:
            json.dump(settings, file)  # JSON is YAML
        self.began = time.monotonic()
        cores = bench.cores.of_instance(number)
        command = ["taskset", "-c", cores, bench.programs["hookbridge"], "run", "--config", config]
        super().__init__(command, os.path.join(folder, "bridge.log"))
        if perf:
            command = ["perf", "record", "-q", "-g", "-F", "1999", "-o", perf, "-p", str(self.process.pid)]
            self.profiler = subprocess.Popen(command)

    def ready(self, seconds=120):
        """Waits; how long that was, in seconds since it started."""
        deadline = time.monotonic() + seconds
        while not read(f"http://{self.admin}/readyz"):
            if self.ended() or time.monotonic() > deadline:
                raise Failed(f"the bridge does not become ready; see {self.log}")
            time.sleep(0.02)
        return time.monotonic() - self.began

    def total(self, name, label=""):
        """The sum of a metric over all label values, or those with `label`."""
        lines = read(f"http://{self.admin}/metrics").splitlines()
        lines = (line for line in lines if line.startswith(name) and label in line)
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def check(self, deliveries, may_park):
        """A figure counts only if everything arrived, and nothing took a detour where that is
        not allowed; the share that took one."""
        parked = self.total("hookbridge_deliveries_parked_total")
        delivered = self.total("hookbridge_delivery_attempts_total", 'outcome="delivered"')
        if delivered < deliveries or (parked and not may_park):
            raise Failed(f"{self.kind}: {delivered:.0f} of {deliveries} delivered, {parked:.0f} parked; see {self.log}")
        return parked / deliveries

    def stop(self):
        if self.perf:
            stop(self.profiler)
        super().stop()


def endpoint(url, **more):
    return {"url": url, "secret": SECRET, "signature": "standard", **more}


def subscription(url, concurrency=64, topics=("#",), **more):
    """With an endpoint of its own; keys of the endpoint are in `endpoint`."""
    of_endpoint = more.pop("endpoint", {})
    return {"topics": list(topics), "endpoint": {**endpoint(url), **of_endpoint}, "concurrency": concurrency, **more}


def wait_for(sink, processes, count):
    """Polls the sink until it has answered so many; what the processes had used by then."""
    moved_at, known = time.monotonic(), -1
    while True:
        answered = sink.count()
        if answered >= count:
            return {"count": answered, "cpu": sum(p.cpu() for p in processes), "at": time.monotonic()}
        if answered != known:
            moved_at, known = time.monotonic(), answered
        ended = [p for p in processes if p.ended()]
        if ended or time.monotonic() - moved_at > STALLED_AFTER:
            raise Failed(f"no more deliveries at {answered} of {count}; see {(ended or processes)[0].log}")
        time.sleep(0.02)


def until(what, seconds, why):
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise Failed(why)
        time.sleep(0.1)


def read(url):
    """The answer's body, and nothing unless it is a good one."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""
