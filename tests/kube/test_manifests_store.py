# SPDX-License-Identifier: Apache-2.0
"""The folder of manifests: what is read, what is refused with its place, and what stays on disk."""

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multus_py.cni.errors import CniError, Code
from multus_py.cni.jsontext import DEPTH_LIMIT, TOO_DEEP
from multus_py.kube.manifests import Manifests, documents
from multus_py.kube.pod_files import EVENTS_KEPT, EVENTS_SIZE
from multus_py.kube.store import NETWORK_STATUS, NotFound, Pod, PodRef

DEFINITION = """\
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: {name}
spec:
  config: '{{"type": "bridge"}}'
"""
POD = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n"


@pytest.fixture
def store(tmp_path: Path) -> Manifests:
    """Give a store over an empty folder, `in`, whose state is in `state`."""
    (tmp_path / "in").mkdir()
    return Manifests(tmp_path / "in", tmp_path / "state", now=lambda: 1000.0)


def write(tmp_path: Path, name: str, text: str) -> Path:
    """Put a file into the folder."""
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_documents_lists_and_folders_are_read(store: Manifests, tmp_path: Path) -> None:
    """Several documents, a List, a PodList without kinds, JSON and subfolders all count; other kinds do not."""
    write(
        tmp_path, "a.yaml", DEFINITION.format(name="one") + "---\n" + POD.format(name="p1") + "---\n---\nkind: Secret\n"
    )
    item = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p2", "namespace": "other"},
        "spec": {"nodeName": "n"},
    }
    write(tmp_path, "deep/er/b.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]}))
    write(tmp_path, "c.yml", "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: p3}\n")
    write(tmp_path, "d.txt", POD.format(name="ignored"))
    write(tmp_path, ".hidden/e.yaml", POD.format(name="p1"))
    assert ["default/p1", "default/p3", "other/p2"] == [str(pod.ref) for pod in store.pods()]
    assert ["one"] == [definition.name for definition in store.definitions()]
    assert store.pod(PodRef("other", "p2")).node == "n"
    assert [] == store.problems()


def test_a_single_file_is_a_folder_too(tmp_path: Path) -> None:
    """The store may be given one file."""
    (tmp_path / "in").mkdir()
    path = write(tmp_path, "a.yaml", DEFINITION.format(name="one"))
    assert Manifests(path, tmp_path / "state").definition("default", "one").config == '{"type": "bridge"}'


def test_a_broken_file_hides_only_itself(store: Manifests, tmp_path: Path) -> None:
    """Other files are read; the broken one is named, with its line, when it could hold what was asked for."""
    write(tmp_path, "a-broken.yaml", "metadata:\n  name: wanted\n bad: [\n")
    write(tmp_path, "b.yaml", DEFINITION.format(name="one"))
    assert store.definition("default", "one").name == "one"
    with pytest.raises(NotFound) as caught:
        store.definition("default", "wanted")
    assert "a-broken.yaml:3" in caught.value.details
    with pytest.raises(NotFound) as caught:
        store.definition("default", "unheard-of")
    assert "a-broken.yaml" not in caught.value.details
    assert "a-broken.yaml:3" in store.problems()[0]


def test_the_documents_before_a_broken_one_are_read(store: Manifests, tmp_path: Path) -> None:
    """A file that breaks off keeps what came before."""
    write(tmp_path, "a.yaml", POD.format(name="p1") + "---\nkind: [\n")
    assert store.pod(PodRef("default", "p1")).name == "p1"


@pytest.mark.parametrize("trouble", ["fifo", "dangling", "huge", "folder"])
def test_what_is_no_readable_file_is_told(store: Manifests, tmp_path: Path, trouble: str) -> None:
    """A named pipe, a dangling link, a file beyond the limit and a folder called .yaml never stop the others."""
    write(tmp_path, "b.yaml", POD.format(name="p1"))
    path = tmp_path / "in" / "a.yaml"
    if trouble == "fifo":
        os.mkfifo(path)
    elif trouble == "dangling":
        path.symlink_to("nowhere")
    elif trouble == "huge":
        with path.open("wb") as file:
            file.truncate(17 * 1024 * 1024)
    else:
        path.mkdir()
    assert store.pod(PodRef("default", "p1")).name == "p1"
    with pytest.raises(NotFound) as caught:
        store.pod(PodRef("default", "p2"))
    assert ("a.yaml" in caught.value.details) == (trouble != "folder")


def test_an_object_that_is_there_twice_is_refused_with_both_places(store: Manifests, tmp_path: Path) -> None:
    """Nobody has to guess which of two definitions won."""
    first = write(tmp_path, "a.yaml", "---\n" + POD.format(name="p") + "---\n" + DEFINITION.format(name="one"))
    second = write(tmp_path, "b.yaml", DEFINITION.format(name="one"))
    with pytest.raises(CniError) as caught:
        store.definition("default", "one")
    assert f"{first}:7" in caught.value.msg
    assert f"{second}:1" in caught.value.msg
    assert int(Code.INVALID_CONFIG) == caught.value.code
    assert any(f"{second}:1" in trouble and f"{first}:7" in trouble for trouble in store.problems())


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("kind: Pod\napiVersion: v1\nmetadata: {name: x, annotations: {a: 1}}\n", "quotes"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: x, annotations: [a]}\n", "annotations"),
        (
            DEFINITION.partition("spec")[0].format(name="x") + "spec: {config: {}}\n",
            "JSON",
        ),
        (
            DEFINITION.partition("spec")[0].format(name="x") + "spec: text\n",
            "JSON",
        ),
    ],
)
def test_a_malformed_object_is_an_error_with_its_place(store: Manifests, tmp_path: Path, body: str, word: str) -> None:
    """An object that an API server would refuse is refused when it is asked for, and says what to write."""
    path = write(tmp_path, "a.yaml", "\n" + body)
    ask = store.pod if "Pod" in body else lambda ref: store.definition(ref.namespace, ref.name)
    with pytest.raises(CniError, match=f"{path}:2") as caught:
        ask(PodRef("default", "x"))
    assert not isinstance(caught.value, NotFound)
    assert word in str(caught.value)


