from collections.abc import Iterator

import pytest
from prefect.logging import disable_run_logger

from tasks import process_cache


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    """No test finds what another one's tasks have left in memory, and tasks log outside a flow run."""
    with disable_run_logger():
        yield
    process_cache.release()
