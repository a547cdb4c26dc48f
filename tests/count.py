#!/usr/bin/env python3
"""Counts test cases from the XML files that a stage of tests/run left.

  count.py LOGS STAGE            "12 passed, 1 skipped"
  count.py LOGS --failures       what failed, by name, with the first lines that say why
  count.py LOGS --total FAILED   the closing line of tests/run, over all stages

A ctest test that wrote Google Test's XML counts as its cases, any other as one case. A stage that
failed without a failed case (it did not build, or crashed) counts as one failure.
"""

import itertools
import pathlib
import re
import sys
import xml.etree.ElementTree as ET


def count_cases(path):
    """(passed, failed, skipped) of one XML file in JUnit's or Google Test's dialect."""
    passed = failed = skipped = 0
    for case in ET.parse(path).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def gtest_file(folder, case):
    """Where Google Test wrote what was in a test of ctest: its second try counts."""
    second = folder / (case.get("name") + "_1.xml")
    return second if second.exists() else folder / (case.get("name") + ".xml")


def count_ctest(folder):
    """ctest's own file says which executables ran; theirs say what was in each."""
    total = [0, 0, 0]
    for case in ET.parse(folder / "ctest.junit").getroot().iter("testcase"):
        gtest = gtest_file(folder, case)
        broke = case.find("failure") is not None or case.get("status") == "fail"
        if gtest.exists():
            counts = count_cases(gtest)
            if broke and not counts[1]:  # crashed, or a sanitizer spoke at exit
                counts = (counts[0], 1, counts[2])
        elif broke:
            counts = (0, 1, 0)
        else:
            counts = (0, 0, 1) if case.find("skipped") is not None else (1, 0, 0)
        total = [a + b for a, b in zip(total, counts)]
    return tuple(total)


# What a crash or a sanitizer says first; without it the last lines of the output.
SPOKE = re.compile(r"ERROR: |runtime error: |WARNING: ThreadSanitizer|Check failed|terminate called")
LINES = 6  # of each failure


def failed_cases(path):
    """(name, why) of each failed case of one XML file."""
    for case in ET.parse(path).getroot().iter("testcase"):
        said = case.find("failure")
        said = case.find("error") if said is None else said
        if said is not None:
            name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
            yield name, "\n".join(filter(None, (said.get("message"), said.text)))


def why_of(lines):
    """From what a crash or a sanitizer said on; else the end."""
    spoke = [i for i, line in enumerate(lines) if SPOKE.search(line)]
    return "\n".join(lines[spoke[0] if spoke else -LINES :])


def second_tries(folder, log):
    """(name, why) of what failed and then passed (run_ctest repeats it once)."""
    junit = folder / "ctest.junit"
    if not junit.exists() or not log.exists():
        return
    passed = {case.get("name") for case in ET.parse(junit).getroot().iter("testcase")
              if case.find("failure") is None and case.get("status") == "run"}  # fmt: skip
    tries = re.split(r"(?m)^.*Test +#\d+: ", log.read_text(errors="replace"))
    for said in tries[1:]:
        name, _, lines = said.partition(" ")
        if "***" in said.splitlines()[0] and name in passed:
            yield f"{name} failed, and passed at the second try", why_of(lines.splitlines()[1:])


def failures(folder):
    """(name, why) of everything that failed in a stage; an executable that failed without a failed
    case by what it printed."""
    if (folder / "ctest.junit").exists():
        for case in ET.parse(folder / "ctest.junit").getroot().iter("testcase"):
            if case.find("failure") is None and case.get("status") != "fail":
                continue
            gtest = gtest_file(folder, case)
            cases = list(failed_cases(gtest)) if gtest.exists() else []
            if not cases:
                said = (case.findtext("system-out") or "").splitlines()
                cases = [(case.get("name"), why_of(said))]
            yield from cases
    if (folder / "pytest.xml").exists():
        yield from failed_cases(folder / "pytest.xml")


def print_failures(logs):
    for folder in sorted((logs / "xml").glob("*")):
        log = logs / f"{folder.name}.log"
        for name, why in itertools.chain(failures(folder), second_tries(folder, log)):
            lines = [line for line in why.splitlines() if line.strip()]
            print(f"{folder.name}: {name}")
            for line in lines[:LINES]:
                print(f"    {line[:160]}")


def count_stage(logs, stage):
    total = [0, 0, 0]
    folder = logs / "xml" / stage
    parts = []
    if (folder / "ctest.junit").exists():
        parts.append(count_ctest(folder))
    if (folder / "pytest.xml").exists():
        parts.append(count_cases(folder / "pytest.xml"))
    if (logs / f"{stage}.count").exists():
        parts.append(tuple(map(int, (logs / f"{stage}.count").read_text().split())))
    for counts in parts:
        total = [a + b for a, b in zip(total, counts)]
    return tuple(total), bool(parts)


def main(arguments):
    logs = pathlib.Path(arguments[0])
    if arguments[1] == "--failures":
        return print_failures(logs)
    if arguments[1] != "--total":
        (passed, failed, skipped), any_ran = count_stage(logs, arguments[1])
        words = [f"{passed} passed"]
        words += [f"{failed} failed"] if failed else []
        words += [f"{skipped} skipped"] if skipped else []
        print(", ".join(words) if any_ran else "")
        return
    stages = {p.name for p in (logs / "xml").glob("*")} | {p.stem for p in logs.glob("*.count")}
    total = [0, 0, 0]
    for stage in stages:
        total = [a + b for a, b in zip(total, count_stage(logs, stage)[0])]
    total[1] = max(total[1], int(arguments[2]))
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped")


if __name__ == "__main__":
    main(sys.argv[1:])
