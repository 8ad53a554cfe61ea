"""No test leaves a thread behind."""

import pytest

from leaks import watched_threads


@pytest.fixture(autouse=True)
def _no_thread_left(request):
    failed_before = request.session.testsfailed
    with watched_threads() as left:
        yield
        assert request.session.testsfailed > failed_before or not left()
