# SPDX-License-Identifier: Apache-2.0
"""The mark of tests that take minutes."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known: `-m 'not slow'` leaves such tests out."""
    config.addinivalue_line("markers", "slow: takes minutes")
