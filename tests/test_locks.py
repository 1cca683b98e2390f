# SPDX-License-Identifier: Apache-2.0
"""The locks in requirements/ have what pyproject.toml requires, with hashes and without an index."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME: list[str] = PROJECT["project"]["dependencies"]
DEV: list[str] = PROJECT["project"]["optional-dependencies"]["dev"]
GROUPS: dict[str, list[str]] = PROJECT["dependency-groups"]
ASKED = {
    "build": GROUPS["build"],
    "dev": RUNTIME + DEV,
    "lock": GROUPS["lock"],
    "lowest": RUNTIME + DEV,
    "runtime": RUNTIME,
}
# A pin and its marker, then a hash a line; what follows a hash is a comment.
ENTRY = re.compile(r"^([a-z0-9-]+==[^\s;]+(?: ; [^\\\n]+?)?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def pins(lock: str) -> list[Requirement]:
    """Return what a lock pins."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return [Requirement(pin) for pin, _ in ENTRY.findall(text)]


def pinned(lock: str, python: str = "3.11") -> dict[str, Version]:
    """Return the versions that are installed on Linux with a *python*, by name."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    fitting = [pin for pin in pins(lock) if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in fitting}
    assert len(versions) == len(fitting), "a name is pinned twice"
    return versions


def test_each_lock_has_its_source() -> None:
    """Each lock has a source, and each source a lock."""
    assert set(ASKED) == {lock.stem for lock in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_line_is_a_pin_with_hashes(lock: Path) -> None:
    """Nothing but pins with their hashes and comments: no index, no address, no option, no folder."""
    rest = [line for line in ENTRY.sub("", lock.read_text()).splitlines() if not line.lstrip().startswith("#")]
    assert rest == []
    assert re.findall(r"://|index|\b[\w-]+\.(?:com|org|io|net)\b", lock.read_text()) == []


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("lock", ASKED)
def test_what_is_asked_for_is_pinned_as_asked(lock: str, python: str) -> None:
    """Every name of pyproject.toml is in the lock, in a version that pyproject.toml allows, for every Python."""
    versions = pinned(lock, python)
    for asked in map(Requirement, ASKED[lock]):
        assert asked.specifier.contains(versions[canonicalize_name(asked.name)]), asked


def test_every_dependency_has_a_floor() -> None:
    """Without one there is no lowest version to test."""
    everything = [*RUNTIME, *DEV, *GROUPS["build"], *GROUPS["lock"], *PROJECT["build-system"]["requires"]]
    assert [text for text in everything if ">=" not in text] == []


def test_the_lowest_lock_is_the_lowest() -> None:
    """The lowest versions of pyproject.toml are the tested ones; one that was never published is raised to the next."""
    versions = pinned("lowest")
    for asked in map(Requirement, RUNTIME + DEV):
        (floor,) = [Version(each.version) for each in asked.specifier if each.operator == ">="]
        found = versions[canonicalize_name(asked.name)]
        assert floor.release[:2] == (*found.release, 0)[: len(floor.release[:2])], asked


def test_the_image_runs_what_was_tested() -> None:
    """The image's lock and the build's are parts of the development's."""
    tested = pinned("dev")
    assert pinned("runtime").items() <= tested.items()
    assert {name: version for name, version in pinned("build").items() if name != "ziglang"}.items() <= tested.items()


def test_the_build_needs_nothing_beside_its_lock() -> None:
    """Group "build" is what [build-system] and the build hook ask for, since nothing is fetched while building."""
    path = ROOT / "hatch_build.py"
    asked = re.findall(r'^_ZIG = "(.*)"$', path.read_text(), re.M)
    assert sorted([*PROJECT["build-system"]["requires"], *asked]) == sorted(GROUPS["build"])
    assert set(PROJECT["build-system"]["requires"]) <= set(DEV)


def test_what_is_installed_is_the_lock() -> None:
    """Recipes install with hashes, or what they built themselves and without dependencies."""
    recipes = [".ci/python-venv", ".ci/lock", "examples/deploy/Dockerfile", "Makefile"]
    text = "\n".join((ROOT / path).read_text().replace("\\\n", " ") for path in recipes)
    lines = [line for line in text.splitlines() if re.search(r"\binstall (--|-r|\.)|pip wheel|pip install", line)]
    lines = [line for line in lines if not line.startswith("#") and "apt-get" not in line and '"$@"' not in line]
    assert len(lines) >= 7
    assert [line for line in lines if "--require-hashes" not in line and "--no-deps" not in line] == []


@pytest.mark.parametrize(("folder", "lock"), [(".venv", "dev.txt"), (".venv-lowest", "lowest.txt")])
def test_a_changed_lock_is_installed(folder: str, lock: str) -> None:
    """make has something to do as soon as the lock, or what the package is built from, is newer."""
    words = ["make", "--dry-run", "--print-data-base", "help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    (needs,) = re.findall(rf"^{re.escape(folder)}/\.installed: ([^|\n]*)", done.stdout, re.M)
    assert {f"requirements/{lock}", "pyproject.toml", "hatch_build.py", "multus_py/install/shim/shim.c"} <= set(
        needs.split()
    )


def test_the_lowest_versions_are_run() -> None:
    """Each file that `make lowest` names exists."""
    words = ["make", "--dry-run", "--old-file", ".venv-lowest/.installed", "lowest"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / word for word in done.stdout.split() if word.startswith("tests/")]
    assert paths
    assert [path for path in paths if not path.exists()] == []
