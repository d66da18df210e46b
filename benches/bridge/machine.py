"""The machine: what is built on it, which cores are whose, and what a process has used of it."""

import glob
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WORK = os.path.join(ROOT, "target", "bench")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A measurement that counts for nothing, and why."""


class Cores:
    """The first core is the bridge's or the floor's. The brokers, the sink and the publishers have
    the others."""

    def __init__(self):
        every = sorted(os.sched_getaffinity(0))
        self.count = len(every)
        self.all = ",".join(map(str, every))
        self.ours = str(every[0])
        self.theirs = ",".join(map(str, every[1:] or every))

    def of_instance(self, number):
        """Instances have a core each where there are enough of them."""
        every = self.all.split(",")
        return every[number] if len(every) >= 4 else self.ours


def run(*command, **more):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, **more)


def told(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def build(profile):
    """Paths of the bridge and of the benchmark's own programs, by name."""
    # A dev build is as the tests have it, so that it is there already.
    how = ["--release"] if profile == "release" else ["--features", "failpoints"]
    made = executables("build", *how, "--bin", "hookbridge")
    verb = ["bench", "--no-run"] if profile == "release" else ["build", *how]
    return made | executables(*verb, "--bench", "client", "--bench", "index")


def built_before(profile):
    """The same, as they were built last."""
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    folder = os.path.join(target, "release" if profile == "release" else "debug")
    programs = {"hookbridge": os.path.join(folder, "hookbridge")}
    for name in ("client", "index"):
        found = [path for path in glob.glob(f"{folder}/deps/{name}-*") if "." not in os.path.basename(path)]
        programs[name] = max(found, key=os.path.getmtime)
    return programs


def executables(*arguments):
    """What a build makes, by name."""
    cargo = os.environ.get("CARGO", "cargo")
    lines = told(cargo, *arguments, "--locked", "--message-format=json").splitlines()
    messages = [json.loads(line) for line in lines if line.startswith("{")]
    made = [m for m in messages if m.get("executable") and m.get("target")]
    return {m["target"]["name"]: m["executable"] for m in made}


def cpu_seconds(pid):
    """User and system time of a process so far, in steps of the kernel's tick."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def peak_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) / 1024


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def about(cores):
    """What anybody who reads the figures has to know of where they come from."""
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    with open("/proc/meminfo") as file:
        kib = int(re.search(r"MemTotal:\s+(\d+)", file.read())[1])
    return {
        "cores": cores.count,
        "cpu": model[1].strip() if model else platform.machine(),
        "memory_gib": round(kib / 1024 / 1024),
        "kernel": platform.release().partition("-")[0],
        "load_before": round(os.getloadavg()[0], 1),
    }
