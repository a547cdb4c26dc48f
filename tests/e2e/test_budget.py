"""The token budget: a bound on the kept tokens of any chain, whatever the policy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import dynacompress
import numpy as np

import kv
from daemon import Daemon

LIMIT = 60


def test_a_chain_is_held_to_the_token_budget(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon(f"[budget]\ntokens = {LIMIT}\n[policy]\ndrop_after_ms = 50\n")
    spec = dataclasses.replace(kv.spec("budget"), masks=True)
    context = dynacompress.Client(daemon.socket, deadline=60).open_context(spec)
    names, tokens = kv.hashes("budget", 3), 3 * kv.BLOCK
    kv.put(context, names, kv.values(1, 3))
    mass = np.full((kv.LAYERS, kv.HEADS, tokens), 1e-3, np.float32)
    mass[:, :, 72:80] = 2
    context.report_columns(names[-1], mass, queries=64)

    gone = (kv.LAYERS * tokens - LIMIT) * kv.HEADS
    end = time.monotonic() + 30
    while (seen := daemon.status()["tokens"])["dropped"] < gone and time.monotonic() < end:
        time.sleep(0.02)
    assert seen == {
        "budget": LIMIT, "kept": LIMIT, "chains": 1, "overfull_chains": 0, "dropped": gone
    }  # fmt: skip
    assert f"dynacompress_token_budget_kept_tokens {LIMIT}" in daemon.page("metrics")

    out = np.zeros((kv.LAYERS, 2, kv.HEADS, tokens, kv.DIM), np.float16)
    with context.lookup(names) as lease:
        assert lease.run == 3
        live = context.fetch(lease, out[:, 0], out[:, 1], masks=True)["live"]
    masks = np.asarray(live, np.uint64).reshape(3, kv.LAYERS, kv.HEADS)
    bits = (masks[..., None] >> np.arange(kv.BLOCK, dtype=np.uint64)) & np.uint64(1)
    assert bits.sum() == LIMIT * kv.HEADS
    assert bits[0, :, :, :4].all()  # the first of the sequence
    assert bits[1, :, :, 8:16].all()  # what attention went to
    with context.lookup(names, min_quality="balanced") as lease:
        assert lease.run == 0
