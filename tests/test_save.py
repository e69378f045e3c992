"""`gpuopt.save` and `gpuopt.load`: bit for bit, all or nothing, and no damage that goes unnoticed."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpuopt
from gpuopt import tensor_file
from gpuopt.tensor_file import Tensor
from samples import Array, bits, refused

SHAPES = {"weight": (64, 70), "bias": (7,), "scale": (), "none": (0, 3)}


def params(dtype: Any = np.float32) -> dict[str, Any]:
    """Large enough for codes, of all numbers of axes, nested."""
    rng = np.random.default_rng(5)
    made = {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}
    return {"layer": made, "last": rng.standard_normal((3, 4)).astype(dtype)}


def grads(step: int, like: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    made = {name: np.asarray(rng.standard_normal(a.shape)).astype(a.dtype) for name, a in like["layer"].items()}
    return {"layer": made, "last": None if step == 1 else rng.standard_normal((3, 4)).astype(like["last"].dtype)}


def stepped(steps: int, name: str = "AdamW", dtype: Any = np.float32, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An optimizer after some steps, one of which lacks a gradient, and its parameters."""
    opt = getattr(gpuopt, name)(given := params(dtype), **{"backend": "numpy", "lr": 0.01} | options)
    for step in range(steps):
        opt.step(grads(step, given))
    return opt, given


