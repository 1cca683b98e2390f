# SPDX-License-Identifier: Apache-2.0
"""Be a CNI plugin: environment and standard input in, result or error JSON and exit code out. The error boundary."""

import errno
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from multus_py.cni import call as calls
from multus_py.cni import versions
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, to_cni_error
from multus_py.cni.text import one_line

Handler = Callable[[Call], dict[str, Any] | None]


def serve(handle: Handler, env: Mapping[str, str], stdin: bytes, stdout: TextIO | None, about: str) -> int:
    """Answer one call and return the exit code. *handle* gets every verb but VERSION, which needs no config of ours.

    Without CNI_COMMAND a person is asking: *about* goes to standard error (as libcni's plugins do). OSError when the
    answer cannot be written.
    """
    if not env.get("CNI_COMMAND"):
        _tell(about + "\n")
        return 0
    body, code = answer(handle, env, stdin)
    if body is not None:
        if stdout is None:
            raise OSError(errno.EBADF, "standard output is closed")
        json.dump(body, stdout, indent=4)
        stdout.write("\n")
        stdout.flush()
    return code


def answer(handle: Handler, env: Mapping[str, str], stdin: bytes) -> tuple[dict[str, Any] | None, int]:
    """Return what goes to standard output, and the exit code."""
    try:
        call = calls.parse(env, stdin)
        if call.verb == "VERSION":
            return version_reply(call), 0
        return handle(call), 0
    except CniError as error:
        return error.to_json(version_of(stdin)), 1
    except Exception as error:  # noqa: BLE001  the boundary: whatever it is, the runtime gets an error that it can read
        log_unexpected_error(error)
        return to_cni_error(error).to_json(version_of(stdin)), 1


def log_unexpected_error(error: Exception) -> None:
    """Write the trace of an error that nobody expected to standard error, if somebody can read it there."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    _tell("\n    ".join(map(one_line, lines)) + "\n")


def _tell(text: str) -> None:
    with suppress(OSError):
        if sys.stderr:  # None where it is closed
            sys.stderr.write(text)


def version_reply(call: Call) -> dict[str, Any]:
    """Return the answer to VERSION: in the caller's version when we speak it, else in our newest."""
    asked = call.config.get("cniVersion")
    return {
        "cniVersion": asked if asked in versions.SUPPORTED else versions.LATEST,
        "supportedVersions": list(versions.SUPPORTED),
    }


def version_of(stdin: bytes) -> str:
    """Return the version to write an error in, from a standard input that may be anything."""
    try:
        said = calls.json_object(stdin).get("cniVersion")
    except CniError:
        return versions.LATEST
    return said if isinstance(said, str) and said in versions.SUPPORTED else versions.LATEST
