"""Evaluations as files."""

from __future__ import annotations

import json
from pathlib import Path

from dqn.evaluation.evaluation import Evaluation
from storage.errors import CorruptUnitError

FILE = "evaluation.json"


def write_evaluation(directory: Path, evaluation: Evaluation) -> None:
    """Write an evaluation into `directory`."""
    (directory / FILE).write_text(json.dumps(evaluation.as_dict(), indent=1) + "\n")


def read_evaluation(directory: Path) -> Evaluation:
    """The evaluation in a verified unit.

    Raises:
        CorruptUnitError: the file is not an evaluation of this version.
    """
    path = directory / FILE
    try:
        return Evaluation.from_dict(json.loads(path.read_bytes()))
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptUnitError(f"{path} is not an evaluation of this version: {error}") from None
