# SPDX-License-Identifier: Apache-2.0
"""Check identifiers from outside that may become part of a path or an interface name."""

import re

from multus_py.cni.errors import CniError, Code

# Both patterns: CNI spec 1.1.0, sections 2 (CNI_CONTAINERID) and 1 (name).
_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")
_IDENTIFIER_RULE = "letters, digits, '_', '.', '-', first a letter or digit, at most 200"
# A plugin type is a file name on CNI_PATH: no separator, no leading dot.
_TYPE = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.+\-]*\Z")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9\-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9\-]*[a-z0-9])?)*\Z")
_HEXADECIMAL = re.compile(
    r"[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1)*[0-9a-fA-F]{2}\Z|(?:[0-9a-fA-F]{4}\.)+[0-9a-fA-F]{4}\Z"
)
IFNAME_MAX = 15  # IFNAMSIZ less the final zero: linux/if.h
# What dev_valid_name refuses above ASCII: the kernel's isspace takes 0xA0, also as a part of a letter in UTF-8.
_KERNEL_BLANK = b"\xa0"
# Folders of settings in /proc/sys/net/*/conf that are not those of an interface.
_NOT_INTERFACES = frozenset(("all", "default"))
_FILE_NAME_MAX = 200  # leaves room for what we append: a file name has at most 255 bytes


def container_id(text: str) -> str:
    """Return *text* when it is a container id; code 3 when it is missing, 4 when it has other characters."""
    if not text:
        raise CniError(Code.UNKNOWN_CONTAINER, "CNI_CONTAINERID is missing")
    if not _is_identifier(text):
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"CNI_CONTAINERID {text!r:.80} is not a container id", _IDENTIFIER_RULE
        )
    return text


def network(text: object, where: str = "network") -> str:
    """Return *text* when it can be the name of a network (code 7 otherwise)."""
    if not isinstance(text, str) or not _is_identifier(text):
        raise CniError(Code.INVALID_CONFIG, f"{where}: {text!r:.80} is not a network name", _IDENTIFIER_RULE)
    return text


def _is_identifier(text: str) -> bool:
    return bool(_IDENTIFIER.match(text)) and len(text) <= _FILE_NAME_MAX


def plugin_type(text: object, where: str = "plugin") -> str:
    """Return *text* when it can be the file name of a plugin (code 7 otherwise)."""
    if not isinstance(text, str) or not text:
        raise CniError(Code.INVALID_CONFIG, f"{where}: 'type' is missing", 'name the plugin, such as "bridge"')
    if not is_plugin_type(text):
        raise CniError(
            Code.INVALID_CONFIG,
            f"{where}: type {text!r:.80} is not the name of a plugin",
            "a file name, without a path",
        )
    return text


def is_plugin_type(text: str) -> bool:
    """Tell whether *text* can be the file name of a plugin, and nothing but a file name."""
    return bool(_TYPE.match(text)) and len(text) <= _FILE_NAME_MAX


def interface_problem(text: str) -> str:
    """Return why *text* cannot be the name of a new interface; "" when it can (libcni's rules, and the kernel's).

    The kernel is stricter than libcni: it makes `x0` of `x%d`, and has the settings of all interfaces under `all`.
    """
    if problem := _recorded_interface_problem(text):
        return problem
    if "%" in text:
        return f"an interface name has no '%', {text!r} has: the kernel would put a number there"
    if _KERNEL_BLANK in text.encode():
        return f"the kernel does not take {text!r} as an interface name: it reads a blank in it"
    if text in _NOT_INTERFACES or not text.strip("."):
        return f"{text!r} cannot be an interface name"
    return ""


def _recorded_interface_problem(text: str) -> str:
    if not text:
        return "an interface name cannot be empty"
    if len(text) > IFNAME_MAX or len(text.encode(errors="replace")) > IFNAME_MAX:
        return f"an interface name has at most {IFNAME_MAX} bytes, {text!r:.80} has more"
    if any(sign in "/:" or sign.isspace() or not sign.isprintable() for sign in text):
        return f"an interface name has no '/', ':', blank or control character, {text!r} has"
    if text in (".", ".."):
        return f"{text!r} cannot be an interface name"
    return ""


def interface(text: str, where: str = "CNI_IFNAME", code: int = Code.INVALID_ENVIRONMENT) -> str:
    """Return *text* when the kernel and the spec accept it as an interface name."""
    if problem := interface_problem(text):
        raise CniError(code, f"{where}: {problem}")
    return text


def recorded_interface(text: str, where: str) -> str:
    """Return the interface name of an earlier attachment's record; it may be one that `interface` refuses today."""
    if problem := _recorded_interface_problem(text):
        raise CniError(Code.INVALID_ENVIRONMENT, f"{where}: {problem}")
    return text


def is_label(text: str) -> bool:
    """Tell whether *text* is a DNS-1123 label (RFC 1123), as the names of namespaces are."""
    return bool(_LABEL.match(text))


def is_subdomain(text: str) -> bool:
    """Tell whether *text* is a DNS-1123 subdomain of at most 253 characters, as the names of objects are."""
    return len(text) <= 253 and bool(_SUBDOMAIN.match(text))


def is_mac(text: str) -> bool:
    """Tell whether *text* is the hardware address of an interface: 6 bytes, or the 20 of IP over InfiniBand."""
    return _bytes(text) in (6, 20)


def is_guid(text: str) -> bool:
    """Tell whether *text* is an InfiniBand GUID: 8 bytes."""
    return _bytes(text) == 8


def _bytes(text: str) -> int:
    """Return the number of bytes that *text* has in hexadecimal, with ':', '-' or '.' between; 0 when it is not."""
    return len(re.sub("[-:.]", "", text)) // 2 if _HEXADECIMAL.match(text) else 0
