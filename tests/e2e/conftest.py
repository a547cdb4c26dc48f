"""Daemons and clients for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dynacompress
import pytest

from daemon import Daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests of a module that leave it running."""
    made = Daemon(tmp_path_factory.mktemp("daemon")).start()
    pid = made.pid
    yield made
    alive = made.running and made.pid == pid
    made.cleanup()
    assert alive, f"the daemon did not survive its tests:\n{made.tail()}"


@pytest.fixture
def new_daemon(tmp_path: object) -> Iterator[Callable[..., Daemon]]:
    """Starts one with the configuration given, for one test."""
    made: list[Daemon] = []

    def start(tables: str = "", arena: str = "64 MiB") -> Daemon:
        made.append(Daemon(tmp_path / f"daemon{len(made)}", tables, arena))  # type: ignore[operator]
        return made[-1].start()

    yield start
    for one in made:
        one.cleanup()


@pytest.fixture
def client(daemon: Daemon) -> dynacompress.Client:
    """A connection to the module's daemon."""
    return dynacompress.Client(daemon.socket, name="e2e", deadline=60)
