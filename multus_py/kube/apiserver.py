# SPDX-License-Identifier: Apache-2.0
"""A cluster's API server as the store. TLS, proxies and every kind of credentials come from the kubernetes package.

Only its configuration and its connection pool are used: the generated API classes know one release of Kubernetes, while
the five paths that we ask for are the same from 1.20 on.
"""

import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as DeadlinePassed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from multus_py.cni import names
from multus_py.cni.errors import CniError, Code
from multus_py.kube import manifests
from multus_py.kube.store import NETWORK_STATUS, NetworkDefinition, NotFound, Pod, PodRef, Unavailable

COMPONENT = "multus-py"
REPLY_LIMIT = 16 * 1024 * 1024  # bytes of a reply that we are ready to read
MESSAGE_LIMIT = 1024  # bytes of an Event's message: core/v1 Event
_BUSY = frozenset({429, 500, 502, 503, 504})
_PODS, _EVENTS = "/api/v1/namespaces/{}/pods/{}", "/api/v1/namespaces/{}/events"
_DEFINITIONS = "/apis/k8s.cni.cncf.io/v1/namespaces/{}/network-attachment-definitions/{}"
T = TypeVar("T")


@dataclass(frozen=True)
class _Request:
    """One request, and the words for its errors: what we are *doing*, and the permission that it needs."""

    method: str
    path: str
    doing: str
    permission: str
    body: Mapping[str, Any] | None = None
    content_type: str = "application/json"


@dataclass(frozen=True)
class _Reply:
    """What came back: *headers* without regard to case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def explanation(self) -> str:
        """The message of the API server's Status object, or the first words of what else came."""
        message = self.json().get("message")
        return message if isinstance(message, str) and message else f"HTTP {self.status}: {self.body[:100]!r}"

    def json(self) -> Mapping[str, Any]:
        """Return the object in the body, an empty one when there is none."""
        try:
            body = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, Mapping) else {}

    @property
    def wait(self) -> float | None:
        """Seconds of the Retry-After header, None without one (RFC 9110, 10.2.3; the date form is not used here)."""
        seconds = self.headers.get("Retry-After", "").strip()
        return float(seconds) if seconds.isascii() and seconds.isdigit() else None


class _Again(Unavailable):
    """Not this time; *after* is what the server asked us to wait, in seconds."""

    def __init__(self, msg: str, details: str = "", after: float | None = None) -> None:
        super().__init__(msg, details)
        self.after = after


class _Conflict(CniError):
    """The object is not what the request took it for: HTTP 409, or 422 for another uid (seen with 1.20)."""


