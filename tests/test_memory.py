# SPDX-License-Identifier: Apache-2.0
"""What a process remembers does not grow with the words of users."""

import gc
import tracemalloc
from contextlib import suppress

import pytest

from multus_py.agent.serving.metrics import Metrics
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError
from multus_py.cni.result import read
from multus_py.delegates.ipam import pool, ranges
from multus_py.kernel import netlink, wire
from multus_py.verbs.plugins import Plugins

MANY = 3000


def kept_after(deed):
    """Return how many bytes more are in use after *deed* was done for many words than after a few."""
    for n in range(50):
        deed(n)
    gc.collect()
    tracemalloc.start()
    try:
        for n in range(50, MANY):
            deed(n)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def scraped(metrics):
    """Return the lines of the metrics that have samples."""
    from prometheus_client import generate_latest

    return [line for line in generate_latest(metrics.registry).decode().splitlines() if line[0] != "#"]


@pytest.mark.parametrize("backend", ["auto", "builtin", "exec"])
def test_plugins_that_are_not_there_leave_nothing(tmp_path, backend):
    """However many types are named that nobody has, neither memory nor metrics grow."""
    metrics = Metrics()
    plugins = Plugins(backend, observed=metrics.delegated)
    call = Call("ADD", "c", "/x", "net1", path=(str(tmp_path),))

    def named(n):
        with pytest.raises(CniError):
            plugins.run(f"type-{n}-" + "x" * 200, call)

    assert kept_after(named) < 4_000_000  # a table of the interpreter may have grown
    assert not [line for line in scraped(metrics) if "type-" in line]


def answered(metrics, code):
    """Answer one ADD with an error code, 0 for success."""
    with suppress(CniError), metrics.measured("/cni", "ADD"):
        if code:
            raise CniError(code, "an error")


def test_labels_are_bounded():
    """The first plugins and all codes of the specification have labels of their own, the rest share one."""
    metrics = Metrics()
    metrics.delegated("bridge", "ADD", 0.1, 0)
    for n in range(MANY):
        metrics.delegated(f"plugin-{n}", "ADD", 0.1, 0)
        answered(metrics, 1000 + n)
    answered(metrics, 11)
    answered(metrics, 0)
    lines = scraped(metrics)
    assert len(lines) < 2000
    assert [line for line in lines if 'plugin="bridge"' in line]
    assert [line for line in lines if 'plugin="other"' in line]
    assert [line for line in lines if 'code="11"' in line]
    assert [line for line in lines if 'code="0"' in line]
    assert [line for line in lines if 'code="other"' in line]


def test_long_addresses_are_not_remembered():
    """An IPv6 zone has any length: such texts are read, or refused, and forgotten."""

    def one(n):
        zone = f"fe80::1%{n}" + "x" * 5000
        for deed in (
            lambda: ranges.address(zone, "x"),
            lambda: ranges.cidr(f"{zone}/64", "x"),
            lambda: read({"ips": [{"address": f"{zone}/64", "gateway": zone}]}, "1.0.0"),
        ):
            with suppress(CniError):
                deed()

    assert kept_after(one) < 4_000_000


def test_pools_that_are_gone_are_forgotten(tmp_path):
    """What is remembered of the folders of networks is bounded, however many networks come and go."""
    for n in range(pool._FOLDERS * 3):
        with pool.locked(tmp_path, f"network-{n}") as found:
            found.holders()
    assert len(pool._seen) <= pool._FOLDERS


def test_a_burst_of_sockets_leaves_few_buffers():
    """Sockets that are open at the same time, and closed, keep room for a few only."""
    many = [netlink.open(None) for _ in range(100)]
    for one in many:
        one.close()
    assert len(wire._buffers) <= 16
