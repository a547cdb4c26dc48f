"""The client: contexts, put, lookup, fetch, statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from . import _core
from ._types import ContextSpec, Hit

ROOT = bytes(32)  # the parent of a sequence's first block


def block_hashes(tokens: Sequence[int], salt: bytes = b"", parent: bytes = ROOT) -> list[bytes]:
    """Names of the whole 64-token blocks of a sequence, in prefix order: SHA-256(parent, ids, salt)."""
    names: list[bytes] = []
    for first in range(0, len(tokens) - 63, 64):
        parent = _core.hash_tokens(parent, list(tokens[first : first + 64]), salt)
        names.append(parent)
    return names


class _Released:
    """What a `with` block lets go of at its end."""

    def release(self) -> None:
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Lease(_Released):
    """The leading run of a lookup, held until it is released: a context manager."""

    def __init__(self, core: _core.Lease, context: Context) -> None:
        self._core = core
        self._context = context  # the connection lives as long as what came from it

    @property
    def run(self) -> int:
        """Leading blocks that may be fetched; 0: none."""
        return int(self._core.run)

    @property
    def hits(self) -> list[Hit]:
        """One for each hash that was asked for."""
        return self._core.hits

    @property
    def lost(self) -> bool:
        """Revoked, expired, or of a lost connection."""
        return bool(self._core.lost)

    def release(self) -> None:
        """Lets the blocks go. May be called twice."""
        self._core.release()

    def __enter__(self) -> Lease:
        return self


def _handle_of(stream: Any) -> int | None:
    """A CUDA stream as put and fetch take it: torch's, CuPy's, a cudaStream_t, or None."""
    for name in ("cuda_stream", "ptr"):
        stream = getattr(stream, name, stream)
    return None if stream is None else int(stream)


class GpuRegion(_Released):
    """An array's memory on a GPU that the daemon reads and writes in place: a context manager.

    Keeps the array. Release it before the memory is used for something else by somebody else.
    """

    def __init__(self, core: _core.GpuRegion, client: _core.Client, array: Any) -> None:
        self._core = core
        self._client = client
        self._array = array

    @property
    def size(self) -> int:
        """Bytes; 0 once it is released."""
        return int(self._core.size)

    def release(self) -> None:
        """Waits until the daemon has let go of it. May be called twice."""
        self._core.release()
        self._array = None

    def __enter__(self) -> GpuRegion:
        return self


class Context:
    """One model at one daemon. All methods block, release the GIL and may be called from threads.

    Arrays are anything with DLPack or the buffer protocol (numpy, torch), on a GPU also with
    `__cuda_array_interface__`. `axes` names
    their dimensions: l layers (absent: one), b blocks, t tokens (without b: whole blocks of 64),
    h kv heads, d channels. Any strides are fine as long as a row of d is contiguous. Memory of
    `Client.empty` is read and written in place by the daemon; other memory costs one copy. Memory of
    a GPU is used in place once it is registered (`Client.register_gpu`), else copied through the host.
    Before the daemon touches it what was submitted to `stream` (torch's, CuPy's or a number; None:
    to the GPU, in this process) is waited for; afterwards its bytes are there for every stream.
    `layers` and `heads` are what this worker holds of the model (tensor and pipeline parallelism).
    """

    def __init__(
        self,
        core: _core.Context,
        client: _core.Client,
        spec: ContextSpec,
        layers: tuple[int, int] | None,
        heads: tuple[int, int] | None,
        deadline: float,
    ) -> None:
        self._core = core
        self._client = client  # dropping the Client must not cut a Context off
        self.spec = spec
        self._layers = layers or (0, len(spec.layers))
        self._heads = heads or (0, spec.layers[self._layers[0]].kv_heads)
        self._deadline = deadline

    @property
    def fingerprint(self) -> int:
        """Names the context (64 bits)."""
        return int(self._core.fingerprint)

    def put(
        self,
        hashes: Sequence[bytes],
        k: Any,
        v: Any,
        *,
        axes: str = "lhtd",
        layer: int = 0,
        parent: bytes = ROOT,
        first_index: int = 0,
        quality: str = "balanced",
        persistent: bool = False,
        ttl: float = 0.0,
        dtype: str | None = None,
        deadline: float | None = None,
        stream: Any = None,
    ) -> list[tuple[str, float, int]]:
        """Puts K and V of consecutive blocks, of `layer` and the layers after it in the arrays.

        A block becomes visible when all layers of the worker are there. Returns, block by block and
        layer by layer, (status, nmse, encoded bytes); EXISTS means that the block was held already.
        Waits while the daemon makes room. Raises Error.
        """
        return self._core.put(
            list(hashes), k, v, axes, dtype, layer, parent, first_index, self._layers, self._heads,
            quality, persistent, ttl, self._deadline if deadline is None else deadline,
            _handle_of(stream),
        )  # fmt: skip

    def lookup(
        self,
        hashes: Sequence[bytes],
        *,
        min_quality: str = "small",
        max_nmse: float = 0.0,
        ttl: float = 0.0,
        deadline: float | None = None,
    ) -> Lease:
        """Which blocks of a prefix are held at `min_quality` or better, and a lease on the run."""
        return Lease(
            self._core.lookup(
                list(hashes), self._layers, self._heads, min_quality, max_nmse, ttl,
                self._deadline if deadline is None else deadline,
            ),
            self,
        )  # fmt: skip

    def exists(self, hashes: Sequence[bytes], min_quality: str = "small") -> list[Hit]:
        """The same without a lease."""
        return self._core.exists(list(hashes), min_quality, self._deadline)

    def fetch(
        self,
        lease: Lease,
        k: Any,
        v: Any,
        *,
        axes: str = "lhtd",
        layer: int = 0,
        block: int = 0,
        head: int | None = None,
        as_stored: bool = False,
        masks: bool = False,
        beyond_windows: bool = False,
        dtype: str | None = None,
        deadline: float | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """Decodes blocks of the lease, from its `block`-th, into the arrays.

        as_stored: encoded bytes travel (3-7 x fewer) and this process decodes them.
        masks: "live" has 64 bits for each segment and head: which tokens a policy has kept.
        beyond_windows: of a sliding layer also the blocks before those that its window reaches from
        the run's end. Else they are "MISS" in "segments" and their rows are not written: nothing
        that goes on there looks at them, but a masked product of junk is junk (use zeros).
        Returns {"segments": [(status, nmse, bytes)], "tiers", "bases", "bytes_received", "live"};
        segments are [block][layer].
        Raises Error where a block is not there any more; the arrays are then undefined.
        """
        return self._core.fetch(
            lease._core, k, v, axes, dtype, layer, self._heads[0] if head is None else head, block,
            as_stored, masks, beyond_windows, self._deadline if deadline is None else deadline,
            _handle_of(stream),
        )  # fmt: skip

    def report_queries(
        self, leaf: bytes, first_position: int, queries: Any, *, layer: int = 0, advance: int = 512
    ) -> None:
        """The last queries (after RoPE) of a prefix that ends in block `leaf`.

        queries: [layers][window <= 64][q_heads][head_dim], C-contiguous, f32, f16 or bf16.
        advance: tokens since this sequence's last report.
        """
        self._core.report_queries(
            leaf, first_position, queries, layer, self._heads, advance, self._deadline
        )

    def report_columns(
        self, leaf: bytes, mass: Any, *, queries: int, layer: int = 0, advance: int = 512
    ) -> None:
        """Attention that each token of the chain received, summed over `queries` queries.

        mass: f32 [layers][kv_heads][tokens].
        """
        self._core.report_columns(
            leaf, mass, layer, self._heads, queries, advance, self._deadline
        )

    def delete(self, hashes: Sequence[bytes]) -> int:
        """Drops blocks everywhere; how many were held."""
        return int(self._core.delete(list(hashes)))

    def clear(self) -> int:
        """Drops all blocks of this context (its weights were reloaded)."""
        return int(self._core.clear())

    def pin(self, hashes: Sequence[bytes], pinned: bool = True, ttl: float = 0.0) -> int:
        """Keeps blocks at their bits and in memory; `ttl` in seconds, 0: for ever."""
        return int(self._core.pin(list(hashes), pinned, ttl))

    def put_opaque(
        self, key: bytes, data: bytes, *, persistent: bool = False, ttl: float = 0.0
    ) -> None:
        """Stores bytes of unknown meaning, lossless, under a 32-byte key."""
        self._core.put_opaque(key, data, persistent, ttl)

    def get_opaque(self, key: bytes) -> bytes:
        """Raises Error with code MISS when it is not there."""
        return self._core.get_opaque(key)


class Client:
    """A connection to the daemon of this node.

    endpoint: path of its socket; "": where it is by default (environment DYNACOMPRESS_SOCKET).
    bulk: how K and V travel: "auto" (regions on one host), "region", "ucx" or "socket".
    deadline: seconds that a call may take unless it says otherwise.
    """

    def __init__(
        self, endpoint: str = "", *, name: str = "", bulk: str = "auto", deadline: float = 30.0
    ) -> None:
        self._core = _core.Client(endpoint, name, bulk, deadline)
        self._deadline = deadline

    def empty(self, shape: Sequence[int], dtype: Any = "float16") -> Any:
        """A numpy array in memory that the daemon reads and writes in place."""
        import numpy as np

        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        return self._core.empty(size)[:size].view(kind).reshape(tuple(shape))

    def register_gpu(self, array: Any) -> GpuRegion:
        """Lets the daemon, on the same GPU, read and write an array's memory there in place.

        The array: torch or CuPy (cudaMalloc: not torch's expandable_segments). The daemon could read
        and write the whole allocation that it lies in. Raises Error, with the reason, where that
        cannot be done; put and fetch of the array work all the same, through the host.
        """
        return GpuRegion(self._core.register_gpu(array), self._core, array)

    def open_context(
        self,
        spec: ContextSpec,
        *,
        profile: bytes = b"",
        layers: tuple[int, int] | None = None,
        heads: tuple[int, int] | None = None,
    ) -> Context:
        """Declares a model; `layers` and `heads` (half-open) say what this worker holds of it."""
        core = self._core.open_context(spec, profile)
        return Context(core, self._core, spec, layers, heads, self._deadline)

    def query(
        self, what: str = "stats", context: int = 0, hashes: Sequence[bytes] = (), limit: int = 1024
    ) -> dict[str, Any]:
        """Facts: "stats", "contexts", "inspect" (blocks, bits and history of each) or "bank"."""
        return json.loads(self._core.query(what, context, list(hashes), limit))

    def set_budget(self, size: int) -> None:
        """Bytes that all blocks together may take; 0: as configured. For operators."""
        self._core.set_budget(size)

    def clear(self) -> int:
        """Drops every block of this user, in every context."""
        return int(self._core.clear())
