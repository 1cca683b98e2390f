# SPDX-License-Identifier: Apache-2.0
"""A cache of a collection: what its watch reported, and newer objects that were read in addition to it."""

import threading
from collections.abc import Callable, Iterable
from typing import Generic

from multus_py.kube.objects import T


class Cache(Generic[T]):
    """The records of a collection by namespace and name; *changed* is called with (old, new) of changes by the watch.

    `get`, `all` and `put` are for every thread; the rest is for the one that follows the watch, and only that thread
    calls *changed*. The copy is as of a version; a record that was `put` counts until the copy has come as far.
    """

    def __init__(self, changed: Callable[[T | None, T | None], None] | None = None) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], T] = {}
        self._ahead: dict[tuple[str, str], T] = {}
        self._version = 0

    def get(self, namespace: str, name: str) -> T | None:
        """Return the record, None when the cache has none."""
        with self._lock:
            key = (namespace, name)
            return self._ahead.get(key) or self._records.get(key)

    def all(self) -> list[T]:
        """Return all records, in no order."""
        with self._lock:
            return list({**self._records, **self._ahead}.values())

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
        known = self._records.get((record.namespace, record.name))
        return known if known and known.version == record.version != 0 else record

    def replace(self, found: Iterable[T], version: int) -> None:
        """Take the whole list, as of *version*: what is not in it is gone."""
        records = {(each.namespace, each.name): each for each in found}
        with self._lock:
            before, self._records = self._records, records
            self._reach(version)
        for key in before.keys() | records.keys():
            self._report(before.get(key), records.get(key))

    def upsert(self, new: T) -> None:
        """Take the record of an added or modified object."""
        key = (new.namespace, new.name)
        with self._lock:
            old = self._records.get(key)
            self._records[key] = new
            self._reach(new.version)
        self._report(old, new)

    def remove(self, namespace: str, name: str, version: int) -> None:
        """Drop the record of an object that was deleted at *version*, or that belongs here no more."""
        with self._lock:
            old = self._records.pop((namespace, name), None)
            self._reach(version)
        self._report(old, None)

    def advance(self, version: int) -> None:
        """Record that everything up to *version* was reported."""
        with self._lock:
            self._reach(version)

    def _reach(self, version: int) -> None:
        self._version = version
        if self._ahead:
            self._ahead = {key: each for key, each in self._ahead.items() if each.version > version}

    def _report(self, old: T | None, new: T | None) -> None:
        if self._changed and old != new:
            self._changed(old, new)
