# SPDX-License-Identifier: Apache-2.0
"""Rollback: each undo step is registered next to its operation, and runs unless all operations succeeded."""

from collections.abc import Callable


class Undo:
    """Undo steps that run newest first, unless `keep()` was called.

    The first error is raised: an undo step that fails is noted on it. Without an error the first failed step is raised.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def __enter__(self) -> "Undo":
        return self

    def add(self, step: Callable[..., object], *args: object) -> None:
        """Register the undo step of an operation; call it just before the operation."""
        self._steps.append((step, args))

    def keep(self) -> None:
        """All operations succeeded: discard the steps."""
        self._steps.clear()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        failed: Exception | None = None
        while self._steps:
            step, args = self._steps.pop()
            try:
                step(*args)
            except Exception as caught:  # noqa: BLE001  every step is tried, whatever the one before met
                (error or failed or caught).add_note(f"while taking back ({step.__qualname__}): {caught}")
                failed = failed or caught
        if failed and error is None:
            raise failed
