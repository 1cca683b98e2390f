# SPDX-License-Identifier: Apache-2.0
"""Remove interfaces and return as soon as they cannot be seen any more."""

import threading
from collections.abc import Iterable

from multus_py.kernel import netlink

_INTERVAL = 0.05  # seconds between two looks whether links are gone, when no event reports it


def remove_links(netns: str, names: Iterable[str]) -> None:
    """Delete those of the links *names* that exist in a namespace; return when they are no longer listed.

    The kernel acknowledges the request after an RCU grace period (20 ms here, once for all): a thread waits for that.
    `NetlinkError` when a link stays, `NoNamespace` when *netns* leads to none.
    """
    with netlink.open(netns) as kernel:
        existing = {link.name: link.index for name in names if (link := kernel.find_link(name))}
        if not existing:
            return
        problems: list[BaseException] = []

        def remove() -> None:
            try:
                with netlink.open(netns) as requests:
                    requests.delete_links(list(existing.values()))
            except BaseException as problem:  # noqa: BLE001  it is raised below
                problems.append(problem)

        thread = threading.Thread(target=remove, name=f"remove links of {netns}")
        thread.start()
        while not kernel.await_gone(existing, _INTERVAL) and thread.is_alive():
            pass
        if problems and not kernel.await_gone(existing, 0):
            raise problems[0]
