"""The whole system on a real model: the demo runs as a user runs it, and keeps what it promises."""

import json
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_demo_keeps_its_promises(tmp_path: pathlib.Path) -> None:
    daemon = shutil.which("dynacompressd") or str(ROOT / "build/release/bin/dynacompressd")
    folder = tmp_path / "demo"
    ran = subprocess.run(
        [sys.executable, str(ROOT / "deploy/demo.d/demo.py"), "--daemon", daemon,
         "--folder", str(folder)],
        capture_output=True, text=True, timeout=1100, check=False,
    )  # fmt: skip
    print(ran.stdout[-6000:], ran.stderr[-3000:])
    assert ran.returncode == 0
    report = json.loads((folder / "demo.json").read_text())
    assert report["failed"] == []
    rows = {row["step"]: row for row in report["rows"]}
    gates = (("budget 4.2x", 4.1, 0.995, 0.006), ("budget 6x", 5.85, 0.985, 0.015))
    for step, ratio, retention, kl in gates:
        row = rows[step]
        assert row["ratio"] >= ratio, step
        assert row["retention"] >= retention, step
        assert row["kl"] <= kl, step
    assert (folder / "demo.png").stat().st_size > 10_000
