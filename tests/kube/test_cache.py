# SPDX-License-Identifier: Apache-2.0
"""Which of two readings counts when a copy hears of an object from the watch and from a live read."""

import pytest

from multus_py.kube.cache import Cache
from multus_py.kube.store import Pod

Told = list[tuple[Pod | None, Pod | None]]


def pod(uid: str, version: int, name: str = "p") -> Pod:
    """Return a pod as it was at *version*."""
    return Pod("mpt", name, uid, version=version)


@pytest.fixture
def told() -> Told:
    """Give the list of what the copy told."""
    return []


@pytest.fixture
def copy(told: Told) -> Cache[Pod]:
    """Give a copy as of version 10 with one pod in it."""
    made: Cache[Pod] = Cache(lambda old, new: told.append((old, new)))
    made.replace([pod("a", 5)], 10)
    told.clear()
    return made


def uid(copy: Cache[Pod]) -> str | None:
    """Return the uid of the pod in the copy."""
    found = copy.get("mpt", "p")
    return found.uid if found else None


def test_a_newer_reading_counts_at_once(copy: Cache[Pod]) -> None:
    """What was read live is answered from then on, alone and in the list."""
    copy.put(pod("b", 12))
    assert uid(copy) == "b"
    assert [each.uid for each in copy.all()] == ["b"]


def test_a_reading_that_the_watch_has_passed_is_dropped(copy: Cache[Pod]) -> None:
    """A live read that comes back late brings no deleted pod back to life."""
    copy.remove("mpt", "p", 11)
    copy.put(pod("a", 11))
    assert uid(copy) is None


def test_of_two_readings_the_newer_counts(copy: Cache[Pod]) -> None:
    """Live reads may come back in another order than they were sent."""
    copy.put(pod("c", 14))
    copy.put(pod("b", 12))
    assert uid(copy) == "c"


def test_old_news_from_the_watch_does_not_hide_a_newer_reading(copy: Cache[Pod]) -> None:
    """The late events of the pod before are told, and the answer stays the new pod."""
    copy.put(pod("b", 20))
    copy.upsert(pod("a", 11))
    copy.remove("mpt", "p", 18)
    assert uid(copy) == "b"
    copy.upsert(pod("b", 20))
    assert uid(copy) == "b"


def test_the_watch_tells_of_a_deletion_that_a_reading_missed(copy: Cache[Pod]) -> None:
    """A pod that was read live and then deleted is gone."""
    copy.put(pod("b", 20))
    copy.remove("mpt", "p", 21)
    assert uid(copy) is None


@pytest.mark.parametrize("version", [20, 25])
def test_a_bookmark_beyond_a_reading_leaves_what_the_watch_told(copy: Cache[Pod], version: int) -> None:
    """Once the watch is past the reading only the watch counts: no pod stays that it never told of."""
    copy.remove("mpt", "p", 11)
    copy.put(pod("b", 20))
    copy.advance(version)
    assert uid(copy) is None


def test_a_list_leaves_a_reading_that_is_newer(copy: Cache[Pod]) -> None:
    """What was read while the pages of an older list came in is kept."""
    copy.begin_list()
    copy.put(pod("b", 31))
    copy.replace([], 30)
    assert uid(copy) == "b"


def test_a_list_drops_what_it_does_not_have(copy: Cache[Pod]) -> None:
    """A pod whose deletion nobody told is gone with the next list, also in a cluster that was set back in time."""
    copy.put(pod("b", 900))
    copy.begin_list()
    copy.replace([], 4)
    assert uid(copy) is None


def test_changes_are_told_by_the_watch_alone_and_once(copy: Cache[Pod], told: Told) -> None:
    """A live read tells nobody; the event that follows does, and one that changes nothing we keep does not."""
    new = pod("a", 12)
    changed = Pod("mpt", "p", "a", {"k8s.v1.cni.cncf.io/networks": "x"}, version=13)
    copy.put(changed)
    assert told == []
    copy.upsert(new)
    assert told == []
    copy.upsert(changed)
    assert told == [(new, changed)]
    copy.remove("mpt", "p", 14)
    copy.remove("mpt", "p", 14)
    assert told[1:] == [(changed, None)]


def test_a_list_tells_the_difference(copy: Cache[Pod], told: Told) -> None:
    """Gone, new and changed pods are told, the same ones are not."""
    copy.replace([pod("a", 5), pod("x", 6, "q")], 20)
    assert told == [(None, pod("x", 6, "q"))]
    copy.replace([pod("b", 25)], 30)
    assert sorted(told[1:], key=str) == sorted([(pod("x", 6, "q"), None), (pod("a", 5), pod("b", 25))], key=str)


def test_versions_that_are_no_numbers_do_no_harm() -> None:
    """Where versions cannot be compared a live reading is not kept, and the watch counts."""
    copy: Cache[Pod] = Cache()
    copy.replace([pod("a", 0)], 0)
    copy.put(pod("b", 0))
    assert uid(copy) == "a"
    copy.upsert(pod("c", 0))
    assert uid(copy) == "c"
