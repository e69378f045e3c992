"""`gpuopt.torch` on a GPU: torch's optimizers, CPU bits, AMP, CUDA graphs, streams, odd memory, one launch a step.

Marked `gpu`. Nothing here touches CUDA when it is imported.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import optim_db

import gpuopt.torch
from gpuopt.errors import GpuoptError
from torch_samples import bits, create, everything, furthest, gradients, parameters, train

pytestmark = [pytest.mark.gpu, pytest.mark.hardware]
SHAPES = ((130, 127), (4, 3), (0,), (), (257,))
BACKENDS = ("cupy", "numba-cuda")
NAMES = gpuopt.torch.optimizers()
# float32 on both sides, but torch's kernels contract products and sums and take powers in float32.
ROUNDING = 1e-5


def cuda_parameters(shapes: Any = SHAPES, dtype: torch.dtype = torch.float32) -> Any:
    return parameters(shapes, dtype, "cuda")


# ---------------------------------------------------------------------------------------------------- numbers


def titles() -> dict[str, Any]:
    return {t: getattr(gpuopt.torch, t) for t in gpuopt.torch.__all__ if t.lower() in NAMES}


@pytest.mark.parametrize(
    "info", [i for i in optim_db if i.optim_cls.__name__ in titles()], ids=lambda info: info.optim_cls.__name__
)
def test_as_torch_on_cuda_in_every_configuration(info: Any) -> None:
    for given in info.optim_inputs_func(device="cuda"):
        found, expected = cuda_parameters(), cuda_parameters()
        ours = titles()[info.optim_cls.__name__](found, **given.kwargs)
        train(ours, found, range(5))
        train(info.optim_cls(expected, **given.kwargs), expected, range(5))
        assert furthest(found, expected) <= ROUNDING, given.kwargs
        assert all(s["step"].item() == 5 for s in ours.state_dict()["state"].values() if "step" in s)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_as_torchs_fused(name: str) -> None:
    options = {"lr": 0.01, "weight_decay": 0.1, **({"momentum": 0.9} if name == "SGD" else {"amsgrad": True})}
    found, expected = cuda_parameters(), cuda_parameters()
    train(getattr(gpuopt.torch, name)(found, **options), found, range(10))
    train(getattr(torch.optim, name)(expected, fused=True, **options), expected, range(10))
    assert furthest(found, expected) <= ROUNDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_bits_of_the_cpu(name: str, backend: str, dtype: torch.dtype) -> None:
    results = []
    for device, chosen in (("cpu", "numba"), ("cuda", backend)):
        params = parameters(SHAPES, dtype, device)
        opt = create(name, params, backend=chosen)
        train(opt, params, range(4))
        results.append(everything(opt))
    assert results[0] == results[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoint_from_the_gpu_goes_on_on_the_cpu_with_the_same_bits(backend: str) -> None:
    params = cuda_parameters()
    opt = gpuopt.torch.AdamW(params, backend=backend)
    train(opt, params, range(2))
    copies = [nn.Parameter(p.detach().cpu()) for p in params]
    again = gpuopt.torch.AdamW(copies)
    again.load_state_dict(opt.state_dict())
    train(opt, params, range(2, 4))
    train(again, copies, range(2, 4))
    assert bits(list(params)) == bits(list(copies))


# ---------------------------------------------------------------------------------------------------- AMP


@pytest.mark.parametrize("name", ["AdamW", "SGD"])  # AdamW alone would hardly notice a gradient of another scale
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_grad_scaler(backend: str, unscale: bool, name: str) -> None:
    """The third step overflows: nothing changes, not even the step count, and nothing waits for the GPU to learn it."""

    def run(make: Any) -> Any:
        params = cuda_parameters()
        opt, scaler = make(params), torch.amp.GradScaler("cuda", init_scale=1024.0)
        for number in range(5):
            scaler.scale(torch.ones((), device="cuda"))
            for p, g in zip(params, gradients(params, number), strict=True):
                p.grad = g * scaler.get_scale()
            if number == 2:
                params[0].grad[3, 4] = torch.inf
            if unscale:
                scaler.unscale_(opt)
            before = everything(opt) if number == 2 else None
            scaler.step(opt)
            scaler.update()
            assert before is None or everything(opt) == before
        return params, opt

    found, opt = run(lambda p: getattr(gpuopt.torch, name)(p, lr=0.1, backend=backend))
    expected, _ = run(lambda p: getattr(torch.optim, name)(p, lr=0.1, fused=True))
    assert furthest(found, expected) <= ROUNDING
    assert name == "SGD" or opt.state_dict()["state"][0]["step"].item() == 4


# ---------------------------------------------------------------------------------------------------- CUDA graphs


def captured(opt: Any) -> torch.cuda.CUDAGraph:
    """A graph of one step, after a warm-up step on a side stream, as torch's documentation has it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        opt.step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step()
    return graph


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_graph_replays_are_eager_steps(name: str) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {"amsgrad": True}
    replayed, eager = cuda_parameters(), cuda_parameters()
    opt = create(name.lower(), replayed, capturable=True, **options)
    usual = create(name.lower(), eager, **options)
    static, fresh = gradients(replayed, 0), gradients(eager, 0)
    for params, given in ((replayed, static), (eager, fresh)):
        for p, g in zip(params, given, strict=True):
            p.grad = g
    graph = captured(opt)
    usual.step()
    for number in range(100):
        for one, other, g in zip(static, fresh, gradients(replayed, number), strict=True):
            one.copy_(g)
            other.copy_(g)
        graph.replay()
        usual.step()
    assert everything(opt)[0] == everything(usual)[0]
    assert bits(opt.state_dict()["state"]) == bits(usual.state_dict()["state"]), "101 steps were counted on the GPU"


