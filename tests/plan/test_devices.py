# SPDX-License-Identifier: Apache-2.0
"""Which device belongs to which network: the order, what a pod may ask for, and what is refused."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus_py.cni.errors import CniError
from multus_py.kube.store import Device, Unavailable
from multus_py.plan import devices
from multus_py.plan.devices import DeviceRequest as Request

VF, PF = "intel.com/vf", "intel.com/pf"


def vf(device_id: str, *containers: str, resource: str = VF, claims: tuple[str, ...] = ()) -> Device:
    """Return a device."""
    return Device(resource, device_id, containers, claims)


def ids(requests: list[Request | None], *given: list[Device]) -> list[str | None]:
    """Return the ids that the requests get from these sources."""
    found = devices.assign(requests, [lambda each=each: each for each in given])
    return [device.id if device else None for device in found]


def refusal(requests: list[Request | None], *given: list[Device]) -> CniError:
    """Return the error of requests that cannot be met."""
    with pytest.raises(CniError) as caught:
        ids(requests, *given)
    return caught.value


def test_networks_in_order_get_ids_in_the_order_of_text():
    """Lexical, not numeric: OVN-Kubernetes counts the same way; all containers are one pool."""
    given = [vf("0000:10:0a.0", "b"), vf("0000:10:10.0", "a"), vf("0000:10:02.0", "b")]
    requests = [Request("default", VF), None, Request("n1", VF), Request("n2", VF)]
    assert ["0000:10:02.0", None, "0000:10:0a.0", "0000:10:10.0"] == ids(requests, given)


def test_each_resource_is_a_pool_of_its_own():
    """A network gets a device of the resource that it names and of no other."""
    given = [vf("a", resource=PF), vf("b"), vf("c", resource=PF)]
    assert ["b", "a", "c"] == ids([Request("n1", VF), Request("n2", PF), Request("n3", PF)], given)


def test_a_network_may_say_whose_device_it_wants():
    """`container` picks the device that the container got, wherever it stands in the order."""
    given = [vf("a", "app"), vf("b", "side"), vf("c", "app")]
    assert ["b", "a", "c"] == ids([Request("n1", VF, container="side"), Request("n2", VF), Request("n3", VF)], given)


def test_an_open_wish_gives_way_to_a_narrow_one():
    """The first network takes another device when a later one can have only that one."""
    given = [vf("a", "app"), vf("b", "side"), vf("c", "side")]
    assert ["b", "a", "c"] == ids([Request("n1", VF), Request("n2", VF, container="app"), Request("n3", VF)], given)
    assert ["b", "c", "a"] == ids([Request("n1", VF), Request("n2", VF), Request("n3", VF, id="a")], given)


def test_an_id_that_was_not_given_is_refused():
    """A pod cannot reach for a device that kubelet gave to another pod."""
    error = refusal([Request("n1", VF, id="b")], [vf("a")])
    assert (7, True) == (error.code, "wants device b of intel.com/vf" in error.msg)
    assert 7 == refusal([Request("n1", VF, id="b")], [vf("a"), vf("b", resource=PF)]).code


def test_one_id_for_two_networks_is_refused():
    """A device goes to one network of a pod, with and without a resource."""
    for resource in (VF, ""):
        error = refusal([Request("n1", resource, id="a"), Request("n2", resource, id="a")], [vf("a"), vf("b")])
        assert (7, True) == (error.code, "n1 and n2" in error.msg)


def test_an_id_without_a_resource_is_taken():
    """What the pod names itself, where no resource counts, is not given to another network."""
    assert [None, "b"] == ids([Request("n1", id="a"), Request("n2", VF)], [vf("a"), vf("b")])


def test_one_pci_device_under_two_resources_is_one_device():
    """Pools that overlap do not put one device into two networks; other ids are words of their resource."""
    requests = [Request("n1", VF), Request("n2", PF)]
    refusal(requests, [vf("0000:01:00.1"), vf("0000:01:00.1", resource=PF)])
    assert ["eth0", "eth0"] == ids(requests, [vf("eth0"), vf("eth0", resource=PF)])


def test_a_device_of_an_init_container_counts_once():
    """kubelet's checkpoint tells of it for both containers: it is one device, and either name finds it."""
    given = [vf("a", "init"), vf("a", "app")]
    assert ["a"] == ids([Request("n1", VF, container="app")], given)
    assert "1 given" in refusal([Request("n1", VF), Request("n2", VF)], given).msg


