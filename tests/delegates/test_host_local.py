# SPDX-License-Identifier: Apache-2.0
"""The address pool on disk: shared with the executable, whole after a kill at any point, no address given twice."""

import copy
import ipaddress
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import plugin_run
import pytest
import witness
from namespaces import Site

from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Address
from multus_py.delegates.ipam import pool, ranges

NOWHERE = Site("", "/run/netns/mptnone")  # address plugins enter no namespace


def config(folder: Path, *subnets: str, **more: Any) -> dict[str, Any]:
    """Return a config with a set for each subnet."""
    sets = [[{"subnet": subnet}] for subnet in subnets or ("10.9.0.0/29",)]
    ipam = {"type": "host-local", "dataDir": str(folder), "ranges": sets, **more.pop("ipam", {})}
    return {"cniVersion": "1.0.0", "name": "net", "type": "host-local", "ipam": ipam, **more}


def addresses(body: dict[str, Any], container: str, run: Any = plugin_run.native) -> list[str]:
    """Add and return the addresses given."""
    result = run(plugin_run.call("ADD", body, NOWHERE, container), NOWHERE)
    return [ip["address"] for ip in result["ips"]]


def delete(body: dict[str, Any], container: str, run: Any = plugin_run.native) -> None:
    """Delete."""
    run(plugin_run.call("DEL", body, NOWHERE, container), NOWHERE)


def held(folder: Path) -> set[str]:
    """Return the addresses that have a file."""
    return {name for name in witness.reservations(folder / "net") if "reserved" not in name}


def test_the_two_take_turns_in_one_pool(tmp_path: Path) -> None:
    """Native delegate and executable give from one pool without giving an address twice, and free each other's."""
    body = config(tmp_path)
    given = []
    for n, run in enumerate([plugin_run.native, plugin_run.executable] * 2):
        given += addresses(body, f"c{n}", run)
    assert given == ["10.9.0.2/29", "10.9.0.3/29", "10.9.0.4/29", "10.9.0.5/29"]
    delete(body, "c0", plugin_run.executable)
    delete(body, "c1", plugin_run.native)
    assert held(tmp_path) == {"10.9.0.4", "10.9.0.5"}
    assert addresses(body, "c4", plugin_run.executable) == ["10.9.0.6/29"]
    assert addresses(body, "c5") == ["10.9.0.2/29"]


def test_many_at_once_get_different_addresses(tmp_path: Path) -> None:
    """Native delegates and executables that ask at the same time get each their own address."""
    body = config(tmp_path, "10.9.0.0/24")
    runs = [plugin_run.native, plugin_run.executable] * 15
    with ThreadPoolExecutor(6) as workers:
        given = list(workers.map(lambda item: addresses(copy.deepcopy(body), f"c{item[0]}", item[1]), enumerate(runs)))
    assert len({item[0] for item in given}) == len(runs) == len(held(tmp_path))


def test_a_full_pool_says_so_and_serves_again_after_a_delete(tmp_path: Path) -> None:
    """The last address is given, the next ADD is code 11, and a freed one is given again."""
    body = config(tmp_path, "10.9.0.0/30")
    assert addresses(body, "c1") == ["10.9.0.2/30"]
    with pytest.raises(CniError, match="no IP addresses available in range set") as caught:
        addresses(body, "c2")
    assert caught.value.code == Code.TRY_AGAIN
    assert held(tmp_path) == {"10.9.0.2"}
    delete(body, "c1")
    assert addresses(body, "c2") == ["10.9.0.2/30"]


def test_all_sets_or_none(tmp_path: Path) -> None:
    """When the second set is full, the address of the first is given back."""
    body = config(tmp_path, "10.9.0.0/24", "10.10.0.0/30")
    addresses(body, "c1")
    before = held(tmp_path)
    with pytest.raises(CniError):
        addresses(body, "c2")
    assert held(tmp_path) == before


def test_a_second_add_is_refused_and_frees_nothing(tmp_path: Path) -> None:
    """An interface that has an address gets no second one, neither any nor a wanted one, and keeps its own."""
    body = config(tmp_path)
    addresses(body, "c1")
    with pytest.raises(CniError, match="duplicate allocation is not allowed"):
        addresses(body, "c1")
    with pytest.raises(CniError, match="not available"):
        addresses({**body, "runtimeConfig": {"ips": ["10.9.0.2"]}}, "c1")
    assert held(tmp_path) == {"10.9.0.2"}


