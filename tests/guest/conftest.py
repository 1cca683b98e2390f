# SPDX-License-Identifier: Apache-2.0
"""What runs inside the guest is collected in there only."""

import machine

collect_ignore = [] if (machine.OUT / "command").exists() else ["inside"]
