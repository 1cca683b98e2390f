# SPDX-License-Identifier: Apache-2.0
"""The node's client certificate: requested, installed, renewed, and requested again when it is refused."""

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
_PENDING = "multus-client-pending.pem"  # the pending request and its key
PATIENCE = 120.0  # seconds until an Event reports that the request is not approved
_ANSWER = 30.0  # seconds for the API server's answer
_QUICK, _SLOW = 1.0, 10.0  # seconds between two checks of a request, at first and later
_LOOK = 300.0  # seconds between two checks of a certificate in use
_FAILED = (5.0, 60.0)  # seconds until a further try, at first and at most
_REFUSED = (60.0, 3600.0)  # the same after a denial
_RENEW = (0.62, 0.72)  # share of its life after which a certificate is renewed: not all nodes at once
_REMIND = 3600.0  # seconds after which a lasting error is reported again

# kind for the metric, reason of the Event ("": none), words
Report = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Environment:
    """The bootstrap kubeconfig, the clock, and the function that reports what happened."""

    bootstrap: Callable[[], Access]
    clock: Clock
    report: Report


@dataclass
class _Memory:
    """State of this process; what must survive a restart is in files."""

    expiry: float = 0.0  # of the certificate in use
    asked_since: float | None = None  # monotonic time since which a request is pending
    refused: bytes = b""  # the certificate that the API server does not accept
    failures: int = 0  # in a row
    refusals: int = 0  # since the last certificate was issued
    reported: tuple[str, float] = ("", 0.0)  # the error that was reported last, and when (monotonic)
    unfit: str = ""  # why the certificate file is not used, as logged last
    share: float = field(default_factory=lambda: random.uniform(*_RENEW))

    def renewed(self) -> None:
        """Reset for a new certificate."""
        self.share, self.refusals, self.reported = random.uniform(*_RENEW), 0, ("", 0.0)


