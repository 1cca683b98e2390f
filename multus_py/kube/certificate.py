# SPDX-License-Identifier: Apache-2.0
"""A node's own client certificate: its key, the request for it, the API server's reply (the cryptography importer).

Nothing here touches files or waits: `agent/node/certificate.py` does.
"""

import hashlib
import re
import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from multus_py.cni import names
from multus_py.cni.errors import CniError, Code
from multus_py.kube.http import Conflict, Request, Send
from multus_py.kube.store import NotFound

# multus-cni's values: approvers and role bindings that were made for it go on working.
GROUP = "system:multus"
SIGNER = "kubernetes.io/kube-apiserver-client"
USAGES = ("digital signature", "client auth")
_PATH = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
_RESOURCE = "certificatesigningrequests.certificates.k8s.io"
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)


class Denied(CniError):
    """The request was denied, or the signer could not sign it: the same request will never be granted."""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key in PEM, and when it is valid, in Unix seconds."""

    pem: bytes
    not_before: float
    not_after: float

    def time_at(self, share: float) -> float:
        """Return the time at which the *share* (0 to 1) of its validity has passed, in Unix seconds."""
        return self.not_before + share * (self.not_after - self.not_before)


@dataclass(frozen=True)
class CertificateRequest:
    """A certificate signing request: *name* is its object's name, *request* its PEM (PKCS #10), *key* its key's PEM."""

    node: str
    name: str
    request: bytes
    key: bytes

    @property
    def pem(self) -> bytes:
        """The request, then its key: what `read_request` reads."""
        return self.request + self.key

    @property
    def doing(self) -> str:
        """The operation, for error messages."""
        return f"get the client certificate of node {self.node}"


@dataclass(frozen=True)
class RequestStatus:
    """The state of a request in the cluster: *issued* is the certificate's PEM, b"" before it is issued."""

    approved: bool
    issued: bytes


def create_request(node: str) -> CertificateRequest:
    """Make a key (ECDSA, P-256) and the *node*'s request for a certificate; code 7 when *node* is no node name."""
    if not names.is_subdomain(node):
        raise CniError(
            Code.INVALID_CONFIG,
            f"cannot ask for a client certificate: {node!r} is not the name of a node",
            "set MULTUS_NODE_NAME or 'nodeName' to what `kubectl get nodes` calls this one",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    with _any_length():
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, GROUP),
                # X.520 limits a common name to 64 characters; node names may be longer, and API servers accept them.
                x509.NameAttribute(NameOID.COMMON_NAME, f"{GROUP}:{node}", _validate=False),
            ]
        )
        signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return CertificateRequest(
        node,
        _request_name(node, key.public_key()),
        signed.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def read_request(pem: bytes, node: str) -> CertificateRequest:
    """Read the text of `CertificateRequest.pem`; code 6 when it is damaged or another node's."""
    with _any_length(), _decode_errors(f"the request for the client certificate of node {node}"):
        request, key = x509.load_pem_x509_csr(pem), load_pem_private_key(pem, None)
        _require_node(request.subject, node)
        _require_pair(request.public_key(), key.public_key())
        name = _request_name(node, key.public_key())
        return CertificateRequest(node, name, request.public_bytes(Encoding.PEM), _key_text(pem))


def read(pem: bytes, node: str) -> Certificate:
    """Read a certificate, then those of its authorities, then its key; code 6 when they are not the *node*'s."""
    with _any_length(), _decode_errors(f"the client certificate of node {node}"):
        found, key = x509.load_pem_x509_certificates(pem)[0], load_pem_private_key(pem, None)
        _require_node(found.subject, node)
        _require_pair(found.public_key(), key.public_key())
        return Certificate(pem, found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())


def submit(send: Send, request: CertificateRequest, seconds: int) -> RequestStatus:
    """Return the state of the request in the cluster; create it there when it does not exist (any more).

    The certificate is requested for *seconds*; signers may shorten that, those before 1.22 ignore it. `Denied` when
    the request will never be granted.
    """
    read_it = Request("GET", f"{_PATH}/{request.name}", request.doing, f"get {_RESOURCE}")
    try:
        return _request_status(send(read_it), request)
    except NotFound:
        pass  # the first time; or the cluster deleted it, which it does after an hour to a day
    try:
        return _request_status(send(_creation_request(request, seconds)), request)
    except Conflict:
        # The name is derived from the key: an earlier try, whose reply was lost, created it.
        return RequestStatus(approved=False, issued=b"")


def read_issued(request: CertificateRequest, text: bytes) -> Certificate:
    """Return the certificate that the cluster issued for the request, with our key; code 6 when they do not match."""
    return read(text.rstrip() + b"\n" + request.key, request.node)


def verify(send: Send, node: str) -> None:
    """Ask the API server for its version, which every authenticated user may read; raise when it refuses."""
    send(Request("GET", "/version", f"try the client certificate of node {node}", "get /version"))


def _creation_request(request: CertificateRequest, seconds: int) -> Request:
    body = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": request.name},
        "spec": {
            "request": b64encode(request.request).decode(),
            "signerName": SIGNER,
            "usages": list(USAGES),
            "expirationSeconds": seconds,
        },
    }
    return Request("POST", _PATH, request.doing, f"create {_RESOURCE}", body)


