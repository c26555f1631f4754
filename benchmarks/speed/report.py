"""Tables of what was measured, of what must be measured, and of the floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = tuple[str, ...]
TARGETS = {
    "share": "≥ 75 %",
    "policy": "≤ 150 ms (H200, 14b)",
    "frames": "≥ 19 frames/s (14b)",
    "lanes": "≥ 6 × of 1 lane (5b)",
    "reference": "≥ 5 ×",
}


def markdown(head: Row, rows: Sequence[Row]) -> str:
    return "\n".join("| " + " | ".join(r) + " |" for r in (head, ("---",) * len(head), *rows)) + "\n"


def plain(head: Row, rows: Sequence[Row]) -> str:
    width = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return (
        "\n".join("  ".join(c.ljust(w) for c, w in zip(r, width, strict=True)).rstrip() for r in (head, *rows)) + "\n"
    )


def floors(plan: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[Row, list[Row]]:
    """The table of ``--plan``."""
    rows = [
        (name, what, f"{v['tflop']:.3g}", f"{v['gb']:.3g}", f"{v['ms']:.3g}")
        for name, each in plan.items()
        for what, v in each.items()
    ]
    return ("model", "what", "TFLOP", "GB", "floor, ms"), rows


def share(x: float) -> str:
    return f"{100 * x:.0f} %"


def rows_of(name: str, m: Mapping[str, Any]) -> list[Row]:
    """(model, what, measured, floor, share of floor, target) of one model; what is missing was not measured."""
    c = m["ceilings"]
    fp8 = "not on this device" if c["fp8_tflops"] is None else f"{c['fp8_tflops']:.0f} TFLOP/s"
    told = f"{c['best_tflops']:.0f} TFLOP/s; at its own shapes {c['own_tflops']:.0f}"
    rows: list[Row] = [
        (name, "matrix products", told, "", "", ""),
        (name, "… in FP8", fp8, "", "", ""),
        (name, "copy", f"{c['copy_gbs']:.0f} GB/s", "", "", ""),
    ]

    def add(what: str, measured: str, floor: float | None = None, of: float | None = None, target: str = "") -> None:
        rows.append((name, what, measured, "" if floor is None else f"{floor:.3g} ms",
                     "" if of is None else share(of), target))  # fmt: skip

    if f := m.get("forward"):
        ways = ", ".join(f"{way} {t['ms']:.3g}" for way, t in f["times"].items())
        add("one forward (ms)", ways, f["floor_ms"], f["share_of_floor"], TARGETS["share"])
    for what, p in m.get("policy", {}).items():
        if p:
            target = TARGETS["policy"] if what.endswith("K=1") else ""
            add(f"policy chunk, {what}", f"{p['ms']:.3g} ms", p["floor_ms"], p["share_of_floor"], target)
    first = m.get("dynamics", {}).get("1")
    for lanes, d in m.get("dynamics", {}).items():
        for way in ("clean", "kept"):
            more = "" if first is None else f", {d[way]['frames_per_s'] / first[way]['frames_per_s']:.1f} × of 1 lane"
            memory = "" if d["peak_gib"] is None else f", {d['peak_gib']:.1f} GiB"
            told = f"{d[way]['ms']:.4g} ms, {d[way]['frames_per_s']:.3g} frames/s{more}{memory}"
            target = TARGETS["frames"] if lanes == "1" else TARGETS["lanes"] if lanes == "16" else ""
            what = f"environment step, K = 4, {lanes} lanes, {way}"
            add(what, told, d[way]["floor_ms"], d[way]["share_of_floor"], target)
    if r := m.get("reference"):
        times = ", ".join(f"{n} {t['ms']:.4g} ms" for n, t in r["chunk"].items())
        gains = f"{r['chunk_gain_k4']:.1f} × (K = 4), {r['chunk_gain_k1']:.1f} × (K = 1)"
        add("the reference's way, one chunk", f"{gains}: {times}", r["floor_ms"], None, TARGETS["reference"])
        add("… one forward", f"{r['forward_gain']:.2f} ×")
    for what, s in m.get("switches", {}).items():
        if s:
            error = f", error of video {s['error_video']:.2g}" if "error_video" in s else ""
            add(f"switch: {what}", f"{s['gain']:.2f} × ({s['off_ms']:.4g} → {s['on_ms']:.4g} ms{error})")
    return rows


HEAD: Row = ("model", "what", "measured", "floor", "share of floor", "target")


def page(result: Mapping[str, Any]) -> str:
    """What docs/benchmarks holds of one run."""
    rows = [row for name, m in result["models"].items() for row in rows_of(name, m)]
    lines = [f"# {result['device']}, commit {result['commit']}", ""]
    lines += [
        f"`python benchmarks/gpu.py {result['arguments']}`, torch {result['torch']}, seed 0; medians, taking turns."
    ]
    lines += ["", markdown(HEAD, rows)]
    if result["dropped"]:
        lines += [f"Not measured, for want of time: {'; '.join(result['dropped'])}.", ""]
    lines += [f"Failed: {what}: {why}." for what, why in result["failed"].items()]
    return "\n".join(lines).rstrip() + "\n"
