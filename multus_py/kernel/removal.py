# SPDX-License-Identifier: Apache-2.0
"""Remove interfaces and return as soon as they cannot be seen any more."""

import threading
from collections.abc import Iterable

from multus_py.kernel import netlink

_INTERVAL = 0.05  # seconds between two looks whether links are gone, when no event reports it


def remove_links(netns: str, names: Iterable[str]) -> None:
    """Delete those of the links *names* that are in a namespace; return when nobody can see them any more.

    The kernel goes on after that: it waits for whoever still reads one of them (rcu_barrier, 20 ms here, once for all).
    That is a thread's business. `NetlinkError` when a link stays, `NoNamespace` when *netns* leads to none.
    """
    with netlink.open(netns) as kernel:
        there = {link.name: link.index for name in names if (link := kernel.find_link(name))}
        if not there:
            return
        troubles: list[BaseException] = []

        def remove() -> None:
            try:
                with netlink.open(netns) as hands:
                    hands.delete_links(list(there.values()))
            except BaseException as trouble:  # noqa: BLE001  it is raised below
                troubles.append(trouble)

        thread = threading.Thread(target=remove, name=f"remove links of {netns}")
        thread.start()
        while not kernel.await_gone(there, _INTERVAL) and thread.is_alive():
            pass
        if troubles and not kernel.await_gone(there, 0):
            raise troubles[0]
