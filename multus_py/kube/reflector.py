# SPDX-License-Identifier: Apache-2.0
"""List and watch one collection for as long as the process lives, whatever becomes of the server and the way to it."""

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from multus_py.cni.errors import CniError, Code
from multus_py.kube.cache import Cache
from multus_py.kube.http import Expired, Request, Retryable
from multus_py.kube.objects import Collection, T, number
from multus_py.kube.session import Client

log = logging.getLogger("multus_py")


@dataclass(frozen=True)
class Timing:
    """How patient a watch is, all in seconds.

    *stale_after*: how long a cache is used after its watch broke. *first_pause* and *longest_pause* before a retry.
    *read_timeout*: a watch without events for so long counts as broken; servers send a bookmark every minute or so.
    *watch_timeout*: the requested length of a watch, at least; it lasts up to twice as long. *page_timeout*: how long a
    list may wait for each page.
    """

    stale_after: float = 30
    first_pause: float = 0.5
    longest_pause: float = 30
    read_timeout: float = 100
    watch_timeout: float = 240
    page_timeout: float = 30


class Reflector(Generic[T]):
    """One thread that keeps a copy of a collection (Kubernetes API concepts, "Efficient detection of changes")."""

    def __init__(
        self,
        client: Client,
        collection: Collection[T],
        timing: Timing,
        changed: Callable[[T | None, T | None], None] | None = None,
    ) -> None:
        self.cache: Cache[T] = Cache(changed)
        self._client = client
        self._collection = collection
        self._timing = timing
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch the {collection.noun}", daemon=True)
        self._version = ""  # from where the next watch goes on; "": list first
        self._alive = False  # the watch had an event, or lasted for a second
        self._last_event = -float("inf")  # monotonic time of the last event
        self._lost = 0.0  # monotonic time at which the watch broke
        self._connected = False
        self._logged = ""  # the error that was logged last
        self.synced = False  # listed once

    def start(self) -> None:
        """Begin to list and watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread as soon as possible; the caller closes the connections."""
        self._over.set()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, so long at most."""
        if self._thread.ident:
            self._thread.join(seconds)

    @property
    def usable(self) -> bool:
        """Whether the copy may be answered from: it was listed, and its watch is not broken for too long."""
        return self.synced and (self._connected or time.monotonic() - self._lost < self._timing.stale_after)

    @property
    def age(self) -> float:
        """Seconds since the last event of the server, infinite before the first."""
        return time.monotonic() - self._last_event

    def _run(self) -> None:
        failures = 0
        while not self._over.is_set():
            self._alive = False
            asked, problem = 0.0, ""
            try:
                self._once()
            except Expired as error:
                self._version = ""
                log.info("%s; listing again", error)
            except CniError as error:
                problem, asked = str(error), (error.after or 0.0 if isinstance(error, Retryable) else 0.0)
            except Exception as error:  # a thread that ends would leave an outdated cache without a sign
                log.exception("a defect in following the %s: everything is listed again", self._collection.noun)
                self._version, problem = "", repr(error)
            self._disconnected()
            self._log_once(problem)
            # A watch that was refused or ended before its first event must not be requested in a loop.
            failures = 0 if self._alive and not problem else 1 if self._alive else failures + 1
            self._over.wait(max(self._pause(failures), min(asked, self._timing.longest_pause)))

    def _log_once(self, problem: str) -> None:
        """Log an error once for as long as it lasts; none when we are closing."""
        if problem and problem != self._logged and not self._over.is_set():
            log.warning("%s; the copy is kept, trying again", problem)
        self._logged = problem

    def _pause(self, failures: int) -> float:
        if not failures:
            return 0
        # Many nodes lose the same server at the same time: they must not come back together.
        pause = min(self._timing.longest_pause, self._timing.first_pause * 2.0 ** min(failures - 1, 30))
        return pause * random.uniform(0.5, 1)

    def _once(self) -> None:
        if not self._version:
            self._list()
        seconds = self._timing.watch_timeout * random.uniform(1, 2)
        request = self._collection.request(
            "watch",
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=self._version,
            timeoutSeconds=str(max(1, int(seconds))),
        )
        started = time.monotonic()
        with self._client.watch(request, self._timing.read_timeout) as lines:
            self._connected = True
            self._hear()
            if self._logged:
                log.info("%s goes on from version %s", request.doing, self._version)
            try:
                for line in lines:
                    if self._over.is_set():
                        return
                    self._take(line, request.doing)
            finally:
                self._alive |= time.monotonic() - started >= 1

    def _list(self) -> None:
        """List everything, page by page, and only then replace the cache."""
        self.cache.begin_list()
        found: list[T] = []
        version = ""
        doing = f"list the {self._collection.noun}"
        for page in self._collection.pages(self._send_for_page):
            found += [self.cache.reuse(record) for each in page.items if (record := self._record(each, doing))]
            version = page.version
            self._hear()
        if not version:
            raise Retryable(f"cannot {doing}: the API server did not say which version it is")
        self.cache.replace(found, number(version))
        self._version = version
        self.synced = True
        # As of now the copy is right, whether or not a watch begins at once.
        self._lost = time.monotonic()
        log.info("listed the %s: %d as of version %s", self._collection.noun, len(found), version)

    def _send_for_page(self, request: Request) -> Mapping[str, Any]:
        return self._client.send(request, time.monotonic() + self._timing.page_timeout)

    def _take(self, line: bytes, doing: str) -> None:
        """Bring the copy on by one event of the watch."""
        event = _parsed(line, doing)
        kind, body = event.get("type"), event.get("object")
        if not isinstance(body, Mapping):
            raise Retryable(f"cannot {doing}: the API server sent an event without an object")
        if kind == "ERROR":
            raise _meaning(body, doing)
        about = body.get("metadata")
        version = about.get("resourceVersion") if isinstance(about, Mapping) else None
        if not isinstance(about, Mapping) or not isinstance(version, str) or not version:
            raise Retryable(f"cannot {doing}: the API server sent an object without a version")
        self._hear()
        self._alive = True
        record = self._record(body, doing) if kind in ("ADDED", "MODIFIED") else None
        if record:
            self.cache.upsert(record)
        elif kind == "BOOKMARK":
            self.cache.advance(number(version))
        else:  # deleted, or nothing that we could make a record of
            self.cache.remove(str(about.get("namespace")), str(about.get("name")), number(version))
        self._version = version

    def _record(self, body: Mapping[str, Any], doing: str) -> T | None:
        """Return the record; None for an object that makes none, which then is not in the copy and is read live."""
        try:
            return self._collection.read(body, doing)
        except CniError as error:
            log.warning("%s", error)
            return None

    def _hear(self) -> None:
        self._last_event = time.monotonic()

    def _disconnected(self) -> None:
        if self._connected and self._alive:  # a watch without any event does not show that the cache is current
            self._lost = time.monotonic()
        self._connected = False


def _parsed(line: bytes, doing: str) -> Mapping[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise Retryable(f"cannot {doing}: the API server sent what is not JSON: {line[:60]!r}") from cause
    if not isinstance(event, Mapping):
        raise Retryable(f"cannot {doing}: the API server sent what is not an event: {line[:60]!r}")
    return event


def _meaning(status: Mapping[str, Any], doing: str) -> CniError:
    """Return the error that the Status object of an ERROR event stands for."""
    why = f"cannot {doing}: {status.get('message')}"
    return Expired(Code.TRY_AGAIN, why) if status.get("code") == 410 else Retryable(why)
