# SPDX-License-Identifier: Apache-2.0
"""Attach the pods of a lab, run commands in them, and take everything down."""

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

from multus_py.cli.lab import plugin_call
from multus_py.cli.lab.layout import NAMESPACES, Lab, Sandbox, read_record, record, record_path
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code, combined_error
from multus_py.kernel import namespaces, netlink
from multus_py.kernel.undo import Undo
from multus_py.kube.store import Pod


def waiting(lab: Lab) -> list[Pod]:
    """Return the pods of the manifests that are not attached yet."""
    attached = {(box.namespace, box.pod) for box in lab.sandboxes() if box.result is not None}
    return [pod for pod in lab.manifests.pods() if (pod.namespace, pod.name) not in attached]


def attach(lab: Lab, pod: Pod) -> Sandbox:
    """Make the pod's namespace and have it attached; a pod that fails leaves nothing behind."""
    box = Sandbox(pod.namespace, pod.name, pod.uid, uuid4().hex, str(lab.netns(pod)))
    if record_path(lab, box).exists():  # an earlier try was cut off half-way
        detach(lab, read_record(record_path(lab, box)))
    with Undo() as undo:
        undo.add(detach, lab, box)
        record(lab, box)
        make_namespace(box.netns)
        done = replace(box, result=json_object(plugin_call.call(lab, "ADD", box), "the plugin's result"))
        record(lab, done)
        undo.keep()
    return done


def make_namespace(path: str) -> None:
    """Make a network namespace with its loopback up."""
    namespaces.create(path)
    # Every runtime sets it up before it calls a plugin, containerd with the plugin `loopback`.
    with netlink.open(path) as inside:
        inside.set_link(inside.link("lo").index, up=True)


def detach(lab: Lab, box: Sandbox) -> None:
    """Have the pod detached and remove its namespace; both are tried, the troubles are raised together."""
    troubles = []
    try:
        if lab.launcher.exists() and lab.host.exists():
            plugin_call.call(lab, "DEL", box)
    except CniError as trouble:
        troubles.append(trouble)
    try:
        namespaces.remove(box.netns)
    except CniError as trouble:
        troubles.append(trouble)
    record_path(lab, box).unlink(missing_ok=True)
    if troubles:
        raise combined_error(f"pod {box.ref} was not taken down cleanly", troubles)


def down(lab: Lab) -> list[str]:
    """Remove everything of the lab, however much there is; return what was removed, raise what went wrong."""
    removed, troubles = [], []
    for path in sorted((lab.root / "pods").glob("*.json")):
        try:
            box = read_record(path)
            detach(lab, box)
            removed.append(f"pod {box.ref}")
        except CniError as trouble:
            # A record that cannot be read still has its namespace, found by name below.
            troubles.append(trouble)
    for left in [*sorted(NAMESPACES.glob(f"{lab.name}.*.*")), *NAMESPACES.glob(lab.host.name)]:
        try:
            namespaces.remove(str(left))
            removed.append(f"namespace {left.name}")
        except CniError as trouble:
            troubles.append(trouble)
    plugin_call.forget_shared(lab)
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
    box = find(lab, pod)
    try:
        return namespaces.run_in(box.netns, lambda: subprocess.run(command, check=False).returncode)
    except OSError as cause:
        raise CniError(Code.IO, f"cannot run {command[0]!r} in pod {box.ref}: {cause.strerror}") from cause


def find(lab: Lab, pod: str) -> Sandbox:
    """Return the pod called `name` or `namespace/name`; code 4 lists those that are there."""
    boxes = lab.sandboxes()
    found = [box for box in boxes if pod in (box.pod, f"{box.namespace}/{box.pod}")]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{box.namespace}/{box.pod}" for box in boxes) or "none: begin with multus-py lab up FILE"
    problem = "is not in" if not found else "is in several namespaces of"
    raise CniError(Code.INVALID_ENVIRONMENT, f"pod {pod} {problem} lab {lab.name}", f"pods: {listed}")
