# SPDX-License-Identifier: Apache-2.0
"""A small device plugin (v1beta1) on real gRPC: it offers ids, and tells a container in its environment what it got.

Field numbers: k8s.io/kubelet, pkg/apis/deviceplugin/v1beta1/api.proto.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

ENVIRONMENT = "MPT_DEVICES"  # in a container: the ids it was given, with commas
_CHANNEL = (
    ("grpc.default_authority", "localhost"),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass
class DevicePlugin:
    """Offers *ids* as *resource* to the kubelet whose device-plugins *folder* is given, until it is stopped.

    A kubelet that starts empties the folder: when the plugin's socket is gone, it serves anew and registers again.
    """

    folder: Path
    resource: str
    ids: Sequence[str]
    name: str
    registered: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _server: Any = None
    _watch: threading.Thread | None = None

    @property
    def socket(self) -> Path:
        """Return where the plugin serves."""
        return self.folder / self.name

    def start(self) -> None:
        """Serve, register, and watch the socket from then on."""
        self._offer()
        self._watch = threading.Thread(target=self._follow, name=f"watch {self.name}")
        self._watch.start()

    def stop(self) -> None:
        """Stop offering; kubelet then counts the devices as unhealthy."""
        self._over.set()
        if self._watch:
            self._watch.join()
        self._withdraw()

    def _follow(self) -> None:
        while not self._over.wait(0.1):
            if not self.socket.exists():
                self._withdraw()
                self._offer()

    def _offer(self) -> None:
        handlers = {
            "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(lambda _request, _context: b""),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._list_and_watch),
            "Allocate": grpc.unary_unary_rpc_method_handler(_allocate),
        }
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", handlers),))
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()
        self._register()

    def _withdraw(self) -> None:
        if self._server:
            self._server.stop(0).wait()
        self.socket.unlink(missing_ok=True)

    def _register(self) -> None:
        request = _text(1, "v1beta1") + _text(2, self.name) + _text(3, self.resource)
        with grpc.insecure_channel(f"unix:{self.folder / 'kubelet.sock'}", _CHANNEL) as channel:
            channel.unary_unary("/v1beta1.Registration/Register")(request, timeout=60, wait_for_ready=True)
        self.registered += 1

    def _list_and_watch(self, _request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"".join(_field(1, _text(1, one) + _text(2, "Healthy")) for one in self.ids)
        while context.is_active() and not self._over.wait(0.1):
            pass  # nothing about the devices changes


def _allocate(request: bytes, _context: grpc.ServicerContext) -> bytes:
    """Answer each container's request (field 1: its ids) with an environment that names the ids."""
    answers = []
    for container in _contents(request):
        given = ",".join(one.decode() for one in _contents(container))
        answers.append(_field(1, _field(1, _text(1, ENVIRONMENT) + _text(2, given))))
    return b"".join(answers)


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    """Encode a field of bytes, short enough for a length of one byte."""
    assert len(content) < 0x80, content
    return bytes([number << 3 | 2, len(content)]) + content


def _contents(message: bytes) -> Iterator[bytes]:
    """Yield what the fields of a message hold that has only field 1, of short bytes."""
    while message:
        key, size = message[:2]
        assert (key, size < 0x80) == (1 << 3 | 2, True), message
        yield message[2 : 2 + size]
        message = message[2 + size :]
