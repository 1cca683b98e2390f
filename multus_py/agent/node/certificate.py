# SPDX-License-Identifier: Apache-2.0
"""The node's client certificate over time: asked for, put in place, renewed, asked for again when it is refused."""

import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from multus_py.agent.node.default_network import Clock
from multus_py.cni.errors import CniError, Code
from multus_py.config.daemon import NodeCertificate
from multus_py.install import files
from multus_py.kube import certificate
from multus_py.kube.certificate import Certificate, CertificateRequest, Denied
from multus_py.kube.http import Request
from multus_py.kube.kubeconfig import Access
from multus_py.kube.session import Client, Unauthorized

log = logging.getLogger("multus_py")

CURRENT = "multus-client-current.pem"  # multus-cni's name and content: the certificate, then its key
_PENDING = "multus-client-pending.pem"  # the request that nobody granted yet, and its key
PATIENCE = 120.0  # seconds until another Event says that nobody approves
_ANSWER = 30.0  # seconds for the API server's answer
_QUICK, _SLOW = 1.0, 10.0  # seconds between two looks at a request, at first and later
_LOOK = 300.0  # seconds between two looks at a certificate that is in use
_FAILED = (5.0, 60.0)  # seconds until a further try, at first and at most
_REFUSED = (60.0, 3600.0)  # the same, where a person said no
_RENEW = (0.62, 0.72)  # share of its life after which a certificate is renewed: not all nodes at once
_REMIND = 3600.0  # seconds after which a trouble that lasts is told again

# kind for the metric, reason of the Event ("": none), words
Tell = Callable[[str, str, str], None]


@dataclass(frozen=True)
class World:
    """What the keeper needs: how to get to the server before there is a certificate, the time, and who listens."""

    bootstrap: Callable[[], Access]
    clock: Clock
    tell: Tell


@dataclass
class _Memory:
    """What is known only as long as the process lives; what must outlive it is in files."""

    expiry: float = 0.0  # of the certificate in use
    asked_since: float | None = None  # monotonic time since which a request waits
    refused: bytes = b""  # the certificate that the API server does not accept
    failures: int = 0  # one after the other
    refusals: int = 0  # since the last certificate was issued
    told: tuple[str, float] = ("", 0.0)  # the trouble that was told last, and when (monotonic)
    unfit: str = ""  # why the file in place is not used, as it was logged last
    share: float = field(default_factory=lambda: random.uniform(*_RENEW))

    def renewed(self) -> None:
        """Begin anew with a new certificate."""
        self.share, self.refusals, self.told = random.uniform(*_RENEW), 0, ("", 0.0)


