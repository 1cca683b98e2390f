# SPDX-License-Identifier: Apache-2.0
"""The build hook of the wheel: compiles the shim, a static executable for each machine that a compiler can be had for.

MULTUS_PY_SHIM_CC       the compiler for this machine, a shell-like line; it replaces all others
MULTUS_PY_SHIM_MACHINES "all": both machines are wanted: PyPI's ziglang is fetched, which compiles for either
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MACHINES = ("x86_64", "aarch64")
FLAGS = ("-std=c11", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Wpedantic")
_ZIG = "ziglang>=0.13"


class ShimBuildHook(BuildHookInterface[Any]):
    """Puts multus-shim-<machine> into multus_py/install/shim/bin, and the truth into the wheel's tag."""

    def dependencies(self) -> list[str]:
        """Ask for ziglang when nothing else can compile.

        Front ends ask this for editable installs, too, and do not say so. That is why the other machine alone is no
        reason to fetch 100 MB, unless MULTUS_PY_SHIM_MACHINES says that it is wanted: releases do.
        """
        if os.environ.get("MULTUS_PY_SHIM_MACHINES") == "all":
            return [_ZIG]
        return [] if _compilers(os.uname().machine) else [_ZIG]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what can be built; without a shim for this machine the build fails."""
        here = os.uname().machine
        shim = Path(self.root) / "multus_py" / "install" / "shim"
        build(shim, here)
        if version == "editable":
            return
        for machine in MACHINES:
            if machine == here:
                continue
            try:
                build(shim, machine)
            except CannotBuild as cause:
                (shim / "bin" / f"multus-shim-{machine}").unlink(missing_ok=True)
                build_data["tag"] = f"py3-none-linux_{here}"
                sys.stderr.write(f"multus-py: this wheel is for {here} alone: {cause}\n")


class CannotBuild(Exception):
    """No compiler could make the shim for a machine; the text says what was tried."""


def build(shim: Path, machine: str) -> Path:
    """Compile the sources in the folder *shim* for *machine*, unless the executable is newer than they are."""
    target = shim / "bin" / f"multus-shim-{machine}"
    sources = sorted(shim.glob("*.c"))
    newest = max(path.stat().st_mtime for path in [*sources, *shim.glob("*.h")])
    if target.exists() and target.stat().st_mtime > newest:
        return target
    compilers = _compilers(machine)
    troubles = [] if compilers else [f"no compiler for {machine} was found"]
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for compiler in compilers:
            command = [*compiler, *FLAGS, "-o", str(made), *map(str, sources)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made.chmod(0o755)
                made.rename(target)
                return target
            troubles.append(f"{shlex.join(compiler)}: {done.stderr.strip()[-1000:]}")
    raise CannotBuild(
        f"the shim for {machine} was not built: {'; '.join(troubles)}. "
        + "Install a C compiler with its static libc, or PyPI's ziglang; MULTUS_PY_SHIM_MACHINES=all has it fetched"
    )


def _compilers(machine: str) -> list[list[str]]:
    """Return the compilers at hand that could make a static executable for *machine*, the best first.

    musl's start in a fifth of the time of glibc's and have a tenth of the size; zig's are musl's.
    """
    native = machine == os.uname().machine
    if native and (chosen := os.environ.get("MULTUS_PY_SHIM_CC")):
        return [shlex.split(chosen)]
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl"]
    names = ["musl-gcc", "cc", "gcc"] if native else [f"{machine}-linux-musl-gcc", f"{machine}-linux-gnu-gcc"]
    found = [[name] for name in names if shutil.which(name)]
    return [zig, *found] if machine in MACHINES and importlib.util.find_spec("ziglang") else found
