"""Inspect a cycle of a run: a report with pictures of its experience, its sweep and its network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dqn.checkpoint import CheckpointMetadata
from dqn.envs.experience import Experience, Targets
from dqn.envs.games import game_title
from dqn.learning.networks import QNetwork
from dqn.metrics import (
    ESTIMATION_ERROR_MEAN,
    EVALUATION_MEAN,
    EVALUATION_MEAN_HIGH,
    EVALUATION_MEAN_LOW,
    LOSS_MEAN,
    Q_VALUES_BEFORE_MAX,
    Q_VALUES_BEFORE_MEAN,
    Q_VALUES_BEFORE_MIN,
    SCHEDULE_EPSILON,
    SCORE_EPISODE,
)
from dqn.plots.curve_figures import q_value_curves, score_curve
from dqn.plots.figures import error_histogram, highlight_strip, q_value_histogram, score_histogram, sweep_figure
from dqn.plots.highlights import find_highlights, stretch_to_a_point
from dqn.plots.network_figures import convolution_outputs, convolutions, outputs_figure, weights_figure
from flows.commands.agents import load_learner
from flows.commands.html_report import Picture, Report
from storage.errors import StorageError
from storage.formats.evaluation import read_evaluation
from storage.formats.experience import read_all_targets, read_experiences
from storage.runs import StoredRun
from storage.units.unit import CHECKPOINT, EVALUATION, EXPERIENCE, KINDS, TARGETS, UnitKind, cycle_name

SCORES = (SCORE_EPISODE, EVALUATION_MEAN, EVALUATION_MEAN_LOW, EVALUATION_MEAN_HIGH, LOSS_MEAN)
CURVES = (
    *SCORES,
    SCHEDULE_EPSILON,
    Q_VALUES_BEFORE_MIN,
    Q_VALUES_BEFORE_MEAN,
    Q_VALUES_BEFORE_MAX,
    ESTIMATION_ERROR_MEAN,
)


_HIGHLIGHT_CAPTIONS = {
    "highest reward": "The Q-values are high until the reward and fall after it.",
    "highest Q-value": "The state that the network values most in this cycle.",
    "life lost": "The closer the loss, the lower the Q-values of all actions.",
    "largest spread of Q-values": "The choice of the action matters most here, as the network estimates it.",
    "smallest spread of Q-values": "The choice of the action hardly matters; the differences may be below the error.",
}
_OUTPUTS_CAPTION = "Each channel is bright where its filter responds. All channels have the same scale."
_WEIGHTS_CAPTION = "One square per output channel. Red: positive weight, blue: negative, white: zero."


@dataclass
class Inspection:
    """What is stored of a cycle, and the report on it. What is not stored is None."""

    run: StoredRun
    cycle: int
    metadata: CheckpointMetadata
    network: QNetwork | None
    experience: Experience | None = None
    targets: Targets | None = None
    report: Report = field(default_factory=Report)

    @property
    def game(self) -> str:
        """Title of the game."""
        return game_title(self.metadata.config.game)


def inspect_run(run: StoredRun, cycle: int | None = None, state: str | None = None, channel: int = 0) -> str:
    """Log a report on a cycle, and each of its pictures, as artifacts of the run in MLflow.

    The report names what was pruned and shows the rest.

    Args:
        run: the run.
        cycle: number of the cycle; by default the newest with experience and a checkpoint.
        state: state for the outputs of the convolutions, as STEP:LANE; by default that with the highest Q-value.
        channel: input channel of the weights that are shown for the second and later convolutions.

    Returns:
        The URL of the report.

    Raises:
        ValueError: nothing is stored of the cycle, or there is no such state or channel.
    """
    inspection = open_inspection(run, cycle)
    report = inspection.report
    report.title = f"{inspection.game}: cycle {inspection.cycle} of run {run.name}"
    report.properties = _properties(inspection)
    _add_training(inspection)
    if inspection.experience is not None:
        _add_highlights(inspection, inspection.experience)
    if inspection.experience is not None and inspection.targets is not None:
        _add_sweep(inspection, inspection.experience, inspection.targets)
    if inspection.network is not None:
        _add_network(inspection, inspection.network, state, channel)
    folder = f"inspection/{cycle_name(inspection.cycle)}"
    return f"{run.artifacts}/{run.tracking.log_report(run.run_id, folder, report.pictures(), report.html())}"


def open_inspection(run: StoredRun, cycle: int | None = None) -> Inspection:
    """Read what is stored of `cycle`; by default of the newest cycle with experience and a checkpoint.

    Raises:
        ValueError: nothing is stored of the cycle.
        StorageError: a unit is corrupt.
    """
    stored = {kind: _cycles_of(run, kind) for kind in KINDS}
    if cycle is None:  # the newest experience of a run that is training has no checkpoint yet
        complete = [number for number in stored[EXPERIENCE] if number in stored[CHECKPOINT]]
        cycle = next(iter(complete or stored[EXPERIENCE] or stored[CHECKPOINT]), 0)
    if not any(cycle in cycles for cycles in stored.values()):
        others = ", ".join(map(str, sorted({*stored[EXPERIENCE], *stored[CHECKPOINT]}))) or "none"
        raise ValueError(
            f"nothing is stored of cycle {cycle} of run {run.name}: it was pruned or never made; "
            f"stored cycles: {others}"
        )
    newest = run.newest_checkpoint() if cycle not in stored[CHECKPOINT] else run.unit(CHECKPOINT, cycle)
    network = None
    if cycle in stored[CHECKPOINT]:
        network = load_learner(run.checkpoint(newest)).average_network
    inspection = Inspection(run, cycle, run.metadata(newest), network)
    if cycle in stored[EXPERIENCE]:
        inspection.experience = read_experiences([_directories(run, EXPERIENCE, cycle)])
    if cycle in stored[TARGETS]:
        inspection.targets = read_all_targets(_directories(run, TARGETS, cycle))
    parts = {"checkpoint": network, "experience": inspection.experience, "targets": inspection.targets}
    reason = "cycle 0 is the untrained network" if cycle == 0 else "it was pruned, or not made yet"
    inspection.report.notes += [
        f"The {name} of cycle {cycle} cannot be shown: {reason}." for name, part in parts.items() if part is None
    ]
    return inspection


def _cycles_of(run: StoredRun, kind: UnitKind) -> list[int]:
    """The cycles for which every shard of `kind` is stored, newest first."""
    cycles = [set(run.cycles(part)) for part in run.kinds(kind)]
    return sorted(set.intersection(*cycles), reverse=True)


def _directories(run: StoredRun, kind: UnitKind, cycle: int) -> list[Path]:
    return [run.unit(part, cycle).directory for part in run.kinds(kind)]


def _properties(inspection: Inspection) -> dict[str, str]:
    config, counters = inspection.metadata.config, inspection.metadata.counters
    played = (
        f"{inspection.experience.states_played:,} states of {config.lanes} lanes" if inspection.experience else "pruned"
    )
    return {
        "run": f"{inspection.run.name} ({inspection.run.run_id})",
        "game": config.game,
        "actions": ", ".join(inspection.metadata.action_names),
        "played in this cycle": played,
        "states played by the run": f"{counters.states:,}",
        "recipe": f"network {config.network}, sweep {config.sweep}, discount {config.discount:g}, {config.optimizer}",
    }


def _add_training(inspection: Inspection) -> None:
    curves = inspection.run.tracking.curves(inspection.run.run_id, CURVES)
    pictures = []
    if SCORE_EPISODE in curves or EVALUATION_MEAN in curves:
        pictures.append(Picture("score-curve", score_curve(curves, inspection.game), "Scores against states played."))
    else:
        inspection.report.notes.append("No scores to show: no episode of the run has ended yet.")
    if LOSS_MEAN in curves and len(curves[LOSS_MEAN].values) > 1:
        caption = "Q-values, estimation errors and loss against states played."
        pictures.append(Picture("q-value-curves", q_value_curves(curves, inspection.game), caption))
    else:
        inspection.report.notes.append("No curves of Q-values to show: they begin with the second cycle.")
    try:
        evaluation = read_evaluation(inspection.run.unit(EVALUATION, inspection.cycle).directory)
        pictures.append(Picture("scores", score_histogram(evaluation), "The evaluation of this cycle's checkpoint."))
    except StorageError:
        inspection.report.notes.append(f"The checkpoint of cycle {inspection.cycle} was not evaluated.")
    inspection.report.add("Training", "The run until now.", pictures)


def _add_highlights(inspection: Inspection, experience: Experience) -> None:
    highlights, missing = find_highlights(experience)
    inspection.report.notes += [f"This cycle has no highlight of this kind: {name}." for name in missing]
    names, game = inspection.metadata.action_names, inspection.metadata.config.game
    inspection.report.add(
        "Highlights",
        "Consecutive states with the Q-values that the network estimated during play. The action taken is orange, the "
        "highest Q-value is bold; where they differ, the action was random. Below are rewards and lost lives.",
        [
            Picture(
                highlight.name.replace(" ", "-"),
                highlight_strip(experience, names, highlight, game),
                _HIGHLIGHT_CAPTIONS[highlight.name],
            )
            for highlight in highlights
        ],
    )


def _add_sweep(inspection: Inspection, experience: Experience, targets: Targets) -> None:
    config, pictures = inspection.metadata.config, []
    if stretch := stretch_to_a_point(experience):
        figure = sweep_figure(experience, targets, stretch, config.game, config.discount)
        pictures.append(Picture("sweep", figure, "The sweep carries the reward back to the states before it."))
    else:
        inspection.report.notes.append("No reward was received in this cycle, so no sweep towards one can be shown.")
    pictures += [
        Picture(
            "q-values",
            q_value_histogram(experience, targets, config.game),
            "Q-values before the sweep (estimates) and after it (targets).",
        ),
        Picture(
            "estimation-errors",
            error_histogram(targets, config.game, config.error_threshold),
            "Change of the Q-value of the action taken, by the sweep.",
        ),
    ]
    inspection.report.add("The sweep", "Q-values before the backward sweep and after it.", pictures)


def _add_network(inspection: Inspection, network: QNetwork, state: str | None, channel: int) -> None:
    layers, pictures, game = len(convolutions(network)), [], inspection.game
    if inspection.experience is not None:
        shown: np.ndarray = inspection.experience.states[_chosen_state(inspection.experience, state)]
        outputs = convolution_outputs(network, shown)
        pictures += [
            Picture(f"outputs-{number}", outputs_figure(shown, output, number, layers, game), _OUTPUTS_CAPTION)
            for number, output in outputs.items()
        ]
    elif state:
        raise ValueError(
            f"state is {state!r}, but the states of cycle {inspection.cycle} were pruned; leave out --state"
        )
    first_layer = [(1, source) for source in range(inspection.metadata.config.state_channels)]
    later_layers = [(number, channel) for number in range(2, layers + 1)]
    pictures += [
        Picture(f"weights-{number}-{source}", weights_figure(network, number, source, game), _WEIGHTS_CAPTION)
        for number, source in first_layer + later_layers
    ]
    inspection.report.add("The network", "Outputs of each convolution for one state, and its weights.", pictures)


def _chosen_state(experience: Experience, state: str | None) -> tuple[int, int]:
    """The step and the lane of the state STEP:LANE; by default of the state with the highest Q-value."""
    steps, lanes = experience.actions.shape
    if state is None:
        step, lane = divmod(int(experience.q_values.max(axis=2).argmax()), lanes)
        return step, lane
    step_text, _, lane_text = state.partition(":")
    if not (step_text.isdecimal() and lane_text.isdecimal() and int(step_text) < steps and int(lane_text) < lanes):
        raise ValueError(f"state is {state!r}; it must be STEP:LANE with a step below {steps} and a lane below {lanes}")
    return int(step_text), int(lane_text)
