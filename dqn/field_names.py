"""Names of configuration fields in other projects and in earlier releases, and what to use here instead."""

from __future__ import annotations

# Earlier names of fields: read from stored runs and exports, but no longer accepted from users.
RENAMED = {
    "trace_decay": "td_lambda",
    "average_decay": "ema_decay",
    "gradient_norm_limit": "max_grad_norm",
    "testing_epsilon": "evaluation_epsilon",
}

# Names of the same thing in gymnasium, Stable-Baselines3, CleanRL, Dopamine, RLlib and their like.
OTHER_NAMES = {
    "env": "game",
    "env_id": "game",
    "env_name": "game",
    "environment": "game",
    "game_id": "game",
    "game_name": "game",
    "rom": "game",
    "random_seed": "seed",
    "num_envs": "lanes",
    "n_envs": "lanes",
    "num_lanes": "lanes",
    "full_action_space": "full_action_set",
    "frame_stacking": "frame_stack",
    "framestack": "frame_stack",
    "maxpool": "frame_pooling",
    "max_pool": "frame_pooling",
    "max_num_frames_per_episode": "episode_frames_limit",
    "max_frames": "episode_frames_limit",
    "noops": "noop_max",
    "noop": "noop_max",
    "max_noops": "noop_max",
    "buffer_size": "replay_states",
    "memory_size": "replay_states",
    "replay_size": "replay_states",
    "replay_capacity": "replay_states",
    "replay_buffer_size": "replay_states",
    "gamma": "discount",
    "discount_factor": "discount",
    "lambda": "td_lambda",
    "lam": "td_lambda",
    "q_lambda": "td_lambda",
    "gae_lambda": "td_lambda",
    "clip_reward": "reward_clip",
    "clip_rewards": "reward_clip",
    "reward_clipping": "reward_clip",
    "layer_norm": "normalize",
    "batch_norm": "normalize",
    "normalize_images": "scale_input",
    "dropout_rate": "dropout",
    "lr": "learning_rate",
    "step_size": "learning_rate",
    "clip_grad": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "gradient_clip": "max_grad_norm",
    "max_gradient_norm": "max_grad_norm",
    "weight_decay": "l2",
    "ema": "ema_decay",
    "batch": "batch_size",
    "minibatch_size": "batch_size",
    "prioritized_replay": "balanced_sampling",
    "n_epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "epochs": "max_epochs",
    "update_epochs": "max_epochs",
    "eps": "epsilon",
    "exploration": "epsilon",
    "eval_epsilon": "evaluation_epsilon",
    "eval_eps": "evaluation_epsilon",
    "epsilon_eval": "evaluation_epsilon",
    "eval_episodes": "evaluation_episodes",
    "n_eval_episodes": "evaluation_episodes",
    "num_eval_episodes": "evaluation_episodes",
    "eval_freq": "evaluation_states",
    "eval_frequency": "evaluation_states",
    "cuda": "device",
    "gpu": "device",
    "use_cuda": "device",
    "dtype": "precision",
    "amp": "precision",
    "mixed_precision": "precision",
    "compile": "compiled",
    "torch_compile": "compiled",
    "num_threads": "threads",
}

_LENGTH = "use the option --states of `dqn train`"
_EPSILON = "write the schedule as epsilon=start:end:states, such as epsilon=1:0.01:400000"
_NO_TARGET_NETWORK = "there is no target network; ema_decay averages the weights of the network that plays"
_CYCLE_STEPS = "each lane plays replay_states / lanes steps in a cycle"
_TRAINING = "a cycle plays replay_states states and then trains for max_epochs epochs on them"
_PARALLEL = "use threads for CPU threads, shards for tasks on a cluster, optimizer_processes for several GPUs"
_ALREADY_DETERMINISTIC = "leave it out, because a training is always deterministic"
_FRAME_SKIP = "it is fixed by the game: 4 frames in ALE/…-v5, 2 to 4 frames at random in …-v0"
_STICKY = "it is fixed by the game: 0.25 in ALE/…-v5 and …-v0"
_OPTION = "it is an option of its own: --{name} of `dqn train`"

# What to do where no field has just the same meaning.
ADVICE = {
    "total_timesteps": _LENGTH,
    "timesteps": _LENGTH,
    "total_steps": _LENGTH,
    "total_frames": _LENGTH,
    "num_frames": _LENGTH,
    "max_steps": _LENGTH,
    **{name: _OPTION.format(name=name) for name in ("preset", "states", "cycles", "name", "resume")},
    "exp_name": _OPTION.format(name="name"),
    "run_name": _OPTION.format(name="name"),
    "exploration_fraction": _EPSILON,
    "exploration_initial_eps": _EPSILON,
    "exploration_final_eps": _EPSILON,
    "epsilon_start": _EPSILON,
    "epsilon_end": _EPSILON,
    "epsilon_decay": _EPSILON,
    "eps_start": _EPSILON,
    "eps_end": _EPSILON,
    "eps_decay": _EPSILON,
    "start_e": _EPSILON,
    "end_e": _EPSILON,
    "target_network": _NO_TARGET_NETWORK,
    "target_network_update": _NO_TARGET_NETWORK,
    "target_network_frequency": _NO_TARGET_NETWORK,
    "target_update": _NO_TARGET_NETWORK,
    "target_update_interval": _NO_TARGET_NETWORK,
    "tau": _NO_TARGET_NETWORK,
    "polyak": _NO_TARGET_NETWORK,
    "num_steps": _CYCLE_STEPS,
    "n_steps": _CYCLE_STEPS,
    "rollout_length": _CYCLE_STEPS,
    "train_freq": _TRAINING,
    "train_frequency": _TRAINING,
    "gradient_steps": _TRAINING,
    "replay_ratio": _TRAINING,
    "learning_starts": _TRAINING,
    "anneal_lr": "write the schedule as learning_rate=start:end:states, such as learning_rate=5e-4:1e-5:4400000",
    "workers": _PARALLEL,
    "num_workers": _PARALLEL,
    "num_processes": _PARALLEL,
    "n_processes": _PARALLEL,
    "torch_deterministic": _ALREADY_DETERMINISTIC,
    "deterministic": _ALREADY_DETERMINISTIC,
    "frameskip": _FRAME_SKIP,
    "frame_skip": _FRAME_SKIP,
    "action_repeat": _FRAME_SKIP,
    "repeat_action_probability": _STICKY,
    "sticky_actions": _STICKY,
}


def usage_here(name: str) -> str | None:
    """What to use in place of a field name that other projects or earlier releases have; None for other names.

    Case does not matter, and `-` counts as `_`.
    """
    name = name.lower().replace("-", "_")
    if field := RENAMED.get(name) or OTHER_NAMES.get(name):
        return f"it is called {field} here"
    return ADVICE.get(name)


def with_current_names(fields: dict[str, object]) -> dict[str, object]:
    """Fields of a stored configuration, with earlier names replaced by the current ones.

    Raises:
        ValueError: a field is given by both names.
    """
    for old, new in RENAMED.items():
        if old in fields and new in fields:
            raise ValueError(f"{old} is the earlier name of {new}; give only {new}")
    return {RENAMED.get(name, name): value for name, value in fields.items()}
