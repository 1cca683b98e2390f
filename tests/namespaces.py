# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that play a host and a pod: made for one test under a random name, gone after it."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from multus_py.kernel import namespaces, netlink

PREFIX = "/run/netns/mpt"


@dataclass(frozen=True)
class Site:
    """A host and a pod on it, as paths of their namespaces."""

    host: str
    pod: str


@contextmanager
def namespace() -> Iterator[str]:
    """Make a namespace with lo up; yield its path."""
    path = f"{PREFIX}{secrets.token_hex(5)}"
    namespaces.create(path)
    try:
        with netlink.open(path) as kernel:
            kernel.set_link(kernel.link("lo").index, up=True)
        yield path
    finally:
        namespaces.remove(path)


@contextmanager
def site() -> Iterator[Site]:
    """Make a host and a pod."""
    with ExitStack() as stack:
        yield Site(stack.enter_context(namespace()), stack.enter_context(namespace()))
