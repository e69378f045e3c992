"""Memory that runs out: each allocation of a construction, first steps and changes of plan fails in turn, with all behind it.

    python -m pytest -p driver.plugin --require-gpu tests/driver/scarce.py

After each failure parameters, states and step counts are what they were; the same call works once there is memory again, and gives
the bits of an undisturbed run. Run by tests/test_driver.py; a GPU cannot be told when to be full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import gpuopt
from driver.plugin import driver
from gpuopt import backends
from gpuopt.backends.runtime import Staging
from graphs import BACKENDS, captured, new_stream, no_garbage_of_others, stepped
from samples import bits

SIZES = (5, 40)
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16 states": {"state_format": "bfloat16", "max_grad_norm": 1.0},
    "skipping": {"skip_nonfinite": True, "max_grad_norm": 1.0, "state_format": "bfloat16"},
    "captured": {"capturable": True, "max_grad_norm": 1.0},
    "states on the host": {"state_device": "host"},
    "two GPUs": {},
}
Action = Callable[[], None]


def to_host(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: to_host(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [to_host(value) for value in tree]
    return tree.get() if hasattr(tree, "get") else tree


class Training:
    """An optimizer over arrays of two dtypes, or on two GPUs, which take a launch each, and what is done with it, one action after
    the other.
    """

    def __init__(self, backend: str, mode: str) -> None:
        self.backend, self.options = backend, MODES[mode]
        rng = np.random.default_rng(0)
        self.several = mode == "two GPUs"
        dtypes = ("f4", "f4") if self.several else ("f4", "f2")
        made = [[rng.standard_normal(n).astype(d) for n in SIZES for d in dtypes] for _ in range(5)]
        self.params, *self.grads = [[self.placed(k % 2, a) for k, a in enumerate(arrays)] for arrays in made]
        self.stream = new_stream()
        self.opt: Any = None
        self.empty_staging()
        self.actions: list[Action] = [self.construct, self.first, self.moved, self.without, self.flagged]
        if mode == "captured":
            self.actions += [self.graph, self.replay]
        self.actions += [self.save, self.moved, self.load, self.moved]
        if mode == "captured":
            self.actions += [self.replay]

    def placed(self, which: int, array: Any) -> Any:
        import cupy

        with cupy.cuda.Device(which if self.several else 0):
            return cupy.asarray(array)

    def empty_staging(self) -> None:
        """Uploads have to allocate again."""
        for device in ("cuda:0", "cuda:1"):
            there: Any = backends.get(self.backend, device)
            there.staging = Staging(there.runtime)

    def step(self, grads: list[Any]) -> None:
        if self.several:
            self.opt.step(grads)
        else:
            stepped(self.stream, self.opt, grads)

    def construct(self) -> None:
        groups = [{"params": self.params[::2]}, {"params": self.params[1::2], "lr": 0.1}]
        self.opt = gpuopt.Adam(groups, lr=0.01, backend=self.backend, **self.options)

    def first(self) -> None:
        self.step([self.grads[0][::2], self.grads[0][1::2]])

    def moved(self) -> None:
        self.step([self.grads[1][::2], self.grads[1][1::2]])

    def without(self) -> None:
        """A parameter has no gradient."""
        self.step([self.grads[2][::2], [None, self.grads[2][3]]])

    def flagged(self) -> None:
        """A flag asks for one more state."""
        self.opt.param_groups[1]["amsgrad"] = True
        self.step([self.grads[3][::2], self.grads[3][1::2]])

    def graph(self) -> None:
        no_garbage_of_others()  # Numba would free it where it finds no memory
        self.captured = captured(self.stream, lambda: self.opt.step([self.grads[0][::2], self.grads[0][1::2]]))

    def replay(self) -> None:
        self.captured.launch(self.stream)

    def save(self) -> None:
        self.saved = self.opt.state_dict()

    def load(self) -> None:
        self.opt.load_state_dict(self.saved)

    def found(self) -> Any:
        """The bits of all that a step may change."""
        self.stream.synchronize()
        state = None if self.opt is None else self.opt.state_dict()["state"]
        return bits(to_host([self.params, state]))


@contextmanager
def full(number: int) -> Iterator[None]:
    """Memory that is full from this allocation on, counted from here."""
    driver.failing = driver.allocations + number
    try:
        yield
    finally:
        driver.failing = 0


def undisturbed(backend: str, mode: str) -> tuple[list[Any], int]:
    """What is there before each action and at the end; and how many allocations there are, if nothing looks between."""
    import cupy

    training = Training(backend, mode)
    seen = [training.found()]
    for action in training.actions:
        action()
        seen.append(training.found())
    training = Training(backend, mode)
    before = driver.allocations
    for action in training.actions:
        action()
    count = driver.allocations - before
    assert training.found() == seen[-1], "looking changes nothing"
    cupy.cuda.Device().synchronize()
    return seen, count


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_call_fails_at_each_of_its_allocations_and_then_works(backend: str, mode: str) -> None:
    import cupy

    with cupy.cuda.using_allocator(None):  # CuPy's pool would hand out what it has
        expected, count = undisturbed(backend, mode)
        training, failed = Training(backend, mode), 0
        for k, action in enumerate(training.actions):
            number = 0
            while True:
                number += 1
                training.empty_staging()
                try:
                    with full(number):
                        action()
                except Exception as error:
                    unchanged(training, expected[k], number, action, error)
                    failed += 1
                else:
                    break
            assert training.found() == expected[k + 1], action.__name__
        assert failed >= count // 2 > 20


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_allocation_fails_and_all_goes_on(backend: str, mode: str) -> None:
    import cupy

    with cupy.cuda.using_allocator(None):  # CuPy's pool would hand out what it has
        expected, count = undisturbed(backend, mode)
        failed = 0
        for number in range(1, count + 1):
            failed += fails(Training(backend, mode), expected, number)
        assert failed == count


def unchanged(training: Training, expected: Any, number: int, action: Any, error: Exception) -> str:
    """Says where memory was full, once nothing is seen to have changed."""
    place = f"allocation {number} of {action.__name__}: {type(error).__name__}: {error}"
    assert training.found() == expected, place
    return place


def fails(training: Training, expected: list[Any], number: int) -> bool:
    """Whether an action fails where memory is full from this allocation on; then nothing is lost."""
    for k, action in enumerate(training.actions):
        already = driver.allocations
        try:
            with full(number):
                action()
        except Exception as error:
            place = unchanged(training, expected[k], number, action, error)
            for again in training.actions[k : k + 2]:
                again()
            assert training.found() == expected[min(k + 2, len(training.actions))], place
            return True
        number -= driver.allocations - already
    return False
