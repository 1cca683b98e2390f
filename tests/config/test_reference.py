# SPDX-License-Identifier: Apache-2.0
"""Each key is declared once and completely, and the reference pages are those of the declarations."""

from pathlib import Path

import pytest

from multus_py.config import daemon, keys, plugin, reference, schema, selection
from multus_py.config.daemon import CniConfFile, DaemonConfig, NodeCertificate
from multus_py.config.formats import FORMATS
from multus_py.config.keys import Key
from multus_py.config.plugin import LogOptions, MultusConfig
from multus_py.config.selection import Selection

PAGES = Path(__file__).parents[2] / "docs" / "reference"
READERS = {keys.PLUGIN, keys.DAEMON, keys.SHIM, keys.INSTALL, keys.RUNTIME}
CONFIG = (*plugin.KEYS, *daemon.KEYS)
CLASSES = (MultusConfig, LogOptions, DaemonConfig, CniConfFile, NodeCertificate, Selection)


def with_members(declared: tuple[Key, ...]) -> list[Key]:
    """Return keys and those of their objects."""
    return [each for key in declared for each in (key, *with_members(key.kind.members))]


@pytest.mark.parametrize("name", reference.pages())
def test_a_page_is_current(name: str) -> None:
    """The page in the repository is the one that is generated."""
    assert (PAGES / name).read_text() == reference.pages()[name], f"run: {reference.COMMAND}"


def test_no_other_page_is_there() -> None:
    """A page that is no longer generated is removed."""
    assert {path.name for path in PAGES.iterdir()} == set(reference.pages())


@pytest.mark.parametrize("key", with_members((*CONFIG, *selection.KEYS)), ids=lambda key: key.name)
def test_a_declaration_is_complete(key: Key) -> None:
    """A key has a meaning, a version, known readers, and a known format."""
    assert key.meaning.endswith(".") or key.meaning.endswith("`.")
    assert key.since
    assert set(key.readers) <= READERS
    assert key.readers or "without effect" in key.meaning
    assert not key.format or key.format in FORMATS


@pytest.mark.parametrize("declared", [CONFIG, selection.KEYS], ids=["config", "annotation"])
def test_a_key_is_declared_once(declared: tuple[Key, ...]) -> None:
    """No two declarations have the same key, in any case: Go's decoder would not tell them apart."""
    names = [key.name.casefold() for key in declared]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_constant_default_of_a_page_is_that_of_the_attribute(cls: type) -> None:
    """What the page and the schema give as default is what an empty config gives."""
    for attribute, (key, *_) in keys.attributes(cls).items():
        if schema.default_of(key) is not None:
            assert getattr(cls, attribute) == key.default


def test_an_alias_is_read_where_the_key_is_absent_or_empty() -> None:
    """The second key of an attribute counts after the first."""
    assert daemon.parse({"daemonSocketDir": "/a"}).socket_dir == Path("/a")
    assert daemon.parse({"daemonSocketDir": "/a", "socketDir": "/b"}).socket_dir == Path("/b")
    assert daemon.parse({"daemonSocketDir": "/a", "socketDir": ""}).socket_dir == Path("/a")


def test_the_exact_spelling_counts_before_another_case() -> None:
    """As Go's decoder reads them, null included: it counts as absent."""
    assert plugin.parse({"binDir": "/a", "BINDIR": "/b"}).bin_dir == "/a"
    assert plugin.parse({"BINDIR": "/b"}).bin_dir == "/b"
    assert plugin.parse({"logToStderr": None, "LOGTOSTDERR": False}).log_to_stderr
