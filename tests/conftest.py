"""Real data for the tests that want it; it is not part of the project."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the EM stack and the network trained on it; see its README."""
    if not (SHARED / "vnc_stack1.h5").exists():
        pytest.skip("the real EM stack (../shared/data/vnc_stack1.h5) is not on this machine")
    return SHARED.resolve()
