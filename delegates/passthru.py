# SPDX-License-Identifier: Apache-2.0
"""passthru: attaches nothing and hands on what came before. It stands at the head of an auxiliary chain."""

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
    """There is nothing to take down."""


def check(request: Request) -> None:
    """There is nothing that could have changed."""


def status(request: Request) -> None:
    """It is always ready."""
