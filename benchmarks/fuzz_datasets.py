"""What becomes of damaged and odd datasets: read right, or refused in a sentence that names file or episode.

    python benchmarks/fuzz_datasets.py --mutations 10000 --seed 0

Three tiny datasets (LeRobot v2.1 with videos, v2.1 with pictures in parquet, v3.0 as `imagine record` writes it) are
changed at random, one change each: rows, columns, meta, videos. Every change says what may become of it:

    same    the dataset says the same as before: it has to be read as before
    any     it may be refused; if it is read, then as before or with a warning that was not there
    told    texts or numbers were changed that only their author can know: any reading without a traceback

Failures are a traceback, a sentence without the name of a file, feature or episode, a refusal of `same`, and numbers or
frames that differ without a word. The answer is one line of JSON; the exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imagine.data.cache import frame_rows
from imagine.data.check import check_dataset
from imagine.data.episode_cache import EpisodeArrays, tick_rows
from imagine.data.read import LeRobotDataset
from imagine.data.write import DatasetWriter, EpisodeData
from imagine.embodiment import Embodiment
from imagine.types import ImagineError

CAMERA, LENGTHS = "observation.images.top", (12, 9, 14)
BOTH = {"key": "observation.state", "start": 0, "stop": 2, "unit": "m"}
BODY = Embodiment.model_validate(
    {
        "name": "arm", "robot_type": "arm", "control_hz": 30, "chunk_actions": 4, "chunk_frames": 2,
        "canvas_height": 16, "canvas_width": 16, "views": [{"name": "top", "key": CAMERA, "height": 16, "width": 16}],
        "proprio": ["arm"], "state": [{"name": "arm", **BOTH}],
        "action": [{"name": "arm", **BOTH, "key": "action", "low": -9, "high": 9}],
    }
)  # fmt: skip
NAMED = re.compile(r"episode|meta/|\.parquet|\.mp4|\.json|feature|camera")
ODD = [None, "", "x", -1, 0, 1.5, 2**40, 10**400, float("nan"), True, [], [1], {}, {"a": 1}, "../..", "{x}", "\u2028"]


# ---------------------------------------------------------------------- the datasets
def episode(e: int) -> dict[str, Any]:
    x = np.random.default_rng(e).normal(size=(LENGTHS[e], 2)).astype(np.float32)
    return {"observation.state": x, "action": x * 2, "next.success": np.arange(LENGTHS[e]) > LENGTHS[e] - 3}


def grey(e: int) -> np.ndarray:
    levels = 40 + 20 * e + 6 * np.arange(LENGTHS[e])
    return (levels[:, None, None, None] * np.ones((1, 16, 16, 3))).astype(np.uint8)


def version_3(root: Path) -> None:
    writer = DatasetWriter(root, "arm", 30, len(LENGTHS))
    made = [(episode(e), ["pick", "put"][e % 2], {CAMERA: grey(e)}) for e in range(len(LENGTHS))]
    parts = [EpisodeData(f, [t] * len(f["action"]), v, np.arange(len(f["action"])), 7) for f, t, v in made]
    writer.write_shard(0, parts)
    writer.finalize()
    shutil.rmtree(root / "meta/shards")


def version_2(root: Path, *, pictures: bool) -> None:
    (root / "data").mkdir(parents=True)
    (root / "meta").mkdir()
    vector, flag = {"dtype": "float32", "shape": [2], "names": None}, {"dtype": "bool", "shape": [1], "names": None}
    seen = {"dtype": "image" if pictures else "video", "shape": [16, 16, 3]}
    features = {CAMERA: seen, "observation.state": vector, "action": vector, "next.success": flag}
    info = {"codebase_version": "v2.1", "robot_type": "arm", "fps": 30, "chunks_size": 1000, "features": features}
    info |= {"data_path": "data/{episode_index:06d}.parquet", "video_path": "{video_key}-{episode_index}.mp4"}
    write_json(root / "meta/info.json", info | {"total_episodes": len(LENGTHS)})
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(("pick", "put"))])
    told = [{"episode_index": e, "tasks": [["pick", "put"][e % 2]], "length": n} for e, n in enumerate(LENGTHS)]
    write_lines(root / "meta/episodes.jsonl", told)
    for e, n in enumerate(LENGTHS):
        columns: dict[str, Any] = {k: list(v) for k, v in episode(e).items()}
        columns |= {"timestamp": (np.arange(n) / 30).astype(np.float32), "frame_index": np.arange(n)}
        columns |= {"episode_index": np.full(n, e), "task_index": np.full(n, e % 2)}
        if pictures:
            columns[CAMERA] = [{"bytes": png(picture), "path": None} for picture in grey(e)]
        else:
            film(root / f"{CAMERA}-{e}.mp4", grey(e))
        write_table(root / f"data/{e:06d}.parquet", pa.table(columns))


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def film(path: Path, frames: np.ndarray, rate: int = 30) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "8"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: Path, table: pa.Table, **how: Any) -> None:
    pq.write_table(table, path, write_page_checksum=True, **how)


# ---------------------------------------------------------------------- what is read
def read(root: Path) -> tuple[str, tuple[str, ...], set[str]]:
    """A digest of all numbers and frames, the instructions, and the warnings without their numbers.

    Raises:
        ImagineError: what is refused.
    """
    dataset = LeRobotDataset.open(root)
    report = check_dataset(dataset, BODY)
    report.refuse()
    has = dict(zip(("has_state", "has_action"), dataset.check_embodiment(BODY), strict=True))
    arrays, digest = EpisodeArrays(BODY, **has), hashlib.sha256()
    for i in range(len(dataset)):
        rows = tick_rows(dataset[i].length, dataset.fps, BODY.control_hz)
        features = dataset.features(i, dataset.keys(BODY, **has))
        arrays.add(features, rows, dataset.instructions(i), dataset[i].index, None)
        digest.update(dataset.frames(i, CAMERA, frame_rows(dataset, BODY, i), (16, 16)).tobytes())
    for name, value in sorted(arrays.arrays().items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest(), tuple(arrays.ids), {re.sub(r"\d+", "#", w) for w in report.warnings}


# ---------------------------------------------------------------------- the changes
Change = Callable[[Path, random.Random], str]
"""Changes a dataset in place; what may become of it: same, any or told."""


def data_file(root: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(root.glob("data/**/*.parquet")))


def rows(root: Path, rng: random.Random) -> str:
    path = data_file(root, rng)
    table, kind = pq.read_table(path), rng.choice(["permute", "drop", "double", "swap", "index", "value", "reverse"])
    order = list(range(len(table)))
    if kind == "permute":
        rng.shuffle(order)
    elif kind == "reverse":
        order.reverse()
    elif kind == "drop":
        order.pop(rng.randrange(len(order)))
    elif kind == "double":
        order.insert(rng.randrange(len(order)), rng.choice(order))
    elif kind in ("swap", "index"):
        name = rng.choice(["frame_index", "episode_index", "timestamp", "index", "task_index"])
        if name not in table.column_names:
            return "same"
        values = table[name].to_pylist()
        at = rng.randrange(len(values))
        values[at] = type(values[0])(rng.choice(values) if kind == "swap" else rng.choice([-1, 2**31, 5, 10**9]))
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))
        write_table(path, table)
        return "told" if name in ("task_index", "index") else "any"
    else:
        name = rng.choice(["action", "observation.state"])
        values = table[name].to_pylist()
        new = rng.choice([float("nan"), float("inf"), -float("inf"), None, 1e30, 0.5])
        values[rng.randrange(len(values))][rng.randrange(2)] = new
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))
        write_table(path, table)
        return "told" if new in (1e30, 0.5) else "any"
    write_table(path, table.take(order))
    return "same" if kind in ("permute", "reverse") else "any"


def columns(root: Path, rng: random.Random) -> str:
    path = data_file(root, rng)
    table = pq.read_table(path)
    names = table.column_names
    name = rng.choice(names)
    at, values = names.index(name), table[name].to_pylist()
    kind = rng.choice(["drop", "rename", "order", "extra", "groups", "plain", "wide", "ragged", "null", "text", "kind"])
    if kind in ("order", "extra", "groups", "plain"):
        rng.shuffle(names)
        table = table.select(names) if kind == "order" else table
        if kind == "extra":
            odd = [[None] * len(table), [[1.0] * (i % 3) for i in range(len(table))], ["\u2028"] * len(table)]
            table = table.append_column(rng.choice(["note", "observation.extra"]), pa.array(rng.choice(odd)))
        groups: dict[str, Any] = {"row_group_size": 5} if kind == "groups" else {}
        write_table(path, table, **groups, **({"compression": "none"} if kind == "plain" else {}))
        return "same"
    if kind == "drop":
        table = table.drop_columns([name])
    elif kind == "rename":
        table = table.rename_columns([n if n != name else n + "x" for n in names])
    elif kind == "kind" and name in ("action", "observation.state"):
        wanted = rng.choice([pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)])
        write_table(path, table.set_column(at, name, pa.array(values, wanted)))
        return "same"
    elif kind == "kind" and name in ("frame_index", "episode_index", "task_index"):
        write_table(
            path, table.set_column(at, name, pa.array(values, rng.choice([pa.int32(), pa.uint8(), pa.int16()])))
        )
        return "same"
    elif kind in ("wide", "ragged") and isinstance(values[0], list):
        chosen = range(len(values)) if kind == "wide" else [rng.randrange(len(values))]
        values = [[*v, 1.0] if i in chosen else v for i, v in enumerate(values)]
        table = table.set_column(at, name, pa.array(values))
    elif kind == "null":
        values[rng.randrange(len(values))] = None
        table = table.set_column(at, name, pa.array(values, table[name].type))
    else:
        table = table.set_column(at, name, pa.array(["text"] * len(values)))
    write_table(path, table)
    return "told" if name in ("next.success", "task_index", "is_expert") else "any"


def json_file(root: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(p for p in root.glob("meta/*.json*") if p.name != "stats.json"))
    parts = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
    lines = [json.loads(line) for line in parts if line.strip()]
    at = rng.randrange(len(lines))
    holder: Any = lines[at]
    trail = []
    while True:
        key = rng.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        trail.append(str(key))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            break
        holder = inner
    kind = rng.choice(["odd", "odd", "delete", "line", "twice"])
    if kind == "odd" or not isinstance(holder, dict):
        holder[key] = rng.choice(ODD)
    elif kind == "delete":
        del holder[key]
    elif kind == "line":
        lines.pop(at)
    else:
        lines.append(lines[at])
    write_lines(path, lines)
    text = "task" in trail or "tasks" in trail or "robot_type" in trail or "names" in trail
    return "told" if text or "chunks_size" in trail else "any"


def meta_table(root: Path, rng: random.Random) -> str:
    found = sorted(p for p in root.glob("meta/**/*.parquet"))
    if not found:
        return json_file(root, rng)
    path = rng.choice(found)
    table = pq.read_table(path)
    lines, name = table.to_pylist(), rng.choice([n for n in table.column_names if not n.startswith("stats/")])
    at = rng.randrange(len(lines))
    kind = rng.choice(["odd", "odd", "shift", "delete", "twice", "drop"])
    if kind == "drop":
        write_table(path, table.drop_columns([name]))
        return "told" if name in ("task", "tasks", "seed", "failure_mode") else "any"
    if kind == "shift" and isinstance(lines[at][name], int | float):
        lines[at][name] += rng.choice([1, -1, 1 / 30, -1 / 30, 0.001, 0.4 / 30, 1000])
    elif kind == "delete":
        lines.pop(at)
    elif kind == "twice":
        lines.append(lines[at])
    else:
        for line in lines if rng.random() < 0.5 else [lines[at]]:
            line[name] = rng.choice([None, "x", -1, 2**40, float("nan"), "../x"])
    try:
        write_table(path, pa.Table.from_pylist(lines) if lines else table.slice(0, 0))
    except (pa.ArrowException, OverflowError):  # such a mixture is no table at all
        path.write_bytes(b"PAR1")
    return "told" if name in ("task", "tasks", "seed", "failure_mode") or path.stem == "seeds" else "any"


def template(root: Path, rng: random.Random) -> str:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    key = rng.choice(["data_path", "video_path"])
    if info.get(key) is None:
        return "same"
    odd = ["../{episode_index}", "/etc/passwd", "{episode_index.real}", "{0}", "{", "}", "{video_key!r}", "a" * 5000]
    odd += ["{chunk_index:0999999999d}", "{episode_index:>9999999999}", "data\x00", "{video_key}" * 400, "~/x", "."]
    info[key] = rng.choice(odd)
    write_json(path, info)
    return "any" if root.glob("**/*.mp4") else "told"


def file(root: Path, rng: random.Random) -> str:
    found = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "stats.json")
    path, kind = (
        rng.choice(found),
        rng.choice(["cut", "empty", "gone", "flip", "flip", "flip", "noise", "link", "folder"]),
    )
    raw = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(raw[: rng.randrange(len(raw))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "gone":
        path.unlink()
    elif kind == "flip":
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        # A bit of a text, of a coded picture or in a codec's header is nobody's to judge; of numbers in parquet it is.
        return "any" if path.suffix == ".parquet" and path.parent.name != "meta" else "told"
    elif kind == "noise":
        path.write_bytes(rng.randbytes(len(raw)))
    elif kind == "link":
        outside = root.with_name(root.name + "-outside")
        outside.write_bytes(raw)
        path.unlink()
        path.symlink_to(outside)
    else:
        path.unlink()
        path.mkdir()
    return "told" if path.stem == "seeds" else "any"


def video(root: Path, rng: random.Random) -> str:
    found = sorted(root.rglob("*.mp4"))
    if not found:
        return columns(root, rng)
    path = rng.choice(found)
    with av.open(str(path)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    kind = rng.choice(["rate", "fewer", "more", "shape", "bits"])
    if kind == "bits":
        raw = bytearray(path.read_bytes())
        for _ in range(rng.randrange(1, 50)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        return "told"
    if kind == "rate":
        film(path, frames, rng.choice([10, 15, 25, 29, 31, 60]))
    elif kind == "fewer":
        film(path, frames[: rng.randrange(1, len(frames))])
    elif kind == "more":
        film(path, np.concatenate([frames, frames[-3:]]))
        return "told"
    else:
        film(path, frames.repeat(2, 1))
        return "told"
    return "any"


CHANGES: dict[str, Change] = {c.__name__: c for c in (rows, columns, json_file, meta_table, template, file, video)}


# ---------------------------------------------------------------------- the trial
def outcome(root: Path, before: tuple[str, tuple[str, ...], set[str]], allowed: str) -> tuple[str, str]:
    """What became of a changed dataset, and the sentence or trace that says so."""
    try:
        after = read(root)
    except ImagineError as error:
        text = str(error)
        sentences = text.split("\n")
        if allowed == "same":
            return "REFUSED WRONGLY", text
        if not all(NAMED.search(s) and len(s) < 900 for s in sentences) or "Traceback" in text:
            return "SAYS TOO LITTLE", text
        return "refused", text
    except Exception:
        return "TRACEBACK", traceback.format_exc()
    if after[:2] == before[:2]:
        return "read", ""
    if allowed == "told":
        return "changed by its author", ""
    if allowed == "any" and after[2] - before[2]:
        return "warned", "; ".join(after[2] - before[2])
    return "SILENT DIFFERENCE", f"{before[1]} {after[1]}"


def run(mutations: int, seed: int, only: str, show: Callable[[str], None]) -> dict[str, Any]:
    """Try changes; what became of them, by kind of change and outcome, and up to 20 failures."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        bases = {name: Path(work) / name for name in ("v2.1", "v2.1 pictures", "v3.0")}
        version_2(bases["v2.1"], pictures=False)
        version_2(bases["v2.1 pictures"], pictures=True)
        version_3(bases["v3.0"])
        known = {name: read(base) for name, base in bases.items()}
        av.logging.set_level(None)
        for number in range(mutations):
            rng = random.Random(f"{seed}/{number}")
            name, change = rng.choice(sorted(bases)), rng.choice(sorted(CHANGES))
            if only and only != f"{number}":
                continue
            root = Path(work) / "changed"
            shutil.copytree(bases[name], root)
            allowed = CHANGES[change](root, rng)
            what, why = outcome(root, known[name], allowed)
            counts[f"{change}: {what}"] += 1
            if what.isupper():
                failures.append(f"#{number} {name} {change} ({allowed}) {what}: {why[-1200:]}")
                show(failures[-1])
            shutil.rmtree(root)
    outcomes = Counter({})
    for key, n in counts.items():
        outcomes[key.split(": ", 1)[1]] += n
    told = {"mutations": sum(counts.values()), "seconds": round(time.monotonic() - began, 1), "failed": len(failures)}
    return told | {"outcomes": dict(outcomes.most_common()), "by_change": dict(sorted(counts.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the number of one change to try again")
    args = parser.parse_args()
    result = run(args.mutations, args.seed, args.only, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(result))
    sys.exit(bool(result["failed"]))


if __name__ == "__main__":
    main()
