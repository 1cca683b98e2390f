# SPDX-License-Identifier: Apache-2.0
"""A delegate that raises anything, known under the type "faulty", and a machine whose own folders stay untouched."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import Faulty

from multus_py.config.plugin import MultusConfig
from multus_py.delegates.ipam import host_local
from multus_py.delegates.sriov import delegate as sriov
from multus_py.verbs import plugins


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the log of a test before, which wrote to a standard error that is closed by now."""
    monkeypatch.setattr(logging.getLogger("multus_py"), "handlers", [])


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Return the delegate of the type "faulty", as our own are found."""
    delegate = Faulty()
    monkeypatch.setitem(sys.modules, "mpt_faulty", delegate.module())
    monkeypatch.setitem(plugins.NATIVE, "faulty", "mpt_faulty")
    plugins._imported.cache_clear()
    yield delegate
    plugins._imported.cache_clear()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory; what a config that lost its folders falls back to is in it, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MultusConfig, "cni_dir", Path("cni"))
    monkeypatch.setattr(MultusConfig, "device_info_dir", Path("devinfo"))
    monkeypatch.setattr(host_local, "DATA_DIR", "ipam")
    monkeypatch.setattr(sriov, "DATA_DIR", "sriov")
    return tmp_path
