"""What deploy/ ships must agree with the code."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]


def metric_names():
    table = (ROOT / "daemon/admin/metrics.cc").read_text()
    names = re.findall(r'(?:Gauge|Counter|Family)\(\s*(?:k\w+,\s*)?"(\w+)"', table)
    assert len(names) > 70
    return {"dynacompress_" + name for name in names}


def test_alerts_name_metrics_that_exist():
    text = (ROOT / "deploy/alerts.yml").read_text()
    used = set(re.findall(r"\bdynacompress_\w+", text))
    assert len(used) > 8
    known = metric_names()
    known |= {name + "_bucket" for name in known}
    assert used <= known, used - known


def test_packages_are_named_once():
    names = []
    for file in ("deploy/packages.txt", "tests/packages.txt"):
        for line in (ROOT / file).read_text().splitlines():
            name = line.split("#")[0].strip()
            if name:
                assert re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name), name
                names.append(name)
    assert len(names) == len(set(names)), sorted(names)


def test_presets_are_complete():
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    names = {preset["name"] for preset in presets["configurePresets"]}
    assert {"dev", "release", "asan", "tsan", "tidy", "fuzz"} <= names


def test_the_unit_stops_later_than_the_daemon_drains():
    unit = (ROOT / "deploy/dynacompressd.service").read_text()
    config = (ROOT / "deploy/dynacompressd.toml").read_text()
    stop = int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M).group(1))
    drain = int(re.search(r"^drain_ms = (\d+)$", config, re.M).group(1))
    assert stop * 1000 > drain
