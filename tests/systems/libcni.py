# SPDX-License-Identifier: Apache-2.0
"""What libcni would send to each plugin of a list: the yardstick for what we send (containernetworking/cni, libcni).

Numbers stay the text they were, so that nothing is equal by rounding.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def exact(text: str) -> Any:
    """Parse JSON with numbers as they are written."""
    return json.loads(text, parse_int=lambda said: ("number", said), parse_float=lambda said: ("number", said))


@dataclass(frozen=True)
class Attachment:
    """One list attached to one interface: what the runtime knows of it."""

    conflist: str
    container: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    capabilities: Mapping[str, Any]

    def environment(self, verb: str, path: Sequence[str]) -> dict[str, str]:
        """Return the CNI_* variables; CNI_ARGS is left to `args`, whose order means nothing."""
        return {"CNI_COMMAND": verb, "CNI_CONTAINERID": self.container, "CNI_NETNS": self.netns,
                "CNI_IFNAME": self.ifname, "CNI_PATH": ":".join(path)}  # fmt: skip

    def asked(self, verb: str) -> bool:
        """Tell whether the plugins are asked at all: CHECK from 0.4.0 unless the list says not to."""
        body = exact(self.conflist)
        return verb != "CHECK" or (_at_least(body, "0.4.0") and not body.get("disableCheck"))

    def configs(self, verb: str, results: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """Return type and config for each plugin in the order of its call; *results* is what each said at ADD."""
        body = exact(self.conflist)
        said = [exact(text) for text in results]
        last = said[-1] if said and _at_least(body, "0.4.0") else None
        before = [None, *said] if verb == "ADD" else [last] * len(body["plugins"])
        found = [
            (plugin["type"], self._config(body, plugin, previous))
            for plugin, previous in zip(body["plugins"], before, strict=False)
        ]
        return found[::-1] if verb == "DEL" else found

    def _config(self, body: Mapping[str, Any], plugin: Mapping[str, Any], previous: Any) -> dict[str, Any]:
        config = {**plugin, "name": body["name"], "cniVersion": body["cniVersion"]}
        declared = plugin.get("capabilities", {})
        given = {key: value for key, value in self.capabilities.items() if declared.get(key)}
        if given:
            config["runtimeConfig"] = exact(json.dumps(given))
        if previous is not None:
            config["prevResult"] = previous
        return config


def _at_least(body: Mapping[str, Any], version: str) -> bool:
    return VERSIONS.index(body["cniVersion"]) >= VERSIONS.index(version)
