"""tests/count.py must not lose a failure."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import count  # noqa: E402


def test_a_crash_after_the_last_case_is_a_failure(tmp_path):
    stage = tmp_path / "xml" / "unit"
    stage.mkdir(parents=True)
    (stage / "ctest.junit").write_text(
        '<testsuite><testcase name="a" status="run"/><testcase name="b" status="fail">'
        '<failure/></testcase><testcase name="c" status="fail"><failure/></testcase></testsuite>')
    (stage / "a.xml").write_text(
        '<testsuites><testsuite><testcase name="x" status="run"/><testcase name="y"><failure/>'
        '</testcase><testcase name="z"><skipped/></testcase></testsuite></testsuites>')
    (stage / "b.xml").write_text(
        '<testsuites><testsuite><testcase name="x" status="run"/></testsuite></testsuites>')
    assert count.count_stage(tmp_path, "unit") == ((2, 3, 1), True)


def test_a_stage_that_left_nothing_counts_nothing(tmp_path):
    assert count.count_stage(tmp_path, "build") == ((0, 0, 0), False)
