# SPDX-License-Identifier: Apache-2.0
"""One file per process: here the world (environment, clock, files) is gathered and handed to the story."""