# What states can be: of the parameter's shape, numbers, rows, columns, one number for all, squares; in every format; beside.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"name": "AdamW", "amsgrad": True, "max_grad_norm": 1.0, "clip_value": 2.0},
    "none": {"name": "GD"},
    "numbers": {"name": "NAdam"},
    "rows": {"name": "Adafactor"},
    "one for all": {"name": "Prodigy"},
    "squares": {"name": "SOAP"},
    "an average": {"name": "ScheduleFreeAdamW"},
    "beside": {"name": "Lion", "ema_decay": 0.9, "lookahead": (2, 0.5), "anchor": "initial"}
    | {"weight_decay_mode": "decoupled", "weight_decay": 0.1},
    "a decay": {"name": "AdamW", "weight_decay_mask": lambda path, array: array.ndim > 1},
    "int8": {"name": "AdamW", "state_format": "int8"},
    "int4": {"name": "AdamW", "state_format": "int4"},
    "float8": {"name": "Lion", "state_format": "float8"},
    "bfloat16": {"name": "Adam", "state_format": "bfloat16"},
    "split8": {"name": "AdamW", "param_format": "split8", "dtype": ml_dtypes.bfloat16},
    "kahan": {"name": "SGD", "momentum": 0.9, "param_format": "kahan", "dtype": np.float16},
    "float64": {"name": "AdamW", "dtype": np.float64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    """Into an optimizer with other hyperparameters, which then goes on as one that was never interrupted."""
    options, path = KINDS[kind], tmp_path / "state.safetensors"
    whole, expected = stepped(4, **options)
    opt, given = stepped(2, **options)
    gpuopt.save(opt, path)
    again, _ = stepped(1, **options | {"lr": 0.5})
    gpuopt.load(again, path)
    assert bits(again.state_dict()) == bits(opt.state_dict())
    fresh = getattr(gpuopt, options["name"])(
        given, **{"backend": "numpy", "lr": 0.3} | {k: v for k, v in options.items() if k not in ("name", "dtype")}
    )
    gpuopt.load(fresh, path)
    for step in (2, 3):
        fresh.step(grads(step, given))
    assert bits([given, fresh.state_dict()]) == bits([expected, whole.state_dict()])


def test_complex_states_are_kept_as_pairs(tmp_path: Path) -> None:
    """And go into another format, where they are pairs in memory too."""
    value = np.ones(4, np.complex64)
    opt = gpuopt.Adam(value, backend="numpy")
    opt.step((np.arange(4) * (1 + 2j)).astype(np.complex64))
    gpuopt.save(opt, tmp_path / "a")
    assert tensor_file.read(tmp_path / "a").arrays["state.0.exp_avg"].shape == (4, 2)
    for format, back in (("float32", "a"), ("bfloat16", "b")):
        again = gpuopt.Adam(value.copy(), backend="numpy", state_format=format)
        gpuopt.load(again, tmp_path / "a")
        gpuopt.save(again, tmp_path / back)
    gpuopt.load(opt, tmp_path / "b")
    found = opt.state_dict()["state"][0]["exp_avg"]
    assert found.dtype == np.complex64 and abs(found - np.arange(4) * (0.1 + 0.2j)).max() < 0.004


@pytest.mark.parametrize(("first", "second"), [("int8", "float32"), ("float32", "int4"), ("bfloat16", "float8")])
def test_into_another_format(first: str, second: str, tmp_path: Path) -> None:
    """As `load_state_dict` does it."""
    opt, _ = stepped(2, state_format=first)
    gpuopt.save(opt, tmp_path / "a")
    by_file, _ = stepped(0, state_format=second)
    by_dict, _ = stepped(0, state_format=second)
    gpuopt.load(by_file, tmp_path / "a")
    by_dict.load_state_dict(opt.state_dict())
    assert bits(by_file.state_dict()) == bits(by_dict.state_dict())


def test_what_is_in_a_file(tmp_path: Path) -> None:
    """Readable and stable names; parameters counted in the order of the groups, however these came about."""
    array = np.ones((2, 3), np.float32)
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.5, "backend": "numpy"}
    decays = {"b": False, "w": True}
    masked = gpuopt.SGD({"b": array[0].copy(), "w": array}, weight_decay_mask=decays, **options)
    masked.step({"b": np.ones(3, np.float32), "w": array * 2})
    groups = [{"params": {"w": array.copy()}}, {"params": {"b": array[0].copy()}, "weight_decay": 0.0}]
    listed = gpuopt.SGD(groups, **options)
    gpuopt.save(masked, tmp_path / "a")
    found = tensor_file.read(tmp_path / "a")
    assert {name: a.shape for name, a in found.arrays.items()} == {
        "state.0.momentum_buffer": (2, 3),
        "state.1.momentum_buffer": (3,),
    }
    assert found.metadata["rule"] == "sgd" and '"name": "w", "shape": [2, 3]' in found.metadata["parameters"]
    gpuopt.load(listed, tmp_path / "a")
    gpuopt.save(listed, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_functions_of_the_step_stay_the_callers(tmp_path: Path) -> None:
    rate, bound = (lambda step: 0.25), (lambda step: 3.0)
    gpuopt.save(gpuopt.GD(np.ones(3), lr=rate, clip_value=bound, l1=0.5, backend="numpy"), tmp_path / "a")
    opt = gpuopt.GD(np.ones(3), lr=rate, clip_value=bound, maximize=True, backend="numpy")
    gpuopt.load(opt, tmp_path / "a")
    group = opt.param_groups[0]
    assert (group["lr"], group["clip_value"], group["l1"], group["maximize"]) == (rate, bound, 0.5, False)


def test_around_a_sam_and_in_the_mode_of_evaluation(tmp_path: Path) -> None:
    opt, given = stepped(2, "ScheduleFreeAdamW")
    opt.eval()
    gpuopt.save(opt, tmp_path / "a")
    again, _ = stepped(0, "ScheduleFreeAdamW")
    gpuopt.load(again, tmp_path / "a")
    with refused(again, gpuopt.InputError, "call opt.train()"):
        again.step(grads(0, given))
    sam = gpuopt.SAM(stepped(1)[0])
    gpuopt.save(sam, tmp_path / "b")
    gpuopt.load(sam, tmp_path / "b")
    sam.perturb(grads(0, given))
    for call in (gpuopt.save, gpuopt.load):
        with pytest.raises(gpuopt.InputError, match=r"SAM\.checkpoint: the parameters are perturbed"):
            call(sam, tmp_path / "b")


# --------------------------------------------------------------------------------------------------- all or nothing

KILLED = """
import os, random, signal, sys
import numpy as np
import gpuopt

folder = sys.argv[1]
path = os.path.join(folder, "state")

def made(lr):
    opt = gpuopt.AdamW([np.ones((30, 20), np.float32), np.ones(5, np.float32)], lr=lr, backend="numpy")
    opt.step([np.ones((30, 20), np.float32), np.ones(5, np.float32)])
    return opt

def saved(opt, at):
    seen = 0
    def count(frame, event, argument):
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    gpuopt.save(opt, path)
    sys.setprofile(None)
    return seen

old, new, reader = made(1.0), made(2.0), made(3.0)
saved(old, 0)
end = saved(old, 0)
for at in sorted(random.Random(0).sample(range(1, end - 12), 40)) + list(range(end - 12, end - 2)):
    child = os.fork()
    if not child:
        saved(new, at)
        os._exit(1)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    assert killed or at > end - 12  # the last ones may be too late
    gpuopt.load(reader, path)
    print(reader.param_groups[0]["lr"], len(os.listdir(folder)))
    gpuopt.save(old, path)
    assert os.listdir(folder) == ["state"]
"""


def test_killed_at_any_point(tmp_path: Path) -> None:
    """The old file or the new one is there; what is left beside it is gone with the next save."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = done.stdout.split("\n")[:-1]
    assert len(found) == 50 and set(found) == {"1.0 1", "1.0 2", "2.0 1"}


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*args: Any) -> Any:
            folder = name == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}")
            calls.append("fsync of the folder" if folder else name)
            return original(*args)

        return call

    opt, _ = stepped(1)
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, watched(name))
    gpuopt.save(opt, tmp_path / "a")
    assert calls == ["fsync", "replace", "fsync of the folder"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_file_stays_where_a_save_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt, _ = stepped(1)
    gpuopt.save(opt, path := tmp_path / "a")
    before = path.read_bytes()
    opt.param_groups[0]["lr"] = 0.5
    add, count = tensor_file.add, 0

    def fails(*args: Any) -> str:
        nonlocal count
        count += 1
        if count == 4:
            raise error
        return add(*args)

    monkeypatch.setattr(tensor_file, "add", fails)
    with pytest.raises(type(error)):
        gpuopt.save(opt, path)
    assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == before
    monkeypatch.undo()
    opt.param_groups[0]["mine"] = object()
    with pytest.raises(gpuopt.InputError, match=r"param_groups\[0\]\['mine'\] = <object"):
        gpuopt.save(opt, path)
    assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == before


def test_others_are_left_to_write_theirs(tmp_path: Path) -> None:
    """A file that is being written is not taken for one that was left behind. A link keeps leading to its file."""
    file, name = tensor_file.begun(str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "a")
    gpuopt.save(stepped(0)[0], tmp_path / "b")
    gpuopt.save(stepped(0)[0], tmp_path / "link")
    assert os.path.exists(name) and (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "a").is_file()
    file.close()
    gpuopt.save(stepped(0)[0], tmp_path / "b")
    assert not os.path.exists(name)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o666 & ~mask


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """No tensor is on the host any more when the next one is asked for; what is read lies in the file."""
    seen: list[weakref.ref[Any]] = []

    def read() -> Array:
        assert all(array() is None for array in seen)
        seen.append(weakref.ref(array := np.arange(6.0).reshape(2, 3)))
        return array

    tensor_file.write(tmp_path / "a", {name: Tensor("float64", (2, 3), read) for name in "abc"}, {"x": 'é"\\'})
    found = tensor_file.read(tmp_path / "a")
    found.check()
    assert len(seen) == 3 and found.metadata["x"] == 'é"\\' and not found.arrays["b"].flags.owndata
