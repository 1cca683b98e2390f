# SPDX-License-Identifier: Apache-2.0
"""Typed reads of JSON objects from configs and annotations: an error (code 7) names the object and the key.

Keys are found as Go's decoder finds them: the exact spelling first, then without regard to case.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from multus_py.cni.addresses import read_address
from multus_py.cni.errors import CniError, Code
from multus_py.cni.result import Address

# The keys that are declared are a few hundred; unknown keys of users do not stay in the cache for long.
fold = lru_cache(512)(str.casefold)


def _is_storable(text: str) -> bool:
    """Return whether *text* can be a path and be written to a file: no zero byte, no unpaired surrogate."""
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class FieldError(CniError):
    """The value of the key *key* has the wrong type or is out of range."""

    def __init__(self, where: str, key: str, why: str) -> None:
        super().__init__(Code.INVALID_CONFIG, f"{where}: {key!r} {why}")
        self.key = key


@dataclass(frozen=True)
class Fields:
    """One JSON object; *where* names it in error messages."""

    body: Mapping[str, Any]
    where: str

    def error(self, key: str, expected: str) -> FieldError:
        """Return the error that states what the value of *key* must be."""
        return FieldError(self.where, key, f"must be {expected}, it is {self.get(key)!r:.80}")

    def get(self, key: str) -> Any:
        """Return the value of *key* as parsed from JSON, None when it is absent."""
        if key in self.body:
            return self.body[key]
        return self._folded.get(fold(key)) if self.body else None

    @cached_property
    def _folded(self) -> Mapping[str, Any]:
        """The values by case-folded key; of several spellings the first counts, as in Go."""
        return {fold(name): value for name, value in reversed([*self.body.items()])}

    def text(self, key: str, default: str = "") -> str:
        """Return a string."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or not _is_storable(value):
            raise self.error(key, "a string")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def number(self, key: str, default: int = 0) -> int:
        """Return a whole number, zero or more."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(key, "a whole number, zero or more")
        return value

    def seconds(self, key: str, default: float) -> float:
        """Return a duration in seconds, more than 0 and at most 86400."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86400:
            raise self.error(key, "a time in seconds, more than 0 and at most 86400")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings, None when it is absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) and _is_storable(item) for item in value):
            raise self.error(key, "a list of strings")
        return tuple(value)

    def table(self, key: str) -> Mapping[str, Any]:
        """Return an object, empty when it is absent."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(key, "an object")
        return value

    def tables(self, key: str) -> tuple[Mapping[str, Any], ...] | None:
        """Return a list of objects, None when it is absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.error(key, "a list of objects")
        return tuple(value)

    def addresses(self, key: str) -> tuple[Address, ...] | None:
        """Return a list of IP addresses without prefix, None when it is absent."""
        value = self.texts(key)
        try:
            return None if value is None else tuple(read_address(item) for item in value)
        except ValueError as cause:
            raise self.error(key, "a list of IP addresses") from cause
