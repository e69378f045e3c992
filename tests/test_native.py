"""What is read of the memory of CPython and NumPy: it agrees with what they say themselves, and where it is not known to, or
GPUOPT_NATIVE=0, they are asked.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt.native import ndarrays, objects, switch

PARTS = ("objects", "ndarrays")
NATIVE = {
    "objects": {"contents": "read_contents", "same": "read_same", "unshared": "counted_unshared"},
    "ndarrays": {"first_addresses": "read_addresses", "Flags": "ReadFlags"},
}
PLAIN = {
    "objects": {"contents": "asked_contents", "same": "asked_same", "unshared": "never_unshared"},
    "ndarrays": {"first_addresses": "asked_addresses", "Flags": "AskedFlags"},
}


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests say themselves what is on."""
    monkeypatch.delenv(switch.SWITCH, raising=False)
    monkeypatch.setattr(switch, "decided", {})


def imported_again(part: str, **changed: Any) -> ModuleType:
    """A module of its own from the file of a part; what is given is changed in it before the last lines, which choose."""
    spec = importlib.util.find_spec(f"gpuopt.native.{part}")
    assert spec is not None and spec.origin is not None
    made = importlib.util.module_from_spec(spec)
    with open(spec.origin) as file:
        text = file.read()
    head, mark, tail = text.partition(f"\n{next(iter(NATIVE[part]))} = choose(")
    exec(compile(head, spec.origin, "exec"), vars(made))
    vars(made).update(changed)
    exec(compile(mark + tail, spec.origin, "exec"), vars(made))
    return made


def chosen(made: ModuleType, part: str) -> dict[str, str]:
    return {name: getattr(made, name).__name__ for name in NATIVE[part]}


# ---------------------------------------------------------------------------------------------------- which is used


@pytest.mark.parametrize("part", PARTS)
def test_native_code_is_used_on_these_versions(part: str) -> None:
    """Or the rest of the suite would say nothing of it."""
    assert chosen(imported_again(part), part) == NATIVE[part]
    assert set(switch.decided.values()) == {None}


