"""Trains KV-Distill's scorer and adapters for the test model. Needs torch; a GPU for more than a look.

    python3 kvdistill_train.py TOKENS.npy --state FOLDER [--seconds 200] [--schedule STEPS]

TOKENS.npy is made by kvdistill_data.py. Stops after `--seconds` and goes on from FOLDER next time;
leaves FOLDER/adapters.npz for kvdistill.py and FOLDER/fixture.npz for its test. One step reads
about 27,000 tokens: prefixes of 768, 1,536 or 3,072 and 256 tokens after each.

Loss, as in the paper: .6 KL(full || compressed) + .4 KL(compressed || full) on what comes after.
The scorer's gradient: the paper weighs attention by sigma(score); here the weight is that divided by
itself, so its value is 1 and only its gradient is there (served K cannot carry a weight).
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import texts
from kvdistill import PINS, SCORED
from smollm2 import Config, Tokenizer, Weights, load_model

RANK, ALPHA, HIDDEN = 8, 16.0, 64
LAMBDA = 0.6
PREFIXES, AFTER, STEP_TOKENS = (768, 1536, 3072), 256, 27_000
KEEP = (0.02, 0.8)  # log-uniform, per document (the paper: .001 .. .8)
RATE, SCORER_RATE, WARM_UP = 1e-3, 4e-3, 50
WATCHED = ("policy", "gitmanual", "http2", "countries")  # tuning passages
WATCHED_KEEP = 0.2222
EXTRA = 8  # columns behind each head: what a key adds to a score beside q.k, see `_attend`


class Model:
    """The frozen model in `dtype`, and the adapters in float32 beside it."""

    def __init__(self, config: Config, weights: Weights, device: str, dtype: torch.dtype) -> None:
        self.c, self.device, self.dtype = config, device, dtype
        self.w = {
            name: torch.tensor(np.asarray(array), device=device, dtype=dtype)
            for name, array in vars(weights).items()
            if array is not None
        }
        angles = np.outer(np.arange(config.max_position), config.inv_freq().astype(np.float64))
        self._cos = torch.tensor(np.cos(angles), device=device, dtype=torch.float32)
        self._sin = torch.tensor(np.sin(angles), device=device, dtype=torch.float32)
        c = config
        rows = {"q": c.heads * c.head_dim, "k": c.kv_heads * c.head_dim,
                "v": c.kv_heads * c.head_dim, "o": c.width}  # fmt: skip
        self.p = {
            "w1": torch.randn(HIDDEN, c.width) / math.sqrt(c.width),
            "b1": torch.zeros(HIDDEN),
            "w2": torch.randn(HIDDEN) / math.sqrt(HIDDEN),
            "b2": torch.zeros(()),
        }
        for which, height in rows.items():
            into = c.heads * c.head_dim if which == "o" else c.width
            self.p[f"{which}_down"] = torch.randn(c.layers, RANK, into) / math.sqrt(into)
            self.p[f"{which}_up"] = torch.zeros(c.layers, height, RANK)
        self.p = {n: t.to(device).requires_grad_() for n, t in self.p.items()}
        self.scale = ALPHA / math.sqrt(RANK)  # rsLoRA

    def norm(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        spread = x.square().mean(-1, keepdim=True) + self.c.rms_epsilon
        return (x * spread.rsqrt()).to(self.dtype) * gain

    def added(self, which: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        down, up = (self.p[f"{which}_{end}"][layer].to(self.dtype) for end in ("down", "up"))
        return (x @ down.T) @ up.T * self.scale

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of what enters layer SCORED, [..][width] -> [..], float32."""
        x = hidden.float()
        x = x * (x.square().mean(-1, keepdim=True) + self.c.rms_epsilon).rsqrt()
        return F.relu(x @ self.p["w1"].T + self.p["b1"]) @ self.p["w2"] + self.p["b2"]

    def run(
        self, ids: torch.Tensor, prefix: int, kept: torch.Tensor | None = None,
        weight: torch.Tensor | None = None, stop: int | None = None, keep_kv: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor]]]:  # fmt: skip
        """ids [documents][tokens] -> (hidden after the last norm, what entered layer SCORED, K, V).

        With `kept` [documents][prefix] the first `prefix` tokens are read with the adapters, and
        what comes after attends to the kept ones alone, `weight` (0, with a gradient) on top.
        """
        c, (docs, n) = self.c, ids.shape
        x = self.w["embedding"][ids].float()
        routed = None
        if kept is not None:
            routed = F.pad(kept, (0, n - prefix))[..., None]  # selected: Q and O
            inside = (torch.arange(n, device=self.device) < prefix)[None, :, None]
        scored, held = None, []
        q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for layer in range(c.layers if stop is None else stop):
            if layer == SCORED:
                scored = x
            h = self.norm(x, self.w["attention_norm"][layer])
            q, k, v = (h @ self.w["qkv"][layer].T).split([q_width, kv_width, kv_width], -1)
            if routed is not None:
                q = q + self.added("q", layer, h) * routed
                k = k + self.added("k", layer, h) * inside
                v = v + self.added("v", layer, h) * inside
            q, k, v = (t.view(docs, n, -1, c.head_dim).transpose(1, 2) for t in (q, k, v))
            q, k = self._turn(q, n), self._turn(k, n)
            if keep_kv:
                held.append((k, v))
            mixed = self._attend(q, k, v, prefix, kept, weight)
            mixed = mixed.transpose(1, 2).reshape(docs, n, -1)
            add = mixed @ self.w["attention_out"][layer].T
            if routed is not None:
                add = add + self.added("o", layer, mixed) * routed
            x = x + add
            both = self.norm(x, self.w["ffn_norm"][layer]) @ self.w["gate_up"][layer].T
            gate, up = both.split(c.ffn_width, -1)
            x = x + (F.silu(gate) * up) @ self.w["down"][layer].T
        if stop == SCORED:
            scored = x
        return self.norm(x, self.w["output_norm"]), scored, held

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, float32."""
        out = hidden @ self.w.get("output", self.w["embedding"]).T
        return torch.log_softmax(out.float(), -1)

    def _turn(self, x: torch.Tensor, n: int) -> torch.Tensor:
        a, b = x.float().chunk(2, -1)
        cos, sin = self._cos[:n], self._sin[:n]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(self.dtype)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix: int,
        kept: torch.Tensor | None, weight: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Causal. What a dropped or weighted key changes for later queries is one more column of q
        (1 behind the prefix, else 0) and of k, so that no mask is needed."""
        d, group = self.c.head_dim, self.c.group
        if kept is not None:
            docs, _, n, _ = q.shape
            later = (torch.arange(n, device=self.device) >= prefix).to(self.dtype)
            column = (~kept).to(self.dtype) * -4096.0
            if weight is not None:
                column = column + (weight * math.sqrt(d)).to(self.dtype)
            column = F.pad(column, (0, n - prefix))
            zeros = column.new_zeros(docs, n, EXTRA - 1)
            more_k = torch.cat([column[..., None], zeros], -1)[:, None]
            more_q = torch.cat([later.expand(docs, n)[..., None], zeros], -1)[:, None]
            q = torch.cat([q, more_q.expand(-1, q.shape[1], -1, -1)], -1)
            k = torch.cat([k, more_k.expand(-1, k.shape[1], -1, -1)], -1)
            v = F.pad(v, (0, EXTRA))
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=d**-0.5)
        return out[..., :d]


