"""The demo's parts that need no daemon: processes, metrics page, table, picture."""

import pathlib
import sys
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "deploy" / "demo.d"))
import daemon  # noqa: E402
import picture  # noqa: E402
import remote  # noqa: E402
import table  # noqa: E402

L2_BITS = 1.875  # what a level of target 2 may really have


class Echo:
    """Stands for a worker."""

    def __init__(self, progress: remote.Progress, word: str) -> None:
        self._progress, self._word = progress, word

    def say(self, other: str, loud: bool = False) -> str:
        self._progress("saying", 0.5)
        text = f"{self._word} {other}"
        return text.upper() if loud else text

    def fail(self) -> None:
        raise ValueError("as asked")

    def die(self) -> None:
        sys.exit(3)


def test_calls_go_to_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    echo = remote.Remote("echo", Echo, "hello")
    assert echo.call("say", "world", loud=True) == "HELLO WORLD"
    assert "echo: saying" in capsys.readouterr().out
    with pytest.raises(remote.RemoteError, match="as asked"):
        echo.call("fail")
    assert echo.call("say", "again") == "hello again"
    with pytest.raises(remote.RemoteError, match="died in die"):
        echo.call("die")
    echo.close()


def test_metrics_page() -> None:
    page = '# TYPE a_total counter\na_total 3\nb{tier="host"} 1.5e+03\nbad line x\n'
    assert daemon.parse_metrics(page) == {"a_total": 3.0, 'b{tier="host"}': 1500.0}


def test_addresses_as_the_kernel_writes_them() -> None:
    assert daemon.readable_address("0100007F:24F8") == "127.0.0.1:9464"
    assert daemon.readable_address("00000000000000000000000001000000:0016") == "::1:22"


def _block(index: int) -> dict[str, Any]:
    """One inspected block of two layers with two kv heads."""
    row = {
        "head_begin": 0,
        "kv_heads": 2,
        "k_kind": [3, 16 + 7],
        "k_bits": [8.0, L2_BITS],
        "v_kind": [24, 18],
        "v_bits": [8.0, 2.0],
        "importance": [1.0] * 8 + [4.0] * 8,
    }
    return {"index": index, "rows": [{"layer": layer, **row} for layer in range(2)]}


def test_kinds_have_names() -> None:
    assert table.kind_name(4, 4.0, True) == "plain4"
    assert table.kind_name(16, 0.0, True) == "L0" and table.kind_name(16, 0.0, False) == "mean"
    assert table.shares([_block(0)], "k") == {"plain8": 0.5, "L2": 0.5}
    assert table.shares([_block(0)], "v") == {"8": 0.5, "2": 0.5}


def test_a_row_lines_up_with_the_header() -> None:
    row = table.Row(
        step="budget 4.2x", raw=70_778_880, stored=16_851_000, basis=1_500_000,
        k_kinds={"L2": 1.0}, v_kinds={"4": 0.7, "2": 0.3}, nmse=0.01, ppl_full=10.0,
        ppl_served=10.1, kl=0.003, top1=0.98, put_speed=1.0, get_speed=2.0,
        hits={"host": 40, "spill": 8, "bank": 0, "miss": 0},
    )  # fmt: skip
    line, header = table.line(row), table.header()
    assert row.ratio == pytest.approx(4.2, abs=0.01) and row.retention == pytest.approx(
        0.990, abs=1e-3
    )
    assert line.index("4.20") + 4 == header.index("ratio") + 5
    assert "4:70% 2:30%" in line and line.endswith("host:40 spill:8")


def test_picture(tmp_path: pathlib.Path) -> None:
    grids = picture.grids([_block(0), _block(1)], layers=2, heads=2)
    np.testing.assert_array_equal(grids["k"][:, 0], np.float32([8, L2_BITS, 8, L2_BITS]))
    np.testing.assert_array_equal(grids["log2 r"][:, 1], [0, 2, 0, 2])
    pytest.importorskip("matplotlib")
    picture.draw(tmp_path / "demo.png", "title", 2, 2, {"budget 4.2x": grids})
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