def test_an_empty_file_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    """A file without an owner keeps its address from nobody: the next one to whom it would fall gets it."""
    body = config(tmp_path, "10.9.0.0/30")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10.9.0.2").touch()
    with pytest.raises(CniError):
        addresses(body, "c1", plugin_run.executable)
    assert addresses(body, "c1") == ["10.9.0.2/30"]
    assert witness.reservations(tmp_path / "net")["10.9.0.2"] == "c1\r\nnet1"
    delete(body, "c1")
    (tmp_path / "net" / "10.9.0.2").touch()
    assert addresses({**body, "runtimeConfig": {"ips": ["10.9.0.2"]}}, "c2") == ["10.9.0.2/30"]


_VICTIM = """
import os, pathlib, sys, signal
from multus_py.delegates.ipam import pool
import ipaddress
calls = 0
def counted(verb):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return verb(*args, **kwargs)
    return call
for name in ("open", "write", "rename", "close", "unlink", "read"):
    setattr(os, name, counted(getattr(os, name)))
with pool.locked(pathlib.Path(sys.argv[1]), "net") as files:
    files.reserve(ipaddress.ip_address("10.9.0.2"), pool.owner("victim", "net1"))
    files.set_last(0, ipaddress.ip_address("10.9.0.2"))
"""


def test_a_kill_at_any_point_leaks_nothing(tmp_path: Path) -> None:
    """Killed before any of its system calls, a reservation is either whole or not there, and the pool works on."""
    ended = []
    for n in range(1, 40):
        folder = tmp_path / str(n)
        done = subprocess.run([sys.executable, "-c", _VICTIM, str(folder), str(n)], check=False)
        ended.append(done.returncode)
        if (folder / "net").exists():
            assert witness.reservations(folder / "net").get("10.9.0.2", "victim\r\nnet1") == "victim\r\nnet1"
        body = config(folder, "10.9.0.0/29")
        delete(body, "victim")
        assert len({addresses(body, f"c{m}")[0] for m in range(5)}) == 5
        if done.returncode == 0:
            break
    assert ended[-1] == 0
    assert ended[:-1] == [-signal.SIGKILL] * (len(ended) - 1)
    assert len(ended) > 8


def test_delete_looks_first_where_prevresult_points_and_then_everywhere(tmp_path: Path) -> None:
    """The address is freed with a right hint, with a wrong one and without any, and nobody else's is."""
    body = config(tmp_path)
    for n in range(3):
        addresses(body, f"c{n}")
    hints: list[Any] = [
        {"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/29"}]},
        {"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.4/29"}]},
        "nonsense",
    ]
    for n, hint in enumerate(hints):
        delete({**body, "prevResult": hint}, f"c{n}")
        assert held(tmp_path) == {f"10.9.0.{item}" for item in range(3 + n, 5)}


