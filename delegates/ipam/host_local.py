# SPDX-License-Identifier: Apache-2.0
"""The host-local delegate: addresses from ranges, reserved in files on this node (`pool`)."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.cni import names, versions
from multus_py.cni import result as results
from multus_py.cni.call import Call
from multus_py.cni.delegate import Request
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.cni.result import DNS, IP, Address, Result, Route
from multus_py.config import delegate_schema
from multus_py.delegates import requested
from multus_py.delegates.ipam import pool, ranges
from multus_py.delegates.ipam.pool import Pool
from multus_py.delegates.ipam.ranges import Candidate, RangeSet
from multus_py.kernel import host_root, small_files
from multus_py.kernel.undo import Undo

SCHEMA: Mapping[str, Any] = delegate_schema.load("host-local")
DATA_DIR = "/var/lib/cni/networks"
_RESOLV_CONF_MAX = 64 * 1024  # bytes
_RANGE_KEYS = ("subnet", "rangeStart", "rangeEnd", "gateway")


@dataclass(frozen=True)
class Config:
    """A host-local config, checked: one address is given from each of *sets*, *wanted* ones first."""

    network: str
    sets: tuple[RangeSet, ...]
    wanted: tuple[Address, ...]
    routes: tuple[Route, ...]
    resolv_conf: str


@requested.cached_for_add
def parse(call: Call) -> Config:
    """Read the config and what the call requests; code 7 says what is wrong."""
    fields = _ipam(call)
    sets = tuple(
        ranges.read_set(_objects(item, f"ranges[{n}]"), f"invalid range set {n}") for n, item in enumerate(_sets(call))
    )
    if not sets:
        raise CniError(Code.INVALID_CONFIG, "host-local: no IP ranges specified", "'ranges', or 'subnet'")
    families = [found[0].subnet.version for found in sets]
    if not versions.at_least(call.version, "0.3.0") and len(set(families)) < len(families):
        raise CniError(
            Code.INVALID_CONFIG,
            f"CNI version {call.version} does not support more than 1 address per family",
            "use cniVersion 0.3.0 or newer",
        )
    ranges.refuse_overlap(sets)
    return Config(
        network=names.network(call.config.get("name"), "host-local: name"),
        sets=sets,
        wanted=_wanted(call),
        routes=ranges.routes_and_dns(fields)[0],
        resolv_conf=fields.text("resolvConf"),
    )


def add(request: Request) -> Result:
    """Reserve one address from each range set, all or none."""
    call, config = request.call, parse(request.call)
    dns = _resolv_conf(config.resolv_conf, Path(request.root))
    mine = pool.owner(call.container_id, call.ifname)
    chosen = _assigned(config)
    with pool.locked(_pools(request), config.network) as files, Undo() as undo:
        held = files.holders()
        # Read from the file, not from memory: a wrong refusal would repeat itself.
        own = [name for name, holder in held.items() if holder == mine == files.holder(name)]
        _refuse_second(own, config, chosen, mine)
        taken = {name for name, holder in held.items() if holder}
        given = []
        for n, found in enumerate(config.sets):
            wanted = chosen[n]
            item = _requested(found, wanted) if wanted else _next(found, files.last(n), taken)
            _reserve(files, item, n, mine)
            undo.add(files.release, mine, [item.address.ip], 1)
            files.set_last(n, item.address.ip)
            given.append(item)
        undo.keep()
    return Result(ips=tuple(IP(item.address, item.gateway) for item in given), routes=config.routes, dns=dns)


def delete(request: Request) -> None:
    """Release every address of this interface of this container; none is success, and so is a pool that does not exist.

    Of the config only the name and `dataDir` are needed, so that one that ADD refused is accepted.
    """
    call = request.call
    pools, network = _pools(request), names.network(call.config.get("name"), "host-local: name")
    if not pool.exists(pools, network):
        return
    hints, enough = _hints(call)
    with pool.locked(pools, network) as files:
        if not files.release(pool.owner(call.container_id, call.ifname), hints, enough):
            files.release(call.container_id)  # files of old versions of the executable have no interface


def check(request: Request) -> None:
    """Raise when no address is reserved for this interface of this container."""
    call, config = request.call, parse(request.call)
    with pool.locked(_pools(request), config.network) as files:
        if not {pool.owner(call.container_id, call.ifname), call.container_id} & set(files.owners().values()):
            raise CniError(
                Code.INTERNAL,
                f"host-local: Failed to find address added by container {call.container_id}",
                "the reservation is gone: somebody else may get the address",
            )


def status(request: Request) -> None:
    """Raise when the config is wrong or the pool's folder cannot be used."""
    config = parse(request.call)
    try:
        with pool.locked(_pools(request), config.network):
            pass
    except CniError as cause:
        raise CniError(Code.NOT_AVAILABLE, cause.msg, cause.details) from cause


# --- the config ------------------------------------------------------------------------------------------------------


def _ipam(call: Call) -> Fields:
    fields = Fields(call.config, "config")
    if fields.get("ipam") is None:
        raise CniError(Code.INVALID_CONFIG, "IPAM config missing 'ipam' key", "add 'ipam' with its ranges")
    return Fields(fields.table("ipam"), "ipam")


def _pools(request: Request) -> Path:
    """Return the folder of all pools as this process sees it."""
    return host_root.within(Path(request.root), _ipam(request.call).text("dataDir") or DATA_DIR)