def choose(ranks: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """[documents][prefix]: the first PINS and the best others, `keep` [documents] in all."""
    ranks = ranks.clone()
    ranks[:, :PINS] = torch.inf
    order = ranks.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return order < keep[:, None]


def divergences(full: torch.Tensor, served: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean KL(full || served) and KL(served || full) of log-probabilities."""
    ahead = (full.exp() * (full - served)).sum(-1).mean()
    return ahead, (served.exp() * (served - full)).sum(-1).mean()


def loss_of(model: Model, ids: torch.Tensor, prefix: int, keep: torch.Tensor) -> torch.Tensor:
    """Of documents [documents][prefix + after]."""
    with torch.no_grad():
        hidden, scored, _ = model.run(ids, prefix)
        full = model.logits(hidden[:, prefix:])
    assert scored is not None
    ranks = model.score(scored[:, :prefix])
    kept = choose(ranks.detach(), keep)
    soft = F.logsigmoid(ranks)
    hidden, _, _ = model.run(ids, prefix, kept, soft - soft.detach())
    ahead, back = divergences(full, model.logits(hidden[:, prefix:]))
    return LAMBDA * ahead + (1 - LAMBDA) * back


@torch.no_grad()
def watch(model: Model, passages: list[torch.Tensor], prefix: int = 3072) -> list[float]:
    """Mean KL on tuning passages: as trained, without the adapters, and tokens kept at random."""
    totals = [0.0, 0.0, 0.0]
    for ids in passages:
        n = len(ids) - prefix
        hidden, scored, _ = model.run(ids[None], prefix)
        assert scored is not None
        full = model.logits(hidden[:, prefix + 64 :])
        keep = torch.tensor([round(WATCHED_KEEP * prefix)], device=model.device)
        ranks = model.score(scored[:, :prefix])
        dice = torch.rand(ranks.shape, generator=torch.Generator().manual_seed(1)).to(ranks.device)
        ups = {name: t for name, t in model.p.items() if name.endswith("_up")}
        for at, (by, bare) in enumerate(((ranks, False), (ranks, True), (dice, True))):
            if bare:
                model.p |= {name: torch.zeros_like(t) for name, t in ups.items()}
            hidden, _, _ = model.run(ids[None], prefix, choose(by, keep))
            model.p |= ups
            totals[at] += float(divergences(full, model.logits(hidden[:, prefix + 64 : prefix + n]))[0])
    return [t / len(passages) for t in totals]


def batch(data: np.ndarray, step: int) -> tuple[np.ndarray, int, np.ndarray]:  # type: ignore[type-arg]
    """(ids, prefix, kept counts) of a step: always the same for the same step."""
    rng = np.random.default_rng(step)
    prefix = PREFIXES[step % len(PREFIXES)]
    docs = max(1, STEP_TOKENS // (prefix + AFTER))
    firsts = rng.integers(0, len(data) - prefix - AFTER, docs)
    ids = np.stack([data[f : f + prefix + AFTER] for f in firsts]).astype(np.int64)
    share = np.exp(rng.uniform(math.log(KEEP[0]), math.log(KEEP[1]), docs))
    return ids, prefix, np.maximum(np.round(share * prefix), PINS + 1).astype(np.int64)


def save_adapters(model: Model, path: pathlib.Path) -> None:
    arrays = {n: t.detach().cpu().numpy().astype(np.float16) for n, t in model.p.items()}
    np.savez_compressed(path, scale=np.float16(model.scale), **arrays)


@torch.no_grad()
def save_fixture(config: Config, weights: Weights, state: pathlib.Path, device: str) -> None:
    """What the numpy forward is held to: float32, with the adapters as the file has them."""
    model = Model(config, weights, device, torch.float32)
    with np.load(state / "adapters.npz") as stored:
        for name in model.p:
            model.p[name] = torch.tensor(stored[name].astype(np.float32), device=device)
        model.scale = float(stored["scale"])
    tokens = Tokenizer().encode(texts.passage(WATCHED[0]).text())[:192]
    ids = torch.tensor(tokens, device=device)[None]
    _, scored, _ = model.run(ids, len(tokens), stop=SCORED)
    assert scored is not None
    ranks = model.score(scored)
    kept = choose(ranks, torch.tensor([48], device=device))
    _, _, held = model.run(ids, len(tokens), kept, keep_kv=True)
    layers = [0, 7, config.layers - 1]
    np.savez_compressed(
        state / "fixture.npz", tokens=np.array(tokens, np.uint16), layers=np.array(layers),
        scores=ranks[0].cpu().numpy(), kept=kept[0].cpu().numpy(),
        k=np.stack([held[i][0][0, :, -8:].cpu().numpy() for i in layers]),
        v=np.stack([held[i][1][0, :, -8:].cpu().numpy() for i in layers]),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokens", type=pathlib.Path)
    parser.add_argument("--state", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--schedule", type=int, default=2000, help="steps until the rate is 0")
    parser.add_argument("--watch-every", type=int, default=200, help="steps")
    args = parser.parse_args()
    begin = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    config, weights = load_model()
    model = Model(config, weights, device, torch.bfloat16 if device == "cuda" else torch.float32)
    slow = [t for n, t in model.p.items() if n not in ("w1", "b1", "w2", "b2")]
    scorer = [model.p[n] for n in ("w1", "b1", "w2", "b2")]
    optimiser = torch.optim.AdamW(
        [{"params": slow}, {"params": scorer}], lr=RATE, weight_decay=0.0
    )
    data = np.load(args.tokens, mmap_mode="r")
    args.state.mkdir(parents=True, exist_ok=True)
    checkpoint = args.state / "checkpoint.pt"
    step, tokens = 0, 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, map_location=device)
        step, tokens = kept["step"], kept["tokens"]
        for name, value in kept["p"].items():
            model.p[name].data.copy_(value)
        optimiser.load_state_dict(kept["optimiser"])
    tokenizer = Tokenizer()
    passages = [
        torch.tensor(tokenizer.encode(texts.passage(name).text())[: 3072 + 576], device=device)
        for name in WATCHED
    ]

    def say(what: str) -> None:
        gone = time.monotonic() - begin
        print(f"{gone:5.0f} s  step {step:5}  {tokens:12,} tokens seen  {what}", flush=True)

    def keep_state() -> None:
        state = {"step": step, "tokens": tokens, "optimiser": optimiser.state_dict(),
                 "p": {n: t.detach() for n, t in model.p.items()}}  # fmt: skip
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").rename(checkpoint)
        save_adapters(model, args.state / "adapters.npz")

    losses: list[float] = []
    while step < args.schedule and time.monotonic() - begin < args.seconds:
        if step % args.watch_every == 0:
            say("KL trained %.4f, scorer alone %.4f, random %.4f" % tuple(watch(model, passages)))
        ids, prefix, counts = batch(data, step)
        share = min(1.0, (step + 1) / WARM_UP)
        share *= 0.5 * (1 + math.cos(math.pi * step / args.schedule))
        for group, rate in zip(optimiser.param_groups, (RATE, SCORER_RATE)):
            group["lr"] = rate * share
        loss = loss_of(model, torch.tensor(ids, device=device), prefix,
                       torch.tensor(counts, device=device))  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(slow + scorer, 1.0)
        optimiser.step()
        step, tokens = step + 1, tokens + ids.size
        losses.append(loss.detach())  # type: ignore[arg-type]
        if step % 25 == 0:
            say(f"loss {float(sum(losses)) / len(losses):.4f}")
            losses.clear()
        if step % 400 == 0:
            keep_state()
    say("KL trained %.4f, scorer alone %.4f, random %.4f" % tuple(watch(model, passages)))
    keep_state()
    save_fixture(config, weights, args.state, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
