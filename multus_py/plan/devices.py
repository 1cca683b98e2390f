# SPDX-License-Identifier: Apache-2.0
"""Decide which device belongs to which network of a pod. Pure: where the devices come from is handed in."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from multus_py.cni.errors import CniError, Code
from multus_py.kube.store import Device

Source = Callable[[], Iterable[Device]]
_PCI = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]\Z")
_TOLD = 16  # devices that a message lists
_Spot = tuple[str, str]  # what tells two devices apart


@dataclass(frozen=True)
class Wish:
    """What one network wants: a device of *resource*, or one of a *claim*, or the *id* that the pod wrote; "" any.

    *network* is how a message names it: two networks of one definition are told apart by their interfaces.

    Without resource and claim nobody counts the device: the id is the pod's own word, and taken.
    """

    network: str
    resource: str = ""
    id: str = ""
    container: str = ""
    claim: str = ""

    @property
    def counted(self) -> bool:
        """Tell whether the device must be one that the pod was given."""
        return bool(self.resource or self.claim)

    def fits(self, device: Device) -> bool:
        """Tell whether *device* is what is wanted."""
        return (
            self.resource in ("", device.resource)
            and self.id in ("", device.id)
            and (not self.container or self.container in device.containers)
            and (not self.claim or self.claim in device.claims)
        )

    def __str__(self) -> str:
        parts = [
            f"device {self.id}" if self.id else "a device",
            f"of {self.resource}" if self.resource else "",
            f"of claim {self.claim}" if self.claim else "",
            f"of container {self.container}" if self.container else "",
        ]
        return " ".join(part for part in parts if part)


def is_pci(device_id: str) -> bool:
    """Tell whether *device_id* is a PCI address, dddd:BB:DD.f."""
    return bool(_PCI.match(device_id))


def assign(wishes: Sequence[Wish | None], sources: Iterable[Source]) -> list[Device | None]:
    """Return the device of each wish, in their order; code 7 when the pod was given too few.

    In turn each wish gets the first device that fits, that none before it got, and that leaves one for each after it:
    device plugins' before claims', sorted by id as text (OVN-Kubernetes counts on the same order). No device is given
    twice. Of *sources* no more are asked than are needed.
    """
    _refuse_doubles(wishes)
    counted = {n: wish for n, wish in enumerate(wishes) if wish and wish.counted}
    foreign = {wish.id for wish in wishes if wish and wish.id and not wish.counted}
    given: list[Device] = []
    found: dict[int, Device] = {}
    for source in sources:
        if len(found) < len(counted):
            given += [device for device in _merged(_told(source, counted)) if device.id not in foreign]
            found = _matched(counted, given)
    if len(found) < len(counted):
        raise _too_few(counted, given)
    return [found.get(n) for n in range(len(wishes))]


def _told(source: Source, counted: Mapping[int, Wish]) -> Iterable[Device]:
    try:
        return source()
    except CniError as error:
        wanted = ", ".join(f"{wish.network} wants {wish}" for wish in counted.values())
        raise error.with_context(wanted) from error


def _merged(devices: Iterable[Device]) -> list[Device]:
    """Return each device once, sorted: an init container and the container after it may hold the same one."""
    found: dict[tuple[str, str], Device] = {}
    for device in devices:
        before = found.setdefault((device.id, device.resource), device)
        found[device.id, device.resource] = replace(
            before,
            containers=tuple(dict.fromkeys(before.containers + device.containers)),
            claims=tuple(dict.fromkeys(before.claims + device.claims)),
        )
    return [found[key] for key in sorted(found)]


def _matched(wishes: Mapping[int, Wish], given: Sequence[Device]) -> dict[int, Device]:
    """Return a device for each wish; nothing when some wish would go without."""
    match = _Match(wishes, given)
    if not all(match.place(n, set()) for n in wishes):
        return {}
    settled: set[_Spot] = set()
    for n in wishes:
        match.advance(n, settled)
        settled.add(match.spots[n])
    return {n: next(each for each in match.fitting[n] if identity(each) == match.spots[n]) for n in wishes}


class _Match:
    """Which wish has which device by now; one that has one gives way when it can have another (Kuhn, 1955)."""

    def __init__(self, wishes: Mapping[int, Wish], given: Sequence[Device]) -> None:
        self.fitting = {n: [device for device in given if wish.fits(device)] for n, wish in wishes.items()}
        self.spots: dict[int, _Spot] = {}
        self._choices = {n: [identity(device) for device in found] for n, found in self.fitting.items()}
        self._holders: dict[_Spot, int] = {}

    def place(self, n: int, closed: set[_Spot]) -> bool:
        """Give wish *n* a device that is not *closed*, which grows by what was tried."""
        choices = [spot for spot in self._choices[n] if spot not in closed]
        free = next((spot for spot in choices if spot not in self._holders), None)
        if free:
            self._give(n, free)
            return True
        for spot in choices:
            if spot not in closed:
                closed.add(spot)
                if self.place(self._holders[spot], closed):
                    self._give(n, spot)
                    return True
        return False

    def advance(self, n: int, settled: Set[_Spot]) -> None:
        """Give wish *n* the first device that is not *settled* and whose holder, if any, can have another."""
        before = self.spots[n]
        del self._holders[before]
        for spot in self._choices[n]:
            holder = self._holders.get(spot)
            if spot == before or (spot not in settled and (holder is None or self.place(holder, {*settled, spot}))):
                self._holders[spot], self.spots[n] = n, spot
                return

    def _give(self, n: int, spot: _Spot) -> None:
        if (before := self.spots.get(n)) and self._holders.get(before) == n:
            del self._holders[before]
        self._holders[spot], self.spots[n] = n, spot


def identity(device: Device) -> _Spot:
    """Return what tells a device apart from all others."""
    # A PCI address is one device whatever it is counted as; other ids are words of their resource.
    return ("", device.id.lower()) if is_pci(device.id) else (device.resource, device.id)


def _refuse_doubles(wishes: Sequence[Wish | None]) -> None:
    named: dict[str, Wish] = {}
    for wish in wishes:
        if wish and wish.id and (rival := named.setdefault(wish.id, wish)) is not wish:
            raise CniError(
                Code.INVALID_CONFIG,
                f"two networks ask for device {wish.id}: {rival.network} and {wish.network}",
                "a device goes to one network of a pod: name another, or leave 'deviceID' out",
            )


def _too_few(wishes: Mapping[int, Wish], given: Sequence[Device]) -> CniError:
    match = _Match(wishes, given)
    wish = next(wish for n, wish in wishes.items() if not match.place(n, set()))
    alike = replace(wish, id="", container="")
    rivals = [
        other.network for other in wishes.values() if (other.resource, other.claim) == (wish.resource, wish.claim)
    ]
    pool = [device for device in given if alike.fits(device)]
    listed = ", ".join(_described(device) for device in pool[:_TOLD]) + (", ..." if len(pool) > _TOLD else "")
    more = f"request {len(rivals)} of {alike.resource or alike.claim} in the resources of the pod's containers"
    known = sorted({word for device in given for word in device.claims})
    if wish.claim and wish.claim not in known:
        return CniError(
            Code.INVALID_CONFIG,
            f"network {wish.network} wants {wish}, and the pod has no such claim that gave it a device",
            f"name one of those that did: {', '.join(known[:_TOLD])}"
            if known
            else "no claim of the pod gave it a device",
        )
    return CniError(
        Code.INVALID_CONFIG,
        f"network {wish.network} wants {wish} and there is none for it: {len(rivals)} wanted ({', '.join(rivals)}), "
        f"{len(pool)} given" + (f" ({listed})" if listed else ""),
        "name one that was given, or leave 'deviceID' out" if wish.id else more,
    )


def _described(device: Device) -> str:
    return f"{device.id} to {' and '.join(device.containers)}" if device.containers else device.id
