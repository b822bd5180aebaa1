"""Make the home of a release, which later releases must open: `python tests/compat/make_home.py RELEASE`.

Run it with the code of that release. It trains two small runs for three cycles, evaluates and exports one of them,
packs the home into `tests/compat/RELEASE/home.tar.xz`, trains both for two more cycles and writes the result into
`expected.json` and `expected.npz`. `networks.json` holds the names of the weights and some estimates of all networks.

All actions are random (epsilon is 1), so that rounding on another processor changes no episode. Without normalization
most weights keep their initial values, which makes the archive small.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path("/tmp/dqn-compat-home")  # MLflow stores absolute paths; tests replace this one
EVERY = 97  # of that many weights one is kept
COMMON = {
    "lanes": 4,
    "replay_states": 128,
    "batch_size": 32,
    "network": "nips",
    "normalize": "false",
    "precision": "float32",
    "threads": 1,
    "keep_cycles": 1,
    "epsilon": 1,
    "episode_frames_limit": 120,
    "evaluation_episodes": 2,
}
RUNS = {
    "plain": {**COMMON},
    "sharded": {
        **COMMON,
        "shards": 2,
        "replay_cycles": 2,
        "optimizer": "rmsprop",
        "ema_decay": 0,
        "learning_rate": "1e-4",
        "balanced_sampling": "true",
        "sweep": "watkins",
        "loss": "all-actions",
    },
}
SCRUBBED = {"machine": "a machine", "mlflow.user": "somebody", "mlflow.source.name": "dqn"}


def main() -> None:
    """Make the home and what is expected of it."""
    out = Path(__file__).resolve().parent / sys.argv[1]
    out.mkdir(exist_ok=True)
    shutil.rmtree(HOME, ignore_errors=True)
    os.environ["DQN_HOME"] = str(HOME)
    expected: dict[str, Any] = {}
    for name, fields in RUNS.items():
        dqn("train", "--name", name, "--cycles", "3", *(f"--set={field}={value}" for field, value in fields.items()))
    dqn("evaluate", "plain")
    dqn("export", "plain", "-o", str(HOME / "exported"))
    for name in RUNS:
        expected[name] = {"verified": verified(name), "states": 3 * COMMON["replay_states"]}
    pack(out / "home.tar.xz")
    weights = {}
    for name in RUNS:
        dqn("train", "--resume", name, "--cycles", "5")
        expected[name]["after"] = verified(name)
        run = stored(name)
        unit = run.newest_checkpoint()
        expected[name]["metrics"] = {metric.name: metric.value for metric in unit.metrics}
        for key, tensor in run.checkpoint(unit).weights.items():
            weights[f"{name}/{key}"] = tensor.numpy().reshape(-1)[::EVERY]
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    np.savez_compressed(out / "expected.npz", **weights)
    (out / "networks.json").write_text(json.dumps(networks()) + "\n")


def networks() -> dict[str, Any]:
    """Weights of every network, in order, and what it estimates for two random states."""
    import torch

    from dqn.config import make_config
    from dqn.learning.networks import make_network

    found = {}
    states = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (2, 105, 80, 2), np.uint8)
    for network in ("tutorial", "nips", "nature", "small", "residual"):
        for normalize in (True, False):
            config = make_config("fast", {"network": network, "normalize": normalize, "scale_input": normalize})
            made = make_network(config, 4)
            weights = made.state_dict()
            with torch.no_grad():
                q_values = made(torch.from_numpy(states))
            found[f"{network}{'' if normalize else ', not normalized'}"] = {
                "weights": {key: list(weight.shape) for key, weight in weights.items()},
                "strides": {key: list(weight.stride()) for key, weight in weights.items()},
                "parameters": [key for key, _ in made.named_parameters()],
                "q_values": q_values.tolist(),
            }
    return found


def dqn(*arguments: str) -> str:
    """Run the command `dqn` of this release; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def verified(name: str) -> dict[str, Any]:
    """What `dqn verify` finds."""
    found: dict[str, Any] = json.loads(dqn("verify", name, "--json"))
    assert not found["problems"]
    return {key: found[key] for key in ("digest", "cycle", "units", "metrics")}


def stored(name: str) -> Any:
    """The run as this release opens it."""
    from storage.runs import open_run, open_tracking

    return open_run(open_tracking().find_run(name).info.run_id)


def pack(archive: Path) -> None:
    """Pack the home, without what names the machine."""
    with closing(sqlite3.connect(HOME / "mlflow.db")) as store:
        for key, value in SCRUBBED.items():
            store.execute("UPDATE tags SET value = ? WHERE key = ?", (value, key))
        store.execute("UPDATE runs SET user_id = 'somebody'")
        store.commit()
        store.execute("VACUUM")
    for lock in (HOME / "locks").glob("*.lock"):
        lock.write_text("process 1 on a machine\n")
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        tar.add(HOME, "home", filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of the archive without the user's name."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
