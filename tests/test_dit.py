"""JointDiT is Wan where it claims to be, and block-causal, stateless and leak-free where it goes further."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_DIT, randomise
from torch import Tensor

from imagine.model.decoder import DecoderConfig
from imagine.model.dit import DiTConfig, JointDiT
from imagine.model.kv_cache import BlockKV, ContextCache
from imagine.model.layers import rotary_table, rotate, waves
from imagine.types import Chunk, Context, NoiseLevels, ShapeError

B, BLOCKS, PT = 3, 2, TINY_DIT.patch[0]
FUTURE = 4  # frames of a chunk: two temporal patches


GROUNDED = {"place_frequencies": 2, "action_frequencies": 3, "steer_tokens": 2}
PAINTED = {**GROUNDED, "decoder": DecoderConfig(blocks=2, width=16, memory=8)}


def made(options: dict[str, object]) -> JointDiT:
    dit = JointDiT(TINY_DIT.model_copy(update=options))
    randomise(dit, seed=5)
    if dit.cfg.decoder.blocks:
        randomise(dit.decoder, seed=6, scale=0.1)  # convolutions in a row: more would only be noise
    return dit.eval()


@pytest.fixture(params=[{}, GROUNDED, PAINTED], ids=["plain", "grounded", "painted"])
def dit(request: pytest.FixtureRequest) -> JointDiT:
    return made(request.param)


def context(lanes: int = B, frames: int = BLOCKS * PT) -> Context:
    g = torch.Generator().manual_seed(11)
    return Context(
        video=torch.randn(lanes, frames, 4, 4, 6, generator=g),
        proprio=torch.randn(lanes, frames, 3, generator=g),
        text=torch.randn(lanes, 5, 16, generator=g),
    )


def chunk(lanes: int = B) -> Chunk:
    g = torch.Generator().manual_seed(12)
    return Chunk(
        video=torch.randn(lanes, FUTURE, 4, 4, 6, generator=g),
        proprio=torch.randn(lanes, FUTURE, 3, generator=g),
        action=torch.randn(lanes, 8, 2, generator=g),
    )


def levels(lanes: int = B) -> NoiseLevels:
    return NoiseLevels(torch.linspace(0.2, 1.0, lanes), torch.linspace(0.9, 0.0, lanes))


def present(x: Chunk) -> dict[str, Tensor]:
    return {n: v for n in ("video", "proprio", "action") if (v := getattr(x, n)) is not None}


def assert_same(a: Chunk, b: Chunk, atol: float = 1e-5) -> None:
    assert present(a).keys() == present(b).keys()
    for name, x in present(a).items():
        torch.testing.assert_close(
            x, present(b)[name], rtol=0, atol=atol * float(x.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


# ---------------------------------------------------------------------- parity with Wan
SHAPES = [  # heads, head_dim, layers, (frames, h, w), words
    (2, 12, 2, (3, 4, 6), 7),
    (1, 32, 1, (1, 2, 2), 1),
    (3, 16, 3, (5, 6, 4), 12),
]


@pytest.mark.slow  # only because importing diffusers takes seconds
@pytest.mark.parametrize(("heads", "head_dim", "layers", "size", "words"), SHAPES)
@torch.no_grad()
def test_without_action_proprio_and_context_it_is_diffusers_wan(
    heads: int, head_dim: int, layers: int, size: tuple[int, int, int], words: int
) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=head_dim, in_channels=4, out_channels=4,
        text_dim=20, freq_dim=64, ffn_dim=40, num_layers=layers, cross_attn_norm=True, eps=1e-6,
    )  # fmt: skip
    randomise(theirs, seed=1).eval()
    ours = JointDiT(
        DiTConfig(
            layers=layers, heads=heads, head_dim=head_dim, ffn_dim=40, patch=(1, 2, 2), channels=4, text_dim=20,
            freq_dim=64, see_last_frame=False, pooled_text=False, prediction="velocity",
        )
    )  # fmt: skip
    ours.load_state_dict(theirs.state_dict(), strict=True)  # not one name is mapped
    g = torch.Generator().manual_seed(2)
    video = torch.randn(2, size[0], 4, *size[1:], generator=g)
    text, sigma = torch.randn(2, words, 20, generator=g), torch.tensor([0.937, 0.25])
    want = theirs(video.transpose(1, 2), 1000 * sigma, text, return_dict=False)[0].transpose(1, 2)
    got = ours(
        Chunk(video=video),
        NoiseLevels(sigma, sigma),
        ours.read(Context(video=video[:, :0], proprio=video.new_zeros(2, 0, 0), text=text)),
    ).video
    assert got is not None and got.shape == want.shape
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


# ---------------------------------------------------------------------- one dense pass, written again from the design
def turn(x: Tensor, position: Tensor) -> Tensor:
    """Rotary positions by complex multiplication; x (B, N, heads, d), position (N, 3)."""
    d = x.shape[-1]
    side = 2 * (d // 6)
    angle = []
    for axis, width in enumerate((d - 2 * side, side, side)):
        angle += [position[:, axis] / 10000 ** (2 * i / width) for i in range(width // 2)]
    spin = torch.polar(torch.ones(len(position), d // 2), torch.stack(angle, 1))
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], d // 2, 2).contiguous())
    return torch.view_as_real(pairs * spin[:, None]).flatten(-2)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


class Dense:
    """The whole sequence in one masked pass; it shares nothing with imagine.model.dit but the weights."""

    def __init__(self, dit: JointDiT):
        self.w, self.cfg = dict(dit.state_dict()), dit.cfg

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def two(self, name: str, x: Tensor, act=F.silu) -> Tensor:  # type: ignore[no-untyped-def]
        return self.linear(f"{name}.linear_2", act(self.linear(f"{name}.linear_1", x)))

    def patches(self, video: Tensor, last: Tensor) -> Tensor:
        """A real strided convolution, over the frames and the newest observed one."""
        both = torch.cat([video, last], 2).transpose(1, 2)
        weight = self.w["patch_embedding.weight"]
        out = F.conv3d(both, weight, self.w["patch_embedding.bias"], stride=self.cfg.patch)
        if n := self.cfg.place_frequencies:
            frames, rows, columns = out.shape[2:]
            at = [(t / 8, r / (2 * rows), c / (2 * columns)) for t in range(frames) for r in range(rows)
                  for c in range(columns)]  # fmt: skip
            out = out + self.linear("place", self.octaves(torch.tensor(at), n)).T.view(1, -1, frames, rows, columns)
        return out.flatten(2).transpose(1, 2)

    @staticmethod
    def octaves(x: Tensor, n: int) -> Tensor:
        """Sines then cosines of each number at n octaves, one number after the other."""
        parts = [f(2 * torch.pi * 2**k * v) for v in x.unbind(-1) for f in (torch.sin, torch.cos) for k in range(n)]
        return torch.stack(parts, -1)

    def actions(self, action: Tensor, origin: Tensor | None) -> Tensor:
        b, k, _ = action.shape
        if n := self.cfg.action_frequencies:
            leads = action if origin is None else action + origin[:, None]
            action = torch.cat([action, self.octaves(leads / 16, n)], -1)
        return self.two("action_in", action.reshape(b, k // self.cfg.action_patch, -1))

    def attention(self, name: str, q: Tensor, kv: Tensor, at: Tensor | None, mask: Tensor | None) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.cfg.heads, self.cfg.head_dim))

        query = heads(rms(self.linear(f"{name}.to_q", q), self.w[f"{name}.norm_q.weight"]))
        key = heads(rms(self.linear(f"{name}.to_k", kv), self.w[f"{name}.norm_k.weight"]))
        value = heads(self.linear(f"{name}.to_v", kv))
        if at is not None:
            query, key = turn(query, at), turn(key, at)
        score = torch.einsum("bnhd,bmhd->bhnm", query, key) / self.cfg.head_dim**0.5
        if mask is not None:
            score = score.masked_fill(~mask, -torch.inf)
        return self.linear(f"{name}.to_out.0", torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), value).flatten(2))

    def run(self, x: Tensor, at: Tensor, sigma: Tensor, steer: Tensor, mask: Tensor, text: Tensor) -> Tensor:
        """Tokens x (B, N, D), at (N, 3), sigma (B, N) and steer (B, N, D) of each, mask (N, N) True where row looks."""
        words = self.two("condition_embedder.text_embedder", text, lambda y: F.gelu(y, approximate="tanh"))
        half = self.cfg.freq_dim // 2
        angle = 1000 * sigma[..., None] / 10000 ** (torch.arange(half) / half)
        time = self.two("condition_embedder.time_embedder", torch.cat([angle.cos(), angle.sin()], -1))
        time = time + self.linear("condition_embedder.pooled_text", words.mean(1))[:, None] + steer
        mod = self.linear("condition_embedder.time_proj", F.silu(time)).unflatten(-1, (6, -1))  # (B, N, 6, D)

        def norm(y: Tensor) -> Tensor:
            return F.layer_norm(y, y.shape[-1:], eps=1e-6)

        for i in range(self.cfg.layers):
            p = f"blocks.{i}"
            shift1, scale1, gate1, shift2, scale2, gate2 = (mod + self.w[f"{p}.scale_shift_table"][:, None]).unbind(2)
            h = norm(x) * (1 + scale1) + shift1
            x = x + gate1 * self.attention(f"{p}.attn1", h, h, at, mask)
            h = norm(x) * self.w[f"{p}.norm2.weight"] + self.w[f"{p}.norm2.bias"]
            x = x + self.attention(f"{p}.attn2", h, words, None, None)
            h = norm(x) * (1 + scale2) + shift2
            h = F.gelu(self.linear(f"{p}.ffn.net.0.proj", h), approximate="tanh")
            x = x + gate2 * self.linear(f"{p}.ffn.net.2", h)
        shift, scale = (self.w["scale_shift_table"][:, None] + time[:, :, None]).unbind(2)
        return norm(x) * (1 + scale) + shift

    def __call__(self, ctx: Context, x: Chunk, sigma: NoiseLevels, origin: Tensor | None = None) -> Chunk:
        pt, ph, pw = self.cfg.patch
        b, _, _, h, w = ctx.video.shape
        per_patch = (h // ph) * (w // pw)
        tokens, at, level, block = [], [], [], []

        def add(t: Tensor, time: list[float], cells: bool, s: Tensor, where: int) -> None:
            tokens.append(t)
            for now in time:
                grid = [(r, c) for r in range(h // ph) for c in range(w // pw)] if cells else [(-1, -1)]
                at.extend((now, r, c) for r, c in grid)
            level.append(s[:, None].expand(-1, t.shape[1]))
            block.extend([where] * t.shape[1])

        n = ctx.video.shape[1] // pt
        clean = torch.zeros(b)
        for i in range(n):  # observed blocks: clean, each sees itself and what came before
            seen = ctx.video[:, i * pt : (i + 1) * pt]
            add(self.patches(seen, seen), [i], True, clean, i)
            add(self.two("proprio_in", ctx.proprio[:, i * pt : (i + 1) * pt].reshape(b, 1, -1)), [i], False, clean, i)
        last, future = ctx.video[:, -1:], 0
        if x.video is not None:
            future = x.video.shape[1] // pt
            spread = [n + i for i in range(future)]
            add(self.patches(x.video, last.expand_as(x.video)), spread, True, sigma.video, n)
            add(self.two("proprio_in", x.proprio.reshape(b, future, -1)), spread, False, sigma.video, n)
        if x.action is not None:
            m = x.action.shape[1] // self.cfg.action_patch
            span = FUTURE // pt
            middle = [n - 0.5 + span * (i + 0.5) / m for i in range(m)]  # middles of m equal parts of the chunk's time
            told = self.actions(x.action, origin)
            add(told, middle, False, sigma.action, n)
        own = torch.tensor(block)
        steer = torch.zeros_like(torch.cat(tokens, 1))
        if self.cfg.steer_tokens and x.video is not None and x.action is not None:
            for i, start in enumerate(range(0, m, m // future)):  # the actions of each temporal patch's own time
                clean = (1 - sigma.action)[:, None] * told[:, start : start + m // future].flatten(1)
                mine = (torch.tensor(at)[:, 0] == n + i) & (own == n)  # action tokens lie between whole times
                steer[:, mine] = self.linear("action_steer", clean)[:, None]
        out = self.run(
            torch.cat(tokens, 1), torch.tensor(at).float(), torch.cat(level, 1), steer, own[:, None] >= own, ctx.text
        )
        out = out[:, int((own < n).sum()) :]
        video = proprio = action = None
        if x.video is not None:
            rows = self.linear("proj_out", out[:, : future * per_patch]).view(
                b, future, h // ph, w // pw, pt, ph, pw, -1
            )
            video = torch.einsum("bfyxtpqc->bftcypxq", rows).reshape(x.video.shape) + last
            proprio = self.linear("proprio_out", out[:, future * per_patch : future * (per_patch + 1)])
            proprio = proprio.reshape(x.proprio.shape) + ctx.proprio[:, -1:]
        if x.action is not None:
            action = self.linear("action_out", out[:, -m:]).reshape(x.action.shape)
        return Chunk(video=video, proprio=proprio, action=action)


@pytest.mark.parametrize("options", [{}, GROUNDED], ids=["plain", "grounded"])
@pytest.mark.parametrize("parts", ["video proprio action", "video proprio", "action"])
@torch.no_grad()
def test_cache_equals_one_dense_block_causal_pass(options: dict[str, object], parts: str) -> None:
    dit = made(options)
    x = Chunk(**{n: getattr(chunk(), n) for n in parts.split()})
    cache = dit.prefill(context())
    cache.origin = torch.linspace(-3, 3, 2 * B).view(B, 2)
    assert_same(dit(x, levels(), cache), Dense(dit)(context(), x, levels(), cache.origin), atol=3e-5)


def test_waves_are_sines_and_cosines_at_octaves() -> None:
    x = torch.tensor([[0.25, 0.125]])
    root = 0.5**0.5
    torch.testing.assert_close(waves(x, 2), torch.tensor([[1.0, 0.0, 0.0, -1.0, root, 1.0, root, 0.0]]))


@torch.no_grad()
def test_action_of_a_temporal_patch_steers_the_video_of_its_own_time() -> None:
    """With attention silenced, later actions leave earlier frames alone."""
    dit = made(PAINTED | {"decoder": DecoderConfig()})
    for block in dit.blocks:
        block.attn1.to_out[0].weight.zero_()  # type: ignore[union-attr, index]
    x, s = chunk(), NoiseLevels(torch.ones(B), torch.zeros(B))
    later = replace(x, action=torch.cat([x.action[:, :4], x.action[:, 4:] + 1], 1))  # type: ignore[index]
    a, b = (dit(c, s, dit.prefill(context())).video for c in (x, later))
    assert a is not None and b is not None
    assert torch.equal(a[:, :PT], b[:, :PT]) and (a[:, PT:] - b[:, PT:]).abs().max() > 1e-3


@torch.no_grad()
def test_pure_noise_does_not_steer() -> None:
    dit = made(PAINTED)
    for block in dit.blocks:
        block.attn1.to_out[0].weight.zero_()  # type: ignore[union-attr, index]
    x, s = chunk(), NoiseLevels(torch.ones(B), torch.ones(B))
    a, b = (dit(c, s, dit.prefill(context())).video for c in (x, replace(x, action=x.action + 1)))  # type: ignore[operator]
    assert torch.equal(a, b)  # type: ignore[arg-type]


@torch.no_grad()
def test_untrained_decoder_says_that_hardly_anything_changes() -> None:
    fresh, seen = JointDiT(TINY_DIT.model_copy(update=PAINTED)).eval(), context()
    seen = replace(seen, video=seen.video.mean((3, 4), keepdim=True).expand_as(seen.video))  # moving it changes nothing
    video = fresh(chunk(), levels(), fresh.prefill(seen)).video
    assert video is not None
    newest = seen.video[:, -1:]
    assert (video - newest).abs().max() < 0.2 * newest.abs().max()


@torch.no_grad()
def test_decoder_follows_the_tokens() -> None:
    """What tokens say reaches every frame; that they say nothing is like having none."""
    dit, ctx = made(PAINTED), context()
    told = dit(chunk(), levels(), dit.prefill(ctx)).video
    dit.decoder.features.weight.zero_(), dit.decoder.features.bias.zero_()
    alone = dit(chunk(), levels(), dit.prefill(ctx)).video
    assert told is not None and alone is not None
    for frame in range(FUTURE):
        assert (told[:, frame] - alone[:, frame]).abs().max() > 1e-3
    x, s, cache = chunk(), levels(), dit.prefill(ctx)
    assert cache.memory is not None
    want, _ = dit.decoder(x.video, s.video, ctx.video[:, -1], None, cache.memory)
    torch.testing.assert_close(alone, want)


def test_gradients_flow_through_the_same_function_as_inference(dit: JointDiT) -> None:
    """Attention on the CPU takes another route when gradients are wanted."""
    with torch.no_grad():
        want = dit(chunk(), levels(), dit.prefill(context()))
    got = dit(chunk(), levels(), dit.prefill(context()))
    assert got.video is not None and got.video.requires_grad
    assert_same(Chunk(**{k: v.detach() for k, v in present(got).items()}), want)


@torch.no_grad()
def test_what_nobody_looks_at_is_not_computed_and_changes_nothing(
    dit: JointDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the video beside wanted actions, nor what a clean pass would say."""
    plain, cache = dit(chunk(), levels(), dit.prefill(context())), dit.prefill(context())
    tokens: list[int] = []
    dit.blocks[-1].register_forward_hook(lambda block, given, answer: tokens.append(answer[0].shape[1]))
    dit.prefill(context())
    got = dit(chunk(), levels(), cache, wanted={"action"})
    assert got.video is got.proprio is None and tokens[:-1] == [0] * BLOCKS and tokens[-1] < 8 + 1
    torch.testing.assert_close(got.action, plain.action)
    run = dit._run
    monkeypatch.setattr(dit, "_run", lambda *given, last=None, **how: run(*given, **how))
    whole = dit.prefill(context())
    assert tokens[-1] > 0, "now everything is computed"
    for few, all_ in zip(cache.keys + cache.values, whole.keys + whole.values, strict=True):
        torch.testing.assert_close(few, all_)