def test_a_rate_on_the_gpu_is_read_at_every_replay() -> None:
    """As a scheduler changes it: in place, between replays, and nothing waits."""
    replayed, eager = cuda_parameters(), cuda_parameters()
    rate = torch.tensor(0.1, device="cuda")
    opt, usual = create("adamw", replayed, lr=rate, capturable=True), create("adamw", eager, lr=rate.item())
    for params in (replayed, eager):
        for p, g in zip(params, gradients(params, 0), strict=True):
            p.grad = g
    graph = captured(opt)
    usual.step()
    for _ in range(20):
        rate.mul_(0.5)
        usual.param_groups[0]["lr"] = rate.item()
        graph.replay()
        usual.step()
    assert everything(opt)[0] == everything(usual)[0]


def test_gradients_get_their_addresses_in_the_capture_and_eager_steps_go_on() -> None:
    """As torch's documentation captures a whole network: gradients of the pool of the graph, made inside the capture."""
    graphed, eager = cuda_parameters(), cuda_parameters()
    opt, usual = gpuopt.torch.AdamW(graphed, capturable=True), gpuopt.torch.AdamW(eager)
    train(opt, graphed, range(1))
    train(usual, eager, range(1))
    torch.cuda.synchronize()
    opt.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for p in graphed:
            p.grad = torch.ones_like(p)
        opt.step()
    for number in range(1, 4):
        graph.replay()
        for p in eager:
            p.grad = torch.ones_like(p)
        usual.step()
        train(opt, graphed, range(number, number + 1))
        train(usual, eager, range(number, number + 1))
    assert everything(opt)[0] == everything(usual)[0]


