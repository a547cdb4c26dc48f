"""Where downloaded packages and everything derived from them are kept (never in the repository).

One thread; several processes may share the folder, since every file is written beside and renamed.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def build_folder() -> pathlib.Path:
    """The folder named by DYNA_QUALITY_BUILD, else build/quality in the repository."""
    folder = pathlib.Path(os.environ.get("DYNA_QUALITY_BUILD", REPOSITORY / "build" / "quality"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def make_once(path: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Calls `make(temporary path)` unless `path` exists, then renames: no half files."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as scratch:
        made = pathlib.Path(scratch) / path.name
        make(made)
        try:
            os.rename(made, path)
        except OSError:
            if not path.exists():  # another process was first: its result is as good
                raise
    return path
