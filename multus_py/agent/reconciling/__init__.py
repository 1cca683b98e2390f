# SPDX-License-Identifier: Apache-2.0
"""What brings sandboxes to the state that is wanted: replay, release, hot plug, pods that follow their annotation."""
