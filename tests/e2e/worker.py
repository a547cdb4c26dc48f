"""A client process that a test kills: it announces each step on its standard output.

    worker.py SOCKET put MODEL        puts block after block, half of each first
    worker.py SOCKET fetch MODEL      fetches chain MODEL for ever
    worker.py SOCKET persist SEED     puts persistent chains for ever, naming each when acknowledged
    worker.py SOCKET ucx MODEL        puts, fetches and deletes long chains over UCX for ever
"""

from __future__ import annotations

import sys
from typing import Any

import dynacompress

import kv


def put_halves(client: dynacompress.Client, model: str) -> None:
    """Layer 0 of every block arrives, layer 1 never does; then whole chains without end."""
    context = client.open_context(kv.spec(model))
    memory = client.empty(kv.values(7, 2).shape)
    memory[:] = kv.values(7, 2)
    context.put(kv.hashes("half", 2), memory[:1, 0], memory[:1, 1])
    say("half")
    for i in range(1_000_000):
        kv.put(context, kv.hashes(f"{model}-{i}", 2), memory)


def fetch_for_ever(client: dynacompress.Client, model: str) -> None:
    """Holds a lease and reads."""
    context = client.open_context(kv.spec(model))
    names = kv.hashes(model, 4)
    memory = client.empty(kv.values(8, 4).shape)
    lease = context.lookup(names)
    say(f"leased {lease.run}")
    while True:
        context.fetch(lease, memory[:, 0], memory[:, 1])
        say("fetched")


def persist_for_ever(client: dynacompress.Client, seed: str) -> None:
    """Every chain that is named here must outlive the daemon; goes on when the daemon restarts."""
    context = client.open_context(kv.spec("persistent"))
    for i in range(1_000_000):
        name = f"{seed}-{i}"
        number = int(seed) * 1_000_000 + i
        kv_bytes = kv.values(number, 2)
        try:
            kv.put(context, kv.hashes(name, 2), kv_bytes, quality="exact", persistent=True)
        except dynacompress.Error as error:
            if error.code != "CANCELLED":  # it was in flight when the daemon died
                say(f"failed {error}")
                raise
        else:
            say(f"{name} {number}")


def busy_for_ever(client: dynacompress.Client, model: str) -> None:
    """There is always something on its way."""
    context = client.open_context(kv.spec(model))
    want = kv.values(9, 64)
    got = want.copy()
    for i in range(1_000_000):
        names = kv.hashes(f"{model}-{i}", 64)
        kv.put(context, names, want, quality="exact")
        say("put")
        for _ in range(8):
            kv.get(context, names, got)
        context.delete(names)


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


def main(socket: str, what: str, argument: str) -> None:
    """The command line."""
    steps: dict[str, Any] = {
        "put": put_halves,
        "fetch": fetch_for_ever,
        "persist": persist_for_ever,
        "ucx": busy_for_ever,
    }
    bulk = "ucx" if what == "ucx" else "auto"
    steps[what](dynacompress.Client(socket, name=what, bulk=bulk, deadline=60), argument)


if __name__ == "__main__":
    main(*sys.argv[1:])
