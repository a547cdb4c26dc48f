"""dynacompress-profile (`dynacompress profile`): makes a profile of a model, or shows one."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
from typing import Any

from .. import Error, _core
from .make import Options, make_profile
from .model import open_model
from .profile_file import parse, serialise


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dynacompress profile",
        description="Makes a profile: the basis in which K of a model is coded, and how much each"
        " head minds an error. A worker opens its context with the file.",
    )
    parser.add_argument("model", nargs="?", type=pathlib.Path,
                        help="a GGUF file, or a Hugging Face folder (needs torch and transformers)")  # fmt: skip
    parser.add_argument("--text", nargs="+", type=pathlib.Path, default=[],
                        help="UTF-8 text files; several kinds of text are better than one")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, help="the file to write; FILE.json beside it"
                        " says what it was measured on")  # fmt: skip
    parser.add_argument("--basis-only", action="store_true", help="no sensitivities: seconds")
    parser.add_argument("--frame", choices=("pre", "post"), default="pre",
                        help="post: for attention over tiles in place")  # fmt: skip
    parser.add_argument("--keys-only", action="store_true", help="a basis that saw no query")
    parser.add_argument("--tokens", type=int, default=3072, help="of each text, for the basis")
    parser.add_argument("--omega-texts", type=int, default=2, help="texts that measure sensitivities")
    parser.add_argument("--omega-prefix", type=int, default=2048, help="tokens of their prefix")
    parser.add_argument("--omega-tokens", type=int, default=256, help="tokens predicted behind it")
    parser.add_argument("--v-from", type=pathlib.Path, metavar="FILE",
                        help="a profile of this model, of either frame: V's sensitivities are its, and"
                        " only K's are measured (half the time)")  # fmt: skip
    parser.add_argument("--name", default="", help="of the context (default: the model's own)")
    parser.add_argument("--revision", default="", help="of the context (default: of the weights)")
    parser.add_argument("--dtype", default="", choices=("", "f16", "bf16", "f32"),
                        help="of K and V in the worker (default: f16 for GGUF, else the folder's)")  # fmt: skip
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--cache", type=pathlib.Path, default=_default_cache(),
                        help="folder for dequantised weights (default: %(default)s)")  # fmt: skip
    parser.add_argument("--show", type=pathlib.Path, metavar="FILE", help="print what a profile says")
    parser.add_argument("--picture", type=pathlib.Path, metavar="PNG",
                        help="with --show: spectra, widths and sensitivities (needs matplotlib)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _default_cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "dynacompress" / "models"


class _Bar:
    """Progress on standard error: a bar on a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()

    def __call__(self, what: str, share: float) -> None:
        seconds = time.monotonic() - self._begin
        if sys.stderr.isatty():
            print(f"\r\x1b[K[{'#' * round(24 * share):24}] {seconds:5.1f} s  {what}", end="",
                  file=sys.stderr, flush=True)  # fmt: skip
        elif time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            print(f"{share:4.0%} {seconds:5.0f} s  {what}", file=sys.stderr, flush=True)

    def done(self) -> float:
        """Ends the bar; returns seconds."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        return time.monotonic() - self._begin


def _make(args: argparse.Namespace) -> dict[str, Any]:
    if not args.text or args.out is None:
        raise ValueError("give --text FILE... and --out FILE")
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in args.text]
    bar = _Bar()
    bar(f"opening {args.model}", 0)
    model = open_model(args.model, args.cache, name=args.name, revision=args.revision,
                       dtype=args.dtype, device=args.device)  # fmt: skip
    options = Options(
        post=args.frame == "post", keys_only=args.keys_only, tokens=args.tokens,
        omega_texts=0 if args.basis_only else args.omega_texts, omega_prefix=args.omega_prefix,
        omega_continuation=args.omega_tokens,
    )  # fmt: skip
    v_from = parse(args.v_from.read_bytes()) if args.v_from else None
    data = serialise(make_profile(model, texts, options, bar, v_from))
    args.out.write_bytes(data)
    said = {
        "profile": args.out.name, "bytes": len(data), "fingerprint": _core.fingerprint(model.spec),
        "model": model.spec.model, "revision": model.spec.revision, "dtype": model.spec.dtype,
        "weights": model.digest, "options": dataclasses.asdict(options),
        "v_from": args.v_from.name if args.v_from else None,
        "texts": [
            {"file": path.name, "sha256": hashlib.sha256(text.encode()).hexdigest()[:16],
             "tokens": min(len(model.encode(text)), args.tokens)}
            for path, text in zip(args.text, texts)
        ],
        "seconds": round(bar.done(), 1),
    }  # fmt: skip
    args.out.with_name(args.out.name + ".json").write_text(json.dumps(said, indent=1) + "\n")
    return said


def _show(args: argparse.Namespace) -> dict[str, Any]:
    profile = parse(args.show.read_bytes())
    layers = []
    for index, basis in enumerate(profile.bases):
        row: dict[str, Any] = {"layer": index}
        if basis:
            facts = _core.basis_facts(basis)
            row |= {key: facts[key] for key in ("frame", "run", "tokens", "queries")}
            row["targets"] = facts["targets"]
            row["heads"] = facts["heads"]
        if profile.cells:
            row["omega_k"] = [cell.omega_k for cell in profile.cells[index]]
            row["omega_v"] = [cell.omega_v for cell in profile.cells[index]]
        layers.append(row)
    if args.picture is not None:
        from .picture import draw

        draw(args.picture, args.show.name, layers)
    return {"fingerprint": profile.fingerprint, "has_omega": bool(profile.cells), "layers": layers}


def _print_made(said: dict[str, Any]) -> None:
    print(f"{said['profile']}: {said['bytes']:,} bytes for context {said['fingerprint']:016x}")
    print(f"model {said['model']} revision {said['revision']}, K and V in {said['dtype']}")
    for text in said["texts"]:
        print(f"  from {text['file']}: {text['tokens']:,} tokens")
    print(f"{said['seconds']} s")


def _print_shown(said: dict[str, Any]) -> None:
    print(f"context {said['fingerprint']:016x}; relative error of K at L2, omega of K and V, by head")
    for row in said["layers"]:
        line = f"layer {row['layer']:3}"
        if "heads" in row:
            at = max(i for i, target in enumerate(row["targets"]) if target <= 2)
            errors = (f"{head['relative_error'][at]:.4f}" for head in row["heads"])
            line += f"  {row['frame']:4}  {' '.join(errors)}"
        if "omega_k" in row:
            line += f"  K {' '.join(f'{x:.4f}' for x in row['omega_k'])}"
            line += f"  V {' '.join(f'{x:.4f}' for x in row['omega_v'])}"
        print(line)


def main() -> int:
    """Exit codes: 0 done, 1 failed, 2 usage."""
    parser = _arguments()
    args = parser.parse_args()
    if (args.model is None) == (args.show is None):
        parser.error("give a model to make a profile of, or --show FILE")
    try:
        said = _show(args) if args.show else _make(args)
    except (OSError, ValueError, ImportError, Error) as error:
        print(f"dynacompress profile: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(said))
    elif args.show:
        _print_shown(said)
    else:
        _print_made(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