def _request_status(body: Mapping[str, Any], request: CertificateRequest) -> RequestStatus:
    status = body.get("status")
    status = status if isinstance(status, Mapping) else {}
    listed = status.get("conditions")
    conditions = {
        each.get("type"): each for each in (listed if isinstance(listed, list) else ()) if isinstance(each, Mapping)
    }
    for kind, outcome in (("Denied", "was denied"), ("Failed", "could not be signed")):
        if kind in conditions:
            raise Denied(
                Code.INVALID_CONFIG,
                f"cannot {request.doing}: request {request.name} {outcome}: {_why(conditions[kind])}",
                "a new request is made from time to time; ask whoever approves requests in this cluster",
            )
    text = status.get("certificate")
    try:
        return RequestStatus("Approved" in conditions, b64decode(text, validate=True) if isinstance(text, str) else b"")
    except ValueError as cause:
        raise CniError(
            Code.DECODE, f"cannot {request.doing}: the certificate of request {request.name} is not base64"
        ) from cause


def _why(condition: Mapping[str, Any]) -> str:
    return ": ".join(str(condition[key]) for key in ("reason", "message") if condition.get(key)) or "no reason given"


def _request_name(node: str, key: PublicKeyTypes) -> str:
    """Return a name derived from the key and the node: after a restart the same request is found again."""
    digest = hashlib.sha256(_encoded(key) + node.encode()).hexdigest()[:20]
    return f"multus-py-{node[:200].rstrip('-.')}-{digest}"


def _require_node(subject: x509.Name, node: str) -> None:
    expected = [f"{GROUP}:{node}"], [GROUP]
    found = tuple(
        [str(each.value) for each in subject.get_attributes_for_oid(oid)]
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    )
    if found != expected:
        raise ValueError(f"it names {', '.join(found[0] + found[1]) or 'nobody'}")


def _require_pair(certified: PublicKeyTypes, own: PublicKeyTypes) -> None:
    if _encoded(certified) != _encoded(own):
        raise ValueError("the key beside it is another's")


def _encoded(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_text(pem: bytes) -> bytes:
    found = _KEY.search(pem)
    if not found:
        raise ValueError("it holds no key")
    return found.group()


@contextmanager
def _decode_errors(what: str) -> Iterator[None]:
    """Convert the package's errors about *what* into code 6."""
    try:
        yield
    except _UNREADABLE as cause:
        raise CniError(Code.DECODE, f"cannot read {what}: {cause}", "a new one is asked for") from cause


@contextmanager
def _any_length() -> Iterator[None]:
    """Silence the package's warning about long names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute's length", UserWarning)
        yield
