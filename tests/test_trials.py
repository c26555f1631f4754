"""A lab's own trials beside the dream's episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagine.agents.correction import ppi_mean
from imagine.agents.statistics import paired_difference, success_rate
from imagine.agents.trials import compare, read_trials
from imagine.types import ImagineError

IDS = [f"saved-{i}" for i in range(8)]


def written(folder: Path, text: str) -> Path:
    path = folder / "trials.csv"
    path.write_text(text)
    return path


def test_a_table_names_starts_by_number_or_id(tmp_path: Path) -> None:
    path = written(tmp_path, "policy,start,success,operator\nbase,0,true,A\nbase,saved-3,0,B\nweak, 7 ,False,A\n")
    assert read_trials(path, IDS) == {"base": {0: True, 3: False}, "weak": {7: False}}
    table = pa.table({"policy": ["base"] * 2, "start": [2, 5], "success": [True, False]})
    pq.write_table(table, tmp_path / "trials.parquet")
    assert read_trials(tmp_path / "trials.parquet", IDS) == {"base": {2: True, 5: False}}


def test_episodes_of_a_dataset_are_named_as_it_names_them(tmp_path: Path) -> None:
    path = written(tmp_path, "policy,start,success\nbase,12,1\nbase,episode-30,1\n")
    assert read_trials(path, ["episode-12", "episode-30"]) == {"base": {0: True, 1: True}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("policy,seed,success\nbase,0,true\n", r"columns \['policy', 'seed', 'success'\], expected policy, start"),
        ("policy,start,success\n", "holds no trials"),
        ("policy,start,success\nbase,8,true\n", "trial 1: start '8' is none of the 8 starts, from 'saved-0'"),
        ("policy,start,success\nbase,1,true\nbase,saved-1,false\n", "trial 2: policy 'base' has another trial"),
        ("policy,start,success\nbase,1,maybe\n", "success is 'maybe', expected true or false"),
        ("policy,start,success\nbase,1\n", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_joined_is_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ImagineError, match=complaint):
        read_trials(written(tmp_path, text), IDS)


@pytest.mark.parametrize("name", ["trials.xlsx", "none.csv"])
def test_a_file_that_is_no_table_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImagineError, match=name):
        read_trials(tmp_path / name, IDS)


def test_what_is_said_of_a_policy_is_what_the_statistics_say() -> None:
    rng = np.random.default_rng(0)
    dreamt = rng.uniform(size=60) < 0.6
    real = np.where(rng.uniform(size=60) < 0.8, dreamt, ~dreamt)
    tried = {i: bool(real[i]) for i in range(0, 60, 3)}
    at = np.arange(0, 60, 3)
    (one,) = compare({"base": tried}, {"base": dict(enumerate(dreamt.tolist()))})["policies"]

    def is_(found: dict[str, Any], want: Any) -> bool:
        same = np.allclose(
            [found["value"], found["ci_low"], found["ci_high"]], [want.value, want.low, want.high], atol=1e-4
        )
        return bool(same) and found["n"] == want.n

    assert is_(one["real"], success_rate(real[at])) and is_(one["imagined"], success_rate(dreamt[at]))
    assert is_(one["difference"], paired_difference(dreamt[at], real[at]))
    assert one["same_outcome"]["value"] == round(float((real[at] == dreamt[at]).mean()), 4)
    assert is_(one["ppi"], ppi_mean(real[at], dreamt[at], np.delete(dreamt, at))) and one["ppi"]["only_imagined"] == 40


def test_policies_are_compared_on_the_starts_that_all_of_them_tried() -> None:
    rng = np.random.default_rng(1)
    rates = {"good": 0.9, "fair": 0.5, "poor": 0.1}
    dreamt = {name: dict(enumerate((rng.uniform(size=30) < rate).tolist())) for name, rate in rates.items()}
    trials = {name: {i: dreamt[name][i] for i in range(k, 24)} for k, name in enumerate(rates)}
    answer = compare(trials, dreamt)
    assert answer["starts"] == 22
    assert answer["agreement"]["pearson"]["value"] == 1 and answer["agreement"]["bias"]["value"] == 0
    assert answer["agreement"]["pearson"]["n"] == 22
    two = compare({n: trials[n] for n in ("good", "poor")}, dreamt)
    assert set(two["agreement"]) == {"mmrv", "pairs", "regret", "bias", "rmse"}
    apart = {n: {k: True} for k, n in enumerate(dreamt)}
    assert compare(apart, dreamt)["starts"] == 0 and compare(apart, dreamt)["policies"][0]["ppi"] is None
