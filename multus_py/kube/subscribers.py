# SPDX-License-Identifier: Apache-2.0
"""Who is told of the changes of a collection."""

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

    def tell(self, old: T | None, new: T | None) -> None:
        """Tell all of one change."""
        for each in self._callbacks:
            try:
                each(old, new)
            except Exception:  # one that fails must stop neither the thread that tells nor the others
                log.exception("a subscriber to the %s failed", self._noun)
