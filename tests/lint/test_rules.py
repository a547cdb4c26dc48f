"""Each rule must find what it is for, and leave alone what is allowed."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import rules  # noqa: E402


def found(rule, path, text):
    return [message for _, message in rule(path, text)]


@pytest.mark.parametrize("path, include", [
    ("daemon/store/store.cc", "daemon/net/session.h"),
    ("daemon/policy/a.h", "daemon/arena/arena.h"),
    ("daemon/tier/a.cc", "daemon/policy/policy.h"),
    ("schemas/types.h", "client/base/os.h"),
    ("client/client.cc", "daemon/store/store.h"),
    ("client/base/os.cc", "daemon/config/options.h"),
    ("daemon/net/session.cc", "client/client.h"),
    ("daemon/store/store.cc", "client/transport/channel.h"),
    ("kernels/basis.cc", "client/base/sha256.h"),
    ("kernels/basis.cc", "schemas/wire.h"),
    ("client/transport/frame.cc", "kernels/segment.h"),
    ("daemon/store/store_test.cc", "daemon/server/server.h"),
    ("daemon/store/store.cc", "store.h"),
])
def test_arrows_up_are_found(path, include):
    assert found(rules.arrows, path, f'#include "{include}"\n'), (path, include)


@pytest.mark.parametrize("path, include", [
    ("daemon/store/store.cc", "daemon/policy/policy.h"),
    ("daemon/store/store.cc", "client/base/clock.h"),
    ("daemon/store/store.cc", "daemon/store/block.h"),
    ("daemon/net/session.cc", "client/transport/channel.h"),
    ("daemon/main.cc", "daemon/server/server.h"),
    ("daemon/server/server.cc", "daemon/config/options.h"),
    ("client/client.cc", "kernels/backend.h"),
    ("client/cli/main.cc", "client/client.h"),
    ("kernels/cpu/a.cc", "kernels/backend.h"),
    ("kernels/basis.cc", "schemas/types.h"),
    ("client/transport/frame.cc", "kernels/crc32c.h"),
    ("daemon/store/store_test.cc", "tests/support/fake_clock.h"),
    ("daemon/tier/rocks/a.cc", "daemon/tier/spill_store.h"),
    ("schemas/wire.cc", "schemas/wire.h"),
])
def test_arrows_down_are_allowed(path, include):
    assert not found(rules.arrows, path, f'#include "{include}"\n')


@pytest.mark.parametrize("path, include, wrong", [
    ("daemon/store/a.cc", "rocksdb/db.h", True),
    ("daemon/tier/rocks/a.cc", "rocksdb/db.h", False),
    ("daemon/net/a.cc", "boost/asio/io_context.hpp", False),
    ("daemon/store/a.h", "boost/asio/io_context.hpp", True),
    ("daemon/net/a.cc", "boost/beast/http.hpp", True),
    ("client/transport/a.cc", "ucp/api/ucp.h", True),
    ("client/transport/ucx/a.cc", "ucp/api/ucp.h", False),
    ("daemon/main.cc", "CLI/CLI.hpp", False),
    ("daemon/server/a.cc", "CLI/CLI.hpp", True),
    ("kernels/basis.cc", "cuda_runtime.h", True),
    ("tests/bench/a.cc", "hwy/highway.h", False),
])
def test_third_party_headers_have_homes(path, include, wrong):
    assert bool(found(rules.homes, path, f"#include <{include}>\n")) == wrong


def test_generated_code_stays_behind_the_door():
    line = '#include "wire_generated.h"\n'
    assert found(rules.generated, "schemas/wire.h", line)
    assert found(rules.generated, "client/client.cc", line)
    assert not found(rules.generated, "schemas/wire.cc", line)


@pytest.mark.parametrize("line, wrong", [
    ("std::thread t(f);", True), ("std::jthread t(f);", True), ("pthread_create(&t);", True),
    ("auto f = std::async(g);", True), ("std::thread::id id;", False),
    ("std::this_thread::yield();", False), ("int x;  // a std::thread would be wrong", False),
])
def test_threads_have_homes(line, wrong):
    assert bool(found(rules.threads, "daemon/store/a.cc", line)) == wrong
    assert not found(rules.threads, "daemon/server/a.cc", line)
    assert not found(rules.threads, "daemon/store/a_test.cc", line)


def test_sizes():
    assert found(rules.sizes, "kernels/a.cc", "x\n" * 451)
    assert not found(rules.sizes, "kernels/a.cc", "x\n" * 450)
    assert not found(rules.sizes, "kernels/a_test.cc", "x\n" * 600)
    assert found(rules.sizes, "kernels/a_test.cc", "x\n" * 601)
    assert not found(rules.sizes, "README.md", "x\n" * 1000)


def test_headers_and_beginnings():
    assert found(rules.headers, "kernels/a.h", "// A.\nint x;\n")
    assert not found(rules.headers, "kernels/a.h", "// A.\n#pragma once\n")
    assert found(rules.beginnings, "kernels/a.h", "#pragma once\n")
    assert not found(rules.beginnings, "kernels/a.cc", '#include "kernels/a.h"\n')
    assert not found(rules.beginnings, "kernels/a.h", "// A.\n")


def test_marks_and_machine_paths():
    assert found(rules.marks, "kernels/a.cc", "// TO" + "DO: later")
    assert found(rules.marks, "README.md", "see /ro" + "ot/somebody/x")
    assert not found(rules.marks, "README.md", "see /var/lib/dynacompress and $HOME/x")
