"""Policies by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagine.agents.zoo import Flaw, Flawed
from imagine.imports import import_object
from imagine.model.model import WorldActionModel, resolve
from imagine.policy.adapter import is_adapter, merged
from imagine.policy.policy import JointPolicy, RandomPolicy
from imagine.policy.predict import PredictPolicy, Predicts
from imagine.types import ImagineError, Policy

EXPERT = "expert"
"""The scripted expert of a simulator, whom its environments bring along: no policy of its own."""


def adapters_in(folder: str | Path) -> list[str]:
    """Names of the adapters that lie in a model folder."""
    return sorted(p.name for p in resolve(folder).glob("*") if is_adapter(p))


def adapter_of(name: str, folder: str | Path) -> Path | None:
    """The adapter folder behind a policy's name; None for the base.

    Raises:
        ImagineError: there is no such adapter.
    """
    if name == "base":
        return None
    for path in (resolve(folder) / name, Path(name)):
        if is_adapter(path):
            return path
    raise ImagineError(f"no adapter {name!r}; expected {', '.join(('base', *adapters_in(folder)))}, or a folder.")


def load_policy(name: str, model: WorldActionModel, folder: str | Path, *, steps: int = 4) -> Policy:
    """A policy by name.

    Args:
        name: ``base``, ``random``, an adapter in the model folder; the
            folder of an adapter or a model; ``ws://HOST:PORT``, a server that speaks openpi's protocol;
            ``package.module:name``, see :func:`as_policy`; and any of them with flaws, ``base+noise=0.03+delay=6``
            (:class:`imagine.agents.zoo.Flaw`).
        model: the joint model, which also tells the embodiment.
        folder: its name or folder.
        steps: denoising steps.

    Raises:
        ImagineError: there is no such policy.
    """
    name, _, flaws = name.partition("+")
    if flaws:
        return Flawed(load_policy(name, model, folder, steps=steps), Flaw.parse(flaws), model.body)
    if name.startswith(("ws://", "wss://")):
        from imagine.policy.client import RemotePolicy

        return RemotePolicy(name, chunk_actions=model.body.chunk_actions, action_dim=model.body.action_dim)
    if name == "base":
        return JointPolicy(model, steps=steps)
    if name == "random":
        return RandomPolicy(model.body.action_low, model.body.action_high, model.body.chunk_actions)
    if ":" in name and not Path(name).exists():
        return as_policy(import_object(name, "policy"), model, name)
    if (Path(name) / "config.json").is_file() and not is_adapter(name):
        other = WorldActionModel.from_pretrained(name, device=model.device)
        if other.body != model.body:
            raise ImagineError(f"policy {name} is for embodiment {other.body.name!r}, expected {model.body.name!r}.")
        return JointPolicy(other, steps=steps)
    try:
        adapter = adapter_of(name, folder)
    except ImagineError:
        known = ", ".join(("base", *adapters_in(folder), "random"))
        raise ImagineError(
            f"no policy {name!r}; expected {known}, an adapter or model folder, module:name, or ws://HOST:PORT."
        ) from None
    assert adapter is not None
    return JointPolicy(merged(model, adapter), steps=steps)


def as_policy(found: Any, model: WorldActionModel, name: str) -> Policy:
    """A policy of what a user wrote: a ``Policy``, anything with SB3's ``predict``, or a function of the model.

    Raises:
        ImagineError: it is none of these.
    """
    made = found
    if callable(found) and (isinstance(found, type) or not isinstance(found, Policy | Predicts)):
        made = found(model)
    if isinstance(made, Policy):
        return made
    if isinstance(made, Predicts):
        return PredictPolicy(made, model.body)
    raise ImagineError(
        f"{name!r} gives a {type(made).__name__}, expected a Policy with act and reset, an object with predict, or a "
        "function of the model that returns one of them."
    )
