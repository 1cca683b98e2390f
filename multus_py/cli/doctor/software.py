# SPDX-License-Identifier: Apache-2.0
"""Privileges, versions, and the daemon's config file."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from multus_py.cli.doctor.node import ExaminedNode
from multus_py.cli.doctor.node_finding import Level, NodeFinding
from multus_py.cni.call import json_object
from multus_py.config import validate

PACKAGES = ("multus-py", "pyroute2", "kubernetes", "grpcio")
# linux/capability.h: required to enter a pod's namespace and change links there.
_NEEDED = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


def findings(node: ExaminedNode) -> Iterator[NodeFinding]:
    """Yield the findings about versions, privileges and the config file."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield NodeFinding(
        Level.OK, "versions", f"{versions}, Python {platform.python_version()}, Linux {platform.release()}"
    )
    yield _privileges()
    yield from _config(node)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(missing)"


def _privileges() -> NodeFinding:
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    missing = [name for bit, name in _NEEDED.items() if not effective >> bit & 1]
    if os.geteuid() != 0 or missing:
        why = f"it has no {' and no '.join(missing)}" if missing else f"it runs as user {os.geteuid()}"
        advice = "run it as root; a container of it must be privileged"
        return NodeFinding(Level.FAILED, "privileges", f"this process cannot set up interfaces: {why}", advice)
    return NodeFinding(Level.OK, "privileges", "root, with what setting up interfaces takes")


def _config(node: ExaminedNode) -> Iterator[NodeFinding]:
    if not node.config:
        return
    body = json_object(Path(node.config).read_bytes(), node.config)
    problems = validate.problems(body, "daemon")
    for problem in problems:
        level = Level.WARNING if problem.note else Level.FAILED
        where = f"{problem.where}: " if problem.where else ""
        yield NodeFinding(level, "config", f"{node.config}: {where}{problem.message}", problem.fix)
    if not problems:
        yield NodeFinding(Level.OK, "config", f"{node.config} is sound")
