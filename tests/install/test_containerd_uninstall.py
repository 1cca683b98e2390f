# SPDX-License-Identifier: Apache-2.0
"""Uninstalled under a real containerd: running pods stay as they are, and what they held is free when they end."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="grpcio speaks CRI")
sys.path.insert(0, str(Path(__file__).parents[1] / "containerd"))  # the rig is that of the plugin's own tests
from rig import NEEDED, containerd
from running import until

from multus_py.cli.main import main
from multus_py.install import primary

EXECUTABLES = Path("/usr/lib/cni")
MISSING = [name for name in NEEDED if not shutil.which(name)] + [
    name for name in ("loopback",) if not (EXECUTABLES / name).exists()
]
pytestmark = [
    pytest.mark.containerd,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container runtime needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


def bridge(rig, name, net):
    """Return a bridge network with a pool of its own."""
    ipam = {"type": "host-local", "dataDir": str(rig.root / "leases"), "subnet": f"10.{net}.0.0/24"}
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge", "bridge": f"br-{name}", "ipam": ipam}]}


@contextmanager
def daemon(rig):
    """Run a daemon on the rig's node, which installs itself."""
    config = {
        "install": True, "cniConfigDir": str(rig.conf), "cniBinDir": str(rig.bin), "binDir": str(rig.bin),
        "socketDir": str(rig.root / "run"), "cniDir": str(rig.root / "cni"), "manifests": str(rig.root / "manifests"),
        "reconcileInterval": 1, "logLevel": "info",
    }  # fmt: skip
    path = rig.root / "daemon.json"
    path.write_text(json.dumps(config))
    command = ["nsenter", f"--net=/run/netns/{rig.host}", sys.executable, "-m", "multus_py.cli.main"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with (rig.root / "daemon.log").open("wb") as log:
        process = subprocess.Popen([*command, "daemon", "--config", str(path)], stdout=log, stderr=log, env=environment)
    try:
        until((rig.conf / "00-multus-py.conflist").exists, (rig.root / "daemon.log").read_text)
        yield process
    finally:
        process.kill()
        process.wait()


def links(sandbox):
    """Return the names of a sandbox's interfaces."""
    return {link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link"))} - {"lo"}


def sandbox(rig, name, wanted):
    """Return a sandbox with the interfaces *wanted*: containerd reads a changed folder soon, and does not say when."""
    rig.await_network()
    found = []

    def started():
        one = rig.sandbox(name)
        if links(one) == wanted:
            found.append(one)
        else:
            one.remove()
        return found

    until(started)
    return found[0]


def leases(rig):
    """Return the addresses that are held."""
    return sorted(path.name for path in (rig.root / "leases").rglob("10.*"))


def test_uninstall_under_containerd(capsys):
    """containerd deletes with the conf of now, the primary's alone: the daemon frees the rest, --drain waits for it."""
    with containerd() as rig:
        for name in ("loopback", "bridge", "host-local"):
            (rig.bin / name).symlink_to(EXECUTABLES / name)
        (rig.conf / "10-cluster.conflist").write_text(json.dumps(bridge(rig, "cluster", 20)))
        definition = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                      "metadata": {"name": "second", "namespace": "default"},
                      "spec": {"config": json.dumps(bridge(rig, "second", 21))}}  # fmt: skip
        (rig.root / "manifests" / "second.json").write_text(json.dumps(definition))
        for name in ("before", "after"):
            annotations = {"k8s.v1.cni.cncf.io/networks": "second"}
            about = {"name": name, "namespace": "default", "uid": f"uid-{name}", "annotations": annotations}
            body = {"apiVersion": "v1", "kind": "Pod", "metadata": about}
            (rig.root / "manifests" / f"{name}.json").write_text(json.dumps(body))
        with daemon(rig):
            before = sandbox(rig, "before", {"eth0", "net1"})
            place = ["--cni-bin-dir", str(rig.bin), "--cni-conf-dir", str(rig.conf)]
            assert 0 == main(["uninstall", *place])
            assert "1 sandboxes are left" in capsys.readouterr().out
            assert ["10-cluster.conflist"] == [path.name for path in primary.conf_files(rig.conf)]
            after = sandbox(rig, "after", {"eth0"})
            assert {"eth0", "net1"} == links(before)
            after.remove()
            assert ([before.netns], 1) == (rig.namespaces(), len(rig.results()))
            before.remove()
            assert 0 == main(["uninstall", *place, "--drain", "--timeout", "30",
                              "--cni-dir", str(rig.root / "cni"), "--socket-dir", str(rig.root / "run")])  # fmt: skip
            assert ([], [], []) == (leases(rig), rig.namespaces(), rig.results())
            assert not (rig.bin / "multus-py").exists()
