"""The one configuration of a training run, its presets, and how people override it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dqn.schedules import LinearSchedule

Preset = Literal["fast", "tutorial"]

RENAMED = {
    "trace_decay": "td_lambda",
    "average_decay": "ema_decay",
    "gradient_norm_limit": "max_grad_norm",
    "testing_epsilon": "evaluation_epsilon",
}


class TrainConfig(BaseModel):
    """Everything that decides what a training run computes. The defaults are the preset `fast`.

    A state is one decision of the agent: what it sees before it acts. A cycle plays, sweeps and
    optimizes once. Schedules count states played since the start of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # The games
    game: str = Field("ALE/Breakout-v5", description="Gymnasium id of an Atari game.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw of the run.")
    lanes: int = Field(64, ge=1, le=4096, description="Games played side by side.")
    shards: int = Field(
        1,
        ge=1,
        le=4096,
        description="Parts of the lanes, each played and swept by a task of its own: on a cluster, anywhere in it.",
    )
    episode_frames_limit: int = Field(
        108_000, ge=8, description="Frames after which an episode is cut off; its last state bootstraps."
    )

    noop_max: int = Field(
        0, ge=0, le=255, description="Episodes start with 0 to so many random no-op actions, in evaluation, too."
    )
    midgame_lanes: int = Field(
        0, ge=0, description="The last so many lanes start every 16 cycles in mid-game, in states that others were in."
    )
    full_action_set: bool = Field(False, description="All 18 actions of the console, not only those the game knows.")

    frame_stack: bool = Field(
        False, description="States are the last 4 frames, newest first, instead of one with its motion trace."
    )

    # The cycle
    replay_states: int = Field(4_096, ge=1, description="States of a cycle when the replay memory is full.")
    replay_fraction: LinearSchedule = Field(
        LinearSchedule(start=1, end=1),
        description="Share of replay_states that a cycle plays, above 0 and at most 1.",
    )
    replay_cycles: int = Field(
        1,
        ge=1,
        description="Newest cycles in the replay memory; all but the last are estimated and swept again each time.",
    )
    keep_cycles: int = Field(
        2,
        ge=1,
        description="Newest cycles kept on disk; of experience also what replay_cycles needs to go on from them.",
    )

    # Exploration
    epsilon: LinearSchedule = Field(
        LinearSchedule(start=1, end=0.01, states=400_000),
        description="Probability of a random action while training.",
    )

    # Evaluation
    evaluation_epsilon: float = Field(0.01, ge=0, le=1, description="Probability of a random action in evaluation.")
    evaluation_episodes: int = Field(30, ge=1, description="Complete episodes of an evaluation.")
    evaluation_states: int = Field(
        0, ge=0, description="States played between two evaluations while training; 0 means none."
    )

    # The backward sweep
    sweep: Literal["max", "ebu", "peng", "watkins"] = Field(
        "peng", description="How the value of the next state enters the return; see dqn.learning.sweep."
    )
    discount: float = Field(0.99, ge=0, le=1, description="Weight of the next state's value.")
    td_lambda: float = Field(
        0.65,
        ge=0,
        le=1,
        description="Lambda of peng and watkins, beta of ebu: share of the swept return; max has no use for it.",
    )
    reward_clip: float = Field(1.0, ge=0, description="Rewards are clipped to plus or minus this; 0 leaves them alone.")
    rescale_values: bool = Field(
        False,
        description="Estimate sign(v) · (√(|v| + 1) - 1) + 0.01 · v of a value v; meant for unclipped rewards.",
    )

    # The network
    network: Literal["tutorial", "nips", "nature", "small", "residual"] = Field(
        "residual", description="Convolutions and dense layers; see dqn.learning.networks."
    )
    normalize: bool = Field(True, description="Normalize each hidden layer before its ReLU.")
    scale_input: bool = Field(True, description="Divide pixels by 255 before the first layer.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the outputs of hidden dense layers that are dropped while optimizing."
    )

    # Optimization
    optimizer: Literal["rmsprop", "adam", "radam"] = Field(
        "radam", description="rmsprop is TensorFlow's variant, as in the tutorial."
    )
    learning_rate: LinearSchedule = Field(
        LinearSchedule(start=5e-4, end=1e-5, states=4_400_000), description="Step size of the optimizer."
    )
    ema_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Play with an average of the trained weights, of which this share stays at each optimizer step; 0 "
        "plays with the trained weights themselves.",
    )
    adapt_learning_rate: bool = Field(
        False,
        description="Within a run, from the second epoch on: 1.05 times the step size if the mean loss of the epoch "
        "fell, half of it if not; the next run starts from the schedule.",
    )
    loss: Literal["all-actions", "action-taken"] = Field(
        "action-taken",
        description="Squared error summed over all actions, or half of it on the action taken.",
    )
    max_grad_norm: float = Field(10.0, ge=0, description="Gradients are scaled down to this norm; 0 leaves them alone.")
    l2: float = Field(
        0.0, ge=0, description="Adds l2 / 2 · the sum of all squared weights to the loss, after gradients are limited."
    )
    batch_size: int = Field(128, ge=1, description="States per optimizer step.")
    balanced_sampling: bool = Field(
        False, description="Give states with a high estimation error at least half of every batch."
    )
    error_threshold: float = Field(0.1, ge=0, description="Estimation errors from this on are high.")
    min_epochs: float = Field(1.0, ge=0, description="Epochs before the loss limit may stop a run.")
    max_epochs: LinearSchedule = Field(
        LinearSchedule(start=1, end=1),
        description="Epochs, each once through the replay memory, after which a run stops.",
    )
    loss_limit: LinearSchedule = Field(
        LinearSchedule(start=0, end=0),
        description="An optimization run stops when the mean loss of 100 batches is below this.",
    )

    # The machine; `auto` is decided once, when the run starts, and stored
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the network lives.")
    play_device: Literal["same", "cpu"] = Field(
        "same",
        description="Where the network lives while it plays: on cpu in float32, for machines without the GPU that "
        "device names.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of the network; the optimizer's weights are always float32."
    )
    compiled: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Compile the loss and its gradients with torch.compile; auto does so for a GPU if there is a C++ "
        "compiler and no dropout.",
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0 means one for each core.")
    optimizer_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share every batch of an optimization run, each on a GPU of its own if device is "
        "cuda.",
    )
    lane_groups: int = Field(
        0,
        ge=0,
        le=1024,
        description="Groups of a shard's lanes that play at the same time, each in a thread; 0 means auto.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, fields: Any) -> Any:
        """Fields of runs that releases before 0.2 have stored."""
        return (
            {RENAMED.get(name, name): value for name, value in fields.items()} if isinstance(fields, dict) else fields
        )

    @model_validator(mode="after")
    def _check_ranges(self) -> TrainConfig:
        epsilon, fraction = self.epsilon, self.replay_fraction
        if max(epsilon.start, epsilon.end) > 1:
            raise ValueError(f"epsilon is {epsilon}; a probability is at most 1")
        if not (min(fraction.start, fraction.end) > 0 and max(fraction.start, fraction.end) <= 1):
            raise ValueError(f"replay_fraction is {fraction}; it must stay above 0 and at most 1")
        if self.compiled == "yes" and self.dropout:
            raise ValueError("compiled is yes, but dropout is drawn on the CPU, which cannot be compiled; use no")
        if self.optimizer_processes > self.batch_size:
            raise ValueError(f"optimizer_processes is {self.optimizer_processes}; a batch has {self.batch_size} states")
        if self.shards > self.lanes:
            raise ValueError(f"shards is {self.shards}; there are only {self.lanes} lanes")
        if self.lane_groups > self.lanes // self.shards:
            there = f"there are only {self.lanes} lanes" + (f" in {self.shards} shards" if self.shards > 1 else "")
            raise ValueError(f"lane_groups is {self.lane_groups}; {there}")
        if self.midgame_lanes >= self.lanes:
            raise ValueError(f"midgame_lanes is {self.midgame_lanes}; it must stay below lanes, which is {self.lanes}")
        return self

    @property
    def state_channels(self) -> int:
        """Channels of a state: a frame and its motion trace, or stacked frames."""
        return 4 if self.frame_stack else 2

    def to_play(self) -> TrainConfig:
        """The configuration of the network that plays: this one, but for `play_device`."""
        if self.play_device == "same" or self.device == "cpu":
            return self
        return self.model_copy(update={"device": "cpu", "precision": "float32", "compiled": "no"})

    def cycle_steps(self, states: int) -> int:
        """Steps of every lane in the cycle that starts after `states` states were played; at least 1."""
        return max(1, round(self.replay_fraction.at(states) * self.replay_states / self.lanes))

    def shard_lanes(self, shard: int) -> slice:
        """The lanes of a shard; the shards are all lanes in order."""
        return slice(shard * self.lanes // self.shards, (shard + 1) * self.lanes // self.shards)

    @property
    def first_midgame_lane(self) -> int:
        """The first of the `midgame_lanes`; the lanes before it play every episode from its reset."""
        return self.lanes - self.midgame_lanes

    def groups(self, shard: int = 0) -> list[slice]:
        """The lanes of each group of a shard, of one size as far as they go; `midgame_lanes` are in their own."""
        lanes, first = self.shard_lanes(shard), self.first_midgame_lane
        size = -(-(lanes.stop - lanes.start) // max(1, self.lane_groups))
        parts = range(lanes.start, min(first, lanes.stop)), range(max(first, lanes.start), lanes.stop)
        return [slice(start, min(start + size, part.stop)) for part in parts for start in part[::size]]

    def group_numbers(self, shard: int) -> range:
        """The numbers of a shard's groups among those of all shards, which keys of random draws have."""
        first = sum(len(self.groups(before)) for before in range(shard))
        return range(first, first + len(self.groups(shard)))

    def scheduled(self, states: int) -> dict[str, float]:
        """Every scheduled parameter's value after `states` states were played, by field name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value.at(states) for name, value in values.items() if isinstance(value, LinearSchedule)}


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    # The tutorial's recipe. It plays one game at a time; with more lanes a state is the same, and
    # a cycle plays as many states as its replay memory would take.
    "tutorial": {
        "game": "Breakout-v0",
        "lanes": 40,
        "replay_states": 200_000,
        "replay_fraction": "0.1:1:5000000",
        "epsilon": "1:0.1:1000000",
        "sweep": "max",
        "discount": 0.97,
        "network": "tutorial",
        "normalize": False,
        "scale_input": False,
        "optimizer": "rmsprop",
        "learning_rate": "1e-3:1e-5:5000000",
        "ema_decay": 0.0,
        "loss": "all-actions",
        "max_grad_norm": 0.0,
        "batch_size": 128,
        "balanced_sampling": True,
        "max_epochs": "5:10:5000000",
        "loss_limit": "0.1:0.015:5000000",
    },
}


def make_config(preset: str = "fast", overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of `preset` with the fields in `overrides` (values or their text) replaced.

    Raises:
        ValueError: unknown preset or field (with the nearest name), or a value out of range; one line.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of: {', '.join(PRESETS)}")
    overrides = dict(overrides or {})
    for name in overrides:
        if name in RENAMED:
            raise ValueError(f"unknown field {name!r}; it is called {RENAMED[name]} here")
        if name not in TrainConfig.model_fields:
            raise ValueError(f"unknown field {name!r}{nearest(name, TrainConfig.model_fields)}")
    try:
        return TrainConfig.model_validate({**PRESETS[preset], **overrides})
    except ValidationError as error:
        raise ValueError(_one_line(error, overrides)) from None


def nearest(word: str, names: Iterable[str], words: Mapping[str, str] | None = None) -> str:
    """`; did you mean …?` with the names closest to `word`, or nothing; `words` are other words for names."""
    known = {name.lower(): name for name in names} | {other.lower(): name for other, name in (words or {}).items()}
    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.55)
    matches = dict.fromkeys(known[match] for match in close)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _one_line(error: ValidationError, overrides: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    description = TrainConfig.model_fields[name].description
    return f"{name} is {overrides.get(name, first['input'])!r}: {message} ({description})"
