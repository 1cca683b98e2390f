# SPDX-License-Identifier: Apache-2.0
"""A pod-resources service on a unix socket, as kubelet has one: real gRPC, and it answers as the test tells it."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

Reply = bytes | grpc.StatusCode | Callable[[], bytes]
# Container -> resource -> device ids.
Held = Mapping[str, Mapping[str, list[str]]]


def message(*fields: tuple[int, bytes | str | int]) -> bytes:
    """Encode a protobuf message of numbers, texts and messages."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            raw = value.encode() if isinstance(value, str) else value
            parts.append(varint(number << 3 | 2) + varint(len(raw)) + raw)
    return b"".join(parts)


def varint(value: int) -> bytes:
    """Encode a number, seven bits a byte, the lowest first."""
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def pod(name: str, held: Held, namespace: str = "default") -> bytes:
    """Encode one pod in a reply of its own (to Get); several of them in a row are a reply to List."""
    containers = []
    for container, resources in held.items():
        devices = [
            # 3: the topology, a message that nobody of ours reads.
            (2, message((1, resource), *((2, one) for one in ids), (3, message((1, message((1, 0)))))))
            for resource, ids in resources.items()
        ]
        # 3: cpu ids, packed.
        containers.append((3, message((1, container), *devices, (3, b"\x01\x02\xac\x02"))))
    return message((1, message((1, name), (2, namespace), *containers)))


@dataclass
class Lister:
    """What the service answers: to each verb its replies in turn, the last one again and again."""

    folder: Path
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    _server: Any = None

    @property
    def socket(self) -> Path:
        """The socket, where kubelet would have it below its root."""
        return self.folder / "pod-resources/kubelet.sock"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the device manager."""
        return self.folder / "device-plugins/kubelet_internal_checkpoint"

    def start(self) -> None:
        """Serve on the socket, which is made anew."""
        self.socket.unlink(missing_ok=True)
        server = grpc.server(ThreadPoolExecutor(4))
        handlers = {verb: grpc.unary_unary_rpc_method_handler(self._answer(verb)) for verb in self.replies}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers),))
        server.add_insecure_port(f"unix:{self.socket}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """Stop serving and take the socket away."""
        if self._server:
            self._server.stop(0).wait()
            self._server = None
        self.socket.unlink(missing_ok=True)

    def _answer(self, verb: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            n = self.asked.count(verb)
            self.asked.append(verb)
            self.requests.append(request)
            reply = self.replies[verb][min(n, len(self.replies[verb]) - 1)]
            if isinstance(reply, grpc.StatusCode):
                context.abort(reply, "as the test has it")
            return reply() if callable(reply) else reply

        return answer

    def silence(self) -> bytes:
        """Answer when the test is over."""
        self.over.wait(60)
        return b""


@contextmanager
def listening(start: bool = True, **replies: list[Reply] | Reply) -> Iterator[Lister]:
    """Make kubelet's folder and serve there; keyword = verb, value = its replies. Verbs without are not implemented."""
    folder = Path(tempfile.mkdtemp(prefix="mpt"))  # short: a socket's path has at most 107 bytes
    lister = Lister(folder, {verb: value if isinstance(value, list) else [value] for verb, value in replies.items()})
    for part in ("pod-resources", "device-plugins"):
        (folder / part).mkdir()
    try:
        if start:
            lister.start()
        yield lister
    finally:
        lister.over.set()
        lister.stop()
        shutil.rmtree(folder)
