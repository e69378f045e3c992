"""What was given earlier is not trusted for ever: memory that moved, arrays made read-only, values changed in place, forks."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import gpuopt


@pytest.mark.parametrize("rule", ["GD", "AdamW", "SGD"])
def test_a_parameter_that_moved_is_stepped_at_its_new_place(rule):
    p, twin = torch.ones(4), np.ones(4, np.float32)
    opt, other = getattr(gpuopt, rule)([p], lr=0.1), getattr(gpuopt, rule)([twin], lr=0.1)
    opt.step([torch.ones(4)])
    other.step([np.ones(4, np.float32)])
    old, before = p.data, p.data.clone()
    p.data, twin[:] = torch.full((4,), 5.0), 5
    opt.step([torch.ones(4)])
    other.step([np.ones(4, np.float32)])
    assert np.array_equal(p.numpy(), twin) and torch.equal(old, before)


def test_gradient_and_mask_that_moved_are_read_at_their_new_place():
    w, g, mask = torch.zeros(4), torch.ones(4), torch.ones(4, dtype=torch.bool)
    opt = gpuopt.GD([w], lr=1.0, mask=[mask])
    opt.step([g])
    kept = g.data, mask.data
    g.data, mask.data = torch.full((4,), 5.0), torch.tensor([True, False, True, True])
    opt.step([g])
    assert w.tolist() == [-6.0, 0.0, -6.0, -6.0] and len(kept) == 2


def test_bounds_and_mask_follow_a_parameter_that_lies_in_another_order_now():
    w, low, mask = torch.zeros(2, 3), -torch.arange(6.0).reshape(2, 3), torch.arange(6).reshape(2, 3) > 1
    opt = gpuopt.GD([w], lr=1.0, bounds=[(low, None)], mask=[mask])
    opt.step([torch.full((2, 3), 9.0)])
    w.data = w.data.t().contiguous().t()
    opt.step([torch.full((2, 3), 9.0)])
    assert torch.equal(w, low * mask)


@pytest.mark.parametrize("which", ["parameter", "gradient"])
def test_memory_given_up_is_refused(which):
    w, g = torch.zeros(4), torch.ones(4)
    opt = gpuopt.GD([w], lr=1.0)
    opt.step([g])
    (w if which == "parameter" else g).untyped_storage().resize_(0)
    with pytest.raises(gpuopt.GpuoptError):
        opt.step([g])


def test_an_array_made_read_only_later_is_refused():
    w, g = np.zeros(4), np.ones(4)
    opt = gpuopt.GD([w], lr=1.0)
    opt.step([g])
    w.setflags(write=False)
    for _ in range(2):
        with pytest.raises(gpuopt.GpuoptError, match="read-only"):
            opt.step([g])
    assert w.tolist() == [-1.0] * 4


@pytest.mark.parametrize(("name", "start", "wrong"), [("lr", np.array(0.1), -1.0), ("betas", [0.9, 0.99], 1.5)])
def test_a_value_changed_in_place_is_checked_again(name, start, wrong):
    w, g = np.zeros(4), np.ones(4)
    opt = gpuopt.AdamW([w], **{"lr": 0.1} | {name: start})
    opt.step([g])
    start[() if name == "lr" else 1] = wrong
    with pytest.raises(gpuopt.GpuoptError, match=name):
        opt.step([g])


def test_masked_arrays_are_refused_by_name():
    masked = np.ma.array([1.0, 1e30], mask=[0, 1])
    with pytest.raises(gpuopt.GpuoptError, match="masked"):
        gpuopt.GD([masked], lr=0.1)
    w = np.ones(2)
    with pytest.raises(gpuopt.GpuoptError, match="masked"):
        gpuopt.GD([w], lr=0.1).step([masked])
    with pytest.raises(gpuopt.GpuoptError, match="masked"):
        gpuopt.GD([w], lr=0.1, mask=[np.ma.array([True, False], mask=[0, 1])])


MADE_LATE = """def step(of=[]):
    global opt, other
    if not of:
        of += made()
        opt, other = of"""

# Results are read through NumPy: torch's own arithmetic on several threads hangs in a forked child.
FORK = """
import os
os.environ["NUMBA_NUM_THREADS"] = "2"
import numpy as np, torch, gpuopt, gpuopt.torch
before = {before}
w, p = np.zeros(200_000, np.float32), torch.zeros(200_000)
p.grad = torch.ones(200_000)
opt, other = gpuopt.AdamW([w], lr=0.1, max_grad_norm=1e9), gpuopt.torch.AdamW([p], lr=0.1)
def step():
    opt.step([np.ones_like(w)])
    other.step()
def in_child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def child():
    step()
    assert abs(w + 0.1 * (before + 1)).max() < 1e-3 and abs(p.numpy() + 0.1 * (before + 1)).max() < 1e-3
    if {again}:
        in_child(step)
for _ in range(before):
    step()
in_child(child)
"""


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("before", "again"), [(1, False), (0, True), (2, True)])
def test_a_forked_child_steps(before, again, late):
    """`late`: torch has its threads before gpuopt's backend is imported, in the parent or, with no step before, in the child."""
    text = FORK.format(before=before, again=again)
    if late:
        text = text.replace("opt, other = ", "def made():\n    return ").replace("def step():", MADE_LATE)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_openmp_is_taken_for_openmp():
    """SciPy has files such as `_decomp_lu`: a forked process that has no other package's threads keeps its own."""
    text = (
        "import scipy.linalg; from gpuopt.backends.numba import openmp_loaded as loaded; assert not loaded();"
        "import torch; assert loaded()"
    )
    subprocess.run([sys.executable, "-c", text], check=True, timeout=100)
