#!/usr/bin/env python3
"""Checks every file of the project against tests/lint/rules.py, clang-format and a compiler.

  lint.py                all tracked files (and new ones that git does not ignore)
  lint.py --fix          the same; formats what is not formatted
  lint.py PATH...        these files or folders only

Headers are compiled alone; one that passed is not compiled again until it, or a header of the
project that it includes, changes (build/lint-cache).
"""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import subprocess
import sys

import rules

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "lint-cache"
FORMATTED = (".h", ".cc", ".cu", ".cuh")
BINARY = (".dynf", ".png", ".bin", ".gz", ".npz", ".npy")


def list_files(paths):
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "--"] + paths, cwd=ROOT,
                         check=True, capture_output=True, text=True).stdout
    return sorted({line for line in out.splitlines() if (ROOT / line).is_file()})


def check_rules(files):
    for path in files:
        if path.endswith(BINARY) or "/corpus/" in path or path == "LICENSE":
            continue
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        for rule in rules.RULES:
            for number, message in rule(path, text):
                yield f"{path}:{number}: {message} [{rule.__name__}]"


def check_format(files, fix):
    sources = [path for path in files if path.endswith(FORMATTED)]
    if not sources:
        return
    command = ["clang-format-14", "-i"] if fix else ["clang-format-14", "--dry-run"]
    run = subprocess.run(command + sources, cwd=ROOT, capture_output=True, text=True)
    wrong = {line.split(":")[0] for line in run.stderr.splitlines() if "warning:" in line}
    if run.returncode:
        yield f"clang-format-14: {run.stderr.strip() or run.returncode}"
    for path in sorted(wrong):
        yield f"{path}:1: not formatted: tests/lint/lint.py --fix [format]"


def read_closure(path, seen):
    """The header and every header of the project below it, for the cache's key."""
    if path in seen or not (ROOT / path).is_file():
        return
    seen[path] = (ROOT / path).read_bytes()
    for _, quote, name in rules.includes(seen[path].decode(errors="replace")):
        if quote == '"':
            read_closure(name, seen)


def compile_header(path, flags):
    closure = {}
    read_closure(path, closure)
    digest = hashlib.sha256(repr((flags, sorted(closure.items()))).encode()).hexdigest()
    mark = CACHE / digest
    if mark.exists():
        return None
    run = subprocess.run(["g++", "-fsyntax-only", "-x", "c++", *flags, "-"], cwd=ROOT, text=True,
                         input=f'#include "{path}"\n', capture_output=True)
    if run.returncode == 0:
        mark.touch()
        return None
    error = next((x for x in run.stderr.splitlines() if "error" in x), run.stderr)
    return f"{path}:1: does not compile alone: {error} [self-contained]"


def check_headers(files):
    CACHE.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Wshadow", "-I.", "-DFMT_SHARED"]
    # Per-target headers of Highway are included several times inside another file, and client/python
    # needs Python's own.
    headers = [path for path in files if path.endswith(".h") and "client/python" not in path and
               not path.endswith("-inl.h")]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for message in pool.map(lambda path: compile_header(path, flags), headers):
            if message:
                yield message


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--fix", action="store_true")
    parser.add_argument("--quick", action="store_true", help="compile no headers")
    arguments = parser.parse_args()
    files = list_files(arguments.paths)
    problems = list(check_rules(files)) + list(check_format(files, arguments.fix))
    if not arguments.quick:
        problems += check_headers(files)
    print("\n".join(problems) if problems else f"lint: {len(files)} files, no problem")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