def test_a_changed_file_is_read_again(store: Manifests, tmp_path: Path) -> None:
    """The next call sees what was written, renamed in or removed."""
    path = write(tmp_path, "a.yaml", POD.format(name="p1"))
    store.pod(PodRef("default", "p1"))
    write(tmp_path, "a.yaml", POD.format(name="p2"))
    assert ["p2"] == [pod.name for pod in store.pods()]
    path.unlink()
    assert [] == store.pods()


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    """The error says that the folder is not there, not only the pod."""
    with pytest.raises(NotFound) as caught:
        Manifests(tmp_path / "absent", tmp_path / "state").pod(PodRef("default", "p"))
    assert "does not exist" in caught.value.details


def test_a_name_may_be_escaped(store: Manifests, tmp_path: Path) -> None:
    """Files are searched for the name before they are parsed; an escape in JSON or YAML does not hide it."""
    write(tmp_path, "a.json", '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "\\u0070one"}}')
    write(tmp_path, "b.yaml", POD.format(name='"\\x70two"'))
    assert {"pone", "ptwo"} == {store.pod(PodRef("default", name)).name for name in ("pone", "ptwo")}


@pytest.mark.parametrize("levels", [DEPTH_LIMIT + 1, 1_000, 100_000])
@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused(opening: str, levels: int) -> None:
    """However the parser says it, too many levels are a trouble with a line, not a dead process."""
    raw = b"a: 1\n---\n# two\n" + opening.encode() * levels
    *_, last = documents(raw, is_json=False)
    assert last.problem
    assert last.line in (4, 5)  # a parser may reach the end of the text, where brackets are missing, first
    assert None is last.body


@pytest.mark.parametrize(
    "nested",
    [
        lambda levels: "[" * levels + "]" * levels,
        lambda levels: "- " * levels + "1",
        lambda levels: "".join(f"{' ' * n}a:\n" for n in range(levels)),
        lambda levels: "".join(f"{' ' * (n // 2)}{'-' if n % 2 else 'a:'}\n" for n in range(levels)),
    ],
    ids=["flow", "compact", "block", "two a column"],
)
def test_the_limit_of_nesting_is_ours(nested: Callable[[int], str]) -> None:
    """The limit is read and one level more is refused, whatever the size of the file."""
    for levels in (DEPTH_LIMIT, DEPTH_LIMIT + 1):
        (found,) = documents(nested(levels).encode(), is_json=False)
        assert (TOO_DEEP == found.problem) is (levels > DEPTH_LIMIT)


