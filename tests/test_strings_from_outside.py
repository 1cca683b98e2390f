# SPDX-License-Identifier: Apache-2.0
"""Strings of people who may not be trusted, on every road by which they come in: the table of SECURITY.md, by test."""

import json
import logging
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import Running, until
from stage import Stage, namespace

from multus_py.agent.concurrency.spawner import Spawner
from multus_py.cli import status
from multus_py.cli.table import columns
from multus_py.cni import call as calls
from multus_py.cni import jsontext, names, serve
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError
from multus_py.cni.executables import Children
from multus_py.cni.text import one_line
from multus_py.config import selection
from multus_py.config.plugin import MultusConfig
from multus_py.entry import logs
from multus_py.kernel import namespaces, netlink
from multus_py.kernel.errors import NetlinkError
from multus_py.kube.apiserver import ApiServer
from multus_py.kube.manifests import Manifests
from multus_py.kube.store import Pod, PodRef
from multus_py.verbs.plugins import Plugins

# What is no file name, and leads to a program all the same when it is joined to a folder as it is.
PATHS = [
    "../evil",
    "../bin/../evil",
    "/{folder}/evil",
    "./evil",
    "below/evil",
    "..",
    ".",
    ".hidden",
    "",
    "a\0b",
    "a\nb",
]


def program(path, marker):
    """Write an executable that leaves a *marker* when somebody runs it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\ntouch {marker}\ncat >/dev/null\n")
    path.chmod(0o755)


@pytest.fixture(params=["this process", "a process of the runtime's", "the daemon"])
def road(request, tmp_path):
    """A function that adds and deletes pod `p` on one of the three roads and returns code and message of ADD."""
    with namespace() as host, namespace() as pod:
        stage = Stage(tmp_path, pod, {"delegates": [{"cniVersion": "1.0.0", "name": "cluster", "type": "first"}]})
        stage.plugins.plugin("first")
        running = Running(stage, host)

        def inside(verb):
            try:
                namespaces.run_in(host, lambda: stage.run(verb, "p"))
            except CniError as error:
                return error.code, f"{error.msg}; {error.details}"
            return 0, ""

        def process(verb):
            call = stage.call(verb, "p")
            program = "import sys; from multus_py.entry.plugin import main; sys.exit(main())"
            done = namespaces.run_in(host, lambda: subprocess.run(
                [sys.executable, "-c", program], input=json.dumps(call.config).encode(), env=call.environment(),
                capture_output=True, check=False,
            ))  # fmt: skip
            told = json.loads(done.stdout or b"{}")
            return (told["code"], f"{told['msg']}; {told.get('details')}") if done.returncode else (0, "")

        def daemon(verb):
            if running.process is None:
                running.start()
            code, told = running.call(verb, "p")
            return (told["code"], f"{told['msg']}; {told.get('details')}") if code else (0, "")

        take = {"this process": inside, "a process of the runtime's": process, "the daemon": daemon}[request.param]
        try:
            yield stage, take
        finally:
            running.stop(9)


def test_an_ipam_type_that_is_a_path_starts_nothing(road):
    """A definition's IPAM type leads out of CNI_PATH: refused with code 7, the program never runs, DEL passes."""
    stage, take = road
    marker = stage.folder / "ran"
    program(stage.folder / "evil", marker)
    stage.definition("x", {"cniVersion": "1.0.0", "type": "bridge", "bridge": "mpt0", "ipam": {"type": "../evil"}})
    stage.pod("p", "x")
    code, told = take("ADD")
    assert (7, True) == (code, "type '../evil' is not the name of a plugin" in told), told
    assert (0, "") == take("DEL")
    assert not marker.exists()
    assert [] == [name for name in stage.left() if name != "events.jsonl"]


@pytest.fixture(params=["children", "spawner"])
def executables(request):
    """Both finders."""
    if request.param == "children":
        yield Children()
        return
    spawner = Spawner()
    yield spawner
    spawner.close()


