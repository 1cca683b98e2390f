# SPDX-License-Identifier: Apache-2.0
"""Leases on disk: one owner per device, whole or not there, and locked while somebody decides."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from multus_py.cni.errors import CniError, Code
from multus_py.delegates.sriov import delegate
from multus_py.delegates.sriov.leases import Lease, Leases, Owner, boot_id
from multus_py.delegates.sriov.virtual_function import Before
from multus_py.kernel.virtual_functions import VirtualFunction

DEVICE = "0000:01:10.0"
MINE, OTHERS = Owner("c1", "net1", "/run/netns/one"), Owner("c1", "net2", "/run/netns/one")


def lease(owner: Owner = MINE, **before: object) -> Lease:
    """Return a lease of the device."""
    return Lease(DEVICE, owner, before, boot_id())


def test_a_lease_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Owner, boot and earlier state come back; a free device has none; clearing makes it free and leaves no file."""
    leases = Leases(tmp_path)
    with leases.hold(DEVICE) as slot:
        assert slot.lease is None
        slot.write(lease(name="eth2", rates=[0, 5]))
    with leases.hold(DEVICE) as slot:
        assert lease(name="eth2", rates=[0, 5]) == slot.lease
        assert "/run/netns/one" == (tmp_path / "pci" / DEVICE).read_text()
        assert "" == slot.foreign
        slot.clear()
        slot.clear()
        assert slot.lease is None
    assert [f"{DEVICE}.lock"] == [path.name for path in tmp_path.rglob("*") if path.is_file()]


def test_an_owner_is_container_and_interface(tmp_path: Path) -> None:
    """What an attachment holds is found without its namespace; another interface of the container holds nothing."""
    leases = Leases(tmp_path)
    assert [] == leases.of(MINE)
    with leases.hold(DEVICE) as slot:
        slot.write(lease())
    assert [DEVICE] == leases.of(Owner("c1", "net1", ""))
    assert [] == leases.of(OTHERS)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"containerId": "c1"}'])
def test_a_lease_that_cannot_be_read_counts_as_lost(text: str, tmp_path: Path) -> None:
    """A damaged file neither stops others' deletes nor keeps the device for ever."""
    leases = Leases(tmp_path)
    with leases.hold(DEVICE) as slot:
        slot.write(lease())
    (tmp_path / "leases" / DEVICE).write_text(text)
    assert [] == leases.of(MINE)
    with leases.hold(DEVICE) as slot:
        assert slot.lease is None


@pytest.mark.parametrize("kind", ["pipe", "link", "device"])
def test_what_is_no_lease_holds_nobody_up(kind: str, tmp_path: Path) -> None:
    """`dataDir` may be a folder that a pod writes to: a pipe is not waited for, a link is not written through."""
    leases, outside = Leases(tmp_path), tmp_path / "outside"
    with leases.hold(DEVICE) as slot:
        slot.write(lease())
    for path in (tmp_path / "leases" / DEVICE, tmp_path / "leases" / "x"):
        path.unlink(missing_ok=True)
        {
            "pipe": lambda path=path: os.mkfifo(path),
            "link": lambda path=path: path.symlink_to(path),
            "device": lambda path=path: path.symlink_to("/dev/zero"),
        }[kind]()
    assert [] == leases.of(MINE)
    with leases.hold(DEVICE) as slot:
        assert slot.lease is None
        (tmp_path / "leases" / f".{DEVICE}").symlink_to(outside)
        with pytest.raises(CniError, match="cannot write"):
            slot.write(lease())
    (tmp_path / "pci" / "vf_lock" / "y.lock").symlink_to(outside)
    with pytest.raises(CniError, match="cannot lock"), leases.hold("y"):
        pass
    assert not outside.exists()


def test_what_sriov_cni_wrote_is_foreign(tmp_path: Path) -> None:
    """A namespace in sriov-cni's file without a lease of ours is somebody else's."""
    with Leases(tmp_path).hold(DEVICE) as slot:
        (tmp_path / "pci" / DEVICE).write_text("/run/netns/theirs")
        assert "/run/netns/theirs" == slot.foreign


def test_one_at_a_time_and_the_dead_let_go(tmp_path: Path) -> None:
    """A second process waits for the lock, and gets it when the first is killed; its unfinished file is gone then."""
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        with Leases(tmp_path).hold(DEVICE):
            (tmp_path / "leases").mkdir()
            (tmp_path / "leases" / f".{DEVICE}").write_text("half")
            os.write(begun, b"x")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    waiter = os.fork()
    if waiter == 0:
        with Leases(tmp_path).hold(DEVICE) as slot:
            slot.write(lease())
        os._exit(0)
    assert (0, 0) == os.waitpid(waiter, os.WNOHANG)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert 0 == os.waitpid(waiter, 0)[1]
    os.close(ready)
    os.close(begun)
    assert [DEVICE] == sorted(path.name for path in (tmp_path / "leases").iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Nothing is decided without the lock: the error names the file."""
    (tmp_path / "pci").write_text("")
    with pytest.raises(CniError, match=f"cannot lock device {DEVICE}") as caught, Leases(tmp_path).hold(DEVICE):
        raise AssertionError
    assert Code.IO == caught.value.code


@pytest.mark.parametrize("marked", ["a%d", "..", "a/b", "", "x" * 16, "all"])
def test_a_mark_gives_no_name_that_is_none(marked: str) -> None:
    """A pod may write the mark of the interface that it has: what it says must still be a name."""
    before = Before(VirtualFunction(0), "vf0", alias=f"multus-py:{marked}:c1:net1")
    assert "vf0" == delegate._without_mark(before).name
    assert "eth9" == delegate._without_mark(replace(before, alias="multus-py:eth9:c1:net1")).name
