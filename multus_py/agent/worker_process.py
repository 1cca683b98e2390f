# SPDX-License-Identifier: Apache-2.0
"""The program of a process that attaches natively for the daemon: one call after the other, until the daemon is gone.

It reads a line of JSON, {"plugin": type, "root": folder, "call": the fields of a `Call`}, and answers with
{"result": ...} or {"error": {code, msg, details}}, and {"seen": [plugin, verb, seconds, code]} of every delegate that
ran.
"""

import json
import signal
import socket
import sys
from typing import Any

from multus_py import plugins
from multus_py.cni import serve
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError
from multus_py.plugins import Plugins

READY = b"ready\n"  # said once, when the first call can come


def _serve(line: socket.socket) -> None:
    plugins.preload()
    with line.makefile("rwb") as talk:
        talk.write(READY)
        talk.flush()
        for text in talk:
            talk.write(json.dumps(_answer(json.loads(text))).encode() + b"\n")
            talk.flush()


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    told = asked["call"]
    call = Call(**{**told, "args": tuple((key, value) for key, value in told["args"]), "path": tuple(told["path"])})
    seen: list[tuple[str, str, float, int]] = []
    own = Plugins("builtin", observed=lambda *one: seen.append(one), root=asked["root"])
    try:
        return {"result": own.run(asked["plugin"], call), "seen": seen}
    except CniError as error:
        return {"error": error.to_json(call.version), "seen": seen}
    except Exception as error:  # noqa: BLE001  the boundary: the next call must find this process
        serve.log_unforeseen(error)
        return {"error": serve.unforeseen(error).to_json(call.version), "seen": seen}


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # the daemon says when it is over: by going
        signal.signal(number, signal.SIG_IGN)
    _serve(socket.socket(fileno=int(sys.argv[1])))
