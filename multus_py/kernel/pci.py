# SPDX-License-Identifier: Apache-2.0
"""PCI devices in sysfs: driver, interfaces, and which physical function a virtual one belongs to."""

import re
from dataclasses import dataclass
from pathlib import Path

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]\Z")
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(vf|sf)\d+\Z")


@dataclass(frozen=True)
class Place:
    """The place of a virtual function: the address of its physical function, and its number there."""

    physical: str
    number: int


@dataclass(frozen=True)
class Bus:
    """The PCI bus below a sysfs. It shows the interfaces of the namespace that it was mounted in."""

    root: Path = Path("/sys")

    def exists(self, address: str) -> bool:
        """Tell whether the device exists."""
        return self._device(address).is_dir()

    def driver(self, address: str) -> str:
        """Return the name of the driver that a device is bound to, "" when there is none."""
        return self._target(address, "driver")

    def place(self, address: str) -> Place | None:
        """Return where a virtual function sits, None for a device that is none."""
        physical = self._target(address, "physfn")
        links = self._device(physical).glob("virtfn*") if physical else ()
        for link in links:
            if link.readlink().name == address:
                return Place(physical, int(link.name.removeprefix("virtfn")))
        return None

    def functions(self, address: str) -> dict[int, str]:
        """Return the virtual functions of a physical one: their addresses by their numbers."""
        links = sorted(self._device(address).glob("virtfn*"))
        return {int(link.name.removeprefix("virtfn")): link.readlink().name for link in links}

    def interfaces(self, address: str) -> tuple[str, ...]:
        """Return the names of a device's own interfaces, without those that stand for its functions (representors)."""
        found = sorted((self._device(address) / "net").glob("*"))
        return tuple(path.name for path in found if not _REPRESENTOR.match(_text(path / "phys_port_name")))

    def _device(self, address: str) -> Path:
        return self.root / "bus/pci/devices" / address

    def _target(self, address: str, link: str) -> str:
        try:
            return (self._device(address) / link).readlink().name
        except OSError:
            return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
