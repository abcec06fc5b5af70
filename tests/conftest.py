from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real test data; tests that need it are skipped where it is absent."""
    folder = os.environ.get("AHLM_DATA")
    if not folder:
        pytest.skip("AHLM_DATA names no folder of real data")
    return Path(folder)
