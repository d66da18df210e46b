"""The brokers: starting them, and making, filling and removing queues and topics."""

import os
import re
import subprocess
import time

from .machine import ROOT, Failed, run, told

NAME = "bench"
# In seconds. Few, since a bridge declares them anew wherever leftovers of another run would disturb.
TIERS = (1, 5, 15, 60)


class Brokers:
    def __init__(self, client, cores, kinds):
        self.client, self.cores = client, cores
        self.kinds = [kind for kind in ("rabbitmq", "kafka") if kind in kinds]
        self.addresses = {"embedded": None}
        self.versions = {}
        if not self.kinds:
            return
        run("taskset", "-c", cores.theirs, "scripts/brokers", "up", *self.kinds, "--name", NAME)
        lines = told("scripts/brokers", "env", *self.kinds, "--name", NAME)
        values = dict(re.findall(r"^export (\w+)=(.*)$", lines, re.M))
        for kind, variable in (("rabbitmq", "HOOKBRIDGE_TEST_AMQP"), ("kafka", "HOOKBRIDGE_TEST_KAFKA")):
            if kind in self.kinds:
                self.addresses[kind] = values[variable]

    def down(self):
        if self.kinds:
            run("scripts/brokers", "down", *self.kinds, "--name", NAME)

    def make(self, kind, **pairs):
        """A new queue or topic; its name."""
        topic = f"bench-{time.time_ns()}"
        self._client(self.cores.all, "make", kind, self.addresses[kind] or "-", topic, **pairs)
        return topic

    def remove(self, kind, topic, group=None):
        """With `group`, also what a bridge of that group has declared."""
        pairs = {"group": group, "tiers": ",".join(map(str, TIERS))} if group else {}
        self._client(self.cores.all, "remove", kind, self.addresses[kind] or "-", topic, **pairs)

    def fill(self, kind, topic, address=None, **pairs):
        """Publishes as fast as it goes, on every core; events per second."""
        address = address or self.addresses[kind]
        count, seconds, _ = self._client(self.cores.all, "publish", kind, address, topic, **pairs)
        return count / seconds

    def publish(self, kind, topic, address=None, **pairs):
        """Begins to publish, beside whatever else runs."""
        address = address or self.addresses[kind]
        return Publisher(self._command(self.cores.theirs, "publish", kind, address, topic, **pairs), pairs)

    def _client(self, cores, *arguments, **pairs):
        command = self._command(cores, *arguments, **pairs)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise Failed(f"{' '.join(arguments[:2])} has failed")
        return tuple(map(float, done.stdout.split()))

    def _command(self, cores, *arguments, **pairs):
        pairs = [f"{name}={value}" for name, value in pairs.items()]
        return ["taskset", "-c", cores, self.client, *arguments, *pairs]


class Publisher:
    """Events on their way."""

    def __init__(self, command, pairs):
        self.count = pairs["count"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def wait(self):
        """How far behind its turn it ever was, in ms."""
        out, _ = self.process.communicate(timeout=600)
        if self.process.returncode:
            raise Failed("publishing has failed")
        confirmed, _, behind_ms = map(float, out.split())
        if confirmed != self.count:
            raise Failed(f"{confirmed:.0f} of {self.count} were confirmed")
        return behind_ms

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def embedded_file(data_dir):
    return os.path.join(data_dir, "embedded-bench.redb")
