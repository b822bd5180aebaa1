"""Inspection of a real run, and of a run whose experience was pruned."""

from pathlib import Path

import numpy as np
import pytest

from dqn.envs.experience import Experience
from dqn.envs.games import action_names
from dqn.plots.highlights import find_highlights, stretch_to_a_point
from flows.commands.inspection import inspect_run
from flows.parameters import requested_config
from storage.runs import StoredRun, create_run, open_run
from storage.units.unit import EXPERIENCE, TARGETS

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(trained_run: str, home: object) -> StoredRun:
    return open_run(trained_run)


def test_inspect_logs_a_report_and_its_pictures(run: StoredRun) -> None:
    """The report holds its pictures, and each is an artifact of its own."""
    report = Path(inspect_run(run, state="1:2", channel=3))
    text = report.read_text()
    listed = set((run.artifacts / "inspection" / "00004").names())
    assert {"report.html", "highest-Q-value.png", "q-values.png", "outputs-6.png", "weights-2-3.png"} <= listed
    assert "outputs-3.png" not in listed, "the first block's last convolution has no ReLU"
    assert text.count("data:image/png;base64,") == len(listed) - 1
    assert "http://" not in text and "https://" not in text, "it opens offline"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cycle": 99}, "nothing is stored of cycle 99 of run looked-at: it was pruned or never made; stored cycles: "),
        ({"state": "5"}, "it must be STEP:LANE with a step below 32 and a lane below 8"),
        ({"state": "32:0"}, "state is '32:0'"),
        ({"channel": 32}, "it must be from 0 to 15, the input channels of convolution 2"),
    ],
)
def test_inspect_refuses_what_does_not_exist(run: StoredRun, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect_run(run, **options)


def test_inspect_names_what_was_pruned_and_shows_the_rest(damageable_run: str) -> None:
    run = open_run(damageable_run)
    for kind in (EXPERIENCE, TARGETS):
        run.store(kind).discard(3)
    text = Path(inspect_run(run, 3)).read_text()
    assert "The experience of cycle 3 cannot be shown" in text and "The checkpoint of cycle 3 cannot" not in text
    assert 'alt="weights-1-0"' in text and 'alt="outputs-1"' not in text
    with pytest.raises(ValueError, match="leave out --state"):
        inspect_run(run, 3, state="0:0")


def test_inspect_of_a_new_run_has_no_empty_pictures() -> None:
    begun = create_run(requested_config("fast", {"lanes": 2}), action_names("ALE/Breakout-v5"), "just-begun", {})
    begun.tracking.client.log_metric(begun.run_id, "loss/mean", 0.5, step=4096)
    text = Path(inspect_run(begun)).read_text()
    assert "no episode of the run has ended yet" in text and "they begin with the second cycle" in text
    assert 'alt="weights-1-0"' in text and "-curve" not in text


def test_highlights_are_found_outside_truncated_rows() -> None:
    """The experience has one state of each kind at a known place."""
    experience = Experience.empty(12, 2, 3)
    experience.q_values[..., 1] = 0.5
    experience.q_values[4, 1] = [7, 2, 2]
    experience.q_values[9, 0] = [9, -9, 0]
    experience.truncated[9, 0] = True
    experience.q_values[6, 0] = 0.2
    experience.rewards[10, 1] = 4
    experience.life_lost[2, 1] = True
    experience.episode[:5, 1] = 8
    highlights, missing = find_highlights(experience)
    at = {highlight.name: (highlight.step, highlight.lane) for highlight in highlights}
    assert missing == []
    assert at["highest reward"] == (10, 1) and at["life lost"] == (2, 1)
    assert at["highest Q-value"] == at["largest spread of Q-values"] == (4, 1)
    assert at["smallest spread of Q-values"] == (6, 0)
    highest = next(highlight for highlight in highlights if highlight.name == "highest Q-value")
    assert highest.steps == range(5), "another episode begins after it, so more steps before it are shown"
    reward = next(highlight for highlight in highlights if highlight.name == "highest reward")
    assert reward.steps == range(5, 12), "neither the episode before it nor steps after the end"
    stretch = stretch_to_a_point(experience)
    assert stretch is not None and stretch.steps == range(5, 12)
    experience.rewards[:] = np.minimum(experience.rewards, 0)
    experience.life_lost[:] = False
    assert find_highlights(experience)[1] == ["highest reward", "life lost"]
    assert stretch_to_a_point(experience) is None
