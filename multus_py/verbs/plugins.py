# SPDX-License-Identifier: Apache-2.0
"""From a plugin's type to its doing: the native delegate in this process, or the executable on CNI_PATH."""

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
from typing import TYPE_CHECKING, Any, TypeVar, cast

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
T = TypeVar("T")

NATIVE = {
    "bridge": "multus_py.delegates.bridge",
    "macvlan": "multus_py.delegates.macvlan",
    "sriov": "multus_py.delegates.sriov",
    "host-local": "multus_py.delegates.ipam.host_local",
    "static": "multus_py.delegates.ipam.static",
    "passthru": "multus_py.delegates.passthru",
}
# Executables that start the IPAM plugin of their config from CNI_PATH (CNI spec section 4). What others mean by `ipam`
# is their own affair: azure-vnet's "azure-cns" is no program.
DELEGATES_IPAM = frozenset(
    ("bridge", "dummy", "host-device", "ib-sriov", "ipoib", "ipvlan", "macvlan", "ovs", "ptp", "sriov", "tap", "vlan",
     "vrf-device", "accelerated-bridge")
)  # fmt: skip
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
        chosen = self.choose(plugin_type, call)  # what is not there is not observed: its name may be any word
        if self.observed is None:
            return self._run(chosen, plugin_type, call)
        started, code = time.monotonic(), 0
        try:
            return self._run(chosen, plugin_type, call)
        except CniError as error:
            code = error.code
            raise
        finally:
            self.observed(plugin_type, call.verb, time.monotonic() - started, code)

    def _run(self, chosen: Delegate | Path, plugin_type: str, call: Call) -> dict[str, Any] | None:
        if not isinstance(chosen, Path):
            return self._native(chosen, plugin_type, call)
        said = self._execute(plugin_type, chosen, call)
        if call.verb == "DEL":
            self._release_skipped(plugin_type, call)
        return said

    def _release_skipped(self, plugin_type: str, call: Call) -> None:
        """Give the addresses back of an interface whose namespace is gone: some executables then confirm at once.

        Which IPAM plugin it was is in the config, and that plugin has nothing to give back itself; one that is neither
        ours nor on CNI_PATH is that executable's own affair.
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
        except CniError as trouble:
            if plugin_type in DELEGATES_IPAM:
                raise
            # What others write into 'ipam' may be half a config: they confirmed, and know better.
            log.info("plugin %s confirmed DEL, IPAM plugin %s did not: %s", plugin_type, kind, trouble)

    def refuse_unfit(self, plugin_type: str, call: Call) -> None:
        """Raise what the verb of *call* would say of this plugin's config alone, its IPAM plugin's included."""
        chosen = self.choose(plugin_type, call)
        ipam = call.config.get("ipam")
        if not isinstance(chosen, Path):
            if parse := getattr(chosen, "parse", None):
                self._told(plugin_type, lambda: parse(call))
            if isinstance(ipam, Mapping) and ipam.get("type") and ipam["type"] != plugin_type:
                self.refuse_unfit(ipam["type"], call)
        elif ipam is not None and plugin_type in DELEGATES_IPAM:
            self._refuse_unfit_ipam(plugin_type, ipam, call)

    def _refuse_unfit_ipam(self, plugin_type: str, ipam: object, call: Call) -> None:
        """Raise when an executable would not find its IPAM plugin: it starts it itself, from CNI_PATH."""
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
        """Return the native delegate when it knows every key, else the executable; code 7 or 5 if there is neither."""
        names.plugin_type(plugin_type, "plugin")  # an IPAM plugin's type comes from a config's depth: checked here
        delegate = None if self.backend == "exec" else self._told(plugin_type, lambda: _native_delegate(plugin_type))
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
        # Not with the words "not found": containerd takes a DEL error that has them for success.
        raise CniError(
            Code.IO,
            f"plugin {plugin_type}: there is no such plugin",
            "no native delegate has this type (delegateBackend 'builtin')"
            if self.backend == "builtin"
            else f"no executable of this name in {':'.join(call.path) or 'CNI_PATH, which is empty'}",
        )

    def _native(self, delegate: Delegate, plugin_type: str, call: Call) -> dict[str, Any] | None:
        request = Request(call, self._ask, self.root)
        if call.verb == "ADD":
            return self._told(plugin_type, lambda: results.write(delegate.add(request), call.version))
        verb = {"DEL": delegate.delete, "CHECK": delegate.check, "STATUS": delegate.status}.get(call.verb)
        return self._told(plugin_type, lambda: verb(request)) if verb else None

    @staticmethod
    def _told(plugin_type: str, deed: Callable[[], T]) -> T:
        """Do what a delegate does; whatever it raises becomes a `CniError` that names the plugin."""
        doing = f"plugin {plugin_type}"
        try:
            return deed()
        except CniError as cause:
            raise cause.with_context(doing) from cause
        except OSError as cause:
            raise CniError(Code.IO, f"{doing}: {cause}") from cause
        except (Exception, SystemExit) as cause:  # a delegate of another package, or bytes that nobody foresaw
            log.exception("%s met something that nobody expected", doing)
            raise to_cni_error(cause).with_context(doing) from cause

    def _ask(self, plugin_type: str, call: Call) -> Result | None:
        body = self.run(plugin_type, call)
        return None if body is None else results.read(body, call.version)

    def _execute(self, plugin_type: str, path: Path, call: Call) -> dict[str, Any] | None:
        stdin = json.dumps(dict(call.config)).encode()
        try:
            ended = self.executables.run(path, {**call.environment(), DEPTH: "1"}, stdin, self.timeout)
        except CniError as cause:
            raise cause.with_context(f"plugin {plugin_type}: {call.verb}") from cause
        except (OSError, ValueError) as cause:  # an environment that no process can have, no descriptor left
            raise CniError(Code.IO, f"plugin {plugin_type}: {call.verb}: cannot run {path}: {cause}") from cause
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
            raise cause.with_context(f"plugin {plugin_type}") from cause
        return body if body.get("cniVersion") else {"cniVersion": call.version, **body}


def _failure(plugin_type: str, code: int, stdout: bytes, said: str) -> CniError:
    """Return the plugin's own error when it printed one, else one that tells exit or signal and what stderr held."""
    try:
        body = json_object(stdout[:INPUT_LIMIT], "error")
    except CniError:
        end = f"ended by {_signal(-code)}" if code < 0 else f"exit code {code}"
        printed = stdout.decode(errors="replace").strip()[-_STDERR_KEPT:]
        return PluginError(
            Code.INTERNAL,
            f"plugin {plugin_type}: failed without a CNI error ({end})",
            "; ".join(filter(None, [printed, said])),
        )
    error = PluginError.from_json(body, plugin_type)
    return PluginError(error.code, error.msg, "; ".join(filter(None, [error.details, said])))


def _signal(number: int) -> str:
    """Return the name of a signal; most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def preload() -> None:
    """Import every native delegate of ours, for a process that will need them more than once."""
    for module in NATIVE.values():
        importlib.import_module(module)


def _native_delegate(plugin_type: str) -> Delegate | None:
    return _imported(plugin_type) if plugin_type in NATIVE or plugin_type in _third_party() else None


@cache
def _imported(plugin_type: str) -> Delegate:
    """Return a delegate that is there: what is remembered is not what users name, but what was found."""
    module = NATIVE.get(plugin_type)
    return cast(Delegate, importlib.import_module(module) if module else _third_party()[plugin_type].load())


@cache
def _third_party() -> "Mapping[str, EntryPoint]":
    """Return the delegates that other packages added through the entry point group, by type."""
    from importlib.metadata import entry_points  # costs milliseconds: paid only for types that are not ours

    return {found.name: found for found in reversed(tuple(entry_points(group=ENTRY_POINTS)))}
