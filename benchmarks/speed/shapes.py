"""Wan and DreamZero at their true shapes, and what their passes cost at least: FLOP and bytes, counted by formula."""

from __future__ import annotations

from dataclasses import dataclass, field

from imagine.model.action_registers import RegisterConfig
from imagine.model.dit import DiTConfig

PATCH = (1, 2, 2)
REMEMBERED = 7  # latent frames of a full memory: the first alone, then three blocks of two
BLOCK = 2  # latent frames of a chunk
RGB = 8  # frames of a chunk
HALF = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Network:
    """A JointDiT with DreamZero's registers.

    Attributes:
        height: of a latent frame, width likewise; tokens are 2 x 2 of them.
        condition: channels given beside the noisy ones.
        picture: image tokens, 0 where the model looks at none.
        blank: in patches, the black quarter of the canvas, for the switch that skips it.
    """

    name: str
    layers: int
    heads: int
    ffn: int
    channels: int
    height: int
    width: int
    condition: int = 0
    picture: int = 0
    blank: tuple[int, int, int, int] | None = None
    head_dim: int = 128
    words: int = 512
    text_dim: int = 4096
    image_dim: int = 1280
    actions: int = 24
    registers: RegisterConfig = field(default_factory=RegisterConfig)

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    def cells(self, skip: bool = False) -> int:
        """Tokens of a latent frame, without those of the black quarter if they are skipped."""
        whole = self.height * self.width // (PATCH[1] * PATCH[2])
        if not (skip and self.blank):
            return whole
        top, left, bottom, right = self.blank
        return whole - (bottom - top) * (right - left)

    def config(self, *, skip: bool = False, parity: str = "clean") -> DiTConfig:
        return DiTConfig(
            layers=self.layers, heads=self.heads, head_dim=self.head_dim, ffn_dim=self.ffn, patch=PATCH,
            channels=self.channels, text_dim=self.text_dim, freq_dim=256, action_dim=self.registers.action_dim,
            action_patch=1, proprio_dim=self.registers.state_dim, registers=self.registers, see_last_frame=False,
            condition_channels=self.condition, image_dim=self.image_dim if self.picture else 0, pooled_text=False,
            prediction="velocity", block=BLOCK, first_alone=True, sink_blocks=1,
            max_context_blocks=1 + (REMEMBERED - 1) // BLOCK, blank=self.blank if skip else None, parity=parity,
        )  # fmt: skip


