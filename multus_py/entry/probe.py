# SPDX-License-Identifier: Apache-2.0
"""The process that kubelet starts every few seconds to ask the daemon how it is: the standard library's sockets alone.

`python -m multus_py.entry.probe /run/multus/multus.sock /readyz` ends with 0 or, with the reason on stderr, 1.
"""

import socket
import sys
from pathlib import Path

_PATIENCE = 5.0  # seconds


def main() -> int:
    """Ask for the path of the second word on the socket of the first one."""
    reason = failure(Path(sys.argv[1]), sys.argv[2])
    if reason:
        print(reason, file=sys.stderr)
    return 1 if reason else 0


def failure(path: Path, url: str) -> str:
    """Return why the daemon on the socket *path* does not answer GET *url* with 200; "" when it does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(_PATIENCE)
            line.connect(str(path))
            line.sendall(f"GET {url} HTTP/1.0\r\n\r\n".encode())
            answer = line.makefile("rb").readline(200).decode(errors="replace").split()
    except OSError as cause:
        return cause.strerror or str(cause)
    status = answer[1] if len(answer) > 1 and answer[0].startswith("HTTP/") else "no HTTP"
    return "" if status == "200" else f"it answers {status}"


if __name__ == "__main__":
    sys.exit(main())