@pytest.mark.parametrize("part", PARTS)
def test_the_switch(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_NATIVE", "0")
    assert chosen(imported_again(part), part) == PLAIN[part]
    assert set(switch.decided.values()) == {"GPUOPT_NATIVE=0"}


UNKNOWN = {
    "a later Python": ("sys.version_info", (3, 99, 0, "final", 0), "python 3.99"),
    "a Python without the lock": ("sys.abiflags", "t", "python cpython "),
    "another Python": ("sys.implementation", type("implementation", (), {"name": "pypy"}), "python pypy 3."),
    "a later NumPy": ("numpy.__version__", "2.99.1", "numpy 2.99"),
    "a NumPy before its release": ("numpy.__version__", "2.4.0rc1", "numpy 2.4.0rc1"),
    "a NumPy of a day": ("numpy.__version__", "2.4.0.dev0+git20990101.abc", "numpy 2.4.0.dev0+git"),
}


@pytest.mark.parametrize("case", UNKNOWN)
@pytest.mark.parametrize("part", PARTS)
def test_unknown_versions(part: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried there, not even by a test: reading what is not there may crash the process."""
    target, value, named = UNKNOWN[case]
    with monkeypatch.context() as patched:
        patched.setattr(target, value)
        made = imported_again(part, items_hold=None, counts_hold=None, fields_hold=None)
    if part == "objects" and "NumPy" in case:
        assert set(switch.decided.values()) == {"its own test failed"}, "it knows no NumPy, and its tests are None"
    else:
        assert all(reason.startswith(f"it was not tried with {named}") for reason in switch.decided.values())
    assert chosen(made, part) == PLAIN[part]


BROKEN: dict[str, tuple[str, str, Any, set[str]]] = {
    "lists keep their items elsewhere": (
        "objects", "ITEMS", {**objects.ITEMS, list: lambda at: at + 8}, {"contents", "same"},
    ),
    "tuples keep their items elsewhere": (
        "objects", "ITEMS", {**objects.ITEMS, tuple: lambda at: objects.ITEMS[tuple](at) + 8}, {"contents", "same"},
    ),
    "items are not aligned": ("objects", "ITEMS", {list: lambda at: at + 1}, {"contents", "same"}),
    "references are counted otherwise": ("objects", "OWN_REFERENCES", objects.OWN_REFERENCES + 1, {"unshared"}),
    "no references are counted": ("objects", "getrefcount", lambda thing: 1 << 32, {"unshared"}),  # as of immortal objects
    "data is elsewhere": ("ndarrays", "DATA", ndarrays.DATA - 8, {"first_addresses"}),  # Python's type pointer
    "flags are elsewhere": ("ndarrays", "FLAGS", ndarrays.FLAGS - 8, {"first_addresses", "Flags"}),  # the dtype's address
    "data is not aligned": ("ndarrays", "DATA", ndarrays.DATA + 1, {"first_addresses", "Flags"}),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_hold_is_noticed(case: str) -> None:
    part, name, value, affected = BROKEN[case]
    made = imported_again(part, **{name: value})
    assert affected <= {name for name in NATIVE[part] if getattr(made, name).__name__ == PLAIN[part][name]}
    assert "its own test failed" in switch.decided.values()


def test_the_plain_way_is_taken_all_through() -> None:
    """In a process where the switch is off from the start, `gpuopt info` says so and steps have the same bits."""
    code = (
        "import numpy as np, gpuopt\n"
        "from gpuopt.native import switch\n"
        "params = [np.ones(3 + k % 4, np.float32) for k in range(80)]\n"
        "opt = gpuopt.AdamW(params, lr=0.1, backend='numba')\n"
        "rng = np.random.default_rng(0)\n"
        "for _ in range(6): opt.step([rng.normal(size=p.shape).astype(np.float32) for p in params])\n"
        "print(sorted(set(map(str, switch.decided.values()))))\n"
        "print(np.concatenate(params).tobytes().hex())\n"
    )
    found = {}
    for value in ("0", "1"):
        environment = os.environ | {"GPUOPT_NATIVE": value}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found[value] = done.stdout.splitlines()
    assert [lines[0] for lines in found.values()] == ["['GPUOPT_NATIVE=0']", "['None']"]
    assert found["0"][1] == found["1"][1]


def test_importing_it_takes_no_time() -> None:
    """All tests of its own together: a fraction of a millisecond, and `import gpuopt` makes none of them."""
    code = (
        "import sys, time, numpy, ctypes, gpuopt\n"
        "assert not any(name.startswith('gpuopt.native') for name in sys.modules)\n"
        "from gpuopt.native import ndarrays, objects\n"
        "def once():\n"
        "    start = time.perf_counter()\n"
        "    assert objects.items_hold() and objects.counts_hold() and ndarrays.fields_hold()\n"
        "    return time.perf_counter() - start\n"
        "print(min(once() for _ in range(20)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2e-4


# ---------------------------------------------------------------------------------------------------- what it reads


def test_arrays() -> None:
    some = [np.zeros(3), np.zeros((4, 4), np.float16)[::-1, 1:], np.array(1.0), np.zeros(0)]
    some[0].flags.writeable = False
    for found in (some, some[:1], []):
        assert np.array_equal(ndarrays.read_addresses(found), ndarrays.asked_addresses(found))
        assert ndarrays.ReadFlags(found).read() == ndarrays.AskedFlags(found).read()


@pytest.mark.parametrize("same", [objects.read_same, objects.asked_same])
def test_lists_and_tuples(same: Any) -> None:
    """Long and short, of both kinds; a subclass may keep its items elsewhere."""

    class Odd(list[Any]):
        pass

    things = [object() for _ in range(3 * objects.MANY)]
    for kind in (list, tuple, Odd):
        for count in (0, 1, objects.MANY - 1, objects.MANY, len(things)):
            some = kind(things[:count])
            assert same(some, things[:count]) and same(tuple(some), some)
            assert not same(some, things[: count + 1]) or count == len(things)
            for changed in {0, count // 2, count - 1} if count else ():
                other = list(some)
                other[changed] = object()
                assert not same(some, other) and not same(tuple(other), some)


@pytest.mark.parametrize("contents", [objects.read_contents, objects.asked_contents])
def test_a_list_that_grew(contents: Any) -> None:
    things = [object() for _ in range(3 * objects.MANY)]
    grown = things[:100]
    grown.pop()
    grown.append(things[99])
    assert contents(grown) == contents(things[:100]) != contents(things[1:101])


def test_references() -> None:
    entries: list[dict[str, Any]] = [{}, {}, {}]
    by_key = dict(enumerate(entries))
    assert objects.counted_unshared(entries, 2) and objects.counted_unshared([], 0)
    held = by_key[1]
    assert not objects.counted_unshared(entries, 2)
    del held
    assert objects.counted_unshared(entries, 2) and not objects.never_unshared(entries, 2)


def test_info_says_which(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from gpuopt import cli

    def line() -> str:
        assert cli.main(["info"]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("native code:"))

    assert gpuopt.__version__ and line() == "native code: in use"
    monkeypatch.setenv("GPUOPT_NATIVE", "0")
    assert line() == "native code: not in use: GPUOPT_NATIVE=0"
    monkeypatch.delenv("GPUOPT_NATIVE")
    monkeypatch.setitem(switch.TRIED, "numpy", ("1.0",))
    assert "native code: not in use: it was not tried with numpy " in line()
