# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas of what people write, and the messages that name the path and the fix."""
