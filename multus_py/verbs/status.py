# SPDX-License-Identifier: Apache-2.0
"""STATUS: whether an ADD would succeed now."""

from pathlib import Path

from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code, try_step
from multus_py.plan import decide
from multus_py.verbs.node import Node


def status(call: Call, node: Node) -> None:
    """Raise code 50 or 51 when an ADD would not succeed now."""
    refuse_unready(node)
    try:
        attachments = decide.sandbox_attachments(call, node.config, None, node.store)
    except CniError as error:
        if error.code != Code.TRY_AGAIN:
            raise
        raise CniError(Code.NOT_AVAILABLE, error.msg, error.details) from error
    for attachment in attachments:
        if problem := try_step(lambda: node.chain.refuse_unfit(attachment, call)):  # noqa: B023
            raise CniError(Code.NOT_AVAILABLE, problem.msg, problem.details) from problem
        node.chain.status(attachment, call)


def refuse_unready(node: Node) -> None:
    """Raise code 50 while the readiness file of the default network does not exist."""
    path = node.config.readiness_file
    if path and not Path(path).exists():
        raise CniError(
            Code.NOT_AVAILABLE,
            f"the default network is not ready: {path} does not exist",
            "its agent writes this file when it can serve pods",
        )
