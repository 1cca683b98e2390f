# SPDX-License-Identifier: Apache-2.0
"""Which conf is the default network's, over time: confs come late, are rewritten, go away and come back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multus_py.cni.errors import CniError
from multus_py.install import primary
from multus_py.install.cni_conf import Order
from multus_py.install.primary import Conf

GRACE = 60.0  # seconds that a conf may be away before one that sorts later is taken for the default network
FRESH = 10.0  # seconds in which a file that cannot be read counts as being written


@dataclass(frozen=True)
class Clock:
    """Seconds: *monotonic*, and of the *day*, as files have them (since the epoch)."""

    monotonic: Callable[[], float]
    day: Callable[[], float]


@dataclass(frozen=True)
class Found:
    """The default network's conf as it is now; None with the reason why nothing can be attached to it."""

    conf: Conf | None
    obstacle: str = ""


class DefaultNetwork:
    """The choice among the confs of a folder, which remembers what it chose."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._chosen: Path | None = None
        self._away_since: float | None = None

    def look(self, order: Order) -> Found:
        """Return the conf that *order* names, or the first by name that is no meta-CNI's.

        The one that was chosen before is waited for when it is away, or cannot be read, while no other stands in front
        of it: its owner took it away to say that the network is not ready (GKE's watchdog), or is writing it.
        """
        if order.primary:
            return self._named(order.primary, order.name)
        folder = order.look_in or order.folders.conf
        try:
            seen = list(primary.survey(folder, order.name))
        except CniError as trouble:
            return Found(None, str(trouble))
        usable = [conf for conf in seen if not conf.problem]
        best = usable[0] if usable else None
        if self._chosen is None and best and any(self._is_fresh(conf) for conf in seen if conf.path < best.path):
            return Found(None, f"a conf that sorts before {best.path} is being written")
        if best and self._may_take(best, usable):
            self._chosen, self._away_since = best.path, None
            return Found(best)
        if self._chosen is None:
            return Found(None, str(primary.no_primary_error(folder, [conf.problem for conf in seen])))
        return Found(None, self._why_away(seen))

    def _named(self, path: Path, name: str) -> Found:
        try:
            return Found(primary.read_wrappable(path, name))
        except CniError as trouble:
            return Found(None, f"the default network's conf: {trouble}")

    def _may_take(self, best: Conf, usable: list[Conf]) -> bool:
        if self._chosen is None or best.path <= self._chosen or any(conf.path == self._chosen for conf in usable):
            return True
        now = self._clock.monotonic()
        self._away_since = now if self._away_since is None else self._away_since
        return now - self._away_since >= GRACE

    def _why_away(self, seen: list[Conf]) -> str:
        trouble = next((conf.problem for conf in seen if conf.path == self._chosen), "")
        return trouble or f"the default network's conf {self._chosen} is not there"

    def _is_fresh(self, conf: Conf) -> bool:
        try:
            return conf.body is None and self._clock.day() - conf.path.stat().st_mtime < FRESH
        except OSError:
            return False
