# SPDX-License-Identifier: Apache-2.0
"""Attach the pods of a lab, run commands in them, and remove the lab."""

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

from multus_py.cli.lab import plugin_call
from multus_py.cli.lab.layout import NAMESPACES, Lab, LabSandbox, read_record, record_path, write_record
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code, combined_error
from multus_py.kernel import namespaces, netlink
from multus_py.kernel.undo import Undo
from multus_py.kube.store import Pod


def unattached(lab: Lab) -> list[Pod]:
    """Return the pods of the manifests that are not attached."""
    attached = {(sandbox.namespace, sandbox.pod) for sandbox in lab.sandboxes() if sandbox.result is not None}
    return [pod for pod in lab.manifests.pods() if (pod.namespace, pod.name) not in attached]


def attach(lab: Lab, pod: Pod) -> LabSandbox:
    """Create the pod's network namespace and run ADD; on an error everything is rolled back."""
    sandbox = LabSandbox(pod.namespace, pod.name, pod.uid, uuid4().hex, str(lab.netns(pod)))
    if record_path(lab, sandbox).exists():  # an earlier attempt was interrupted
        detach(lab, read_record(record_path(lab, sandbox)))
    with Undo() as undo:
        undo.add(detach, lab, sandbox)
        write_record(lab, sandbox)
        make_namespace(sandbox.netns)
        done = replace(sandbox, result=json_object(plugin_call.call_plugin(lab, "ADD", sandbox), "the plugin's result"))
        write_record(lab, done)
        undo.keep()
    return done


def make_namespace(path: str) -> None:
    """Create a network namespace with its loopback up."""
    namespaces.create(path)
    # Every runtime sets it up before it calls a plugin, containerd with the plugin `loopback`.
    with netlink.open(path) as inside:
        inside.set_link(inside.link("lo").index, up=True)


def detach(lab: Lab, sandbox: LabSandbox) -> None:
    """Run DEL and remove the namespace; both are tried, the errors are raised together."""
    errors = []
    try:
        if lab.launcher.exists() and lab.host.exists():
            plugin_call.call_plugin(lab, "DEL", sandbox)
    except CniError as error:
        errors.append(error)
    try:
        namespaces.remove(sandbox.netns)
    except CniError as error:
        errors.append(error)
    record_path(lab, sandbox).unlink(missing_ok=True)
    if errors:
        raise combined_error(f"pod {sandbox.ref} was not taken down cleanly", errors)


def remove_lab(lab: Lab) -> list[str]:
    """Remove everything that exists of the lab; return what was removed, raise all errors together."""
    removed, errors = [], []
    for path in sorted((lab.root / "pods").glob("*.json")):
        try:
            sandbox = read_record(path)
            detach(lab, sandbox)
            removed.append(f"pod {sandbox.ref}")
        except CniError as error:
            # Its namespace is found by name below.
            errors.append(error)
    for path in [*sorted(NAMESPACES.glob(f"{lab.name}.*.*")), *NAMESPACES.glob(lab.host.name)]:
        try:
            namespaces.remove(str(path))
            removed.append(f"namespace {path.name}")
        except CniError as error:
            errors.append(error)
    plugin_call.remove_shared_folder(lab)
    _remove_folders(lab)
    if lab.root.exists():
        errors.append(CniError(Code.IO, f"cannot remove {lab.root}", "is something mounted or running there?"))
    if errors:
        raise combined_error(f"lab {lab.name} is gone, but not everything went well", errors)
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
    """Return the pod called `name` or `namespace/name`; code 4 lists the existing ones."""
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
