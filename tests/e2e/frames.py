"""A client of its own: frames from this file, control from flatc and the released schema.

It shares no code with the project's client, so a misreading of design 7 shows on one side only,
and it can say what that client never would.
"""

from __future__ import annotations

import array
import functools
import json
import pathlib
import socket
import struct
import subprocess
import tempfile
from typing import Any

SCHEMA = pathlib.Path(__file__).resolve().parents[2] / "schemas" / "wire.fbs"
MAGIC, VERSION = 0x4D465944, 1
HEADER = struct.Struct("<IBBHQ16sIQIIQI")  # 64 bytes, the checksum last
TYPES = {
    "Hello": 1, "OpenContext": 4, "RegisterRegion": 6, "DeregisterRegion": 8, "Lookup": 9,
    "ReleaseLease": 11, "Put": 12, "Fetch": 14, "Report": 16, "Delete": 17, "Query": 26,
}  # fmt: skip
STATUSES = [
    "OK", "EXISTS", "MISS", "PENDING", "RETRY", "QUOTA", "TOO_LARGE", "INVALID", "UNAUTHENTICATED",
    "UNSUPPORTED", "DEADLINE", "CANCELLED", "IN_DOUBT", "LEASE_LOST", "CONTEXT_UNKNOWN", "INTERNAL",
]  # fmt: skip


def crc32c(data: bytes) -> int:
    """Castagnoli, reflected, bit by bit: headers are short."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def header(
    type_: int, control: int, payload: int = 0, *, token: bytes = bytes(16), request: int = 1,
    magic: int = MAGIC, version: int = VERSION, flags: int = 0, deadline_ms: int = 60_000,
) -> bytes:  # fmt: skip
    """A sealed header that declares these lengths."""
    open_ = HEADER.pack(
        magic, version, type_, flags, request, token, control, payload, deadline_ms, 0, 0, 0
    )
    return open_[:60] + struct.pack("<I", crc32c(open_[:60]))


@functools.lru_cache(maxsize=256)
def _pack(text: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "m.json"
        source.write_text(text.replace("NaN", "nan").replace("Infinity", "inf"))
        subprocess.run(["flatc", "-b", "-o", folder, str(SCHEMA), str(source)], check=True)
        return source.with_suffix(".bin").read_bytes()


def message(name: str, protocol: int = VERSION, **fields: Any) -> bytes:
    """Control bytes."""
    return _pack(json.dumps({"version": protocol, "body_type": name, "body": fields}))


def unpack(control: bytes) -> dict[str, Any]:
    """The body of a reply."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "m.bin"
        source.write_bytes(control)
        subprocess.run(
            ["flatc", "--json", "--strict-json", "--defaults-json", "--raw-binary", "-o", folder,
             str(SCHEMA), "--", str(source)],
            check=True,
        )  # fmt: skip
        body: dict[str, Any] = json.loads(source.with_suffix(".json").read_text())["body"]
        return body


def code(body: dict[str, Any]) -> str:
    """The name of a reply's status."""
    return STATUSES[body.get("status", {}).get("code", 0)]


class Peer:
    """A connection; `greet` says Hello as a client should."""

    def __init__(self, path: str, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.token = bytes(16)
        self.request = 0
        if greet:
            reply = self.call("Hello", client_name="frames", features=0, version=VERSION)
            if code(reply) != "OK":
                self.socket.close()
                raise AssertionError(reply)
            self.token = bytes(reply["session_token"]["bytes"])

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(
        self, name: str, payload: bytes = b"", fds: tuple[int, ...] = (), declared: int = -1,
        **fields: Any,
    ) -> None:  # fmt: skip
        """One frame; `declared`: another length of the payload than it has."""
        self.request += 1
        control = message(name, **fields)
        head = header(
            TYPES[name], len(control), len(payload) if declared < 0 else declared,
            token=self.token, request=self.request, flags=len(fds) << 12,
        )  # fmt: skip
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([head, control], rights)
        self.socket.sendall((head + control)[sent:] + payload)

    def receive(self) -> tuple[int, dict[str, Any]]:
        """The next frame's request and body. ConnectionError: the daemon closed."""
        head = HEADER.unpack(self._exactly(HEADER.size))
        body = unpack(self._exactly(head[6]))
        self._exactly(head[7])
        return head[4], body

    def call(self, name: str, payload: bytes = b"", **options: Any) -> dict[str, Any]:
        """A request and its reply's body."""
        self.send(name, payload, **options)
        request, body = self.receive()
        assert request == self.request
        return body

    def closed(self) -> bool:
        """Whether the daemon closes without another answer than StatusReply or Goaway."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.socket.recv(min(size, 1 << 20))
            if not part:
                raise ConnectionError("the daemon closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
