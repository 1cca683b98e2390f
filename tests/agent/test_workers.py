# SPDX-License-Identifier: Apache-2.0
"""Processes that attach beside the daemon's own: asked in a burst only, and nobody misses one that dies."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from running import ended, until
from story import namespace

from multus_py import netlink
from multus_py.agent.lanes import Turn
from multus_py.agent.workers import Workers
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError


def workers_of(pid: int) -> list[int]:
    """Return the processes that attach for the daemon *pid*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"worker_process" in (path.parent / "cmdline").read_bytes():
                found.append(int(path.parent.name))
    return found


def burst(running, pods, verb):
    """Call the shim for all pods at once; return exit codes and answers."""
    calls = [running.shim(verb, "p", f"w{n}", netns=netns) for n, netns in enumerate(pods)]
    return [ended(call) for call in calls]


def test_a_burst_is_shared_and_a_single_call_is_not(running, leftovers):
    """One call at a time starts no process; a burst does, every pod gets all its networks, and DEL leaves nothing."""
    running.start(attachProcesses=2)
    with ExitStack() as stack:
        pods = [stack.enter_context(namespace()) for _ in range(12)]
        assert running.call("ADD", "p", "alone", netns=pods[0])[0] == 0
        assert running.call("DEL", "p", "alone", netns=pods[0])[0] == 0
        assert workers_of(running.process.pid) == []
        for _ in range(2):  # the first burst starts them, the second finds them
            assert {code for code, _ in burst(running, pods, "ADD")} == {0}
            for netns in pods:
                with netlink.open(netns) as kernel:
                    assert kernel.link_names() == {"lo", "eth0", "net1", "net2"}
            until(lambda: len(workers_of(running.process.pid)) == 2, running.log)
            assert {code for code, _ in burst(running, pods, "DEL")} == {0}
            assert leftovers(running, *pods) == []
        theirs = workers_of(running.process.pid)
        cpu = sum(int(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11]) for one in theirs)
        assert cpu > 10  # ticks: importing alone takes fewer
        running.stop()
        until(lambda: not any(Path(f"/proc/{one}").exists() for one in theirs))


def test_one_that_is_killed_is_missed_by_nobody(running, leftovers):
    """A process that dies at work fails its call with a code to try again; what it began is taken back."""
    running.start(attachProcesses=2)
    done = threading.Event()
    codes = set()
    with ExitStack() as stack, ThreadPoolExecutor(1) as killer:
        pods = [stack.enter_context(namespace()) for _ in range(10)]

        def kill_them():
            while not done.wait(0.05):
                for one in workers_of(running.process.pid):
                    os.kill(one, signal.SIGKILL)

        killing = killer.submit(kill_them)
        try:
            for _ in range(6):
                for code, answer in burst(running, pods, "ADD"):
                    codes.add(answer["code"] if code else 0)
                burst(running, pods, "DEL")
        finally:
            done.set()
        killing.result()
        assert codes <= {0, 11}
        assert leftovers(running, *pods) == []
        assert {code for code, _ in burst(running, pods, "ADD")} == {0}
        assert {code for code, _ in burst(running, pods, "DEL")} == {0}
        assert leftovers(running, *pods) == []


@pytest.fixture
def workers():
    """One process that can take a call, and what was told of its delegates."""
    seen = []
    found = Workers(1, Turn(), lambda *one: seen.append(one))
    try:
        assert found.run("bridge", Call("ADD")) is None  # none is started yet
        until(lambda: found._idle)
        yield found, seen
    finally:
        found.close()


def call(plugin_type, **more):
    """Return an ADD that touches nothing: the process lives in the namespace of the test itself."""
    ipam = {"type": "static", "addresses": [{"address": "10.7.0.2/24"}]}
    config = {"cniVersion": "1.0.0", "name": "n", "type": plugin_type, "ipam": ipam, **more}
    return Call("ADD", "c1", "/nowhere", "eth0", (("IgnoreUnknown", "1"),), ("/nowhere",), config)


BOTH = {"hairpinMode": True, "promiscMode": True}  # refused while the config is read


def test_the_answer_is_the_delegates_own(workers):
    """The result comes back as the delegate said it, and what ran is told with its time."""
    asked, seen = workers
    body = asked.run("static", call("static"))
    assert body == {"cniVersion": "1.0.0", "ips": [{"address": "10.7.0.2/24"}]}
    assert [(plugin, verb, code) for plugin, verb, _, code in seen] == [("static", "ADD", 0)]


def test_an_error_keeps_its_code_and_words(workers):
    """What the delegate raises there is raised here."""
    asked, seen = workers
    with pytest.raises(CniError, match=r"plugin bridge: .*hairpin mode and promiscuous mode") as raised:
        asked.run("bridge", call("bridge", **BOTH))
    assert (raised.value.code, raised.value.details) == (7, "choose one of the two")
    assert seen[0][3] == 7


def test_the_death_of_a_process_is_an_error_to_try_again(workers):
    """Code 11, and another process takes its place."""
    asked, _ = workers
    (worker,) = asked._idle
    os.kill(worker._pid, signal.SIGKILL)
    with pytest.raises(CniError, match="process that attached died") as raised:
        asked.run("bridge", call("bridge", **BOTH))
    assert raised.value.code == 11
    assert asked.run("bridge", call("bridge", **BOTH)) is None
    until(lambda: asked._idle)
    with pytest.raises(CniError, match="hairpin mode"):
        asked.run("bridge", call("bridge", **BOTH))