class Keeper:
    """The files in `wanted.folder`, and the request in the cluster, for the certificate of *node*.

    Whoever uses `wanted.kubeconfig` has the certificate as soon as it is there, and the first account until then.
    """

    def __init__(self, wanted: NodeCertificate, node: str, world: World) -> None:
        self._wanted = wanted
        self._node = node
        self._world = world
        self._client = Client(str(wanted.kubeconfig))
        self._current = wanted.folder / CURRENT
        self._pending = wanted.folder / _PENDING
        self._memory = _Memory()

    def settle(self) -> None:
        """Write the kubeconfig for what there is; nobody is asked anything, and troubles are told by `look`."""
        with suppress(CniError):
            self._give_access(self._kept())

    def look(self) -> float:
        """Do what is due; tell what keeps us from it; return after how many seconds to look again."""
        try:
            pause = self._advance()
        except CniError as error:
            self._complain(error)
            return self._pause(error)
        self._memory.failures = 0
        return pause

    def expiry(self) -> float:
        """Return when the certificate in use expires, in Unix seconds; 0 when there is none."""
        return self._memory.expiry

    def vouch(self, seconds: float) -> None:
        """Raise unless a certificate is in use that the API server, asked for so many seconds, accepts now.

        Without one, that the server refuses a request does not mean that somebody took a right away.
        """
        if not self._world.clock.day() < self._memory.expiry:
            raise CniError(Code.TRY_AGAIN, f"there is no client certificate of node {self._node}")
        certificate.verify(partial(self._sent, seconds=seconds), self._node)

    def forget(self) -> None:
        """Remove certificate, keys and kubeconfig: nobody comes after us."""
        for path in (self._current, self._pending, self._wanted.kubeconfig):
            files.remove(path)

    def close(self) -> None:
        """Break the connection of a request under way."""
        self._client.close()

    def _advance(self) -> float:
        kept = self._kept()
        self._give_access(kept)
        try:
            left = kept.time_at(self._memory.share) - self._world.clock.day() if kept else 0.0
            return self._ask() if left <= 0 else self._use(left)
        except Unauthorized:
            if kept is None:
                raise
            self._memory.refused = kept.pem
            return 0.0  # the first account is to ask for a new one

    def _use(self, left: float) -> float:
        """Make sure that the certificate, which is to be renewed after *left* seconds, is accepted."""
        self._drop()  # a process may have died between putting it in place and this
        try:
            certificate.verify(self._sent, self._node)
        except Unauthorized:
            raise
        except CniError as error:  # no word about who we are; of a server that is out of reach the watches tell
            log.debug("%s", error)
        return min(_LOOK, left)

    def _kept(self) -> Certificate | None:
        """Return the certificate in place, None when it cannot be used; the log says why."""
        found, why = self._found()
        if why and why != self._memory.unfit:
            log.warning("%s is not used: %s", self._current, why)
        self._memory.unfit = why
        self._memory.expiry = found.not_after if found else 0.0
        return found

    def _found(self) -> tuple[Certificate | None, str]:
        try:
            raw = self._current.read_bytes()
            if self._current.stat().st_mode & 0o077:
                self._current.chmod(0o600)  # restored from somewhere
            found = certificate.read(raw, self._node)
        except FileNotFoundError:
            return None, ""
        except OSError as cause:
            return None, str(cause.strerror)
        except CniError as error:
            return None, error.msg
        if raw == self._memory.refused:
            return None, "the API server does not accept it"
        if not found.not_before <= self._world.clock.day() < found.not_after:
            return None, "it is not valid now"
        return found, ""

    def _give_access(self, kept: Certificate | None, *, anew: bool = False) -> None:
        """Have the kubeconfig name the certificate, or the first account when there is none.

        With *anew* the file is replaced in any case: who reads it takes up the certificate only then.
        """
        path = self._wanted.kubeconfig
        try:
            access = self._world.bootstrap()
        except CniError:
            if kept and path.exists():
                return  # the server is known, and the first account is not needed now
            raise
        text = (access.with_certificate(self._current) if kept else access).text()
        if anew or not files.has_content(path, text, 0o600):
            self._write(path.name, text)

    def _ask(self) -> float:
        """Bring the request on by one step; return after how many seconds to look at it."""
        wanted = self._draft()
        try:
            answer = certificate.submit(self._sent, wanted, self._wanted.seconds)
        except Denied:
            self._memory.refusals += 1
            self._drop()
            raise
        if answer.issued:
            self._take(wanted, answer.issued)
            return 0.0
        return self._wait(wanted, answer.approved)

    def _wait(self, wanted: CertificateRequest, approved: bool) -> float:
        now = self._world.clock.monotonic()
        if self._memory.asked_since is None:
            self._memory.asked_since = now
            words = f"asked for a client certificate: kubectl certificate approve {wanted.name}"
            log.info("%s", words)
            if not approved:
                self._world.tell("certificate_requested", "CertificateRequested", words)
        waited = now - self._memory.asked_since
        if waited < PATIENCE:
            return min(_SLOW, max(_QUICK, waited / 4))
        if approved:
            raise CniError(
                Code.TRY_AGAIN,
                f"cannot {wanted.doing}: request {wanted.name} is approved, and nothing is issued in {PATIENCE:g} s",
                f"does kube-controller-manager sign for {certificate.SIGNER}?",
            )
        raise CniError(
            Code.TRY_AGAIN,
            f"cannot {wanted.doing}: nobody approved request {wanted.name} in {PATIENCE:g} s",
            f"kubectl certificate approve {wanted.name}",
        )

    def _take(self, wanted: CertificateRequest, text: bytes) -> None:
        """Put the certificate that was issued in place, and use it."""
        try:
            fresh = self._checked(wanted, text)
        except CniError:
            self._drop()  # the same request will always be answered so
            raise
        self._write(CURRENT, fresh.pem)
        self._drop()
        self._memory.renewed()
        self._give_access(self._kept(), anew=True)
        log.info("the client certificate %s is used from now on", self._current)
        self._world.tell("certificate_issued", "", "")

    def _checked(self, wanted: CertificateRequest, text: bytes) -> Certificate:
        fresh = certificate.read_issued(wanted, text)
        if fresh.time_at(_RENEW[0]) <= self._world.clock.day():
            raise CniError(
                Code.TRY_AGAIN,
                f"cannot {wanted.doing}: what was issued for request {wanted.name} is old already",
                "a new one is asked for; is the clock of this node right?",
            )
        return fresh

    def _draft(self) -> CertificateRequest:
        """Return the request under way, a new one when there is none that could be read."""
        try:
            return certificate.read_request(self._pending.read_bytes(), self._node)
        except FileNotFoundError:
            pass
        except OSError as cause:
            raise CniError(Code.IO, f"cannot read {self._pending}: {cause.strerror}") from cause
        except CniError as error:
            log.warning("%s is not used: %s", self._pending, error.msg)
        fresh = certificate.create_request(self._node)
        self._write(_PENDING, fresh.pem)
        return fresh

    def _drop(self) -> None:
        files.remove(self._pending)
        self._memory.asked_since = None

    def _sent(self, request: Request, seconds: float = _ANSWER) -> Mapping[str, Any]:
        return self._client.send(request, self._world.clock.monotonic() + seconds)

    def _write(self, name: str, content: bytes) -> None:
        try:
            self._wanted.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot make {self._wanted.folder}: {cause.strerror}") from cause
        files.replace(self._wanted.folder / name, content, 0o600)

    def _pause(self, error: CniError) -> float:
        """Return the seconds until a further try: less often each time, and not all nodes together."""
        self._memory.failures += 1
        refused = isinstance(error, Denied)
        (first, longest), times = (_REFUSED, self._memory.refusals) if refused else (_FAILED, self._memory.failures)
        return min(longest, first * 2.0 ** min(times - 1, 30)) * random.uniform(0.5, 1)

    def _complain(self, error: CniError) -> None:
        """Tell a trouble when it is new, and again from time to time as long as it lasts."""
        text, now = str(error), self._world.clock.monotonic()
        before, since = self._memory.told
        if text == before and now - since < _REMIND:
            return
        self._memory.told = (text, now)
        log.warning("%s", text)
        reason = "CertificateRefused" if isinstance(error, Denied) else "NoCertificate"
        self._world.tell("certificate_failed", reason, text)
