# SPDX-License-Identifier: Apache-2.0
"""The JSON Schemas of the plugin config, the daemon config and the networks annotation, from their declarations."""

from collections.abc import Iterable
from typing import Any

from multus_py.config import daemon, plugin, selection
from multus_py.config.keys import Key
from multus_py.kube.store import NETWORKS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def generated() -> dict[str, dict[str, Any]]:
    """Return the schemas by name: `config`, `daemon`, `networks`."""
    return {
        "config": {
            **_document("config", "multus-py config", "The plugin config: a .conf file, or a plugin of a .conflist."),
            **_object(plugin.KEYS),
            "required": ["type"],
            "anyOf": [{"required": ["clusterNetwork"]}, {"required": ["delegates"]}],
        },
        "daemon": {
            **_document(
                "daemon",
                "daemon config",
                "The daemon config: every key of the plugin config, which replaces that of a request, and its own.",
            ),
            **_object((*plugin.KEYS, *daemon.KEYS)),
        },
        "networks": {
            **_document("networks", NETWORKS, "The JSON form of the pod annotation that requests networks."),
            "type": "array",
            "items": {
                **_object(selection.KEYS),
                "patternProperties": {
                    "\\.": {"description": "A key of a domain (org.example.note), of another implementation."}
                },
            },
        },
    }


def default_of(key: Key) -> Any:
    """Return the default as a JSON value, None when there is none or it is not a constant."""
    value = key.default
    if key.default_text or value in ("", (), frozenset()):
        return None
    if isinstance(value, frozenset | tuple):
        return ",".join(sorted(value)) if "string" in key.kind.schema.get("type", ()) else sorted(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return None if key.kind.members else str(value)


def _document(name: str, title: str, description: str) -> dict[str, str]:
    return {"$schema": _DIALECT, "$id": f"{name}.json", "title": title, "description": description}


def _object(keys: Iterable[Key]) -> dict[str, Any]:
    properties, required = {}, []
    for key in keys:
        properties[key.name] = _of_key(key)
        required += [key.name] if key.required else []
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": required} if required else schema


def _of_key(key: Key) -> dict[str, Any]:
    schema: dict[str, Any] = {**key.kind.schema, **dict(key.limits), "description": _meaning(key)}
    of_items: dict[str, Any] = {"format": key.format} if key.format else {}
    if key.kind.members:
        of_items |= _object(key.kind.members)
    if schema.get("type") == "array":
        schema["items"] = {**schema["items"], **of_items}
    else:
        schema |= of_items
    default = default_of(key)
    return schema if default is None else {**schema, "default": default}


def _meaning(key: Key) -> str:
    """Return the description and the unit."""
    unit = key.unit or key.kind.unit
    return f"{key.meaning} Unit: {unit}." if unit else key.meaning
