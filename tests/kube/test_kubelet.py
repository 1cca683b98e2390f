# SPDX-License-Identifier: Apache-2.0
"""Asking kubelet: the API over a real socket, whatever state it is in, and the checkpoint when it does not answer."""

import json
import socket
import time
from dataclasses import dataclass, field

import grpc
import pytest
from lister import Lister, listening, message, pod

from multus_py.cni.errors import CniError
from multus_py.kube.kubelet import Kubelet
from multus_py.kube.store import Device, PodRef

VF = "intel.com/vf"
REF = PodRef("default", "p", "uid-1")
OTHER = pod("other", {"c": {VF: ["0000:09:00.0"]}})
MINE = pod("p", {"app": {VF: ["0000:01:00.2", "0000:01:00.1"], "x.io/y": ["a"]}, "side": {VF: ["0000:01:00.3"]}})
GIVEN = [
    Device(VF, "0000:01:00.2", ("app",)), Device(VF, "0000:01:00.1", ("app",)),
    Device("x.io/y", "a", ("app",)), Device(VF, "0000:01:00.3", ("side",)),
]  # fmt: skip
BUSY, AWAY = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


@dataclass
class Clock:
    """A clock that only moves when somebody sleeps; *on_sleep* may change the world meanwhile."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)
    on_sleep: object = None

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        if callable(self.on_sleep):
            self.on_sleep(len(self.slept))


def asked(lister: Lister, clock: Clock | None = None, deadline: float = 10, ref: PodRef = REF) -> list[Device]:
    """Ask kubelet; the clock stands still unless there is one."""
    clock = clock or Clock()
    return list(Kubelet(lister.socket, deadline, clock.sleep, lambda: clock.now).devices(ref))


def refusal(*args: object, **more: object) -> CniError:
    """Return the error that asking ends in."""
    with pytest.raises(CniError) as caught:
        asked(*args, **more)
    return caught.value


def write_checkpoint(lister: Lister, *entries: dict[str, object]) -> None:
    """Write kubelet's checkpoint with these entries."""
    body = {"Data": {"PodDeviceEntries": list(entries), "RegisteredDevices": {}}, "Checksum": 1}
    lister.checkpoint.write_text(json.dumps(body))


def entry(device_ids: object, uid: str = "uid-1", container: str = "app") -> dict[str, object]:
    """Return an entry of the checkpoint."""
    return {"PodUID": uid, "ContainerName": container, "ResourceName": VF, "DeviceIDs": device_ids, "AllocResp": ""}


def test_one_pod_is_asked_for_where_kubelet_can():
    """With Get there is one question, which names the pod, and no list of the whole node."""
    with listening(Get=MINE, List=OTHER + MINE) as lister:
        assert GIVEN == asked(lister)
        assert (["Get"], [message((1, "p"), (2, "default"))]) == (lister.asked, lister.requests)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND])
def test_all_are_listed_where_kubelet_cannot_answer_for_one(code):
    """A kubelet with Get switched off, or without it, is asked for the list; other pods' devices are let be."""
    with listening(Get=code, List=OTHER + MINE + pod("p", {"c": {VF: ["b"]}}, "elsewhere")) as lister:
        assert GIVEN == asked(lister)
        assert ["Get", "List"] == lister.asked


def test_a_kubelet_that_knows_no_get_is_listed():
    """The server itself answers UNIMPLEMENTED for a verb it does not have."""
    with listening(List=MINE) as lister:
        assert GIVEN == asked(lister)


def test_a_pod_that_kubelet_does_not_know_yet_is_tried_again():
    """Code 11: the runtime comes back."""
    with listening(List=OTHER) as lister:
        error = refusal(lister)
        assert (11, True) == (error.code, "does not know pod default/p" in error.msg)


def test_a_busy_kubelet_is_asked_again_with_growing_pauses():
    """kubelet's rate limit and its start are waited out within the one deadline."""
    clock = Clock()
    with listening(Get=[BUSY, AWAY, BUSY, BUSY, BUSY, BUSY, BUSY, MINE]) as lister:
        assert GIVEN == asked(lister, clock)
    limits = [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert len(limits) == len(clock.slept)
    assert all(limit / 2 <= slept <= limit for slept, limit in zip(clock.slept, limits, strict=True))


def test_a_storm_ends_at_the_deadline():
    """A kubelet that stays busy is left in time, with code 11 and the reason."""
    clock = Clock()
    with listening(Get=BUSY) as lister:
        error = refusal(lister, clock, deadline=3)
    assert (11, True) == (error.code, "RESOURCE_EXHAUSTED" in error.msg)
    assert 1.5 < sum(clock.slept) < 3


def test_after_a_storm_the_checkpoint_answers():
    """What kubelet wrote down is as good as what it would have said."""
    with listening(Get=BUSY) as lister:
        write_checkpoint(lister, entry({"0": ["b"]}), entry({"-1": ["a"]}, container="side"), entry(["z"], uid="other"))
        assert [Device(VF, "b", ("app",)), Device(VF, "a", ("side",))] == asked(lister, Clock(), deadline=1)


def test_a_kubelet_that_starts_anew_is_waited_for():
    """The socket goes away and comes back: the question is asked again and answered."""
    with listening(start=False, Get=MINE) as lister:
        clock = Clock(on_sleep=lambda n: lister.start() if n == 3 else None)
        assert GIVEN == asked(lister, clock)
        assert 3 == len(clock.slept)


def test_a_kubelet_that_stops_in_the_middle_is_waited_for():
    """The connection that the first question used is not trusted after a restart."""
    with listening(Get=[AWAY, MINE]) as lister:

        def restart(n: int) -> None:
            lister.stop()
            lister.start()

        assert GIVEN == asked(lister, Clock(on_sleep=restart))


def test_a_dead_socket_is_waited_for():
    """A socket file that nobody listens on is what a killed kubelet leaves behind."""
    with listening(start=False, Get=MINE) as lister:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(lister.socket))
        assert GIVEN == asked(lister, Clock(on_sleep=lambda n: lister.start() if n == 2 else None))