# ---------------------------------------------------------------------- the cache
def copy_of(cache: ContextCache) -> ContextCache:
    return cache._map(lambda x: x.clone())


@torch.no_grad()
def test_forward_never_changes_the_cache(dit: JointDiT) -> None:
    cache = dit.prefill(context())
    before = copy_of(cache)
    first = dit(chunk(), levels(), cache)
    dit(Chunk(action=chunk().action), levels(), cache)
    for name, value in vars(before).items():
        now = getattr(cache, name)
        if isinstance(value, list):
            assert len(value) == len(now) and all(torch.equal(a, b) for a, b in zip(value, now, strict=True)), name
        else:
            assert torch.equal(value, now) if isinstance(value, Tensor) else value == now, name
    again = dit(chunk(), levels(), cache)
    assert all(torch.equal(a, present(again)[n]) for n, a in present(first).items())


@torch.no_grad()
def test_extending_block_by_block_equals_one_prefill(dit: JointDiT) -> None:
    whole, ctx = dit.prefill(context()), context()
    parts = dit.prefill(Context(video=ctx.video[:, :PT], proprio=ctx.proprio[:, :PT], text=ctx.text))
    dit.extend(parts, ctx.video[:, PT:], ctx.proprio[:, PT:])
    assert parts.blocks == whole.blocks == BLOCKS
    assert_same(dit(chunk(), levels(), parts), dit(chunk(), levels(), whole), atol=0)