@pytest.mark.parametrize("name", PATHS)
def test_only_file_names_are_found(executables, tmp_path, name):
    """Neither finder leaves the folder, and neither ends over what can be no path."""
    for path in ("evil", "bin/below/evil", "bin/.hidden", "bin/good"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    folders = (str(tmp_path / "bin"),)
    assert executables.find(name.format(folder=tmp_path), folders) is None
    assert tmp_path / "bin" / "good" == executables.find("good", folders)


@pytest.mark.parametrize("folder", ["", ".", "bin", "../x/bin", "a\0b"])
def test_only_whole_paths_are_folders(executables, tmp_path, monkeypatch, folder):
    """An empty or relative folder of CNI_PATH would be the one that somebody was started in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for path in ("good", "bin/good"):
        (tmp_path / path).write_text("")
    assert executables.find("good", (folder,)) is None
    assert tmp_path / "good" == executables.find("good", (folder, str(tmp_path)))


@pytest.mark.parametrize("backend", ["auto", "exec", "builtin"])
@pytest.mark.parametrize("name", [*PATHS, None, 7, ["bridge"]])
def test_a_type_is_checked_where_a_plugin_is_chosen(name, backend):
    """Whatever the finder: what is no file name is code 7, wherever in a config it stood."""
    with pytest.raises(CniError) as caught:
        Plugins(backend).choose(name, Call("ADD", path=("/usr/lib/cni",), config={}))
    assert 7 == caught.value.code


def test_an_environment_that_no_process_can_have_ends_no_process(tmp_path):
    """A zero byte in a value is that call's error; what the spawner has started besides goes on."""
    spawner, slow, ended = Spawner(), tmp_path / "slow", []
    slow.write_text("#!/bin/sh\ntouch started\nsleep 0.5\nexit 3\n".replace("started", str(tmp_path / "started")))
    slow.chmod(0o755)
    waiting = threading.Thread(target=lambda: ended.append(spawner.run(slow, {}, b"", 20).status))
    waiting.start()
    try:
        until((tmp_path / "started").exists)
        for value in ("a\0b", "\ud800"):
            with pytest.raises(CniError, match="Invalid argument"):
                spawner.run(slow, {"CNI_ARGS": value}, b"", 5)
        waiting.join()
        assert [3] == ended
    finally:
        spawner.close()


# --- interface names --------------------------------------------------------------------------------------------------

REFUSED = ["x%d", "%d", "a%", "%", "%s", "all", "default", ".", "..", "...", "à", "a/b", "a:b", "a b", "a\x1b", ""]
TAKEN = ["net1", "eth0.100", "a@b", "All", "lo0", "é", ".a", "-x", "0" * 15]


@pytest.mark.parametrize("name", REFUSED)
def test_an_interface_name_that_is_no_name_is_refused_on_every_road(name, tmp_path):
    """In both forms of the annotation, in CNI_IFNAME and in a native delegate's keys."""
    assert names.interface_problem(name)
    with pytest.raises(CniError):
        calls.parse({"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/x", "CNI_IFNAME": name,
                     "CNI_PATH": "/"}, b'{"cniVersion": "1.0.0", "name": "n"}')  # fmt: skip
    if name:
        with pytest.raises(selection.SelectionError):
            selection.parse(json.dumps([{"name": "a", "interface": name}]), "default")
    if name and "/" not in name:
        with pytest.raises(selection.SelectionError):
            selection.parse(f"a@{name}", "default")
    for kind, key in [("bridge", "bridge"), ("macvlan", "master")] if name else []:
        config = {"cniVersion": "1.0.0", "name": "n", "type": kind, key: name}
        with pytest.raises(CniError) as caught:
            Plugins().run(kind, Call("ADD", "c", "/run/netns/mptnone", "net1", config=config))
        assert 7 == caught.value.code


@pytest.mark.parametrize("name", TAKEN)
def test_the_kernel_takes_what_we_take_as_it_is_written(name):
    """A name that passes is the interface's name: nothing is put into it, and it has settings of its own."""
    assert "" == names.interface_problem(name)
    with namespace() as netns, netlink.open(netns) as kernel:
        kernel.create_bridge(name)
        assert {"lo", name} == kernel.link_names()
        wanted = f"net/ipv4/conf/{name}/arp_notify"
        assert "0" == namespaces.run_in(netns, lambda: namespaces.read_sysctl(wanted))


@pytest.mark.parametrize("name", [name for name in REFUSED if name and name not in ("...",)])
def test_the_kernel_does_not_take_what_we_refuse(name):
    """It refuses these names, or makes another one of them."""
    with namespace() as netns, netlink.open(netns) as kernel:
        try:
            kernel.create_bridge(name)
        except NetlinkError:
            return
        assert name not in kernel.link_names() or not name.isprintable()


def test_a_name_that_is_no_longer_given_can_be_taken_down():
    """DEL and the files of earlier attachments still know interfaces by names that ADD refuses now."""
    env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "x%d", "CNI_PATH": "/"}
    assert "x%d" == calls.parse(env, b'{"cniVersion": "1.0.0", "name": "n"}').ifname
    assert "all" == names.recorded_interface("all", "journal")
    with pytest.raises(CniError):
        names.recorded_interface("../x", "journal")


