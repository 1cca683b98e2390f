# SPDX-License-Identifier: Apache-2.0
"""What fuzz tests are fed with: JSON near what people write, texts that break things, a delegate that raises."""

import errno
import json
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from multus_py.cni.errors import CniError, PluginError
from multus_py.cni.result import Result

_TIMES = int(os.environ.get("MULTUS_PY_FUZZ", "1"))  # so many times as long: for a look that takes an hour
_PHASES = (Phase.explicit, Phase.generate)  # a failure is told as it was found: making it smaller takes minutes


def rounds(count: int) -> settings:
    """Return the settings of a test that makes up *count* examples, the same ones in every run.

    Its fixture is one place for all of them, which the test clears itself: namespaces cost more than an example.
    """
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=count * _TIMES, derandomize=True, database=None, phases=_PHASES, suppress_health_check=checks
    )


# --- values ----------------------------------------------------------------------------------------------------------

# No text begins with "/" or leads upwards: a key may name a folder, and what is written there stays in the test's.
TEXTS = st.sampled_from(
    ("", " ", "a", "net1", "eth0", "default", "b", "x%d", "\0", "a\0b", "\ud800", "\udc80\udcff", "\U0001f40d", "é" * 8,
     "a" * 16, "a" * 201, "a" * 256, "a" * 5000, "-", ".", "%", "a b", "a\nb", "1", "-1", "1e999", "true", "null",
     "NaN",
     "10.0.0.1", "10.0.0.1/33", "10.0.0.0/8", "fe80::1%x/64", "::/0", "0.0.0.0/0", "02:00:00:00:00:01",
     "ff:ff:ff:ff:ff:ff",
     "1.1.0", "0.2.0", "9.9.9", "bridge", "host-local", "faulty", "multus-py", "{}", "[]", "file", "file/below"),
) | st.text(st.characters(exclude_characters="/."), max_size=6)  # fmt: skip
NUMBERS = st.sampled_from((0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308))
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
KEYS = (
    "cniVersion", "cniVersions", "name", "type", "plugins", "ipam", "bridge", "master", "mtu", "mac", "vlan", "ips",
    "capabilities", "runtimeConfig", "args", "cni", "dns", "prevResult", "subnet", "ranges", "routes", "dataDir",
    "gateway",
    "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "isGateway", "ipMasq", "hairpinMode", "interface",
    "namespace",
    "default-route", "deviceID", "raises", "addresses", "dst", "gw", "containerID", "ifname",
)  # fmt: skip
NAMES = st.sampled_from(KEYS) | TEXTS


def _deep(levels: int) -> Any:
    value: Any = {}
    for n in range(levels):
        value = [value] if n % 2 else {"a": value}
    return value


VALUES = SCALARS | st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
) | st.sampled_from((60, 99, 150)).map(_deep)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, item in inner for place in _places(item, (*path, key))]


@st.composite
def near(draw: st.DrawFn, good: Any, kept: frozenset[str] = frozenset(), most: int = 2) -> Any:
    """Draw a value that differs from *good* at up to *most* places; keys of the top level in *kept* stay."""
    value = deepcopy(good)
    for _ in range(draw(st.integers(0, most))):
        places = [place for place in _places(value) if place and place[0] not in kept]
        if not places or draw(st.integers(0, 4)) == 0:
            name = draw(NAMES)
            if isinstance(value, dict) and name not in kept:
                value[name] = draw(VALUES)
            continue
        *way, last = draw(st.sampled_from(places))
        holder = value
        for step in way:
            holder = holder[step]
        if draw(st.integers(0, 3)) == 0:
            del holder[last]
        else:
            holder[last] = draw(VALUES)
    return value


@st.composite
def texts(draw: st.DrawFn, good: Any, kept: frozenset[str] = frozenset()) -> str:
    """Draw JSON text near *good*: now and then a key stands there twice, or the text is cut or is none."""
    text = json.dumps(draw(near(good, kept)))
    odd = draw(st.integers(0, 9))
    if odd == 0:
        return text[: draw(st.integers(0, len(text)))]
    if odd == 1 and text[:1] == "{" and len(text) > 2:
        return f"{{{json.dumps(draw(st.sampled_from(KEYS)))}: {json.dumps(draw(VALUES))}, {text[1:]}"
    if odd == 2:
        return draw(TEXTS)
    if odd == 3:
        return text.replace("{}", '{"a":' * 3000 + "1" + "}" * 3000, 1)
    return text


# --- a delegate ------------------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    """An error that cannot even say what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


ERRORS: Mapping[str, BaseException] = {
    **{kind.__name__: kind("hostile") for kind in (KeyError, ValueError, TypeError, AttributeError, IndexError,
    LookupError)},
    **{kind.__name__: kind("hostile") for kind in (RuntimeError, RecursionError, MemoryError, AssertionError,
    EOFError)},
    **{kind.__name__: kind("hostile") for kind in (StopIteration, ZeroDivisionError, NotImplementedError, ImportError)},
    **{kind.__name__: kind("hostile") for kind in (TimeoutError, BrokenPipeError, FileNotFoundError, SystemExit,
    OSError)},
    "ENOSPC": OSError(errno.ENOSPC, "No space left on device", "\udc80"),
    "UnicodeDecodeError": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "hostile"),
    "Group": ExceptionGroup("several", [KeyError(1), ExceptionGroup("inner", [OSError(5)])]),
    "Unspeakable": Unspeakable(),
    "CniError": CniError(7, "hostile \ud800", "\0"),
    "PluginError": PluginError(10**30, "", ""),
}  # fmt: skip


@dataclass
class Faulty:
    """A native delegate whose verbs raise what its config's key `raises` names: verb -> one of `ERRORS`."""

    asked: list[tuple[str, str]] = field(default_factory=list)  # verb and mark of every call

    def module(self) -> Any:
        """Return what a delegate's module has."""
        return SimpleNamespace(
            SCHEMA={},
            add=lambda request: self._told(request) or Result(),
            delete=self._told,
            check=self._told,
            status=self._told,
            parse=lambda call: self._raise(call.config, "parse"),
        )

    def _told(self, request: Any) -> None:
        call = request.call
        self.asked.append((call.verb, str(call.config.get("mark", ""))))
        self._raise(call.config, call.verb)

    @staticmethod
    def _raise(config: Mapping[str, Any], verb: str) -> None:
        raises = config.get("raises")
        name = raises.get(verb) if isinstance(raises, Mapping) else None
        if isinstance(name, str) and name in ERRORS:
            raise ERRORS[name]


RAISES = st.dictionaries(
    st.sampled_from(("ADD", "DEL", "CHECK", "STATUS", "parse")), st.sampled_from(sorted(ERRORS)), max_size=3
)
