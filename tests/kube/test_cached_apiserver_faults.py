# SPDX-License-Identifier: Apache-2.0
"""What becomes of the watched store when the server, the way to it or the credentials misbehave."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cluster import kubeconfig_text
from misbehaving import (
    Script,
    Step,
    break_off,
    end,
    failure,
    fed,
    hold,
    playing,
    reply,
    reset,
    route,
    routed,
    silence,
    streamed,
)
from waiting import eventually

from multus_py.cni.errors import CniError
from multus_py.kube.cached_apiserver import CachedApiServer
from multus_py.kube.reflector import Timing
from multus_py.kube.store import NETWORK_STATUS, NETWORKS, Claim, NotFound, Pod, PodRef, Unavailable

QUICK = Timing(stale_after=0.3, first_pause=0.02, longest_pause=0.1, read_timeout=10, watch_timeout=60, page_timeout=5)
PATIENT = Timing(stale_after=60, first_pause=0.02, longest_pause=0.1, read_timeout=10, watch_timeout=60, page_timeout=5)
REF = PodRef("mpt", "p", "u1")
GONE = failure(410, "Expired", "too old resource version")
UNVERSIONED = reply(200, {"metadata": {}, "items": []})
GONE_EVENT = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}

Connect = Callable[..., CachedApiServer]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Give a started store for a script; all are closed in the end, and none leaves a thread behind."""
    made: list[CachedApiServer] = []

    def store(script: Script, timing: Timing = PATIENT, deadline: float = 5, **user: object) -> CachedApiServer:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(kubeconfig_text(script.url, user or {"token": "t"}))
        made.append(CachedApiServer(str(kubeconfig), deadline, "node-7", timing))
        return made[-1]

    yield store
    for each in made:
        each.close()
    assert [] == own_threads()


def own_threads() -> list[str]:
    """Return the names of the threads that watched stores run."""
    return [each.name for each in threading.enumerate() if each.name.startswith(("watch the", "tell Events"))]


