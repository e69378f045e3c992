"""Where tensors lie: memory orders, odd offsets, moved and reused memory, dtypes, complex numbers, sparse gradients.

Every step may find tensors elsewhere than the step before; what is wrong must be an error before anything is written.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import gpuopt
import gpuopt.torch
from gpuopt.errors import DtypeError, InputError
from torch_samples import bits, copied, everything, furthest, gradients, parameters, train

pytestmark = pytest.mark.usefixtures("looks")

ULPS = 16 * torch.finfo(torch.float32).eps
IMAGE = (2, 3, 4, 5)


def both(params: Any) -> list[tuple[Any, list[torch.nn.Parameter]]]:
    """Ours and torch's AdamW, each on copies of these parameters in their memory order."""
    pairs = []
    for cls in (gpuopt.torch.AdamW, torch.optim.AdamW):
        copies = [torch.nn.Parameter(torch.empty_like(p).copy_(p).detach()) for p in params]
        pairs.append((cls(copies, lr=0.1), copies))
    return pairs


# ---------------------------------------------------------------------------------------------------- memory orders


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("grad_order", [torch.contiguous_format, torch.channels_last], ids=["g nchw", "g nhwc"])
def test_channels_last(order: torch.memory_format, grad_order: torch.memory_format) -> None:
    pairs = both([p.to(memory_format=order) for p in parameters([IMAGE])])
    for opt, (p,) in pairs:
        for number in range(3):
            p.grad = gradients([torch.empty(IMAGE)], number)[0].to(memory_format=grad_order)
            opt.step()
        assert opt.state[p]["exp_avg"].stride() == p.stride()
    (_, found), (_, expected) = pairs
    assert furthest(found, expected) <= ULPS


def test_a_model_made_channels_last_between_steps_takes_its_states_along() -> None:
    pairs = both(parameters([IMAGE]))
    for opt, (p,) in pairs:
        for number in range(4):
            if number == 2:
                p.data = p.data.to(memory_format=torch.channels_last)
            p.grad = gradients([torch.empty(IMAGE)], number)[0]
            opt.step()
    (_, found), (_, expected) = pairs
    assert furthest(found, expected) <= ULPS


def test_states_loaded_in_another_memory_order() -> None:
    first, second = (
        parameters([IMAGE]),
        [torch.nn.Parameter(p.to(memory_format=torch.channels_last)) for p in parameters([IMAGE])],
    )
    opt, again = gpuopt.torch.AdamW(first), gpuopt.torch.AdamW(second)
    train(opt, first, range(2))
    second[0].data.copy_(first[0].data)
    again.load_state_dict(copied(opt.state_dict()))
    train(opt, first, range(2, 4))
    for number in range(2, 4):
        second[0].grad = gradients(first, number)[0]
        again.step()
    assert bits(list(first)) == bits(list(second))


@pytest.mark.parametrize("offset", range(5))
def test_misaligned_views_of_flat_buffers(offset: int) -> None:
    """As DistributedDataParallel keeps gradients, and sharding libraries parameters."""
    shapes = ((7,), (3, 5), (130, 127), (1,))
    pairs = both(parameters(shapes))
    ours, theirs = pairs
    sizes = [p.numel() for p in ours[1]]
    flat = [torch.full((offset + sum(sizes) + 5,), 777.0) for _ in range(2)]
    views = [[f[a:b].view_as(p) for a, b, p in zip(*bounds(sizes, offset), ours[1], strict=True)] for f in flat]
    for p, view in zip(ours[1], views[0], strict=True):
        p.data = view.copy_(p.data)
    for number in range(3):
        train(theirs[0], theirs[1], [number])
        for p, view, g in zip(ours[1], views[1], gradients(ours[1], number), strict=True):
            p.grad = view.copy_(g)
        ours[0].step()
    assert furthest(ours[1], theirs[1]) <= ULPS
    assert all(bool((f[:offset] == 777).all() and (f[-5:] == 777).all()) for f in flat), "written outside"


def bounds(sizes: list[int], offset: int) -> tuple[list[int], list[int]]:
    starts = [offset + sum(sizes[:k]) for k in range(len(sizes))]
    return starts, [a + n for a, n in zip(starts, sizes, strict=True)]


# ---------------------------------------------------------------------------------------------------- moved memory


def test_a_moved_parameter_is_updated_where_it_is_now() -> None:
    ours, theirs = both(parameters())
    old = []
    for number in range(4):
        for opt, params in (ours, theirs):
            train(opt, params, [number])
        old.append((ours[1][0].data, ours[1][0].data.clone()))
        ours[1][0].data = ours[1][0].data.clone()
    assert furthest(ours[1], theirs[1]) <= ULPS
    assert all(torch.equal(memory, before) for memory, before in old), "the memory it left was written"


