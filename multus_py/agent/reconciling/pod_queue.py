# SPDX-License-Identifier: Apache-2.0
"""Which pods are to be looked at, and not before when: each pod once, by few threads, again after a pause."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("multus_py")

Key = tuple[str, str]  # namespace and name of a pod; what else is looked at has a key of its own
WORKERS = 2  # one that waits for a slow plugin does not keep all pods waiting


@dataclass
class _Waiting:
    due: float
    tries: int = 0


class PodQueue:
    """Calls *process* with each key that was added; when it returns False again after 1, 2, 4 … *longest* seconds.

    A key is never processed by two threads, and one that is added meanwhile is processed again: the last call
    always began after the last change. What is done is forgotten.
    """

    def __init__(self, process: Callable[[Key], bool], first: float = 1.0, longest: float = 300.0) -> None:
        self._process = process
        self._first, self._longest = first, longest
        self._changed = threading.Condition()
        self._waiting: dict[Key, _Waiting] = {}
        self._working: dict[Key, _Waiting] = {}
        self._closed = False

    def start(self) -> None:
        """Start processing."""
        for n in range(WORKERS):
            threading.Thread(target=self._work, name=f"follow pods {n}", daemon=True).start()

    def close(self) -> None:
        """Start no further call."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def add(self, key: Key, after: float = 0.0) -> None:
        """Have *key* looked at within *after* seconds, because something changed: earlier failures count no more."""
        with self._changed:
            due = time.monotonic() + after
            before = self._waiting.get(key)
            self._waiting[key] = _Waiting(min(due, before.due) if before else due)
            self._changed.notify()

    def offer(self, key: Key) -> None:
        """Have *key* looked at unless it will be anyway: one that failed keeps its pause."""
        with self._changed:
            if key not in self._working:
                self._waiting.setdefault(key, _Waiting(time.monotonic()))
                self._changed.notify()

    def drop(self, key: Key) -> None:
        """Forget what is gone."""
        with self._changed:
            self._waiting.pop(key, None)

    def __len__(self) -> int:
        return len(self._waiting.keys() | self._working.keys())

    def _work(self) -> None:
        while (key := self._taken()) is not None:
            try:
                done = self._process(key)
            except Exception:  # an error of one pod must not stop the others
                log.exception("unexpected error while processing %s; it is retried", key)
                done = False
            self._put_back(key, done)

    def _taken(self) -> Key | None:
        """Wait for the next key that is due, and take it; None when the queue is closed."""
        with self._changed:
            while not self._closed:
                free = [(waiting.due, key) for key, waiting in self._waiting.items() if key not in self._working]
                due, key = min(free, default=(None, None))
                now = time.monotonic()
                if key is not None and due is not None and due <= now:
                    self._working[key] = self._waiting.pop(key)
                    return key
                self._changed.wait(None if due is None else due - now)
        return None

    def _put_back(self, key: Key, done: bool) -> None:
        with self._changed:
            before = self._working.pop(key)
            if not done and key not in self._waiting:
                pause = min(self._longest, self._first * 2.0 ** min(before.tries, 30))
                self._waiting[key] = _Waiting(time.monotonic() + pause, before.tries + 1)
            self._changed.notify()