@pytest.mark.parametrize("with_c", [True, False], ids=["C", "Python"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("!!timestamp foo", "timestamp"),
        ("!!bool foo", "bool"),
        ("!!int foo", "int"),
        ("2020-13-45", "timestamp"),
        ("9" * 5_000, "int"),
        ("!!python/object:os.system x", "constructor"),
        ("*b", "alias"),
        ("[é, \x01]", "allowed"),
        ("[é, \udcff]", "octet|byte"),
        ("\t- x", "token|not allowed"),
    ],
)
def test_whatever_the_parser_raises_has_its_place(
    value: str, why: str, with_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that cannot be made is a trouble at its own line, with either parser, and never another exception."""
    if not with_c:
        monkeypatch.delattr(yaml, "CSafeLoader")
    raw = f"é: 1\nb:\n  c: {value}\n".encode(errors="surrogateescape")
    (found,) = documents(raw, is_json=False)
    assert re.search(why, found.problem), found.problem
    assert (3, True) == (found.line, 6 <= found.column <= 10)


def test_the_store_names_the_line_of_what_cannot_be_made(store: Manifests, tmp_path: Path) -> None:
    """A file with such a value hides nothing but itself, and its place is told."""
    write(tmp_path, "a.yaml", "a: 1\nb: !!bool foo\n")
    write(tmp_path, "b.json", '{"a": 1,\n "b": ' + "9" * 5_000 + "}")
    write(tmp_path, "p.yaml", POD.format(name="p1"))
    assert [pod.name for pod in store.pods()] == ["p1"]
    assert ["a.yaml:2", "b.json:2"] == [":".join(Path(told).name.split(":")[:2]) for told in store.problems()]


def test_nesting_within_the_limit_is_read() -> None:
    """A large but flat document passes."""
    raw = b"a:\n" + b"".join(b"- {name: n%d, list: [1, 2]}\n" % n for n in range(1000))
    (found,) = documents(raw, is_json=False)
    assert ("", 1000) == (found.problem, len(found.body["a"]))


def test_what_is_kept_is_private_and_forgotten(store: Manifests, tmp_path: Path) -> None:
    """Status and Events are files that only we can read; forgetting the pod leaves none of them."""
    write(tmp_path, "a.yaml", POD.format(name="p1"))
    pod = store.pod(PodRef("default", "p1"))
    store.publish_status(pod, "[1]")
    store.event(pod, "Normal", "R", "m")
    kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert {0o600} == {path.stat().st_mode & 0o777 for path in kept}
    assert {0o700} == {path.stat().st_mode & 0o777 for path in (tmp_path / "state").rglob("*") if path.is_dir()}
    store.forget(pod.ref)
    assert [] == list((tmp_path / "state").rglob("*"))
    assert [] == store.events(pod.ref)


def test_the_status_outlives_the_process(store: Manifests, tmp_path: Path) -> None:
    """Another store over the same folders sees the published status."""
    write(tmp_path, "a.yaml", POD.format(name="p1"))
    store.publish_status(store.pod(PodRef("default", "p1")), "[1]")
    again = Manifests(tmp_path / "in", tmp_path / "state")
    assert again.pods()[0].annotations[NETWORK_STATUS] == "[1]"


def test_a_newer_pods_notes_are_not_forgotten(store: Manifests, tmp_path: Path) -> None:
    """A late DEL of the pod before leaves the status of the one that took its name."""
    write(tmp_path, "a.yaml", POD.format(name="p1").rstrip() + "\n  uid: new\n")
    store.publish_status(store.pod(PodRef("default", "p1")), "[new]")
    store.forget(PodRef("default", "p1", "old"))
    assert store.pod(PodRef("default", "p1")).annotations[NETWORK_STATUS] == "[new]"


@pytest.mark.parametrize("damage", ["", "null", "[]", '{"uid": ', '[["a"]]', "[[1, 2, 3, null]]", "\0"])
def test_damaged_notes_are_written_anew(store: Manifests, tmp_path: Path, damage: str) -> None:
    """A status or Events file that a power cut spoiled is no error."""
    write(tmp_path, "a.yaml", POD.format(name="p1"))
    pod = store.pod(PodRef("default", "p1"))
    store.publish_status(pod, "[1]")
    store.event(pod, "Normal", "R", "m")
    for name in ("status.json", "events.jsonl"):
        (tmp_path / "state/default/p1" / name).write_text(damage)
    assert NETWORK_STATUS not in store.pod(pod.ref).annotations
    store.event(pod, "Warning", "S", "n")
    assert ["S"] == [event.reason for event in store.events(pod.ref)]


def test_only_the_newest_events_are_kept(store: Manifests, tmp_path: Path) -> None:
    """A pod that fails for ever does not fill the disk."""
    pod = Pod("default", "p1")
    for n in range(EVENTS_KEPT + 5):
        store.event(pod, "Warning", "R", str(n))
    assert [str(n) for n in range(5, EVENTS_KEPT + 5)] == [event.message for event in store.events(pod.ref)]


def test_the_file_of_events_stays_small(store: Manifests, tmp_path: Path) -> None:
    """Long messages for ever: the file is cut, the newest Events stay."""
    pod = Pod("default", "p1")
    for n in range(200):
        store.event(pod, "Warning", "R", f"{n} " + "x" * 1000)
    (kept,) = (tmp_path / "state").rglob("events.jsonl")
    assert kept.stat().st_size <= EVENTS_SIZE
    told = [event.message.split()[0] for event in store.events(pod.ref)]
    assert told[-1] == "199"
    assert len(told) > 10


def test_writers_at_the_same_time_lose_nothing(store: Manifests, tmp_path: Path) -> None:
    """Events told from several threads at once are all there."""
    pod = Pod("default", "p1")
    tellers = [threading.Thread(target=store.event, args=(pod, "Normal", "R", str(n))) for n in range(20)]
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join()
    assert {str(n) for n in range(20)} == {event.message for event in store.events(pod.ref)}


def test_a_state_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """The error names the folder (code 5)."""
    (tmp_path / "file").write_text("")
    store = Manifests(tmp_path, tmp_path / "file" / "state")
    with pytest.raises(CniError, match="state") as caught:
        store.event(Pod("default", "p1"), "Normal", "R", "m")
    assert int(Code.IO) == caught.value.code


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NEAR_MISSES = st.fixed_dictionaries(
    {},
    optional={
        "apiVersion": st.sampled_from(["v1", "k8s.cni.cncf.io/v1"]) | VALUES,
        "kind": st.sampled_from(["Pod", "NetworkAttachmentDefinition", "List", "PodList"]) | VALUES,
        "metadata": st.fixed_dictionaries(
            {}, optional={"name": st.just("x") | VALUES, "namespace": VALUES, "annotations": VALUES, "uid": VALUES}
        )
        | VALUES,
        "spec": st.fixed_dictionaries({}, optional={"config": VALUES, "nodeName": VALUES}) | VALUES,
        "items": st.lists(VALUES, max_size=2) | VALUES,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=NEAR_MISSES, suffix=st.sampled_from([".json", ".yaml"]))
def test_any_object_is_read_or_refused_cleanly(tmp_path: Path, body: dict[str, object], suffix: str) -> None:
    """Whatever an object looks like, only clean errors come out."""
    ask(tmp_path, json.dumps(body).encode(), suffix)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60) | st.text(alphabet="x:-[]{}&*!|>'\"\\#%@\n \tkind", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_cleanly(tmp_path: Path, raw: bytes) -> None:
    """Whatever bytes are in a file, only clean errors come out."""
    for suffix in (".json", ".yaml"):
        ask(tmp_path, b"x" + raw, suffix)


def ask(tmp_path: Path, raw: bytes, suffix: str) -> None:
    """Ask everything of a store over one file."""
    path = tmp_path / f"any{suffix}"
    path.write_bytes(raw)
    store = Manifests(path, tmp_path / "state")
    assert all(isinstance(trouble, str) for trouble in store.problems())
    assert len(store.pods()) + len(store.definitions()) <= len(raw)
    for verb in (lambda: store.pod(PodRef("default", "x")), lambda: store.definition("default", "x")):
        try:
            verb()
        except CniError as trouble:
            assert trouble.code > 0
