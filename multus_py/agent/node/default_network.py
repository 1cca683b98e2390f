# SPDX-License-Identifier: Apache-2.0
"""Which CNI config file is the default network's, over time: files appear late, are rewritten, removed and restored."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multus_py.cni.errors import CniError
from multus_py.install import primary
from multus_py.install.cni_conf import InstallSpec
from multus_py.install.primary import Conf

GRACE = 60.0  # seconds that a conf may be missing before one that sorts later is used
FRESH = 10.0  # seconds in which an unreadable file counts as being written


@dataclass(frozen=True)
class Clock:
    """Seconds: *monotonic*, and of the *day*, as files have them (since the epoch)."""

    monotonic: Callable[[], float]
    day: Callable[[], float]


@dataclass(frozen=True)
class Found:
    """The default network's conf; None with the reason why nothing can be attached to it."""

    conf: Conf | None
    obstacle: str = ""


class DefaultNetwork:
    """The choice among the confs of a folder; the last choice is remembered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._chosen: Path | None = None
        self._missing_since: float | None = None

    def find(self, order: InstallSpec) -> Found:
        """Return the conf that *order* names, or the first by name that is no meta-CNI's.

        A previous choice that is missing or unreadable is waited for while no other conf sorts before it: its owner
        removed it because the network is not ready (GKE's watchdog), or is writing it.
        """
        if order.primary:
            return self._named(order.primary, order.name)
        folder = order.search_folder or order.folders.conf
        try:
            seen = list(primary.survey(folder, order.name))
        except CniError as error:
            return Found(None, str(error))
        usable = [conf for conf in seen if not conf.problem]
        best = usable[0] if usable else None
        if self._chosen is None and best and any(self._is_fresh(conf) for conf in seen if conf.path < best.path):
            return Found(None, f"a conf that sorts before {best.path} is being written")
        if best and self._may_choose(best, usable):
            self._chosen, self._missing_since = best.path, None
            return Found(best)
        if self._chosen is None:
            return Found(None, str(primary.no_primary_error(folder, [conf.problem for conf in seen])))
        return Found(None, self._missing_reason(seen))

    def _named(self, path: Path, name: str) -> Found:
        try:
            return Found(primary.read_wrappable(path, name))
        except CniError as error:
            return Found(None, f"the default network's conf: {error}")

    def _may_choose(self, best: Conf, usable: list[Conf]) -> bool:
        if self._chosen is None or best.path <= self._chosen or any(conf.path == self._chosen for conf in usable):
            return True
        now = self._clock.monotonic()
        self._missing_since = now if self._missing_since is None else self._missing_since
        return now - self._missing_since >= GRACE

    def _missing_reason(self, seen: list[Conf]) -> str:
        problem = next((conf.problem for conf in seen if conf.path == self._chosen), "")
        return problem or f"the default network's conf {self._chosen} is not there"

    def _is_fresh(self, conf: Conf) -> bool:
        try:
            return conf.body is None and self._clock.day() - conf.path.stat().st_mtime < FRESH
        except OSError:
            return False