@dataclass(frozen=True)
class _Session:
    """The kubeconfig as it was when it was read, and the connections opened with it."""

    configuration: Any
    pool: Any  # urllib3's pool manager, made by the kubernetes package
    complaints: tuple[str, ...] = field(default=())

    def send(self, request: _Request, seconds: float) -> _Reply:
        """Send one request and read the reply; *seconds* bound every single wait for the network."""
        import urllib3
        from kubernetes.config import ConfigException

        host = self.configuration.host
        try:
            reply = self.pool.request(
                request.method,
                host + request.path,
                body=None if request.body is None else json.dumps(request.body),
                headers=self._headers(request),
                # A dead address must leave time for a second try; a slow answer may take all there is.
                timeout=urllib3.Timeout(connect=max(seconds / 3, min(1.0, seconds)), read=seconds),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                return _Reply(reply.status, reply.headers, reply.read(REPLY_LIMIT))
            finally:
                reply.release_conn()
        except urllib3.exceptions.LocationValueError as cause:
            raise CniError(
                Code.INVALID_CONFIG, f"cannot {request.doing}: {host!r} is not the address of an API server", str(cause)
            ) from cause
        except urllib3.exceptions.HTTPError as cause:
            raise _unreachable(request, host, cause) from cause
        except (ConfigException, OSError, ValueError) as cause:
            raise CniError(
                Code.INVALID_CONFIG,
                f"cannot {request.doing}: cannot set up the connection to {host}: {cause}",
                "check the certificates and the token that the kubeconfig names",
            ) from cause

    def _headers(self, request: _Request) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": request.content_type, "User-Agent": COMPONENT}
        for setting in self.configuration.auth_settings().values():
            # A token file often ends with a newline, which no header may hold.
            headers[setting["key"]] = str(setting["value"]).strip()
        return headers


class ApiServer:
    """The API server that *kubeconfig* names (a path); None: the one of the cluster whose pod we are.

    Every verb ends within *deadline* seconds, looking up names, running credential commands and all retries included.
    *node* is the host in the source of our Events, *now* tells the time of day in nanoseconds.
    """

    def __init__(
        self, kubeconfig: str | None, deadline: float, node: str = "", now: Callable[[], int] = time.time_ns
    ) -> None:
        self._kubeconfig = kubeconfig
        self._deadline = deadline
        self._node = node
        self._now = now
        self._lock = threading.Lock()
        self._session: _Session | None = None

    def pod(self, ref: PodRef) -> Pod:
        """Return the pod as the API server has it now."""
        doing = f"read pod {ref}"
        request = _Request("GET", _path(_PODS, ref.namespace, ref.name, doing), doing, "get pods")
        return self._within(doing, lambda ask: _pod(ask(request), doing))

    def definition(self, namespace: str, name: str) -> NetworkDefinition:
        """Return the definition as the API server has it now."""
        doing = f"read NetworkAttachmentDefinition {namespace}/{name}"
        path = _path(_DEFINITIONS, namespace, name, doing)
        request = _Request("GET", path, doing, "get network-attachment-definitions.k8s.cni.cncf.io")
        return self._within(doing, lambda ask: _definition(ask(request), doing))

    def publish_status(self, pod: Pod, text: str) -> None:
        """Write the annotation through pods/status; `NotFound` when the pod went away or was replaced."""
        doing = f"publish the network-status of pod {pod.ref}"
        path = _path(_PODS, pod.namespace, pod.name, doing)
        read = _Request("GET", path, doing, "get pods")
        # With the uid in the patch the server refuses it when a pod of the same name took the place.
        metadata = {**({"uid": pod.uid} if pod.uid else {}), "annotations": {NETWORK_STATUS: text}}
        patch = _Request(
            "PATCH",
            f"{path}/status",
            doing,
            "patch pods/status",
            {"metadata": metadata},
            "application/merge-patch+json",
        )

        def publish(ask: Callable[[_Request], Mapping[str, Any]]) -> None:
            try:
                ask(patch)
            except _Conflict as conflict:
                if pod.uid and (uid := _pod(ask(read), doing).uid) != pod.uid:
                    raise NotFound(
                        Code.INVALID_ENVIRONMENT, f"cannot {doing}: it was replaced, uid {pod.uid} is now {uid}"
                    ) from conflict
                raise _Again(conflict.msg, "another writer changes the pod at the same time") from conflict

        self._within(doing, publish)

    def event(self, pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Create a core/v1 Event about the pod."""
        doing = f"tell Event {reason} about pod {pod.ref}"
        body = self._event(pod, kind, reason, message)
        request = _Request("POST", _path(_EVENTS, pod.namespace, pod.name, doing), doing, "create events", body)

        def create(ask: Callable[[_Request], Mapping[str, Any]]) -> None:
            try:
                ask(request)
            except _Conflict:
                # The name is ours alone: an earlier try, whose answer was lost, did create it.
                return

        self._within(doing, create)

    def forget(self, ref: PodRef) -> None:
        """Do nothing: what is told about a pod belongs to the cluster, and goes with the pod."""

    def _event(self, pod: Pod, kind: str, reason: str, message: str) -> dict[str, Any]:
        now = self._now()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now // 1_000_000_000))
        return {
            "apiVersion": "v1",
            "kind": "Event",
            # client-go names Events in the same way; an object's name has at most 253 characters.
            "metadata": {"namespace": pod.namespace, "name": f"{pod.name[:230].rstrip('-.')}.{now:x}"},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": pod.namespace,
                "name": pod.name,
                "uid": pod.uid,
            },
            "type": kind,
            "reason": reason,
            "message": message.encode()[:MESSAGE_LIMIT].decode(errors="ignore"),
            "source": {"component": COMPONENT, "host": self._node},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }

    def _within(self, doing: str, errand: Callable[[Callable[[_Request], Mapping[str, Any]]], T]) -> T:
        """Run the errand of one verb on a thread of its own, and leave it behind when the deadline passes.

        Neither the lookup of a host name nor a credential command nor an answer that drips takes a timeout.
        """
        # The slow import (0.3 s) is not charged to the first verb's deadline.
        import kubernetes.config  # noqa: F401

        answer: Future[T] = Future()
        until = time.monotonic() + self._deadline
        troubles: list[str] = []

        def go() -> None:
            try:
                answer.set_result(self._persistently(errand, until, troubles))
            except Exception as trouble:  # noqa: BLE001  handed on to the thread that waits
                answer.set_exception(trouble)

        threading.Thread(target=go, name=f"api server: {doing}", daemon=True).start()
        try:
            return answer.result(self._deadline)
        except DeadlinePassed as cause:
            raise Unavailable(
                f"cannot {doing}: the API server did not answer within {self._deadline:g} s"
                + "".join(f" (the try before: {trouble})" for trouble in troubles[-1:]),
                "look at the API server and at the way to it; apiDeadline gives it more time",
            ) from cause

    def _persistently(
        self, errand: Callable[[Callable[[_Request], Mapping[str, Any]]], T], until: float, troubles: list[str]
    ) -> T:
        """Repeat the errand while the server is busy or out of reach, as long as a further try fits in the time.

        What kept each try from succeeding is added to *troubles*.
        """
        from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

        backoff = wait_random_exponential(multiplier=0.05, max=1)

        def wait(state: RetryCallState) -> float:
            trouble = state.outcome.exception() if state.outcome else None
            troubles.append(str(trouble))
            asked = trouble.after if isinstance(trouble, _Again) else None
            return backoff(state) if asked is None else asked

        retrying = Retrying(
            retry=retry_if_exception_type(_Again),
            wait=wait,
            stop=lambda state: time.monotonic() + state.upcoming_sleep >= until,
            reraise=True,
        )
        return retrying(errand, lambda request: self._ask(request, until))

    def _ask(self, request: _Request, until: float) -> Mapping[str, Any]:
        """Send one request, with fresh credentials once when those we have are refused, and interpret the reply."""
        session = self._opened(request.doing)
        reply = session.send(request, _left(until))
        if reply.status == 401:
            session = self._opened(request.doing, refused=session)
            reply = session.send(request, _left(until))
        return _interpreted(request, reply, self._kubeconfig or "the pod's service account", session.complaints)

    def _opened(self, doing: str, refused: _Session | None = None) -> _Session:
        """Return the session; a new one, the kubeconfig read again, when the one we have was *refused*."""
        with self._lock:
            if self._session is None or self._session is refused:
                self._session = _open(self._kubeconfig, doing)
            return self._session


def _open(kubeconfig: str | None, doing: str) -> _Session:
    from kubernetes.client import Configuration
    from kubernetes.client.rest import RESTClientObject
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

    configuration, where = Configuration(), kubeconfig or "the service account of this pod"
    try:
        with _overheard() as complaints:
            if kubeconfig is None:
                load_incluster_config(client_configuration=configuration)
            else:
                _require_yaml(kubeconfig)
                # Refreshed credentials are not written back: the file belongs to somebody else.
                load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
        if not str(configuration.host).startswith(("http://", "https://")):
            raise ValueError(f"{configuration.host!r} is not the address of an API server, https://host:port")  # noqa: TRY301
        return _Session(configuration, RESTClientObject(configuration).pool_manager, tuple(complaints))
    except (ConfigException, OSError, ValueError, TypeError, AttributeError, LookupError) as cause:
        raise CniError(
            Code.INVALID_CONFIG,
            f"cannot {doing}: the credentials in {where} cannot be read: {cause}",
            "name a kubeconfig that kubectl can use" if kubeconfig else "set 'kubeconfig' when this is not a pod",
        ) from cause


def _require_yaml(kubeconfig: str) -> None:
    with open(kubeconfig, "rb") as file:  # noqa: PTH123  a string all the way, as the package takes it
        found = list(manifests.documents(file.read(), is_json=False))
    if troubles := [f"line {document.line}: {document.trouble}" for document in found if document.trouble]:
        raise ValueError("; ".join(troubles))


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """Collect what the package logs while it loads a kubeconfig: it tells so, and only so, of a command that failed."""
    told: list[str] = []
    me = threading.get_ident()

    def overhear(record: logging.LogRecord) -> bool:
        ours = record.thread == me
        if ours:
            told.append(record.getMessage())
        return not ours

    root = logging.getLogger()
    root.addFilter(overhear)
    try:
        yield told
    finally:
        root.removeFilter(overhear)


def _interpreted(request: _Request, reply: _Reply, account: str, complaints: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the object of a good reply; raise what any other one means."""
    doing, why = request.doing, reply.explanation
    if reply.status in _BUSY:
        raise _Again(f"cannot {doing}: the API server is not able to answer now: {why}", "try again", reply.wait)
    if 200 <= reply.status < 300:
        body = reply.json()
        if not body:
            raise _Again(f"cannot {doing}: the API server answered with what is not a JSON object: {reply.body[:60]!r}")
        return body
    if reply.status == 404:
        raise NotFound(_code_of_absence(request), f"cannot {doing}: {why}", _advice_on_absence(reply))
    if reply.status == 409 or (reply.status == 422 and "metadata.uid" in _refused_fields(reply)):
        raise _Conflict(Code.TRY_AGAIN, f"cannot {doing}: {why}")
    advice = {
        401: "; ".join([f"renew the credentials in {account}", *complaints]),
        403: f"allow '{request.permission}' to {account} (see the ClusterRole of multus-py)",
    }
    raise CniError(
        Code.INVALID_CONFIG, f"cannot {doing}: the API server refuses it: {why}", advice.get(reply.status, "")
    )


def _refused_fields(reply: _Reply) -> set[Any]:
    """Return the fields that the Status object in the reply calls invalid."""
    details = reply.json().get("details")
    causes = details.get("causes") if isinstance(details, Mapping) else None
    return {cause.get("field") for cause in causes or () if isinstance(cause, Mapping)}


def _code_of_absence(request: _Request) -> Code:
    # A pod is named by the runtime, in CNI_ARGS; a definition by people.
    return Code.INVALID_CONFIG if "/apis/" in request.path else Code.INVALID_ENVIRONMENT


def _advice_on_absence(reply: _Reply) -> str:
    details = reply.json().get("details")
    named = isinstance(details, Mapping) and details.get("name")
    return "" if named else "is the custom resource installed (crds/), and is this the address of an API server?"


def _unreachable(request: _Request, host: str, cause: Exception) -> CniError:
    reasons = [cause, *cause.args, cause.__cause__, cause.__context__]
    if any(isinstance(reason, ssl.SSLCertVerificationError) for reason in reasons):
        return CniError(
            Code.INVALID_CONFIG,
            f"cannot {request.doing}: {host} is not trusted: {cause}",
            "check certificate-authority and tls-server-name in the kubeconfig",
        )
    return _Again(
        f"cannot {request.doing}: {host} is out of reach: {cause}", "look at the API server and the way to it"
    )


def _left(until: float) -> float:
    # Never zero, which would mean "do not wait" to a socket: the deadline itself ends the verb.
    return max(until - time.monotonic(), 0.01)


def _path(template: str, namespace: str, name: str, doing: str) -> str:
    # Checked before it becomes a path: with an empty name the server would list them all.
    if not names.is_label(namespace) or not names.is_subdomain(name):
        raise NotFound(Code.INVALID_ENVIRONMENT, f"cannot {doing}: no object can have this name")
    return template.format(namespace, name)


def _metadata(body: Mapping[str, Any], doing: str) -> Mapping[str, Any]:
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str):
        raise _Again(f"cannot {doing}: the API server answered with an object that has no name")
    return metadata


def _annotations(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in (metadata.get("annotations") or {}).items()}


def _pod(body: Mapping[str, Any], doing: str) -> Pod:
    about, spec = _metadata(body, doing), body.get("spec") or {}
    return Pod(
        about["namespace"], about["name"], about.get("uid") or "", _annotations(about), spec.get("nodeName") or ""
    )


def _definition(body: Mapping[str, Any], doing: str) -> NetworkDefinition:
    about, spec = _metadata(body, doing), body.get("spec") or {}
    return NetworkDefinition(about["namespace"], about["name"], spec.get("config") or "", _annotations(about))
