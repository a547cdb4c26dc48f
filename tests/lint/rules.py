"""The rules of the tree that a compiler does not hold (design: layers, homes, sizes).

Each rule is a generator of (line number, message) over one file. A new rule is a function in RULES.
"""

import re

# Folder -> level. An include may go to the same folder, or to a lower level; pairs that the design
# allows or forbids besides are below. The longest matching prefix counts.
LEVELS = {
    "schemas": 1, "client/base": 1.5,
    "kernels": 2, "client/transport": 2, "client": 2.5, "client/cli": 3, "client/python": 3,
    "client/worker": 3,
    "daemon/policy": 3, "daemon/arena": 3, "daemon/tier": 3,
    "daemon/store": 4,
    "daemon/net": 5, "daemon/admin": 5, "daemon/config": 5,
    "daemon/server": 6, "daemon": 7, "tests": 9,
}
# Below its level, and still not to be known: (who, whom).
FORBIDDEN = [
    ("daemon", "client", "the daemon knows client/base and client/transport only"),
    ("daemon", "client/cli", "the daemon knows client/base and client/transport only"),
    ("daemon", "client/python", "the daemon knows client/base and client/transport only"),
    ("client", "daemon", "a client must build without the daemon"),
    ("kernels", "client", "kernels stand alone on schemas"),
    ("kernels", "client/base", "kernels stand alone on schemas"),
    ("kernels", "client/transport", "kernels stand alone on schemas"),
    ("client/transport", "kernels", "frames do not know what they carry"),
    ("daemon/store", "client/transport", "the store knows no sockets"),
]
# One header that frames need of their neighbour.
ALLOWED = {("client/transport", "kernels/crc32c.h")}
# Kernels run where FlatBuffers is not: of schemas they know what needs the standard library only.
NOT_FOR_KERNELS = ("schemas/wire", "schemas/record")

# Header prefix -> folders that may include it (tests beside them and tests/ may too).
HOMES = {
    "ucp/": ["client/transport/ucx"], "uct/": ["client/transport/ucx"],
    "ucs/": ["client/transport/ucx"],
    "boost/asio": ["client/transport", "client/base", "daemon/net", "daemon/admin",
                   "daemon/server"],
    "boost/beast": ["daemon/admin"],
    "rocksdb/": ["daemon/tier/rocks"],
    "cuda": ["kernels/cuda"], "nvtx": ["kernels/cuda"],
    "hwy/": ["kernels/cpu"],
    "prometheus/": ["daemon/admin"],
    "Eigen/": ["daemon/policy/basis"],
    "CLI/": ["client/cli", "daemon/main.cc"],
    "nlohmann/": ["daemon/admin", "client/cli"],
    "openssl/": ["schemas/sha256.cc", "client/base", "client/transport"],
    "toml++/": ["daemon/config"],
    "spdlog/": ["client/base"],
    "flatbuffers/": ["schemas"],
    "nanobind/": ["client/python"],
    "benchmark/": ["tests/bench"],
}
# The composition root's executor, and the two pools that the design names (design: threads).
THREAD_HOMES = ["client/base", "client/core.h", "client/core.cc", "client/cli", "client/python",
                "daemon/server", "daemon/tier"]
MAX_LINES = 450
MAX_LINES_OF = {".cu": 600, ".inc": 600}
MAX_LINES_TEST = 600

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
THREAD = re.compile(r"\bstd::(j?thread|async)\b(?!::(id|hardware_concurrency))|\bpthread_create\b")
TEST_FILE = re.compile(r"(_(test|testing|bench)|/(test|testing)_\w+)\.\w+$")
MARK = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
MACHINE_PATH = re.compile(r"(?<![\w.$}/])/(work|root)/[\w.-]")


def folder_of(path):
    return path.rsplit("/", 1)[0] if "/" in path else ""


def under(path, folder):
    return path == folder or path.startswith(folder + "/")


def unit_of(path):
    """The folder of LEVELS that a file belongs to, or None."""
    best = [folder for folder in LEVELS if under(path, folder)]
    return max(best, key=len) if best else None


def is_test(path):
    return path.startswith("tests/") or TEST_FILE.search(path) is not None


def is_source(path):
    return path.endswith((".h", ".cc", ".cu", ".cuh", ".inc"))


def includes(text):
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1), match.group(2)


def arrows(path, text):
    me = unit_of(path)
    if not is_source(path) or me is None or path.startswith("tests/"):
        return
    for number, quote, name in includes(text):
        other = unit_of(name)
        if quote != '"':
            continue
        if other is None:
            # The wheel is built by itself, from its own folder.
            if "/" not in name and not name.endswith("_generated.h") and me != "client/python":
                yield number, f'"{name}": write the path from the root'
            continue
        if other == me or (me, name) in ALLOWED or (is_test(path) and under(name, "tests/support")):
            continue
        if LEVELS[other] >= LEVELS[me]:
            yield number, f"{me} must not know {other}"
        for who, whom, why in FORBIDDEN:
            if other == whom and (under(me, who) and not (who == "client" and me == "daemon")):
                yield number, f"{me} must not know {other}: {why}"
        if me == "kernels" and name.startswith(NOT_FOR_KERNELS):
            yield number, f"kernels must not know {name}: they stand alone"


def homes(path, text):
    if not is_source(path) or path.startswith("tests/"):
        return
    for number, _, name in includes(text):
        for prefix, folders in HOMES.items():
            if name.startswith(prefix) and not any(under(path, f) for f in folders):
                yield number, f"<{name}> belongs to {', '.join(folders)}"


def generated(path, text):
    if not is_source(path):
        return
    for number, _, name in includes(text):
        if name.endswith("_generated.h") and not (under(path, "schemas") and path.endswith(".cc")):
            yield number, f"{name} stays behind the door: schemas/*.cc alone include it"


def threads(path, text):
    if not is_source(path) or is_test(path) or any(under(path, f) for f in THREAD_HOMES):
        return
    for number, line in enumerate(text.splitlines(), 1):
        if THREAD.search(line.split("//")[0]):
            yield number, f"starts a thread outside {', '.join(THREAD_HOMES)}"


def sizes(path, text):
    if not path.endswith((".h", ".cc", ".cu", ".cuh", ".inc", ".py", ".fbs")):
        return
    limit = MAX_LINES_OF.get("." + path.rsplit(".", 1)[1], MAX_LINES)
    limit = max(limit, MAX_LINES_TEST) if is_test(path) else limit
    lines = text.count("\n")
    if lines > limit:
        yield 1, f"{lines} lines, at most {limit}: one idea a file"


def headers(path, text):
    # Highway's per-target headers (-inl.h) are meant to be included once a target; C has no pragma.
    if 'extern "C"' in text and "#ifndef" in text:
        return
    if path.endswith(".h") and not path.endswith("-inl.h") and "#pragma once" not in text.splitlines():
        yield 1, "no #pragma once"


def beginnings(path, text):
    """A file says what it is before it does anything."""
    if is_source(path) and not text.startswith(("//", "/*")):
        companion = path.endswith(".cc") and text.startswith("#include")
        if not companion and not path.endswith(".inc"):
            yield 1, "begins without a comment that says what it is"


def marks(path, text):
    if path.startswith("tests/lint/"):
        return
    for number, line in enumerate(text.splitlines(), 1):
        if MARK.search(line):
            yield number, "unfinished work is an issue, not a mark in the code"
        if MACHINE_PATH.search(line):
            yield number, "a path of one machine"


RULES = [arrows, homes, generated, threads, sizes, headers, beginnings, marks]
