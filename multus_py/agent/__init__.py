# SPDX-License-Identifier: Apache-2.0
"""The node daemon's own rooms: the socket, order and bounds, the spool, the reconciler, hot attach, metrics."""