def test_delete_of_files_from_before_interfaces_were_written(tmp_path: Path) -> None:
    """A file that holds a container id alone, as old executables wrote it, is freed."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10.9.0.3").write_text("c1")
    (tmp_path / "net" / "10.9.0.4").write_text("c2")
    delete(config(tmp_path), "c1")
    assert held(tmp_path) == {"10.9.0.4"}


def test_delete_where_nothing_ever_was_makes_nothing(tmp_path: Path) -> None:
    """DEL in a pool that was never used succeeds and leaves no folder."""
    delete(config(tmp_path), "c1")
    assert list(tmp_path.iterdir()) == []


def test_delete_works_with_a_config_that_add_refuses(tmp_path: Path) -> None:
    """Ranges that became wrong do not keep an address from being freed."""
    addresses(config(tmp_path), "c1")
    delete(config(tmp_path, "10.9.0.1/24"), "c1")
    assert held(tmp_path) == set()


def test_check_finds_the_reservation_or_says_it_is_gone(tmp_path: Path) -> None:
    """CHECK passes while the file is there and fails after it went."""
    body = config(tmp_path)
    addresses(body, "c1")
    plugin_run.native(plugin_run.call("CHECK", body, NOWHERE, "c1"), NOWHERE)
    (tmp_path / "net" / "10.9.0.2").unlink()
    with pytest.raises(CniError, match="Failed to find address added by container c1"):
        plugin_run.native(plugin_run.call("CHECK", body, NOWHERE, "c1"), NOWHERE)


def test_strange_things_in_the_pool_are_nobodys(tmp_path: Path) -> None:
    """A folder, a link and a pipe under an address's name are in the way, and are neither followed nor removed."""
    net = tmp_path / "net"
    net.mkdir()
    (tmp_path / "secret").write_text("c1\r\nnet1")
    (net / "10.9.0.2").mkdir()
    (net / "10.9.0.3").symlink_to(tmp_path / "secret")
    os.mkfifo(net / "10.9.0.4")
    body = config(tmp_path)
    assert addresses(body, "c1") == ["10.9.0.5/29"]
    delete(body, "c1")
    assert {item.name for item in net.iterdir() if item.name.startswith("10.")} == {"10.9.0.2", "10.9.0.3", "10.9.0.4"}
    assert (tmp_path / "secret").read_bytes() == b"c1\r\nnet1"


