# SPDX-License-Identifier: Apache-2.0
"""Runs one plugin by its type: the native delegate in this process, or the executable on CNI_PATH."""

import importlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from multus_py.cni import names
from multus_py.cni import result as results
from multus_py.cni.call import INPUT_LIMIT, Call, json_object
from multus_py.cni.delegate import Delegate, Request
from multus_py.cni.errors import CniError, Code, PluginError, to_cni_error
from multus_py.cni.executables import Children, Executables
from multus_py.cni.result import Result
from multus_py.config.delegate_schema import unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

log = logging.getLogger("multus_py")

NATIVE = {
    "bridge": "multus_py.delegates.bridge",
    "macvlan": "multus_py.delegates.macvlan",
    "sriov": "multus_py.delegates.sriov",
    "host-local": "multus_py.delegates.ipam.host_local",
    "static": "multus_py.delegates.ipam.static",
    "passthru": "multus_py.delegates.passthru",
}
# Executables that run the IPAM plugin of their config from CNI_PATH (CNI spec section 4). In configs of others `ipam`
# may have another meaning: azure-vnet's "azure-cns" is no executable.
DELEGATES_IPAM = frozenset(
    ("bridge", "dummy", "host-device", "ib-sriov", "ipoib", "ipvlan", "macvlan", "ovs", "ptp", "sriov", "tap", "vlan",
     "vrf-device", "accelerated-bridge")
)  # fmt: skip
ENTRY_POINTS = "multus_py.delegates"
# Set in the environment of every executable: a chain that calls multus-py again is refused by its entry point.
DEPTH = "MULTUS_PY_DEPTH"
_STDERR_LIMIT = 2000  # characters of a plugin's stderr that go into an error
_OPERATIONS = {"DEL": "delete", "CHECK": "check", "STATUS": "status"}  # functions of a native delegate


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
        """Run one plugin for *call*; return the result of ADD as the plugin returned it, None for the other verbs."""
        chosen = self.choose(plugin_type, call)  # outside of what is observed: an unknown type would become a label
        started, code = time.monotonic(), 0
        try:
            if isinstance(chosen, Path):
                return self._run_executable(plugin_type, chosen, call)
            request = Request(call, self._run_for_delegate, self.root)
            try:
                if call.verb == "ADD":
                    return results.write(chosen.add(request), call.version)
                if operation := _OPERATIONS.get(call.verb):
                    getattr(chosen, operation)(request)
            except (Exception, SystemExit) as cause:
                raise _delegate_error(plugin_type, cause) from cause
        except CniError as error:
            code = error.code
            raise
        finally:
            if self.observed:
                self.observed(plugin_type, call.verb, time.monotonic() - started, code)
        return None

    def _run_executable(self, plugin_type: str, path: Path, call: Call) -> dict[str, Any] | None:
        result = self._execute(plugin_type, path, call)
        if call.verb == "DEL":
            self._release_skipped(plugin_type, call)
        return result

    def _release_skipped(self, plugin_type: str, call: Call) -> None:
        """Run DEL of the IPAM plugin when the namespace is gone: some executables then return success without doing it.

        An IPAM plugin that is the plugin itself is not run again, nor one that is neither native nor on CNI_PATH.
        """
        ipam = call.config.get("ipam")
        kind = ipam.get("type") if isinstance(ipam, Mapping) else None
        if not isinstance(kind, str) or kind in ("", plugin_type) or (call.netns and os.path.exists(call.netns)):  # noqa: PTH110
            return
        try:
            self.choose(kind, call)
        except CniError:
            return
        try:
            self.run(kind, call)
        except CniError as error:
            if plugin_type in DELEGATES_IPAM:
                raise
            # The 'ipam' of other plugins may be an incomplete config: their own success counts.
            log.info("plugin %s confirmed DEL, IPAM plugin %s did not: %s", plugin_type, kind, error)

    def refuse_unfit(self, plugin_type: str, call: Call) -> None:
        """Raise what the verb of *call* would raise for this plugin's config alone, its IPAM plugin's included."""
        chosen = self.choose(plugin_type, call)
        ipam = call.config.get("ipam")
        if not isinstance(chosen, Path):
            if parse := getattr(chosen, "parse", None):
                try:
                    parse(call)
                except (Exception, SystemExit) as cause:
                    raise _delegate_error(plugin_type, cause) from cause
            if isinstance(ipam, Mapping) and ipam.get("type") and ipam["type"] != plugin_type:
                self.refuse_unfit(ipam["type"], call)
        elif ipam is not None and plugin_type in DELEGATES_IPAM:
            self._refuse_unfit_ipam(plugin_type, ipam, call)

    def _refuse_unfit_ipam(self, plugin_type: str, ipam: object, call: Call) -> None:
        """Raise when an executable would not find its IPAM plugin, which it runs itself from CNI_PATH."""
        where = f"plugin {plugin_type}: ipam"
        if not isinstance(ipam, Mapping):
            raise CniError(Code.INVALID_CONFIG, f"{where} must be an object, it is {ipam!r:.80}", "or leave it out")
        kind = ipam.get("type")
        if kind and self.executables.find(names.plugin_type(kind, where), call.path) is None:
            raise CniError(
                Code.IO,
                f"{where}: there is no executable {kind!r} in {':'.join(call.path) or 'CNI_PATH, which is empty'}",
                "install it, or correct the type",
            )

    def owns_interface(self, plugin_type: str, call: Call) -> bool:
        """Tell whether DEL of this plugin only removes the sandbox's interface, natively, IPAM included."""
        if not getattr(self.choose(plugin_type, call), "OWNS_INTERFACE", False):
            return False
        ipam = call.config.get("ipam")
        ipam_type = ipam.get("type") if isinstance(ipam, Mapping) else None
        return not ipam_type or not isinstance(self.choose(ipam_type, call), Path)

    def choose(self, plugin_type: str, call: Call) -> Delegate | Path:
        """Return the native delegate when it supports every key, else the executable; code 7 or 5 without either."""
        names.plugin_type(plugin_type, "plugin")  # here, because the type of an IPAM plugin is nested in a config
        try:
            delegate = None if self.backend == "exec" else _native_delegate(plugin_type)
        except (Exception, SystemExit) as cause:
            raise _delegate_error(plugin_type, cause) from cause
        unsupported = unknown(call.config, delegate.SCHEMA) if delegate else []
        if delegate and not unsupported:
            return delegate
        path = None if self.backend == "builtin" else self.executables.find(plugin_type, call.path)
        if path:
            return path
        if delegate:
            raise CniError(
                Code.INVALID_CONFIG,
                f"plugin {plugin_type}: the native delegate does not know {', '.join(unsupported)}",
                "the backend is 'builtin': allow executables with delegateBackend 'auto'"
                if self.backend == "builtin"
                else f"and there is no executable {plugin_type!r} in {':'.join(call.path) or 'CNI_PATH'}",
            )
        # Without the words "not found": containerd treats a DEL error that contains them as success.
        raise CniError(
            Code.IO,
            f"plugin {plugin_type}: there is no such plugin",
            "no native delegate has this type (delegateBackend 'builtin')"
            if self.backend == "builtin"
            else f"no executable of this name in {':'.join(call.path) or 'CNI_PATH, which is empty'}",
        )

    def _run_for_delegate(self, plugin_type: str, call: Call) -> Result | None:
        """Run another plugin on behalf of a native delegate: its IPAM plugin."""
        body = self.run(plugin_type, call)
        return None if body is None else results.read(body, call.version)

    def _execute(self, plugin_type: str, path: Path, call: Call) -> dict[str, Any] | None:
        stdin = json.dumps(dict(call.config)).encode()
        try:
            ended = self.executables.run(path, {**call.environment(), DEPTH: "1"}, stdin, self.timeout)
        except CniError as cause:
            raise cause.with_context(f"plugin {plugin_type}: {call.verb}") from cause
        except (OSError, ValueError) as cause:  # a NUL in the environment, no file descriptor left
            raise CniError(Code.IO, f"plugin {plugin_type}: {call.verb}: cannot run {path}: {cause}") from cause
        stderr = ended.stderr.decode(errors="replace").strip()[-_STDERR_LIMIT:]
        if ended.status:
            raise _failure(plugin_type, ended.status, ended.stdout, stderr)
        if call.verb != "ADD":
            return None  # some plugins print text that is not JSON here
        if len(ended.stdout) > INPUT_LIMIT or not ended.stdout.strip():
            raise CniError(Code.DECODE, f"plugin {plugin_type}: ADD gave no usable result", stderr)
        try:
            body = json_object(ended.stdout, "its result")
            results.read(body, call.version)  # raises for a result that cannot be read
        except CniError as cause:
            raise cause.with_context(f"plugin {plugin_type}") from cause
        return body if body.get("cniVersion") else {"cniVersion": call.version, **body}


