"""Pictures of a cycle from its stored experience, in one report that opens offline."""

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


@dataclass
class Inspection:
    """What is stored of one cycle, and the page about it."""

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
    """Make the pictures and the report of a cycle, and keep them among the run's artifacts in MLflow.

    What was pruned is said in the report, and the rest is shown.

    Raises:
        ValueError: nothing is stored of that cycle, or there is no such state or channel.
    """
    inspection = open_inspection(run, cycle)
    report = inspection.report
    report.title = f"{inspection.game}: cycle {inspection.cycle} of run {run.name}"
    report.properties = _facts(inspection)
    _training(inspection)
    if inspection.experience is not None:
        _moments(inspection, inspection.experience)
    if inspection.experience is not None and inspection.targets is not None:
        _sweep(inspection, inspection.experience, inspection.targets)
    if inspection.network is not None:
        _network(inspection, inspection.network, state, channel)
    folder = f"inspection/{cycle_name(inspection.cycle)}"
    return f"{run.artifacts}/{run.tracking.log_report(run.run_id, folder, report.figures(), report.html())}"


def open_inspection(run: StoredRun, cycle: int | None = None) -> Inspection:
    """What is stored of `cycle`, or of the newest cycle that is done and not pruned.

    Raises:
        ValueError: nothing is.
        StorageError: a unit is broken.
    """
    stored = {kind: _cycles_of(run, kind) for kind in KINDS}
    if cycle is None:  # in a run that is going on, the newest one may have no checkpoint yet
        whole = [number for number in stored[EXPERIENCE] if number in stored[CHECKPOINT]]
        cycle = next(iter(whole or stored[EXPERIENCE] or stored[CHECKPOINT]), 0)
    if not any(cycle in cycles for cycles in stored.values()):
        kept = ", ".join(map(str, sorted({*stored[EXPERIENCE], *stored[CHECKPOINT]}))) or "nothing"
        raise ValueError(
            f"nothing is stored of cycle {cycle} of run {run.name}: it was pruned or never made; kept: {kept}"
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
    for what, thing in (
        (CHECKPOINT, network),
        (EXPERIENCE, inspection.experience),
        (TARGETS, inspection.targets),
    ):
        if thing is None:
            why = "cycle 0 is the untrained start" if cycle == 0 else "it was pruned, or not made yet"
            inspection.report.notes.append(f"The {what} of cycle {cycle} cannot be shown: {why}.")
    return inspection


def _cycles_of(run: StoredRun, kind: UnitKind) -> list[int]:
    """The cycles of which all of `kind` is stored, every shard of it, newest first."""
    cycles = [set(run.cycles(part)) for part in run.kinds(kind)]
    return sorted(set.intersection(*cycles), reverse=True)


def _directories(run: StoredRun, kind: UnitKind, cycle: int) -> list[Path]:
    return [run.unit(part, cycle).directory for part in run.kinds(kind)]


def _facts(inspection: Inspection) -> dict[str, str]:
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


def _training(inspection: Inspection) -> None:
    curves = inspection.run.tracking.curves(inspection.run.run_id, CURVES)
    pictures = []
    if SCORE_EPISODE in curves or EVALUATION_MEAN in curves:
        pictures.append(Picture("score-curve", score_curve(curves, inspection.game), "Scores against states played."))
    else:
        inspection.report.notes.append("There are no scores to show: no episode of the run has ended yet.")
    if LOSS_MEAN in curves and len(curves[LOSS_MEAN].values) > 1:
        caption = "Q-values, errors and loss against states."
        pictures.append(Picture("q-value-curves", q_value_curves(curves, inspection.game), caption))
    else:
        inspection.report.notes.append("There are no curves of Q-values to show: they begin with the second cycle.")
    try:
        evaluation = read_evaluation(inspection.run.unit(EVALUATION, inspection.cycle).directory)
        pictures.append(Picture("scores", score_histogram(evaluation), "The evaluation of this cycle's checkpoint."))
    except StorageError:
        inspection.report.notes.append(f"The checkpoint of cycle {inspection.cycle} was not evaluated.")
    inspection.report.add("Training", "How the run came here.", pictures)


def _moments(inspection: Inspection, experience: Experience) -> None:
    highlights, missing = find_highlights(experience)
    inspection.report.notes += [f"This cycle has no state of the kind: {name}." for name in missing]
    names, game = inspection.metadata.action_names, inspection.metadata.config.game
    inspection.report.add(
        "Moments",
        "Consecutive states with what the network made of them when it played. The action taken is orange, the highest "
        "Q-value bold; where they differ, the action was random. Below: what the action brought.",
        [
            Picture(m.name.replace(" ", "-"), highlight_strip(experience, names, m, game), _SAYINGS[m.name])
            for m in highlights
        ],
    )


_SAYINGS = {
    "highest reward": "Expectation is high until the points are made, and falls once they are.",
    "highest Q-value": "What the network takes for the best state of the cycle.",
    "life lost": "The closer the loss, the less the network expects, whatever it does.",
    "largest spread of Q-values": "Here the choice of the action matters most to the network.",
    "smallest spread of Q-values": "Here it hardly matters: the differences may be less than the error.",
}


_OUTPUTS = "Each channel is bright where its filter found what it looks for; all on one scale."


_WEIGHTS = "One square for each output channel. Red adds to it, blue takes away from it, and white is zero."


def _sweep(inspection: Inspection, experience: Experience, targets: Targets) -> None:
    config, pictures = inspection.metadata.config, []
    if stretch := stretch_to_a_point(experience):
        figure = sweep_figure(experience, targets, stretch, config.game, config.discount)
        pictures.append(Picture("sweep", figure, "The reward is carried back to the states that led to it."))
    else:
        inspection.report.notes.append("No point was made in this cycle, so there is no stretch that leads to one.")
    pictures += [
        Picture(
            "q-values", q_value_histogram(experience, targets, config.game), "What was expected, and what should be."
        ),
        Picture(
            "estimation-errors",
            error_histogram(targets, config.game, config.error_threshold),
            "How far the sweep moved the taken action's Q-value.",
        ),
    ]
    inspection.report.add("The sweep", "Q-values before the backward sweep and after it.", pictures)


def _network(inspection: Inspection, network: QNetwork, state: str | None, channel: int) -> None:
    layers, pictures = len(convolutions(network)), []
    if inspection.experience is not None:
        shown: np.ndarray = inspection.experience.states[_chosen_state(inspection.experience, state)]
        outputs = convolution_outputs(network, shown)
        pictures += [
            Picture(f"outputs-{number}", outputs_figure(shown, output, number, layers, inspection.game), _OUTPUTS)
            for number, output in outputs.items()
        ]
    elif state:
        raise ValueError(f"the states of cycle {inspection.cycle} were pruned; leave out --state")
    first = [(1, source) for source in range(inspection.metadata.config.state_channels)]
    wanted = [*first, *((number, channel) for number in range(2, layers + 1))]
    pictures += [
        Picture(f"weights-{number}-{source}", weights_figure(network, number, source, inspection.game), _WEIGHTS)
        for number, source in wanted
    ]
    inspection.report.add("The network", "What each convolution puts out for one state, and its weights.", pictures)


def _chosen_state(experience: Experience, state: str | None) -> tuple[int, int]:
    """Step and lane of the state STEP:LANE, or of the highest Q-value."""
    steps, lanes = experience.actions.shape
    if state is None:
        step, lane = divmod(int(experience.q_values.max(axis=2).argmax()), lanes)
        return step, lane
    step_text, _, lane_text = state.partition(":")
    if not (step_text.isdecimal() and lane_text.isdecimal() and int(step_text) < steps and int(lane_text) < lanes):
        raise ValueError(
            f"state is {state!r}; write it as STEP:LANE, with a step below {steps} and a lane below {lanes}"
        )
    return int(step_text), int(lane_text)