def pod(name: str = "p", uid: str = "u1", version: int = 1, networks: str = "net", node: str = "node-7") -> Any:
    """Return the pod as an API server writes it."""
    about = {"namespace": "mpt", "name": name, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": {**about, "annotations": {NETWORKS: networks, "other": "x"}}, "spec": {"nodeName": node}}


def definition(name: str, config: object = "{}", version: int = 1) -> Any:
    """Return the definition as an API server writes it."""
    return {
        "metadata": {"namespace": "mpt", "name": name, "resourceVersion": str(version)},
        "spec": {"config": config},
    }


def listed(version: int, *items: Any, following: str = "") -> Step:
    """Answer a list, or a page of it."""
    return reply(200, {"metadata": {"resourceVersion": str(version), "continue": following}, "items": items})


def event(kind: str, body: Any) -> dict[str, Any]:
    """Return one event of a watch."""
    return {"type": kind, "object": body}


def bookmark(version: int) -> dict[str, Any]:
    """Return the event that only tells how far the watch has come."""
    return event("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})


def asked(script: Script, kind: str) -> list[dict[str, str]]:
    """Return the queries of the requests of one kind (as `routed` calls them)."""
    found = [path for _, path, _, _ in list(script.seen) if route(path) == kind]
    return [{key: value[0] for key, value in parse_qs(urlsplit(path).query).items()} for path in found]


def started(store: CachedApiServer) -> CachedApiServer:
    """Start the store and wait until it is ready."""
    store.start()
    eventually(store.ready)
    return store


def uid(store: CachedApiServer) -> str:
    """Return the uid of the pod, whichever it is."""
    return store.pod(PodRef("mpt", "p")).uid


def test_lists_come_in_pages_and_then_answer_without_requests(connect: Connect) -> None:
    """Only pods of our node are asked for; after the last page both kinds are answered from memory."""
    pods = [listed(7, pod(), following="next page"), listed(7, pod("q", "u2"))]
    with playing(routed(pods=pods, definitions=[listed(9, definition("net", "{x}"))])) as script:
        store = connect(script)
        assert not store.ready()
        assert store.age() == float("inf")
        started(store)
        assert ["u1", "u2"] == sorted(each.uid for each in store.pods_here())
        assert store.pod(REF).annotations == {NETWORKS: "net"}
        assert store.definition("mpt", "net").config == "{x}"
        assert store.age() < 5
        assert [] == asked(script, "other")
        first, second = asked(script, "pods")
        assert first["fieldSelector"] == "spec.nodeName=node-7"
        assert "continue" not in first
        assert second["continue"] == "next page"
        eventually(lambda: bool(asked(script, "watch_pods")))
        watch = asked(script, "watch_pods")[0]
        assert ("7", "true", "spec.nodeName=node-7") == (
            watch["resourceVersion"],
            watch["allowWatchBookmarks"],
            watch["fieldSelector"],
        )
        assert 60 <= int(watch["timeoutSeconds"]) <= 120


def test_all_that_is_kept_of_a_pod_is_read(connect: Connect) -> None:
    """Phase, deletion, containers and resource claims are there, from the watch and from a live read alike."""
    body = pod()
    body["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z"
    body["spec"] |= {
        "containers": [{"name": "main"}, {"name": "side"}],
        "initContainers": [{"name": "init"}],
        "hostNetwork": True,
        "resourceClaims": [
            {"name": "a", "resourceClaimName": "shared"},
            {"name": "b", "resourceClaimTemplateName": "t"},
        ],
    }
    body["status"] = {"phase": "Running", "resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-x1"}]}
    other = json.loads(json.dumps(body))
    other["metadata"] |= {"name": "q"}
    with playing(routed(pods=[listed(1, body)], other=[reply(200, other)])) as script:
        store = started(connect(script))
        for found in (store.pod(REF), store.pod(PodRef("mpt", "q"))):
            assert (True, True, "Running", "node-7") == (found.deleted, found.host_network, found.phase, found.node)
            assert ("main", "side", "init") == found.containers
            assert (Claim("a", "shared"), Claim("b", "p-b-x1")) == found.claims


def test_changes_are_followed_and_told(connect: Connect) -> None:
    """A subscriber hears of each change in order, and the copy has it."""
    lines: SimpleQueue[object] = SimpleQueue()
    told: SimpleQueue[tuple[Pod | None, Pod | None]] = SimpleQueue()
    with playing(routed(pods=[listed(1, pod())], watch_pods=[fed(lines)])) as script:
        store = connect(script)
        store.subscribe(lambda old, new: told.put((old, new)))
        started(store)
        old, new = told.get(timeout=5)
        assert (None, "u1") == (old, new and new.uid)
        lines.put(event("ADDED", pod("q", "u2", 2)))
        assert "u2" == (told.get(timeout=5)[1] or REF).uid
        lines.put(event("MODIFIED", pod("p", "u1", 3, "net,more")))
        old, new = told.get(timeout=5)
        assert ("net", "net,more") == tuple(each.annotations[NETWORKS] for each in (old, new) if each)
        lines.put(event("DELETED", pod("p", "u1", 4)))
        old, new = told.get(timeout=5)
        assert ("u1", None) == (old and old.uid, new)
        assert ["q"] == [each.name for each in store.pods_here()]
        lines.put(hold)


def test_changes_of_definitions_are_told(connect: Connect) -> None:
    """Who waits for a definition hears of it when the copy has it."""
    lines: SimpleQueue[object] = SimpleQueue()
    told: SimpleQueue[tuple[str, str]] = SimpleQueue()
    with playing(routed(watch_definitions=[fed(lines)])) as script:
        store = connect(script)
        store.subscribe(
            lambda old, new: None, lambda old, new: told.put((old.config if old else "-", new.config if new else "-"))
        )
        started(store)
        for line in (event("ADDED", definition("late", "{1}", 2)), event("MODIFIED", definition("late", "{2}", 3))):
            lines.put(line)
        lines.put(event("DELETED", definition("late", "{2}", 4)))
        assert [("-", "{1}"), ("{1}", "{2}"), ("{2}", "-")] == [told.get(timeout=5) for _ in range(3)]
        lines.put(hold)


def test_a_subscriber_that_fails_disturbs_nobody(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged; the next subscriber and the watch go on."""
    told: SimpleQueue[Pod | None] = SimpleQueue()
    watch = [streamed(event("ADDED", pod("q", "u2", 2)), event("ADDED", pod("r", "u3", 3)))]
    with playing(routed(watch_pods=watch)) as script:
        store = connect(script)
        store.subscribe(lambda old, new: (_ for _ in ()).throw(RuntimeError("mine")))
        store.subscribe(lambda old, new: told.put(new))
        started(store)
        assert ["u2", "u3"] == [(told.get(timeout=5) or REF).uid for _ in range(2)]
    assert any("subscriber" in record.message for record in caplog.records)


@pytest.mark.parametrize("broken", [end, reset, break_off])
def test_a_watch_that_breaks_goes_on_where_it_was(connect: Connect, broken: Step) -> None:
    """After its regular end, a reset and a broken chunk the next watch begins at the last version, without a list."""
    lines: SimpleQueue[object] = SimpleQueue()
    with playing(routed(pods=[listed(3)], watch_pods=[fed(lines), streamed(bookmark(10))])) as script:
        store = started(connect(script))
        lines.put(bookmark(9))
        lines.put(event("ADDED", pod("q", "u2", 9)))
        eventually(lambda: bool(store.pods_here()))  # a reset takes away what was sent and not yet read
        lines.put(broken)
        eventually(lambda: len(asked(script, "watch_pods")) == 2)
        assert ["3", "9"] == [query["resourceVersion"] for query in asked(script, "watch_pods")]
        assert 1 == len(asked(script, "pods"))
        assert "u2" == store.pod(PodRef("mpt", "q")).uid


def test_half_a_line_is_not_an_event(connect: Connect) -> None:
    """A line that was cut is asked for again and taken once, as a whole."""
    change = event("MODIFIED", pod("p", "u1", 6, "whole"))
    half = json.dumps(change).encode()[:-20]
    watch = [streamed(bookmark(5), half, then=end), streamed(change)]
    with playing(routed(pods=[listed(3, pod())], watch_pods=watch)) as script:
        store = started(connect(script))
        eventually(lambda: store.pod(REF).annotations[NETWORKS] == "whole")
        assert ["3", "5"] == [query["resourceVersion"] for query in asked(script, "watch_pods")]


def test_one_event_may_come_in_many_pieces_and_many_in_one(connect: Connect) -> None:
    """Lines have nothing to do with chunks."""
    lines = b"".join(json.dumps(event("ADDED", pod(f"q{n}", f"u{n}", 5 + n))).encode() + b"\n" for n in range(3))
    pieces = [lines[at : at + 7] for at in range(0, len(lines) - 40, 7)]
    with playing(routed(watch_pods=[streamed(*pieces, lines[len(pieces) * 7 :])])) as script:
        store = started(connect(script))
        eventually(lambda: {each.uid for each in store.pods_here()} == {"u0", "u1", "u2"})


@pytest.mark.parametrize("refusal", [GONE, streamed(GONE_EVENT), streamed(bookmark(4), GONE_EVENT)])
def test_a_version_that_is_too_old_means_a_new_list(connect: Connect, refusal: Step) -> None:
    """410 as the status and as an event inside the stream: what was deleted meanwhile is gone, what came is there."""
    pods = [listed(3, pod()), listed(8, pod("q", "u2"))]
    with playing(routed(pods=pods, watch_pods=[refusal, streamed(bookmark(9))])) as script:
        store = started(connect(script))
        eventually(lambda: [each.name for each in store.pods_here()] == ["q"])
        eventually(lambda: asked(script, "watch_pods")[-1]["resourceVersion"] == "8")


def test_a_list_that_expires_between_its_pages_is_begun_again(connect: Connect) -> None:
    """410 for a page leaves no half list behind."""
    pods = [listed(3, pod(), following="late"), GONE, listed(8, pod("q", "u2"))]
    with playing(routed(pods=pods)) as script:
        store = started(connect(script))
        assert ["q"] == [each.name for each in store.pods_here()]


def test_a_pod_recreated_while_nobody_watched_is_told_as_two(connect: Connect) -> None:
    """After a list that has the name with another uid the old pod went, the new one came, and is what is answered."""
    told: SimpleQueue[tuple[Pod | None, Pod | None]] = SimpleQueue()
    pods = [listed(3, pod()), listed(8, pod("p", "u2", 7, "new"))]
    with playing(routed(pods=pods, watch_pods=[streamed(bookmark(4), GONE_EVENT), streamed()])) as script:
        store = connect(script)
        store.subscribe(lambda old, new: told.put((old, new)))
        started(store)
        changes = [told.get(timeout=5) for _ in range(3)]
        assert [(None, "u1"), ("u1", None), (None, "u2")] == [
            (old and old.uid, new and new.uid) for old, new in changes
        ]
        assert "new" == store.pod(PodRef("mpt", "p", "u2")).annotations[NETWORKS]
        assert [] == asked(script, "other")


def test_bookmarks_alone_keep_the_version_and_the_age(connect: Connect) -> None:
    """A quiet cluster moves the version on and is heard of."""
    lines: SimpleQueue[object] = SimpleQueue()
    with playing(routed(watch_pods=[fed(lines), streamed()])) as script:
        store = started(connect(script))
        for version in range(50, 60):
            lines.put(bookmark(version))
        lines.put(end)
        eventually(lambda: len(asked(script, "watch_pods")) == 2)
        assert "59" == asked(script, "watch_pods")[1]["resourceVersion"]
        assert store.age() < 5


def test_while_the_list_is_slow_verbs_read_live(connect: Connect) -> None:
    """Before the first list is complete the store is not ready, and answers all the same."""
    go = threading.Event()

    def slow(handler: Any) -> None:
        go.wait(20)
        listed(9, pod("p", "u1", 2, "from the list"))(handler)

    with playing(routed(pods=[slow], other=[reply(200, pod("p", "u1", 2, "live"))])) as script:
        store = connect(script)
        store.start()
        eventually(lambda: bool(asked(script, "pods")))
        assert "live" == store.pod(REF).annotations[NETWORKS]
        assert not store.ready()
        go.set()
        eventually(store.ready)
        assert "from the list" == store.pod(REF).annotations[NETWORKS]


def test_a_server_that_is_gone_for_a_while_is_found_again(connect: Connect) -> None:
    """The copy answers for the patience and, when the server gives no answer, after it; later all is current again."""
    with playing(routed(pods=[listed(3, pod())], definitions=[listed(3, definition("net", "{old}"))])) as script:
        store = started(connect(script, QUICK, deadline=0.5))
        port = urlsplit(script.url).port or 0
        eventually(lambda: bool(asked(script, "watch_pods") and asked(script, "watch_definitions")))
        told: SimpleQueue[Pod | None] = SimpleQueue()
        store.subscribe(lambda old, new: told.put(new))
    assert ["u1"] == [each.uid for each in store.pods_here()]
    threading.Event().wait(2 * QUICK.stale_after)
    assert "u1" == store.pod(REF).uid
    assert "{old}" == store.definition("mpt", "net").config
    with pytest.raises(Unavailable):
        store.pods_here()
    with pytest.raises(Unavailable):
        store.pod(PodRef("mpt", "unknown"))
    watch = [streamed(event("MODIFIED", pod("p", "u1", 5, "back")))]
    with playing(routed(watch_pods=watch), port=port) as script:
        assert "back" == (told.get(timeout=5) or Pod("", "")).annotations[NETWORKS]
        assert "back" == store.pod(REF).annotations[NETWORKS]
        assert [] == asked(script, "pods")


def test_watches_that_open_and_fail_at_once_do_not_keep_the_copy_trusted(connect: Connect) -> None:
    """A server that grants every watch and then tells an error has not shown that the copy is right."""
    failing = streamed({"type": "ERROR", "object": {"code": 500, "message": "etcd is down"}})
    live = reply(200, pod(networks="live"))
    with playing(routed(pods=[listed(3, pod())], watch_pods=[failing], other=[live])) as script:
        store = started(connect(script, QUICK))
        eventually(lambda: store.pod(REF).annotations[NETWORKS] == "live")


def test_a_rotated_token_is_read_again_by_the_watches(connect: Connect, tmp_path: Path) -> None:
    """401 for a list, and for a watch, is answered with the new content of the token file."""
    token = tmp_path / "token"
    token.write_text("one\n")

    def refused(fresh: str) -> Step:
        def step(handler: Any) -> None:
            token.write_text(fresh)
            failure(401, "Unauthorized", "Unauthorized")(handler)

        return step

    pods = [refused("two"), listed(3, pod())]
    with playing(routed(pods=pods, watch_pods=[refused("three"), streamed(bookmark(4))])) as script:
        store = started(connect(script, tokenFile=str(token)))
        eventually(lambda: len(asked(script, "watch_pods")) == 2)
        sent = [header for _, path, header, _ in script.seen if route(path) == "watch_pods"]
        assert "Bearer three" == sent[-1]
        assert store.token_expiry() == 0


def test_the_expiry_of_the_token_is_known(connect: Connect) -> None:
    """The claim "exp" of a JSON Web Token is told."""
    with playing(routed()) as script:
        store = started(connect(script, token="e30.eyJleHAiOiAxOTAwMDAwMDAwfQ.c2ln"))
        assert store.token_expiry() == 1_900_000_000


@pytest.mark.parametrize(
    "line",
    [
        b"<html>\n",
        b"[]\n",
        b"\n",
        b"[" * 50_000 + b"\n",
        b"\xff\xfe\n",
        {"type": "ADDED"},
        {"type": "ADDED", "object": 3},
        {"type": "ADDED", "object": {"metadata": "x"}},
        {"type": "ADDED", "object": {"metadata": {"name": "x"}}},
        {"type": "ERROR", "object": {"code": 500, "message": "etcd is down"}},
    ],
)
def test_what_is_no_event_ends_the_watch_and_not_the_store(connect: Connect, line: object) -> None:
    """The watch is opened again from the last good version."""
    watch = [streamed(bookmark(5), line), streamed(event("ADDED", pod("q", "u2", 6)))]
    with playing(routed(watch_pods=watch)) as script:
        store = started(connect(script))
        eventually(lambda: [each.uid for each in store.pods_here()] == ["u2"])
        assert ["1", "5"] == [query["resourceVersion"] for query in asked(script, "watch_pods")]


@pytest.mark.parametrize(
    "answer", [reply(200, {}), reply(200, {"items": {}}), reply(200, b"x"), UNVERSIONED, reply(403, {})]
)
def test_what_is_no_list_is_asked_for_again(connect: Connect, answer: Step) -> None:
    """A proxy's page, a list without a version and a refusal leave the store not ready, until the list is right."""
    with playing(routed(pods=[answer, answer, listed(3, pod())])) as script:
        store = started(connect(script))
        eventually(lambda: bool(store.pods_here()))


def test_a_malformed_definition_hides_nothing_else(connect: Connect) -> None:
    """It is refused by itself, with the reason, when it is asked for."""
    bad = definition("bad", 3)
    pages = [listed(3, definition("good", "{}"), bad, {"metadata": 1})]
    with playing(routed(definitions=pages, other=[reply(200, bad)])) as script:
        store = started(connect(script))
        assert "{}" == store.definition("mpt", "good").config
        with pytest.raises(CniError, match="not a string"):
            store.definition("mpt", "bad")


def test_a_server_that_ends_every_watch_at_once_is_not_asked_in_a_loop(connect: Connect) -> None:
    """The pauses grow when watches end before their first word."""
    timing = Timing(stale_after=1, first_pause=0.1, longest_pause=30)
    with playing(routed(watch_pods=[streamed(then=end)], watch_definitions=[streamed(GONE_EVENT)])) as script:
        started(connect(script, timing))
        threading.Event().wait(1.5)
        assert 2 <= len(asked(script, "watch_pods")) <= 8
        assert 2 <= len(asked(script, "definitions")) <= 8


def test_a_wait_that_the_server_asks_for_is_kept(connect: Connect) -> None:
    """429 with Retry-After is not tried again before that."""
    with playing(routed(pods=[reply(429, {}, Retry_After="1"), listed(3)])) as script:
        timing = Timing(first_pause=0.01, longest_pause=5)
        begun = time.monotonic()
        started(connect(script, timing))
        assert time.monotonic() - begun >= 1


def test_a_storm_of_updates_ends_with_the_last_one(connect: Connect) -> None:
    """5,000 changes of a hundred pods leave each as it was told last, and every change was told."""
    told: list[int] = []
    lines = [event("MODIFIED", pod(f"p{n % 100}", f"u{n % 100}", n + 10, f"net-{n}")) for n in range(5000)]
    with playing(routed(watch_pods=[streamed(*lines)])) as script:
        store = connect(script)
        store.subscribe(lambda old, new: told.append(new.version if new else 0))
        started(store)
        eventually(lambda: len(told) == 5000, 30)
        assert told == list(range(10, 5010))
        assert {f"net-{n}" for n in range(4900, 5000)} == {each.annotations[NETWORKS] for each in store.pods_here()}


def test_another_uid_than_the_copy_has_is_read_live_once(connect: Connect) -> None:
    """The fresh pod is the answer at once and from then on; the old one's late events do not bring it back."""
    lines: SimpleQueue[object] = SimpleQueue()
    fresh = reply(200, pod("p", "u2", 20, "fresh"))
    with playing(routed(pods=[listed(10, pod())], watch_pods=[fed(lines)], other=[fresh])) as script:
        store = started(connect(script))
        assert "u1" == uid(store)
        for _ in range(3):
            assert "fresh" == store.pod(PodRef("mpt", "p", "u2")).annotations[NETWORKS]
        assert 1 == len(asked(script, "other"))
        lines.put(event("DELETED", pod("p", "u1", 19)))
        lines.put(event("ADDED", pod("q", "u3", 19)))
        eventually(lambda: len(store.pods_here()) == 2)
        assert "u2" == uid(store)
        lines.put(event("DELETED", pod("p", "u2", 21)))
        eventually(lambda: len(store.pods_here()) == 1)
        lines.put(hold)


def test_a_pod_of_another_node_is_not_kept(connect: Connect) -> None:
    """It is answered, and read again each time: no watch of ours would tell that it changed."""
    with playing(routed(other=[reply(200, pod(node="elsewhere", version=5))])) as script:
        store = started(connect(script))
        assert ["u1", "u1"] == [store.pod(REF).uid, store.pod(REF).uid]
        assert [] == store.pods_here()
        assert 2 == len(asked(script, "other"))


def test_a_definition_that_the_copy_lacks_is_read_live_once(connect: Connect) -> None:
    """A definition made a moment ago is found before the watch tells of it; a missing one is NotFound."""
    with playing(routed(other=[reply(200, definition("new", "{n}", 5)), failure(404, "NotFound", "no")])) as script:
        store = started(connect(script))
        assert ["{n}", "{n}"] == [store.definition("mpt", "new").config for _ in range(2)]
        with pytest.raises(NotFound):
            store.definition("mpt", "absent")


def test_a_published_status_is_read_back_at_once(connect: Connect) -> None:
    """The watch has told nothing yet, and the pod has the annotation."""
    after = pod(version=5)
    after["metadata"]["annotations"][NETWORK_STATUS] = "[1]"
    with playing(routed(pods=[listed(3, pod())], other=[reply(200, after)])) as script:
        store = started(connect(script))
        store.publish_status(store.pod(REF), "[1]")
        assert "[1]" == store.pod(REF).annotations[NETWORK_STATUS]
        assert 1 == len(asked(script, "other"))


def test_events_never_wait_and_the_oldest_is_dropped(connect: Connect) -> None:
    """With a server that takes none, telling 1,500 Events takes no time, keeps the newest and counts the others."""
    with playing(routed(other=[silence])) as script:
        store = started(connect(script))
        begun = time.monotonic()
        for n in range(1500):
            store.event(Pod("mpt", "p", "u1"), "Normal", f"R{n}", "m")
        assert time.monotonic() - begun < 2
        assert 499 <= store.events.lost <= 500


def test_events_are_told_in_order_and_flushed_at_the_end(connect: Connect) -> None:
    """Closing sends what waits; each Event has the time at which it was told."""
    with playing(routed(other=[reply(201, pod())])) as script:
        store = started(connect(script))
        for n in range(20):
            store.event(Pod("mpt", "p", "u1"), "Normal", f"R{n}", "m")
        store.close()
        assert [f"R{n}" for n in range(20)] == [body["reason"] for _, _, _, body in script.seen if body]
        assert store.events.lost == 0


def test_events_that_are_refused_are_counted(connect: Connect) -> None:
    """One that cannot be told is lost alone."""
    with playing(routed(other=[reply(403, {}), reply(201, pod())])) as script:
        store = started(connect(script))
        for n in range(2):
            store.event(Pod("mpt", "p", "u1"), "Normal", f"R{n}", "m")
        assert store.events.flush(5)
        assert store.events.lost == 1


@pytest.mark.parametrize("stuck", [{}, {"pods": [silence]}, {"watch_pods": [silence]}, {"other": [silence]}])
def test_closing_ends_threads_and_sockets(connect: Connect, stuck: dict[str, list[Step]]) -> None:
    """Whatever a thread waits for, it ends within two seconds or so, and its connection is closed."""
    with playing(routed(**stuck)) as script:
        before = own_sockets(script)
        store = connect(script)
        store.start()
        store.event(Pod("mpt", "p", "u1"), "Normal", "R", "m")
        eventually(lambda: len(own_sockets(script)) >= 2)
        begun = time.monotonic()
        store.close()
        assert time.monotonic() - begun < 2.5
        assert [] == own_threads()
        eventually(lambda: own_sockets(script) == before, 3)


def own_sockets(script: Script) -> set[str]:
    """Return the client sockets of this process that are connected to the script's port."""
    port = f":{urlsplit(script.url).port:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[2].endswith(port)}
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(str(each.readlink()))
    return {each for each in found if each.removeprefix("socket:[").removesuffix("]") in inodes}


def test_a_store_that_was_never_started_can_be_closed(connect: Connect) -> None:
    """Nothing is waited for."""
    with playing(routed()) as script:
        begun = time.monotonic()
        connect(script).close()
        assert time.monotonic() - begun < 1
