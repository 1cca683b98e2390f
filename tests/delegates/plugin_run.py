# SPDX-License-Identifier: Apache-2.0
"""The same call to a native delegate and to the executable, both inside a host's namespace."""

import importlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from namespaces import Site

from multus_py.cni import result as results
from multus_py.cni.call import Call, cni_args
from multus_py.cni.delegate import Request
from multus_py.cni.errors import PluginError
from multus_py.cni.result import Result
from multus_py.kernel import namespaces

BIN = Path("/usr/lib/cni")
MODULES = {
    "bridge": "multus_py.delegates.bridge",
    "macvlan": "multus_py.delegates.macvlan",
    "host-local": "multus_py.delegates.ipam.host_local",
    "static": "multus_py.delegates.ipam.static",
}


def call(verb: str, config: Mapping[str, Any], place: Site, container: str = "c1", args: str = "") -> Call:
    """Return the call for net1 in the pod."""
    return Call(verb, container, place.pod, "net1", cni_args(args), (str(BIN),), config)


def native(asked: Call, place: Site) -> dict[str, Any] | None:
    """Run the native delegate in the host's namespace; return the result of ADD in the call's dialect."""

    def errand() -> dict[str, Any] | None:
        given = _run_native(str(asked.config["type"]), asked)
        return None if given is None else results.write(given, asked.version)

    return namespaces.run_in(place.host, errand)


def executable(asked: Call, place: Site) -> dict[str, Any] | None:
    """Run Debian's executable in the host's namespace; return what it printed."""
    return namespaces.run_in(place.host, lambda: _execute(str(asked.config["type"]), asked))


def _run_native(kind: str, asked: Call) -> Result | None:
    module = importlib.import_module(MODULES[kind])
    verbs = {"ADD": module.add, "DEL": module.delete, "CHECK": module.check, "STATUS": module.status}
    given: Result | None = verbs[asked.verb](Request(asked, _ask))
    return given


def _ask(kind: str, asked: Call) -> Result | None:
    if kind in MODULES:
        return _run_native(kind, asked)
    body = _execute(kind, asked)
    return None if body is None else results.read(body, asked.version)


def _execute(kind: str, asked: Call) -> dict[str, Any] | None:
    done = subprocess.run(
        [BIN / kind],
        input=json.dumps(dict(asked.config)).encode(),
        env=asked.environment(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise PluginError.from_json(json.loads(done.stdout or b"{}"), kind)
    return json.loads(done.stdout) if asked.verb == "ADD" else None
