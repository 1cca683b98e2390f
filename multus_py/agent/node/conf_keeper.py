# SPDX-License-Identifier: Apache-2.0
"""Keeps our CNI config file in front of the default network's while the daemon runs: checks the folder every second."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multus_py.agent.node.default_network import Clock, DefaultNetwork, Found
from multus_py.cni.errors import CniError
from multus_py.install import cni_conf, executable, files, withdrawal
from multus_py.install.cni_conf import InstallSpec
from multus_py.install.executable import Program

log = logging.getLogger("multus_py")


@dataclass(frozen=True)
class Installation:
    """What is kept installed: our conf, and the shim when there is a *program*.

    *socket_dir* has the mark of an uninstallation.
    """

    order: InstallSpec
    socket_dir: Path
    program: Program | None = None


@dataclass(frozen=True)
class Callbacks:
    """Called with the default network when it changes (*found*), and for each action (*happened*).

    An action has a kind (for the metric), a reason and a message (for an Event; reason "": none).
    """

    found: Callable[[Found], None]
    happened: Callable[[str, str, str], None]


class Backoff:
    """When an action that is undone repeatedly may run again: at once at first, then after pauses that double."""

    AT_ONCE = 5  # times in WINDOW
    WINDOW = 60.0  # seconds
    SHORTEST, LONGEST = 10.0, 300.0  # seconds of a pause

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=self.AT_ONCE)
        self.pause = 0.0

    def due(self, now: float) -> bool:
        """Tell whether the action may run now; after a long time without one the count starts anew."""
        if not self._times:
            return True
        last = self._times[-1]
        if now - last > self.WINDOW + self.pause:
            self._times.clear()
            self.pause = 0.0
        return now >= last + self.pause

    def done(self, now: float) -> None:
        """Count one action."""
        self._times.append(now)
        crowded = len(self._times) == self.AT_ONCE and now - self._times[0] <= self.WINDOW
        if self.pause or crowded:
            self.pause = min(max(2 * self.pause, self.SHORTEST), self.LONGEST)


class ConfKeeper:
    """Keeps one `Installation`, which may be replaced while it runs; None: nothing is installed by the daemon."""

    def __init__(self, installation: Installation | None, callbacks: Callbacks, clock: Clock) -> None:
        self.installation = installation
        self._callbacks = callbacks
        self._clock = clock
        self._network = DefaultNetwork(clock)
        self._backoff = Backoff()
        self._reported = Found(None)
        self._was_installed = False  # whether our conf was in place at the last check
        self._earlier: list[Path] = []
        self._withdrawn = False
        self._error = ""

    def check(self) -> None:
        """Compare the files with what they should be, and correct them; a new error is reported once."""
        if self.installation is None:
            self._report(Found(None))
            return
        found = self._network.find(self.installation.order) if self.installation.order.wraps_primary else Found(None)
        self._report(found)
        try:
            self._keep(self.installation, found)
        except CniError as error:
            if str(error) != self._error:
                log.warning("our place in front of the default network: %s; to be tried again", error)
                self._callbacks.happened("install_failed", "InstallFailed", str(error))
            self._error = str(error)
            return
        if self._error:
            log.info("our place in front of the default network: all is well again")
        self._error = ""

    def _report(self, found: Found) -> None:
        if found == self._reported:
            return
        if found.obstacle and found.obstacle != self._reported.obstacle:
            log.warning("no default network: %s", found.obstacle)
        elif found.conf and (self._reported.conf is None or found.conf.path != self._reported.conf.path):
            log.info("the default network is that of %s", found.conf.path)
        self._reported = found
        self._callbacks.found(found)

    def _keep(self, installation: Installation, found: Found) -> None:
        withdrawn = withdrawal.is_marked(installation.socket_dir)
        if withdrawn != self._withdrawn:
            log.info("uninstalled: nothing is put in place any more" if withdrawn else "installed again")
        self._withdrawn = withdrawn
        if withdrawn:
            self._was_installed = False
            return
        if installation.program and executable.install(
            installation.program, installation.order.folders.bin / installation.order.name
        ):
            self._done(
                "shim_placed", "", f"{installation.order.folders.bin / installation.order.name} was put in place"
            )
        # While the default network is missing our conf stays as it is: pods wait, instead of starting without their
        # networks. Without any default network nothing was written yet.
        if found.conf or not installation.order.wraps_primary:
            self._keep_conf(installation.order, found)
        self._warn_of_earlier(installation.order)

    def _keep_conf(self, order: InstallSpec, found: Found) -> None:
        text, target = cni_conf.text(order, found.conf), order.target
        if files.has_content(target, text, cni_conf.MODE):
            self._was_installed = True
            return
        if not self._was_installed or cni_conf.read(target) is not None:
            self._write(target, text)
            self._done("conf_written", "", f"{target} was written")
            return
        if self._backoff.due(self._clock.monotonic()):
            self._restore(target, text)

    def _write(self, target: Path, text: bytes) -> None:
        for path in cni_conf.back_up_multus_cni_confs(target.parent):
            self._done("conf_set_aside", "", f"{path} calls multus-cni and was set aside")
        files.replace(target, text, cni_conf.MODE)
        self._was_installed = True

    def _restore(self, target: Path, text: bytes) -> None:
        copies = cni_conf.copies(target)
        self._write(target, text)
        for copy in copies:
            files.remove(copy)
        self._backoff.done(self._clock.monotonic())
        how = f"renamed to {copies[0].name}" if copies else "removed or replaced"
        again = (
            f"; this happens again and again, the next time we wait for {self._backoff.pause:g} s: tell the one who "
            "does it to leave other confs alone (Cilium: cni.exclusive=false)"
            if self._backoff.pause
            else ""
        )
        self._done("conf_put_back", "ConfPutBack", f"{target} was {how} by somebody and put back{again}")

    def _warn_of_earlier(self, order: InstallSpec) -> None:
        earlier = cni_conf.sorting_before(order.target)
        for path in earlier:
            if path not in self._earlier:
                words = f"{path} sorts before {order.target.name}: the runtime calls it instead of us; rename it"
                self._done("conf_overtaken", "ConfOvertaken", words)
        self._earlier = earlier

    def _done(self, kind: str, reason: str, words: str) -> None:
        log.log(logging.WARNING if reason else logging.INFO, "%s", words)
        self._callbacks.happened(kind, reason, words)
