# SPDX-License-Identifier: Apache-2.0
"""Create a lab or extend it: manifests, the host's namespace, launcher and conf, parent links of macvlan."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from multus_py.cli.lab.layout import Lab
from multus_py.cli.lab.pods import make_namespace, remove_lab
from multus_py.cni import conflist, names
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.install import executable, installation
from multus_py.install import primary as primaries
from multus_py.install.cni_conf import InstallSpec
from multus_py.kernel import netlink
from multus_py.kernel.netlink import Netlink
from multus_py.kernel.undo import Undo
from multus_py.kube.manifests import SUFFIXES

# Types whose interface needs a parent link on the host, in their key `master`.
_WITH_MASTER = ("macvlan", "macvtap", "ipvlan", "vlan")
_DEFAULT_NETWORK = {
    "cniVersion": "1.0.0",
    "name": "pod-network",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]},
        }
    ],
}


def prepare(lab: Lab, files: Sequence[Path], primary: Path | None, backend: str | None) -> None:
    """Create the lab or extend it; a new lab that fails is removed."""
    sources = list(_sources(files))
    with Undo() as undo:
        if not lab.root.exists():
            undo.add(remove_lab, lab)
        for name in ("bin", "net.d", "manifests", "cni", "pods", "var-lib-cni"):
            (lab.root / name).mkdir(parents=True, exist_ok=True)
        _copy_manifests(lab, sources, undo)
        if not lab.host.exists():
            make_namespace(str(lab.host))
        _install(lab, primary, backend)
        _create_parents(lab)
        undo.keep()


def _sources(files: Sequence[Path]) -> Iterator[Path]:
    for given in files:
        if given.is_dir():
            inside = sorted(path for path in given.iterdir() if path.suffix in SUFFIXES and path.is_file())
            if not inside:
                raise CniError(Code.IO, f"no manifest in folder {given}", f"manifests end in {', '.join(SUFFIXES)}")
            yield from inside
        elif given.is_file():
            yield given
        else:
            raise CniError(Code.IO, f"{given} does not exist", "name a manifest, or a folder of manifests")


def _copy_manifests(lab: Lab, sources: Sequence[Path], undo: Undo) -> None:
    """Copy manifests into the lab and read them together, so that mistakes are reported before a pod is created."""
    for source in sources:
        digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]
        suffix = source.suffix if source.suffix in SUFFIXES else ".yaml"
        target = lab.root / "manifests" / f"{source.stem}-{digest}{suffix}"
        if target.exists():
            undo.add(target.write_bytes, target.read_bytes())
        else:
            undo.add(target.unlink, True)
        target.write_bytes(source.read_bytes())
    if problems := lab.manifests.problems():
        raise CniError(
            Code.INVALID_CONFIG, f"cannot read the manifests: {'; '.join(problems)}", "see: multus-py lint FILE"
        )


def _install(lab: Lab, primary: Path | None, backend: str | None) -> None:
    conf = lab.wrapper_conf
    if conf.exists() and primary is None and backend is None:
        return
    if primary is not None:
        primaries.read(primary)
        for old in lab.folders.conf.glob("10-*"):
            old.unlink()
        shutil.copyfile(primary, lab.folders.conf / f"10-{primary.name}")
    elif not any(lab.folders.conf.glob("10-*")):
        (lab.folders.conf / "10-pod-network.conflist").write_text(json.dumps(_DEFAULT_NETWORK, indent=2))
    keys = {"cniDir": str(lab.root / "cni"), "delegateBackend": backend or "auto"}
    keys |= {"logFile": str(lab.root / "log"), "logLevel": "verbose"}
    installation.install(
        InstallSpec(lab.folders, {"manifests": lab.root / "manifests"}, keys=keys), executable.launcher()
    )


def _create_parents(lab: Lab) -> None:
    """Create the missing links that definitions name as `master`: one end of a veth pair, with carrier."""
    plugins = list(_plugins(lab))
    bridges = {str(plugin.get("bridge", "cni0")) for plugin in plugins if plugin.get("type") == "bridge"}
    masters = {
        str(plugin["master"])
        for plugin in plugins
        if plugin.get("type") in _WITH_MASTER and plugin.get("master") and not plugin.get("linkInContainer")
    }
    with netlink.open(str(lab.host)) as host:
        for master in sorted(masters - bridges):
            names.interface(master, "master", Code.INVALID_CONFIG)
            if host.find_link(master) is None:
                _create_parent(host, master)


def _plugins(lab: Lab) -> Iterator[Mapping[str, Any]]:
    texts = [definition.config for definition in lab.manifests.definitions() if definition.config]
    texts += [path.read_text() for path in lab.folders.conf.glob("10-*")]
    for text in texts:
        # A config that cannot be read is reported when a pod requests it, with the pod's name.
        with suppress(CniError):
            yield from conflist.parse(json_object(text), default_name="network").plugins


def _create_parent(host: Netlink, name: str) -> None:
    far_end = "far" + hashlib.sha256(name.encode()).hexdigest()[:10]
    host.create_veth(name, far_end)
    host.set_link(host.link(far_end).index, up=True)
