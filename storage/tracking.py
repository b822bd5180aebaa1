"""Runs and their metrics in MLflow."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow.exceptions
import numpy as np
from mlflow.entities import DatasetInput, Experiment, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from dqn.config import TrainConfig, nearest
from dqn.envs.games import game_title
from dqn.metrics import COUNTER_STATES, Curve, minutes_at_work, speed_metric
from storage.errors import StorageError, UnreachableError
from storage.lease import late
from storage.logged_models import model_of
from storage.provenance import made_with
from storage.run_tags import FLOW_RUN, MARK, WRITER
from storage.settings import Settings, without_password
from storage.units.unit import CHECKPOINT, EVALUATION, Unit
from storage.urls import check_url

_BATCH = 1000  # MLflow's limit for the metrics of one request

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)


class Tracking:
    """The MLflow store of one installation. No other module but `storage.model_registry` uses its client."""

    def __init__(self, settings: Settings) -> None:
        """Open the store, which is created at its first use.

        Raises:
            StorageError: the store cannot be reached.
        """
        self.settings = settings
        self._published: dict[tuple[str, str], set[int]] = {}
        self._writers: dict[str, tuple[str, str]] = {}  # name and writer of the runs that this process writes
        _check_store(settings.tracking_uri)
        try:
            self.client = MlflowClient(tracking_uri=settings.tracking_uri)
            self._experiments(1)
        except (mlflow.exceptions.MlflowException, SQLAlchemyError) as error:
            raise self._unreachable(error) from None

    def start_run(self, config: TrainConfig, name: str | None, tags: Mapping[str, str]) -> Run:
        """Create the MLflow run of a new training run. Its params are the whole configuration."""
        run = self._create_run("train", config.game, name, tags)
        params = [Param(field, str(value)) for field, value in config.model_dump(mode="json").items()]
        self.client.log_batch(run.info.run_id, params=params)
        return run

    def start_sweep(self, game: str, name: str, tags: Mapping[str, str]) -> Run:
        """Create the MLflow run of a new sweep, which is the parent of the runs of its trainings."""
        return self._create_run("sweep", game, name, tags)

    def _create_run(self, mark: str, game: str, name: str | None, tags: Mapping[str, str]) -> Run:
        tags = {**tags, MARK: mark, **made_with()}
        return self.client.create_run(self.experiment(game), run_name=name, tags=tags)

    def experiment(self, game: str) -> str:
        """The id of a game's experiment, which is created if it does not exist."""
        title = game_title(game)
        found = self.client.get_experiment_by_name(title)
        if found is not None:
            return str(found.experiment_id)
        return str(self.client.create_experiment(title, artifact_location=self._artifact_location(title)))

    def _artifact_location(self, experiment: str) -> str | None:
        """Artifact location of a new experiment: in the home, unless the server's default is an object store."""
        first = self.client.get_experiment_by_name(Experiment.DEFAULT_EXPERIMENT_NAME)
        if first is not None and first.artifact_location.startswith("s3://"):
            return None
        return self.settings.artifacts(experiment).as_uri()

    def publish(self, run_id: str, unit: Unit) -> None:
        """Log the metrics of a committed unit. Points that MLflow already has are skipped.

        Raises:
            UnreachableError: the store does not answer, or cannot write; some metrics may have been logged.
        """
        with self._answering():
            self.check_writer(run_id)
            self._publish(run_id, unit)

    def writer_number(self, run_id: str) -> int:
        """The number of the last writer of a run; 0 if MLflow names none.

        Raises:
            UnreachableError: the store does not answer.
        """
        with self._answering():
            return _number(self._writer(run_id))

    @contextmanager
    def writing(self, run_id: str, name: str, writer: str) -> Iterator[None]:
        """Name the writer of a run in MLflow, and let this process change the run only while it is named there.

        Raises:
            UnreachableError: the store does not answer, or cannot write.
        """
        self.set_tags(run_id, {WRITER: writer})
        self._writers[run_id] = name, writer
        try:
            yield
        finally:
            del self._writers[run_id]

    def check_writer(self, run_id: str) -> None:
        """Raise a StorageError if this process was the run's writer, and MLflow names a later one.

        The methods for a writer's changes call this. They do nothing for other processes, which may evaluate the run.
        """
        if run_id not in self._writers:
            return
        name, writer = self._writers[run_id]
        found = self._writer(run_id)
        if found == writer:
            return
        if _number(found) >= _number(writer):
            raise late(name, found.partition(": ")[2])
        # A process that became the writer before this one, and was suspended then, has overwritten the tag.
        self.client.set_tag(run_id, WRITER, writer)

    def _writer(self, run_id: str) -> str:
        return str(self.client.get_run(run_id).data.tags.get(WRITER, ""))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Raise an error of one line if the store does not answer, and forget which points it has."""
        try:
            _check_store(self.settings.tracking_uri)
            yield
        except (mlflow.exceptions.MlflowException, SQLAlchemyError) as error:
            self._published.clear()
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> UnreachableError:
        uri, shown = self.settings.tracking_uri, without_password(self.settings.tracking_uri)
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(uri, shown)
        return UnreachableError(f"the MLflow store {shown} cannot be used: {reason}")

    def _publish(self, run_id: str, unit: Unit) -> None:
        last = max((metric.step for metric in unit.metrics), default=0)
        points = [Metric(name, value, unit.created_ms, step) for name, step, value in unit.metrics]
        points += [Metric(speed_metric(name), value, unit.created_ms, last) for name, value in unit.speed.items()]
        if unit.kind.name == EVALUATION.name:
            model = model_of(self.client, self.get_run(run_id), unit.cycle, unit.inputs[CHECKPOINT.name])
            points = [Metric(point.key, point.value, point.timestamp, point.step, model) for point in points]
        new = [point for point in points if point.step not in self._steps(run_id, point.key)]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            self.client.log_batch(run_id, metrics=batch)
            for point in batch:
                self._steps(run_id, point.key).add(point.step)

    def _steps(self, run_id: str, name: str) -> set[int]:
        """Steps at which MLflow has a metric. Requested once, because only the writer of the run adds points."""
        if (run_id, name) not in self._published:
            history = self.history(run_id, name)
            self._published[run_id, name] = {point.step for point in history}
        return self._published[run_id, name]

    def curves(self, run_id: str, names: Iterable[str]) -> dict[str, Curve]:
        """The metrics of a run among `names`, by name."""
        found = {}
        for name in names:
            points = sorted(self.history(run_id, name), key=lambda point: (point.step, point.timestamp))
            if points:
                rows = np.array([(point.step, point.value) for point in points])
                found[name] = Curve(*rows.T)
        return found

    def minutes(self, run_id: str) -> Curve:
        """Minutes of work until the end of each cycle of a run, without pauses, against the states played."""
        points = sorted(self.history(run_id, COUNTER_STATES), key=lambda point: point.step)
        times = [self.get_run(run_id).info.start_time, *(point.timestamp for point in points)]
        return Curve(np.array([0, *(point.step for point in points)], float), minutes_at_work(np.array(times, float)))

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run.

        Raises:
            UnreachableError: the store does not answer, or cannot write.
        """
        with self._answering():
            self.check_writer(run_id)
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def forget_published(self, run_id: str) -> None:
        """Forget which points of a run MLflow has, because another process may have been its writer."""
        self._published = {key: steps for key, steps in self._published.items() if key[0] != run_id}

    def set_status(self, run_id: str, status: str) -> None:
        """Set the status of a run to RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.

        Raises:
            UnreachableError: the store does not answer, or cannot write.
        """
        with self._answering():
            self.check_writer(run_id)
            if status in ("RUNNING", "SCHEDULED"):
                self.client.update_run(run_id, status=status)
            else:
                self.client.set_terminated(run_id, status=status)

    def get_run(self, run_id: str) -> Run:
        """The MLflow run with that id: its status, params, tags, and the latest value of every metric."""
        return self.client.get_run(run_id)

    def has_run(self, run_id: str) -> bool:
        """Whether there is a run with that id, which is not deleted."""
        try:
            return str(self.get_run(run_id).info.lifecycle_stage) == LifecycleStage.ACTIVE
        except mlflow.exceptions.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise

    def delete_run(self, run_id: str) -> None:
        """Mark a run as deleted; its files remain until `mlflow gc`."""
        self.client.delete_run(run_id)

    def history(self, run_id: str, name: str) -> list[Metric]:
        """All points of a metric of a run, each with its step, value and timestamp in milliseconds."""
        return list(self.client.get_metric_history(run_id, name))

    def log_file(self, run_id: str, file: Path, folder: str) -> None:
        """Log a copy of `file` as an artifact of a run below `folder`."""
        self.client.log_artifact(run_id, str(file), folder)

    def log_directory(self, run_id: str, directory: Path, folder: str) -> None:
        """Log copies of the files in `directory` as artifacts of a run below `folder`."""
        self.client.log_artifacts(run_id, str(directory), folder)

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Log a text as the artifact `name` of a run."""
        self.client.log_text(run_id, text, name)

    def log_metric(self, run_id: str, name: str, value: float, step: int = 0) -> None:
        """Log one value of a metric of a run.

        Raises:
            UnreachableError: the store does not answer, or cannot write.
        """
        with self._answering():
            self.client.log_metric(run_id, name, value, step=step)

    def log_datasets(self, run_id: str, datasets: Sequence[DatasetInput]) -> None:
        """Link datasets to a run as its inputs."""
        self.check_writer(run_id)
        self.client.log_inputs(run_id, list(datasets))

    def runs(self, where: str = "") -> list[Run]:
        """All training runs, newest first; with `where`, those that match this filter in MLflow's syntax."""
        return self._marked("train", where)

    def sweeps(self, name: str = "") -> list[Run]:
        """All sweeps, newest first; with `name`, those that are called so."""
        return self._marked("sweep", f"attributes.run_name = '{name}'" if name else "")

    def _marked(self, mark: str, where: str) -> list[Run]:
        experiments = [experiment.experiment_id for experiment in self._experiments()]
        found: list[Run] = []
        token: str | None = None
        while experiments:
            page = self.client.search_runs(
                experiments,
                f"tags.`{MARK}` = '{mark}'{where and f' and {where}'}",
                run_view_type=ViewType.ACTIVE_ONLY,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                break
        return found

    def find_run(self, wanted: str) -> Run:
        """The run with that id, beginning of an id (at least 6 characters), or name; or `latest`.

        Raises:
            ValueError: there is no such run, or there are several; the message lists near matches.
        """
        runs = self.runs()
        if not runs:
            store = without_password(self.settings.tracking_uri)
            raise ValueError(f"no run {wanted!r}: there are no runs yet in {store}")
        if wanted == "latest":
            return runs[0]
        by_id = [run for run in runs if len(wanted) >= 6 and run.info.run_id.startswith(wanted)]
        matches = by_id or [run for run in runs if run.info.run_name == wanted]
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(run.info.run_id for run in matches[:5])
            raise ValueError(f"{len(matches)} runs are called {wanted!r}; give one of the ids: {ids}")
        names = ["latest", *(run.info.run_name for run in runs), *(run.info.run_id for run in runs)]
        raise ValueError(f"no run {wanted!r}{nearest(wanted, names) or '; `dqn runs` lists them'}")

    def run_of_flow(self, flow_run_id: str) -> Run | None:
        """The training run that a Prefect flow run started or resumed, if any."""
        for run in self.runs(f"tags.`{FLOW_RUN}` LIKE '%{flow_run_id}%'"):
            if flow_run_id in run.data.tags[FLOW_RUN].split():
                return run
        return None

    def artifacts_of(self, run: Run) -> str:
        """The URL of a run's artifacts.

        Raises:
            StorageError: units cannot be committed there.
        """
        url = str(run.info.artifact_uri)
        try:
            check_url(url)
        except ValueError:
            raise StorageError(
                f"the artifacts of run {run.info.run_id} are at {without_password(url)}; checkpoints need a file "
                "system or S3, so give its experiment an artifact location such as file:///DIRECTORY or s3://BUCKET"
            ) from None
        return url

    def _experiments(self, most: int = 1000) -> list[Experiment]:
        return list(self.client.search_experiments(max_results=most))


def _number(writer: str) -> int:
    number = writer.partition(":")[0]
    return int(number) if number.isdecimal() else 0


def _check_store(uri: str) -> None:
    """Raise an UnreachableError at once if `uri` does not answer; MLflow would retry for minutes."""
    if uri.startswith("sqlite:///"):
        try:
            with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store:
                store.execute("PRAGMA schema_version")
        except sqlite3.Error as error:
            raise UnreachableError(f"the MLflow store {uri} cannot be used: {error}") from None
    if not uri.startswith(("http://", "https://")):
        return
    uri = without_password(uri)  # urllib takes a password for a part of the host name, and /health needs none
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
            pass
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(
            f"the MLflow server {uri} does not answer ({reason}); start it, or unset MLFLOW_TRACKING_URI"
        ) from None
