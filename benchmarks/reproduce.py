"""Has the published numbers again: `make reproduce`.

Every table of the documentation that a script measures is made again from its raw results in `benchmarks/results`.
Every agent in `agents/` plays the episodes of its published evaluation again. The scores are the same to the digit on
the kind of processor that published them. Elsewhere Q-values differ by rounding, so that the mean must only be in the
range in which it is by chance with a probability of 99.9 %. The exit status is 1 if something differs by more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from benchmarks import __main__ as bench
from benchmarks import agents, learning, long_run, reliability, scaling
from benchmarks.report import Table, read_results
from dqn.evaluation.evaluation import Evaluation, Protocol
from flows.commands.agents import Agent

SCRIPTS: tuple[ModuleType, ...] = (bench, learning, scaling, long_run, reliability)


class Finding(NamedTuple):
    """What became of one published number or table."""

    text: str  # one line
    is_same: bool  # or differs by chance only


def published_tables() -> Iterator[Table]:
    """Every table that a script measures, from its raw results."""
    for script in SCRIPTS:
        yield from script.tables(read_results(script.NAME))


def check_table(table: Table) -> Finding:
    """Whether a page has the table that its raw results give."""
    is_same = table.is_current()
    says = "as its raw results say" if is_same else "DIFFERS from its raw results"
    return Finding(f"docs/{table.page.name}, {table.command}: {says}; measured on {table.machine}", is_same)


def check_agent(directory: Path, evaluate: Callable[[Agent, Protocol], Evaluation] = agents.evaluate) -> Finding:
    """Play the published evaluation of an agent again."""
    agent, front_matter = Agent.load(directory), agents.read_front_matter(directory)
    assert agent.exported is not None and agent.exported.evaluation is not None
    published = agent.exported.evaluation
    found = evaluate(agent, published.protocol)
    (model,) = front_matter["model-index"]
    (metric,) = model["results"][0]["metrics"]
    made_on, here = metric["args"]["processor"], agents.processor()
    means = f"mean {found.summary()['mean']:.2f}, published {published.summary()['mean']:.2f}"
    if found.scores == published.scores:
        return Finding(f"{directory.name}: the same {published.protocol.episodes} scores, {means}", True)
    low, high = agents.chance_interval(published, published.protocol.episodes)
    by_chance = made_on != here and low <= found.summary()["mean"] <= high
    verdict = f"in the range of chance, {low:.2f} to {high:.2f}" if by_chance else "DIFFERS"
    return Finding(f"{directory.name}: {means}, {verdict}; published on {made_on}, this is {here}", by_chance)


def main() -> None:
    """Check all tables and agents, and print a line for each."""
    findings = chain(map(check_table, published_tables()), map(check_agent, agents.directories()))
    is_same = True
    for finding in findings:
        print(finding.text, flush=True)
        is_same &= finding.is_same
    sys.exit(not is_same)


if __name__ == "__main__":
    main()
