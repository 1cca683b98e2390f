# SPDX-License-Identifier: Apache-2.0
"""What answers: the socket, the calls behind it, metrics."""
