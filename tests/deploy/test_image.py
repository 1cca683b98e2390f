# SPDX-License-Identifier: Apache-2.0
"""The image, assembled from the Dockerfile without a container engine, holds a daemon that serves."""

import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import rendered
from accounts import account, rules
from cluster import Cluster
from rendered import DEPLOY

TOOLS = ("apt-get", "dpkg-deb", "unshare", "chroot", "mount")
SECRETS = "var/run/secrets/kubernetes.io/serviceaccount"


def player() -> ModuleType:
    """Return bench/image.py."""
    path = Path(__file__).parents[2] / "bench" / "image.py"
    spec = importlib.util.spec_from_file_location("image", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def credentials(root: Path, kubeconfig: Path) -> dict[str, str]:
    """Put into *root* what kubelet would mount there; return the environment that it would set."""
    body = json.loads(kubeconfig.read_text())
    cluster = body["clusters"][0]["cluster"]
    folder = root / "run" / Path(SECRETS).relative_to("var/run")
    folder.mkdir(parents=True)
    (folder / "token").write_text(body["users"][0]["user"]["token"])
    shutil.copy(cluster["certificate-authority"], folder / "ca.crt")
    server = urlsplit(cluster["server"])
    return {"KUBERNETES_SERVICE_HOST": str(server.hostname), "KUBERNETES_SERVICE_PORT": str(server.port)}


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for as long as the block lasts."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_daemon_of_the_image_becomes_ready(apiserver: Cluster, tmp_path: Path) -> None:
    """Built by the Dockerfile, started by its command with the manifest's config and account, it answers the probes."""
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"needs root, and {', '.join(TOOLS)}")
    if apiserver.servers is None:
        pytest.skip("accounts are made on an API server of our own alone")
    image = player()
    base = image.make_base(tmp_path / "base")
    final = image.build(base, tmp_path)
    print(f"\nimage: {image.size(final.root):.1f} MB, ours {image.size(final.root / 'opt/multus-py'):.1f} MB")
    assert not [name for name in ("cc", "gcc", "tcc", "clang") if (final.root / "usr/bin" / name).exists()]
    shims = final.root.glob("opt/multus-py/lib/python3*/site-packages/multus_py/install/shim/bin/*")
    assert {path.name for path in shims} == {"multus-shim-x86_64", "multus-shim-aarch64"}

    config = rendered.objects(DEPLOY / "base")["ConfigMap"]["data"]["daemon-config.json"]
    for folder in ("etc/multus-py", "etc/cni/net.d", "hostroot"):
        (final.root / folder).mkdir(parents=True, exist_ok=True)
    (final.root / "etc/multus-py/daemon-config.json").write_text(config)
    primary = {"cniVersion": "1.0.0", "name": "primary", "plugins": [{"type": "bridge", "bridge": "none"}]}
    (final.root / "etc/cni/net.d/10-primary.conflist").write_text(json.dumps(primary))
    (container,) = rendered.pod(DEPLOY / "base")["containers"]
    assert final.command == container["args"]

    kernel = [Path("/proc"), Path("/dev")]
    with account(apiserver, rules(), tmp_path) as kubeconfig:
        env = {**final.env, "MULTUS_NODE_NAME": "mpt-image", **credentials(final.root, kubeconfig)}
        command = image.in_chroot(final.root, [*final.entrypoint, *final.command], kernel)
        with running(command, env, tmp_path / "log") as daemon:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                words = container[probe]["exec"]["command"]
                until = time.monotonic() + 60
                while subprocess.run(["chroot", final.root, *words], capture_output=True, check=False).returncode:
                    log = (tmp_path / "log").read_text()
                    assert time.monotonic() < until, log
                    assert daemon.poll() is None, log
                    time.sleep(0.2)
            assert (final.root / "etc/cni/net.d/00-multus-py.conflist").exists()
            daemon.terminate()
            assert daemon.wait(20) == 0
