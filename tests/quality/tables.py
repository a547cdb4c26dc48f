"""Measures the tables of RESULTS.md: `run TABLE` (see run). What is in a table: settings.py."""

from __future__ import annotations

import argparse
import concurrent.futures
import concurrent.futures.process
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import time
import traceback

import ablations
import attacks
import history
import retrieval
import texts
import theory
from build_folder import REPOSITORY, build_folder
from capture import captured
from measure import CONTINUATION, LONG_PREFIX, PREFIX, TAIL, Bench, Row, Scope, markdown
from served import Setting
from settings import KINDS, PROFILE, PROFILE_POST, TABLES


def _chosen(table: str, only: str) -> list[Setting]:
    return [s for s in TABLES[table]() if re.search(only, s.name)]


def _measure(job: tuple[str, str, str, Scope]) -> Row:
    """One row in a process of its own; what goes wrong is said in the row."""
    table, name, binary, scope = job
    (setting,) = (s for s in TABLES[table]() if s.name == name)
    try:
        return Bench(pathlib.Path(binary)).row(setting, scope)
    except Exception as error:  # whatever it was, the other rows are still wanted
        traceback.print_exc()
        return Row(name, failed=f"{type(error).__name__}: {str(error).splitlines()[0]}")


def measure(table: str, only: str, binary: pathlib.Path, scope: Scope, jobs: int) -> list[Row]:
    """Rows in order; `jobs` processes share them. `only`: those whose name it matches."""
    chosen = _chosen(table, only)
    names = [setting.name for setting in chosen]
    begin = time.monotonic()
    bench = Bench(binary)
    prefix = LONG_PREFIX if table == "long" else PREFIX
    for passage in scope.passages:
        captured(passage, prefix, TAIL + CONTINUATION)
    for passage in sorted({name for one in chosen for name in one.learn_from}):
        captured(passage, PREFIX, TAIL + CONTINUATION)
    for kind in scope.kinds:
        for seed in range(scope.seeds):
            bench.full(kind, seed)
    print(f"captures after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    rows: list[Row] = []
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    while len(rows) < len(names):
        work = [(table, name, str(binary), scope) for name in names[len(rows) :]]
        with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
            for future in [pool.submit(_measure, job) for job in work]:
                try:
                    row = future.result()
                except concurrent.futures.process.BrokenProcessPool:
                    row = Row(names[len(rows)], failed="its process died")
                rows.append(row)
                print(f"{time.monotonic() - begin:5.0f} s  {' | '.join(row.cells())}",
                      file=sys.stderr, flush=True)  # fmt: skip
                if row.failed == "its process died":
                    break  # a new pool for the rest
    return rows


def make_profiles(arguments: list[str]) -> None:
    """The two profiles of the test model, from the tuning passages that profiles are made of."""
    from smollm2 import fetch_gguf

    files = []
    for name in texts.PROFILE_TEXTS:
        path = build_folder() / "texts" / f"{name}.txt"
        path.write_text(texts.passage(name).text())
        files.append(str(path))
    for out, frame in ((PROFILE, "pre"), (PROFILE_POST, "post")):
        command = [sys.executable, "-m", "dynacompress.profile.cli", str(fetch_gguf()), "--text",
                   *files, "--out", str(out), "--frame", frame, "--cache",
                   str(build_folder() / "model"), "--omega-texts", "8", "--omega-tokens", "384",
                   *(["--v-from", str(PROFILE)] if frame == "post" else []), *arguments]  # fmt: skip
        subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/quality/run", description=__doc__)
    parser.add_argument("table", choices=["profile", "attacks", "history", "theory", *TABLES, *ablations.TABLES])
    parser.add_argument("--daemon", type=pathlib.Path,
                        default=REPOSITORY / "build" / "release" / "bin" / "dynacompressd")  # fmt: skip
    parser.add_argument("--split", choices=("tuning", "reporting"), default="reporting")
    parser.add_argument("--passages", type=int, default=99, help="at most this many")
    parser.add_argument("--seeds", type=int, default=5, help="of each retrieval task")
    parser.add_argument("--kinds", nargs="*", help="of retrieval")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 4))
    parser.add_argument("--only", default="", help="rows whose name this expression matches")
    parser.add_argument("--out", type=pathlib.Path, help="folder for TABLE.md and TABLE.json")
    args, rest = parser.parse_known_args()
    if args.table == "profile":
        make_profiles(rest)
        return 0
    if args.table == "history" and not args.out:
        parser.error("history wants --out: its picture is made by plots.py")
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    names = [p.name for p in texts.passages(args.split)][: args.passages]
    kinds = KINDS.get(args.table, retrieval.KINDS) if args.kinds is None else args.kinds
    scope = Scope(tuple(names), args.seeds, tuple(kinds))
    if args.table == "history":
        said = history.measure(args.daemon.resolve(), names[0])
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "history.json").write_text(json.dumps(said))
        return 0
    if args.table == "theory":
        table = theory.measure(args.daemon.resolve(), names)
        print(table)
        return 0
    if args.table in ablations.TABLES:
        kinds = ()
        rows = ablations.measure(args.table, lambda n: bool(re.search(args.only, n)), names)
    elif args.table == "attacks":
        kinds = ()
        rows = attacks.measure(args.daemon.resolve(), args.only)
    else:
        rows = measure(args.table, args.only, args.daemon.resolve(), scope, args.jobs)
    table = markdown(rows, kinds)
    print(table)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{args.table}.md").write_text(table)
        (args.out / f"{args.table}.json").write_text(
            json.dumps({"scope": dataclasses.asdict(scope), "rows": [vars(r) for r in rows]})
        )
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
