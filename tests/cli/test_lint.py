# SPDX-License-Identifier: Apache-2.0
"""Lint: what is wrong is found at its line and column, and what is right passes."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multus_py.cli import lint
from multus_py.cli.main import main
from multus_py.kube.store import DEFAULT_NETWORKS, NETWORKS

GOOD = '{"cniVersion": "1.0.0", "type": "bridge", "bridge": "br0"}'
# How a definition may hold its config: a block, quotes of both kinds, plain text, JSON in a file of its own.
HOLDERS = {
    "block": lambda text: "config: |\n" + "".join(f"    {line}\n" for line in text.split("\n")),
    "stripped": lambda text: "config: |-\n" + "".join(f"      {line}\n" for line in text.split("\n")),
    "single": lambda text: "config: '" + text.replace("'", "''").replace("\n", " ") + "'\n",
    "double": lambda text: "config: " + json.dumps(text) + "\n",
}


def definition(name: str = "net-a", config: str = GOOD, holder: str = "single", namespace: str = "default") -> str:
    """Return the manifest of a definition."""
    head = "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata:\n"
    return f"{head}  name: {name}\n  namespace: {namespace}\nspec:\n  {HOLDERS[holder](config)}"


def pod(networks: str, name: str = "p") -> str:
    """Return the manifest of a pod whose annotation is YAML as given."""
    return f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations:\n    {NETWORKS}: {networks}\n"


def check(tmp_path: Path, text: str, name: str = "a.yaml") -> list[lint.Finding]:
    """Write one file and lint it."""
    path = tmp_path / name
    path.write_text(text)
    return lint.findings([path])


def spotted(path: Path, finding: lint.Finding) -> str:
    """Return what stands in the file at the finding's place."""
    return path.read_text().split("\n")[finding.line - 1][finding.column - 1 :]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_good_definition_passes(tmp_path: Path, holder: str) -> None:
    """However the JSON is held, nothing is found."""
    assert [] == check(tmp_path, definition(holder=holder))


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(
    ("config", "at", "words"),
    [
        ('{"name": "it\'s",\n "type": "bridge"\n "mtu": "x"}', '"mtu"', "comma"),
        ('{"type": "bridge",\n  "isGatway": true}', "true", "did you mean 'isGateway'?"),
        ('{"type": "bridge",\n  "mtu": "9"}', '"9"', "must be a whole number"),
        ('{"type": "bridge",}', "}", "comma"),
        ("{'type': \"bridge\"}", "'type", "double quotes"),
        ('{"plugins": [{"type": "bridge"},\n {"type": "x/y"}]}', '"x/y"', "file name"),
        ('{"type": "multus"}', "{", "call multus-py again"),
    ],
)
def test_what_is_wrong_in_a_config_is_pointed_at(tmp_path: Path, holder: str, config: str, at: str, words: str) -> None:
    """The place is the one inside the string, in a block as well as in quotes."""
    (found,) = check(tmp_path, "# first\n" + definition(config=config, holder=holder))
    held = at.replace('"', '\\"') if holder == "double" else at.replace("'", "''") if holder == "single" else at
    assert spotted(tmp_path / "a.yaml", found).startswith(held)
    assert words in str(found)


def test_a_json_manifest_is_pointed_at_too(tmp_path: Path) -> None:
    """In a .json file, tabs and all, the place inside the string of a string is right."""
    body = yaml.safe_load(definition(config='{"type": "bridge", "mtu": "9"}'))
    (found,) = check(tmp_path, json.dumps(body, indent="\t"), "a.json")
    assert spotted(tmp_path / "a.json", found).startswith('\\"9\\"')


