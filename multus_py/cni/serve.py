# SPDX-License-Identifier: Apache-2.0
"""A CNI plugin's input and output: environment and standard input, result or error JSON, exit code.

The error boundary: every exception becomes a CNI error here.
"""

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
    """Serve one call and return the exit code. *handle* gets every verb but VERSION, which needs no config of ours.

    Without CNI_COMMAND a person started it: *about* goes to standard error (as skel in Go does). OSError when the
    reply cannot be written.
    """
    if not env.get("CNI_COMMAND"):
        _write_to_stderr(about + "\n")
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
    """Return the object for standard output, None for no output, and the exit code."""
    try:
        call = calls.parse(env, stdin)
        if call.verb == "VERSION":
            return version_reply(call), 0
        return handle(call), 0
    except CniError as error:
        return error.to_json(version_of(stdin)), 1
    except Exception as error:  # noqa: BLE001  the boundary: the runtime gets a CNI error in any case
        log_unexpected_error(error)
        return to_cni_error(error).to_json(version_of(stdin)), 1


def log_unexpected_error(error: Exception) -> None:
    """Write the traceback of an unexpected error to standard error, if that is open."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    _write_to_stderr("\n    ".join(map(one_line, lines)) + "\n")


def _write_to_stderr(text: str) -> None:
    with suppress(OSError):
        if sys.stderr:  # None where it is closed
            sys.stderr.write(text)


def version_reply(call: Call) -> dict[str, Any]:
    """Return the reply to VERSION: in the caller's version when it is supported, else in the latest."""
    version = call.config.get("cniVersion")
    return {
        "cniVersion": version if version in versions.SUPPORTED else versions.LATEST,
        "supportedVersions": list(versions.SUPPORTED),
    }


def version_of(stdin: bytes) -> str:
    """Return the version for an error object, from a standard input that may be invalid."""
    try:
        version = calls.json_object(stdin).get("cniVersion")
    except CniError:
        return versions.LATEST
    return version if isinstance(version, str) and version in versions.SUPPORTED else versions.LATEST
