# SPDX-License-Identifier: Apache-2.0
"""A node's own client certificate: its key, the request for it, the API server's answer (the cryptography importer).

Nothing here touches files or waits; that is done by `agent/identity.py`.
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

# multus-cni's words: approvers and role bindings that were made for it go on to work.
GROUP = "system:multus"
SIGNER = "kubernetes.io/kube-apiserver-client"
USAGES = ("digital signature", "client auth")
_PATH = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
_RESOURCE = "certificatesigningrequests.certificates.k8s.io"
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)


class Refused(CniError):
    """Somebody denied the request, or the signer could not sign it: the same request will never be granted."""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key in PEM, and when it is valid, in Unix seconds."""

    pem: bytes
    not_before: float
    not_after: float

    def point(self, share: float) -> float:
        """Return the time at which so large a *share* (0 to 1) of its life is over, in Unix seconds."""
        return self.not_before + share * (self.not_after - self.not_before)


@dataclass(frozen=True)
class Draft:
    """A request that was made: it is called *name* in the cluster, *pem* is the request (PKCS #10) and its key."""

    node: str
    name: str
    request: bytes
    key: bytes

    @property
    def pem(self) -> bytes:
        """The text of the file that `read_draft` reads."""
        return self.request + self.key

    @property
    def doing(self) -> str:
        """What we are doing, for errors."""
        return f"get the client certificate of node {self.node}"


@dataclass(frozen=True)
class Answer:
    """What became of a request: *issued* is the certificate's PEM, b"" until then."""

    approved: bool
    issued: bytes


def draft(node: str) -> Draft:
    """Make a key (ECDSA, P-256) and the request of the *node* for a certificate; code 7 for what is no node's name."""
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
                # X.520 ends a common name at 64 characters; names of nodes are longer, and API servers take them.
                x509.NameAttribute(NameOID.COMMON_NAME, f"{GROUP}:{node}", _validate=False),
            ]
        )
        signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return Draft(
        node,
        _request_name(node, key.public_key()),
        signed.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def read_draft(pem: bytes, node: str) -> Draft:
    """Read a request and its key, as `Draft.pem` has them (code 6 when they are damaged or another node's)."""
    with _any_length(), _told(f"the request for the client certificate of node {node}"):
        request, key = x509.load_pem_x509_csr(pem), load_pem_private_key(pem, None)
        _require_node(request.subject, node)
        _require_pair(request.public_key(), key.public_key())
        name = _request_name(node, key.public_key())
        return Draft(node, name, request.public_bytes(Encoding.PEM), _key_text(pem))


def read(pem: bytes, node: str) -> Certificate:
    """Read a certificate, those of its authorities after it, and its key; code 6 when they are not the *node*'s."""
    with _any_length(), _told(f"the client certificate of node {node}"):
        found, key = x509.load_pem_x509_certificates(pem)[0], load_pem_private_key(pem, None)
        _require_node(found.subject, node)
        _require_pair(found.public_key(), key.public_key())
        return Certificate(pem, found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())


def submit(send: Send, wanted: Draft, seconds: int) -> Answer:
    """Tell what became of the request, and make it in the cluster when it is not there (any more).

    The certificate is to live for so many *seconds*; signers may shorten that, those before 1.22 do not listen.
    `Refused` when nobody will ever grant it.
    """
    read_it = Request("GET", f"{_PATH}/{wanted.name}", wanted.doing, f"get {_RESOURCE}")
    try:
        return _answer(send(read_it), wanted)
    except NotFound:
        pass  # the first time; or the cluster cleaned up, which it does with requests after an hour to a day
    try:
        return _answer(send(_creation(wanted, seconds)), wanted)
    except Conflict:
        # Only who has the key knows the name: an earlier try, whose answer was lost, did create it.
        return Answer(approved=False, issued=b"")


def issued(wanted: Draft, text: bytes) -> Certificate:
    """Return the certificate that the cluster issued for the request, with our key; code 6 when it does not fit."""
    return read(text.rstrip() + b"\n" + wanted.key, wanted.node)


def prove(send: Send, node: str) -> None:
    """Ask the API server for its version, which everybody may know whom it recognises."""
    send(Request("GET", "/version", f"try the client certificate of node {node}", "get /version"))


def _creation(wanted: Draft, seconds: int) -> Request:
    body = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": wanted.name},
        "spec": {
            "request": b64encode(wanted.request).decode(),
            "signerName": SIGNER,
            "usages": list(USAGES),
            "expirationSeconds": seconds,
        },
    }
    return Request("POST", _PATH, wanted.doing, f"create {_RESOURCE}", body)


def _answer(body: Mapping[str, Any], wanted: Draft) -> Answer:
    status = body.get("status")
    status = status if isinstance(status, Mapping) else {}
    listed = status.get("conditions")
    conditions = {
        each.get("type"): each for each in (listed if isinstance(listed, list) else ()) if isinstance(each, Mapping)
    }
    for kind, deed in (("Denied", "was denied"), ("Failed", "could not be signed")):
        if kind in conditions:
            raise Refused(
                Code.INVALID_CONFIG,
                f"cannot {wanted.doing}: request {wanted.name} {deed}: {_why(conditions[kind])}",
                "a new request is made from time to time; ask whoever approves requests in this cluster",
            )
    text = status.get("certificate")
    try:
        return Answer("Approved" in conditions, b64decode(text, validate=True) if isinstance(text, str) else b"")
    except ValueError as cause:
        raise CniError(
            Code.DECODE, f"cannot {wanted.doing}: the certificate of request {wanted.name} is not base64"
        ) from cause


def _why(condition: Mapping[str, Any]) -> str:
    return ": ".join(str(condition[key]) for key in ("reason", "message") if condition.get(key)) or "no reason given"


def _request_name(node: str, key: PublicKeyTypes) -> str:
    """Return a name that the key alone decides: after a restart the same request is found again."""
    digest = hashlib.sha256(_encoded(key) + node.encode()).hexdigest()[:20]
    return f"multus-py-{node[:200].rstrip('-.')}-{digest}"


def _require_node(subject: x509.Name, node: str) -> None:
    wanted = [f"{GROUP}:{node}"], [GROUP]
    found = tuple(
        [str(each.value) for each in subject.get_attributes_for_oid(oid)]
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    )
    if found != wanted:
        raise ValueError(f"it names {', '.join(found[0] + found[1]) or 'nobody'}")


def _require_pair(one: PublicKeyTypes, other: PublicKeyTypes) -> None:
    if _encoded(one) != _encoded(other):
        raise ValueError("the key beside it is another's")


def _encoded(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_text(pem: bytes) -> bytes:
    found = _KEY.search(pem)
    if not found:
        raise ValueError("it holds no key")
    return found.group()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn the package's errors about a text into ours."""
    try:
        yield
    except _UNREADABLE as cause:
        raise CniError(Code.DECODE, f"cannot read {what}: {cause}", "a new one is asked for") from cause


@contextmanager
def _any_length() -> Iterator[None]:
    """Keep the package from warning about long names, each time that it meets one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute's length", UserWarning)
        yield
