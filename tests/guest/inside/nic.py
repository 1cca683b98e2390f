# SPDX-License-Identifier: Apache-2.0
"""The guest's NIC as its drivers and iproute2 show it: our own code is no witness here."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multus_py.kernel import namespaces

_DEVICES = Path("/sys/bus/pci/devices")
_DRIVERS = Path("/sys/bus/pci/drivers")
FUNCTIONS = 7


def run(*words: str, netns: str = "", check: bool = True) -> str:
    """Run a program, in a namespace when one is named; return what it printed."""
    done = namespaces.run_in(netns, lambda: subprocess.run(words, capture_output=True, text=True, check=False))
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def links(netns: str = "") -> dict[str, dict[str, Any]]:
    """Return what iproute2 says of every interface of a namespace, by name."""
    return {link["ifname"]: link for link in json.loads(run("ip", "-d", "-j", "link", netns=netns) or "[]")}


def reaches(netns: str, address: str, tries: int = 3) -> bool:
    """Tell whether an address answers from a namespace."""
    return subprocess_ok(netns, "ping", "-c", "1", "-W", "1", "-i", "0.2", address, tries=tries)


def subprocess_ok(netns: str, *words: str, tries: int) -> bool:
    """Tell whether a program succeeds in a namespace in one of some tries."""
    for _ in range(tries):
        done = namespaces.run_in(netns, lambda: subprocess.run(words, capture_output=True, check=False))
        if done.returncode == 0:
            return True
    return False


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something is true; the kernel and its drivers take their time in the background."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true after {seconds} s: {true}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Port:
    """A physical function: its PCI address."""

    address: str

    @property
    def name(self) -> str:
        """The name of its interface."""
        return next((_DEVICES / self.address / "net").iterdir()).name

    @property
    def functions(self) -> list[str]:
        """The PCI addresses of its virtual functions, in the order of their numbers."""
        found = (_DEVICES / self.address).glob("virtfn*")
        return [link.readlink().name for link in sorted(found, key=lambda link: int(link.name[6:]))]

    def make_functions(self, count: int = FUNCTIONS) -> None:
        """Set it up with so many functions, all of them new."""
        run("ip", "link", "set", self.name, "up")
        until(lambda: links()[self.name]["operstate"] == "UP")
        (_DEVICES / self.address / "sriov_numvfs").write_text("0")
        (_DEVICES / self.address / "sriov_numvfs").write_text(str(count))
        until(lambda: len([one for one in self.functions if interface(one)]) == count)

    def told(self, device: str) -> dict[str, Any]:
        """Return what it says of one of its functions."""
        infos: list[dict[str, Any]] = links()[self.name]["vfinfo_list"]
        return infos[self.functions.index(device)]

    def reload(self) -> None:
        """Take its driver away and give it back: its functions are gone, and made anew."""
        (_DRIVERS / "igb/unbind").write_text(self.address)
        (_DRIVERS / "igb/bind").write_text(self.address)
        until((_DEVICES / self.address / "net").exists)
        self.make_functions()


def interface(device: str) -> str:
    """Return the name of a device's interface when it is at home, "" when it is not."""
    return next((path.name for path in (_DEVICES / device / "net").glob("*")), "")


def bind(device: str, driver: str) -> None:
    """Bind a device to a driver, whichever it has now."""
    (_DEVICES / device / "driver_override").write_text(driver)
    if (_DEVICES / device / "driver").exists():
        (_DEVICES / device / "driver/unbind").write_text(device)
    Path("/sys/bus/pci/drivers_probe").write_text(device)
    assert (_DEVICES / device / "driver").resolve().name == driver
    (_DEVICES / device / "driver_override").write_text("\n")


@dataclass
class Nic:
    """Both ports, and how everything looked before a test."""

    ports: list[Port]
    before: dict[str, Any] = field(default_factory=dict)

    def look(self) -> dict[str, Any]:
        """Return all that a delegate could change: interfaces and what the ports say of their functions."""
        found = {}
        for name, link in links().items():
            if "parentdev" in link:
                found[name] = {key: link.get(key) for key in ("address", "mtu", "altnames", "ifalias", "parentdev")}
                found[name] |= {"up": "UP" in link["flags"], "functions": link.get("vfinfo_list")}
        return found
