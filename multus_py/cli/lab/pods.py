# SPDX-License-Identifier: Apache-2.0
"""Attach the pods of a lab, run commands in them, and take everything down."""

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

from multus_py.cli.lab import plugin_call
from multus_py.cli.lab.layout import NAMESPACES, Lab, LabSandbox, read_record, record, record_path
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code, combined_error
from multus_py.kernel import namespaces, netlink
from multus_py.kernel.undo import Undo
from multus_py.kube.store import Pod


def unattached(lab: Lab) -> list[Pod]:
    """Return the pods of the manifests that are not attached yet."""
    attached = {(sandbox.namespace, sandbox.pod) for sandbox in lab.sandboxes() if sandbox.result is not None}
    return [pod for pod in lab.manifests.pods() if (pod.namespace, pod.name) not in attached]


def attach(lab: Lab, pod: Pod) -> LabSandbox:
    """Make the pod's namespace and have it attached; a pod that fails leaves nothing behind."""
    sandbox = LabSandbox(pod.namespace, pod.name, pod.uid, uuid4().hex, str(lab.netns(pod)))
    if record_path(lab, sandbox).exists():  # an earlier try was cut off half-way
        detach(lab, read_record(record_path(lab, sandbox)))
    with Undo() as undo:
        undo.add(detach, lab, sandbox)
        record(lab, sandbox)
        make_namespace(sandbox.netns)
        done = replace(sandbox, result=json_object(plugin_call.call_plugin(lab, "ADD", sandbox), "the plugin's result"))
        record(lab, done)
        undo.keep()
    return done


def make_namespace(path: str) -> None:
    """Make a network namespace with its loopback up."""
    namespaces.create(path)
    # Every runtime sets it up before it calls a plugin, containerd with the plugin `loopback`.
    with netlink.open(path) as inside:
        inside.set_link(inside.link("lo").index, up=True)


def detach(lab: Lab, sandbox: LabSandbox) -> None:
    """Have the pod detached and remove its namespace; both are tried, the troubles are raised together."""
    troubles = []
    try:
        if lab.launcher.exists() and lab.host.exists():
            plugin_call.call_plugin(lab, "DEL", sandbox)
    except CniError as trouble:
        troubles.append(trouble)
    try:
        namespaces.remove(sandbox.netns)
    except CniError as trouble:
        troubles.append(trouble)
    record_path(lab, sandbox).unlink(missing_ok=True)
    if troubles:
        raise combined_error(f"pod {sandbox.ref} was not taken down cleanly", troubles)


def remove_lab(lab: Lab) -> list[str]:
    """Remove everything of the lab, however much there is; return what was removed, raise what went wrong."""
    removed, troubles = [], []
    for path in sorted((lab.root / "pods").glob("*.json")):
        try:
            sandbox = read_record(path)
            detach(lab, sandbox)
            removed.append(f"pod {sandbox.ref}")
        except CniError as trouble:
            # A record that cannot be read still has its namespace, found by name below.
            troubles.append(trouble)
    for left in [*sorted(NAMESPACES.glob(f"{lab.name}.*.*")), *NAMESPACES.glob(lab.host.name)]:
        try:
            namespaces.remove(str(left))
            removed.append(f"namespace {left.name}")
        except CniError as trouble:
            troubles.append(trouble)
    plugin_call.remove_shared_folder(lab)
    _remove_folders(lab)
    if lab.root.exists():
        troubles.append(CniError(Code.IO, f"cannot remove {lab.root}", "is something mounted or running there?"))
    if troubles:
        raise combined_error(f"lab {lab.name} is gone, but not everything went well", troubles)
    return removed


def _remove_folders(lab: Lab) -> None:
    shutil.rmtree(lab.root, ignore_errors=True)
    # Only when empty: another lab may still be up.
    for folder in (lab.root.parent, lab.root.parent.parent):
        with suppress(OSError):
            folder.rmdir()


def run_inside(lab: Lab, pod: str, command: Sequence[str]) -> int:
    """Run *command* in the network namespace of a pod, `name` or `namespace/name`, and return its exit status."""
    sandbox = find_sandbox(lab, pod)
    try:
        return namespaces.run_in(sandbox.netns, lambda: subprocess.run(command, check=False).returncode)
    except OSError as cause:
        raise CniError(Code.IO, f"cannot run {command[0]!r} in pod {sandbox.ref}: {cause.strerror}") from cause


def find_sandbox(lab: Lab, pod: str) -> LabSandbox:
    """Return the pod called `name` or `namespace/name`; code 4 lists those that are there."""
    sandboxes = lab.sandboxes()
    found = [sandbox for sandbox in sandboxes if pod in (sandbox.pod, f"{sandbox.namespace}/{sandbox.pod}")]
    if len(found) == 1:
        return found[0]
    listed = (
        ", ".join(f"{sandbox.namespace}/{sandbox.pod}" for sandbox in sandboxes)
        or "none: begin with multus-py lab up FILE"
    )
    problem = "is not in" if not found else "is in several namespaces of"
    raise CniError(Code.INVALID_ENVIRONMENT, f"pod {pod} {problem} lab {lab.name}", f"pods: {listed}")
