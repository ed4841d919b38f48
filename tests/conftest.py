"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of larger data sets, ``$CONVEXNN_DATA``; without it a test is skipped, or fails in CI."""
    folder = Path(os.environ.get("CONVEXNN_DATA", "") or "data-folder-not-set")
    if not folder.is_dir():
        reason = f"needs the data sets in $CONVEXNN_DATA (now {folder})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
