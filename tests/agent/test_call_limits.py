# SPDX-License-Identifier: Apache-2.0
"""The lock to compute: in the order of coming, never kept from others by one that waits."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from running import until

from multus_py.agent.concurrency.call_limits import CallLimits, ComputeLock
from multus_py.cni.call import Call


@contextmanager
def started(*deeds: Callable[[], None]) -> Iterator[list[threading.Thread]]:
    """Run each deed in a thread of its own, one begun after the other, and wait for all of them."""
    threads = []
    for deed in deeds:
        threads.append(threading.Thread(target=deed))
        threads[-1].start()
        time.sleep(0.02)  # that they come in this order
    try:
        yield threads
    finally:
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_one_computes_at_a_time_in_the_order_of_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is overtaken, and two never have the lock at once."""
    monkeypatch.setattr("multus_py.agent.concurrency.call_limits._COMPUTE_SECONDS", 10.0)
    lock, order, inside = ComputeLock(), [], []

    def compute(n: int) -> None:
        with lock.acquired():
            assert not inside
            inside.append(n)
            time.sleep(0.03)
            inside.remove(n)
            order.append(n)

    with started(*[lambda n=n: compute(n) for n in range(6)]):
        pass
    assert order == [0, 1, 2, 3, 4, 5]


def test_who_waits_for_an_executable_gives_its_turn_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one begins at once, and giving up what one has no more takes nothing from it."""
    monkeypatch.setattr("multus_py.agent.concurrency.call_limits._COMPUTE_SECONDS", 10.0)
    lock, came, leave = ComputeLock(), threading.Event(), threading.Event()

    def waiting() -> None:
        with lock.acquired():
            lock.release()
            assert came.wait(5)
            lock.release()
        leave.set()

    def next_one() -> None:
        with lock.acquired():
            came.set()
            assert leave.wait(5)
            assert lock._holder == threading.get_ident()

    with started(waiting, next_one):
        pass


def test_what_is_lent_comes_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lends its lock to those who wait goes on before the ones that have not begun."""
    monkeypatch.setattr("multus_py.agent.concurrency.call_limits._COMPUTE_SECONDS", 10.0)
    lock, order, lent = ComputeLock(), [], threading.Event()

    def lends() -> None:
        with lock.acquired():
            until(lock.wanted)
            time.sleep(0.1)  # all three wait now
            with lock.released():
                assert lent.wait(5)
            order.append("lender")

    def waits(name: str) -> None:
        with lock.acquired():
            lent.set()
            time.sleep(0.05)  # the lender wants it back meanwhile
            order.append(name)

    with started(lends, lambda: waits("a"), lambda: waits("b"), lambda: waits("c")):
        pass
    assert order == ["a", "lender", "b", "c"]


def test_a_turn_that_lasts_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for what nobody foresaw holds the others up for a moment and no longer."""
    monkeypatch.setattr("multus_py.agent.concurrency.call_limits._COMPUTE_SECONDS", 0.2)
    lock, stuck, done = ComputeLock(), threading.Event(), []

    def slow() -> None:
        with lock.acquired():
            assert stuck.wait(10)

    def quick() -> None:
        with lock.acquired():
            done.append(time.monotonic())

    begun = time.monotonic()
    with started(slow, quick, quick):
        until(lambda: len(done) == 2, seconds=5)
        stuck.set()
    assert done[0] - begun > 0.15
    with lock.acquired():  # what was lost and given up later leaves nobody before us
        pass


def test_a_del_waits_for_a_del_but_never_for_an_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each verb computes at a time, and who waits for an executable lets the next of its lane begin."""
    monkeypatch.setattr("multus_py.agent.concurrency.call_limits._COMPUTE_SECONDS", 10.0)
    limits, told, leave = CallLimits(8, 8), [], threading.Event()

    def run(verb: str, sandbox: str, story: Callable[[], None]) -> Callable[[], None]:
        call = Call(verb, container_id=sandbox, ifname="eth0", config={})

        def placed() -> None:
            with limits.admitted(call), limits.slot(verb):
                story()

        return placed

    def computes(word: str) -> Callable[[], None]:
        def story() -> None:
            told.append(word)
            assert leave.wait(5)

        return story

    def waits() -> None:
        told.append("waits")
        limits.release()
        assert leave.wait(5)

    with started(
        run("ADD", "a", computes("add")),
        run("DEL", "b", waits),
        run("DEL", "c", computes("del")),
        run("DEL", "d", computes("late")),
    ):
        until(lambda: len(told) == 3)
        time.sleep(0.1)
        assert told == ["add", "waits", "del"]
        assert limits.in_progress == 4
        leave.set()
    assert told == ["add", "waits", "del", "late"]
    assert limits.in_progress == 0
