"""The daemon as the demo runs it: its defaults, in folders and on ports of its own."""

from __future__ import annotations

import ipaddress
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import urllib.request

START_SECONDS = 30.0
STOP_SECONDS = 30.0
LISTEN = "0A"  # of the kernel's socket states


class Daemon:
    """One dynacompressd process and its folder. Start it again after `kill` or `stop`."""

    def __init__(
        self,
        binary: pathlib.Path,
        folder: pathlib.Path,
        overrides: str = "",
        backend: str = "auto",
        server: str = "",  # more lines of [server]
    ) -> None:
        folder.mkdir(parents=True)
        self.socket = folder / "dynacompressd.sock"
        self._binary, self._folder = binary, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()
        self._config = folder / "dynacompressd.toml"
        self._config.write_text(
            f'[server]\nsocket = "{self.socket}"\nstate_dir = "{folder / "state"}"\n'
            f'backend = "{backend}"\n{server}'
            f"[admin]\nport = {self._port}\n{overrides}"
        )

    @property
    def log(self) -> pathlib.Path:
        """What it said, of all its lives."""
        return self._folder / "dynacompressd.log"

    def start(self) -> float:
        """Starts it; returns the seconds until it was ready."""
        begin = time.monotonic()
        with self.log.open("ab") as log:
            command = [str(self._binary), "--config", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon exited at once:\n{self.tail()}")
            try:
                self.page("readyz")
                return time.monotonic() - begin
            except OSError:
                if time.monotonic() - begin > START_SECONDS:
                    raise RuntimeError(f"the daemon is not ready:\n{self.tail()}") from None
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it drains."""
        self._end(signal.SIGTERM)

    def page(self, name: str) -> str:
        """A page of the admin server; OSError when it does not answer 200."""
        with urllib.request.urlopen(f"http://{self.admin_address}/{name}", timeout=5) as reply:
            text: str = reply.read().decode()
            return text

    def metrics(self) -> dict[str, float]:
        """The scraped samples, by name with labels."""
        return parse_metrics(self.page("metrics"))

    def status(self) -> dict[str, object]:
        """/status."""
        status: dict[str, object] = json.loads(self.page("status"))
        return status

    def listening(self) -> list[str]:
        """Addresses 'IP:port' on which its process accepts TCP connections."""
        if self._process is None:
            return []
        proc = pathlib.Path(f"/proc/{self._process.pid}")
        own = {os.readlink(fd) for fd in (proc / "fd").iterdir()}
        found = []
        for family in ("tcp", "tcp6"):
            for row in (proc / "net" / family).read_text().splitlines()[1:]:
                _, local, _, state, *rest = row.split()
                if state == LISTEN and f"socket:[{rest[5]}]" in own:
                    found.append(readable_address(local))
        return found

    @property
    def admin_address(self) -> str:
        """Where its metrics are."""
        return f"127.0.0.1:{self._port}"

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def parse_metrics(text: str) -> dict[str, float]:
    """Samples of a Prometheus text page, by 'name{labels}'."""
    samples = {}
    for line in text.splitlines():
        found = re.fullmatch(r"([a-zA-Z_:][\w:]*(?:\{.*\})?) (\S+)", line)
        if found:
            samples[found[1]] = float(found[2])
    return samples


def readable_address(local: str) -> str:
    """'IP:port' of the kernel's 'hex:hex' (each 32-bit word of the address in host order)."""
    address, port = local.split(":")
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    return f"{ipaddress.ip_address(b''.join(words))}:{int(port, 16)}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