def _delegate_error(plugin_type: str, cause: BaseException) -> CniError:
    """Return the error of a native delegate as a `CniError` that names the plugin; log one that is unexpected."""
    context = f"plugin {plugin_type}"
    if isinstance(cause, CniError):
        return cause.with_context(context)
    if isinstance(cause, OSError):
        return CniError(Code.IO, f"{context}: {cause}")
    log.exception("%s: unexpected error", context)  # of a delegate of another package, for example
    return to_cni_error(cause).with_context(context)


def _failure(plugin_type: str, code: int, stdout: bytes, stderr: str) -> CniError:
    """Return the plugin's own error when it printed one, else one with exit code or signal and standard error."""
    try:
        body = json_object(stdout[:INPUT_LIMIT], "error")
    except CniError:
        end = f"ended by {_signal(-code)}" if code < 0 else f"exit code {code}"
        printed = stdout.decode(errors="replace").strip()[-_STDERR_LIMIT:]
        return PluginError(
            Code.INTERNAL,
            f"plugin {plugin_type}: failed without a CNI error ({end})",
            "; ".join(filter(None, [printed, stderr])),
        )
    error = PluginError.from_json(body, plugin_type)
    return PluginError(error.code, error.msg, "; ".join(filter(None, [error.details, stderr])))


def _signal(number: int) -> str:
    """Return the name of a signal; most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def preload() -> None:
    """Import every native delegate of this package, for a long-running process."""
    for module in NATIVE.values():
        importlib.import_module(module)


def _native_delegate(plugin_type: str) -> Delegate | None:
    return _imported(plugin_type) if plugin_type in NATIVE or plugin_type in _third_party() else None


@cache
def _imported(plugin_type: str) -> Delegate:
    """Return an existing delegate: the cache has those that were found, not every name that is asked for."""
    module = NATIVE.get(plugin_type)
    return cast(Delegate, importlib.import_module(module) if module else _third_party()[plugin_type].load())


@cache
def _third_party() -> "Mapping[str, EntryPoint]":
    """Return the delegates that other packages added through the entry point group, by type."""
    from importlib.metadata import entry_points  # takes milliseconds: only for other types than ours

    return {found.name: found for found in reversed(tuple(entry_points(group=ENTRY_POINTS)))}
