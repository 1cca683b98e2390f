# SPDX-License-Identifier: Apache-2.0
"""The networks annotation: both forms, equally strict, with errors that point at the character."""

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus_py.config import selection
from multus_py.config.selection import Selection, SelectionError
from multus_py.config.validate import problems


def test_the_short_form_names_namespace_and_interface():
    """`<namespace>/<name>@<interface>`, blanks around items are nothing."""
    assert (
        Selection("a", "here"),
        Selection("b", "there", "eth1"),
        Selection("a", "here"),
    ) == selection.parse(" a , there/b@eth1,a", "here")


def test_the_json_form_has_every_field():
    """All fields of the standard and of multus-cni arrive."""
    element = {
        "name": "my.net", "namespace": "ns", "interface": "net7", "ips": ["10.0.0.5/24", "fd00::5"],
        "mac": "02:00:00:00:00:01", "infiniband-guid": "11:22:33:44:55:66:77:88",
        "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 1}, "deviceID": "0000:01:00.1", "cni-args": {"k": [1]},
        "default-route": ["10.0.0.1"], "somebody-elses": True, "org.example.note": {"x": 1},
    }  # fmt: skip
    assert (
        Selection(
            "my.net", "ns", "net7", ("10.0.0.5/24", "fd00::5"), "02:00:00:00:00:01", "11:22:33:44:55:66:77:88",
            ({"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},), {"ingressRate": 1}, "0000:01:00.1",
            {"k": [1]}, (ipaddress.ip_address("10.0.0.1"),),
        ),
    ) == selection.parse(json.dumps([element]), "here")  # fmt: skip


def test_an_ipam_claim_says_which_addresses():
    """Beside `ips` it is refused; in the default network's annotation, which is not the standard's, both may stand."""
    assert "claim" == selection.parse('[{"name":"a","ipam-claim-reference":"claim"}]', "x")[0].ipam_claim
    both = '[{"name":"a","ips":["10.0.0.5/24"],"ipam-claim-reference":"claim"}]'
    with pytest.raises(SelectionError, match="IPAMClaim beside 'ips'") as caught:
        selection.parse(both, "x")
    assert both.index('"claim"') == caught.value.offset
    assert ("10.0.0.5/24",) == selection.parse_default(both, "x").ips


GUID, MAC = "11:22:33:44:55:66:77:88", "02:00:00:00:00:01"
IPOIB = ":".join(["80"] * 20)


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        ("mac", MAC, True), ("mac", MAC.replace(":", "-"), True), ("mac", "0200.0000.0001", True), ("mac", IPOIB, True),
        ("mac", GUID, False), ("infiniband-guid", GUID, True), ("infiniband-guid", MAC, False),
        ("infiniband-guid", IPOIB, False),
    ],
)  # fmt: skip
def test_a_guid_has_8_bytes_and_a_mac_6_or_20(key, value, taken):
    """The one is not taken for the other, by the annotation's parser and by its schema alike."""
    element = [{"name": "a", key: value}]
    assert taken == (not [one for one in problems(element, "networks") if not one.note])
    if taken:
        assert selection.parse(json.dumps(element), "x")
    else:
        with pytest.raises(SelectionError, match=r"not a (MAC address|GUID)"):
            selection.parse(json.dumps(element), "x")


def test_an_empty_default_route_is_not_an_absent_one():
    """`[]` keeps what the delegate sets; absent says nothing."""
    parsed = selection.parse('[{"name":"a","default-route":[]},{"name":"b"}]', "x")
    assert [(), None] == [item.default_route for item in parsed]


def test_keys_are_found_without_regard_to_case():
    """Go's decoder takes them so, and people rely on it; interfaceRequest is the old name of interface."""
    assert Selection("a", "x", "e1") == selection.parse('[{"Name":"a","InterfaceRequest":"e1"}]', "x")[0]


@pytest.mark.parametrize("text", ["", "  ", "[]"])
def test_nothing_asked_is_nothing(text):
    """An empty annotation selects no network."""
    assert () == selection.parse(text, "x")


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("a,,b", 2), ("a,", 2), ("a/b/c", 3), ("a@b@c", 3), ("Bad", 0), ("ok, ns/my.net", 7), ("a@", 2),
        ("a@sixteencharacter", 2), ("ns/", 3), ("/a", 0), ("a, UP/b", 3),
        ("[null]", 1), ('["a"]', 1), ('{"name":"a"}', 0), ('[{"name":"a"},{"name":7}]', 22), ('[{}]', 1),
        ('[{"name":"a","ips":["x"]}]', 19), ('[{"name":"a","ips":["10.0.0.1/255.0.0.0"]}]', 19),
        ('[{"name":"a","mac":"02:00"}]', 19), ('[{"name":"a","mac":"02-00:00-00-00-01"}]', 19),
        ('[{"name":"a","namespace":"../x"}]', 25), ('[{"name":"a","interface":"a/b"}]', 25),
        ('[{"name":"a","default-route":["10.0.0.1/8"]}]', 29), ('[{"name":"a","default-route":"x"}]', 29),
        ('[{"name":"a","portMappings":[{"hostPort":0,"containerPort":1}]}]', 28), ('[{"name":"a","cni-args":[]}]', 24),
        ('[{"name":"a","portMappings":[null]}]', 28), ('[{"name":"a","bandwidth":{"ingressRate":-1}}]', 25),
        ('[{"name":"a","deviceID":"../x"}]', 24), ('[{"name":"a"', 12), ('[{"name":"a/b"}]', 9),
    ],
)  # fmt: skip
def test_errors_point_at_the_character(text, at):
    """The offset is the place a person has to look at."""
    with pytest.raises(SelectionError) as caught:
        selection.parse(text, "x")
    assert at == caught.value.offset
    assert f"character {at + 1} " in caught.value.msg


def test_a_dotted_name_in_short_form_is_sent_to_the_json_form():
    """Definitions may have dots in their names, the short form may not."""
    with pytest.raises(SelectionError) as caught:
        selection.parse("my.net", "x")
    assert "JSON form" in caught.value.details


def test_there_is_one_default_network():
    """Two are refused, one may stand in either form."""
    with pytest.raises(SelectionError):
        selection.parse_default("a,b", "kube-system")
    assert "kube-system" == selection.parse_default("a", "kube-system").namespace
    assert selection.parse_default("", "x") is None


pieces = st.sampled_from(
    ['[', ']', '{', '}', '"name"', ':', ',', '"a"', '"ips"', '"default-route"', "null", "1", "@", "/", " ", "a", "é",
     '"portMappings"', '"mac"', "\n", "\x00"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=40), st.lists(pieces, max_size=25).map("".join)))
def test_only_selection_errors_come_out_of_any_text(text):
    """Fuzz: an annotation is parsed or its error points into it."""
    try:
        selection.parse(text, "x")
    except SelectionError as error:
        assert 0 <= error.offset <= len(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_places_know_where_every_value_begins(value):
    """Decoding from the place gives the value back."""
    text = json.dumps(value, indent=1)
    decoder = json.JSONDecoder()
    for path, at in selection.value_offsets(text).items():
        found = value
        for step in path:
            found = found[step]
        assert found == decoder.raw_decode(text, at)[0]
