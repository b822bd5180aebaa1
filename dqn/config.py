"""The configuration of a training run, its presets, and overrides of single fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dqn.config_file import read_fields
from dqn.field_names import usage_here, with_current_names
from dqn.schedules import LinearSchedule

Preset = Literal["fast", "tutorial"]
PRESETS: tuple[str, ...] = get_args(Preset)

DEFAULT_STATES = 4_400_000  # states that a training plays unless another number is asked for


class FieldError(ValueError):
    """A field of a configuration is unknown, or its value is not allowed."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)  # with the one argument by which it is unpickled
        self.field = field


class TrainConfig(BaseModel):
    """Everything that determines what a training run computes. The defaults are the preset `fast`.

    A state is what the agent observes before it selects an action. A lane is one slot of the vector environment, which
    plays episode after episode. A cycle plays, sweeps and optimizes once. Schedules count the states played since the
    start of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Games

    game: str = Field("ALE/Breakout-v5", description="Gymnasium id of an Atari game.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw of the run.")
    lanes: int = Field(64, ge=1, le=4096, description="Number of games played side by side.")
    shards: int = Field(
        1,
        ge=1,
        le=4096,
        description="Number of parts of the lanes. Each part is played and swept by tasks of its own, which can run "
        "on different machines of a cluster.",
    )
    replay_states: int = Field(
        4_096, ge=1, description="Number of states that a cycle plays when replay_fraction is 1."
    )
    replay_fraction: LinearSchedule = Field(
        LinearSchedule(start=1, end=1),
        description="Share of replay_states that a cycle plays, above 0 and at most 1.",
    )
    episode_frames_limit: int = Field(
        108_000,
        ge=8,
        description="Number of frames after which an episode is truncated. The sweep then bootstraps from its last "
        "state.",
    )
    frame_stack: bool = Field(
        False,
        description="A state is the last 4 frames, newest first, instead of one frame and its motion trace.",
    )
    frame_pooling: bool = Field(
        False,
        description="A frame is the maximum of the emulator's last two frames, so that sprites that flicker are in "
        "every state. Only for games with an id ALE/….",
    )
    full_action_set: bool = Field(
        False, description="Use all 18 actions of the console instead of the actions of the game."
    )
    noop_max: int = Field(
        0,
        ge=0,
        le=255,
        description="Highest number of no-op actions at the start of an episode, in training and in evaluation. The "
        "number is drawn from 0 to noop_max.",
    )
    midgame_lanes: int = Field(
        0,
        ge=0,
        description="Number of lanes that restart every 16 cycles from a state that another lane has visited.",
    )

    # Sweep

    sweep: Literal["max", "ebu", "peng", "watkins"] = Field(
        "peng", description="How the value of the next state enters the return; see dqn.learning.sweep."
    )
    discount: float = Field(0.99, ge=0, le=1, description="Weight of the value of the next state.")
    td_lambda: float = Field(
        0.65,
        ge=0,
        le=1,
        description="Lambda of peng and watkins, beta of ebu: the weight of the swept return against the network's "
        "estimate. It has no effect on max.",
    )
    reward_clip: float = Field(
        1.0, ge=0, description="Rewards are clipped to the range from -reward_clip to reward_clip; 0 disables clipping."
    )
    rescale_values: bool = Field(
        False,
        description="The network estimates sign(v) · (√(|v| + 1) - 1) + 0.01 · v instead of the value v. Meant for "
        "rewards that are not clipped.",
    )

    # Network

    network: Literal["tutorial", "nips", "nature", "small", "residual"] = Field(
        "residual", description="Convolutions and dense layers; see dqn.learning.networks."
    )
    normalize: bool = Field(True, description="Normalize each hidden layer before its ReLU.")
    scale_input: bool = Field(True, description="Divide pixels by 255 before the first layer.")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability that an output of a hidden dense layer is set to zero during optimization.",
    )

    # Optimizer

    optimizer: Literal["rmsprop", "adam", "radam"] = Field(
        "radam", description="Optimizer; rmsprop is TensorFlow's variant, as in the tutorial."
    )
    learning_rate: LinearSchedule = Field(
        LinearSchedule(start=5e-4, end=1e-5, states=DEFAULT_STATES), description="Learning rate of the optimizer."
    )
    adapt_learning_rate: bool = Field(
        False,
        description="After each epoch of a cycle except the first, multiply the learning rate by 1.05 if the mean loss "
        "fell, or by 0.5 if not. The next cycle starts from the schedule again.",
    )
    loss: Literal["all-actions", "action-taken"] = Field(
        "action-taken",
        description="Squared error summed over all actions, or half the squared error of the action taken.",
    )
    max_grad_norm: float = Field(10.0, ge=0, description="Gradients are scaled down to this norm; 0 disables scaling.")
    l2: float = Field(
        0.0, ge=0, description="Weight decay: l2 times each weight is added to its gradient, after max_grad_norm."
    )
    ema_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Decay of the exponential moving average of the weights, which plays; 0 plays with the trained "
        "weights.",
    )
    batch_size: int = Field(128, ge=1, description="Number of states in a batch, one optimizer step each.")
    balanced_sampling: bool = Field(
        False, description="At least half of the states of every batch have a high estimation error."
    )
    error_threshold: float = Field(0.1, ge=0, description="An estimation error is high if it is at least this.")
    min_epochs: float = Field(
        1.0, ge=0, description="Number of epochs of a cycle before loss_limit can end its optimization."
    )
    max_epochs: LinearSchedule = Field(
        LinearSchedule(start=1, end=1),
        description="Highest number of epochs of a cycle. An epoch goes once through the replay memory.",
    )
    loss_limit: LinearSchedule = Field(
        LinearSchedule(start=0, end=0),
        description="The optimization of a cycle ends when the mean loss of the last 100 batches is below this.",
    )
    replay_cycles: int = Field(
        1,
        ge=1,
        description="Number of the newest cycles in the replay memory. All but the last are estimated and swept again "
        "in each cycle.",
    )

    # Exploration

    epsilon: LinearSchedule = Field(
        LinearSchedule(start=1, end=0.01, states=400_000),
        description="Probability of a random action during training.",
    )

    # Evaluation

    evaluation_epsilon: float = Field(0.01, ge=0, le=1, description="Probability of a random action during evaluation.")
    evaluation_episodes: int = Field(30, ge=1, description="Number of complete episodes in an evaluation.")
    evaluation_states: int = Field(
        0,
        ge=0,
        description="Number of states between two evaluations during training; 0 disables them.",
    )

    # Machine

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Device of the network. Each auto of this group is resolved once, when the run starts, and the "
        "result is stored.",
    )
    play_device: Literal["same", "cpu"] = Field(
        "same",
        description="Device of the network while it plays. cpu plays in float32, for machines of a cluster without a "
        "GPU.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the network's arithmetic. The weights that the optimizer steps are always float32.",
    )
    compiled: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Compile the loss and its gradients with torch.compile. auto compiles on a GPU if there is a C++ "
        "compiler and no dropout.",
    )
    overlap: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Play the next cycle while the network is trained on this one. The network that plays is then one "
        "cycle older. auto does not overlap: it is faster only on a cluster whose optimizer is a worker of its own.",
    )
    threads: int = Field(0, ge=0, le=1024, description="Number of CPU threads; 0 means one for each core.")
    lane_groups: int = Field(
        0,
        ge=0,
        le=1024,
        description="Number of groups of a shard's lanes, each of which plays in a thread of its own; 0 means auto.",
    )
    optimizer_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of processes that share every batch, each on a GPU of its own if device is cuda.",
    )
    keep_cycles: int = Field(
        2,
        ge=1,
        description="Number of the newest cycles that stay stored. Experience that replay_cycles needs to resume from "
        "them stays, too.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_names(cls, fields: Any) -> Any:
        return with_current_names(fields) if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _check_ranges(self) -> TrainConfig:
        epsilon, fraction = self.epsilon, self.replay_fraction
        if max(epsilon.start, epsilon.end) > 1:
            raise ValueError(f"epsilon is {epsilon}; a probability is at most 1")
        if not (min(fraction.start, fraction.end) > 0 and max(fraction.start, fraction.end) <= 1):
            raise ValueError(f"replay_fraction is {fraction}; both ends must be above 0 and at most 1")
        if self.compiled == "yes" and self.dropout:
            raise ValueError("compiled is yes, but dropout cannot be compiled; use compiled=no or dropout=0")
        if self.optimizer_processes > self.batch_size:
            raise ValueError(
                f"optimizer_processes is {self.optimizer_processes}; "
                f"it can be at most batch_size, which is {self.batch_size}"
            )
        if self.shards > self.lanes:
            raise ValueError(f"shards is {self.shards}; it can be at most lanes, which is {self.lanes}")
        if self.lane_groups > self.lanes // self.shards:
            most = "lanes / shards" if self.shards > 1 else "lanes"
            raise ValueError(
                f"lane_groups is {self.lane_groups}; it can be at most {most}, which is {self.lanes // self.shards}"
            )
        if self.midgame_lanes >= self.lanes:
            raise ValueError(f"midgame_lanes is {self.midgame_lanes}; it must be below lanes, which is {self.lanes}")
        return self

    @property
    def state_channels(self) -> int:
        """Channels of a state: a frame and its motion trace, or stacked frames."""
        return 4 if self.frame_stack else 2

    def to_play(self) -> TrainConfig:
        """The configuration of the network that plays: as this one, but on the device that `play_device` names."""
        if self.play_device == "same" or self.device == "cpu":
            return self
        return self.model_copy(update={"device": "cpu", "precision": "float32", "compiled": "no"})

    def cycle_steps(self, states: int) -> int:
        """Number of steps of every lane in the cycle that starts after `states` states; at least 1."""
        return max(1, round(self.replay_fraction.at(states) * self.replay_states / self.lanes))

    def states_before(self, cycle: int) -> int:
        """Number of states that the run plays before a cycle."""
        states = 0
        for left in reversed(range(1, cycle)):
            played = self.cycle_steps(states) * self.lanes
            if states >= self.replay_fraction.states:  # from here on all cycles have the same length
                return states + (left * played)
            states += played
        return states

    def shard_lanes(self, shard: int) -> slice:
        """The lanes of a shard. The shards together are all lanes, in order."""
        return slice(shard * self.lanes // self.shards, (shard + 1) * self.lanes // self.shards)

    @property
    def first_midgame_lane(self) -> int:
        """Index of the first of the `midgame_lanes`, which are the last lanes."""
        return self.lanes - self.midgame_lanes

    def groups(self, shard: int = 0) -> list[slice]:
        """The lanes of each group of a shard. `midgame_lanes` are in groups of their own.

        All groups have the same size, except the last one of the `midgame_lanes` and the last one of the others.
        """
        lanes, first = self.shard_lanes(shard), self.first_midgame_lane
        size = -(-(lanes.stop - lanes.start) // max(1, self.lane_groups))
        parts = range(lanes.start, min(first, lanes.stop)), range(max(first, lanes.start), lanes.stop)
        return [slice(start, min(start + size, part.stop)) for part in parts for start in part[::size]]

    def group_numbers(self, shard: int) -> range:
        """Numbers of a shard's groups, counted over all shards. They are part of the keys of random draws."""
        first = sum(len(self.groups(before)) for before in range(shard))
        return range(first, first + len(self.groups(shard)))

    def for_another_machine(self) -> TrainConfig:
        """The configuration before `dqn.hardware.resolve` chose values for one machine."""
        chosen = ("device", "precision", "compiled", "overlap", "threads", "lane_groups")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in chosen})

    def scheduled(self, states: int) -> dict[str, float]:
        """Value of every schedule after `states` states, by field name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value.at(states) for name, value in values.items() if isinstance(value, LinearSchedule)}


@cache
def preset_fields(preset: str) -> Mapping[str, Any]:
    """The fields that a preset sets, from its file in `dqn/presets`.

    Raises:
        ValueError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of: {', '.join(PRESETS)}")
    name = f"{preset}.yaml"
    return read_fields((resources.files("dqn") / "presets" / name).read_text(), name).fields


