"""Files that `gpuopt.load` refuses: damaged, cut off, of another version, optimizer or parameters; nothing is changed then."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import tensor_file
from gpuopt.tensor_file import Read, Tensor
from samples import everything, refused


def made(shape: tuple[int, ...] = (8, 6), **options: Any) -> Any:
    """An optimizer of two groups after a step."""
    arrays = [np.full(shape, 0.5, np.float32), np.ones(5, np.float64)]
    groups = [{"params": {"weight": arrays[0]}}, {"params": {"bias": arrays[1]}, "l1": 0.1}]
    opt = gpuopt.Adam(groups, **{"lr": 0.01, "backend": "numpy"} | options)
    opt.step([{"weight": arrays[0] * 2}, {"bias": arrays[1] * 3}])
    return opt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of such an optimizer, with other numbers."""
    opt = made(lr=0.3)
    opt.step([{"weight": np.ones((8, 6), np.float32)}, {"bias": np.ones(5)}])
    gpuopt.save(opt, tmp_path / "state")
    return tmp_path / "state"


def regions(data: bytes) -> dict[str, range]:
    """Name -> places in the file: the length of the header, the header, and each tensor."""
    length = int.from_bytes(data[:8], "little")
    found, begin = {"length": range(8), "header": range(8, 8 + length)}, 8 + length
    for name, each in json.loads(data[8:begin]).items():
        if name != tensor_file.META:
            first, last = each["data_offsets"]
            found[name] = range(begin + first, begin + last)
    return found


