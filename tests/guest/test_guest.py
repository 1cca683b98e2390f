# SPDX-License-Identifier: Apache-2.0
"""Tests that need an SR-IOV NIC and link kinds that few kernels have: one guest boots once and runs what was chosen.

The tests themselves are in `inside/`; each of their functions is one test here.
"""

import ast
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import machine
import pytest

INSIDE = Path(__file__).parent / "inside"
REPOSITORY = Path(__file__).parents[2]
_SECONDS = 900.0  # for everything: three minutes on two slow cores that do nothing else


def promises() -> list[str]:
    """Return the tests inside, as `<file>::<function>`."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(INSIDE.glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@dataclass
class Report:
    """What the guest's pytest said: for every function the texts of its cases that did not pass."""

    console: str
    cases: dict[str, list[str]] = field(default_factory=dict)


def read(junit: Path, console: str) -> Report:
    """Read pytest's own report."""
    report = Report(console)
    for case in ET.parse(junit).iter("testcase") if junit.exists() else ():
        file = case.get("classname", "").rpartition(".")[2]
        name, _, parameters = case.get("name", "").partition("[")
        troubles = report.cases.setdefault(f"{file}.py::{name}", [])
        for kind in ("failure", "error", "skipped"):
            troubles += [
                f"{kind} [{parameters}\n{one.get('message')}\n{one.text or ''}\n{case.findtext('system-out', '')}"
                for one in case.findall(kind)
            ]
    return report


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Run all that was chosen here in one boot."""
    if os.geteuid():
        pytest.skip("preparing the guest needs root")
    try:
        guest = machine.prepare()
    except machine.NoGuest as reason:
        pytest.skip(str(reason))
    chosen = [item.callspec.params["promise"] for item in request.session.items if _runs_inside(item)]
    out = tmp_path_factory.mktemp("guest")
    tests = " ".join(f"tests/guest/inside/{promise}" for promise in chosen)
    outcome = guest.run(
        f"cd {REPOSITORY} && PYTHONPATH=tests/delegates exec .venv/bin/python -m pytest -q --tb=short "
        f"-p no:cacheprovider -p no:hypothesispytest -o junit_family=xunit2 --junitxml={machine.OUT}/junit.xml {tests}",
        out,
        _SECONDS,
    )
    return read(out / "junit.xml", outcome.console)


def _runs_inside(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.originalname == test_inside.__name__


@pytest.mark.parametrize("promise", promises())
def test_inside(promise: str, report: Report) -> None:
    """Each test inside the guest ran there and passed, with all of its parameters."""
    assert promise in report.cases, f"it did not run:\n{report.console[-4000:]}"
    assert not report.cases[promise], "\n".join(report.cases[promise])


@pytest.fixture
def told(tmp_path: Path) -> Callable[[str], Report]:
    """Return a reader of reports that are given as text."""

    def reader(cases: str) -> Report:
        (tmp_path / "junit.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        return read(tmp_path / "junit.xml", "")

    return reader


def test_a_case_that_failed_inside_is_seen(told: Callable[[str], Report]) -> None:
    """A failure, an error and a skip of one case each make its function fail here; cases that passed do not."""
    passed = '<testcase classname="tests.guest.inside.test_x" name="test_a[1]"/>'
    for kind in ("failure", "error", "skipped"):
        failed = f'<testcase classname="a.test_x" name="test_a[2]"><{kind} message="why">where</{kind}></testcase>'
        (text,) = told(passed + failed).cases["test_x.py::test_a"]
        assert "[2]" in text
        assert "why" in text
    assert {"test_x.py::test_a": []} == told(passed).cases


def test_a_guest_that_told_nothing_is_seen(tmp_path: Path) -> None:
    """Without a report no test counts as passed."""
    assert {} == read(tmp_path / "junit.xml", "it hung").cases