# --- JSON that others could not read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_cannot_say_are_refused(number):
    """They would go into a plugin's config, a kept result and an annotation, where nobody can read them."""
    with pytest.raises(CniError):
        calls.json_object(f'{{"x": {number}}}')
    with pytest.raises(selection.SelectionError):
        selection.parse(f'[{{"name": "a", "cni-args": {{"x": {number}}}}}]', "default")


def test_half_a_surrogate_pair_is_read_as_go_reads_it():
    """U+FFFD takes its place, at every depth, so that every string can be written; a whole pair is one letter."""
    read = calls.json_object(r'{"a": ["\ud800x", {"\udfff": "\ud83d\ude00"}]}')
    assert {"a": ["\ufffdx", {"\ufffd": "\U0001f600"}]} == read
    assert "\ufffd" == jsontext.parse(json.dumps("\ud800")) == jsontext.parse('"\ud800"')
    (choice,) = selection.parse('[{"name": "a", "cni-args": {"x": "\\ud800"}}]', "default")
    assert {"x": "\ufffd"} == choice.cni_args


@given(st.recursive(st.none() | st.text(st.characters(), max_size=5) | st.floats(), st.lists, max_leaves=5))
def test_whatever_was_read_can_be_written(value):
    """Fuzz: what comes out of the reader can be put into UTF-8 and is JSON by the letter."""
    try:
        read = jsontext.parse(json.dumps(value))
    except ValueError:
        return
    json.dumps(read, allow_nan=False)
    json.dumps(read, ensure_ascii=False).encode()


@pytest.mark.parametrize("key", ["CNI_NETNS", "CNI_PATH", "CNI_ARGS", "CNI_IFNAME", "CNI_CONTAINERID"])
@pytest.mark.parametrize("value", ["/x\0y", "/x\ud800"])
def test_an_environment_that_comes_as_json_is_one_that_a_process_can_have(key, value):
    """The daemon gets it in a request: a zero byte or half a letter is code 4, not a trace."""
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/x", "CNI_IFNAME": "e", "CNI_PATH": "/"}
    with pytest.raises(CniError) as caught:
        calls.parse({**env, key: value}, b'{"cniVersion": "1.0.0", "name": "n"}')
    assert 4 == caught.value.code


def test_a_zone_is_no_part_of_an_address():
    """It may be any text ("fe80::1%../../x"): refused in the annotation, a result and an IPAM config."""
    from multus_py.cni import result as results
    from multus_py.delegates.ipam import ranges

    with pytest.raises(selection.SelectionError, match="default-route"):
        selection.parse('[{"name": "a", "default-route": ["fe80::1%a\\nb"]}]', "default")
    for body in (
        {"ips": [{"address": "fe80::2%a/64"}]},
        {"ips": [{"address": "fe80::2/64", "gateway": "fe80::1%a"}]},
        {"routes": [{"dst": "::/0", "gw": "fe80::1%a"}]},
    ):
        with pytest.raises(CniError):
            results.read(body, "1.0.0")
    for read in (ranges.address, ranges.cidr):
        with pytest.raises(CniError):
            read("fe80::1%a/64", "x")


# --- logs, Events and terminals ---------------------------------------------------------------------------------------

FORGED = "x\n2026-01-01T00:00:00+0000 [INFO] all is well\r\x1b[2J\u2028\u202e\x00\ud800"


