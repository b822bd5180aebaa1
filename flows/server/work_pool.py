"""The work pool of `dqn serve`: its queues with their concurrency limits, and its worker."""

from __future__ import annotations

import asyncio
from datetime import datetime

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from storage.settings import Settings

SWEEPS = 4  # number of sweeps that run at the same time


def prepare(pool: str, settings: Settings) -> None:
    """Create the work pool and its queues, and set how many flow runs of each queue run concurrently.

    The limits exist because a training or an evaluation uses all cores, or the GPU. A sweep has a queue of its own,
    because it waits for its trainings.
    """
    asyncio.run(_prepare(pool, {"training": settings.trainings, "evaluation": 1, "sweeps": SWEEPS}))


async def _prepare(pool: str, limits: dict[str, int]) -> None:
    async with get_client() as client:
        template = ProcessWorker.get_default_base_job_template()
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template), True)
        for name, limit in limits.items():
            try:
                queue = await client.read_work_queue_by_name(name, pool)
            except ObjectNotFound:
                queue = await client.create_work_queue(name, concurrency_limit=limit, work_pool_name=pool)
            await client.update_work_queue(queue.id, concurrency_limit=limit)


def has_worker(pool: str, name: str, since: datetime) -> bool:
    """Whether the worker `name` has sent a heartbeat to the pool since the time `since`."""

    async def check() -> bool:
        async with get_client() as client:
            workers = await client.read_workers_for_work_pool(pool)
        return any(worker.name == name and (worker.last_heartbeat_time or since) > since for worker in workers)

    return asyncio.run(check())
