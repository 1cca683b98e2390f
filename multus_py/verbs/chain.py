# SPDX-License-Identifier: Apache-2.0
"""One network's plugins in order: forward on ADD, backward on DEL, each with the result before it (as libcni)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from multus_py.cni import result as results
from multus_py.cni import versions
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, run_all, try_step
from multus_py.cni.result import Result
from multus_py.plan.attachment import Attachment
from multus_py.state.result_cache import ResultCache
from multus_py.verbs.plugins import Plugins

VALID_ATTACHMENTS = "cni.dev/valid-attachments"
_OLD_VALID_ATTACHMENTS = "cni.dev/attachments"  # what libcni 1.2 and 1.3 write in addition to the spec's key


def _ignore_progress(begun: int, done: int) -> None:
    """Record nothing."""


@dataclass(frozen=True)
class Chain:
    """Runs the plugins of one attachment and caches its result."""

    plugins: Plugins
    cache: ResultCache

    def refuse_unfit(self, attachment: Attachment, call: Call) -> None:
        """Raise what is known before anything is changed: a plugin that does not exist, a config it cannot read.

        A config is read for the verb of *call*: STATUS and DEL do not need what only ADD needs, such as a device.
        """
        for plugin in attachment.conflist.plugins:
            try:
                self.plugins.refuse_unfit(plugin["type"], self._plugin_call(call.verb, attachment, plugin, call, None))
            except CniError as error:
                raise error.with_context(str(attachment)) from error

    def add(
        self, attachment: Attachment, call: Call, record_progress: Callable[[int, int], None] = _ignore_progress
    ) -> dict[str, Any]:
        """Attach; return the last plugin's result as the plugin returned it, in the list's own version.

        *record_progress* is called before each plugin, and at the end, with the number of plugins begun and completed.
        """
        conf = attachment.conflist
        previous: dict[str, Any] | None = None
        for n, plugin in enumerate(conf.plugins):
            record_progress(n + 1, n)
            body = self.plugins.run(plugin["type"], self._plugin_call("ADD", attachment, plugin, call, previous))
            previous = _converted(body or {}, conf.version)
        record_progress(len(conf.plugins), len(conf.plugins))
        result = previous or {"cniVersion": conf.version}
        self.cache.store(attachment, call.container_id, call.netns, result)
        return result

    def check(self, attachment: Attachment, call: Call) -> None:
        """Run CHECK of every plugin with the cached result as prevResult."""
        conf = attachment.conflist
        if conf.disable_check or not versions.has_verb("CHECK", conf.version):
            return
        cached = self.cache.result(attachment, call.container_id)
        if cached is None:
            raise CniError(
                Code.UNKNOWN_CONTAINER,
                f"no result is kept for {attachment}",
                "delete the sandbox and add it again",
            )
        try:
            for plugin in conf.plugins:
                self.plugins.run(plugin["type"], self._plugin_call("CHECK", attachment, plugin, call, cached))
        except CniError as error:
            raise error.with_context(str(attachment)) from error

    def delete(self, attachment: Attachment, call: Call, begun: int) -> dict[int, CniError]:
        """Detach: run DEL of the first *begun* plugins, last first, whichever fails; return the errors by index.

        The cached result is removed when all of them succeeded.
        """
        conf = attachment.conflist
        has_previous = versions.has_verb("CHECK", conf.version)
        previous = self.cache.result(attachment, call.container_id) if has_previous else None
        errors = {}
        for n, plugin in reversed(list(enumerate(conf.plugins[:begun]))):
            plugin_call = self._plugin_call("DEL", attachment, plugin, call, previous)
            if error := try_step(partial(self.plugins.run, plugin["type"], plugin_call)):
                errors[n] = error.with_context(str(attachment))
        if not errors:
            self.cache.remove(attachment, call.container_id)
        return errors

    def owns_interface(self, attachment: Attachment, call: Call) -> bool:
        """Tell whether all that DEL of this attachment does in the kernel is the removal of its interface."""
        members = [
            (plugin["type"], self._plugin_call("DEL", attachment, plugin, call, None))
            for plugin in attachment.conflist.plugins
        ]
        try:
            return all(self.plugins.owns_interface(plugin_type, plugin_call) for plugin_type, plugin_call in members)
        except CniError:
            return False

    def status(self, attachment: Attachment, call: Call) -> None:
        """Run STATUS of every plugin; raise the first error."""
        if versions.has_verb("STATUS", attachment.conflist.version):
            for plugin in attachment.conflist.plugins:
                self.plugins.run(plugin["type"], self._plugin_call("STATUS", attachment, plugin, call, None))

    def supports_gc(self, attachment: Attachment) -> bool:
        """Tell whether GC is to be run for this network: its version has the verb, and it does not disable it."""
        return not attachment.conflist.disable_gc and versions.has_verb("GC", attachment.conflist.version)

    def gc(self, attachment: Attachment, call: Call, valid: Iterable[tuple[str, str]]) -> None:
        """Run GC of every plugin; *valid* is every (container id, interface) of this network that is in use."""
        conf = attachment.conflist
        listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in sorted(valid)]
        keys = {VALID_ATTACHMENTS: listed, _OLD_VALID_ATTACHMENTS: listed}
        steps = [
            partial(
                self.plugins.run, plugin["type"], self._plugin_call("GC", attachment, {**plugin, **keys}, call, None)
            )
            for plugin in conf.plugins
        ]
        run_all(f"garbage collection of network {conf.name}", *steps)

    def cached_result(self, attachment: Attachment, call: Call) -> Result | None:
        """Return the cached result of an attachment."""
        cached = self.cache.result(attachment, call.container_id)
        return None if cached is None else results.read(cached, attachment.conflist.version)

    def store_routes(self, attachment: Attachment, call: Call, result: Result) -> None:
        """Replace the routes of the cached result by those of *result*: a later prevResult agrees with the kernel."""
        version = attachment.conflist.version
        cached = self.cache.result(attachment, call.container_id) or {}
        self.cache.store(attachment, call.container_id, call.netns, results.with_routes(cached, result, version))

    def _plugin_call(
        self,
        verb: str,
        attachment: Attachment,
        plugin: Mapping[str, Any],
        call: Call,
        previous: Mapping[str, Any] | None,
    ) -> Call:
        """Return the call of one plugin: its config with name, version, prevResult and runtimeConfig."""
        conf = attachment.conflist
        config = {**plugin, "name": conf.name, "cniVersion": conf.version}
        declared = plugin.get("capabilities")
        granted = {
            key: value
            for key, value in attachment.capabilities.items()
            if isinstance(declared, Mapping) and declared.get(key) is True
        }
        if granted:
            own = plugin.get("runtimeConfig")
            config["runtimeConfig"] = {**(own if isinstance(own, Mapping) else {}), **granted}
        if previous is not None:
            config["prevResult"] = dict(previous)
        if verb in ("STATUS", "GC"):  # of the network, not of one sandbox: libcni leaves these variables empty
            return replace(call, verb=verb, container_id="", netns="", ifname="", args=(), config=config)
        return replace(call, verb=verb, ifname=attachment.ifname, args=attachment.args, config=config)


def _converted(body: dict[str, Any], version: str) -> dict[str, Any]:
    """Return a plugin's result unchanged when it has the list's version, else converted to it."""
    returned = versions.resolve(body.get("cniVersion") or version)
    return body if returned == version else results.write(results.read(body), version)