def test_name_servers_come_from_the_resolv_conf(tmp_path: Path) -> None:
    """resolvConf's lines become dns, comments aside; a missing file is code 5 and names itself."""
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# no\n; no\nnameserver 10.0.0.1\nnameserver fd00::1\nsearch a.b c.d\ndomain e.f\noptions ndots:5 rotate\n\n"
    )
    results = []
    for n, run in enumerate((plugin_run.native, plugin_run.executable)):
        body = config(tmp_path / str(n), ipam={"resolvConf": str(file)})
        result = run(plugin_run.call("ADD", body, NOWHERE), NOWHERE)
        assert result
        results.append(result["dns"])
    assert results[0] == results[1]
    assert results[0]["nameservers"] == ["10.0.0.1", "fd00::1"]
    file.unlink()
    with pytest.raises(CniError, match=r"resolv\.conf") as caught:
        addresses(config(tmp_path, ipam={"resolvConf": str(file)}), "c9")
    assert caught.value.code == Code.IO
    assert held(tmp_path) == set()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_what_is_no_resolv_conf_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    """Whoever writes a config names any path of the node: a pipe is not waited for, a device has no end to be read."""
    file = tmp_path / "resolv.conf"
    {
        "pipe": lambda: os.mkfifo(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "folder": file.mkdir,
        "large": lambda: file.write_bytes(b"nameserver 10.0.0.1\n" * 10_000),
    }[kind]()
    with pytest.raises(CniError, match=r"resolv\.conf") as caught:
        addresses(config(tmp_path, ipam={"resolvConf": str(file)}), "c1")
    assert caught.value.code == Code.IO
    assert held(tmp_path) == set()


@pytest.mark.parametrize("name", ["lock", ".reserving", "last_reserved_ip.0"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_links_and_pipes_in_the_pool_lead_nowhere(tmp_path: Path, name: str, kind: str) -> None:
    """A folder that somebody else writes to, too: nothing is made or changed elsewhere, and nothing is waited for."""
    outside = tmp_path / "outside"
    (tmp_path / "net").mkdir()
    if kind == "pipe":
        os.mkfifo(tmp_path / "net" / name)
    else:
        (tmp_path / "net" / name).symlink_to(outside)
    if kind == "link" or name != "lock":  # an empty pipe can be locked as well as an empty file
        with pytest.raises(CniError) as caught:
            addresses(config(tmp_path), "c1")
        assert caught.value.code == Code.IO
    else:
        assert addresses(config(tmp_path), "c1") == ["10.9.0.2/29"]
    assert not outside.exists()


def test_reading_the_pool_waits_for_whoever_holds_it(tmp_path: Path) -> None:
    """The executable waits while we hold the lock: it gives the next address, not the same."""
    body = config(tmp_path)
    addresses(body, "c0")
    with ThreadPoolExecutor(1) as worker:
        with pool.locked(tmp_path, "net") as files:
            pending = worker.submit(addresses, body, "c1", plugin_run.executable)
            with pytest.raises(TimeoutError):
                pending.result(timeout=0.3)
            assert files.reserve(ipaddress.ip_address("10.9.0.3"), "somebody\r\nnet1")
        assert pending.result(timeout=10) == ["10.9.0.4/29"]


def test_every_address_is_tried_once_from_any_start() -> None:
    """The search begins behind the last address given, comes round to it, and leaves out gateways only."""
    sets = ranges.read_set(
        [
            {"subnet": "10.9.0.0/29", "gateway": "10.9.0.3"},
            {"subnet": "10.10.0.0/30", "rangeStart": "10.10.0.2", "rangeEnd": "10.10.0.2"},
        ],
        "set",
    )
    everything = [f"10.9.0.{n}" for n in (1, 2, 4, 5, 6)] + ["10.10.0.2"]
    for start in [None, *everything, "10.9.0.3", "192.0.2.1"]:
        last: Address | None = ipaddress.ip_address(start) if start else None
        found = [str(item.address.ip) for item in ranges.candidates(sets, last)]
        assert sorted(found) == sorted(everything)
        if start in everything:
            assert found[-1] == start


def test_a_large_pool_gives_its_last_address_soon(tmp_path: Path) -> None:
    """Four hundred reservations in the way do not make an ADD slow: each file is read once."""
    import time

    body = config(tmp_path, "10.9.0.0/23")
    net = tmp_path / "net"
    net.mkdir()
    for n in range(2, 500):
        (net / str(ipaddress.ip_address("10.9.0.0") + n)).write_text(f"other{n}\r\nnet1")
    began = time.monotonic()
    assert addresses(body, "c1") == ["10.9.1.244/23"]
    assert time.monotonic() - began < 1
    assert not (net / ".reserving").exists()


def test_what_others_did_to_the_pool_is_seen(tmp_path):
    """What is remembered of a pool between two pods is what its folder says when the second comes."""
    one, two, three = (ipaddress.ip_address(f"10.9.0.{n}") for n in (2, 3, 4))
    with pool.locked(tmp_path, "net") as files:
        assert files.reserve(one, "mine")
        assert files.holders() == {"10.9.0.2": "mine"}
    (tmp_path / "net/10.9.0.3").write_text("theirs")
    with pool.locked(tmp_path, "net") as files:
        assert files.holders() == {"10.9.0.2": "mine", "10.9.0.3": "theirs"}
        assert not files.reserve(two, "mine")
        assert files.reserve(three, "mine")
    (tmp_path / "net/10.9.0.2").unlink()
    with pool.locked(tmp_path, "net") as files:
        assert files.holders() == {"10.9.0.3": "theirs", "10.9.0.4": "mine"}
        assert files.release("mine") == 1
        assert files.holders() == {"10.9.0.3": "theirs"}
    with pool.locked(tmp_path, "net") as files:
        assert files.holders() == files.owners() == {"10.9.0.3": "theirs"}


def test_a_file_that_kept_its_inode_refuses_nobody(tmp_path: Path) -> None:
    """An address that went to somebody else under the same inode is not held against who had it before."""
    body = config(tmp_path)
    assert addresses(body, "c1") == ["10.9.0.2/29"]
    assert addresses(body, "c2") == ["10.9.0.3/29"]  # from here on it is known who has the first
    (tmp_path / "net/10.9.0.2").write_text("c9\r\neth0")
    assert addresses(body, "c1") == ["10.9.0.4/29"]


def test_where_the_search_goes_on_is_written_whole(tmp_path: Path) -> None:
    """A shorter address leaves nothing of a longer one behind it."""
    last = tmp_path / "net/last_reserved_ip.0"
    body = config(tmp_path, "10.9.0.0/28")
    for n in range(2, 15):
        assert addresses(body, f"c{n}") == [f"10.9.0.{n}/28"]
    delete(body, "c3")
    assert addresses(body, "c3", plugin_run.executable) == ["10.9.0.3/28"]
    delete(body, "c4")
    assert addresses(body, "c4") == ["10.9.0.4/28"]
    assert last.read_text() == "10.9.0.4"
