# SPDX-License-Identifier: Apache-2.0
"""Processes that attach beside the daemon's own: asked in a burst only, and nobody misses one that dies."""

import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from running import ended, until
from stage import namespace

from multus_py.agent.concurrency import worker_process, workers
from multus_py.agent.concurrency.call_limits import CallLimits
from multus_py.agent.concurrency.worker_process import MESSAGE, Answer
from multus_py.agent.concurrency.workers import Workers
from multus_py.cni import conflist
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError
from multus_py.kernel import netlink
from multus_py.plan.attachment import Attachment
from multus_py.state.result_cache import ResultCache
from multus_py.verbs.chain import Chain
from multus_py.verbs.plugins import Plugins


def workers_of(pid: int) -> list[int]:
    """Return the processes that attach for the daemon *pid*, the first one first."""
    parents, theirs = {}, set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            one = int(path.parent.name)
            parents[one] = int(path.read_text().rpartition(")")[2].split()[1])
            if b"worker_process" in (path.parent / "cmdline").read_bytes():
                theirs.add(one)
    first = [one for one in theirs if parents[one] == pid]
    return first + sorted(one for one in theirs if parents[one] in first)


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


class Line:
    """The processes as the daemon has them, and what was told of the delegates that ran in them."""

    def __init__(self, folder, count=1, seconds=120.0):
        self.seen = []
        self.limits = CallLimits(8, 8)
        self.workers = Workers(count, self.limits, lambda *one: self.seen.append(one))
        self.chain = Chain(Plugins("builtin", seconds), ResultCache(folder))

    def add(self, *plugins):
        """Ask for the chains of a sandbox with these plugins; the processes live in the namespace of the test."""
        networks = [
            Attachment(f"n{n}", conflist.parse({"cniVersion": "1.0.0", "name": f"n{n}", **plugin}), f"net{n}", n == 0)
            for n, plugin in enumerate(plugins)
        ]
        done = self.workers.add(tuple(networks), Call("ADD", "c1", "/nowhere", "eth0", path=("/nowhere",)), self.chain)
        return None if done is None else [body for body, _ in done]

    def started(self):
        """Wait until tasks can come; return the process ids."""
        self.workers._ready()
        until(lambda: self.workers._group)
        return [one for one in workers_of(os.getpid()) if one in descendants(first_of(self.workers))]


def first_of(found):
    """Return the process id of the first of the processes."""
    return found._group._first._pid


def descendants(pid):
    """Return a process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.fixture
def line(tmp_path):
    """One process that can take a task."""
    found = Line(tmp_path)
    try:
        assert found.add(STATIC) is None  # none is started yet
        found.started()
        yield found
    finally:
        found.workers.close()


STATIC = {"type": "static", "ipam": {"type": "static", "addresses": [{"address": "10.7.0.2/24"}]}}  # touches nothing
REFUSED = {"type": "bridge", "hairpinMode": True, "promiscMode": True}  # while the config is read


def test_the_answers_are_the_delegates_own(line, tmp_path):
    """The results come back as the delegates said them, are kept, and what ran is told with its time."""
    body = {"cniVersion": "1.0.0", "ips": [{"address": "10.7.0.2/24"}]}
    assert line.add(STATIC, STATIC) == [body, body]
    assert [(plugin, verb, code) for plugin, verb, _, code in line.seen] == [("static", "ADD", 0)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n0-c1-net0", "n1-c1-net1"]


def test_an_error_keeps_its_code_and_words(line):
    """What a delegate raises there is raised here, and the networks behind it are not tried."""
    with pytest.raises(CniError, match=r"network n1 as net1: plugin bridge: .*hairpin mode and promisc") as raised:
        line.add(STATIC, REFUSED, STATIC)
    assert (raised.value.code, raised.value.details) == (7, "choose one of the two")
    assert [code for *_, code in line.seen] == [0, 7]


def test_a_task_that_is_too_large_is_done_here(line):
    """What the line does not take at once is nobody's task."""
    assert line.add({**STATIC, "_comment": "x" * MESSAGE}) is None
    assert line.add(STATIC) is not None


