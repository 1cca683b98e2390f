# SPDX-License-Identifier: Apache-2.0
"""Our place in front of the default network, kept while the daemon runs: it looks at the conf folder every second."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multus_py.agent.node.default_network import Clock, DefaultNetwork, Found
from multus_py.cni.errors import CniError
from multus_py.install import cni_conf, executable, files, withdrawal
from multus_py.install.cni_conf import Order
from multus_py.install.executable import Program

log = logging.getLogger("multus_py")


@dataclass(frozen=True)
class Place:
    """What is kept in place: our conf, and the shim when there is a *program*.

    *socket_dir* is where a withdrawal would be said.
    """

    order: Order
    socket_dir: Path
    program: Program | None = None


@dataclass(frozen=True)
class Ears:
    """Who is told: what was *found*; what *happened*, as kind (for a metric), reason and words (for an Event)."""

    found: Callable[[Found], None]
    happened: Callable[[str, str, str], None]


class Patience:
    """How often a deed that somebody takes back is done again: at once at first, then after pauses that double."""

    AT_ONCE = 5  # times in WINDOW
    WINDOW = 60.0  # seconds
    SHORTEST, LONGEST = 10.0, 300.0  # seconds of a pause

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=self.AT_ONCE)
        self.pause = 0.0

    def due(self, now: float) -> bool:
        """Tell whether it may be done now; what held for long enough is forgotten."""
        if not self._times:
            return True
        last = self._times[-1]
        if now - last > self.WINDOW + self.pause:
            self._times.clear()
            self.pause = 0.0
        return now >= last + self.pause

    def done(self, now: float) -> None:
        """Count one more time."""
        self._times.append(now)
        crowded = len(self._times) == self.AT_ONCE and now - self._times[0] <= self.WINDOW
        if self.pause or crowded:
            self.pause = min(max(2 * self.pause, self.SHORTEST), self.LONGEST)


class Follower:
    """Looks after one `Place`, which may be replaced while it runs; None: there is nothing to look after."""

    def __init__(self, place: Place | None, ears: Ears, clock: Clock) -> None:
        self.place = place
        self._ears = ears
        self._clock = clock
        self._network = DefaultNetwork(clock)
        self._patience = Patience()
        self._told = Found(None)
        self._stood = False  # whether our conf was in place at the last look
        self._rivals: list[Path] = []
        self._withdrawn = False
        self._trouble = ""

    def look(self) -> None:
        """Compare what is there with what should be, and set it right; what cannot be is told, when it is new."""
        if self.place is None:
            self._tell(Found(None))
            return
        found = self._network.look(self.place.order) if self.place.order.wraps else Found(None)
        self._tell(found)
        try:
            self._keep(self.place, found)
        except CniError as error:
            if str(error) != self._trouble:
                log.warning("our place in front of the default network: %s; to be tried again", error)
                self._ears.happened("install_failed", "InstallFailed", str(error))
            self._trouble = str(error)
            return
        if self._trouble:
            log.info("our place in front of the default network: all is well again")
        self._trouble = ""

    def _tell(self, found: Found) -> None:
        if found == self._told:
            return
        if found.obstacle and found.obstacle != self._told.obstacle:
            log.warning("no default network: %s", found.obstacle)
        elif found.conf and (self._told.conf is None or found.conf.path != self._told.conf.path):
            log.info("the default network is that of %s", found.conf.path)
        self._told = found
        self._ears.found(found)

    def _keep(self, place: Place, found: Found) -> None:
        withdrawn = withdrawal.is_marked(place.socket_dir)
        if withdrawn != self._withdrawn:
            log.info("uninstalled: nothing is put in place any more" if withdrawn else "installed again")
        self._withdrawn = withdrawn
        if withdrawn:
            self._stood = False
            return
        if place.program and executable.install(place.program, place.order.folders.bin / place.order.name):
            self._done("shim_placed", "", f"{place.order.folders.bin / place.order.name} was put in place")
        # While the default network is away our conf stays as it is: pods wait, instead of starting without their
        # networks. Without any default network there never was one to wrap.
        if found.conf or not place.order.wraps:
            self._keep_conf(place.order, found)
        self._warn_of_rivals(place.order)

    def _keep_conf(self, order: Order, found: Found) -> None:
        text, target = cni_conf.text(order, found.conf), order.target
        if files.has_content(target, text, cni_conf.MODE):
            self._stood = True
            return
        if not self._stood or cni_conf.read(target) is not None:
            self._write(target, text)
            self._done("conf_written", "", f"{target} was written")
            return
        if self._patience.due(self._clock.monotonic()):
            self._put_back(target, text)

    def _write(self, target: Path, text: bytes) -> None:
        for path in cni_conf.set_former_aside(target.parent):
            self._done("conf_set_aside", "", f"{path} calls multus-cni and was set aside")
        files.replace(target, text, cni_conf.MODE)
        self._stood = True

    def _put_back(self, target: Path, text: bytes) -> None:
        copies = cni_conf.copies(target)
        self._write(target, text)
        for copy in copies:
            files.remove(copy)
        self._patience.done(self._clock.monotonic())
        how = f"renamed to {copies[0].name}" if copies else "removed or replaced"
        again = (
            f"; this happens again and again, the next time we wait for {self._patience.pause:g} s: tell the one who "
            "does it to leave other confs alone (Cilium: cni.exclusive=false)"
            if self._patience.pause
            else ""
        )
        self._done("conf_put_back", "ConfPutBack", f"{target} was {how} by somebody and put back{again}")

    def _warn_of_rivals(self, order: Order) -> None:
        rivals = cni_conf.earlier(order.target)
        for path in rivals:
            if path not in self._rivals:
                words = f"{path} sorts before {order.target.name}: the runtime calls it instead of us; rename it"
                self._done("conf_overtaken", "ConfOvertaken", words)
        self._rivals = rivals

    def _done(self, kind: str, reason: str, words: str) -> None:
        log.log(logging.WARNING if reason else logging.INFO, "%s", words)
        self._ears.happened(kind, reason, words)
