"""dynacompressd as these tests run it: a real process in a folder of its own."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from typing import Any

START_SECONDS = 60.0
STOP_SECONDS = 60.0
ROOT = pathlib.Path(__file__).resolve().parents[2]
READY = re.compile(rb"ready: socket \S+ .* admin http://[\d.]+:(\d+)")
PR_SET_PDEATHSIG = 1


def binary() -> str:
    """The daemon on PATH, else the release build's."""
    found = shutil.which("dynacompressd") or ROOT / "build" / "release" / "bin" / "dynacompressd"
    if not pathlib.Path(found).exists():
        raise FileNotFoundError(f"no dynacompressd on PATH or at {found}: build it first")
    return str(found)


class Daemon:
    """One daemon and its folder; start it again after `end`. `tables`: TOML after the defaults."""

    def __init__(self, folder: pathlib.Path, tables: str = "", arena: str = "64 MiB") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.socket = str(folder / "d.sock")
        self.state_dir = folder / "state"
        self.log = folder / "log"
        self.config = folder / "config.toml"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._arena = arena
        self.configure(tables)

    def configure(self, tables: str) -> None:
        """Writes the configuration; `[arena]` and `[admin]` are taken."""
        self.config.write_text(
            f'[server]\nsocket = "{self.socket}"\nstate_dir = "{self.state_dir}"\n'
            f'codec_threads = 2\n[arena]\nbytes = "{self._arena}"\nprefault = false\n'
            f"[admin]\nport = 0\n{tables}"
        )

    def start(self) -> Daemon:
        """Returns when it serves."""
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary(), "--config", str(self.config)], stdout=log, stderr=log,
                preexec_fn=_die_with_parent,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while True:
            found = READY.search(self.log.read_bytes()[before:])
            if found:
                self.port = int(found[1])
                return self
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the daemon did not start:\n{self.tail()}")
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def send(self, what: signal.Signals) -> None:
        """A signal, without waiting."""
        assert self._process is not None
        self._process.send_signal(what)

    def wait(self) -> int:
        """Its exit status."""
        assert self._process is not None
        return self._process.wait(STOP_SECONDS)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Signals it and returns its exit status."""
        self.send(how)
        return self.wait()

    def cleanup(self) -> None:
        """For fixtures: gone, whatever state it is in."""
        if self.running:
            self.end(signal.SIGKILL)

    def page(self, name: str) -> str:
        """A page of the admin server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{name}", timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    def status(self) -> dict[str, Any]:
        """/status."""
        status: dict[str, Any] = json.loads(self.page("status"))
        return status

    def settled(self, seconds: float = 20.0, **clients: int) -> dict[str, Any]:
        """/status as soon as its `clients` have these values; fails when they never do."""
        end = time.monotonic() + seconds
        while True:
            status = self.status()
            if all(status["clients"][name] == value for name, value in clients.items()):
                return status
            assert time.monotonic() < end, f"wanted {clients}, is {status['clients']}"
            time.sleep(0.02)

    def cpu_ticks(self) -> int:
        """User and system time of all its threads, in clock ticks."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def tail(self, lines: int = 30) -> str:
        """The end of what it said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)  # a Ctrl-C at the tests is not the daemon's
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a limit on file sizes is an error of write()
