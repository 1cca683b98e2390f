# SPDX-License-Identifier: Apache-2.0
"""A virtual machine with two SR-IOV ports on one wire, started for one command over the host's files (read-only)."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OUT = Path("/run/guest")  # where the guest sees the folder that it shares with the host
# Bus addresses of what is plugged in below. The functions' own addresses are told by sysfs.
_PORTS = ("52:54:00:aa:00:01", "52:54:00:aa:00:02")


class NoGuest(Exception):
    """This machine cannot run the guest; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """How a command in the guest ended: its exit code (None: it did not end) and all that the guest's console said."""

    status: int | None
    console: str


@dataclass(frozen=True)
class Guest:
    """A prepared guest: a folder with kernel, modules and initrd."""

    folder: Path

    def run(self, command: str, out: Path, seconds: float = 600) -> Outcome:
        """Boot, run a shell *command* as root with *out* at /run/guest, and power off; emulated, so slow."""
        (out / "command").write_text(command)
        (out / "status").unlink(missing_ok=True)
        try:
            done = subprocess.run(
                self._machine(out), stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
            console = (done.stdout + done.stderr).decode(errors="replace")
        except subprocess.TimeoutExpired as late:
            console = (late.stdout or b"").decode(errors="replace") + f"\nthe guest was ended after {seconds:g} s"
        status = out / "status"
        return Outcome(int(status.read_text()) if status.exists() else None, console)

    def _machine(self, out: Path) -> list[str]:
        (modules,) = (self.folder / "kernel/lib/modules").iterdir()
        (image,) = (self.folder / "kernel/boot").glob("vmlinuz-*")
        line = f"console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off intel_iommu=on guest.modules={modules}"
        machine = [
            "qemu-system-x86_64", "-M", "q35,kernel-irqchip=split", "-accel", "tcg,thread=multi", "-cpu", "qemu64",
            "-smp", "2", "-m", "768", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", "stdio", "-monitor", "none", "-kernel", str(image), "-initrd", str(self.folder / "initrd"),
            "-append", line, "-device", "intel-iommu,intremap=on,caching-mode=on",
            "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
            "-fsdev", f"local,id=out,path={out},security_model=none",
            "-device", "virtio-9p-pci,fsdev=out,mount_tag=out",
        ]  # fmt: skip
        for n, mac in enumerate(_PORTS):
            machine += ["-device", f"pcie-root-port,id=port{n},chassis={n + 1},bus=pcie.0"]
            machine += [
                "-netdev",
                f"hubport,id=wire{n},hubid=0",
                "-device",
                f"igb,netdev=wire{n},bus=port{n},mac={mac}",
            ]
        return machine


def prepare() -> Guest:
    """Install what the guest needs, once, under the cache folder outside of the repository; `NoGuest` says why not."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", "/var/cache")) / "multus-py-guest"
    done = subprocess.run([HERE / "prepare", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise NoGuest(said[-1] if said else "the guest cannot be prepared")
    return Guest(folder)
