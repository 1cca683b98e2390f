# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the delegates' tests: a host and a pod made of namespaces, and sockets into them."""

from collections.abc import Iterator

import pytest
from namespaces import Site, site

from multus_py import netlink
from multus_py.netlink import Netlink


@pytest.fixture
def place() -> Iterator[Site]:
    """Return a host and a pod on it."""
    with site() as made:
        yield made


@pytest.fixture
def host(place: Site) -> Iterator[Netlink]:
    """Return a socket in the host's namespace."""
    with netlink.open(place.host) as kernel:
        yield kernel


@pytest.fixture
def pod(place: Site) -> Iterator[Netlink]:
    """Return a socket in the pod's namespace."""
    with netlink.open(place.pod) as kernel:
        yield kernel
