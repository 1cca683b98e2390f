# SPDX-License-Identifier: Apache-2.0
"""The documents are correct: commands exist, examples load, links have targets."""

import json
import os
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from multus_py.cli.commands import COMMANDS, parser_of
from multus_py.cli.main import main
from multus_py.config import plugin as configs
from multus_py.kube.manifests import Manifests
from multus_py.kube.store import NETWORKS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(ROOT.glob("*.md"))
EXAMPLES = ROOT / "examples"


def _console_lines(document: Path) -> list[str]:
    """Return the commands in the console blocks of a document, comments left out."""
    blocks = re.findall(r"```console\n(.*?)```", document.read_text(), re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.strip()]


def _commands() -> list[str]:
    return sorted({line for path in DOCUMENTS for line in _console_lines(path) if line.startswith("multus-py ")})


def _targets() -> list[str]:
    lines = [line for path in DOCUMENTS for line in _console_lines(path)]
    return sorted({word for line in lines for word in re.findall(r"^make (\w+)", line)})


@pytest.mark.parametrize("line", _commands())
def test_every_command_line_is_understood(line: str) -> None:
    """Each command line in a document has existing commands and options."""
    words = shlex.split(line)[1:]
    assert parser_of(words[0]).parse_args(words)


def test_every_command_is_documented() -> None:
    """The table in README.md has each command with the summary of `multus-py --help`."""
    rows = dict(re.findall(r"^\| `multus-py (\w+)` \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {name: text.replace("`", "") for name, text in rows.items()} == {
        name: command.summary for name, command in COMMANDS.items()
    }


@pytest.mark.parametrize("target", _targets())
def test_every_make_target_exists(target: str) -> None:
    """Each make target in a document exists."""
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_help_lists_every_target() -> None:
    """`make help` lists each target with a description, and no other; `root` is a prerequisite only."""
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE)) - {"root"}
    words = ["make", "--no-print-directory", "help"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert set(listed) == targets


def test_the_hook_runs_what_make_check_runs() -> None:
    """The pre-commit hook is `make check` itself, so that they cannot differ."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    assert (repository["repo"], hook["entry"], hook["always_run"]) == ("local", "make check", True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    """Each relative link of a document names a file of the repository."""
    links = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def _walk() -> list[list[str]]:
    """Return the rows of SECURITY.md's table of strings: the string, who writes it, where it arrives, its guards."""
    text = (ROOT / "SECURITY.md").read_text().partition("## Where each string is used")[2]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    return rows[1:]


@pytest.mark.parametrize("row", _walk(), ids=lambda row: row[0][:40])
def test_each_string_has_a_guard_that_exists(row: list[str]) -> None:
    """Each row of SECURITY.md is complete and its functions exist; a row without one begins with "none:"."""
    assert len(row) == 4, row
    guards = re.findall(r"`((?:\w+\.)+\w+)`", row[3])
    assert guards or row[3].startswith("none:")
    for guard in guards:
        assert pkgutil.resolve_name(f"multus_py.{guard}"), guard


def test_the_list_in_security_md_is_one_that_we_read() -> None:
    """The config for a shared cluster is accepted, with all keys that the text explains."""
    shown = re.search(r"```json\n(.*?)```", (ROOT / "SECURITY.md").read_text(), re.DOTALL)
    assert shown
    found = configs.parse({"cniVersion": "1.0.0", **json.loads(shown.group(1))})
    assert found.namespace_isolation
    assert found.global_namespaces == {"platform-networks"}
    assert found.allowed_plugins
    assert "bridge" in found.allowed_plugins
    assert found.allowed_folders == ("/var/lib/cni/networks",)


def test_the_examples_load(tmp_path: Path) -> None:
    """Every manifest can be read, and every network that a pod requests is defined there."""
    manifests = Manifests(EXAMPLES, tmp_path)
    assert manifests.problems() == []
    defined = {definition.name for definition in manifests.definitions()}
    asked = [pod.annotations[NETWORKS] for pod in manifests.pods()]
    assert len(asked) == 3
    assert defined == {"signalling", "media", "management"}
    assert all(any(name in text for name in defined) for text in asked)


def test_the_examples_have_nothing_to_lint(capsys: pytest.CaptureFixture[str]) -> None:
    """The examples pass the linter."""
    assert main(["lint", str(EXAMPLES)]) == 0, capsys.readouterr()


def test_the_annotation_in_the_readme_is_that_of_the_example() -> None:
    """The annotation in README.md is exactly that of examples/pods.yaml."""
    shown = re.search(r"k8s.v1.cni.cncf.io/networks: \|\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown
    assert shown.group(1).rstrip() in (EXAMPLES / "pods.yaml").read_text()


@pytest.mark.parametrize(
    "script", [".ci/run", ".ci/lock", ".ci/debian-packages", ".ci/python-venv", "examples/demo.sh"]
)
def test_scripts_can_be_run(script: str) -> None:
    """Each script is executable and its shell can parse it."""
    path = ROOT / script
    assert os.access(path, os.X_OK)
    shell = path.read_text().splitlines()[0].removeprefix("#!")
    assert subprocess.run([shell, "-n", path], check=False).returncode == 0
