from collections.abc import Iterator

import pytest
from prefect.logging import disable_run_logger

from tasks import process_cache


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    """Every test begins with an empty process cache; tasks may log outside a flow run."""
    with disable_run_logger():
        yield
    process_cache.clear()
