"""The receiver (`benches/client/sink.rs`), and what it can be asked."""

import http.client
import json
import os
import socket
import subprocess


class Sink:
    def __init__(self, client, cores, folder):
        command = ["taskset", "-c", cores.theirs, client, "sink", folder]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port, self.http1_port, self.http2_port = self.process.stdout.readline().split()
        self.ca = os.path.join(folder, "ca.pem")
        self.line = http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=60)

    def url(self, path="in", host="127.0.0.1"):
        return f"http://{host}:{self.port}/{path}"

    def host(self, number):
        """One of sixteen million hosts, all of them this machine."""
        return f"127.{1 + number // 60_000}.{number // 250 % 240}.{1 + number % 250}"

    def ask(self, path):
        try:
            self.line.request("GET", path)
        except (http.client.HTTPException, OSError):
            self.line.close()
            self.line.request("GET", path)
        return self.line.getresponse().read()

    def count(self):
        """POSTs answered with 200 since it started."""
        return int(self.ask("/in"))

    def reset(self, kind=None):
        self.ask(f"/reset/{kind}" if kind else "/reset")

    def down(self):
        self.ask("/down")

    def up(self):
        self.ask("/up")

    def stats(self, kind="in"):
        """What has come to one kind of path since `reset`."""
        none = ("requests", "answered", "distinct", "ages", "p50_us", "p99_us", "p999_us", "max_us")
        return json.loads(self.ask("/stats")).get(kind) or {**dict.fromkeys(none, 0), "seconds": 0.0, "caught_up_s": 0.0}

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def closed_port():
    """A port at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
