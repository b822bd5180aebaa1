"""The page of a run in the MLflow UI: description, datasets and system metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.system_metrics import system_metrics_monitor

from storage.errors import StorageError
from storage.runs import StoredRun
from storage.units.unit import EXPERIENCE, TARGETS, Unit, UnitKind, cycle_name

_Monitor: Any = system_metrics_monitor.SystemMetricsMonitor

FLOW_RUN_ADDRESS = "prefect.flow_run"
SAMPLES, SAMPLE_SECONDS = 3, 10  # each point is the mean of 3 samples, taken every 10 seconds


def describe(run: StoredRun, game: str, target: str, flow_run_address: str | None) -> None:
    """Describe the run, the commands that resume it, and its address in Prefect, in its description."""
    name, _, value = target.partition("=")
    lines = [
        f"Q-learning on {game} until {int(value):,} {name} are played. The step of every metric is the number of "
        "states played; params are the whole configuration.",
        "To resume it after an interruption, or to train further with `-p states=N` or `--states N`:",
        f"`prefect deployment run dqn/train -p resume={run.run_id}` or `dqn train --resume {run.run_id}`",
    ]
    tags = {"dqn.resume": f"dqn train --resume {run.run_id}"}
    if flow_run_address:
        lines.append(f"Prefect: [{flow_run_address}]({flow_run_address})")
        tags[FLOW_RUN_ADDRESS] = flow_run_address
    run.tracking.set_tags(run.run_id, {**tags, "mlflow.note.content": "\n\n".join(lines)})


def link_units(run: StoredRun) -> None:
    """Link the newest experience and targets of the run as its datasets."""
    units = [unit for kind in run.kinds(EXPERIENCE, TARGETS) if (unit := _newest(run, kind))]
    run.tracking.log_datasets(run.run_id, [_dataset(run, unit) for unit in units])


def _newest(run: StoredRun, kind: UnitKind) -> Unit | None:
    for cycle in run.cycles(kind):
        try:
            return run.unit(kind, cycle)
        except StorageError:
            continue
    return None


def _dataset(run: StoredRun, unit: Unit) -> DatasetInput:
    dataset = Dataset(
        name=f"{unit.kind} of cycle {unit.cycle}",
        digest=unit.digest[:32],  # MLflow accepts 36 characters at most
        source_type="local",
        source=json.dumps({"uri": f"{run.store(unit.kind).url}/{cycle_name(unit.cycle)}"}),
        profile=f'{{"bytes": {unit.bytes}, "format": "zarr"}}',
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


@contextmanager
def system_metrics(run: StoredRun) -> Iterator[None]:
    """Log the load of the processor, the memory, the disk and the GPU as metrics of the run during the block."""
    monitor: Any = _Monitor(
        run.run_id, SAMPLE_SECONDS, SAMPLES, resume_logging=True, tracking_uri=run.tracking.settings.tracking_uri
    )
    publish = monitor.publish_metrics

    def publish_as_writer(metrics: Any) -> None:
        run.tracking.check_writer(run.run_id)
        publish(metrics)

    monitor.publish_metrics = publish_as_writer
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