def test_without_a_socket_the_checkpoint_answers_at_once():
    """A kubelet without the API costs no waiting when it wrote the pod down; old and new form are read."""
    clock = Clock()
    with listening(start=False) as lister:
        write_checkpoint(lister, entry({"0": ["b"], "1": ["c"]}), entry(["old"], container="side"))
        ids = [device.id for device in asked(lister, clock)]
    assert (["b", "c", "old"], []) == (ids, clock.slept)


def test_where_there_is_no_kubelet_nobody_waits(tmp_path):
    """Without kubelet's folder the error comes at once and names the key to set."""
    clock = Clock()
    error = refusal(Lister(tmp_path / "nothing"), clock)
    assert (11, [], True) == (error.code, clock.slept, "podResourcesSocket" in error.details)


DAMAGES = [
    "", "{", "null", "[]", "{}", '{"Data":{}}', '{"Data":{"PodDeviceEntries":[1]}}',
    '{"Data":{"PodDeviceEntries":[{"PodUID":"uid-1","DeviceIDs":5}]}}',
    '{"Data":{"PodDeviceEntries":[{"PodUID":"uid-1","DeviceIDs":{"0":[1]}}]}}',
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_tried_again(damage):
    """kubelet writes it anew: code 11, and nothing is guessed."""
    with listening(start=False) as lister:
        lister.checkpoint.write_text(damage)
        error = refusal(lister)
    assert (11, True) == (error.code, "kubelet_internal_checkpoint" in error.msg)


def test_a_checkpoint_without_the_pod_is_no_answer():
    """Another pod's devices are never taken, nor those of an entry without uid when ours is not known."""
    with listening(Get=BUSY) as lister:
        write_checkpoint(lister, entry(["a"], uid="uid-2"), entry(["b"], uid=""))
        assert "RESOURCE_EXHAUSTED" in refusal(lister, Clock(), deadline=1).msg
        assert "RESOURCE_EXHAUSTED" in refusal(lister, Clock(), deadline=1, ref=PodRef("default", "p")).msg


def test_two_pods_of_one_name_are_told_apart_by_uid():
    """While the pod before is ending kubelet lists both: the checkpoint knows which one is ours."""
    with listening(List=pod("p", {"app": {VF: ["old"]}}) + pod("p", {"app": {VF: ["new"]}})) as lister:
        assert (11, True) == ((error := refusal(lister)).code, "2 pods" in error.msg)
        write_checkpoint(lister, entry(["old"], uid="uid-0"), entry(["new"]))
        assert [Device(VF, "new", ("app",))] == asked(lister)


def test_a_slow_kubelet_is_left_at_the_deadline():
    """The deadline bounds a question that is never answered; then the checkpoint is looked at."""
    with listening() as lister:
        lister.stop()
        lister.replies = {"Get": [lister.silence]}
        lister.start()
        kubelet = Kubelet(lister.socket, 0.5, time.sleep, time.monotonic)
        started = time.monotonic()
        with pytest.raises(CniError) as caught:
            kubelet.devices(REF)
        assert (11, True) == (caught.value.code, "DEADLINE_EXCEEDED" in caught.value.msg)
        assert time.monotonic() - started < 1.5
        write_checkpoint(lister, entry(["a"]))
        assert [Device(VF, "a", ("app",))] == list(kubelet.devices(REF))


def test_a_big_node_is_read_and_a_reply_without_end_is_not():
    """8 MiB of other pods are stepped over; more than 16 MiB are not looked at, and not asked for again."""
    crowd = b"".join(pod(f"crowd-{n}", {"c": {VF: [f"{n:08x}" * 100]}}) for n in range(9000))
    assert 7 << 20 < len(crowd) < 16 << 20
    with listening(List=[crowd + MINE, crowd * 3 + MINE]) as lister:
        assert GIVEN == asked(lister)
        assert "larger than" in refusal(lister).msg
        assert 2 == lister.asked.count("List")


@pytest.mark.parametrize(
    "reply", [b"\x0a", b"\xff" * 11, b"\x0a\x05ab", b"\x0b", MINE[:-3], message((1, message((1, b"\xff"))))]
)
def test_a_reply_that_cannot_be_read_is_tried_again(reply):
    """Whatever listens there: no guess, no crash."""
    with listening(Get=reply) as lister:
        assert 11 == refusal(lister).code
