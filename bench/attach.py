# SPDX-License-Identifier: Apache-2.0
"""How fast pods are attached and detached, and how much memory it takes: our daemon natively, with executables, others.

A pod has three networks: a bridge as default, another bridge, a macvlan; host-local addresses; a folder of manifests.
    .venv/bin/python bench/attach.py [--pods 40] [--burst 100] [--rounds 3] [--plugin NAME=/path/to/it:CONFIG.json ...]
A plugin given on the command line is called in the same run with CONFIG.json on its standard input. All are measured in
turns, round by round, so that whatever else the machine does slows all of them.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1] / "tests")]

from running import Running
from stage import Stage, namespace

from multus_py.install import shim
from multus_py.kernel import namespaces

BACKENDS = ("builtin", "exec")


@dataclass(frozen=True)
class Subject:
    """What is measured: a plugin executable and its config; *owner* is the process of its daemon, 0 for none."""

    name: str
    plugin: Path
    config: bytes
    owner: int = 0


def peak(roots: Sequence[int], end: Connection) -> None:
    """Tell, once something comes through *end*, the most memory (PSS, MB) that the family of *roots* had together.

    For a process of its own: in this one, the threads that call plugins would leave it time for a few looks only.
    """
    most = 0.0
    while not end.poll(0.002):
        most = max(most, sum(map(pss, family(roots))) / 1024)
    end.send(most)


def family(roots: Sequence[int]) -> set[int]:
    """Return *roots* and the processes below them."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def pss(pid: int) -> int:
    """Return a process's proportional set size in kB (proc(5), smaps_rollup).

    0 when it is gone, and for this program: what a child has that is about to become a plugin is still ours.
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
    context, (end, theirs) = multiprocessing.get_context("fork"), multiprocessing.Pipe()
    watcher = context.Process(target=peak, args=([os.getpid(), *([subject.owner] if subject.owner else [])], theirs))
    watcher.start()
    with ThreadPoolExecutor(len(pods)) as pool:
        list(pool.map(lambda pod: call(subject, "ADD", *pod), pods))
        end.send(None)
        most: float = end.recv()
        list(pool.map(lambda pod: call(subject, "DEL", *pod), pods))
    watcher.join()
    return most


def row(rounds: Sequence[tuple[dict[str, list[float]], dict[str, list[float]]]], peak: float) -> dict[str, float]:
    """Return a subject's figures over all its rounds, each of which is one at a time and eight at a time."""
    found = {}
    for label, runs in zip(("1", "8"), zip(*rounds, strict=True), strict=True):
        for verb in ("ADD", "DEL"):
            times = sorted(took for run in runs for took in run[verb])
            found[f"{verb} x{label} median"] = statistics.median(times)
            found[f"{verb} x{label} p99"] = times[int(len(times) * 0.99) - 1]
    for verb in ("ADD", "DEL"):
        found[f"{verb} x8 pods/s"] = statistics.median(eight[f"{verb} rate"][0] for _, eight in rounds)
    return {**found, "peak MB": peak}


def show(name: str, figures: dict[str, float]) -> None:
    """Print a subject's figures."""
    print(f"\n{name}")
    for key, value in figures.items():
        print(f"  {key:<16} {value:8.1f}{' ms' if 'median' in key or 'p99' in key else ''}")


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


def plugin(words: str) -> Subject:
    """Return the plugin that NAME=PATH:CONFIG names."""
    name, _, rest = words.partition("=")
    path, _, config = rest.partition(":")
    return Subject(name, Path(path), Path(config).read_bytes())


def main() -> None:
    """Measure all subjects in one run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=40)
    parser.add_argument("--burst", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, in turns")
    parser.add_argument("--plugin", action="append", default=[], metavar="NAME=PATH:CONFIG")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = stack.enter_context(namespace())
        pods = [(f"bench{n}", stack.enter_context(namespace())) for n in range(max(args.pods, args.burst))]
        names = [name for name, _ in pods]
        others = [plugin(words) for words in args.plugin]
        peaks = []
        for backend in BACKENDS:  # each alone: what two daemons share would count for half
            with daemon(folder / f"{backend}-burst", host, backend, names) as subject:
                measured(subject, pods[:16], 8)
                peaks.append(burst(subject, pods[: args.burst]))
        peaks += [namespaces.run_in(host, partial(burst, other, pods[: args.burst])) for other in others]
        subjects = [stack.enter_context(daemon(folder / backend, host, backend, names)) for backend in BACKENDS]
        subjects += others
        rounds: list[list[Any]] = [[] for _ in subjects]
        for number in range(-1, args.rounds):
            for subject, found in zip(subjects, rounds, strict=True):
                if number < 0:  # warm: processes are started, modules imported
                    namespaces.run_in(host, partial(measured, subject, pods[:16], 8))
                    continue
                found.append(
                    [namespaces.run_in(host, partial(measured, subject, pods[: args.pods], n)) for n in (1, 8)]
                )
        rows = {subject.name: row(*told) for subject, *told in zip(subjects, rounds, peaks, strict=True)}
    for name, figures in rows.items():
        show(name, figures)
    native, *rest = rows
    print(f"\n{native} is better than the others by a factor of")
    for name in rest:
        factors = {key: rows[name][key] / rows[native][key] for key in rows[name] if key.endswith(("median", "MB"))}
        print(f"  {name}:", ", ".join(f"{key} {value:.1f}" for key, value in factors.items()))


if __name__ == "__main__":
    main()
