"""The work pool of `dqn serve`: its queues, how much runs at once, its worker."""

from __future__ import annotations

import asyncio
from datetime import datetime

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from storage.settings import Settings


def prepare(pool: str, settings: Settings) -> None:
    """Create the pool of the deployments and its queues, and set how many flow runs each has at once.

    A training or an evaluation keeps the cores, or the GPU, busy: so many at once, the others wait.
    """
    asyncio.run(_prepare(pool, {"training": settings.trainings, "evaluation": 1}))


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
    """Whether the worker of that name has reported to the pool since then."""

    async def ask() -> bool:
        async with get_client() as client:
            workers = await client.read_workers_for_work_pool(pool)
        return any(found.name == name and (found.last_heartbeat_time or since) > since for found in workers)

    return asyncio.run(ask())
