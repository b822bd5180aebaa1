"""Evaluations as files."""

from __future__ import annotations

import json
from pathlib import Path

from dqn.evaluation.evaluation import Evaluation
from storage.errors import CorruptUnitError, first_problem
from storage.format_version import check_format

FILE = "evaluation.json"
FORMAT = 1  # files of release 0.1.0 are the same without a version


def write_evaluation(directory: Path, evaluation: Evaluation) -> None:
    """Write an evaluation into `directory`."""
    (directory / FILE).write_text(json.dumps({"format": FORMAT, **evaluation.as_dict()}, indent=1) + "\n")


def read_evaluation(directory: Path) -> Evaluation:
    """The evaluation in a verified unit.

    Raises:
        CorruptUnitError: the file is not that of an evaluation.
        NewerFormatError: a newer release wrote the file.
    """
    path = directory / FILE
    try:
        record = json.loads(path.read_bytes())
        check_format(record.get("format", 1), path, newest=FORMAT)
        return Evaluation.from_dict(record)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptUnitError(f"{path} is not an evaluation of this version: {first_problem(error)}") from None
