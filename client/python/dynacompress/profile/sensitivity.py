"""omega: how much an error of K or V in one (layer, kv head) does to the model.

omega = measured KL / predicted relative error, with only that cell at a low level (K at L1, V at 2
bits), everything else as it was. Deterministic: the same tokens, no sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ContextSpec, _core
from .model import Capture, Continuation
from .profile_file import Cell

K_LEVEL, V_BITS = 1.0, 2  # what a measured cell is coded at
PINS = 4  # first tokens of the sequence stay raw
LEAST = 1e-9  # nats: below it is rounding


def mean_kl(log_p: Any, log_q: Any) -> float:
    """Mean over tokens of KL(p || q), of log-probabilities [tokens][vocabulary]."""
    rows = (np.exp(p, dtype=np.float64) @ (p.astype(np.float64) - q) for p, q in zip(log_p, log_q))
    return float(np.mean(list(rows)))


def measure(
    spec: ContextSpec,
    bases: Sequence[bytes],
    passages: Sequence[tuple[Capture, Continuation]],
    progress: Callable[[str, float], None],
    known: Sequence[Sequence[Cell]] = (),
) -> list[list[Cell]]:
    """Cells by layer and head, each from the mean KL over the passages.

    known: another profile's of the same model, whose sensitivities of V are taken as they are: they
    do not depend on K's frame.
    """
    out: list[list[Cell]] = []
    for layer, shape in enumerate(spec.layers):
        facts = _core.basis_facts(bases[layer]) if bases[layer] else None
        row = []
        for head in range(shape.kv_heads):
            seen = facts is not None and facts["heads"][head]["seen"]
            k_kind: Any = K_LEVEL if seen else "plain4"
            k_kl, k_error = _cell(spec, bases[layer], passages, layer, head, (k_kind, "raw"))
            if known:
                omega_v = known[layer][head].omega_v
            else:
                v_kl, v_error = _cell(spec, bases[layer], passages, layer, head, ("raw", V_BITS))
                omega_v = v_kl / v_error
            errors = (k_error * 0.1, k_error)  # a head without a basis: only their order matters
            if facts is not None and seen:
                of_head, targets = facts["heads"][head], facts["targets"]
                level = {t: max(i for i, x in enumerate(targets) if x <= t) for t in (1, 2, 4)}
                predicted = of_head["relative_error"]
                k_error = predicted[level[1]]
                errors = predicted[level[4]], predicted[level[2]]
            row.append(Cell(k_kl / k_error, omega_v, *errors))
            progress(f"layer {layer}, head {head}", (layer + (head + 1) / shape.kv_heads) / len(spec.layers))
        out.append(row)
    return out


def _cell(
    spec: ContextSpec,
    basis: bytes,
    passages: Sequence[tuple[Capture, Continuation]],
    layer: int,
    head: int,
    plan: tuple[Any, Any],
) -> tuple[float, float]:
    """Mean KL, and the measured relative error of what was coded."""
    kl, errors = [], []
    for capture, continuation in passages:
        k, v = capture.k[layer].copy(), capture.v[layer].copy()
        part = slice(head, head + 1)
        _, ((k_energy, k_error, v_energy, v_error),) = _core.recode(
            spec, layer, head, k[part].view(np.uint16), v[part].view(np.uint16), [plan],
            basis or None, PINS,
        )  # fmt: skip
        kl.append(mean_kl(continuation.log_p, continuation.again(layer, k, v)))
        errors.append(k_error / k_energy if plan[1] == "raw" else v_error / v_energy)
    return max(float(np.mean(kl)), LEAST), float(np.mean(errors))