def test_module_to_another_dtype_keeps_the_states() -> None:
    params = parameters([(4, 3)])
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(2))
    moment = opt.state[params[0]]["exp_avg"]
    params[0].grad = None
    params[0].data = params[0].data.to(torch.bfloat16)
    train(opt, params, range(2, 3))
    assert params[0].dtype is torch.bfloat16 and opt.state[params[0]]["exp_avg"] is moment
    assert opt.state[params[0]]["step"].item() == 3


@pytest.mark.parametrize("change", ["dtype", "order", "size"])
def test_a_reused_address_with_another_layout_is_noticed(change: str) -> None:
    memory = torch.zeros(12)
    p = torch.nn.Parameter(torch.empty(0))
    p.data = memory.view(3, 4)
    opt = gpuopt.torch.SGD([p], lr=1.0)
    p.grad = torch.arange(12.0).view(3, 4)
    opt.step()
    opt.step()
    memory.fill_(0)
    other = {"dtype": memory.view(torch.bfloat16)[:12].view(3, 4), "order": memory.view(4, 3).t(), "size": memory[:4]}
    assert other[change].data_ptr() == memory.data_ptr()
    p.grad = None
    p.data = other[change]
    p.grad = torch.arange(float(p.numel())).to(p.dtype).view(p.shape)
    opt.step()
    assert torch.equal(p.data, -p.grad)
    assert change != "size" or not memory[4:].any()


def test_gradient_pointers_change_at_every_step_and_layouts_too() -> None:
    ours, theirs = both(parameters([(6, 4), (5,)]))
    kept = []  # or an address would be used again
    for number in range(12):
        for opt, params in (ours, theirs):
            for p, g in zip(params, gradients(params, number), strict=True):
                p.grad = g.t().contiguous().t() if p.ndim == 2 and number in (6, 7, 9) else g
                kept.append(p.grad)
            opt.step()
    assert furthest(ours[1], theirs[1]) <= ULPS


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_gradients_are_not_kept_alive(backend: str) -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params, backend=backend)
    for number in range(3):
        train(opt, params, [number])
        alive = [weakref.ref(p.grad) for p in params]
        opt.zero_grad()
        assert [r() for r in alive] == [None] * len(params)


def test_gradients_go_on_after_one_was_refused() -> None:
    """Those that come next lie where others lay some steps before."""
    ours, theirs = both(parameters([(6,), (5,)]))
    early, late = (gradients(ours[1], k) for k in range(2))
    for opt, params in (ours, theirs):
        for number in range(7):
            for p, g in zip(params, late if number == 5 else early, strict=True):
                p.grad = g
            if number == 6 and opt is ours[0]:
                params[1].grad = params[1].data
                with pytest.raises(InputError, match="shares memory with"):
                    opt.step()
                params[1].grad = early[1]
            opt.step()
    assert furthest(ours[1], theirs[1]) <= ULPS


@pytest.mark.parametrize("shapes", [[(3,)], [(3,)] * 40], ids=["few", "many"])
@pytest.mark.parametrize("own_dense", [True, False])
def test_an_optimizer_and_its_states_go_at_once(shapes: Any, own_dense: bool) -> None:
    """They may be most of a GPU's memory, which cannot wait for a garbage collection."""
    params = parameters(shapes) if own_dense else [torch.nn.Parameter(torch.zeros(3, 2)[:, 0]) for _ in shapes]
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(6))
    array = np.ones(3)
    of_arrays = gpuopt.AdamW([array], lr=0.1)
    of_arrays.step([np.ones(3)])
    gc.disable()
    try:
        left = [weakref.ref(x) for x in (opt, opt.state[params[0]]["exp_avg"], of_arrays, array)]
        del opt, of_arrays, array
        assert [x() for x in left] == [None] * 4
    finally:
        gc.enable()


def test_the_graph_of_a_gradient_is_not_kept_alive() -> None:
    """A gradient may have been computed with `create_graph`, and be copied because its memory order is another."""
    (p,) = parameters([(6, 4)])
    opt = gpuopt.torch.AdamW([p])
    for _ in range(4):
        factor = torch.ones(4, 6, requires_grad=True)
        other = torch.ones(4, 6, requires_grad=True)
        p.grad = (factor * other).t()
        opt.step()
        alive = weakref.ref(other)
        p.grad = other = factor = None
        assert alive() is None


# ---------------------------------------------------------------------------------------------------- dtypes


def test_mixed_dtypes_in_one_optimizer_are_as_each_alone() -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    together = [parameters([(130, 3)], dtype)[0] for dtype in dtypes]
    alone = [parameters([(130, 3)], dtype) for dtype in dtypes]
    train(gpuopt.torch.AdamW(together), together, range(3))
    for (p,), q in zip(alone, together, strict=True):
        opt = gpuopt.torch.AdamW([p])
        for number in range(3):
            wide = torch.Generator().manual_seed(1000 + number)
            made = [torch.randn(130, 3, generator=wide, dtype=torch.float64) for _ in dtypes]
            p.grad = made[dtypes.index(p.dtype)].to(p.dtype)
            opt.step()
        assert bits(p) == bits(q)


