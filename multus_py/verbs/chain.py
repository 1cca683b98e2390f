# SPDX-License-Identifier: Apache-2.0
"""One network's plugins in order: forward on ADD, backward on DEL, each fed with the result before it (as libcni)."""

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
_OLD_VALID_ATTACHMENTS = "cni.dev/attachments"  # what libcni 1.2 and 1.3 write beside the spec's key


def _unwatched(begun: int, done: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Chain:
    """Runs the plugins of one attachment and keeps its result."""

    plugins: Plugins
    cache: ResultCache

    def refuse_unfit(self, attachment: Attachment, call: Call) -> None:
        """Raise what can be known before anything is touched: a plugin that is not there, a config it cannot read.

        A config is read for the verb of *call*: STATUS and DEL do without what only ADD needs, a device first of all.
        """
        for plugin in attachment.conflist.plugins:
            try:
                self.plugins.refuse_unfit(plugin["type"], self._call(call.verb, attachment, plugin, call, None))
            except CniError as error:
                raise error.with_context(str(attachment)) from error

    def add(self, attachment: Attachment, call: Call, begun: Callable[[int, int], None] = _unwatched) -> dict[str, Any]:
        """Attach; return the last plugin's result as it was said, in the list's own version.

        *begun* is told before each plugin how many are begun with it and how many came to be, and once more at the end.
        """
        conf = attachment.conflist
        previous: dict[str, Any] | None = None
        for n, plugin in enumerate(conf.plugins):
            begun(n + 1, n)
            body = self.plugins.run(plugin["type"], self._call("ADD", attachment, plugin, call, previous))
            previous = _in_version(body or {}, conf.version)
        begun(len(conf.plugins), len(conf.plugins))
        result = previous or {"cniVersion": conf.version}
        self.cache.store(attachment, call.container_id, call.netns, result)
        return result

    def check(self, attachment: Attachment, call: Call) -> None:
        """Ask every plugin whether the attachment is still as its result says."""
        conf = attachment.conflist
        if conf.disable_check or not versions.has_verb("CHECK", conf.version):
            return
        kept = self.cache.result(attachment, call.container_id)
        if kept is None:
            raise CniError(
                Code.UNKNOWN_CONTAINER,
                f"no result is kept for {attachment}",
                "delete the sandbox and add it again",
            )
        try:
            for plugin in conf.plugins:
                self.plugins.run(plugin["type"], self._call("CHECK", attachment, plugin, call, kept))
        except CniError as error:
            raise error.with_context(str(attachment)) from error

    def delete(self, attachment: Attachment, call: Call, begun: int) -> dict[int, CniError]:
        """Detach: ask the plugins that were *begun*, last first, whatever another said; return what failed, by place.

        The result is kept until all of them confirmed.
        """
        conf = attachment.conflist
        kept = self.cache.result(attachment, call.container_id) if versions.has_verb("CHECK", conf.version) else None
        troubles = {}
        for n, plugin in reversed(list(enumerate(conf.plugins[:begun]))):
            told = self._call("DEL", attachment, plugin, call, kept)
            if trouble := try_step(partial(self.plugins.run, plugin["type"], told)):
                troubles[n] = trouble.with_context(str(attachment))
        if not troubles:
            self.cache.drop(attachment, call.container_id)
        return troubles

    def owns_interface(self, attachment: Attachment, call: Call) -> bool:
        """Tell whether to the kernel DEL of this attachment is the removal of its interface and nothing else."""
        members = [
            (plugin["type"], self._call("DEL", attachment, plugin, call, None))
            for plugin in attachment.conflist.plugins
        ]
        try:
            return all(self.plugins.owns_interface(plugin_type, told) for plugin_type, told in members)
        except CniError:
            return False

    def status(self, attachment: Attachment, call: Call) -> None:
        """Ask every plugin whether it could serve an ADD now; the first that could not is told."""
        if versions.has_verb("STATUS", attachment.conflist.version):
            for plugin in attachment.conflist.plugins:
                self.plugins.run(plugin["type"], self._call("STATUS", attachment, plugin, call, None))

    def sweeps(self, attachment: Attachment) -> bool:
        """Tell whether the plugins of this network know GC and are to be asked."""
        return not attachment.conflist.disable_gc and versions.has_verb("GC", attachment.conflist.version)

    def gc(self, attachment: Attachment, call: Call, valid: Iterable[tuple[str, str]]) -> None:
        """Tell every plugin which (container id, interface) of this network are still in use."""
        conf = attachment.conflist
        listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in sorted(valid)]
        told = {VALID_ATTACHMENTS: listed, _OLD_VALID_ATTACHMENTS: listed}
        steps = [
            partial(self.plugins.run, plugin["type"], self._call("GC", attachment, {**plugin, **told}, call, None))
            for plugin in conf.plugins
        ]
        run_all(f"garbage collection of network {conf.name}", *steps)

    def result(self, attachment: Attachment, call: Call) -> Result | None:
        """Return the kept result of an attachment."""
        kept = self.cache.result(attachment, call.container_id)
        return None if kept is None else results.read(kept, attachment.conflist.version)

    def amend(self, attachment: Attachment, call: Call, result: Result) -> None:
        """Keep the routes of *result* in place of what the plugins said: a later prevResult agrees with the kernel."""
        version = attachment.conflist.version
        said = self.cache.result(attachment, call.container_id) or {}
        self.cache.store(attachment, call.container_id, call.netns, results.with_routes(said, result, version))

    def _call(
        self,
        verb: str,
        attachment: Attachment,
        plugin: Mapping[str, Any],
        call: Call,
        previous: Mapping[str, Any] | None,
    ) -> Call:
        """Return the call that one plugin gets: its own config, the name, version, prevResult and runtimeConfig."""
        conf = attachment.conflist
        config = {**plugin, "name": conf.name, "cniVersion": conf.version}
        declared = plugin.get("capabilities")
        given = {
            key: value
            for key, value in attachment.capabilities.items()
            if isinstance(declared, Mapping) and declared.get(key) is True
        }
        if given:
            own = plugin.get("runtimeConfig")
            config["runtimeConfig"] = {**(own if isinstance(own, Mapping) else {}), **given}
        if previous is not None:
            config["prevResult"] = dict(previous)
        if verb in ("STATUS", "GC"):  # of the network, not of one sandbox: libcni leaves these variables empty
            return replace(call, verb=verb, container_id="", netns="", ifname="", args=(), config=config)
        return replace(call, verb=verb, ifname=attachment.ifname, args=attachment.args, config=config)


def _in_version(body: dict[str, Any], version: str) -> dict[str, Any]:
    """Return the result as it was said when it is in the list's version, else converted."""
    said = versions.resolve(body.get("cniVersion") or version)
    return body if said == version else results.write(results.read(body), version)
