from __future__ import annotations

from pathlib import Path

import pytest

from dqn.config import DEFAULT_STATES
from flows.sweeps.definition import check_sweep, read_sweep

GOOD = """\
name: traces
base: {preset: fast, game: ALE/Pong-v5, states: 1200000}
search:
  td_lambda: {choices: [0.65, 0.8, 0.9]}
  learning_rate.start: {low: 1e-4, high: 1e-3, log: true}
trials: 12
seeds: [0, 1]
objective: score/mean_100
prune: {after_states: 400000, keep: 0.5}
parallel: 2
threads: 1
"""


def changed(before: str, after: str) -> str:
    assert before in GOOD
    return GOOD.replace(before, after)


GRID = changed("search:", "grid:").replace("trials: 12\n", "")
GRID = GRID.replace("{choices: [0.65, 0.8, 0.9]}", "[0.65, 0.8]").replace(
    "{low: 1e-4, high: 1e-3, log: true}", "[1e-4]"
)


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(GOOD)
    sweep = read_sweep(path)
    assert (sweep.trials, sweep.seeds, sweep.threads, sweep.target) == (12, [0, 1], 1, {"states": 1_200_000})
    assert sweep.prune is not None
    assert sweep.prune.after_states == [400_000]
    config = sweep.config({"td_lambda": 0.8, "learning_rate.start": 2e-4})
    assert (config.game, config.threads, config.td_lambda) == ("ALE/Pong-v5", 1, 0.8)
    assert str(config.learning_rate) == f"0.0002:1e-05:{DEFAULT_STATES}"
    assert check_sweep(sweep.model_dump(mode="json", exclude_none=True)) == sweep


def test_grid_combines_all_values_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(GRID)
    first, second = read_sweep(path).combinations()
    assert first == {"td_lambda": 0.65, "learning_rate.start": 1e-4}
    assert second == {"td_lambda": 0.8, "learning_rate.start": 1e-4}


def test_sweep_without_fields_trains_its_base_with_every_seed() -> None:
    sweep = check_sweep({"name": "a", "seeds": [1, 2]})
    assert sweep.combinations() == [{}]
    assert sweep.config({}).game == "ALE/Breakout-v5"


