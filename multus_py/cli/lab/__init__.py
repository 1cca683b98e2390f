# SPDX-License-Identifier: Apache-2.0
"""Labs: throw-away pods that play a node. `place.py` what a lab is, `build.py`, `pods.py`, `runtime.py`, `survey.py`.

The lab's own network namespace is the host: bridges and parents of macvlan live there, and vanish with it. The
executables see a `/var/lib/cni` of the lab's own, so that no address of the machine's real pools is touched.
"""
