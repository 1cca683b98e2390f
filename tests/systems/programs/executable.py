# SPDX-License-Identifier: Apache-2.0
"""What makes a scripted executable: the call as the reference plugins read it, its roles, its refusals, its record.

They run with the standard library alone, under absolute paths of the node whose root directory they are in.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD = Path("/var/log/cni-calls")
SETTINGS = Path("/etc/scripted.json")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}
_POD_KEYS = ("IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID")


class Refused(Exception):
    """What the executable does not do, with the code that it prints."""

    def __init__(self, msg: str, code: int = 100) -> None:
        super().__init__(msg)
        self.code = code


@dataclass(frozen=True)
class Call:
    """One call, as its environment and standard input say it."""

    role: str
    verb: str
    container: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    path: tuple[str, ...]
    config: dict[str, Any]

    @property
    def pod(self) -> str:
        """The pod as `<namespace>.<name>`; the real ones need both."""
        missing = [key for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME") if not self.args.get(key)]
        if missing:
            raise Refused(f"CNI_ARGS lacks {', '.join(missing)}")
        return f"{self.args['K8S_POD_NAMESPACE']}.{self.args['K8S_POD_NAME']}"

    @property
    def version(self) -> str:
        """The config's version; one that has none is of the first."""
        return self.config.get("cniVersion") or VERSIONS[0]

    @property
    def previous(self) -> dict[str, Any] | None:
        """The result of the plugin before this one."""
        return self.config.get("prevResult")

    @property
    def settings(self) -> dict[str, Any]:
        """What the test told this executable to be (a release, a fork)."""
        told = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
        return told.get(self.role, {})

    def wanted(self, key: str, kind: type) -> Any:
        """Return a value of the config that must be there and of one JSON type, as a Go structure would have it."""
        value = self.config.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise Refused(f"json: cannot unmarshal {value!r} into field {key} of type {kind.__name__}", 6)
        return value


Verb = Callable[[Call], Any]


@dataclass(frozen=True)
class Role:
    """What an executable does under one name: its verbs; the versions it takes; what it says to VERSION."""

    verbs: Mapping[str, Verb]
    versions: tuple[str, ...] = VERSIONS
    says: Mapping[str, Any] = field(default_factory=dict)


def main(roles: Mapping[str, Role], other_name: Callable[[str], int]) -> None:
    """Act the role that argv[0] names and end; under another name do what the real one does then."""
    name = Path(sys.argv[0]).name
    role = next((roles[known] for known in roles if name == known), None)
    if role is None:
        raise SystemExit(other_name(name))
    stdin = sys.stdin.read()
    try:
        out, code = _said(_answer(name, role, stdin)), 0
    except Refused as refused:
        body = {"cniVersion": "1.0.0", "code": refused.code, "msg": str(refused)}
        out, code = json.dumps(body), 1
    record(stdin, out, code)
    sys.stdout.write(out)
    raise SystemExit(code)


def _said(answer: Any) -> str:
    return answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer)


def _answer(name: str, role: Role, stdin: str) -> Any:
    env = os.environ
    verb = env.get("CNI_COMMAND", "")
    if verb == "VERSION":
        return {"cniVersion": role.versions[-1], "supportedVersions": list(role.versions), **role.says}
    if verb not in role.verbs:
        raise Refused(f"unknown CNI_COMMAND: {verb}", 4)
    config = json.loads(stdin)
    version = config.get("cniVersion") or VERSIONS[0]
    if version not in role.versions:
        raise Refused(f"incompatible CNI versions; config is {version}, plugin supports {list(role.versions)}", 1)
    if VERSIONS.index(version) < VERSIONS.index(_SINCE.get(verb, VERSIONS[0])):
        raise Refused(f"config version does not allow {verb}", 1)
    _refuse_bare_environment(verb)
    args = dict(item.split("=", 1) for item in env.get("CNI_ARGS", "").split(";") if item)
    strange = [key for key in args if key not in _POD_KEYS]
    if strange and args.get("IgnoreUnknown", "").lower() not in ("1", "true"):
        raise Refused(f"ARGS: unknown args {strange}")
    return role.verbs[verb](
        Call(name, verb, env.get("CNI_CONTAINERID", ""), env.get("CNI_NETNS", ""), env.get("CNI_IFNAME", ""), args,
             tuple(env["CNI_PATH"].split(":")), config)
    )  # fmt: skip


def _refuse_bare_environment(verb: str) -> None:
    needed = {"ADD": ["CONTAINERID", "NETNS", "IFNAME"], "CHECK": ["CONTAINERID", "NETNS", "IFNAME"],
              "DEL": ["CONTAINERID", "IFNAME"]}.get(verb, [])  # fmt: skip
    if missing := [f"CNI_{key}" for key in [*needed, "PATH"] if not os.environ.get(f"CNI_{key}")]:
        raise Refused(f"required env variables {missing} missing", 4)


def record(stdin: str, stdout: str, code: int) -> None:
    """Write down what this process was asked and what it answered, for the test to judge."""
    told = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    line = {"argv0": sys.argv[0], "env": told, "stdin": stdin, "stdout": stdout, "code": code}
    with RECORD.open("a") as file:
        file.write(json.dumps(line) + "\n")


def execute(call: Call, plugin_type: str, config: Mapping[str, Any], verb: str = "") -> dict[str, Any]:
    """Run another plugin from CNI_PATH, as these systems run their IPAM; return what it printed."""
    path = next((Path(folder) / plugin_type for folder in call.path if (Path(folder) / plugin_type).is_file()), None)
    if path is None:
        raise Refused(f"failed to find plugin {plugin_type!r} in path {list(call.path)}")
    env = {**os.environ, "CNI_COMMAND": verb or call.verb}
    done = subprocess.run([path], input=json.dumps(config), capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise Refused(f"{plugin_type}: {done.stdout or done.stderr}")
    return json.loads(done.stdout) if done.stdout.strip() else {}


def digest(text: str) -> str:
    """Return the eleven hexadecimal digits that Calico, AWS and others name a veth by."""
    return hashlib.sha1(text.encode()).hexdigest()[:11]
