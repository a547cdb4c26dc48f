"""The tables of RESULTS.md: settings by table. `run TABLE` measures one (see run).

Reporting passages only report; the profiles and the learned bases come from tuning passages.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable

import retrieval
import texts
from build_folder import REPOSITORY, build_folder
from capture import Capture, captured
from measure import CONTINUATION, PREFIX, TAIL, Bench, Row, Scope, markdown, profile_of
from served import Setting

HERE = pathlib.Path(__file__).resolve().parent
PROFILE, PROFILE_POST = HERE / "smollm2-135m.dynf", HERE / "smollm2-135m-post.dynf"
EIGHT = (*texts.BASIS_PROMPTS, "policy", "gitmanual", "http2", "countries")


def _prompts(names: tuple[str, ...] = texts.BASIS_PROMPTS) -> tuple[Capture, ...]:
    return tuple(captured(name, PREFIX, TAIL + CONTINUATION) for name in names)


def _main() -> list[Setting]:
    profile, post = profile_of(PROFILE), profile_of(PROFILE_POST)
    four = _prompts()
    rows = [
        Setting("profile 4.2", 4.2, profile, quality="small"),
        Setting("profile 6.0", 6.0, profile, quality="small"),
        Setting("profile 8.0", 8.0, profile, quality="small"),
        Setting("profile 10", 10.0, profile, quality="small"),
        Setting("profile post 6.0", 6.0, post, quality="small"),
        Setting("learned 4.4", 4.4, learn_from=four),
        Setting("learned 6.0", 6.0, learn_from=four),
        Setting("learned 8.0", 8.0, learn_from=four, quality="small"),
        Setting("learned keys only 6.0", 6.0, learn_from=four, keys_only=True, report=False),
    ]
    filling = [dataclasses.replace(r, name=r.name + ", filling", steady=False) for r in rows]
    return rows + filling


def _learning() -> list[Setting]:
    profile = profile_of(PROFILE)
    of = [Setting(f"learned from {n}", 6.0, learn_from=_prompts(EIGHT[:n])) for n in (1, 2, 4, 8)]
    of += [
        Setting(f"learned from {name} only", 6.0, learn_from=_prompts((name,)))
        for name in ("tarfile", "wget", "countries")
    ]
    kinds = _prompts(("truetype",)) + _prompts(("essay", "essay", "faq", "faq"))
    return [*of, Setting("code, then prose", 6.0, learn_from=kinds), Setting("profile", 6.0, profile)]


def _hedge() -> list[Setting]:
    profile = profile_of(PROFILE)
    rows = []
    for ratio, quality in ((6.0, "balanced"), (8.0, "small")):
        for hedge in (0.0, 0.25, 0.5, 0.75, 1.0):
            toml = f"[policy]\nhedge = {hedge}\n"
            name = f"hedge {hedge:g}, {ratio:g} x"
            rows.append(Setting(name, ratio, profile, config=toml, quality=quality))
        for gamma in (0.25, 1.0):
            toml = f"[policy]\ngamma = {gamma}\n"
            name = f"gamma {gamma:g}, {ratio:g} x"
            rows.append(Setting(name, ratio, profile, config=toml, quality=quality))
    return rows


def _half_life() -> list[Setting]:
    profile = profile_of(PROFILE)
    return [
        Setting(f"half-life {n}", 6.0, profile, config=f"[policy]\nhalf_life_tokens = {n}\n")
        for n in (64, 512, 4096, 65536)
    ]


# Kept rows at 16 bits and the open tail make 4.2 x: keep = (3136 / 4.2 - 64) / 3072.
KEEP = 0.2222
# expected_attention and kvdistill score in the worker, which this harness does not do.
DROPPING = ("snapkv", "fastkv", "dynamickv", "h2o", "keydiff", "streamingllm", "random")


def _policies() -> list[Setting]:
    four = _prompts()
    rows = [
        Setting("dynacompress, profile", 4.2, profile_of(PROFILE)),
        Setting("dynacompress, learned", 4.2, learn_from=four),
        Setting("full", 0, config='[policy]\nname = "full"\n'),
    ]
    for k_bits, v_bits in ((4, 4), (2, 4), (2, 2)):
        toml = f'[policy]\nname = "uniform"\nuniform_k_bits = {k_bits}\nuniform_v_bits = {v_bits}\n'
        rows.append(Setting(f"uniform K{k_bits}V{v_bits}", 0, learn_from=four, config=toml))
    for name in DROPPING:
        toml = f'[policy]\nname = "{name}"\nkeep = {KEEP}\n'
        rows.append(Setting(name, 0, config=toml, quality="small", drops=True))
    for name in ("printed", "printed_corrected"):
        toml = f'[policy]\nname = "{name}"\n'
        rows.append(
            Setting(name, 0, learn_from=four, config=toml, quality="small", drops=False)
        )
    return rows


def _quick() -> list[Setting]:
    """Two rows, for a first look."""
    profile = profile_of(PROFILE)
    return [
        Setting("profile 6.0", 6.0, profile),
        Setting("learned 6.0", 6.0, learn_from=_prompts(("essay",))),
    ]


TABLES: dict[str, Callable[[], list[Setting]]] = {
    "main": _main,
    "learning": _learning,
    "hedge": _hedge,
    "half-life": _half_life,
    "policies": _policies,
    "quick": _quick,
}


def _chosen(table: str, only: str) -> list[Setting]:
    return [s for s in TABLES[table]() if re.search(only, s.name)]


def _measure(job: tuple[str, str, str, Scope]) -> Row:
    table, name, binary, scope = job
    (setting,) = (s for s in TABLES[table]() if s.name == name)
    return Bench(pathlib.Path(binary)).row(setting, scope)


def measure(table: str, only: str, binary: pathlib.Path, scope: Scope, jobs: int) -> list[Row]:
    """Rows in order; `jobs` processes share them. `only`: those whose name it matches."""
    names = [setting.name for setting in _chosen(table, only)]
    begin = time.monotonic()
    bench = Bench(binary)
    for passage in scope.passages:
        captured(passage, PREFIX, TAIL + CONTINUATION)
    for kind in scope.kinds:
        for seed in range(scope.seeds):
            bench.full(kind, seed)
    print(f"captures after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    work = [(table, name, str(binary), scope) for name in names]
    rows = []
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        for row in pool.map(_measure, work):
            print(f"{time.monotonic() - begin:5.0f} s  {' | '.join(row.cells())}", file=sys.stderr,
                  flush=True)  # fmt: skip
            rows.append(row)
    return rows


def make_profiles(arguments: list[str]) -> None:
    """The two profiles of the test model, from the tuning passages that bases are made of."""
    from smollm2 import fetch_gguf

    files = []
    for name in texts.BASIS_PROMPTS:
        path = build_folder() / "texts" / f"{name}.txt"
        path.write_text(texts.passage(name).text())
        files.append(str(path))
    for out, frame in ((PROFILE, "pre"), (PROFILE_POST, "post")):
        command = [sys.executable, "-m", "dynacompress.profile.cli", str(fetch_gguf()), "--text",
                   *files, "--out", str(out), "--frame", frame, "--cache",
                   str(build_folder() / "model"), *arguments]  # fmt: skip
        subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/quality/run", description=__doc__)
    parser.add_argument("table", choices=["profile", *TABLES])
    parser.add_argument("--daemon", type=pathlib.Path,
                        default=REPOSITORY / "build" / "release" / "bin" / "dynacompressd")  # fmt: skip
    parser.add_argument("--split", choices=("tuning", "reporting"), default="reporting")
    parser.add_argument("--passages", type=int, default=99, help="at most this many")
    parser.add_argument("--seeds", type=int, default=5, help="of each retrieval task")
    parser.add_argument("--kinds", nargs="*", default=list(retrieval.KINDS))
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 4))
    parser.add_argument("--only", default="", help="rows whose name this expression matches")
    parser.add_argument("--out", type=pathlib.Path, help="folder for TABLE.md and TABLE.json")
    args, rest = parser.parse_known_args()
    if args.table == "profile":
        make_profiles(rest)
        return 0
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    names = [p.name for p in texts.passages(args.split)][: args.passages]
    scope = Scope(tuple(names), args.seeds, tuple(args.kinds))
    rows = measure(args.table, args.only, args.daemon.resolve(), scope, args.jobs)
    table = markdown(rows, args.kinds)
    print(table)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{args.table}.md").write_text(table)
        (args.out / f"{args.table}.json").write_text(
            json.dumps({"scope": dataclasses.asdict(scope), "rows": [vars(r) for r in rows]})
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
