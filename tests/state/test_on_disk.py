# SPDX-License-Identifier: Apache-2.0
"""What stands on disk: journal, kept results, the original's delegates file are read back, or refused as CniError."""

import json
from binascii import crc32
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus_py.cni import conflist
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError
from multus_py.config import plugin
from multus_py.kube.store import PodRef
from multus_py.plan.attachment import Attachment
from multus_py.state import journal_entry, result_cache, takeover
from multus_py.state.journal import Journal
from multus_py.state.journal_entry import Entry
from multus_py.state.result_cache import ResultCache

names = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,20}", fullmatch=True)
ifnames = st.from_regex(r"[a-z0-9.@-]{1,15}", fullmatch=True).filter(lambda text: text not in (".", ".."))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
plugins = st.builds(
    lambda kind, more: {**more, "type": kind}, names, st.dictionaries(st.text(max_size=8), values, max_size=3)
)
attachments = st.builds(
    Attachment,
    names,
    st.builds(
        lambda name, members: conflist.parse({"cniVersion": "1.0.0", "name": name, "plugins": members}),
        names, st.lists(plugins, min_size=1, max_size=3),
    ),
    ifnames,
    st.booleans(),
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=8), values, max_size=3),
    st.none() | st.lists(st.ip_addresses(), max_size=2).map(tuple),
)  # fmt: skip
entries = st.builds(
    Entry, names, names, ifnames, st.text(max_size=20), st.lists(attachments, max_size=3).map(tuple),
    st.none() | st.builds(PodRef, names, names, st.text(max_size=8)),
)  # fmt: skip


@given(entries)
def test_the_journal_gives_back_what_it_was_given(entry):
    """Every key and number of every config survives, unknown ones too."""
    assert entry == journal_entry.decode(journal_entry.encode(entry))


@given(entries, st.data())
def test_a_damaged_page_is_noticed(entry, data):
    """Cut anywhere or with any byte changed: `Damaged`, never half of the truth."""
    text = journal_entry.encode(entry)
    at = data.draw(st.integers(0, len(text) - 1))
    for damaged in (text[:at], text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]):
        with pytest.raises(journal_entry.DamagedEntry):
            journal_entry.decode(damaged)


@given(entries, entries, st.data())
def test_a_torn_line_leaves_the_one_before(first, second, data):
    """A page grows by lines: one that was not finished had no consequences yet."""
    whole, more = journal_entry.encode(first), journal_entry.encode(second)
    assert second == journal_entry.decode(whole + more)
    assert first == journal_entry.decode(whole + more[: data.draw(st.integers(0, len(more) - 1))])


@given(
    st.one_of(
        st.binary(max_size=80), st.dictionaries(st.text(max_size=8), values).map(lambda body: json.dumps(body).encode())
    )
)
def test_only_cni_errors_come_out_of_any_file(text):
    """Fuzz: a journal page, a kept result, a delegates file of any bytes."""
    sealed = b"%08x " % crc32(text) + text + b"\n"
    readers = (
        lambda: journal_entry.decode(text), lambda: journal_entry.decode(sealed), lambda: result_cache.decode(text),
        lambda: takeover.decode(text, Call("DEL", "c", ifname="eth0")),
    )  # fmt: skip
    for read in readers:
        with suppress(CniError):
            read()


CACHE_KEYS = """kind containerId config ifName networkName cniArgs capabilityArgs result Conf ConfList
    CNINetworkConfigList Bytes Name plugins type"""
