# SPDX-License-Identifier: Apache-2.0
"""The shim in C, the executable that runtimes start in daemon mode, and the path of the built file.

No other Python here.
"""

import os
from pathlib import Path

from multus_py.cni.errors import CniError, Code

FOLDER = Path(__file__).parent / "bin"


def path(machine: str | None = None) -> Path:
    """Return the built shim for *machine* (as `uname -m` says it, this one's by default); code 5 when there is none."""
    machine = machine or os.uname().machine
    found = FOLDER / f"multus-shim-{machine}"
    if not found.is_file():
        raise CniError(
            Code.IO,
            f"this installation has no shim for {machine}: {found} is missing",
            "install a wheel for that machine, or build one: MULTUS_PY_SHIM_MACHINES=all pip wheel --no-deps .",
        )
    return found
