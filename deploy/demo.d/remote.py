"""An object in a process of its own: calls go there, progress and results come back.

One thread a side. The child is spawned, not forked: it shares nothing with the caller.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Progress = Callable[[str, float], None]  # what is being done, share done (0..1)
WIDTH = 24  # of a progress bar, in characters


class RemoteError(RuntimeError):
    """The other process failed; the message carries its traceback."""


class Bar:
    """Shows progress: a bar on a terminal, else a line when something begins."""

    def __init__(self, title: str) -> None:
        self._title, self._start, self._begun = title, time.monotonic(), ""
        self._terminal = sys.stdout.isatty()

    def show(self, text: str, share: float) -> None:
        """Draws the bar again."""
        if self._terminal:
            full = "#" * round(WIDTH * share)
            seconds = time.monotonic() - self._start
            line = f"\r\x1b[K  {self._title} [{full:{WIDTH}}] {seconds:5.1f} s  {text}"
            print(line, end="", flush=True)
        elif text != self._begun and share < 1:
            self._begun = text
            print(f"  {self._title}: {text} ...", flush=True)

    def done(self) -> float:
        """Clears the bar; returns the seconds that it lived."""
        if self._terminal:
            print("\r\x1b[K", end="", flush=True)
        return time.monotonic() - self._start


class Remote:
    """`make(progress, *arguments)` in another process; `call` runs one of its methods there."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make, arguments), name=name, daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid or 0

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Runs the method and waits, showing its progress."""
        bar = Bar(self._name)
        self._pipe.send((method, arguments, named))
        try:
            while True:
                kind, value = self._pipe.recv()
                if kind == "progress":
                    bar.show(*value)
                elif kind == "result":
                    return value
                else:
                    raise RemoteError(f"{self._name}.{method} failed:\n{value}")
        except EOFError:
            raise RemoteError(f"{self._name} died in {method}") from None
        finally:
            bar.done()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    def progress(text: str, share: float) -> None:
        pipe.send(("progress", (text, share)))

    target = None
    while True:
        try:
            method, positional, named = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            target = target or make(progress, *arguments)
            pipe.send(("result", getattr(target, method)(*positional, **named)))
        except Exception:  # noqa: BLE001 - everything is reported to the caller
            pipe.send(("error", traceback.format_exc()))