@pytest.mark.parametrize(
    ("networks", "at", "words"),
    [
        ("net-a, net_b", "net_b", "DNS label"),
        ("'net-a,, net-b'", ", net-b", "empty item"),
        ("a@b@c", "@c", "second '@'"),
        ('\'[{"name": "a", "interfce": "x"}]\'', '"x"', "did you mean 'interface'?"),
        ("'[{\"name\": \"a\"}'", "'", "not JSON"),
        ("|\n      [\n        {\"name\": \"a\",\n         \"mac\": \"zz\"}\n      ]", '"zz"', "hardware address"),
        ("'[null]'", "null", "must be an object"),
        ("'{\"name\": \"a\"}'", "{", "must be a JSON list"),
        ("3", "3", "put it in quotes"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_an_annotation_is_pointed_at(tmp_path: Path, networks: str, at: str, words: str) -> None:
    """Short form and JSON form are pointed at by the character."""
    (found,) = check(tmp_path, pod(networks))
    assert spotted(tmp_path / "a.yaml", found).startswith(at)
    assert words in str(found)


@pytest.mark.parametrize("key", ["default-route", "ips", "portMappings"])
def test_an_empty_wish_is_noted(tmp_path: Path, key: str) -> None:
    """It is legal, changes nothing, and looks as if it did; keys of a domain are nobody's business."""
    (found,) = check(tmp_path, pod(f'\'[{{"name": "a", "org.example.x": [], "{key}": []}}]\''))
    assert (True, True) == (found.note, f"an empty {key!r} asks for nothing" in found.message)
    assert spotted(tmp_path / "a.yaml", found).startswith("[]")


def test_a_wish_that_no_plugin_would_be_told_is_found_across_files(tmp_path: Path) -> None:
    """Pod and definition are each right on their own; the finding stands at the pod, with what to write."""
    (tmp_path / "a.yaml").write_text(definition("a") + "---\n" + definition("b", '{"type": "vendor"}'))
    asked = json.dumps([{"name": name, "bandwidth": {"ingressRate": 1}, "mac": "02:00:00:00:00:01"} for name in "ab"])
    (tmp_path / "b.yaml").write_text(pod(f"'{asked}'"))
    first, second = lint.findings([tmp_path])
    assert "network default/a: 'bandwidth' is asked for" in first.message
    assert '"capabilities": {"bandwidth": true}' in first.fix
    assert spotted(tmp_path / "b.yaml", first).startswith('"a"')
    assert "into the plugin vendor" in second.fix


def test_declining_the_default_networks_is_checked(tmp_path: Path) -> None:
    """The annotation says "none" or it is wrong."""
    text = pod("a").replace(f"{NETWORKS}: a", f"{DEFAULT_NETWORKS}: ")
    assert [] == check(tmp_path, text.replace(": \n", ": none\n"))
    (found,) = check(tmp_path, text.replace(f"{DEFAULT_NETWORKS}: ", f"{DEFAULT_NETWORKS}: nothing"))
    assert 'write "none"' in str(found)
    assert spotted(tmp_path / "a.yaml", found).startswith("nothing")


def test_a_list_may_have_its_plugins_in_a_folder(tmp_path: Path) -> None:
    """A file's list (CNI 1.1): nothing is missing when they are there; a definition has no folder."""
    body = '{"cniVersion": "1.1.0", "name": "split"}'
    (found,) = check(tmp_path, body, "10.conflist")
    assert "<name>/*.conf" in str(found)
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "10.conf").write_text('{"type": "tuning"}')
    assert [] == check(tmp_path, body, "10.conflist")
    assert [] != check(tmp_path, body.replace("}", ', "loadOnlyInlinedPlugins": true}'), "10.conflist")
    assert [] != check(tmp_path, definition(config=body))


def test_the_template_of_a_workload_is_checked(tmp_path: Path) -> None:
    """Annotations are mostly written in Deployments and CronJobs."""
    template = {"metadata": {"annotations": {NETWORKS: "net_b"}}}
    bodies = [
        {"kind": "Deployment", "metadata": {"namespace": "x"}, "spec": {"template": template}},
        {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": template}}}},
        {"kind": "List", "items": [{"kind": "Pod", **template}]},
    ]
    found = check(tmp_path, yaml.safe_dump_all(bodies))
    assert ["'net_b' is not a DNS label"] * 3 == [finding.message for finding in found]


def test_a_missing_definition_is_an_error_where_the_namespace_is_given(tmp_path: Path) -> None:
    """A typo among known definitions is an error; a namespace that is not among the files is a note."""
    (tmp_path / "a.yaml").write_text(definition("net-alpha"))
    (tmp_path / "b.yaml").write_text(pod("net-alpah, elsewhere/net-z, net-alpha"))
    wrong, note = lint.findings([tmp_path])
    assert ("did you mean 'net-alpha'?", False) == (wrong.fix, wrong.note)
    assert note.note
    assert spotted(tmp_path / "b.yaml", wrong).startswith("net-alpah")
    assert spotted(tmp_path / "b.yaml", note).startswith("elsewhere/net-z")


def test_a_pod_alone_is_not_asked_for_its_definitions(tmp_path: Path) -> None:
    """One file of a pod says nothing about which definitions there are."""
    assert [] == check(tmp_path, pod("net-a"))


def test_a_definition_that_is_there_twice_is_told(tmp_path: Path) -> None:
    """The second place is told, and it names the first."""
    (found,) = check(tmp_path, definition() + "---\n" + definition())
    assert "a.yaml:4" in found.message
    assert found.line == 12


@pytest.mark.parametrize(
    ("name", "text", "at", "words"),
    [
        ("00.conf", '{"type": "multus-py",\n "clusterNetwork": "x",\n "logLevel": "loud"}', '"loud"', "debug"),
        ("10.conflist", '{"name": "n", "plugins": [{"type": "bridge",\n "bridgex": "b"}]}', '"b"', "'bridge'"),
        ("00.conflist", '{"name": "n", "plugins": [\n{"type": "multus-shim"}]}', '{"type"', "clusterNetwork"),
        ("daemon-config.json", '{"socketDir":\n 3}', "3", "string"),
        ("other.json", '{"type": "bridge",\n "mtu": -1}', "-1", "at least"),
        ("a.conf", '{"type": "bridge"\n"mtu": 1}', '"mtu"', "comma"),
    ],
)
def test_configs_are_checked(tmp_path: Path, name: str, text: str, at: str, words: str) -> None:
    """Each kind of config is held against its schema, and the place is in the file."""
    (found,) = check(tmp_path, text, name)
    assert spotted(tmp_path / name, found).startswith(at)
    assert words in str(found)


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    """A file that is no YAML is one finding; the documents before it are checked."""
    found = check(tmp_path, pod("net_b") + "---\na: [\n")
    assert ["'net_b' is not a DNS label", "not YAML: did not find expected node content"] == [
        each.message for each in found
    ]
    assert found[1].line == 9


@pytest.mark.parametrize(
    ("name", "raw", "place", "words"),
    [
        ("a.yaml", b"a: 1\nb: !!timestamp foo\n", (2, 4), "not a valid timestamp"),
        ("a.yaml", b"a: 1\nb: 2020-13-45\n", (2, 4), "not a valid timestamp"),
        ("a.yaml", b"a: 1\nb: \x01\n", (2, 4), "control characters|special characters"),
        ("a.yaml", "é: 1\n".encode() + b"b: \xff\n", (2, 4), "not UTF-8"),
        ("a.conf", b'{"a": 1,\n"b": "\xff"}', (2, 7), "not UTF-8"),
        ("a.json", b'{"a": 1,\n"b": ' + b"9" * 5_000 + b"}", (2, 6), "more digits"),
        ("a.json", b'{"a": 1,\n"b": ' + b"[" * 5_000, (2, 105), "levels of nesting"),
        ("a.conf", b'{"a": 1,\n"b": ' + b"[" * 5_000, (2, 105), "levels of nesting"),
        ("a.conf", b'{"a": 1,\n"b": NaN}', (2, 6), "no NaN"),
    ],
)
def test_what_no_parser_tells_the_place_of_is_placed(
    tmp_path: Path, name: str, raw: bytes, place: tuple[int, int], words: str
) -> None:
    """Values that cannot be made, characters, depth and digits are found at the line where they stand."""
    (tmp_path / name).write_bytes(raw)
    (found,) = lint.findings([tmp_path / name])
    assert place == (found.line, found.column)
    assert re.search(words, found.message)


def test_json_within_yaml_is_placed_too(tmp_path: Path) -> None:
    """In a config and in an annotation the same is found at its character."""
    config = definition(config='{"type": ' + "9" * 5_000, holder="block")
    found = check(tmp_path, config + "---\n" + pod("'[" + "[" * 2_000 + "'"))
    assert ["not JSON: more digits than a number can have", "not JSON: more than 100 levels of nesting"] == [
        each.message for each in found
    ]
    assert [(8, 14), (15, 35 + 100)] == [(each.line, each.column) for each in found]


def test_escapes_that_yaml_lacks_do_not_hide_a_place(tmp_path: Path) -> None:
    """A .json file is read as JSON: two escapes for one character, or a slash with a backslash, move nothing."""
    text = '{"kind": "Pod", "metadata": {"annotations": {"x": "\\/",\n "%s": "\\ud83d\\ude00\\u0009, net_b"}}}'
    (found,) = check(tmp_path, text % NETWORKS, "a.json")
    assert (2, spotted(tmp_path / "a.json", found)[:4]) == (found.line, "\\ud8")
    (found,) = check(tmp_path, text.replace("\\ud83d\\ude00\\u0009", "a@i\\u002e") % NETWORKS, "a.json")
    assert spotted(tmp_path / "a.json", found).startswith("net_b")


def test_the_exit_status_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 is fine (notes too), 1 is wrong, 2 is usage; each finding is one line file:line:column."""
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(definition(config='{"type": "bridge", "flavour": 1}'))
    bad.write_text(pod("net_b"))
    assert main(["lint", str(good)]) == 0
    assert ": note: " in capsys.readouterr().out
    assert main(["lint", str(good), str(bad)]) == 1
    assert f"{bad}:6:34: 'net_b' is not a DNS label; letters a-z, digits and '-'\n" in capsys.readouterr().out
    assert main(["lint", str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err


def test_json_output_is_a_list_of_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other programs get file, line, column, message and fix of each."""
    path = tmp_path / "a.yaml"
    path.write_text(pod("net_b"))
    assert main(["lint", "--json", str(path)]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (str(path), 6, 34) == (found["file"], found["line"], found["column"])
    assert {"file", "line", "column", "message", "fix", "note"} == set(found)
    path.write_text(definition())
    assert main(["lint", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == []


TEXTS = st.text(alphabet="{}[]:,\"'\\ab1@/.- \n\té\U0001f600", max_size=40)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, style=st.sampled_from(["'", '"', "|", ">", None]), key=st.sampled_from([NETWORKS, "config"]))
def test_any_text_in_an_annotation_or_config_is_judged_cleanly(
    tmp_path: Path, text: str, style: str | None, key: str
) -> None:
    """Whatever people write and however YAML holds it, findings have a place that exists."""
    body = (
        {"kind": "Pod", "metadata": {"name": "x", "annotations": {NETWORKS: text}}}
        if key == NETWORKS
        else {**yaml.safe_load(definition()), "spec": {"config": text}}
    )
    for name, content in (("a.yaml", yaml.safe_dump(body, default_style=style)), ("a.json", json.dumps(body))):
        found = check(tmp_path, content, name)
        lines = content.split("\n")
        for finding in found:
            assert 1 <= finding.line <= len(lines)
            assert 1 <= finding.column <= len(lines[finding.line - 1]) + 1


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60) | TEXTS.map(str.encode))
def test_any_file_is_judged_cleanly(tmp_path: Path, raw: bytes) -> None:
    """Whatever bytes are in a file of whatever kind, only findings come out."""
    for name in ("a.yaml", "a.json", "a.conf", "a.conflist", "daemon-config.json"):
        path = tmp_path / name
        path.write_bytes(raw)
        assert all(finding.message for finding in lint.findings([path]))
