# SPDX-License-Identifier: Apache-2.0
"""Call the launcher as containerd does, with CNI_* variables and the config on standard input."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from multus_py.cli.lab.layout import Lab, LabSandbox
from multus_py.cni import conflist
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code, PluginError
from multus_py.config.plugin import TYPE
from multus_py.install import primary
from multus_py.kernel import namespaces

_SHARED = Path("/var/lib/cni")  # where executables store leases: host-local's default dataDir is below it
_SYSTEM_PLUGINS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHARED_CREATED = "made-var-lib-cni"  # a file in the lab: the mount point did not exist before
_CALL_SECONDS = 180
_IFNAME = "eth0"


def call_plugin(lab: Lab, verb: str, sandbox: LabSandbox) -> bytes:
    """Run the launcher in the lab's host namespace as a runtime does, and return its standard output."""
    env = {
        "PATH": _PATH,
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": sandbox.container_id,
        "CNI_NETNS": sandbox.netns,
        "CNI_IFNAME": _IFNAME,
        "CNI_PATH": ":".join([str(lab.folders.bin), *_SYSTEM_PLUGINS]),
        "CNI_ARGS": (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={sandbox.namespace};K8S_POD_NAME={sandbox.pod};"
            f"K8S_POD_INFRA_CONTAINER_ID={sandbox.container_id};K8S_POD_UID={sandbox.uid}"
        ),
    }
    config = json.dumps(_config(lab, sandbox)).encode()
    try:
        with _locked_mount_point(fcntl.LOCK_SH):
            command = _with_lab_leases(lab, [str(lab.launcher)])
            done = namespaces.run_in(str(lab.host), lambda: _run(command, env, config))
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise CniError(Code.IO, f"cannot run the launcher for {verb} of pod {sandbox.ref}: {cause}") from cause
    if done.returncode:
        raise _plugin_error(done)
    return done.stdout


def _run(command: Sequence[str], env: Mapping[str, str], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, env=env, input=stdin, capture_output=True, timeout=_CALL_SECONDS, check=False)


@contextmanager
def _locked_mount_point(lock: int) -> Iterator[None]:
    """Lock the mount point: the kernel unmounts everything on a removed folder, in all mount namespaces.

    The lock is on the parent folder itself, so that no lock file is left.
    """
    parent = os.open(_SHARED.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(parent, lock)
        yield
    finally:
        os.close(parent)


def _with_lab_leases(lab: Lab, command: list[str]) -> list[str]:
    """Return *command* with a folder of the lab as its /var/lib/cni: a bind mount in its leases mount namespace."""
    if not _SHARED.exists():
        _SHARED.mkdir(exist_ok=True)
        (lab.root / _SHARED_CREATED).touch()
    leases = str(lab.root / "var-lib-cni")
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "lab", leases, str(_SHARED), *command]


def _config(lab: Lab, sandbox: LabSandbox) -> dict[str, Any]:
    """Return the config that a runtime of CNI 1.1 sends: the plugin's, with name, version and prevResult."""
    conf = conflist.parse(primary.read(lab.wrapper_conf))
    body = {**conf.plugins[0], "name": conf.name, "cniVersion": conf.version}
    return body if sandbox.result is None else {**body, "prevResult": sandbox.result}


def _plugin_error(done: subprocess.CompletedProcess[bytes]) -> CniError:
    try:
        body = json_object(done.stdout, "the plugin's answer")
    except CniError:
        output = (done.stderr or done.stdout).decode(errors="replace").strip()
        return CniError(Code.INTERNAL, f"the plugin failed with exit status {done.returncode}", output)
    return PluginError.from_json(body, TYPE)


def remove_shared_folder(lab: Lab) -> None:
    """Remove /var/lib/cni when it was created for this lab and is empty."""
    if (lab.root / _SHARED_CREATED).exists():
        with _locked_mount_point(fcntl.LOCK_EX), suppress(OSError):
            _SHARED.rmdir()
