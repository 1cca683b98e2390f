# SPDX-License-Identifier: Apache-2.0
"""Device information files: where they stand, who may read them, and whose they are."""

import json
import os
import stat

import pytest

from multus_py.cni.errors import CniError
from multus_py.kube.store import Device
from multus_py.plan import device_info

PCI = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:01:00.1", "pf-pci-address": "0000:01:00.0"}}
VF = Device("intel.com/vf", "0000:01:00.1", ("app",))


@pytest.fixture
def capabilities(tmp_path):
    """An attachment's capabilities that name its file below tmp_path."""
    return {device_info.CAPABILITY: str(device_info.path(tmp_path, "ns/net", "c1", "net1"))}


def told_by_plugin(root, body, device=VF):
    """Write what a device plugin tells."""
    path = device_info.plugin_path(root, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body if isinstance(body, str) else json.dumps(body))


def test_names_are_unique_and_one_component(tmp_path):
    """No '/' from a network or a resource becomes a folder; names that a file system does not take are shortened."""
    assert tmp_path / "cni/ns-net-c1_net1" == device_info.path(tmp_path, "ns/net", "c1", "net1")
    assert tmp_path / "dp/intel.com-vf-0000:01:00.1-device.json" == device_info.plugin_path(tmp_path, VF)
    assert tmp_path / "dp/a-..-..-b-c-device.json" == device_info.plugin_path(tmp_path, Device("a/../../b", "c"))
    long = [device_info.path(tmp_path, f"{'n' * 63}/{'d' * 253}", "c" * 64, f"net{n}").name for n in (1, 2)]
    assert 2 == len(set(long))
    assert all(len(name) < 255 for name in long)


def test_what_the_device_plugin_tells_is_offered_read_and_removed(tmp_path, capabilities):
    """The file is there for the network's plugins, for everybody to read, and gone after."""
    told_by_plugin(tmp_path, PCI)
    mask = os.umask(0o077)
    try:
        device_info.provide(capabilities, VF, tmp_path)
    finally:
        os.umask(mask)
    path = tmp_path / "cni/ns-net-c1_net1"
    assert [path] == list(path.parent.iterdir())
    assert (0o644, PCI) == (stat.S_IMODE(path.stat().st_mode), device_info.read(capabilities, tmp_path))
    assert path.parent.stat().st_mode & stat.S_IRWXU == stat.S_IRWXU
    device_info.remove(capabilities, tmp_path)
    device_info.remove(capabilities, tmp_path)
    assert ([], None) == (list(path.parent.iterdir()), device_info.read(capabilities, tmp_path))


def test_nothing_older_stays(tmp_path, capabilities):
    """What an earlier attachment left is not taken for this one's, also when there is no device."""
    path = tmp_path / "cni/ns-net-c1_net1"
    for device in (VF, None):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(PCI))
        device_info.provide(capabilities, device, tmp_path)
        assert not path.exists()


@pytest.mark.parametrize("body", ["", "{", json.dumps({**PCI, "type": "x"}), json.dumps({**PCI, "x": "y" * 70000})])
def test_a_damaged_file_is_an_error_with_its_path(tmp_path, capabilities, body):
    """Nothing of it reaches a network's plugin or the pod."""
    told_by_plugin(tmp_path, body)
    with pytest.raises(CniError, match=r"intel\.com-vf"):
        device_info.provide(capabilities, VF, tmp_path)
    assert device_info.read(capabilities, tmp_path) is None


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{root}/dp/x", "{root}/cni/../x", "{root}/cni/..", "{root}/cni", "a\0b", "", 5]
)
def test_a_file_that_is_not_ours_is_let_be(tmp_path, path):
    """A path that came from a damaged or foreign record is neither read nor written nor removed."""
    for part in ("cni", "dp"):
        (tmp_path / part).mkdir()
    for name in ("x", "dp/x"):
        (tmp_path / name).write_text(json.dumps(PCI))
    named = {device_info.CAPABILITY: path.format(root=tmp_path) if isinstance(path, str) else path}
    told_by_plugin(tmp_path, PCI)
    device_info.provide(named, VF, tmp_path)
    assert device_info.read(named, tmp_path) is None
    device_info.remove(named, tmp_path)
    assert (tmp_path / "x").exists()
    assert (tmp_path / "dp/x").exists()
    assert [] == list((tmp_path / "cni").iterdir())


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_that_is_none_holds_nobody_up(tmp_path, capabilities, kind):
    """Any program of the node may put something there: a pipe is not waited for, a device is not read."""
    path = device_info.path(tmp_path, "ns/net", "c1", "net1")
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CniError, match="not a regular file"):
        device_info.read(capabilities, tmp_path)