class CertificateRotation:
    """The files in `settings.folder`, and the request in the cluster, for the certificate of *node*.

    `settings.kubeconfig` names the certificate as soon as it is issued, and the bootstrap account until then.
    """

    def __init__(self, settings: NodeCertificate, node: str, environment: Environment) -> None:
        self._settings = settings
        self._node = node
        self._environment = environment
        self._client = Client(str(settings.kubeconfig))
        self._current = settings.folder / CURRENT
        self._pending = settings.folder / _PENDING
        self._memory = _Memory()

    def settle(self) -> None:
        """Write the kubeconfig for the existing files, without a request; errors are reported by `advance`."""
        with suppress(CniError):
            self._give_access(self._installed())

    def advance(self) -> float:
        """Take the next step and report errors; return the seconds until the next call."""
        try:
            pause = self._next_step()
        except CniError as error:
            self._report_error(error)
            return self._pause(error)
        self._memory.failures = 0
        return pause

    def expiry(self) -> float:
        """Return when the certificate in use expires, in Unix seconds; 0 when there is none."""
        return self._memory.expiry

    def verify(self, seconds: float) -> None:
        """Raise unless the API server accepts the certificate now, within *seconds*.

        Without one, a refused request does not mean that a permission was removed.
        """
        if not self._environment.clock.day() < self._memory.expiry:
            raise CniError(Code.TRY_AGAIN, f"there is no client certificate of node {self._node}")
        certificate.verify(partial(self._sent, seconds=seconds), self._node)

    def remove_files(self) -> None:
        """Remove certificate, keys and kubeconfig: no daemon will use them."""
        for path in (self._current, self._pending, self._settings.kubeconfig):
            files.remove(path)

    def close(self) -> None:
        """Close the connection of a request in progress."""
        self._client.close()

    def _next_step(self) -> float:
        installed = self._installed()
        self._give_access(installed)
        try:
            left = installed.time_at(self._memory.share) - self._environment.clock.day() if installed else 0.0
            return self._ask() if left <= 0 else self._use(left)
        except Unauthorized:
            if installed is None:
                raise
            self._memory.refused = installed.pem
            return 0.0  # the bootstrap account requests a new one

    def _use(self, left: float) -> float:
        """Make sure that the certificate, which is to be renewed after *left* seconds, is accepted."""
        self._drop()  # a process may have died after installing it
        try:
            certificate.verify(self._sent, self._node)
        except Unauthorized:
            raise
        except CniError as error:  # not about the certificate; the watches report an unreachable server
            log.debug("%s", error)
        return min(_LOOK, left)

    def _installed(self) -> Certificate | None:
        """Return the installed certificate, None when it cannot be used; the reason is logged."""
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
        if not found.not_before <= self._environment.clock.day() < found.not_after:
            return None, "it is not valid now"
        return found, ""

    def _give_access(self, installed: Certificate | None, *, anew: bool = False) -> None:
        """Write the kubeconfig with the certificate, or with the bootstrap account when there is none.

        With *anew* the file is replaced in any case: who reads it takes up the certificate only then.
        """
        path = self._settings.kubeconfig
        try:
            access = self._environment.bootstrap()
        except CniError:
            if installed and path.exists():
                return  # the server is known, and the first account is not needed now
            raise
        text = (access.with_certificate(self._current) if installed else access).text()
        if anew or not files.has_content(path, text, 0o600):
            self._write(path.name, text)

    def _ask(self) -> float:
        """Take the next step of the request; return the seconds until the next check."""
        request = self._draft()
        try:
            answer = certificate.submit(self._sent, request, self._settings.seconds)
        except Denied:
            self._memory.refusals += 1
            self._drop()
            raise
        if answer.issued:
            self._take(request, answer.issued)
            return 0.0
        return self._wait(request, answer.approved)

    def _wait(self, request: CertificateRequest, approved: bool) -> float:
        now = self._environment.clock.monotonic()
        if self._memory.asked_since is None:
            self._memory.asked_since = now
            words = f"asked for a client certificate: kubectl certificate approve {request.name}"
            log.info("%s", words)
            if not approved:
                self._environment.report("certificate_requested", "CertificateRequested", words)
        waited = now - self._memory.asked_since
        if waited < PATIENCE:
            return min(_SLOW, max(_QUICK, waited / 4))
        if approved:
            raise CniError(
                Code.TRY_AGAIN,
                f"cannot {request.doing}: request {request.name} is approved, and nothing is issued in {PATIENCE:g} s",
                f"does kube-controller-manager sign for {certificate.SIGNER}?",
            )
        raise CniError(
            Code.TRY_AGAIN,
            f"cannot {request.doing}: nobody approved request {request.name} in {PATIENCE:g} s",
            f"kubectl certificate approve {request.name}",
        )

    def _take(self, request: CertificateRequest, text: bytes) -> None:
        """Put the certificate that was issued in place, and use it."""
        try:
            fresh = self._checked(request, text)
        except CniError:
            self._drop()  # the same request will always be answered so
            raise
        self._write(CURRENT, fresh.pem)
        self._drop()
        self._memory.renewed()
        self._give_access(self._installed(), anew=True)
        log.info("the client certificate %s is used from now on", self._current)
        self._environment.report("certificate_issued", "", "")

    def _checked(self, request: CertificateRequest, text: bytes) -> Certificate:
        fresh = certificate.read_issued(request, text)
        if fresh.time_at(_RENEW[0]) <= self._environment.clock.day():
            raise CniError(
                Code.TRY_AGAIN,
                f"cannot {request.doing}: what was issued for request {request.name} is old already",
                "a new one is asked for; is the clock of this node right?",
            )
        return fresh

    def _draft(self) -> CertificateRequest:
        """Return the pending request, a new one when there is none that can be read."""
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
        return self._client.send(request, self._environment.clock.monotonic() + seconds)

    def _write(self, name: str, content: bytes) -> None:
        try:
            self._settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as cause:
            raise CniError(Code.IO, f"cannot make {self._settings.folder}: {cause.strerror}") from cause
        files.replace(self._settings.folder / name, content, 0o600)

    def _pause(self, error: CniError) -> float:
        """Return the seconds until a further try: less often each time, and not all nodes together."""
        self._memory.failures += 1
        refused = isinstance(error, Denied)
        (first, longest), times = (_REFUSED, self._memory.refusals) if refused else (_FAILED, self._memory.failures)
        return min(longest, first * 2.0 ** min(times - 1, 30)) * random.uniform(0.5, 1)

    def _report_error(self, error: CniError) -> None:
        """Report an error when it is new, and again at intervals as long as it lasts."""
        text, now = str(error), self._environment.clock.monotonic()
        before, since = self._memory.reported
        if text == before and now - since < _REMIND:
            return
        self._memory.reported = (text, now)
        log.warning("%s", text)
        reason = "CertificateRefused" if isinstance(error, Denied) else "NoCertificate"
        self._environment.report("certificate_failed", reason, text)
