"""What the demo's workers need of the Python package: the only file here that knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dynacompress
import numpy as np
import numpy.typing as npt
from smollm2 import Config

BLOCK = 64  # tokens


def block_hashes(tokens: Sequence[int], salt: str) -> list[bytes]:
    """Names of the whole blocks, in prefix order."""
    return dynacompress.block_hashes(tokens, salt.encode())


class HeldRun:
    """A lease: how many leading blocks, and in which tier each was."""

    def __init__(self, lease: dynacompress.Lease) -> None:
        self.lease = lease
        self.run = lease.run
        self.tiers = [hit.tier for hit in lease.hits[: lease.run]]

    def __enter__(self) -> HeldRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.lease.release()


class Link:
    """One worker's connection, K and V as f16 in [layers][K, V][kv_heads][tokens][head_dim]."""

    def __init__(self, socket: str, bulk: str, config: Config) -> None:
        self._client = dynacompress.Client(socket, name="demo", bulk=bulk, deadline=120)
        layer = dynacompress.Layer(
            config.kv_heads, config.head_dim, q_heads=config.heads, max_position=config.max_position
        )
        rope = dynacompress.Rope("half", [float(f) for f in config.inv_freq()])
        spec = dynacompress.ContextSpec(
            config.name, [layer] * config.layers, dtype="f16", revision=config.revision, ropes=[rope]
        )
        self._context = self._client.open_context(spec)

    def empty(self, shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
        """Memory that the daemon works on in place."""
        return self._client.empty(shape, np.float16)

    def put(
        self,
        layer: int,
        kv: npt.NDArray[np.float16],
        hashes: list[bytes],
        first: int,
        last: int,
        durability: str,
    ) -> None:
        """Puts blocks first .. last of one layer; kv: [K, V][kv_heads][tokens][head_dim]."""
        part = kv[:, :, first * BLOCK : last * BLOCK]
        self._context.put(
            hashes[first:last], part[0], part[1], axes="htd", layer=layer, first_index=first,
            parent=hashes[first - 1] if first else dynacompress.ROOT,
            persistent=durability == "persistent",
        )  # fmt: skip

    def report_window(
        self, leaf: bytes, first: int, queries: npt.NDArray[np.float32], advance: int
    ) -> None:
        """queries: [layers][window][q_heads][head_dim], at positions first, first + 1, ..."""
        self._context.report_queries(leaf, first, np.ascontiguousarray(queries), advance=advance)

    def lookup(self, hashes: list[bytes]) -> HeldRun:
        """The leading run that is held."""
        return HeldRun(self._context.lookup(hashes))

    def fetch(self, held: HeldRun, layer: int, kv: npt.NDArray[np.float16], first: int) -> None:
        """One layer of the run into the tokens from block `first` on."""
        part = kv[:, :, first * BLOCK : (first + held.run) * BLOCK]
        self._context.fetch(held.lease, part[0], part[1], axes="htd", layer=layer)

    def inspect(self, hashes: list[bytes]) -> list[dict[str, Any]]:
        """What the daemon holds of each block."""
        context = self._context.fingerprint
        return self._client.query("inspect", context, hashes, limit=len(hashes))["blocks"]

    def delete(self, hashes: list[bytes]) -> int:
        """Drops the blocks."""
        return self._context.delete(hashes)

    def set_budget(self, size: int) -> None:
        """Of all blocks together, in bytes."""
        self._client.set_budget(size)