NETWORKS = {
    g.name: g
    for g in (
        Network("1.3b", 30, 12, 8960, 16, 44, 80, blank=(11, 20, 22, 40)),
        Network("5b", 30, 24, 14336, 48, 10, 20, picture=257),
        Network("14b", 40, 40, 13824, 16, 44, 80, condition=20, picture=257, blank=(11, 20, 22, 40)),
        Network(
            "tiny", 2, 2, 64, 4, 4, 8, condition=5, picture=3, blank=(1, 2, 2, 4), head_dim=32, words=5, text_dim=16,
            image_dim=12, actions=3, registers=RegisterConfig(action_dim=6, state_dim=9, hidden=16),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What passes must do at least, each (floating-point operations, bytes that must come from memory)."""

    passes: tuple[tuple[float, float], ...]

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.passes + other.passes)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.passes * times)

    @property
    def flops(self) -> float:
        return sum(flops for flops, _ in self.passes)

    @property
    def bytes(self) -> float:
        return sum(size for _, size in self.passes)

    def ms(self, tflops: float, gbs: float) -> float:
        """The floor at these rates: of every pass whichever takes longer."""
        return sum(max(flops / tflops / 1e9, size / gbs / 1e6) for flops, size in self.passes)


def one_pass(
    g: Network,
    *,
    frames: int = BLOCK,
    actions: bool = True,
    past: int = REMEMBERED,
    lanes: int = 1,
    skip: bool = False,
    reference: bool = False,
) -> Cost:
    """One forward pass.

    Args:
        g: of which model.
        frames: latent frames that are asked about; 0 for actions alone.
        actions: whether the action tokens and the state take part; not in a clean pass.
        past: latent frames in the memory.
        lanes: how many at once.
        skip: without the black quarter.
        reference: with keys and values of text and image computed anew and the modulation per token.
    """
    d, cells = g.dim, g.cells(skip)
    told = g.actions + 1 if actions else 0
    own = frames * cells + told
    keys = past * cells + own
    crossed = g.words + g.picture
    block = 6 * d * d + 2 * d * g.ffn  # weights that every token meets: q k v o, q o of the cross-attention, ffn
    flops = own * g.layers * (2.0 * block + 4 * d * (keys + crossed))
    idle = 0 if actions or reference else block - 2 * d * d  # a clean pass ends at its last keys and values
    flops -= own * (2.0 * idle + 4 * d * (keys + crossed) * bool(idle))
    in_channels = (g.channels + g.condition) * PATCH[1] * PATCH[2]
    flops += 2.0 * frames * cells * d * (in_channels + g.channels * PATCH[1] * PATCH[2])
    weights = float(g.layers * block - idle)
    if actions:
        a, s, h = g.registers.action_dim, g.registers.state_dim, g.registers.hidden
        encode, decode, state = a * d + 3 * d * d, d * h + h * a, s * h + h * d
        flops += 2.0 * (g.actions * (encode + decode) + state)
        weights += encode + decode + state
    modulation = 256 * d + 7 * d * d
    levels = own if reference else int(frames > 0) + int(actions)
    flops += 2.0 * levels * modulation
    weights += modulation
    if reference:
        flops += 2.0 * g.layers * 2 * d * d * crossed + 2.0 * g.words * (g.text_dim * d + d * d)
        flops += 2.0 * g.picture * (g.image_dim**2 + g.image_dim * d)
        weights += g.layers * (4 if g.picture else 2) * d * d
    memory = 2.0 * g.layers * d * (past * cells + crossed)
    return Cost(((lanes * flops, HALF * (weights + lanes * memory)),))


def observe(g: Network, **where: bool | int) -> Cost:
    """Encode the newest block: it looks at all that is remembered before the oldest of it goes."""
    return one_pass(g, actions=False, **where)  # type: ignore[arg-type]


def policy_chunk(g: Network, steps: int, joint: bool) -> Cost:
    """The newest observation and ``steps`` calls, of actions with video or of actions alone."""
    return observe(g) + one_pass(g, frames=BLOCK if joint else 0) * steps


def dream_chunk(g: Network, steps: int, *, kept: bool, lanes: int = 1, skip: bool = False) -> Cost:
    """``steps`` calls, and a clean pass over what was imagined unless its keys and values are kept."""
    calls = one_pass(g, lanes=lanes, skip=skip) * steps
    return calls if kept else calls + observe(g, lanes=lanes, skip=skip)


def reference_chunk(g: Network, calls: int = 8, branches: int = 2) -> Cost:
    """As DreamZero's released code does it: every call and the newest observation once per branch of CFG."""
    seen = one_pass(g, actions=False, past=REMEMBERED - BLOCK, reference=True)
    return (one_pass(g, reference=True) * calls + seen) * branches


def plan(tflops: float = 790.0, gbs: float = 4300.0) -> dict[str, dict[str, dict[str, float]]]:
    """Floors of everything the benchmark measures, per model: TFLOP, GB and milliseconds at these rates."""
    told: dict[str, dict[str, dict[str, float]]] = {}
    for name, g in NETWORKS.items():
        if name == "tiny":
            continue
        rows = {f"forward, {past} latents remembered": one_pass(g, past=past) for past in (1, 3, 5, REMEMBERED)}
        rows["forward of the actions alone"] = one_pass(g, frames=0)
        rows["clean pass over the newest block"] = observe(g)
        if g.blank:
            rows["forward without the black quarter"] = one_pass(g, skip=True)
        for k in (1, 4):
            rows[f"policy chunk, JOINT, K = {k}"] = policy_chunk(g, k, True)
            rows[f"policy chunk, POLICY, K = {k}"] = policy_chunk(g, k, False)
        for lanes in (1, 16):
            rows[f"environment step, K = 4, {lanes} lanes, clean pass"] = dream_chunk(g, 4, kept=False, lanes=lanes)
            rows[f"environment step, K = 4, {lanes} lanes, kept"] = dream_chunk(g, 4, kept=True, lanes=lanes)
        rows["forward, the reference's way"] = one_pass(g, reference=True)
        rows["policy chunk, the reference's way (8 calls, CFG)"] = reference_chunk(g)
        told[name] = {
            row: {
                "tflop": cost.flops / 1e12, "gb": cost.bytes / 1e9, "ms": cost.ms(tflops, gbs),
            }
            for row, cost in rows.items()
        }  # fmt: skip
    return told
