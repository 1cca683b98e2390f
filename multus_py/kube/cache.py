# SPDX-License-Identifier: Apache-2.0
"""A copy of a collection in memory: what its watch told, and what was read past the watch because it was newer."""

import threading
from collections.abc import Callable, Iterable
from typing import Generic

from multus_py.kube.objects import T


class Cache(Generic[T]):
    """The records of a collection by namespace and name; *changed* is told (old, new) of each that the watch changed.

    `get`, `all` and `put` are for every thread; the rest is for the one that follows the watch, and only that thread
    calls *changed*. The copy is as of a version; a record that was `put` counts until the copy has come as far.
    """

    def __init__(self, changed: Callable[[T | None, T | None], None] | None = None) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], T] = {}
        self._ahead: dict[tuple[str, str], T] = {}
        self._version = 0

    def get(self, namespace: str, name: str) -> T | None:
        """Return the record, None when there is none in the copy."""
        with self._lock:
            key = (namespace, name)
            return self._ahead.get(key) or self._kept.get(key)

    def all(self) -> list[T]:
        """Return all records, in no order."""
        with self._lock:
            return list({**self._kept, **self._ahead}.values())

    def put(self, fresh: T) -> None:
        """Take a record that was read from the server, unless the copy has come as far as that meanwhile."""
        with self._lock:
            key = (fresh.namespace, fresh.name)
            known = self._ahead.get(key)
            if fresh.version > max(self._version, known.version if known else 0):
                self._ahead[key] = fresh

    def begin_list(self) -> None:
        """Forget what was put so far: the list that is asked for now knows of it."""
        with self._lock:
            self._ahead.clear()

    def reuse(self, record: T) -> T:
        """Return the record that the copy has already when it is of the same version: a new list then takes no room."""
        known = self._kept.get((record.namespace, record.name))
        return known if known and known.version == record.version != 0 else record

    def replace(self, found: Iterable[T], version: int) -> None:
        """Take the whole list, as of *version*: what is not in it is gone."""
        kept = {(each.namespace, each.name): each for each in found}
        with self._lock:
            before, self._kept = self._kept, kept
            self._reach(version)
        for key in before.keys() | kept.keys():
            self._tell(before.get(key), kept.get(key))

    def upsert(self, new: T) -> None:
        """Take the record of an added or modified object."""
        key = (new.namespace, new.name)
        with self._lock:
            old = self._kept.get(key)
            self._kept[key] = new
            self._reach(new.version)
        self._tell(old, new)

    def remove(self, namespace: str, name: str, version: int) -> None:
        """Drop the record of an object that was deleted at *version*, or that belongs here no more."""
        with self._lock:
            old = self._kept.pop((namespace, name), None)
            self._reach(version)
        self._tell(old, None)

    def advance(self, version: int) -> None:
        """Note that everything up to *version* was told."""
        with self._lock:
            self._reach(version)

    def _reach(self, version: int) -> None:
        self._version = version
        if self._ahead:
            self._ahead = {key: each for key, each in self._ahead.items() if each.version > version}

    def _tell(self, old: T | None, new: T | None) -> None:
        if self._changed and old != new:
            self._changed(old, new)
