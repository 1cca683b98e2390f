# SPDX-License-Identifier: Apache-2.0
"""The folder of manifests as the store of the daemon: changes are reported to subscribers."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from multus_py.kube.manifests import Manifests
from multus_py.kube.store import NetworkDefinition, Pod
from multus_py.kube.subscribers import Subscribers

log = logging.getLogger("multus_py")

PAUSE = 2.0  # seconds between two checks of the folder
_SHARE = 50  # a check takes this part of the time at most: a large folder is checked less often
_Objects = Mapping[tuple[str, str], Pod | NetworkDefinition]


class Polled(Manifests):
    """Manifests that report to subscribers what was added, changed and removed since the last check."""

    def __init__(self, folder: Path, state: Path, pause: float = PAUSE) -> None:
        super().__init__(folder, state)
        self._pause = pause
        self._pod_subscribers: Subscribers[Pod] = Subscribers("pods in the manifests")
        self._definition_subscribers: Subscribers[NetworkDefinition] = Subscribers("definitions in the manifests")
        self._seen: dict[Path, tuple[tuple[int, ...], str]] = {}
        self._pods: dict[tuple[str, str], Pod] = {}
        self._definitions: dict[tuple[str, str], NetworkDefinition] = {}
        self._over = threading.Event()

    def subscribe(
        self,
        pods: Callable[[Pod | None, Pod | None], None],
        definitions: Callable[[NetworkDefinition | None, NetworkDefinition | None], None] | None = None,
    ) -> None:
        """Call *pods* and *definitions* with (old, new) of each change; None stands for absence.

        Existing objects are reported by the first check. A file that is read while it is being written may make its
        objects go and come back.
        """
        self._pod_subscribers.add(pods)
        if definitions:
            self._definition_subscribers.add(definitions)

    def start(self) -> None:
        """Start to check the folder at intervals."""
        threading.Thread(target=self._run, name="watch the manifests", daemon=True).start()

    def close(self) -> None:
        """Stop following the folder."""
        self._over.set()

    def ready(self) -> bool:
        """Return True: the folder is read at every call."""
        return True

    def gauges(self) -> Sequence[tuple[str, str, Callable[[], float]]]:
        """Return no metrics: a folder has none of its own."""
        return ()

    def pods_here(self) -> list[Pod]:
        """Return all pods: a folder is one node's."""
        return self.pods()

    def _run(self) -> None:
        while not self._over.is_set():
            started = time.monotonic()
            try:
                self.check()
            except Exception:
                log.exception("unexpected error while checking the manifests; it continues")
            self._over.wait(max(self._pause, _SHARE * (time.monotonic() - started)))

    def check(self) -> None:
        """Compare the folder with the last check and report the differences; one stat(2) for each file without any."""
        files = self._scan()
        seen = {file.path: (file.stamp, file.unreadable) for file in files}
        if seen == self._seen:
            return
        found = [each.value for file in files for each in file.objects]
        pods = {(each.namespace, each.name): each for each in found if isinstance(each, Pod)}
        definitions = {(each.namespace, each.name): each for each in found if isinstance(each, NetworkDefinition)}
        before, self._seen = (self._pods, self._definitions), seen
        self._pods, self._definitions = pods, definitions
        for key in _changed(before[1], definitions):
            self._definition_subscribers.publish(before[1].get(key), definitions.get(key))
        for key in _changed(before[0], pods):
            self._pod_subscribers.publish(before[0].get(key), pods.get(key))


def _changed(before: _Objects, now: _Objects) -> list[tuple[str, str]]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
