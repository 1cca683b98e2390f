# SPDX-License-Identifier: Apache-2.0
"""A disk that is full, torn or broken falsifies nothing: pages stay, what is known is detached, an ADD says why."""

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from stage import Stage, namespace

from multus_py.agent.reconciling.reconciler import Reconciler
from multus_py.cni import conflist
from multus_py.cni.errors import CniError
from multus_py.plan.attachment import Attachment
from multus_py.state.journal import Journal
from multus_py.state.journal_entry import DamagedEntry, Entry, boot_id, decode, encode
from multus_py.state.spool import Spool


def entry(network: str = "mp") -> Entry:
    """Return an entry with one attachment."""
    conf = conflist.parse({"cniVersion": "1.0.0", "name": "n", "type": "x"})
    return Entry(network, "c1", "eth0", "/n", (Attachment("n", conf, "eth0", primary=True),), boot=boot_id())


def written(book: Journal) -> Path:
    """Write a page and return its file."""
    with book.lock_sandbox("c1", "eth0") as page:
        page.write(entry())
    return book.folder / "c1@eth0"


def test_a_page_that_cannot_be_read_stays(tmp_path, monkeypatch):
    """EIO is no empty page: nobody removes the file, and the next reader finds all of it."""
    book, real = Journal(tmp_path), os.pread
    path = written(book)

    def broken(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with book.lock_sandbox("c1", "eth0") as page:
        assert (None, True) == (page.entry, page.damaged)
    monkeypatch.setattr(os, "pread", real)
    assert path.exists()
    assert entry() == book.read("c1", "eth0")


def test_a_torn_line_does_not_damage_the_page(tmp_path):
    """A writer died in the middle of a line, the next one writes whole ones: all of them are read."""
    book = Journal(tmp_path)
    path = written(book)
    with path.open("ab") as file:
        file.write(encode(entry("torn"))[:-20])
    with book.lock_sandbox("c1", "eth0") as page:
        assert entry() == page.entry
        page.write(entry("second"))
    assert entry("second") == book.read("c1", "eth0")
    with book.lock_sandbox("c1", "eth0") as page:
        page.write(entry("third"))
    assert entry("third") == book.read("c1", "eth0")


def test_a_short_write_is_finished(tmp_path, monkeypatch):
    """A disk takes a part: the rest is written, too."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, bytes(data)[:7], at))
    written(Journal(tmp_path))
    assert entry() == Journal(tmp_path).read("c1", "eth0")


@pytest.fixture
def small(tmp_path):
    """A tmpfs of 16 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "small", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Take what room there is."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as full:
            assert full.errno == errno.ENOSPC


def test_on_a_full_disk_add_is_refused_and_the_page_is_as_it_was(small):
    """The plan that cannot be written is an error; the entry before it is read by everybody after."""
    book = Journal(small / "attachments")
    written(book)
    big = replace(entry(), netns="/" + "n" * 8000)
    fill(small)
    with book.lock_sandbox("c1", "eth0") as page, pytest.raises(CniError, match="cannot write the journal"):
        page.write(big)
    assert entry() == book.read("c1", "eth0")
    (small / "filler").unlink()
    with book.lock_sandbox("c1", "eth0") as page:
        page.write(big)
    assert big == book.read("c1", "eth0")


@pytest.mark.parametrize("damaged", [False, True])
def test_on_a_full_disk_a_sandbox_is_detached(small, damaged):
    """A copy of a damaged page that cannot be kept, a page that cannot grow: DEL goes on, and all is released."""
    with namespace() as netns:
        cluster = {"cniVersion": "1.0.0", "name": "cluster", "type": "first"}
        stage = Stage(small.parent, netns, {"delegates": [cluster], "cniDir": str(small)})
        stage.plugins.plugin("first")
        stage.pod("p")
        stage.run("ADD", "p")
        if damaged:
            (small / "attachments/c1@eth0").write_text("x" * 100)
        fill(small)
        stage.run("DEL", "p")
        assert ([], []) == (stage.plugins.held(), list((small / "attachments").iterdir()))


def test_on_a_full_ext4_nothing_is_attached_without_its_journal(tmp_path):
    """The same on a file system that promises room late."""
    image, folder = tmp_path / "image", tmp_path / "ext4"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(1 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], capture_output=True, check=False)
    mount = ["mount", "-o", "loop", image, folder]
    done = made.returncode or subprocess.run(mount, capture_output=True, check=False).returncode
    if done:
        pytest.skip("no ext4 in a loop file here")
    try:
        book = Journal(folder / "attachments")
        written(book)
        fill(folder)
        big = replace(entry(), netns="/" + "n" * 200_000)
        with book.lock_sandbox("c1", "eth0") as page, pytest.raises(CniError, match="cannot write the journal"):
            page.write(big)
        assert entry() == book.read("c1", "eth0")
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_pages_of_every_build_are_read():
    """A page as each build wrote it: lines sealed by SHA-256, by CRC-32, then with the version in front."""
    folder = Path(__file__).parent / "pages"
    pages = sorted(path.name for path in folder.iterdir())
    assert ["1-sha256", "2-crc32", "3-versioned"] == pages
    for name in pages:
        found = decode((folder / name).read_bytes())
        assert ("mp", "c1", "eth0", "/run/netns/a", "default/p", ["eth0", "net1"]) == (
            found.network, found.container_id, found.ifname, found.netns, str(found.pod),
            [one.ifname for one in found.attachments],
        )  # fmt: skip
        wanted = [(1, 1), (2, 2)] if name == "3-versioned" else [(1, 0), (2, 0)]
        assert wanted == [found.progress_of(one) for one in found.attachments]


def test_a_line_of_a_newer_build_is_not_taken_for_torn():
    """After a downgrade the page is damaged, and says why; it is not read half."""
    line = encode(entry()).replace(b"3 ", b"4 ", 1)
    with pytest.raises(DamagedEntry, match="newer build"):
        decode(line)


def test_a_page_that_cannot_be_read_at_del_is_looked_at_again(tmp_path, monkeypatch):
    """What only the page knows is detached when the disk gives it: DEL of the rest does not wait for that."""
    with namespace() as netns:
        cluster = {"cniVersion": "1.0.0", "name": "cluster", "type": "first"}
        stage = Stage(tmp_path, netns, {"delegates": [cluster]})
        stage.plugins.plugin("first")
        stage.plugins.plugin("one")
        stage.definition("x", {"cniVersion": "1.0.0", "name": "xnet", "type": "one"})
        stage.pod("p", "x")
        stage.run("ADD", "p")
        (tmp_path / "cni/results/xnet-c1-net1").unlink()
        (tmp_path / "manifests/Pod-default-p.json").unlink()
        real = os.pread

        def broken(*args):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "pread", broken)
        stage.run("DEL", "p")
        assert ["one@c1@net1"] == stage.plugins.held()
        monkeypatch.setattr(os, "pread", real)
    Reconciler(Spool(tmp_path), lambda tombstone: None, lambda kind: None).release_dead(stage.node())
    assert ([], []) == (stage.plugins.held(), list((tmp_path / "cni/attachments").iterdir()))
