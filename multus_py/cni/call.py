# SPDX-License-Identifier: Apache-2.0
"""One CNI call: the verb, the CNI_* environment and the config from standard input, parsed and frozen."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from multus_py.cni import jsontext, names, versions
from multus_py.cni.errors import CniError, Code

# The variables that each verb requires (spec section 2; libcni requires the same).
_NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
    "VERSION": (),
}
VERBS = tuple(_NEEDS)
_READ = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")
INPUT_LIMIT = 16 * 1024 * 1024  # bytes of config or reply


@dataclass(frozen=True)
class Call:
    """One call of a plugin: one verb for one interface of one sandbox.

    *config* is the network config from standard input as parsed JSON, never modified; *args* are the pairs of CNI_ARGS
    in order; *path* the folders of CNI_PATH; *netns* the path of the sandbox's network namespace, "" when the runtime
    gives none.
    """

    verb: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: tuple[tuple[str, str], ...] = ()
    path: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    same_netns_allowed: bool = False

    @property
    def version(self) -> str:
        """The caller's cniVersion."""
        return versions.resolve(self.config.get("cniVersion"))

    def arg(self, key: str) -> str:
        """Return the last value of *key* in CNI_ARGS, "" when it is absent (the last one wins, as in Go)."""
        return next((value for name, value in reversed(self.args) if name == key), "")

    def environment(self) -> dict[str, str]:
        """Return the CNI_* variables of this call for an executable."""
        env = {
            "CNI_COMMAND": self.verb,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.ifname,
            "CNI_ARGS": ";".join(f"{name}={value}" for name, value in self.args),
            "CNI_PATH": ":".join(self.path),
        }
        return {**env, "CNI_NETNS_OVERRIDE": "true"} if self.same_netns_allowed else env

    def with_config(self, config: Mapping[str, Any]) -> "Call":
        """Return the same call with another config."""
        return replace(self, config=config)


def parse(env: Mapping[str, str], stdin: bytes) -> Call:
    """Read a call from its environment and standard input; codes 3, 4, 6 and 7 as in the spec, section 5."""
    verb = env.get("CNI_COMMAND", "")
    if verb not in _NEEDS:
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_COMMAND {verb!r} is not a verb", f"known: {', '.join(_NEEDS)}")
    if missing := [name for name in _NEEDS[verb] if not env.get(name) and name != "CNI_CONTAINERID"]:
        raise CniError(Code.INVALID_ENVIRONMENT, f"required environment is missing: {', '.join(missing)}")
    if invalid := [name for name in _READ if not _is_environment_value(env.get(name, ""))]:
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"{', '.join(invalid)}: no process can have such a value", "it holds a zero byte"
        )
    attached = "CNI_IFNAME" in _NEEDS[verb]
    config = json_object(stdin or b"{}") if verb == "VERSION" else network_config(stdin, verb)
    return Call(
        verb=verb,
        container_id=names.container_id(env.get("CNI_CONTAINERID", "")) if attached else "",
        netns=env.get("CNI_NETNS", ""),
        ifname=(names.interface if verb == "ADD" else names.recorded_interface)(env["CNI_IFNAME"], "CNI_IFNAME")
        if attached
        else "",
        args=cni_args(env.get("CNI_ARGS", "")),
        path=tuple(folder for folder in env.get("CNI_PATH", "").split(":") if folder),
        config=MappingProxyType(config),
        same_netns_allowed=env.get("CNI_NETNS_OVERRIDE", "").lower() in ("true", "1"),
    )


def _is_environment_value(value: str) -> bool:
    """Tell whether *value* can be an environment variable: a daemon gets it as JSON, which may hold a zero byte."""
    try:
        return b"\0" not in value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False


def cni_args(text: str) -> tuple[tuple[str, str], ...]:
    """Read CNI_ARGS, `KEY=value;KEY=value`; values may hold '=' (code 4 for an item without one)."""
    pairs = []
    for item in text.split(";"):
        if not item:
            continue
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {item!r} is not KEY=value")
        pairs.append((key, value))
    return tuple(pairs)


def network_config(stdin: bytes, verb: str) -> dict[str, Any]:
    """Read the config on standard input: an object with a name and a supported version that has *verb*."""
    config = json_object(stdin)
    version = versions.resolve(config.get("cniVersion"))
    if not versions.has_verb(verb, version):
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"cniVersion {version} has no {verb}", f"it came with {versions.SINCE[verb]}"
        )
    names.network(config.get("name"), "the config on standard input, key 'name'")
    return config


def json_object(text: bytes | str, what: str = "the config on standard input") -> dict[str, Any]:
    """Parse one JSON object; code 6 with line and column when it is none."""
    if len(text) > INPUT_LIMIT:
        raise CniError(Code.DECODE, f"{what} is larger than {INPUT_LIMIT} bytes")
    try:
        body = jsontext.parse(text)
    except json.JSONDecodeError as cause:
        place = f"line {cause.lineno} column {cause.colno}: {cause.msg}"
        raise CniError(Code.DECODE, f"{what} is not JSON: {place}") from cause
    if not isinstance(body, dict):
        raise CniError(Code.DECODE, f"{what} must be a JSON object, it is {type(body).__name__}")
    return body
