"""Client of dynacompressd, the daemon that keeps KV caches compressed.

    client = dynacompress.Client()
    context = client.open_context(spec)
    kv = client.empty((layers, 2, heads, tokens, head_dim), "float16")   # the daemon works in place
    context.put(hashes, kv[:, 0], kv[:, 1])
    with context.lookup(hashes) as lease:
        context.fetch(lease, kv[:, 0, :, : 64 * lease.run], kv[:, 1, :, : 64 * lease.run])
"""

from ._client import ROOT, Client, Context, GpuRegion, Lease, block_hashes
from ._errors import Error
from ._types import ContextSpec, Hit, Layer, Rope

__all__ = [
    "ROOT", "Client", "Context", "ContextSpec", "Error", "GpuRegion", "Hit", "Layer", "Lease", "Rope",
    "block_hashes",
]  # fmt: skip
