"""The words of the command line: every command by group, and what the last version called things."""

from __future__ import annotations

GROUPS = {
    "Try": {
        "demo": "see the whole loop work, in five minutes",
        "play": "drive the dream by hand in a browser",
        "rollout": "let a policy act in dream or simulator; film it",
    },
    "Data": {
        "record": "record a LeRobot dataset on a simulator",
        "embodiment": "draft the file that says how to read a dataset",
        "check": "find what would fail later in a dataset",
    },
    "Train": {
        "train": "train policy, world model and judge on a dataset",
        "finetune bc": "a policy by cloning recorded behaviour",
        "finetune rl": "a policy by RL in the dream: NFT, GRPO, AWR",
        "finetune steer": "a policy, by an agent of SB3 or RLlib",
        "finetune world-model": "a dream that is truer to recorded episodes",
        "finetune distill": "answers in one denoising step",
        "finetune joint": "all inference modes, by LoRA or in full, sharded",
        "convert": "use a Wan or DreamZero checkpoint",
    },
    "Evaluate": {
        "evaluate policy": "success rates in dream, simulator, reality",
        "evaluate world-model": "how far the dream is true",
        "evaluate judge": "how often the judge is right; calibrate it",
        "evaluate speed": "time model, environment and policy",
        "plan": "choose actions by imagining and judging them",
    },
    "Deploy": {
        "drive": "drive a robot in real time, behind a guard",
        "serve": "serve a policy to robots over websockets",
    },
}
"""Name to purpose, by group. ``a b-c`` is run by ``configs/commands/a_b_c.py``; a new command is a line here."""
COMMANDS = {name: purpose for group in GROUPS.values() for name, purpose in group.items()}
BY_DEFAULT = {"evaluate": "policy"}
"""Second word of a command where only the first is given."""

FORMER = {
    "adapt": "finetune joint",
    "adopt": "convert",
    "bench": "evaluate speed",
    "calibrate": "evaluate judge",
    "clone": "finetune bc",
    "collect": "record",
    "distill": "finetune distill",
    "fidelity": "evaluate world-model",
    "improve": "finetune rl",
    "learn": "finetune steer",
    "refine": "finetune world-model",
}
"""A command's name in the last version to the one it has; the old ones go with the next version."""
FORMER_OPTIONS: dict[str, dict[str, str]] = {
    "evaluate policy": {
        "--lanes": "--num-envs", "--told": "--swap-instruction", "--go-on": "--until-horizon", "--films": "--videos"
    },
    "finetune rl": {"--lanes": "--num-envs", "--doubt-cost": "--inverse-error-cost"},
    "finetune steer": {"--lanes": "--num-envs", "--real-episodes": "--sim-episodes"},
    "plan": {"--lanes": "--num-envs"},
    "rollout": {"--lanes": "--num-envs"},
}  # fmt: skip
"""Old option to its new name, per command."""
FORMER_VALUES = {("--world", "real"): "sim", ("--swap-instruction", "right"): ""}
"""Old value of an option to its new one, in every command."""
