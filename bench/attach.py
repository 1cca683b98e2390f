# SPDX-License-Identifier: Apache-2.0
"""How fast pods are attached and detached, and how much memory it takes: our daemon natively, with executables, others.

A pod has three networks: a bridge as default, another bridge, a macvlan; host-local addresses; a folder of manifests.
    .venv/bin/python bench/attach.py [--pods 40] [--burst 100] [--plugin NAME=/path/to/plugin:CONFIG.json ...]
A plugin given on the command line is called in the same run with CONFIG.json on its standard input.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1] / "tests")]

from running import Running
from story import Stage, namespace

from multus_py import netlink, shim


@dataclass(frozen=True)
class Subject:
    """What is measured: a plugin executable and its config; *owner* is the process of its daemon, 0 for none."""

    name: str
    plugin: Path
    config: bytes
    owner: int = 0


@dataclass
class Peak:
    """The most memory (PSS, MB) that this process's other children and the daemon with its children used together."""

    roots: Sequence[int]
    most: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Look every few milliseconds until told to stop."""
        while not self.stop.wait(0.005):
            self.most = max(self.most, sum(map(pss, family(self.roots))) / 1024)


def family(roots: Sequence[int]) -> set[int]:
    """Return the processes below *roots*, and the roots that are not this process."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def pss(pid: int) -> int:
    """Return a process's proportional set size in kB (proc(5), smaps_rollup).

    0 when it is gone, and for a child of ours that is about to become a plugin: what it has is still this program's.
    """
    try:
        if Path(f"/proc/{pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes():
            return 0
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def call(subject: Subject, verb: str, container: str, netns: str) -> float:
    """Call the plugin as a runtime does; return the milliseconds it took."""
    env = {
        "CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni", "PATH": os.environ["PATH"],
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}"
                    f";K8S_POD_INFRA_CONTAINER_ID={container}",
    }  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run([subject.plugin], input=subject.config, env=env, capture_output=True, check=False)
    took = (time.perf_counter() - started) * 1000
    if done.returncode:
        raise SystemExit(f"{subject.name}: {verb} failed: {done.stdout.decode()} {done.stderr.decode()}")
    return took


def measured(subject: Subject, pods: Sequence[tuple[str, str]], workers: int) -> dict[str, list[float]]:
    """Attach and detach every pod, *workers* at a time; return the milliseconds of each call by verb."""
    times = {}
    with ThreadPoolExecutor(workers) as pool:
        for verb in ("ADD", "DEL"):
            started = time.perf_counter()
            jobs = [pool.submit(call, subject, verb, container, netns) for container, netns in pods]
            times[verb] = [job.result() for job in jobs]
            times[f"{verb} rate"] = [len(pods) / (time.perf_counter() - started)]
    return times


def burst(subject: Subject, pods: Sequence[tuple[str, str]]) -> float:
    """Attach all pods at once; return the peak memory in MB, and detach them again."""
    peak = Peak([os.getpid(), *([subject.owner] if subject.owner else [])])
    watcher = threading.Thread(target=peak.watch)
    watcher.start()
    with ThreadPoolExecutor(len(pods)) as pool:
        list(pool.map(lambda pod: call(subject, "ADD", *pod), pods))
        peak.stop.set()
        watcher.join()
        list(pool.map(lambda pod: call(subject, "DEL", *pod), pods))
    return peak.most


def report(
    subject: Subject, pods: Sequence[tuple[str, str]], burst_pods: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Measure a subject and print its line."""
    measured(subject, pods[:16], 8)  # warm: processes are started, modules imported
    one, eight = measured(subject, pods, 1), measured(subject, pods, 8)
    memory = burst(subject, burst_pods)
    row = {}
    for label, times in (("1", one), ("8", eight)):
        for verb in ("ADD", "DEL"):
            row[f"{verb} x{label} median"] = statistics.median(times[verb])
            row[f"{verb} x{label} p99"] = sorted(times[verb])[int(len(times[verb]) * 0.99) - 1]
    row |= {"ADD x8 pods/s": eight["ADD rate"][0], "DEL x8 pods/s": eight["DEL rate"][0], "peak MB": memory}
    print(f"\n{subject.name}")
    for name, value in row.items():
        print(f"  {name:<16} {value:8.1f}{' ms' if 'median' in name or 'p99' in name else ''}")
    return row


@contextmanager
def daemon(folder: Path, host: str, backend: str, names: Sequence[str]) -> Iterator[Subject]:
    """Run our daemon with one backend for pods of these *names*; the shim is the plugin."""
    folder.mkdir()
    pool = {"type": "host-local", "dataDir": str(folder / "ipam")}
    bridge = {"cniVersion": "1.0.0", "type": "bridge", "isGateway": True}
    cluster = {**bridge, "name": "cluster", "bridge": f"d{backend}", "isDefaultGateway": True}
    stage = Stage(folder, settings={"delegates": [{**cluster, "ipam": {**pool, "subnet": "10.88.0.0/16"}}]})
    stage.definition("b", {**bridge, "bridge": f"b{backend}", "ipam": {**pool, "subnet": "10.89.0.0/16"}})
    stage.definition("m", {"cniVersion": "1.0.0", "type": "macvlan", "master": f"b{backend}",
                           "ipam": {**pool, "subnet": "10.90.0.0/16"}})  # fmt: skip
    annotations = {"k8s.v1.cni.cncf.io/networks": "b,m"}
    pods = [{"metadata": {"name": name, "annotations": annotations}} for name in names]
    (folder / "manifests" / "pods.json").write_text(json.dumps({"apiVersion": "v1", "kind": "PodList", "items": pods}))
    running = Running(stage, host, {"delegateBackend": backend, "binDir": "/usr/lib/cni", "logLevel": "warning"})
    running.start()
    config = {"cniVersion": "1.0.0", "name": "mp", "type": "multus-py", "socketDir": str(folder / "run"),
              "cniDir": str(folder / "cni")}  # fmt: skip
    try:
        assert running.process
        yield Subject(f"multus-py daemon, {backend}", shim.path(), json.dumps(config).encode(), running.process.pid)
    finally:
        running.stop()


def main() -> None:
    """Measure all subjects in one run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=40)
    parser.add_argument("--burst", type=int, default=100)
    parser.add_argument("--plugin", action="append", default=[], metavar="NAME=PATH:CONFIG")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = stack.enter_context(namespace())
        count = max(args.pods, args.burst)
        pods = [(f"bench{n}", stack.enter_context(namespace())) for n in range(count)]
        for backend in ("builtin", "exec"):
            with daemon(folder / backend, host, backend, [name for name, _ in pods]) as subject:
                rows[backend] = report(subject, pods[: args.pods], pods[: args.burst])
        for words in args.plugin:
            name, _, rest = words.partition("=")
            path, _, config = rest.partition(":")
            subject = Subject(name, Path(path), Path(config).read_bytes())
            measure: Callable[[], dict[str, float]] = lambda s=subject: report(s, pods[: args.pods], pods[: args.burst])  # noqa: E731
            rows[name] = netlink.visit(host, measure)
    print("\nnative is faster than the others by a factor of")
    for name, row in rows.items():
        if name != "builtin":
            factors = {key: row[key] / rows["builtin"][key] for key in row if key.endswith(("median", "MB"))}
            print(f"  {name:<16}", ", ".join(f"{key} {value:.1f}" for key, value in factors.items()))


if __name__ == "__main__":
    main()
