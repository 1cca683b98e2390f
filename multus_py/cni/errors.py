# SPDX-License-Identifier: Apache-2.0
"""The one family of errors: a CNI error with its code (CNI spec 1.1.0, section 5 "Error").

CniError              anything that a runtime is told: code, message, details
 └─ PluginError       a delegate said it: its own code and message, passed through
"""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Self

Step = Callable[[], object]  # of taking down: it may raise anything


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
    """An error with the code that the runtime is told.

    *code* is one of `Code` or a delegate's own number, *details* says what to do or what came along.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = int(code)
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}; {self.details}" if self.details else self.msg

    def with_context(self, doing: str) -> Self:
        """Return the same error, code, kind and notes kept, with what we were doing in front of the message."""
        msg = f"{doing}: {self.msg}"
        told = type(self).__new__(type(self), msg)
        told.__dict__ |= {**self.__dict__, "msg": msg}
        return told

    def to_json(self, version: str) -> dict[str, Any]:
        """Return the object that goes to standard output (spec: keys cniVersion, code, msg, details)."""
        notes = "; ".join([part for part in [self.details, *getattr(self, "__notes__", ())] if part])
        body: dict[str, Any] = {"cniVersion": version, "code": self.code, "msg": self.msg}
        return {**body, "details": notes} if notes else body


class PluginError(CniError):
    """A delegate's own error."""

    @classmethod
    def from_json(cls, body: Mapping[str, Any], plugin: str) -> "PluginError":
        """Read what the executable *plugin* printed; a reply without a usable code gets 999."""
        code = body.get("code")
        usable = isinstance(code, int) and not isinstance(code, bool) and code > 0
        msg = body.get("msg")
        details = body.get("details")
        return cls(
            code if usable and code is not None else Code.INTERNAL,
            f"plugin {plugin}: {msg if isinstance(msg, str) and msg else 'failed without a message'}",
            details if isinstance(details, str) else "",
        )


def combined_error(doing: str, troubles: Sequence[CniError]) -> CniError:
    """Return one error for several: the code of the first, the words of all."""
    return CniError(
        troubles[0].code,
        f"{doing}: " + " / ".join(trouble.msg for trouble in troubles),
        "; ".join(trouble.details for trouble in troubles if trouble.details),
    )


def _words(error: BaseException) -> str:
    """Return what an error says; its class may be of another package, and fail at that, too."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  an error that cannot be told must not hide that there is one
        return "it cannot say what it is"


def to_cni_error(error: BaseException) -> CniError:
    """Return the CNI error for any other: code 999 for one that nobody expected."""
    if isinstance(error, CniError):
        return error
    told = CniError(Code.INTERNAL, f"internal error: {type(error).__name__}: {_words(error)}", "please report it")
    told.__cause__ = error
    return told


def try_step(step: Step) -> CniError | None:
    """Run one step of taking down; return what it met, whatever kind of error that is."""
    try:
        step()
    except Exception as trouble:  # noqa: BLE001  the steps after it are tried, whatever this one met
        return to_cni_error(trouble)
    return None


def run_all(doing: str, *steps: Step) -> None:
    """Run every step, whatever the others met; then raise all they met as one `CniError`."""
    if troubles := [trouble for step in steps if (trouble := try_step(step))]:
        raise combined_error(doing, troubles)
