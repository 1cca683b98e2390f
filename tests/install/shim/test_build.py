# SPDX-License-Identifier: Apache-2.0
"""How the shim gets into the wheel, and what kind of executable it is."""

import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from listening import Reply, listening
from shimbox import ROOT, Box, compile_shim

from multus_py.cni.errors import CniError
from multus_py.install import shim

HERE = os.uname().machine
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # elf.h: EM_X86_64, EM_AARCH64
PT_INTERP = 3


def _elf(path: Path) -> tuple[int, bool]:
    """Return the machine of a 64-bit ELF file, and whether it needs a dynamic linker."""
    image = path.read_bytes()
    assert image[:6] == b"\x7fELF\x02\x01"
    machine = struct.unpack_from("<H", image, 18)[0]
    start, size, count = struct.unpack_from("<Q", image, 32)[0], *struct.unpack_from("<HH", image, 54)
    kinds = [struct.unpack_from("<I", image, start + n * size)[0] for n in range(count)]
    return machine, PT_INTERP in kinds


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Copy the shim's sources, and nothing that was built of them."""
    return Path(
        shutil.copytree(
            ROOT / "multus_py" / "install" / "shim", tmp_path / "shim", ignore=shutil.ignore_patterns("bin", "__pyc*")
        )
    )


@pytest.mark.skipif(HERE not in ELF_MACHINES, reason="no name for this machine")
def test_it_needs_nothing_of_the_node(hook: ModuleType, sources: Path) -> None:
    """The executable is static, for the asked machine, and small enough to start at once."""
    built = hook.build(sources, HERE)
    assert built.name == f"multus-shim-{HERE}"
    assert _elf(built) == (ELF_MACHINES[HERE], False)
    assert os.access(built, os.X_OK)
    assert built.stat().st_size < 1_000_000
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_it_is_built_again_only_when_a_source_changed(hook: ModuleType, sources: Path) -> None:
    """Editable installs do not compile what is up to date."""
    built = hook.build(sources, HERE)
    first = built.stat().st_mtime_ns
    assert hook.build(sources, HERE).stat().st_mtime_ns == first
    os.utime(built, (0, 0))
    assert hook.build(sources, HERE).stat().st_mtime_ns >= first
    assert built.stat().st_mtime > 0


def test_the_compiler_can_be_chosen(hook: ModuleType, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MULTUS_PY_SHIM_CC replaces every other compiler, words and all; what it said is in the error."""
    monkeypatch.setenv("MULTUS_PY_SHIM_CC", "sh -c 'echo no such target >&2; exit 3'")
    with pytest.raises(hook.CannotBuild, match="no such target"):
        hook.build(sources, HERE)
    assert list((sources / "bin").iterdir()) == []


def test_a_machine_without_a_compiler_is_named(hook: ModuleType, sources: Path) -> None:
    """What cannot be built is told with what to do, and leaves nothing."""
    with pytest.raises(hook.CannotBuild, match=r"no compiler for pdp11 .*MULTUS_PY_SHIM_MACHINES=all"):
        hook.build(sources, "pdp11")


def test_a_missing_shim_says_how_to_get_one() -> None:
    """Asking for a machine that the installation has no shim for is an error that names the file and the way."""
    with pytest.raises(CniError, match=r"no shim for pdp11: .*/multus-shim-pdp11 is missing.*pip wheel"):
        shim.path("pdp11")


def test_the_wheels_tag_tells_the_truth(hook: ModuleType, tmp_path: Path) -> None:
    """The wheel holds this machine's shim, executable, and py.typed; its tag is any only with all machines' shims."""
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns("bin", "__pycache__")
    for folder in ("multus_py", "delegates"):
        shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert "multus_py/py.typed" in modes  # PEP 561: type checkers read our annotations
    shims = {name.rpartition("-")[2]: mode for name, mode in modes.items() if "/shim/bin/" in name}
    assert shims[HERE] & 0o111 == 0o111
    if set(hook.MACHINES) <= set(shims):
        assert wheel.name.endswith("-py3-none-any.whl")
    else:
        assert wheel.name.endswith(f"-py3-none-linux_{HERE}.whl")
        assert f"for {HERE} alone" in done.stderr


def test_the_other_machines_shim_works(tmp_path: Path) -> None:
    """The cross-compiled executable for 64-bit ARM is static and passes an answer on."""
    cross, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")
    built = shim.FOLDER / "multus-shim-aarch64"
    if cross:
        built = compile_shim(tmp_path / "multus-shim-aarch64", "-Os", "-static", compiler=cross)
    if not built.exists():
        pytest.skip("no shim for aarch64 was built, and there is no cross compiler")
    assert _elf(built) == (ELF_MACHINES["aarch64"], False)
    if not emulator:
        pytest.skip("qemu-aarch64-static is missing: only the file's header was looked at")
    box = Box(tmp_path, built, [emulator])
    with listening(tmp_path, Reply(body=b'{"arm": 64}')) as daemon:
        assert box.call("ADD", {"MPT": "\udcff\x01"}).stdout == b'{"arm": 64}'
    assert daemon.heard[0].call["env"]["MPT"] == "\udcff\x01"
    assert box.call("DEL").code == 0
    assert len(list(box.spool.iterdir())) == 1
