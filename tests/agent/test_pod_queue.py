# SPDX-License-Identifier: Apache-2.0
"""Pods wait in one queue: each once, never two threads at one, again after a pause, forgotten when done."""

import threading
import time
from collections import Counter
from itertools import pairwise

import pytest
from running import until

from multus_py.agent.reconciling.pod_queue import PodQueue

P, Q = ("default", "p"), ("default", "q")


@pytest.fixture
def started():
    """Return a function that starts a queue with a look; all are closed in the end."""
    queues = []

    def start(look, **more):
        queue = PodQueue(look, **more)
        queues.append(queue)
        queue.start()
        return queue

    yield start
    for queue in queues:
        queue.close()


def test_the_last_look_begins_after_the_last_change(started):
    """However often a pod is added, it is looked at by one thread at a time, and once more after the last time."""
    state, seen, at_work, most = [0], [], [], []

    def look(key):
        at_work.append(key)
        most.append(at_work.count(key))
        now = state[0]
        time.sleep(0.002)
        seen.append(now)
        at_work.remove(key)
        return True

    queue = started(look)
    for n in range(200):
        state[0] = n
        queue.add(P)
        time.sleep(0.0005)
    until(lambda: not len(queue))
    assert 1 == max(most)
    assert (199, seen) == (seen[-1], sorted(seen))
    assert len(seen) < 200


def test_what_fails_is_tried_again_after_longer_and_longer(started):
    """Each pause is twice the one before, up to the longest."""
    times = []
    queue = started(lambda key: times.append(time.monotonic()) or len(times) > 5, first=0.05, longest=0.2)
    queue.add(P)
    until(lambda: not len(queue))
    pauses = [after - before for before, after in pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.2, 0.2), strict=True))
    assert pauses[-1] < 1


def test_a_change_ends_the_pause_and_a_round_does_not(started):
    """What is new is looked at now; what is offered for the sake of completeness waits as it did."""
    looks = Counter()
    queue = started(lambda key: looks.update([key]) or False, first=60)
    queue.add(P)
    until(lambda: looks[P] == 1 and len(queue) == 1)
    queue.offer(P)
    time.sleep(0.1)
    assert 1 == looks[P]
    queue.add(P)
    until(lambda: looks[P] == 2)
    queue.drop(P)
    until(lambda: not len(queue))


def test_a_slow_pod_does_not_keep_the_others(started):
    """While one look hangs another pod is looked at; what nobody expected ends no thread."""
    hanging, done = threading.Event(), []

    def look(key):
        if key == P:
            return hanging.wait(20)
        if not done.append(key) and len(done) == 1:
            raise RuntimeError("mine")
        return True

    queue = started(look, first=0.01)
    queue.add(P)
    queue.add(Q)
    until(lambda: [Q, Q] == done)
    hanging.set()
    until(lambda: not len(queue))