def test_numpy_and_numba_give_the_same_bits_on_torch_tensors() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        results = []
        for backend in ("numpy", "numba"):
            params = parameters([(130, 3), (0,), ()], dtype)
            opt = gpuopt.torch.AdamW(params, backend=backend)
            train(opt, params, range(3))
            assert opt.backend == backend
            results.append(everything(opt))
        assert results[0] == results[1]


def test_complex_parameters_as_torch_even_where_a_conjugation_is_pending() -> None:
    ours, theirs = both(parameters([(4, 3), (5,)], torch.complex64))
    for number in range(4):
        for opt, params in (ours, theirs):
            for p, g in zip(params, gradients(params, number), strict=True):
                p.grad = g.conj() if number % 2 else g
                if opt is theirs[0]:  # torch cannot step with one that is pending
                    p.grad = p.grad.resolve_conj()
            opt.step()
    assert furthest(ours[1], theirs[1]) <= ULPS
    assert ours[0].state[ours[1][0]]["exp_avg"].dtype is torch.complex64


def test_a_pending_negation_is_carried_out() -> None:
    """Autograd leaves one where a real parameter enters as the imaginary part of a conjugated number."""
    ours, theirs = both(parameters([(), ()]))
    for number in range(3):
        for opt, (a, b) in (ours, theirs):
            opt.zero_grad()
            z = torch.complex(a, b)
            ((z.conj() if number else z) * torch.tensor(1 + 2j)).real.backward()
            assert b.grad.is_neg() == (number > 0)
            opt.step()
    assert furthest(ours[1], theirs[1]) <= ULPS


# ---------------------------------------------------------------------------------------------------- refusals


def refusals() -> dict[str, tuple[Any, type[Exception], str]]:
    """What is done to one of two parameters with gradients, the error, and what it says."""

    def sparse(p: torch.Tensor) -> None:
        p.grad = p.grad.to_sparse()

    def expanded(p: torch.Tensor) -> None:
        p.data = torch.zeros(1).expand(2, 3)

    def own_gradient(p: torch.Tensor) -> None:
        p.grad = p.data

    return {
        "sparse": (sparse, DtypeError, "gradient of .*2 sparse axes: expected one, of rows"),
        "expanded": (expanded, InputError, "overlaps itself"),
        "own gradient": (own_gradient, InputError, "shares memory with"),
    }


@pytest.mark.parametrize("steps", [0, 2, 4])
@pytest.mark.parametrize("case", refusals())
def test_refused_before_anything_is_written(case: str, steps: int) -> None:
    spoil, error, words = refusals()[case]
    params = parameters([(6,), (2, 3)])
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(steps))
    for p in params:
        p.grad = torch.ones_like(p)
    spoil(params[1])
    before = everything(opt)
    for _ in range(2):
        with pytest.raises(error, match=words):
            opt.step()
    assert everything(opt) == before


def test_overlapping_and_duplicate_parameters_are_refused() -> None:
    flat = torch.zeros(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the duplicate
        p = torch.nn.Parameter(torch.zeros(4))
        duplicate = gpuopt.torch.AdamW([p, p])
    overlapping = gpuopt.torch.AdamW([torch.nn.Parameter(flat[:6]), torch.nn.Parameter(flat[5:])])
    for opt in (duplicate, overlapping):
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        for _ in range(2):
            with pytest.raises(InputError, match="overlaps"):
                opt.step()
    assert not flat.any()


@pytest.mark.parametrize("mask", [torch.ones(3, 4), torch.ones(4, 3) > 0], ids=["dtype", "shape"])
def test_masks_are_checked(mask: torch.Tensor) -> None:
    (p,) = parameters([(3, 4)])
    opt = gpuopt.torch.AdamW([p], mask={p: mask})
    p.grad = torch.ones(3, 4)
    with pytest.raises(InputError, match=r"mask of .*expected bool \(3, 4\) on cpu"):
        opt.step()


def test_a_sharded_tensor_is_no_array() -> None:
    """It keeps its values in another tensor, which `gpuopt.torch` knows; see test_torch_shards."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = dist.init_device_mesh("cpu", (2,))
        p = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
        with pytest.raises(InputError, match=r"a DTensor has no memory of its own: .* to_local"):
            gpuopt.AdamW([p])
    finally:
        dist.destroy_process_group()


def test_other_devices_are_refused() -> None:
    p = torch.nn.Parameter(torch.zeros(3, device="meta"))
    p.grad = torch.zeros(3, device="meta")
    with pytest.raises(InputError, match="on device meta"):
        gpuopt.torch.AdamW([p]).step()