def make_config(preset: str = "fast", overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of `preset` with the fields in `overrides` replaced.

    Args:
        preset: `fast` or `tutorial`.
        overrides: values by field name. A value can be text, as on the command line.

    Raises:
        FieldError: a field is unknown, or its value is not allowed. The message is one line.
        ValueError: an unknown preset, or values that do not fit together. The message is one line.
    """
    fields = preset_fields(preset)
    overrides = dict(overrides or {})
    for name in overrides:
        if name not in TrainConfig.model_fields:
            usage = usage_here(name)
            hint = f"; {usage}" if usage else nearest(name, TrainConfig.model_fields)
            raise FieldError(f"unknown field {name!r}{hint}", name)
    try:
        return TrainConfig.model_validate({**fields, **overrides})
    except ValidationError as error:
        raise _one_line(error, overrides) from None


def nearest(word: str, names: Iterable[str], words: Mapping[str, str] | None = None) -> str:
    """The hint `; did you mean …?` with the names closest to `word`; empty if none is close.

    Args:
        word: what was written.
        names: what can be written.
        words: other words by which a name can be found.
    """
    known = {name.lower(): name for name in names} | {other.lower(): name for other, name in (words or {}).items()}
    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.55)
    matches = dict.fromkeys(known[match] for match in close)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _one_line(error: ValidationError, overrides: Mapping[str, Any]) -> ValueError:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not first["loc"]:
        return ValueError(message)
    name = str(first["loc"][0])
    description = TrainConfig.model_fields[name].description
    return FieldError(f"{name} is {overrides.get(name, first['input'])!r}: {message} ({description})", name)