@pytest.fixture
def logged(tmp_path):
    """A function that logs a message and an error that has one, and returns the lines of the log file."""
    log = logging.getLogger("multus_py")
    kept = log.handlers, log.level, log.propagate

    def write(message, *, json_lines):
        path = tmp_path / f"log{json_lines}"
        config = MultusConfig("n", "1.0.0", log_file=str(path), log_to_stderr=False, log_level="debug")
        logs.start(config, json_lines=json_lines)
        log.warning("event of %s", message)
        log.error("met %s", message, exc_info=ValueError(message))
        for handler in log.handlers:
            handler.close()
        return path.read_text(encoding="utf-8")

    yield write
    log.handlers, log.level, log.propagate = kept[0], kept[1], kept[2]


def test_a_message_is_one_line_of_a_text_log(logged):
    """Neither a message nor the trace of an error begins a line as we do, and no control character gets through."""
    lines = logged(FORGED, json_lines=False).split("\n")[:-1]
    ours = [line for line in lines if not line.startswith("    ")]
    assert 2 == len(ours), lines
    assert all("[WARNING] event of" in line or "[ERROR] met" in line for line in ours)
    assert all(line.isprintable() for line in lines)
    assert r"x\n2026-01-01" in ours[0]


def test_a_message_is_one_line_of_a_json_log(logged):
    """The object has the message letter for letter, on one line of ASCII."""
    text = logged(FORGED, json_lines=True)
    assert text.isascii()
    assert [f"event of {FORGED}", f"met {FORGED}"] == [json.loads(line)["message"] for line in text.splitlines()]


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_message_of_megabytes_does_not_fill_the_log(logged, json_lines):
    """An error may quote what somebody wrote: its beginning is enough."""
    first = logged("x" * 3_000_000, json_lines=json_lines).splitlines()[0]
    assert len(first) < 20_000
    assert "(3000009 characters)" in first


def test_a_trace_on_standard_error_is_set_in(capsys):
    """In a daemon standard error is the log."""
    serve.log_unexpected_error(ValueError(FORGED))
    lines = capsys.readouterr().err.split("\n")[:-1]
    assert all(line.isprintable() for line in lines)
    assert 1 == len([line for line in lines if not line.startswith("    ")])


def test_an_event_is_one_line(tmp_path):
    """Of both stores; a plugin's standard error stands in its message."""
    (tmp_path / "p.json").write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}))
    store = Manifests(tmp_path, tmp_path / "state")
    store.event(Pod("default", "p"), "Warning", "FailedAttach", FORGED)
    (event,) = store.events(PodRef("default", "p"))
    written = ApiServer("/none", 1).build_event(Pod("default", "p"), "Warning", "FailedAttach", FORGED)
    assert one_line(FORGED) == event.message == (written.body or {})["message"]
    assert event.message.isprintable()


def test_a_table_for_people_has_a_line_for_a_row():
    """What a pod called its interface moves no cursor."""
    assert 2 == len(columns([status._HEADING, (FORGED, *[""] * (len(status._HEADING) - 1))]).split("\n"))


@given(st.text())
def test_one_line_is_printed_and_says_all(text):
    """Fuzz: it is printable, and the same as before where it was printable."""
    assert one_line(text).isprintable()
    assert not text.isprintable() or one_line(text) == text


# --- whole stories ----------------------------------------------------------------------------------------------------


def test_a_plugin_forges_no_line_of_the_daemons_log(tmp_path):
    """What an executable prints to standard error comes through the daemon as a part of one line."""
    with namespace() as host, namespace() as pod:
        stage = Stage(tmp_path, pod, {"delegates": [{"cniVersion": "1.0.0", "name": "cluster", "type": "first"}]})
        told = {"exit": 1, "stderr": "a\n2026-01-01T00:00:00+0000 [INFO] forged"}
        stage.plugins.plugin("first", ADD=told, DEL=told)
        stage.pod("p")
        running = Running(stage, host)
        try:
            running.start()
            running.call("ADD", "p")
            running.call("DEL", "p")
            until(lambda: "forged" in running.log(), running.log)
            assert not [line for line in running.log().splitlines() if line.startswith("2026-01-01")]
        finally:
            running.stop(9)
