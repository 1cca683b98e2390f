# SPDX-License-Identifier: Apache-2.0
"""The passthru delegate: attaches nothing and returns prevResult. It is the first plugin of an auxiliary chain."""

from multus_py.cni import result as results
from multus_py.cni.delegate import Request
from multus_py.cni.result import Result

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "passthru",
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


def add(request: Request) -> Result:
    """Return prevResult, or an empty result."""
    previous = request.call.config.get("prevResult")
    return results.read(previous, request.call.version) if isinstance(previous, dict) else Result()


def delete(request: Request) -> None:
    """Do nothing: nothing was attached."""


def check(request: Request) -> None:
    """Do nothing: nothing can have changed."""


def status(request: Request) -> None:
    """Do nothing: an ADD always succeeds."""
