"""Experience and targets in zarr."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from dqn.experience import Experience, Targets
from dqn.motion_tracer import STATE_SHAPE
from storage.errors import CorruptUnitError

EXPERIENCE, TARGETS = "experience.zarr", "targets.zarr"
CHUNK_STATES = 500  # about 8 MB before compression

# What zarr raises for files that are not its own, or not whole
_NONSENSE = (FileNotFoundError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)

_TABLES = [field.name for field in fields(Experience) if field.name != "states"]


def piece_steps(lanes: int) -> int:
    """Steps whose states of all lanes fill one chunk."""
    return max(1, CHUNK_STATES // lanes)


class ExperienceWriter:
    """Writes a cycle's experience piece by piece: states chunk by chunk as they come, tables at the end."""

    def __init__(self, directory: Path, steps: int, lanes: int, actions: int) -> None:
        self._group = zarr.create_group(directory / EXPERIENCE)
        self._steps_done = 0
        chunk = (min(steps, piece_steps(lanes)), lanes, *STATE_SHAPE)
        self._states = _create(self._group, "states", (steps, lanes, *STATE_SHAPE), np.dtype(np.uint8), chunk)
        self._tables = Experience.empty(steps, lanes, actions, with_states=False)

    def write(self, piece: Experience) -> None:
        """Add the next piece; every piece but the last has `piece_steps` steps."""
        rows = slice(self._steps_done, self._steps_done + piece.steps)
        self._states[rows] = piece.states
        for name in _TABLES:
            where = slice(None) if name == "bootstrap_q_values" else rows
            getattr(self._tables, name)[where] = getattr(piece, name)
        self._steps_done = rows.stop

    @property
    def states_written(self) -> int:
        """States of all lanes written so far."""
        return self._steps_done * int(self._tables.actions.shape[1])

    def finish(self) -> Experience:
        """Write the tables; returns the experience without its states.

        Raises:
            OSError: a chunk of the states did not reach the disk.
        """
        assert self._steps_done == self._tables.steps
        if self._states.nchunks_initialized != self._states.nchunks:
            raise OSError("some chunks of the states were not written")
        for name in _TABLES:
            _write(self._group, name, getattr(self._tables, name))
        return self._tables


def read_experience(directory: Path, *, with_states: bool = True) -> Experience:
    """The experience in a verified unit; without its states, `states` has no rows.

    Raises:
        CorruptUnitError: the files are not an experience.
    """
    group = _open(directory / EXPERIENCE)
    tables = {name: _read(group, name) for name in _TABLES}
    steps, lanes, actions = _dimensions(group, "q_values", tables["q_values"], 3)
    like = Experience.empty(steps, lanes, actions, with_states=False)
    for name, table in tables.items():
        _check(group, name, table, getattr(like, name))
    if not with_states:
        return Experience(states=like.states, **tables)
    states = _read(group, "states")
    if states.dtype != np.uint8 or states.shape != (steps, lanes, *STATE_SHAPE):
        raise CorruptUnitError(f"{group.store_path}/states is not of {steps} steps of {lanes} lanes")
    return Experience(states=states, **tables)


def write_targets(directory: Path, targets: Targets) -> None:
    """Write targets as a zarr group."""
    group = zarr.create_group(directory / TARGETS)
    _write(group, "q_values", targets.q_values)
    _write(group, "estimation_errors", targets.estimation_errors)


def read_targets(directory: Path) -> Targets:
    """The targets in a verified unit.

    Raises:
        CorruptUnitError: the files are not targets.
    """
    group = _open(directory / TARGETS)
    q_values, errors = _read(group, "q_values"), _read(group, "estimation_errors")
    shape = _dimensions(group, "q_values", q_values, 3)
    _check(group, "q_values", q_values, np.empty(shape, np.float32))
    _check(group, "estimation_errors", errors, np.empty(shape[:2], np.float32))
    return Targets(q_values, errors)


def _open(directory: Path) -> zarr.Group:
    try:
        # Format 2 would allow pickled objects.
        return zarr.open_group(directory, mode="r", zarr_format=3, use_consolidated=False)
    except _NONSENSE as error:
        raise CorruptUnitError(f"{directory} is not a zarr group: {error}") from None


def _read(group: zarr.Group, name: str) -> np.ndarray:
    try:
        array = group.get(name)
        if isinstance(array, zarr.Array):
            if array.nbytes > psutil.virtual_memory().total:
                raise CorruptUnitError(f"{group.store_path}/{name} would fill the memory with {array.nbytes:,} bytes")
            return np.asarray(array[...])
    except _NONSENSE as error:
        raise CorruptUnitError(f"{group.store_path}/{name} cannot be read: {error}") from None
    raise CorruptUnitError(f"{group.store_path} has no array {name}")


def _dimensions(group: zarr.Group, name: str, array: np.ndarray, count: int) -> tuple[int, ...]:
    if array.ndim != count:
        raise CorruptUnitError(f"{group.store_path}/{name} has {array.ndim} dimensions, not {count}")
    return array.shape


def _check(group: zarr.Group, name: str, array: np.ndarray, like: np.ndarray) -> None:
    if (array.dtype, array.shape) != (like.dtype, like.shape):
        raise CorruptUnitError(
            f"{group.store_path}/{name} is {array.dtype} {array.shape}, not {like.dtype} {like.shape}"
        )


def _write(group: zarr.Group, name: str, values: np.ndarray) -> None:
    _create(group, name, values.shape, values.dtype, values.shape)[...] = values


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...]
) -> zarr.Array:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
