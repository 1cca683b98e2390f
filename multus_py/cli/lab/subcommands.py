# SPDX-License-Identifier: Apache-2.0
"""The subcommands of `multus-py lab`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping

from multus_py.cli.lab import creation, pod_view, pods
from multus_py.cli.lab.layout import Lab
from multus_py.cli.table import columns
from multus_py.cni.errors import CniError, Code
from multus_py.kube.store import Pod


def _up(args: argparse.Namespace) -> int:
    lab = _lab(args)
    creation.prepare(lab, args.files, args.primary, args.backend)
    new = pods.unattached(lab)
    before = len(lab.manifests.pods()) - len(new)
    failed = sum(not _attach(lab, pod) for pod in new)
    _print(f"lab {lab.name}: {len(new) - failed} of {len(new)} new pods attached, {before} were there before")
    if failed:
        raise CniError(
            Code.INTERNAL, f"{failed} of {len(new)} pods could not be attached", "mend the manifests, then run it again"
        )
    return 0


def _attach(lab: Lab, pod: Pod) -> bool:
    """Attach the pod and print the outcome; return whether it succeeded."""
    begin = time.monotonic()
    try:
        pods.attach(lab, pod)
    except CniError as error:
        _print(f"pod {pod.ref}: FAILED: {error}")
        for note in getattr(error, "__notes__", ()):
            _print(f"  {note}")
        return False
    _print(f"pod {pod.ref}: attached in {(time.monotonic() - begin) * 1000:.0f} ms")
    return True


def _show(args: argparse.Namespace) -> int:
    lab = _existing(args)
    if args.status:
        print(pod_view.published_status(lab, pods.find_sandbox(lab, args.status).ref))
        return 0
    seen = pod_view.pod_views(lab)
    print(json.dumps([pod.to_json() for pod in seen], indent=2) if args.json else columns(pod_view.table_rows(seen)))
    return 0


def _exec(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise CniError(Code.INVALID_ENVIRONMENT, "lab exec: no command given", "multus-py lab exec POD -- ip address")
    return pods.run_inside(_existing(args), args.pod, command)


def _down(args: argparse.Namespace) -> int:
    lab = _lab(args)
    for what in pods.remove_lab(lab):
        _print(f"removed {what}")
    _print(f"lab {lab.name} is down")
    return 0


SUBCOMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "up": _up,
    "show": _show,
    "exec": _exec,
    "down": _down,
}


def _lab(args: argparse.Namespace) -> Lab:
    # Checked here: the kernel's error would come later and be EPERM.
    if os.geteuid() != 0:
        raise CniError(Code.INVALID_ENVIRONMENT, "network namespaces need root: run with sudo")
    return Lab(args.name)


def _existing(args: argparse.Namespace) -> Lab:
    lab = _lab(args)
    if not lab.root.is_dir():
        raise CniError(Code.INVALID_ENVIRONMENT, f"there is no lab {lab.name}", "begin with: multus-py lab up FILE")
    return lab


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
