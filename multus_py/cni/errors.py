# SPDX-License-Identifier: Apache-2.0
"""The exception types: a CNI error with its code (CNI spec 1.1.0, section 5 "Error").

CniError              every error that is returned to a runtime: code, message, details
 └─ PluginError       a delegate's error: its own code and message, passed through
"""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Self

Step = Callable[[], object]  # of a teardown: it may raise anything


class Code(IntEnum):
    """Error codes of the CNI specification; 100 and above belong to plugins."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO = 5
    DECODE = 6
    INVALID_CONFIG = 7
    SAME_NAMESPACE = 8
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 999


class CniError(Exception):
    """An error as the runtime gets it.

    *code* is one of `Code` or a delegate's own number; *details* is advice or further information.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = int(code)
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}; {self.details}" if self.details else self.msg

    def with_context(self, doing: str) -> Self:
        """Return a copy, of the same type, code and notes, with *doing* in front of the message."""
        msg = f"{doing}: {self.msg}"
        copy = type(self).__new__(type(self), msg)
        copy.__dict__ |= {**self.__dict__, "msg": msg}
        return copy

    def to_json(self, version: str) -> dict[str, Any]:
        """Return the object that goes to standard output (spec: keys cniVersion, code, msg, details)."""
        notes = "; ".join([part for part in [self.details, *getattr(self, "__notes__", ())] if part])
        body: dict[str, Any] = {"cniVersion": version, "code": self.code, "msg": self.msg}
        return {**body, "details": notes} if notes else body


class PluginError(CniError):
    """A delegate's own error."""

    @classmethod
    def from_json(cls, body: Mapping[str, Any], plugin: str) -> "PluginError":
        """Read the error that the executable *plugin* printed; one without a usable code gets 999."""
        code = body.get("code")
        usable = isinstance(code, int) and not isinstance(code, bool) and code > 0
        msg = body.get("msg")
        details = body.get("details")
        return cls(
            code if usable and code is not None else Code.INTERNAL,
            f"plugin {plugin}: {msg if isinstance(msg, str) and msg else 'failed without a message'}",
            details if isinstance(details, str) else "",
        )


def combined_error(doing: str, errors: Sequence[CniError]) -> CniError:
    """Return one error for several: the code of the first, the messages of all."""
    return CniError(
        errors[0].code,
        f"{doing}: " + " / ".join(error.msg for error in errors),
        "; ".join(error.details for error in errors if error.details),
    )


def _message(error: BaseException) -> str:
    """Return the text of an exception; its class may be another package's, whose `__str__` may fail."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  an error without a text is still reported
        return "without a message"


def to_cni_error(error: BaseException) -> CniError:
    """Return *error* when it is a `CniError`, else one with code 999."""
    if isinstance(error, CniError):
        return error
    unexpected = CniError(
        Code.INTERNAL, f"internal error: {type(error).__name__}: {_message(error)}", "please report it"
    )
    unexpected.__cause__ = error
    return unexpected


def try_step(step: Step) -> CniError | None:
    """Run one step of a teardown; return its error, whatever its type, None when it succeeded."""
    try:
        step()
    except Exception as error:  # noqa: BLE001  the steps after it run in any case
        return to_cni_error(error)
    return None


def run_all(doing: str, *steps: Step) -> None:
    """Run every step, even after errors; then raise the errors of all as one `CniError`."""
    if errors := [error for step in steps if (error := try_step(step))]:
        raise combined_error(doing, errors)