WRONG = {
    "no YAML": ("name: [", ", line 1"),
    "a list": ("- name: traces", " must have the parts of a sweep, such as: name: first"),
    "a tab": ("name:\ttraces\n\tbase: {}", ", line 1"),
    "a part twice": (GOOD + "trials: 3\n", ", line 12"),
    "no name": (changed("name: traces\n", ""), ", line 1: name is missing"),
    "a name with a slash": (changed("traces", "a/b"), ", line 1: name is 'a/b'"),
    "a newer format": ("format: 2\n" + GOOD, ", line 1: format is 2; this version reads 1: install a newer release"),
    "an unknown part": (changed("seeds", "sedes"), ", line 7: unknown part 'sedes'; did you mean seeds?"),
    "an unknown field in base": (changed("game:", "gmae:"), ", line 2: unknown field 'gmae'; did you mean game?"),
    "an unknown game": (changed("Pong-v5", "Pongg-v5"), ", line 2: "),
    "an unknown preset": (changed("fast", "slow"), ", line 2: unknown preset 'slow'"),
    "a bad value in base": (changed("states: 1200000", "lanes: 0"), ", line 2: lanes is 0"),
    "states that are text": (changed("1200000", "many"), ", line 2: states is 'many'; it must be an integer"),
    "states of zero": (changed("1200000", "0"), ", line 2: states is 0; it must be an integer of at least 1"),
    "states and cycles": (changed(" states: 1", " cycles: 3, states: 1"), ", line 2: give states or cycles, not both"),
    "a seed in base": (changed(" states: 1", " seed: 3, states: 1"), ", line 2: seed cannot be in base"),
    "trials without a search": ("name: traces\ntrials: 2\n", ", line 2: trials is given, but only a search needs"),
    "search and grid": (GOOD + "grid: {td_lambda: [0.1]}\n", ", line 3: a sweep has either search or grid"),
    "an empty search": ("name: a\nsearch: {}\ntrials: 1\n", ", line 2: search is empty"),
    "no trials": (changed("trials: 12\n", ""), ", line 3: trials is missing"),
    "trials with a grid": (GRID + "trials: 3\n", ", line 11: trials is given, but only a search needs"),
    "an unknown field": (
        changed("td_lambda", "td_lamda"),
        ", line 4: unknown field 'td_lamda'; did you mean td_lambda",
    ),
    "a part of no schedule": (changed("td_lambda:", "td_lambda.start:"), ", line 4: td_lambda is no schedule"),
    "an unknown part of a schedule": (changed("rate.start", "rate.begin"), ", line 5: learning_rate has no 'begin'"),
    "a field and a part of it": (changed("td_lambda:", "learning_rate:"), ", line 4: learning_rate is searched as a"),
    "the seed as a field": (changed("td_lambda:", "seed:"), ", line 4: seed cannot be searched"),
    "the game as a field": (changed("td_lambda:", "game:"), ", line 4: game cannot be searched"),
    "a choice out of range": (changed("0.9", "1.9"), ", line 4: td_lambda is 1.9"),
    "a choice twice": (changed("0.9", "0.8"), ", line 4: td_lambda has 0.8 twice"),
    "no choices": (changed("[0.65, 0.8, 0.9]", "[]"), ", line 4: search.td_lambda.choices is []"),
    "a list without choices": (
        changed("{choices: [0.65, 0.8, 0.9]}", "[0.65]"),
        ", line 4: td_lambda is a list; write {choices",
    ),
    "a single value": (changed("{choices: [0.65, 0.8, 0.9]}", "0.65"), ", line 4: td_lambda is 0.65; write {choices"),
    "a range of text": (
        changed("td_lambda: {choices: [0.65, 0.8, 0.9]}", "sweep: {low: 1, high: 2}"),
        ", line 4: sweep",
    ),
    "low above high": (changed("1e-4, high: 1e-3", "1e-3, high: 1e-4"), ", line 5: learning_rate.start: low is 0.001"),
    "low of zero with log": (changed("low: 1e-4", "low: 0"), ", line 5: learning_rate.start: low is 0; with log"),
    "no high": (changed(", high: 1e-3", ""), ", line 5: search.learning_rate.start.high is missing"),
    "a negative end": (
        changed("low: 1e-4, high: 1e-3, log: true", "low: -1, high: 1"),
        ", line 5: learning_rate.start is",
    ),
    "an unknown part of a range": (changed("log:", "lgo:"), ", line 5: unknown part"),
    "an infinite end": (changed("1e-3", ".inf"), ", line 5: search.learning_rate.start.high is inf"),
    "trials of zero": (changed("12", "0"), ", line 6: trials is 0"),
    "no seeds": (changed("[0, 1]", "[]"), ", line 7: seeds is []"),
    "a seed twice": (changed("[0, 1]", "[1, 1]"), ", line 7: seed 1 is given twice"),
    "a negative seed": (changed("[0, 1]", "[0, -1]"), ", line 7: seeds.1 is -1"),
    "an unknown objective": (changed("mean_100", "mean_10"), ", line 8: objective is 'score/mean_10'"),
    "keep of one": (changed("keep: 0.5", "keep: 1"), ", line 9: prune.keep is 1"),
    "pruning after the end": (
        changed("after_states: 400000", "after_states: 1200000"),
        ", line 9: after_states is 1,2",
    ),
    "pruning backwards": (changed("400000", "[5, 4]"), ", line 9: after_states is 5; it must be below the next"),
    "pruning of cycles": (changed("states: 1200000", "cycles: 9"), ", line 9: prune counts states"),
    "an unknown part of prune": (changed("keep:", "kept:"), ", line 9: unknown part 'prune.kept'; did you mean keep?"),
    "parallel of zero": (changed("parallel: 2", "parallel: 0"), ", line 10: parallel is 0"),
    "threads of zero": (changed("threads: 1", "threads: 0"), ", line 11: threads is 0"),
    "an unknown sampler": (GOOD + "sampler: grid\n", ", line 12: sampler is 'grid'"),
    "a grid without values": (GRID.replace("[0.65, 0.8]", "[]"), ", line 4: td_lambda has no values"),
    "a grid of one value": (GRID.replace("[0.65, 0.8]", "0.65"), ", line 4: grid.td_lambda is 0.65"),
    "a large grid": (
        f"name: a\ngrid: {{threads: &v {list(range(1, 102))}, batch_size: *v}}\n",
        ", line 2: the grid has 10,201 combinations; at most 10,000",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_mistake_in_a_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.yaml") as raised:
        read_sweep(path)
    print(str(raised.value).replace(str(path), "sweep.yaml"))
    assert str(raised.value).startswith(f"{path}{message}")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the sweep .*none.yaml: No such file"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"cannot read the sweep .*binary.yaml: it is not text"):
        read_sweep(tmp_path / "binary.yaml")
