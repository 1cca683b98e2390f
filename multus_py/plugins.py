# SPDX-License-Identifier: Apache-2.0
"""From a plugin's type to its doing: the native delegate in this process, or the executable on CNI_PATH."""

import importlib
import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from multus_py.cni import result as results
from multus_py.cni.call import INPUT_LIMIT, Call, json_object
from multus_py.cni.delegate import Delegate, Request
from multus_py.cni.errors import CniError, Code, PluginError
from multus_py.cni.result import Result
from multus_py.executables import Children, Executables
from multus_py.schemas.keys import unknown

NATIVE = {
    "bridge": "multus_py.delegates.bridge",
    "macvlan": "multus_py.delegates.macvlan",
    "sriov": "multus_py.delegates.sriov",
    "host-local": "multus_py.delegates.ipam.host_local",
    "static": "multus_py.delegates.ipam.static",
    "passthru": "multus_py.delegates.passthru",
}
ENTRY_POINTS = "multus_py.delegates"
# Set for whatever we execute: a chain that comes back to us is refused at the door.
DEPTH = "MULTUS_PY_DEPTH"
_STDERR_KEPT = 2000  # characters of a plugin's stderr that go into an error


@dataclass(frozen=True)
class Plugins:
    """Runs plugins. *backend* is auto, builtin or exec; *timeout* in seconds bounds one executable.

    *root* is where the node's root is seen.
    """

    backend: str = "auto"
    timeout: float = 120.0
    executables: Executables = field(default_factory=Children)
    observed: Callable[[str, str, float, int], None] | None = None  # plugin, verb, seconds, error code or 0
    root: str = "/"

    def run(self, plugin_type: str, call: Call) -> dict[str, Any] | None:
        """Run one plugin for *call*; return the result of ADD as the plugin said it, None for the other verbs."""
        if self.observed is None:
            return self._run(plugin_type, call)
        started, code = time.monotonic(), 0
        try:
            return self._run(plugin_type, call)
        except CniError as error:
            code = error.code
            raise
        finally:
            self.observed(plugin_type, call.verb, time.monotonic() - started, code)

    def _run(self, plugin_type: str, call: Call) -> dict[str, Any] | None:
        chosen = self.choose(plugin_type, call)
        if isinstance(chosen, Path):
            return self._execute(plugin_type, chosen, call)
        return self._native(chosen, plugin_type, call)

    def owns_interface(self, plugin_type: str, call: Call) -> bool:
        """Tell whether DEL of this plugin only removes the sandbox's interface, natively, IPAM included."""
        if not getattr(self.choose(plugin_type, call), "OWNS_INTERFACE", False):
            return False
        ipam = call.config.get("ipam")
        ipam_type = ipam.get("type") if isinstance(ipam, Mapping) else None
        return not ipam_type or not isinstance(self.choose(ipam_type, call), Path)

    def choose(self, plugin_type: str, call: Call) -> Delegate | Path:
        """Return the native delegate when it knows every key, else the executable; code 7 or 5 if there is neither."""
        delegate = None if self.backend == "exec" else _native_delegate(plugin_type)
        strange = unknown(call.config, delegate.SCHEMA) if delegate else []
        if delegate and not strange:
            return delegate
        path = None if self.backend == "builtin" else self.executables.find(plugin_type, call.path)
        if path:
            return path
        if delegate:
            raise CniError(
                Code.INVALID_CONFIG,
                f"plugin {plugin_type}: the native delegate does not know {', '.join(strange)}",
                "the backend is 'builtin': allow executables with delegateBackend 'auto'"
                if self.backend == "builtin"
                else f"and there is no executable {plugin_type!r} in {':'.join(call.path) or 'CNI_PATH'}",
            )
        raise CniError(
            Code.IO,
            f"plugin {plugin_type}: not found",
            "no native delegate has this type (delegateBackend 'builtin')"
            if self.backend == "builtin"
            else f"no executable of this name in {':'.join(call.path) or 'CNI_PATH, which is empty'}",
        )

    def _native(self, delegate: Delegate, plugin_type: str, call: Call) -> dict[str, Any] | None:
        request = Request(call, self._ask, self.root)
        doing = f"plugin {plugin_type}"
        try:
            if call.verb == "ADD":
                return results.write(delegate.add(request), call.version)
            verb = {"DEL": delegate.delete, "CHECK": delegate.check, "STATUS": delegate.status}.get(call.verb)
            if verb:
                verb(request)
        except CniError as cause:
            raise cause.while_(doing) from cause
        except OSError as cause:
            raise CniError(Code.IO, f"{doing}: {cause}") from cause
        return None

    def _ask(self, plugin_type: str, call: Call) -> Result | None:
        body = self.run(plugin_type, call)
        return None if body is None else results.read(body, call.version)

    def _execute(self, plugin_type: str, path: Path, call: Call) -> dict[str, Any] | None:
        stdin = json.dumps(dict(call.config)).encode()
        try:
            ended = self.executables.run(path, {**call.environment(), DEPTH: "1"}, stdin, self.timeout)
        except CniError as cause:
            raise cause.while_(f"plugin {plugin_type}: {call.verb}") from cause
        said = ended.stderr.decode(errors="replace").strip()[-_STDERR_KEPT:]
        if ended.status:
            raise _failure(plugin_type, ended.status, ended.stdout, said)
        if call.verb != "ADD":
            return None  # some plugins print what is no JSON here: nothing is asked of it
        if len(ended.stdout) > INPUT_LIMIT or not ended.stdout.strip():
            raise CniError(Code.DECODE, f"plugin {plugin_type}: ADD gave no usable result", said)
        try:
            body = json_object(ended.stdout, "its result")
            results.read(body, call.version)  # what cannot be read must not get further
        except CniError as cause:
            raise cause.while_(f"plugin {plugin_type}") from cause
        return body if body.get("cniVersion") else {"cniVersion": call.version, **body}


def _failure(plugin_type: str, code: int, stdout: bytes, said: str) -> CniError:
    """Return the plugin's own error when it printed one, else one that tells exit or signal and what stderr held."""
    try:
        body = json_object(stdout[:INPUT_LIMIT], "error")
    except CniError:
        end = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        printed = stdout.decode(errors="replace").strip()[-_STDERR_KEPT:]
        return PluginError(
            Code.INTERNAL,
            f"plugin {plugin_type}: failed without a CNI error ({end})",
            "; ".join(filter(None, [printed, said])),
        )
    error = PluginError.from_json(body, plugin_type)
    return PluginError(error.code, error.msg, "; ".join(filter(None, [error.details, said])))


def preload() -> None:
    """Import every native delegate of ours, for a process that will need them more than once."""
    for module in NATIVE.values():
        importlib.import_module(module)


@cache
def _native_delegate(plugin_type: str) -> Delegate | None:
    if module := NATIVE.get(plugin_type):
        return cast(Delegate, importlib.import_module(module))
    return _third_party(plugin_type)


def _third_party(plugin_type: str) -> Delegate | None:
    """Return a delegate that another package added through the entry point group."""
    from importlib.metadata import entry_points  # costs milliseconds: paid only for types that are not ours

    found = next(iter(entry_points(group=ENTRY_POINTS, name=plugin_type)), None)
    return cast(Delegate, found.load()) if found else None