def test_capture_before_the_first_step_is_an_error() -> None:
    params = cuda_parameters()
    opt = gpuopt.torch.AdamW(params, capturable=True)
    opt.init_state()
    for p in params:
        p.grad = torch.ones_like(p)
    torch.cuda.synchronize()
    with pytest.raises(GpuoptError, match="run one step before"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        opt.step()


# ---------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_follow_the_current_stream(backend: str) -> None:
    """Each gradient is written on a side stream that is kept busy first; a step on any other stream would read the old one."""
    p = nn.Parameter(torch.zeros(1000, device="cuda"))
    opt = gpuopt.torch.SGD([p], lr=1.0, backend=backend)
    p.grad = torch.zeros_like(p)
    opt.step()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    for number in range(20):
        with torch.cuda.stream(side):
            p.grad.zero_()
            torch.cuda._sleep(20_000_000)
            p.grad.fill_(1.0)
            opt.step()
        side.synchronize()
        assert bool((p == -(number + 1)).all())


def test_gradient_release_on_the_streams_of_backward() -> None:
    def run(release: bool) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).cuda()
        opt = gpuopt.torch.AdamW(model.parameters())
        if release:
            gpuopt.torch.release_gradients(model, opt)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        for _ in range(5):
            with torch.cuda.stream(side):
                opt.zero_grad()
                torch.cuda._sleep(5_000_000)
                model(torch.ones(8, 64, device="cuda")).square().mean().backward()
                opt.step()
        torch.cuda.synchronize()
        return bits(list(model.parameters()))

    assert run(True) == run(False)


def test_gradient_release_of_layers_on_streams_of_their_own() -> None:
    """Gradients wait on the stream that makes them, and what comes after `backward()` waits for their steps."""

    def run(release: bool) -> Any:
        torch.manual_seed(0)
        layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3)).cuda()
        opt = gpuopt.torch.AdamW(layers.parameters(), lr=0.1)
        if release:
            gpuopt.torch.release_gradients(layers, opt)
        sides = [torch.cuda.Stream() for _ in layers]
        seen = []
        for number in range(5):
            opt.zero_grad()
            x = torch.full((8, 64), 0.1 * number + 0.1, device="cuda")
            for layer, side in zip(layers, sides, strict=True):
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    torch.cuda._sleep(5_000_000)
                    x = layer(x).tanh()
                torch.cuda.current_stream().wait_stream(side)
            x.square().mean().backward()
            opt.step()
            seen.append([p.detach().clone() for p in layers.parameters()])
        torch.cuda.synchronize()
        return bits(seen)

    assert run(True) == run(False)


# ---------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_misaligned_and_moved(backend: str) -> None:
    shapes = ((2, 3, 4, 5), (7,), (130, 127))
    flat = torch.full((3 + 7 + 130 * 127 + 5,), 777.0, device="cuda")
    results = []
    for device, chosen in (("cpu", "numba"), ("cuda", backend)):
        params = parameters(shapes, torch.float32, device)
        params[0].data = params[0].data.to(memory_format=torch.channels_last)
        if device == "cuda":
            params[1].data = flat[3:10].copy_(params[1].data)
            params[2].data = flat[10 : 10 + 130 * 127].view(130, 127).copy_(params[2].data)
        opt = gpuopt.torch.AdamW(params, backend=chosen)
        train(opt, params, range(2))
        old = params[0].data
        params[0].data = params[0].data.clone()
        left = bits(old)
        train(opt, params, range(2, 4))
        assert bits(old) == left, "the memory it left was written"
        results.append(everything(opt))
    assert results[0] == results[1]
    assert bool((flat[:3] == 777).all() and (flat[-5:] == 777).all())


def profiled_kernels(opt: Any) -> list[str]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        opt.step()
        torch.cuda.synchronize()
    on_gpu = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [e.name for e in on_gpu if not e.name.startswith(("Memcpy", "Memset", "Optimizer"))]


def test_5000_tensors_step_in_one_launch() -> None:
    sizes = torch.randint(0, 300, (5000,), generator=torch.Generator().manual_seed(0)).tolist()
    results = []
    for device in ("cpu", "cuda"):
        params = parameters([(n,) for n in sizes], torch.float32, device)
        opt = gpuopt.torch.AdamW(params, backend="numba" if device == "cpu" else "cupy")
        train(opt, params, range(3))
        results.append(bits(list(params)))
        if device == "cuda":
            kernels = profiled_kernels(opt)
            assert len(kernels) == 1 and "gpuopt_update" in kernels[0]
    assert results[0] == results[1]


def test_a_step_makes_torch_wait_for_nothing() -> None:
    params = cuda_parameters()
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        opt.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
