# SPDX-License-Identifier: Apache-2.0
"""The undo list: each step to take back stands beside its deed, and runs unless all went well."""

from collections.abc import Callable


class Undo:
    """Steps to take back, newest first, unless `keep()` was reached.

    The first cause wins: what could not be taken back is noted on it. Without a cause the first trouble is raised.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def __enter__(self) -> "Undo":
        return self

    def add(self, step: Callable[..., object], *args: object) -> None:
        """Remember how to take back a deed; call it just before the deed."""
        self._steps.append((step, args))

    def keep(self) -> None:
        """All went well: forget the steps."""
        self._steps.clear()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        trouble: Exception | None = None
        while self._steps:
            step, args = self._steps.pop()
            try:
                step(*args)
            except Exception as caught:  # noqa: BLE001  every step is tried, whatever the one before met
                (error or trouble or caught).add_note(f"while taking back ({step.__qualname__}): {caught}")
                trouble = trouble or caught
        if trouble and error is None:
            raise trouble