def test_too_few_says_what_was_wanted_and_given():
    """Code 7 names the resource, the networks that want it and the devices that are there."""
    error = refusal([Request("n1", VF), Request("n2", VF)], [vf("a", "app")], [])
    assert 7 == error.code
    assert "network n2 wants a device of intel.com/vf and there is none for it" in error.msg
    assert "2 wanted (n1, n2), 1 given (a to app)" in error.msg
    assert "request 2 of intel.com/vf" in error.details


def test_claims_come_after_device_plugins_and_only_when_needed():
    """The second source is asked when the first one did not give enough; its devices are told apart by claim."""

    def claims() -> list[Device]:
        asked.append("claims")
        return [vf("b", claims=("x", "x/r1")), vf("a0", claims=("x", "x/r2")), vf("any", resource="", claims=("y",))]

    for requests, expected in (
        ([Request("n1", VF)], ["z"]),
        ([Request("n1", VF), Request("n2", VF), Request("n3", VF)], ["z", "a0", "b"]),
        ([Request("n1", VF, claim="x/r1"), Request("n2", claim="y")], ["b", "any"]),
    ):
        asked: list[str] = []
        found = devices.assign(requests, [lambda: [vf("z")], claims])
        assert expected == [device.id for device in found if device]
        assert asked == ([] if expected == ["z"] else ["claims"])


def test_nobody_is_asked_without_a_wish_that_counts():
    """A pod without resources costs no question."""

    def never() -> list[Device]:
        raise AssertionError("asked")

    assert [None, None] == devices.assign([None, Request("n1", id="a")], [never])


def test_an_error_says_what_it_was_asked_for():
    """Whoever cannot tell the devices yet: the networks and the resource stand in front, the code stays."""

    def away() -> list[Device]:
        raise Unavailable("kubelet does not know pod ns/p")

    with pytest.raises(Unavailable, match=r"n1 wants a device of intel\.com/vf: kubelet does not know") as caught:
        devices.assign([Request("n1", VF)], [away])
    assert 11 == caught.value.code


some = st.sampled_from(["", "a", "b", "c"])
pools = st.lists(
    st.builds(vf, st.sampled_from(["1", "2", "3", "4"]), some, resource=st.sampled_from([VF, PF])), max_size=5
)
wish_lists = st.lists(
    st.builds(Request, st.just("n"), st.sampled_from([VF, PF]), st.just(""), some), min_size=1, max_size=4
)


@given(wish_lists, pools)
def test_wishes_are_met_exactly_when_they_can_be(requests, given):
    """Against every way of giving: requests are met when there is a way, and by the first way in the order of ids."""
    pool = {(device.id, device.resource) for device in given}
    held = {
        key: {c for device in given if (device.id, device.resource) == key for c in device.containers} for key in pool
    }

    def meets(key: tuple[str, str], request: Request) -> bool:
        return key[1] == request.resource and (not request.container or request.container in held[key])

    ways = [
        way
        for way in permutations(sorted(pool), len(requests))
        if all(meets(key, request) for key, request in zip(way, requests, strict=True))
    ]
    try:
        found = devices.assign(requests, [lambda: given])
    except CniError as error:
        assert (7, []) == (error.code, ways)
        return
    assert ways[0] == tuple((device.id, device.resource) for device in found if device)


def test_an_unknown_claim_is_answered_with_those_that_there_are():
    """The pod has no such claim: advice about resources would send people the wrong way."""
    error = refusal([Request("ns/a as net1", claim="gpu")], [vf("b", claims=("x", "x/r1"))], [])
    assert "network ns/a as net1 wants a device of claim gpu, and the pod has no such claim" in error.msg
    assert (7, "name one of those that did: x, x/r1") == (error.code, error.details)
    assert "no claim of the pod" in refusal([Request("n1", claim="gpu")], [vf("b")]).details
    assert (
        "2 wanted (n1, n2), 1 given"
        in refusal([Request("n1", claim="x"), Request("n2", claim="x")], [vf("b", claims=("x",))]).msg
    )
