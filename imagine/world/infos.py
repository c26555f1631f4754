"""Batched observations and infos as Gymnasium lays them out: every info key has a mask ``_key``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def masked(info: Mapping[str, Any], everywhere: np.ndarray) -> dict[str, Any]:
    """Masks for info that every environment has; the arrays are handed on."""
    infos: dict[str, Any] = {}
    for key, value in info.items():
        infos[key] = masked(value, everywhere) if isinstance(value, dict) else value
        infos["_" + key] = everywhere
    return infos


def scatter(infos: dict[str, Any], info: Mapping[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Write info of length M at the M True places of ``mask`` (N,) into batched ``infos``, which is returned."""
    for key, value in info.items():
        if isinstance(value, dict):
            infos[key] = scatter(infos.get(key, {}), value, mask)
        else:
            if key not in infos:
                empty = None if value.dtype == object else np.zeros((), value.dtype)
                infos[key] = np.full((len(mask), *value.shape[1:]), empty, value.dtype)
            infos[key][mask] = value
        infos["_" + key] = infos.get("_" + key, False) | mask
    return infos


def pick(info: Mapping[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Info of length N where ``mask`` (N,) is True."""
    return {k: pick(v, mask) if isinstance(v, dict) else v[mask] for k, v in info.items()}


def row_of(observation: Any, env: int) -> Any:
    """One environment's part of a batched observation (array or dict of arrays); a view."""
    return {k: v[env] for k, v in observation.items()} if isinstance(observation, dict) else observation[env]


def single(infos: Mapping[str, Any]) -> dict[str, Any]:
    """What a scalar environment reports: entries of environment 0 without masks, numbers as Python has them."""
    own = {k: v for k, v in infos.items() if infos.get("_" + k, (False,))[0]}
    return {k: single(v) if isinstance(v, dict) else plain(v[0]) for k, v in own.items()}


def plain(value: Any) -> Any:
    """A numpy number as Python's own; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
