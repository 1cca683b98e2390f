# SPDX-License-Identifier: Apache-2.0
"""PCI devices read from a sysfs that is laid out as Linux lays it out."""

from pathlib import Path

import pytest

from multus_py.kernel.pci import ADDRESS, Bus, Place

PORT, FIRST, TENTH, OTHER = "0000:01:00.0", "0000:01:10.0", "0000:01:12.4", "0000:02:00.0"


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    """Return a bus with a port with two functions, the number of one of them 10, and a device without a driver."""
    bus = tmp_path / "bus/pci"
    real = tmp_path / "devices/pci0000:00"
    (bus / "devices").mkdir(parents=True)
    for driver in ("igb", "igbvf"):
        (bus / "drivers" / driver).mkdir(parents=True)
    for address, driver in ((PORT, "igb"), (FIRST, "igbvf"), (TENTH, "igbvf"), (OTHER, "")):
        (real / address).mkdir(parents=True)
        (bus / "devices" / address).symlink_to(real / address)
        if driver:
            (real / address / "driver").symlink_to(bus / "drivers" / driver)
    for number, address in ((2, FIRST), (10, TENTH)):
        (real / PORT / f"virtfn{number}").symlink_to(Path("..") / address)
        (real / address / "physfn").symlink_to(Path("..") / PORT)
    for name, port in (("p1", "p0"), ("p1_0", "pf0vf2"), ("p1_1", "c1pf0vf10"), ("plain", None)):
        (real / PORT / "net" / name).mkdir(parents=True)
        if port:
            (real / PORT / "net" / name / "phys_port_name").write_text(port + "\n")
    return Bus(tmp_path)


def test_a_function_is_found_on_its_port(bus: Bus) -> None:
    """The port's address and the function's number come from the links, not from the address; a port is no function."""
    assert Place(PORT, 2) == bus.place(FIRST)
    assert Place(PORT, 10) == bus.place(TENTH)
    assert bus.place(PORT) is None
    assert bus.place("0000:ff:00.0") is None


def test_drivers_are_named(bus: Bus) -> None:
    """A device's driver is named; one without a driver, and one that is not there, have none."""
    assert ["igb", "igbvf", "", ""] == [bus.driver(one) for one in (PORT, FIRST, OTHER, "0000:ff:00.0")]
    assert [True, False] == [bus.exists(one) for one in (OTHER, "0000:ff:00.0")]


def test_representors_are_not_the_port(bus: Bus) -> None:
    """In switchdev mode a port's folder also has its functions' representors: they are left out."""
    assert ("p1", "plain") == bus.interfaces(PORT)
    assert () == bus.interfaces(FIRST)


@pytest.mark.parametrize(
    ("text", "good"),
    [(FIRST, True), ("10000:01:1f.7", True), ("0000:01:10.8", False), ("01:10.0", False), (f"{FIRST}\n", False)],
)
def test_an_address_is_recognised(text: str, good: bool) -> None:
    """Domain, bus, device and function, in lower case."""
    assert good == bool(ADDRESS.match(text))