def test_a_byte_that_changed_anywhere(path: Path) -> None:
    """All of the length, a hundred and more of the header, 25 of each tensor, whose name the message has."""
    data, opt, rng = path.read_bytes(), made(), random.Random(1)
    before, count = everything(opt), 0
    places = regions(data)
    assert list(places)[2:] == [f"state.{k}.{key}" for k in (1, 0) for key in ("exp_avg", "exp_avg_sq")]
    assert sorted(at for place in places.values() for at in place) == list(range(len(data)))
    for name, place in places.items():
        for at in place if len(place) < 30 else sorted(rng.sample(place, 150 if name == "header" else 25)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
            with pytest.raises(gpuopt.FileError) as caught:
                gpuopt.load(opt, path)
            assert (f"{name} is damaged" if name in list(places)[2:] else "header") in str(caught.value)
            count += 1
    assert count > 250 and everything(opt) == before


def test_a_file_that_is_cut_off(path: Path) -> None:
    """At every 64th of its length, in front of its last byte, and one that is too long."""
    data, opt = path.read_bytes(), made()
    before, start = everything(opt), regions(data)["header"].stop
    for end in [len(data) * k // 64 for k in range(64)] + [start, len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(gpuopt.FileError) as caught:
            gpuopt.load(opt, path)
        assert end < start or "end before state." in str(caught.value)
    path.write_bytes(data + b"0")
    with pytest.raises(gpuopt.FileError, match=f"{len(data) + 1} bytes: expected {len(data)}"):
        gpuopt.load(opt, path)
    assert everything(opt) == before


def test_what_is_no_checkpoint(path: Path) -> None:
    opt = made()
    nested = b"[" * 100_000
    for content in (b"", b"{}", b"text, and more of it", len(nested).to_bytes(8, "little") + nested, bytes(1000)):
        path.write_bytes(content)
        with refused(opt, gpuopt.FileError, str(path), "gpuopt.save wrote"):
            gpuopt.load(opt, path)
    with refused(opt, FileNotFoundError):
        gpuopt.load(opt, path.parent / "nothing")
    with refused(opt, gpuopt.InputError, "a folder"):
        gpuopt.save(opt, path.parent)
    for call in (gpuopt.save, gpuopt.load):
        with pytest.raises(gpuopt.InputError, match=r"found dict: expected an optimizer of gpuopt"):
            call({}, path)


Change = Callable[[dict[str, str], dict[str, Any]], Any]


def metadata(name: str, old: str, new: str) -> Change:
    def change(said: dict[str, str], arrays: dict[str, Any]) -> None:
        assert old in said[name]
        said[name] = said[name].replace(old, new)

    return change


def array(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda said, arrays: arrays.update({name: change(arrays[name])})


# Files with digests that are right, and other things in them.
OTHERS: dict[str, tuple[Change, type[Exception], tuple[str, ...]]] = {
    "another version": (metadata("version", "1", "2"), gpuopt.FileError, ("version '2'", "expected '1'")),
    "no groups": (lambda said, arrays: said.pop("groups"), gpuopt.FileError, ("groups",)),
    "groups of another kind": (metadata("groups", "[", "[7, "), gpuopt.FileError, ("another kind",)),
    "states of another": (lambda s, a: a.update({"state.2.x": np.ones(1)}), gpuopt.FileError, ("state.2.x", "of 2")),
    "a bad rate": (metadata("groups", '"lr": 0.3', '"lr": -1'), gpuopt.InputError, ("lr = -1", "[0, inf)")),
    "a lost state": (lambda s, a: a.pop("state.1.exp_avg_sq"), gpuopt.InputError, ("exp_avg_sq", "missing")),
    "a lost count": (metadata("parameters", '"step": 2', '"steps": 2'), gpuopt.InputError, ("step", "None")),
    "another shape": (array("state.0.exp_avg", lambda a: a[:7]), gpuopt.InputError, ("exp_avg", "(7, 6)", "(8, 6)")),
    "whole numbers": (array("state.0.exp_avg", lambda a: a.astype("int64")), gpuopt.InputError, ("exp_avg", "int64")),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_something_else(what: str, path: Path) -> None:
    change, error, words = OTHERS[what]
    file: Read = tensor_file.read(path)
    said, arrays = dict(file.metadata), dict(file.arrays)
    change(said, arrays)
    tensors = {name: Tensor(a.dtype.name, a.shape, lambda a=a: a) for name, a in arrays.items()}  # type: ignore[misc]
    tensor_file.write(path, tensors, said)
    with refused(opt := made(), error, str(path), *words):
        gpuopt.load(opt, path)


def grouped(*groups: dict[str, Any]) -> Any:
    return gpuopt.Adam([{"params": group} for group in groups], backend="numpy")


WEIGHT, BIAS = np.ones((8, 6), np.float32), np.ones(5)
OPTIMIZERS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "another rule": (lambda: gpuopt.Lion([WEIGHT.copy()], backend="numpy"), ("of 'adam'", "expected 'lion'")),
    "fewer": (lambda: grouped({"weight": WEIGHT}, {}), ("2 parameters", "expected 1")),
    "more": (lambda: grouped({"weight": WEIGHT}, {"bias": BIAS, "c": BIAS[:1].copy()}), ("2 parameters", "expected 3")),
    "other groups": (lambda: grouped({"weight": WEIGHT, "bias": BIAS}), ("groups of [1, 1]", "expected [2]")),
    "another name": (lambda: grouped({"weight": WEIGHT}, {"b": BIAS}), ("parameter 1 is bias", "expected b,")),
    "shape": (lambda: grouped({"weight": WEIGHT[:7]}, {"bias": BIAS}), ("0 (weight): shape (8, 6)", "(7, 6)")),
    "complex": (lambda: grouped({"weight": WEIGHT}, {"bias": BIAS * 1j}), ("1 (bias): float64", "complex128")),
}


@pytest.mark.parametrize("what", OPTIMIZERS)
def test_another_optimizer(what: str, path: Path) -> None:
    make, words = OPTIMIZERS[what]
    with refused(opt := make(), gpuopt.InputError, str(path), *words):
        gpuopt.load(opt, path)
    without_names = gpuopt.Adam([{"params": [WEIGHT.copy()]}, {"params": BIAS.copy()}], backend="numpy")
    gpuopt.load(without_names, path)  # what has no names is counted
    assert without_names.param_groups[1]["l1"] == 0.1
