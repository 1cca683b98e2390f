# SPDX-License-Identifier: Apache-2.0
"""The command line: help, exit statuses, and imports that a runtime's call must not make."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from multus_py.cli.commands import COMMANDS
from multus_py.cli.main import main

# Slow imports that no plugin process needs for VERSION.
HEAVY = {"kubernetes", "pyroute2", "jsonschema", "yaml", "argparse", "multiprocessing", "asyncio"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` says what the command does and shows at least one line to try."""
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert "multus-py " + command in text


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`multus-py --help` lists every command with one line."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(
        re.search(rf"^ +{name} +{re.escape(command.summary)}$", text, re.MULTILINE)
        for name, command in COMMANDS.items()
    )


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the installed version."""
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"multus-py {version('multus-py')}\n"


@pytest.mark.parametrize("words", [[], ["fly"], ["install"], ["lab"], ["lab", "sideways"]])
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument is reported with the usage, and its status is not that of a failed command."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: multus-py" in capsys.readouterr().err


def test_the_installed_script_is_a_plugin() -> None:
    """`multus-py plugin` answers VERSION and imports nothing that VERSION does not need."""
    code = (
        "import sys; from multus_py.cli.main import main; status = main(['plugin'])\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        env={"CNI_COMMAND": "VERSION"},
        input=b'{"cniVersion": "1.1.0"}',
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    assert done.stderr.decode().strip() == "[]"
