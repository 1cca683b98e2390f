# SPDX-License-Identifier: Apache-2.0
"""Fixtures inside the guest: the NIC with its functions, which each test leaves as it was, and pods to attach to."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import nic
import pytest
from pods import Pods
from stage import namespace


@pytest.fixture(scope="session")
def ports() -> list[nic.Port]:
    """Load the drivers, and give both ports all functions that they can have."""
    nic.run(
        "modprobe", "-a", "igb", "igbvf", "vfio-pci", "8021q", "ipvlan", "vrf", "dummy", "bridge", "macvlan", "veth"
    )
    found = [nic.Port(path.name) for path in sorted(Path("/sys/bus/pci/drivers/igb").glob("0*"))]
    assert len(found) == 2
    for port in found:
        port.make_functions()
    return found


@pytest.fixture
def card(ports: list[nic.Port]) -> Iterator[nic.Nic]:
    """Return the NIC; after the test it must look as before."""
    card = nic.Nic(ports)
    card.before = card.look()
    yield card
    after = card.look()
    for port in ports if after != card.before else ():  # the next test is not to suffer for it
        port.make_functions()
    assert card.before == after


@pytest.fixture
def pods(tmp_path: Path, card: nic.Nic) -> Iterator[Pods]:
    """Return a maker of pods; those that a test leaves are deleted, before the NIC is looked at."""
    with ExitStack() as stack:
        made = Pods(tmp_path, stack)
        try:
            yield made
        finally:
            made.delete_all()


@pytest.fixture
def netns() -> Iterator[str]:
    """Return an empty network namespace."""
    with namespace() as path:
        yield path
