#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Assemble the image's root file system without a container engine: play the Dockerfile's instructions in chroots.

The base is made of Debian's own packages, fetched as this machine's apt is configured. Needs root.
"""

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "examples" / "deploy" / "Dockerfile"
# What an image of Python on a slim Debian has, as far as the instructions use it.
PACKAGES = ("base-files", "ca-certificates", "coreutils", "dash", "libc-bin", "libstdc++6", "python3", "python3-venv")
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "/run"}


@dataclass
class Stage:
    """One stage: its root, and what ENV and the last instructions say."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root"})
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--base", type=Path, help="root of a base that is there already")
    words.add_argument("--keep", type=Path, metavar="DIR", help="leave the root here")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="multus-py-image-") as folder:
        base = asked.base or make_base(Path(folder, "base"))
        final = build(base, Path(folder))
        added = size(final.root / "opt/multus-py")
        print(f"base {size(base):6.1f} MB")
        print(f"ours {added:6.1f} MB (/opt/multus-py)")
        print(f"root {size(final.root):6.1f} MB")
        print("entry", shlex.join(final.entrypoint + final.command))
        if asked.keep:
            final.root.rename(asked.keep)


def size(folder: Path) -> float:
    """Return what the files of a folder take, in MB."""
    done = subprocess.run(["du", "-sxk", folder], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) / 1024


# --- the base ---------------------------------------------------------------------------------------------------------


def make_base(root: Path) -> Path:
    """Unpack Debian's packages and what they depend on into *root*; none of their scripts is run."""
    for folder in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "var", "run", "tmp", "proc", "dev", "etc"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, target in _LINKS.items():
        (root / name).symlink_to(target)
    with tempfile.TemporaryDirectory() as folder:
        for package in _fetched(Path(folder)):
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacked:
                into = ["tar", "-x", "--keep-directory-symlink", "-C", root]
                subprocess.run(into, stdin=unpacked.stdout, check=True)
            if unpacked.returncode:
                raise SystemExit(f"{package.name} cannot be unpacked")
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to("dash")
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(path.read_text() for path in certificates))
    for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
        shutil.rmtree(root / folder, ignore_errors=True)
    return root


def _fetched(folder: Path) -> list[Path]:
    """Fetch the packages and all that they depend on, as if nothing were installed."""
    (folder / "status").touch()
    (folder / "archives" / "partial").mkdir(parents=True)
    options = [f"Dir::State::status={folder / 'status'}", f"Dir::Cache::archives={folder / 'archives'}/",
               "APT::Sandbox::User=root", "Debug::NoLocking=true"]  # fmt: skip
    subprocess.run(
        ["apt-get", "-qq", *(word for option in options for word in ("-o", option)), "--download-only", "--yes",
         "--no-install-recommends", "install", *PACKAGES], check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return sorted((folder / "archives").glob("*.deb"))


# --- the instructions -------------------------------------------------------------------------------------------------


def build(base: Path, folder: Path) -> Stage:
    """Play the Dockerfile on *base*; the stages' roots are made in *folder*. Returns the last one."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in instructions(DOCKERFILE.read_text()):
        if word == "FROM":
            stage = Stage(folder / f"stage{len(stages)}")
            stages[rest.split(" AS ")[1].strip() if " AS " in rest else ""] = stage
            subprocess.run(["cp", "-a", "--reflink=auto", base, stage.root], check=True)
        elif stage is not None:
            _play(stage, word, rest, stages)
    if stage is None:
        raise SystemExit(f"{DOCKERFILE} has no FROM")
    return stage


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile and its words."""
    whole = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
    for line in filter(None, map(str.strip, whole.splitlines())):
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


def _play(stage: Stage, word: str, rest: str, stages: dict[str, Stage]) -> None:
    if word == "RUN":
        _run(stage, rest)
    elif word == "COPY":
        _copy(stage, rest, stages)
    elif word == "ENV":
        stage.env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    elif word == "ENTRYPOINT":
        stage.entrypoint = json.loads(rest)
    elif word == "CMD":
        stage.command = json.loads(rest)
    else:
        raise SystemExit(f"{DOCKERFILE}: {word} is not known here")


def _run(stage: Stage, command: str) -> None:
    """Run a shell command in the stage, with this machine's way to the package index."""
    environment = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    inside = in_chroot(stage.root, ["/bin/sh", "-ec", command], shown())
    done = subprocess.run(inside, env={**environment, **stage.env}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"RUN {command}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def in_chroot(root: Path, command: list[str], paths: Sequence[Path]) -> list[str]:
    """Return the words that run *command* in *root*, where this machine's *paths* are seen, too.

    The mounts are in a mount namespace of the command's own: nothing that removes *root* later gets through them.
    """
    for path in paths:
        _place_for(root / str(path).lstrip("/"), path.is_dir())
    mounts = [
        shlex.join(["/bin/mount", "--rbind" if path.is_dir() else "--bind", str(path), f"{root}{path}"])
        for path in paths
    ]
    chroot = shlex.join([shutil.which("chroot") or "/usr/sbin/chroot", str(root), *command])
    script = " && ".join([*mounts, f"exec {chroot}"])
    return [
        shutil.which("unshare") or "/usr/bin/unshare",
        "--mount",
        "--propagation",
        "private",
        "/bin/sh",
        "-c",
        script,
    ]


def shown() -> list[Path]:
    """Return what a build sees of this machine: its way to the package index, and the kernel's folders."""
    paths = [Path(name) for name in ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/proc", "/dev")]
    paths += [Path("/etc/ssl/certs/ca-certificates.crt"), *_indexes()]
    return [path for path in paths if path.exists()]


def _indexes() -> list[Path]:
    """Return the folders that pip's config names as indexes of this machine."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    named = re.findall(r"(?:file://)?(/[\w./-]+)", done.stdout)
    found = [Path("/", *Path(name).parts[1:3]) for name in named if not name.startswith("/etc/")]
    return sorted({path for path in found if path.is_dir() and path.parts[1:2] != ("usr",)})


def _place_for(target: Path, is_folder: bool) -> None:
    if is_folder:
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


def _copy(stage: Stage, rest: str, stages: dict[str, Stage]) -> None:
    words = shlex.split(rest)
    target = stage.root / words[-1].lstrip("/")
    if words[0].startswith("--from="):
        source = stages[words[0].removeprefix("--from=")].root / words[1].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", source, target], check=True)
        return
    for path in context():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path, follow_symlinks=False)


def context() -> list[Path]:
    """Return the files that .dockerignore leaves to the build, relative to the repository."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    found = []
    for folder, _, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        links = [path.name for path in Path(folder).iterdir() if path.is_symlink() and path.is_dir()]
        found += [here / name for name in [*names, *links] if not ignored(here / name, rules)]
    return sorted(found)


def ignored(path: Path, rules: list[str]) -> bool:
    """Tell whether the last rule that speaks of *path*, or of a folder above it, leaves it out."""
    out = False
    for rule in rules:
        pattern = rule.lstrip("!")
        levels = [str(level) for level in (path, *path.parents)]
        if any(fnmatch.fnmatch(level, pattern) or fnmatch.fnmatch(f"/{level}", pattern[2:]) for level in levels):
            out = not rule.startswith("!")
    return out


if __name__ == "__main__":
    main()
