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


def test_failures_are_named_with_the_first_words_of_why(tmp_path, capsys):
    stage = tmp_path / "xml" / "asan"
    stage.mkdir(parents=True)
    noise = "\n".join(f"[ OK ] {i}" for i in range(500))
    (stage / "ctest.junit").write_text(
        '<testsuite><testcase name="a" status="fail"><failure/></testcase>'
        f'<testcase name="b" status="fail"><failure/><system-out>{noise}\n'
        f'==1==ERROR: LeakSanitizer\nleak of 8\n{noise}</system-out></testcase>'
        f'<testcase name="c" status="fail"><failure/><system-out>{noise}</system-out></testcase>'
        '</testsuite>')
    (stage / "a.xml").write_text(
        '<testsuites><testsuite><testcase classname="Suite" name="y"><failure message="a.cc:1">'
        'a.cc:1</failure></testcase></testsuite></testsuites>')
    count.print_failures(tmp_path)
    said = capsys.readouterr().out
    assert "asan: Suite.y\n    a.cc:1\n" in said
    assert "asan: b\n    ==1==ERROR: LeakSanitizer\n    leak of 8\n" in said
    assert "asan: c\n    [ OK ] 494\n" in said
    assert len(said.splitlines()) < 25


def test_a_second_try_is_told(tmp_path, capsys):
    stage = tmp_path / "xml" / "asan"
    stage.mkdir(parents=True)
    (stage / "ctest.junit").write_text(
        '<testsuite><testcase name="a" status="run"/><testcase name="b" status="run"/>'
        '</testsuite>')
    (stage / "a.xml").write_text(
        '<testsuites><testsuite><testcase name="x"><failure/></testcase></testsuite></testsuites>')
    (stage / "a_1.xml").write_text(
        '<testsuites><testsuite><testcase name="x" status="run"/></testsuite></testsuites>')
    (tmp_path / "asan.log").write_text(
        "    Start 1: a\n1/2 Test #1: a ....***Failed    0.01 sec\n[ OK ] x\n"
        "==1==ERROR: LeakSanitizer: boom\nDirect leak\n\n    Start 1: a\n"
        "    Test #1: a ....   Passed    0.00 sec\n2/2 Test #2: b ....   Passed    0.01 sec\n")
    assert count.count_stage(tmp_path, "asan") == ((2, 0, 0), True)
    count.print_failures(tmp_path)
    assert capsys.readouterr().out.startswith(
        "asan: a failed, and passed at the second try\n    ==1==ERROR: LeakSanitizer: boom\n")
