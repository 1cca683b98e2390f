# SPDX-License-Identifier: Apache-2.0
"""A request to an API server and its reply as plain records, and what a reply means; no network is touched here."""

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from multus_py.cni.errors import CniError, Code
from multus_py.kube.store import NotFound, Unavailable

_BUSY = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Request:
    """One request; for its errors what it is *doing*, and the permission that it needs."""

    method: str
    path: str
    doing: str
    permission: str
    body: Mapping[str, Any] | None = None
    content_type: str = "application/json"


# Sends a request and returns the object of the reply.
Send = Callable[[Request], Mapping[str, Any]]


@dataclass(frozen=True)
class Reply:
    """What came back: *headers* without regard to case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def explanation(self) -> str:
        """The message of the API server's Status object, or the beginning of any other body."""
        message = self.json().get("message")
        return message if isinstance(message, str) and message else f"HTTP {self.status}: {self.body[:100]!r}"

    def json(self) -> Mapping[str, Any]:
        """Return the object in the body, an empty one when there is none."""
        try:
            body = json.loads(self.body, object_hook=_lightened)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, Mapping) else {}

    @property
    def wait(self) -> float | None:
        """Seconds of the Retry-After header, None without one (RFC 9110, 10.2.3; the date form is not used here)."""
        seconds = self.headers.get("Retry-After", "").strip()
        return float(seconds) if seconds.isascii() and seconds.isdigit() else None


class Retryable(Unavailable):
    """Not this time; *after* is what the server asked us to wait, in seconds."""

    def __init__(self, msg: str, details: str = "", after: float | None = None) -> None:
        super().__init__(msg, details)
        self.after = after


class Conflict(CniError):
    """The object is not what the request took it for: HTTP 409, or 422 for another uid (seen with 1.20)."""


class Expired(CniError):
    """The server no longer knows the version, or the place in a list, from which we asked to go on: HTTP 410."""


class Untrusted(CniError):
    """The server's certificate is not one that our configuration trusts."""


def _lightened(table: dict[str, Any]) -> dict[str, Any]:
    """Drop from an object, as soon as it is parsed, the notes of field managers: half of a list is made of them."""
    table.pop("managedFields", None)
    return table


def interpret_reply(request: Request, reply: Reply, account: str, complaints: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the object of a good reply; raise what any other one means.

    *account* names whose credentials were sent, *complaints* are warnings while they were read.
    """
    doing = request.doing
    if 200 <= reply.status < 300:
        body = reply.json()
        if not body:
            raise Retryable(
                f"cannot {doing}: the API server answered with what is not a JSON object: {reply.body[:60]!r}"
            )
        return body
    why = reply.explanation
    if reply.status in _BUSY:
        raise Retryable(f"cannot {doing}: the API server is not able to answer now: {why}", "try again", reply.wait)
    if reply.status == 404:
        raise NotFound(_code_of_absence(request), f"cannot {doing}: {why}", _advice_on_absence(reply))
    if reply.status == 409 or (reply.status == 422 and "metadata.uid" in _refused_fields(reply)):
        raise Conflict(Code.TRY_AGAIN, f"cannot {doing}: {why}")
    if reply.status == 410:
        raise Expired(Code.TRY_AGAIN, f"cannot {doing}: {why}")
    advice = {
        401: "; ".join([f"renew the credentials in {account}", *complaints]),
        403: f"allow '{request.permission}' to {account} (see the ClusterRole of multus-py)",
    }
    raise CniError(
        Code.INVALID_CONFIG, f"cannot {doing}: the API server refuses it: {why}", advice.get(reply.status, "")
    )


def unreachable(request: Request, host: str, cause: Exception) -> CniError:
    """Return the error for a *cause* that kept the request or its reply from being delivered."""
    reasons = [cause, *cause.args, cause.__cause__, cause.__context__]
    if any(isinstance(reason, ssl.SSLCertVerificationError) for reason in reasons):
        return Untrusted(
            Code.INVALID_CONFIG,
            f"cannot {request.doing}: {host} is not trusted: {cause}",
            "check certificate-authority and tls-server-name in the kubeconfig",
        )
    return Retryable(
        f"cannot {request.doing}: {host} is out of reach: {cause}", "look at the API server and the way to it"
    )


def _refused_fields(reply: Reply) -> set[Any]:
    """Return the fields that the Status object in the reply calls invalid."""
    details = reply.json().get("details")
    causes = details.get("causes") if isinstance(details, Mapping) else None
    return {cause.get("field") for cause in causes or () if isinstance(cause, Mapping)}


def _code_of_absence(request: Request) -> Code:
    # A pod is named by the runtime, in CNI_ARGS; a definition by people.
    return Code.INVALID_CONFIG if "/apis/" in request.path else Code.INVALID_ENVIRONMENT


def _advice_on_absence(reply: Reply) -> str:
    details = reply.json().get("details")
    named = isinstance(details, Mapping) and details.get("name")
    return "" if named else "is the custom resource installed (crds/), and is this the address of an API server?"
