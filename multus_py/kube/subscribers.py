# SPDX-License-Identifier: Apache-2.0
"""The subscribers to the changes of a collection."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("multus_py")

T = TypeVar("T")


class Subscribers(Generic[T]):
    """Calls with (old, new) of each change; None stands for absence. *noun* is the collection, for the log."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._callbacks: list[Callable[[T | None, T | None], None]] = []

    def add(self, callback: Callable[[T | None, T | None], None]) -> None:
        """Have *callback* called, on the thread that learns of a change."""
        self._callbacks.append(callback)

    def publish(self, old: T | None, new: T | None) -> None:
        """Call all subscribers with one change."""
        for each in self._callbacks:
            try:
                each(old, new)
            except Exception:  # an error of one must stop neither this thread nor the others
                log.exception("a subscriber to the %s failed", self._noun)