def _sets(call: Call) -> list[Any]:
    """Return the sets of the config: the runtime's first, then that of the flat keys, then `ranges`."""
    fields = _ipam(call)
    flat = {key: fields.get(key) for key in _RANGE_KEYS if fields.get(key) is not None}
    asked = requested.runtime(call).get("ipRanges") or []
    written = fields.get("ranges") or []
    if not isinstance(written, list) or not isinstance(asked, list):
        raise CniError(Code.INVALID_CONFIG, "host-local: ranges must be a list of lists of objects", "[[{subnet}]]")
    return [*asked, *([[flat]] if flat.get("subnet") else []), *written]


def _objects(value: Any, where: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise CniError(Code.INVALID_CONFIG, f"host-local: {where} must be a list of objects", "[{subnet}]")
    return value


def _wanted(call: Call) -> tuple[Address, ...]:
    """Return the requested addresses: of CNI_ARGS, args.cni and runtimeConfig. A prefix length is ignored."""
    texts = [
        *([call.arg("IP")] if call.arg("IP") else []),
        *(requested.cni_args(call).texts("ips") or ()),
        *(requested.runtime(call).texts("ips") or ()),
    ]
    found = [
        ranges.cidr(text, "requested ips").ip if "/" in text else ranges.address(text, "requested ips")
        for text in texts
    ]
    return tuple(dict.fromkeys(found))


def _resolv_conf(path: str, root: Path) -> DNS:
    """Read name servers from a resolv.conf (resolv.conf(5)); code 5 when it cannot be read."""
    if not path:
        return DNS()
    try:
        text = small_files.read_regular(host_root.within(root, path), _RESOLV_CONF_MAX)
    except OSError as cause:
        raise CniError(Code.IO, f"cannot read resolvConf {path}: {cause.strerror}", "see 'resolvConf'") from cause
    lines = text.decode(errors="replace").splitlines()
    words = [line.split() for line in lines if not line.lstrip().startswith(("#", ";"))]
    settings = [(item[0], item[1:]) for item in words if len(item) > 1]
    return DNS(
        nameservers=tuple(values[0] for key, values in settings if key == "nameserver"),
        domain=next((values[0] for key, values in reversed(settings) if key == "domain"), ""),
        search=tuple(value for key, values in settings if key == "search" for value in values),
        options=tuple(value for key, values in settings if key == "options" for value in values),
    )


# --- reserving -------------------------------------------------------------------------------------------------------


def _assigned(config: Config) -> dict[int, Address | None]:
    """Return the requested address of each set; code 7 when one is in no set. Each set gives one address."""
    left = list(config.wanted)
    chosen: dict[int, Address | None] = {}
    for n, found in enumerate(config.sets):
        chosen[n] = next((item for item in left if ranges.holder(found, item)), None)
        if item := chosen[n]:
            left.remove(item)
    if left:
        raise CniError(
            Code.INVALID_CONFIG,
            f"failed to allocate all requested IPs: {' '.join(str(item) for item in left)}",
            "each must be in a range set of its own",
        )
    return chosen


def _refuse_second(own: Sequence[str], config: Config, chosen: Mapping[int, Address | None], mine: str) -> None:
    """Raise when the interface has an address in a set from which no address is requested."""
    for n, found in enumerate(config.sets):
        for item in [ranges.address(name, "reservation") for name in own]:
            if chosen[n] is None and ranges.holder(found, item):
                raise CniError(
                    Code.INTERNAL,
                    f"{item} has been allocated to {mine.split(maxsplit=1)[0]}, duplicate allocation is not allowed",
                    "an earlier ADD of the same interface was not deleted",
                )


def _reserve(files: Pool, item: Candidate, n: int, mine: str) -> None:
    """Write a reservation; code 11 when another interface has the address."""
    if not files.reserve(item.address.ip, mine):
        raise CniError(
            Code.TRY_AGAIN,
            f"requested IP address {item.address.ip} is not available in range set {n}",
            "another interface has it",
        )


def _requested(found: RangeSet, wanted: Address) -> Candidate:
    """Return the requested address with prefix and gateway of its range; code 7 for the gateway's own."""
    part = ranges.holder(found, wanted)
    if part is None or wanted == part.gateway:
        raise CniError(Code.INVALID_CONFIG, f"requested ip {wanted} is subnet's gateway", "ask for another one")
    return ranges.candidate(part, wanted)


def _next(found: RangeSet, last: Address | None, taken: Container[str]) -> Candidate:
    """Return the first free address after *last*; code 11 when there is none."""
    for item in ranges.candidates(found, last):
        if str(item.address.ip) not in taken:
            return item
    raise CniError(
        Code.TRY_AGAIN,
        f"no IP addresses available in range set: {_text(found)}",
        "delete pods of this network, or give it a larger range",
    )


def _hints(call: Call) -> tuple[list[Address], int]:
    """Return the addresses of prevResult in our sets, which are probably those to release, and how many ADD reserved.

    Without a usable prevResult or config there are none: every reservation is read.
    """
    body = call.config.get("prevResult")
    try:
        ips = results.read(body, call.version).ips if isinstance(body, Mapping) else ()
        sets = parse(call).sets
    except CniError:
        return [], 0
    named = [ip.address.ip for ip in ips if any(ranges.holder(found, ip.address.ip) for found in sets)]
    return named, len(sets)


def _text(found: RangeSet) -> str:
    return ",".join(str(part) for part in found)
