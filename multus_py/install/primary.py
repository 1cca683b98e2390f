# SPDX-License-Identifier: Apache-2.0
"""The conf of the node's own network: distinguished from a meta-CNI's by its content, never by its name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.cni import conflist
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code
from multus_py.config.plugin import OUR_TYPES, TYPE

CONF_SUFFIXES = (".conf", ".conflist", ".json")


@dataclass(frozen=True)
class Conf:
    """A file in a conf folder: *body* is None when it cannot be read, *problem* why it cannot be wrapped."""

    path: Path
    body: Mapping[str, Any] | None
    problem: str = ""


def conf_files(folder: Path) -> list[Path]:
    """Return the files that a runtime would read, in its order; code 5 when the folder cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in CONF_SUFFIXES and path.is_file())
    except OSError as cause:
        raise CniError(
            Code.IO, f"cannot read the conf folder {folder}: {cause.strerror}", "is it the one that the runtime reads?"
        ) from cause


def survey(folder: Path, name: str = TYPE) -> Iterator[Conf]:
    """Yield every conf of *folder*, with what keeps it from being a primary; *name* is our own type."""
    for path in conf_files(folder):
        try:
            body = read(path)
        except CniError as error:
            yield Conf(path, None, error.msg)
            continue
        yield Conf(path, body, f"{path} is a meta-CNI's own conf" if is_meta(body, name) else "")


def find_first(folder: Path, name: str = TYPE) -> Conf:
    """Return the first conf of *folder*, by name, that does not belong to a meta-CNI; code 7 when there is none."""
    found = list(survey(folder, name))
    if usable := [conf for conf in found if not conf.problem]:
        return Conf(usable[0].path.resolve(), usable[0].body)
    raise no_primary_error(folder, [conf.problem for conf in found])


def no_primary_error(folder: Path, passed_over: list[str]) -> CniError:
    """Return the error for a folder without a primary."""
    return CniError(
        Code.INVALID_CONFIG,
        f"no primary network is configured in {folder}",
        "; ".join([*passed_over, "install a CNI first, or name its conf"]),
    )


def read(path: Path) -> dict[str, Any]:
    """Read a conf file that a runtime would load; codes 5 (unreadable), 6 (no JSON) and 7 (no conf) name the file."""
    try:
        text = path.read_bytes()
    except OSError as cause:
        raise CniError(Code.IO, f"cannot read {path}: {cause.strerror}", "name an existing conf file") from cause
    try:
        body = json_object(text, str(path))
        conflist.parse(body, where=str(path), in_folder=path.suffix == ".conflist")
    except CniError as error:
        raise CniError(error.code, error.msg, error.details or "mend the file, or name another one") from error
    return body


def read_wrappable(path: Path, name: str) -> Conf:
    """Return the conf at *path*; code 7 when it is a meta-CNI's, which would call us again."""
    body = read(path)
    if is_meta(body, name):
        raise CniError(
            Code.INVALID_CONFIG, f"{path} is a meta-CNI's own conf, it cannot be the primary", "name another file"
        )
    return Conf(path, body)


def is_meta(body: Mapping[str, Any], name: str) -> bool:
    """Tell, by content, whether a conf calls us or another meta-CNI: wrapping it would be a loop."""
    return any(
        plugin.get("type") in {*OUR_TYPES, name} or "delegates" in plugin or "clusterNetwork" in plugin
        for plugin in plugins(body)
    )


def has_only_types(body: Mapping[str, Any], types: frozenset[str]) -> bool:
    """Tell whether every plugin of a conf is one of *types*."""
    found = plugins(body)
    return bool(found) and all(plugin.get("type") in types for plugin in found)


def capabilities(body: Mapping[str, Any]) -> dict[str, bool]:
    """Return what any plugin of the conf declares: the runtime sends its values to us only when we declare them."""
    declared = [plugin.get("capabilities") for plugin in plugins(body)]
    return {key: True for item in declared if isinstance(item, Mapping) for key, wanted in item.items() if wanted}


def plugins(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the plugins of a conf, a list or a single one; what is no object is left out."""
    listed = body.get("plugins", [body])
    return [plugin for plugin in listed if isinstance(plugin, Mapping)] if isinstance(listed, list) else []
