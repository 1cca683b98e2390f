# SPDX-License-Identifier: Apache-2.0
"""The shim, compiled once for the session, and a node to run it on."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
from shimbox import ROOT, Box, compile_shim

# For a whole run under sanitizers: "-g -fsanitize=address,undefined".
_FLAGS = os.environ.get("MULTUS_PY_SHIM_TEST_FLAGS", "-Os -static").split()


@pytest.fixture(scope="session")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the shim that the tests run."""
    return compile_shim(tmp_path_factory.mktemp("shim") / "multus-shim", *_FLAGS)


@pytest.fixture(scope="session")
def hook() -> ModuleType:
    """Load the wheel's build hook, which lives outside of any package."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def box(tmp_path: Path, executable: Path) -> Box:
    """Make an empty node."""
    return Box(tmp_path, executable)