def test_the_death_of_the_only_process_is_an_error_to_try_again(line):
    """Code 11 for the task it had, none for those that come before another one is there."""
    (worker,) = line.started()
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(line.add, STATIC)
        until(asked.running)
        time.sleep(0.1)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(CniError, match="process that attached died") as raised:
            asked.result()
    assert raised.value.code == 11
    assert line.add(STATIC) is None
    (another,) = line.started()
    assert another != worker
    assert line.add(STATIC) is not None


@pytest.mark.parametrize("which", [0, 1], ids=["the first", "the other"])
def test_one_of_two_that_dies_is_replaced(tmp_path, which):
    """Whoever dies, the tasks that come later are done, and in the end there are two again."""
    line = Line(tmp_path, 2)
    try:
        before = line.started()
        assert len(before) == 2
        os.kill(before[which], signal.SIGKILL)
        until(lambda: not running_still(before[which]))

        def two_again():
            with suppress(CniError):
                line.add(STATIC)
            now = line.started()
            return len(now) == 2 and before[which] not in now

        until(two_again)
        assert all(line.add(STATIC) for _ in range(8))
    finally:
        line.workers.close()
    assert not [one for one in before if running_still(one)]


def test_one_that_hangs_is_ended_and_replaced(tmp_path):
    """A stopped process is code 11 after the time of an executable, is gone then, and another one does what comes."""
    line = Line(tmp_path, 2, seconds=1.0)
    try:
        assert line.add(STATIC) is None
        before = line.started()
        for one in before:
            os.kill(one, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(CniError, match=r"did not answer within 1 s and was ended") as raised:
            line.add(STATIC)
        assert raised.value.code == 11
        assert time.monotonic() - started < 5
        until(lambda: not [one for one in before if running_still(one)])
        assert line.add(STATIC) is None
        assert not set(line.started()) & set(before)
        assert line.add(STATIC) is not None
    finally:
        line.workers.close()


def test_a_full_line_is_not_waited_for(tmp_path):
    """What stopped processes leave no room for is done by the caller at once, not after the time of an executable."""
    line = Line(tmp_path, seconds=8.0)
    large = {**STATIC, "_comment": "x" * 60_000}
    with ThreadPoolExecutor(8) as pool:
        try:
            assert line.add(STATIC) is None
            (worker,) = line.started()
            os.kill(worker, signal.SIGSTOP)
            asked = [pool.submit(line.add, large) for _ in range(8)]
            until(lambda: [one for one in asked if one.done()], seconds=7)
            assert {one.result() for one in asked if one.done()} == {None}
            codes = [one.exception().code for one in asked if one.exception()]
            assert len(codes) >= 2
            assert set(codes) == {11}
        finally:
            line.workers.close()


def test_an_answer_that_is_cut_short_is_an_error_to_try_again():
    """A process that is killed while it writes its answer is missed as one that wrote nothing."""
    whole = pickle.dumps(Answer([({"ips": ["10.0.0.1/24"] * 20}, 0.1)], None, []))
    assert workers._read_answer(whole).error is None
    for length in range(len(whole)):
        with pytest.raises(CniError, match="process that attached died"):
            workers._read_answer(whole[:length])


def test_processes_that_hang_at_their_start_are_ended(tmp_path, monkeypatch):
    """Calls go on without them; they are ended when their time is over, and started anew only after a rest."""
    monkeypatch.setattr(worker_process, "__name__", "time import sleep; sleep(60)  # worker_process")
    limits = CallLimits(8, 8)
    found = workers.Workers(1, limits, lambda *one: None, start_timeout=0.5)
    chain = Chain(Plugins("builtin"), ResultCache(tmp_path))
    call = Call("ADD", "c1", "/nowhere", "eth0", path=("/nowhere",))
    assert found.add((), call, chain) is None
    hanging = []
    until(lambda: hanging or hanging.extend(workers_of(os.getpid())))
    until(lambda: not [one for one in hanging if running_still(one)])
    assert found.add((), call, chain) is None
    assert not found._starting
    found.close()


def running_still(pid):
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
