"""K and V in memory of a GPU: torch's, or what only says __cuda_array_interface__."""

from __future__ import annotations

import ctypes
from typing import Any

import dynacompress
import numpy as np
import pytest

import kv
from daemon import Daemon


def has_driver() -> bool:
    """Whether this machine has NVIDIA's driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class Claimed:
    """An array that says that it is on a GPU."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str = "<f2") -> None:
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "data": (address, False), "version": 3,
        }  # fmt: skip


SHAPE = (kv.LAYERS, kv.HEADS, kv.BLOCK, kv.DIM)


@pytest.mark.skipif(has_driver(), reason="there is a driver")
def test_without_a_driver_it_is_a_typed_error(client: dynacompress.Client) -> None:
    context = client.open_context(kv.spec("no-driver"))
    array = Claimed(1 << 40, SHAPE)
    with pytest.raises(dynacompress.Error, match="no CUDA driver") as caught:
        context.put(kv.hashes("no-driver", 1), array, array)
    assert caught.value.code == "UNSUPPORTED"
    with pytest.raises(dynacompress.Error, match="no CUDA driver"):
        client.register_gpu(array)


def test_what_is_no_array_is_named(client: dynacompress.Client) -> None:
    context = client.open_context(kv.spec("no-array"))
    host, names = np.zeros(SHAPE, np.float16), kv.hashes("no-array", 1)
    with pytest.raises(TypeError, match="^v: an array with DLPack"):
        context.put(names, host, [1, 2, 3])
    with pytest.raises(dynacompress.Error, match="one is on a GPU"):
        context.put(names, host, Claimed(1 << 40, SHAPE))
    with pytest.raises(dynacompress.Error, match="elements of type >f2"):
        context.put(names, Claimed(1 << 40, SHAPE, ">f2"), host)
    with pytest.raises(dynacompress.Error, match="not on a GPU"):
        client.register_gpu(host)
    with pytest.raises(TypeError, match="^k: an array"):
        host.flags.writeable = False
        with context.lookup(names) as lease:
            context.fetch(lease, host, host)


@pytest.fixture
def torch() -> Any:
    """torch with a GPU."""
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return module


@pytest.mark.parametrize("registered", [False, True])
def test_torch_tensors_come_back_bit_for_bit(
    daemon: Daemon, client: dynacompress.Client, torch: Any, registered: bool
) -> None:
    if daemon.status()["backend"]["name"] != "cuda":
        pytest.skip("the daemon uses no GPU")
    context = client.open_context(kv.spec(f"torch-{registered}"))
    names = kv.hashes("torch", 4)
    want = torch.from_numpy(kv.values(11, 4)).cuda()
    got = torch.zeros_like(want)
    regions = [client.register_gpu(t) for t in (want, got) if registered]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        twice = want.mul_(2)  # what the put must wait for
    put = context.put(names, twice[:, 0], twice[:, 1], quality="exact", stream=stream)
    assert {status for status, _, _ in put} == {"OK"}
    with context.lookup(names) as lease:
        context.fetch(lease, got[:, 0], got[:, 1])
    assert torch.equal(got.view(torch.int16), want.view(torch.int16))
    assert float(got.abs().max()) > 0
    for region in regions:
        region.release()
        region.release()
        assert region.size == 0