cache_keys = st.sampled_from(CACHE_KEYS.split())
cache_values = st.recursive(
    values | st.sampled_from(["cniCacheV1", "eyJ0eXBlIjoieCJ9", "c1", "eth0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cache_keys, inner, max_size=5),
    max_leaves=10,
)


@given(st.dictionaries(cache_keys, cache_values, max_size=8))
def test_only_cni_errors_come_out_of_likely_files(body):
    """Fuzz: the right keys with wrong values."""
    for read in (
        lambda: result_cache.decode(json.dumps(body).encode()),
        lambda: takeover.decode(json.dumps([body]).encode(), Call("DEL", "c", ifname="eth0")),
    ):
        with suppress(CniError):
            read()


CONFIG_KEYS = """name type cniVersion confDir cniDir binDir delegates clusterNetwork defaultNetworks kubeconfig
    manifests logFile logLevel logToStderr logOptions runtimeConfig readinessindicatorfile namespaceIsolation
    globalNamespaces systemNamespaces multusNamespace auxiliaryCNIChainName delegateBackend apiDeadline execTimeout
    nodeName NAMESPACEISOLATION requireDefaultNetworks"""
config_keys = st.sampled_from(CONFIG_KEYS.split())


@given(st.dictionaries(config_keys, values, max_size=8))
def test_only_cni_errors_come_out_of_any_config(body):
    """Fuzz: our own config with values of any shape."""
    try:
        plugin.parse(body)
    except CniError as error:
        assert error.code in (1, 7)


@given(
    st.dictionaries(
        st.sampled_from(["cniVersion", "cniVersions", "name", "type", "plugins", "disableCheck"]), values, max_size=6
    )
)
def test_only_cni_errors_come_out_of_any_conflist(body):
    """Fuzz: a network config of any shape."""
    try:
        conflist.parse(body)
    except CniError as error:
        assert error.code in (1, 7)


def entry(container="c1"):
    """Return an entry with one attachment."""
    conf = conflist.parse({"cniVersion": "1.0.0", "name": "a-b", "type": "x", "number": 1.50})
    return Entry(
        "mp", container, "eth0", "/n", (Attachment("ns/a-b", conf, "eth0", True, (("K", "V"),), {"ips": ["x"]}),)
    )


def test_a_page_lives_from_write_to_clear(tmp_path):
    """An unwritten page leaves no file, a written one stays until it is cleared."""
    book = Journal(tmp_path / "attachments")
    with book.lock_sandbox("c1", "eth0") as page:
        assert (None, False) == (page.entry, page.damaged)
    assert [] == book.sandboxes()
    with book.lock_sandbox("c1", "eth0") as page:
        page.write(entry())
    with book.lock_sandbox("c1", "eth0") as page:
        assert entry() == page.entry
        page.clear()
    assert [] == list((tmp_path / "attachments").iterdir())


def test_a_busy_page_is_not_waited_for_when_told_so(tmp_path):
    """Garbage collection passes over a sandbox that is being attached."""
    book = Journal(tmp_path)
    with (
        book.lock_sandbox("c1", "eth0"),
        pytest.raises(CniError) as caught,
        book.lock_sandbox("c1", "eth0", wait=False),
    ):
        pass
    assert 11 == caught.value.code


def test_results_are_libcnis_and_found_by_content(tmp_path):
    """Names with '-' are ambiguous in file names: what the file says counts."""
    cache = ResultCache(tmp_path)
    mine, other = entry().attachments[0], entry("c1-eth0").attachments[0]
    cache.store(mine, "c1", "/n", {"cniVersion": "1.0.0"})
    cache.store(other, "b-c1", "/n", {"cniVersion": "1.0.0"})
    body = json.loads((tmp_path / "a-b-c1-eth0").read_text())
    assert ("cniCacheV1", "c1", "eth0", "a-b", [["K", "V"]]) == tuple(
        body[key] for key in ("kind", "containerId", "ifName", "networkName", "cniArgs")
    )
    found = cache.attachments("c1", "eth0")
    assert [("a-b", "eth0", True, (("K", "V"),), {"ips": ["x"]})] == [
        (item.name, item.ifname, item.primary, item.args, item.capabilities) for item in found
    ]
    assert dict(mine.conflist.plugins[0]) == dict(found[0].conflist.plugins[0])
