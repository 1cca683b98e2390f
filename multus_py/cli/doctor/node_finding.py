# SPDX-License-Identifier: Apache-2.0
"""A finding about the node: a fact, its level, and advice."""

from dataclasses import asdict, dataclass
from enum import StrEnum

from multus_py.cni.errors import CniError


class Level(StrEnum):
    """The level of a finding: only *failed* makes a node unfit."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class NodeFinding:
    """One fact, in one area; *advice* says what to do."""

    level: Level
    area: str
    fact: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the fields as text."""
        return {key: str(value) for key, value in asdict(self).items()}


def error_finding(area: str, error: CniError) -> NodeFinding:
    """Return the finding for an error."""
    return NodeFinding(Level.FAILED, area, error.msg, error.details)
