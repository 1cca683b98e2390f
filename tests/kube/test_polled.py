# SPDX-License-Identifier: Apache-2.0
"""A folder of manifests that is followed: each change is told, and a folder that stays as it is costs nothing."""

import json
from pathlib import Path
from queue import SimpleQueue

import pytest

from multus_py.kube import manifests
from multus_py.kube.polled import Polled
from multus_py.kube.store import NETWORKS


def put(folder: Path, name: str, networks: str = "", config: str | None = None) -> None:
    """Write a pod, or with *config* a definition."""
    about = {"name": name, "annotations": {NETWORKS: networks}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": about}
    kind = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "spec": {"config": config}}
    (folder / f"{name}.json").write_text(json.dumps(pod if config is None else {**pod, **kind}))


@pytest.fixture
def store(tmp_path: Path) -> Polled:
    """Return a store over an empty folder `in`."""
    (tmp_path / "in").mkdir()
    return Polled(tmp_path / "in", tmp_path / "state", pause=0.01)


def test_each_change_is_told(store: Polled, tmp_path: Path) -> None:
    """What comes, changes and goes, of pods and of definitions; a subscriber that fails disturbs nobody."""
    told: list[tuple[str, str, str]] = []
    store.subscribe(lambda old, new: (_ for _ in ()).throw(RuntimeError("mine")))
    store.subscribe(
        lambda old, new: told.append(
            ("pod", old.annotations[NETWORKS] if old else "-", new.annotations[NETWORKS] if new else "-")
        ),
        lambda old, new: told.append(("definition", old.config if old else "-", new.config if new else "-")),
    )
    folder = tmp_path / "in"
    put(folder, "p", "a")
    store.check()
    put(folder, "p", "a,b")
    put(folder, "d", config="{}")
    store.check()
    store.check()
    (folder / "d.json").write_text("{ half")
    store.check()
    for path in folder.iterdir():
        path.unlink()
    store.check()
    assert [
        ("pod", "-", "a"),
        ("definition", "-", "{}"),
        ("pod", "a", "a,b"),
        ("definition", "{}", "-"),
        ("pod", "a,b", "-"),
    ] == told


def test_a_folder_that_stays_as_it_is_is_not_read(
    store: Polled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look then parses nothing and opens nothing."""
    put(tmp_path / "in", "p", "a")
    store.check()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setattr(manifests, "documents", lambda *_, **__: pytest.fail("it was parsed"))
    store.check()


def test_it_looks_until_it_is_closed(store: Polled, tmp_path: Path) -> None:
    """By itself, from time to time; and every pod of the folder is here."""
    told: SimpleQueue[str] = SimpleQueue()
    store.subscribe(lambda old, new: told.put(new.name if new else "-"))
    store.start()
    put(tmp_path / "in", "p")
    assert "p" == told.get(timeout=5)
    assert ["p"] == [pod.name for pod in store.pods_here()]
    store.close()
