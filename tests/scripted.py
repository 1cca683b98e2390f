# SPDX-License-Identifier: Apache-2.0
"""A CNI executable for tests that answers by a script and records its calls."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python} -ISB
import json, os, sys, time
from pathlib import Path
here = Path(sys.argv[0])
call = {{"argv0": sys.argv[0], "verb": os.environ.get("CNI_COMMAND"),
        "env": {{k: v for k, v in os.environ.items() if k.startswith(("CNI_", "MULTUS_"))}},
        "config": json.loads(sys.stdin.read() or "null")}}
with open(here.with_name(here.name + ".calls"), "a") as calls:
    calls.write(json.dumps(call) + chr(10))
script = json.loads(here.with_name(here.name + ".script").read_text()).get(call["verb"], {{}})
sandbox = [os.environ.get("CNI_CONTAINERID", ""), os.environ.get("CNI_IFNAME", "")]
held = here.with_name("held") / "@".join([here.name, *sandbox])
if script.get("fails_before"):
    sys.stderr.write("scripted stderr"); print(json.dumps(script["fails_before"])); raise SystemExit(1)
if call["verb"] == "ADD":
    held.parent.mkdir(exist_ok=True); held.touch()
if call["verb"] == "DEL" and not script.get("error"):
    held.unlink(missing_ok=True)
time.sleep(script.get("sleep", 0))
sys.stderr.write(script.get("stderr", ""))
if script.get("signal"):
    os.kill(os.getpid(), script["signal"])
if script.get("error"):
    print(json.dumps(script["error"])); raise SystemExit(1)
out = script.get("stdout")
if out is None and call["verb"] == "ADD":
    empty = {{"cniVersion": call["config"]["cniVersion"]}}
    out = json.dumps(script.get("result") or call["config"].get("prevResult") or empty)
sys.stdout.write(out or "")
raise SystemExit(script.get("exit", 0))
"""


@dataclass(frozen=True)
class Scripted:
    """A folder of scripted plugins; each type is one executable file in it."""

    folder: Path

    def plugin(self, name: str, **script: dict[str, Any]) -> None:
        """Create (or replace) the plugin *name*: keyword = verb, value = its answer."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{name}.script").write_text(json.dumps(script))
        program = self.folder / name
        if not program.exists():
            program.write_text(_PROGRAM.format(python=sys.executable))
            program.chmod(0o755)

    def calls(self, name: str, verb: str = "") -> list[dict[str, Any]]:
        """Return the calls of the plugin in order, of one verb or all."""
        path = self.folder / f"{name}.calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if verb in ("", call["verb"])]

    def held(self) -> list[str]:
        """Return what was added and not deleted yet, as `<type>@<container>@<interface>`."""
        folder = self.folder / "held"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
