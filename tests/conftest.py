"""Real data for the tests that want it; it is not part of the project."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the EM stack and the network trained on it; see its README."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data beside the project: shared/data")
    return SHARED.resolve()
