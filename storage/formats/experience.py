"""Experience and targets as zarr groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from dqn.envs.experience import Experience, Targets
from storage.errors import CorruptUnitError, StorageError

EXPERIENCE_GROUP, TARGETS_GROUP = "experience.zarr", "targets.zarr"
CHUNK_STATES = 500  # about 8 MB before compression

# Errors of zarr for files that are damaged or have another format
_PARSE_ERRORS = (FileNotFoundError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)

_SMALL_BYTES = 2**28
_HIGHEST_COMPRESSION = 2_000  # of larger arrays; states of Breakout have about 50

_TABLES = [field.name for field in fields(Experience) if field.name != "states"]
_TARGETS = [field.name for field in fields(Targets)]


def write_experience(directory: Path, experience: Experience) -> None:
    """Write experience as a zarr group.

    Raises:
        OSError: a chunk of the states did not reach the disk.
    """
    group = zarr.create_group(directory / EXPERIENCE_GROUP)
    steps = max(1, min(experience.steps, CHUNK_STATES // experience.actions.shape[1]))
    states = _write(group, "states", experience.states, (steps, *experience.states.shape[1:]))
    if states.nchunks_initialized != states.nchunks:
        raise OSError("some chunks of the states were not written")
    for name in _TABLES:
        _write(group, name, getattr(experience, name))


def read_experience(directory: Path, *, with_states: bool = True) -> Experience:
    """The experience in a verified unit. Without its states, `states` has no rows.

    Raises:
        CorruptUnitError: the files are not experience.
    """
    group = _open(directory / EXPERIENCE_GROUP)
    tables = {name: _read(group, name) for name in _TABLES}
    steps, lanes, actions = _dimensions(group, "q_values", tables["q_values"], 3)
    like = Experience.empty(steps, lanes, actions, with_states=False)
    for name, table in tables.items():
        _check(group, name, table, getattr(like, name))
    if not with_states:
        return Experience(states=like.states, **tables)
    states = _read(group, "states")
    if states.dtype != np.uint8 or states.ndim != 5 or states.shape[:4] != (steps, *like.states.shape[1:4]):
        raise CorruptUnitError(f"{group.store_path}/states is not of {steps} steps of {lanes} lanes")
    return Experience(states=states, **tables)


def read_experiences(cycles: Sequence[Sequence[Path]], *, with_states: bool = True) -> Experience:
    """The experience of consecutive cycles, each in the same shards, as one. Every state is in memory once.

    Raises:
        CorruptUnitError: the files are not experience.
    """
    parts = [[read_experience(shard, with_states=False) for shard in shards] for shards in cycles]
    wide = [_side_by_side(shards) for shards in parts]
    tables = {name: np.concatenate([getattr(cycle, name) for cycle in wide]) for name in _TABLES}
    tables |= {"states": wide[0].states, "bootstrap_q_values": wide[-1].bootstrap_q_values}
    if with_states:
        groups = [[_open(shard / EXPERIENCE_GROUP) for shard in shards] for shards in cycles]
        with _readable(groups[0][0], "states") as first:
            states = np.empty((*tables["actions"].shape, *first.shape[2:]), np.uint8)
        tables["states"] = states
        step = 0
        for shards, tables_of_shards in zip(groups, parts, strict=True):
            lane = 0
            for group, part in zip(shards, tables_of_shards, strict=True):
                steps, lanes = part.actions.shape
                _read_into(group, "states", states[step : step + steps, lane : lane + lanes])
                lane += lanes
            step += steps
    return Experience(**tables)


def _side_by_side(shards: Sequence[Experience]) -> Experience:
    """The arrays of all shards of a cycle as one, except the states."""
    tables = {
        name: np.concatenate([getattr(shard, name) for shard in shards], axis=0 if name == "bootstrap_q_values" else 1)
        for name in _TABLES
    }
    return Experience(**tables, states=np.concatenate([shard.states for shard in shards], axis=1))


def write_targets(directory: Path, targets: Targets) -> None:
    """Write targets as a zarr group."""
    group = zarr.create_group(directory / TARGETS_GROUP)
    _write(group, "q_values", targets.q_values)
    _write(group, "estimation_errors", targets.estimation_errors)


def read_targets(directory: Path) -> Targets:
    """The targets in a verified unit.

    Raises:
        CorruptUnitError: the files are not targets.
    """
    group = _open(directory / TARGETS_GROUP)
    q_values, errors = _read(group, "q_values"), _read(group, "estimation_errors")
    shape = _dimensions(group, "q_values", q_values, 3)
    _check(group, "q_values", q_values, np.empty(shape, np.float32))
    _check(group, "estimation_errors", errors, np.empty(shape[:2], np.float32))
    return Targets(q_values, errors)


def read_all_targets(shards: Sequence[Path]) -> Targets:
    """The targets of all shards of a cycle as one.

    Raises:
        CorruptUnitError: the files are not targets.
    """
    parts = [read_targets(shard) for shard in shards]
    return Targets(*(np.concatenate([getattr(p, name) for p in parts], axis=1) for name in _TARGETS))


def _open(directory: Path) -> zarr.Group:
    try:
        # Format 2 would allow pickled objects.
        return zarr.open_group(directory, mode="r", zarr_format=3, use_consolidated=False)
    except _PARSE_ERRORS as error:
        raise CorruptUnitError(f"{directory} is not a zarr group: {error}") from None


def _read(group: zarr.Group, name: str) -> np.ndarray:
    with _readable(group, name) as array:
        return np.asarray(array[...])


def _read_into(group: zarr.Group, name: str, out: np.ndarray) -> None:
    """Read an array into `out`, which must have its type and shape."""
    with _readable(group, name) as array:
        if (array.dtype, array.shape) != (out.dtype, out.shape):
            raise CorruptUnitError(
                f"{group.store_path}/{name} is {array.dtype} {array.shape}, not {out.dtype} {out.shape}"
            )
        array.get_basic_selection(out=default_buffer_prototype().nd_buffer.from_numpy_array(out))


@contextmanager
def _readable(group: zarr.Group, name: str) -> Iterator[zarr.Array]:
    """The array of that name. Errors while the block reads it become a CorruptUnitError that names it."""
    try:
        array = group.get(name)
        if not isinstance(array, zarr.Array):
            raise CorruptUnitError(f"{group.store_path} has no array {name}")
        _check_size(group, name, array)
        yield array
    except _PARSE_ERRORS as error:
        raise CorruptUnitError(f"{group.store_path}/{name} cannot be read: {error}") from None
    except MemoryError:
        raise StorageError(f"{group.store_path}/{name} does not fit into memory") from None


def _check_size(group: zarr.Group, name: str, array: zarr.Array) -> None:
    """Refuse a small file that claims to be a huge array, before memory is allocated for it."""
    assert isinstance(group.store, LocalStore)
    sizes = [path.stat().st_size for path in (group.store.root / name).iterdir() if path.name != "zarr.json"]
    if len(sizes) != array.nchunks:
        raise ValueError(f"it has {len(sizes):,} of {array.nchunks:,} chunks")
    if array.nbytes > max(_SMALL_BYTES, _HIGHEST_COMPRESSION * sum(sizes)):
        raise ValueError(f"its shape is {array.shape}, but its files have only {sum(sizes):,} bytes")


def _dimensions(group: zarr.Group, name: str, array: np.ndarray, count: int) -> tuple[int, ...]:
    if array.ndim != count:
        raise CorruptUnitError(f"{group.store_path}/{name} has {array.ndim} dimensions, not {count}")
    return array.shape


def _check(group: zarr.Group, name: str, array: np.ndarray, like: np.ndarray) -> None:
    if (array.dtype, array.shape) != (like.dtype, like.shape):
        raise CorruptUnitError(
            f"{group.store_path}/{name} is {array.dtype} {array.shape}, not {like.dtype} {like.shape}"
        )


def _write(group: zarr.Group, name: str, values: np.ndarray, chunks: tuple[int, ...] | None = None) -> zarr.Array:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks or values.shape,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},  # no subdirectories, because each needs an fsync
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return array