@torch.no_grad()
def test_observed_past_is_read_in_order(dit: JointDiT) -> None:
    ctx = context()
    older = torch.cat([ctx.video[:, :PT].flip(1), ctx.video[:, PT:]], 1)
    a = dit(chunk(), levels(), dit.prefill(ctx))
    b = dit(chunk(), levels(), dit.prefill(replace(ctx, video=older)))
    assert all((x - present(b)[n]).abs().max() > 1e-4 for n, x in present(a).items())


def observed(dit: JointDiT, cache: ContextCache, blocks: int, seed: int = 3) -> None:
    """Append some blocks of random frames."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(blocks):
        video = torch.randn(B, PT, 4, 4, 6, generator=g)
        dit.extend(cache, video, torch.randn(B, PT, 3, generator=g))


def remembering(dit: JointDiT, **options: object) -> JointDiT:
    """The same weights with another memory."""
    return randomise(JointDiT(dit.cfg.model_copy(update=options)), seed=5).eval()  # type: ignore[return-value]


@torch.no_grad()
def test_answer_does_not_depend_on_when_the_episode_began() -> None:
    """One layer sees nothing of what is forgotten, so an endless episode answers as a fresh one of its last blocks."""
    dit = made({"layers": 1, "max_context_blocks": 2})
    long = dit.read(context())
    observed(dit, long, 40, seed=9)
    ctx = context()
    for i in range(0, BLOCKS * PT, PT):
        dit.extend(long, ctx.video[:, i : i + PT], ctx.proprio[:, i : i + PT])
    assert long.blocks == 40 + BLOCKS and long.frames == BLOCKS
    assert_same(dit(chunk(), levels(), long), dit(chunk(), levels(), dit.prefill(ctx)))


@torch.no_grad()
def test_oldest_block_is_forgotten_whole_and_its_place_taken(dit: JointDiT) -> None:
    short = remembering(dit, max_context_blocks=2)
    cache, full = short.prefill(context(frames=3 * PT)), dit.prefill(context(frames=3 * PT))
    per = full.spans[0].tokens
    assert cache.blocks == full.blocks == 3 and cache.frames == 2 and cache.keys[0].shape[1] == 2 * per
    assert [s.start for s in cache.spans] == [per, 0]  # the newest lies where the forgotten one was
    # Layer 0 has not looked at the past yet, so its keys are those of a cache that forgets nothing.
    assert torch.equal(cache.keys[0][:, per:], full.keys[0][:, per : 2 * per])
    assert torch.equal(cache.keys[0][:, :per], full.keys[0][:, 2 * per :])


@torch.no_grad()
def test_sinks_stay_and_move_up_to_what_is_remembered(dit: JointDiT) -> None:
    """First and newest blocks, renumbered from 0, are all that a one-layer network knows."""
    dit = remembering(dit, layers=1, max_context_blocks=3, sink_blocks=1)
    g = torch.Generator().manual_seed(4)
    video, proprio = torch.randn(B, 7 * PT, 4, 4, 6, generator=g), torch.randn(B, 7 * PT, 3, generator=g)
    text, left = context().text, [*range(PT), *range(5 * PT, 7 * PT)]
    rolled = dit.prefill(Context(video=video, proprio=proprio, text=text))
    fresh = dit.prefill(Context(video=video[:, left], proprio=proprio[:, left], text=text))
    assert rolled.frames == fresh.frames == 3 and rolled.spans[0].start == 0
    assert_same(dit(chunk(), levels(), rolled), dit(chunk(), levels(), fresh))


@torch.no_grad()
@pytest.mark.parametrize("seen", [1, 3, 9])
def test_reserved_room_changes_no_bit(dit: JointDiT, seen: int) -> None:
    """A ring that is written in place, and one that is copied at every pass."""
    dit = remembering(dit, max_context_blocks=3, sink_blocks=1)
    plain, ring = dit.read(context()), dit.read(context())
    for i in range(seen):
        observed(dit, plain, 1, seed=i), observed(dit, ring, 1, seed=i)
        ring.reserve(40)
        where = [x.data_ptr() for x in ring.turned]
        a, b = dit(chunk(), levels(), plain), dit(chunk(), levels(), ring)
        assert all(torch.equal(v, present(b)[n]) for n, v in present(a).items())
    if seen > 3:
        observed(dit, ring, 1)
        assert where == [x.data_ptr() for x in ring.turned]  # nothing was allocated anew


@torch.no_grad()
def test_copies_of_a_reserved_cache_are_their_own(dit: JointDiT) -> None:
    dit = remembering(dit, max_context_blocks=2)
    cache = dit.prefill(context())
    cache.reserve(40)
    other = cache.index(torch.arange(B))
    before = dit(chunk(), levels(), other)
    observed(dit, cache, 1)
    after = dit(chunk(), levels(), other)
    assert all(torch.equal(v, present(after)[n]) for n, v in present(before).items())


@torch.no_grad()
def test_what_a_pass_keeps_is_what_observing_its_video_would_leave() -> None:
    """Clean video without actions: remembering the pass and observing the frames come to the same."""
    dit = made({"see_last_frame": False, "block": FUTURE // PT})
    x, ctx = chunk(), context()
    clean = NoiseLevels(torch.zeros(B), torch.ones(B))
    passed, seen = dit.prefill(ctx), dit.prefill(ctx)
    block_kv = BlockKV()
    dit(replace(x, action=None), clean, passed, block_kv)
    dit.remember(passed, block_kv, x.video, x.proprio)  # type: ignore[arg-type]
    dit.extend(seen, x.video, x.proprio)  # type: ignore[arg-type]
    assert passed.spans == seen.spans and torch.equal(passed.position, seen.position)  # type: ignore[arg-type]
    assert_same(dit(x, levels(), passed), dit(x, levels(), seen))


@torch.no_grad()
def test_repeated_and_indexed_caches_serve_candidates(dit: JointDiT) -> None:
    cache = dit.prefill(context())
    want = dit(chunk(), levels(), cache)
    twice = dit(chunk().repeat(2), levels().repeat(2), cache.repeat(2))
    assert_same(twice, want.repeat(2))
    some = torch.tensor([2, 0])
    assert_same(dit(chunk().index(some), levels().index(some), cache.index(some)), want.index(some))


# ---------------------------------------------------------------------- batches and leaks
@torch.no_grad()
def test_batch_of_n_equals_n_batches_of_one(dit: JointDiT) -> None:
    want = dit(chunk(), levels(), dit.prefill(context()))
    for i in range(B):
        got = dit(chunk().index([i]), levels().index([i]), dit.prefill(context().index([i])))
        assert_same(got, want.index([i]))


@torch.no_grad()
def test_level_of_an_absent_modality_changes_nothing(dit: JointDiT) -> None:
    cache, x, s = dit.prefill(context()), chunk(), levels()
    for kept, name in (("action", "video"), ("video proprio", "action")):
        part = Chunk(**{n: getattr(x, n) for n in kept.split()})
        a = dit(part, s, cache)
        b = dit(part, replace(s, **{name: torch.rand(B)}), cache)
        assert all(torch.equal(v, present(b)[n]) for n, v in present(a).items())


@torch.no_grad()
def test_level_of_a_present_modality_matters(dit: JointDiT) -> None:
    cache, x, s = dit.prefill(context()), chunk(), levels()
    for name in ("video", "action"):
        a, b = dit(x, s, cache), dit(x, replace(s, **{name: torch.full((B,), 0.5)}), cache)
        assert all((v - present(b)[n]).abs().max() > 1e-4 for n, v in present(a).items())


@torch.no_grad()
def test_policy_never_pays_for_video_tokens(dit: JointDiT) -> None:
    cache, seen = dit.prefill(context()), []
    hook = dit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    out = dit(Chunk(action=chunk().action), levels(), cache)
    hook.remove()
    assert seen == [8 // TINY_DIT.action_patch] and out.video is None and out.proprio is None


def test_lanes_do_not_see_each_other(dit: JointDiT) -> None:
    x = chunk()
    video = x.video.clone().requires_grad_()
    out = dit(replace(x, video=video), levels(), dit.prefill(context()))
    (out.action[0].sum() + out.video[0].sum()).backward()
    assert video.grad[0].abs().max() > 0 and (video.grad[1:] == 0).all()


@torch.no_grad()
def test_untrained_clean_model_predicts_that_nothing_changes() -> None:
    fresh, ctx = JointDiT(TINY_DIT), context()
    out = fresh(chunk(), levels(), fresh.prefill(ctx))
    assert torch.equal(out.video, ctx.video[:, -1:].expand_as(out.video))
    assert torch.equal(out.proprio, ctx.proprio[:, -1:].expand_as(out.proprio))
    assert (out.action == 0).all()


# ---------------------------------------------------------------------- blank cells
@torch.no_grad()
def test_blank_cells_cost_nothing_and_say_nothing() -> None:
    """A black quadrant is neither computed nor read, and predicted as zero; with nothing blank all is as before."""
    plain, dit = made({"prediction": "velocity"}), made({"prediction": "velocity", "blank": (1, 1, 2, 3)})
    x, ctx, seen = chunk(), context(), []
    hook = dit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    out = dit(x, levels(), dit.prefill(ctx))
    hook.remove()
    assert seen[-1] == 2 * (2 * 3 - 2 + 1) + 4  # two temporal patches of 4 cells and a proprio token, 4 of action
    assert (out.video[..., 2:, 2:] == 0).all() and (out.video[..., :2, :] != 0).any()
    other, elsewhere = x.video.clone(), ctx.video.clone()
    other[..., 2:, 2:] += 1
    elsewhere[:, :-1, :, 2:, 2:] += 1
    same = dit(replace(x, video=other), levels(), dit.prefill(replace(ctx, video=elsewhere)))
    assert all(torch.equal(v, present(same)[n]) for n, v in present(out).items())
    none = made({"prediction": "velocity", "blank": (0, 0, 0, 0)})
    assert_same(none(x, levels(), none.prefill(ctx)), plain(x, levels(), plain.prefill(ctx)), atol=0)


# ---------------------------------------------------------------------- shapes
@torch.no_grad()
def test_sizes_that_do_not_fill_patches_are_refused(dit: JointDiT) -> None:
    cache, ctx = dit.prefill(context()), context()
    with pytest.raises(ShapeError, match="expected multiples of the patch"):
        dit(Chunk(video=chunk().video[:, :3]), levels(), cache)
    with pytest.raises(ShapeError, match="expected multiples of the patch"):
        dit.prefill(replace(ctx, video=ctx.video[..., :5]))
    with pytest.raises(ShapeError, match="7 vectors do not fill tokens of 2"):
        dit(Chunk(action=chunk().action[:, :7]), levels(), cache)


@pytest.mark.parametrize("head_dim", [16, 24, 64, 128])
def test_rotary_scores_depend_on_relative_positions_only(head_dim: int) -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 9, 2, head_dim, generator=g).unbind(0)
    at = torch.rand(9, 3, generator=g) * 20

    def scores(position: Tensor) -> Tensor:
        table = rotary_table(position, head_dim)
        return torch.einsum("bnhd,bmhd->bhnm", rotate(q, table), rotate(k, table))

    want = scores(at)
    # Positions are float32: at about 30 they are good to 2e-6, times a score of about sqrt(head_dim) and its terms.
    torch.testing.assert_close(scores(at + torch.tensor([7.0, -3.0, 11.0])), want, rtol=0, atol=1e-5 * head_dim)
    assert (scores(at * 1.1) - want).abs().max() > 0.1
    # Rotations keep lengths.
    torch.testing.assert_close(rotate(q, rotary_table(at, head_dim)).norm(dim=-1), q.norm(dim=-1))
