"""Inspect a cycle of a run, or an agent: a report with pictures of experience, sweep and network."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dqn.checkpoint import CheckpointMetadata
from dqn.envs.experience import Experience, Targets
from dqn.envs.games import game_title
from dqn.evaluation.evaluation import Evaluation
from dqn.evaluation.short_cycle import play_short_cycle
from dqn.learning.networks import QNetwork
from dqn.metrics import EVALUATION_MEAN, LOSS_MEAN, SCORE_EPISODE, TRAINING_CURVES, Curve
from dqn.plots.curve_figures import q_value_curves, score_curve
from dqn.plots.figures import error_histogram, highlight_strip, q_value_histogram, score_histogram, sweep_figure
from dqn.plots.highlights import find_highlights, stretch_to_a_point
from dqn.plots.network_figures import convolution_outputs, convolutions, outputs_figure, weights_figure
from flows.commands.agents import Agent, find_run_and_cycle, load_learner, open_agent
from flows.commands.html_report import Picture, Report
from storage.errors import StorageError
from storage.formats.evaluation import read_evaluation
from storage.formats.experience import read_all_targets, read_experiences
from storage.settings import Settings
from storage.units.unit import CHECKPOINT, EVALUATION, EXPERIENCE, KINDS, TARGETS, UnitKind, cycle_name

if TYPE_CHECKING:
    from storage.runs import StoredRun


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
    """What is known of a cycle, and the report on it. What is not stored is None."""

    run: str  # name and id
    cycle: int
    metadata: CheckpointMetadata
    network: QNetwork | None
    experience: Experience | None = None
    targets: Targets | None = None
    evaluation: Evaluation | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    @property
    def game(self) -> str:
        """Title of the game."""
        return game_title(self.metadata.config.game)


def inspect_by_name(name: str, cycle: int | None = None, state: str | None = None, channel: int = 0) -> str:
    """Inspect a run by `inspect_run`, or an agent whose run is not stored here by `inspect_agent`.

    Raises:
        ValueError: there is no such run, agent, cycle, state or channel.
    """
    found = find_run_and_cycle(name)
    if found:
        run, registered_cycle = found
        return inspect_run(run, registered_cycle if cycle is None else cycle, state, channel)
    if cycle is not None:
        raise ValueError(f"cycle is {cycle}, but {name} is an agent without stored cycles; leave it out")
    return inspect_agent(open_agent(name), state, channel)


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
    config, played = inspection.metadata.config, inspection.experience
    states = f"{played.states_played:,} states of {config.lanes} lanes" if played else "pruned"
    _add_properties(inspection, {"played in this cycle": states})
    inspection.curves = run.tracking.curves(run.run_id, TRAINING_CURVES)
    with suppress(StorageError):
        inspection.evaluation = read_evaluation(run.unit(EVALUATION, inspection.cycle).directory)
    _add_training(inspection)
    _add_cycle(inspection, state, channel)
    folder = f"inspection/{cycle_name(inspection.cycle)}"
    report.log(run.tracking, [run.run_id], folder)
    return f"{run.artifacts}/{folder}/report.html"


def inspect_agent(agent: Agent, state: str | None = None, channel: int = 0) -> str:
    """Write a report on an agent whose run is not stored here, and each of its pictures, below the home.

    The agent plays a short cycle for it.

    Args:
        agent: the agent.
        state: state for the outputs of the convolutions, as STEP:LANE; by default that with the highest Q-value.
        channel: input channel of the weights that are shown for the second and later convolutions.

    Returns:
        The path of the report.

    Raises:
        ValueError: there is no such state or channel.
    """
    exported = agent.exported
    assert exported is not None
    experience, targets = play_short_cycle(agent.learner, agent.learner.config)
    network = agent.learner.average_network
    inspection = Inspection(
        f"{exported.run_name} ({exported.run_id})",
        agent.metadata.counters.cycle,
        agent.metadata,
        network,
        experience,
        targets,
        exported.evaluation,
    )
    report, (steps, lanes) = inspection.report, experience.actions.shape
    report.title = f"{inspection.game}: the agent {agent.name}"
    shown = f"the first {steps} steps of {lanes} episodes at epsilon {agent.metadata.config.evaluation_epsilon:g}"
    _add_properties(inspection, {"played for this report": shown})
    if exported.curves:
        inspection.curves = exported.curves
        _add_training(inspection)
    else:
        report.notes.append("The curves of the training cannot be shown: the agent was exported without them.")
        if exported.evaluation:
            report.add("Scores", "Complete episodes.", [_evaluation_picture(exported.evaluation)])
        else:
            report.notes.append("The agent has no evaluation.")
    _add_cycle(inspection, state, channel)
    folder = f"{game_title(agent.metadata.config.game)}-{exported.checkpoint[:8]}"
    directory = Settings.from_environment().inspections / folder
    directory.mkdir(parents=True, exist_ok=True)
    return str(report.write(directory))


def _add_cycle(inspection: Inspection, state: str | None, channel: int) -> None:
    if inspection.experience is not None:
        _add_highlights(inspection, inspection.experience)
    if inspection.experience is not None and inspection.targets is not None:
        _add_sweep(inspection, inspection.experience, inspection.targets)
    if inspection.network is not None:
        _add_network(inspection, inspection.network, state, channel)


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
    inspection = Inspection(f"{run.name} ({run.run_id})", cycle, run.metadata(newest), network)
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


def _add_properties(inspection: Inspection, played: dict[str, str]) -> None:
    config, counters = inspection.metadata.config, inspection.metadata.counters
    inspection.report.properties = {
        "run": inspection.run,
        "game": config.game,
        "actions": ", ".join(inspection.metadata.action_names),
        **played,
        "states played by the run": f"{counters.states:,}",
        "recipe": f"network {config.network}, sweep {config.sweep}, discount {config.discount:g}, {config.optimizer}",
    }


def _add_training(inspection: Inspection) -> None:
    curves = inspection.curves
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
    if inspection.evaluation:
        pictures.append(_evaluation_picture(inspection.evaluation))
    else:
        inspection.report.notes.append(f"The checkpoint of cycle {inspection.cycle} was not evaluated.")
    inspection.report.add("Training", "The run until this cycle.", pictures)


def _evaluation_picture(evaluation: Evaluation) -> Picture:
    return Picture("scores", score_histogram(evaluation), "The evaluation of this checkpoint.")


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
