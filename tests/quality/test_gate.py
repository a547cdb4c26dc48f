"""The gate: a profile and a learned basis through the real daemon, on KL and on far retrieval."""

import pathlib
import shutil

import pytest

import tables
from build_folder import REPOSITORY
from measure import Scope, status_of

# Two passages of the tuning split and one far task: numbers move by tens of percent from passage
# to passage, so the gates are far looser than the tables.
SCOPE = Scope(("essay", "gitmanual"), seeds=1, kinds=("far 60",))


@pytest.fixture(scope="module")
def binary() -> pathlib.Path:
    found = shutil.which("dynacompressd") or REPOSITORY / "build/release/bin/dynacompressd"
    return pathlib.Path(found)


def test_six_times_smaller_keeps_likelihood_and_far_facts(binary: pathlib.Path) -> None:
    for row in tables.measure("quick", "", binary, SCOPE, jobs=1):
        said = status_of(row)
        print(row.cells())
        assert said["ratio"] >= 5.8, row.name
        assert said["kl"] <= 0.012, row.name
        assert said["retention"] >= 0.985, row.name
        assert said["below"]["far 60"] <= 25, row.name
