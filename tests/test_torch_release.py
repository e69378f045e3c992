"""Gradient release: training is bit for bit what it is with `step()`, whatever happens between and within passes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gpuopt.torch
from covering import each
from gpuopt import rules
from gpuopt.errors import InputError
from gpuopt.torch import release
from torch_samples import bits, copied, create, everything

LOCAL = [name for name in rules.NAMES if not rules.get(name).joint]  # a step of the others needs every gradient at once


class Net(nn.Module):
    """A layer used twice, one used sometimes, two whose gradients come in one order or the other, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in ("first", "twice", "sometimes", "left", "right", "frozen"):
            setattr(self, name, nn.Linear(4, 4))
        self.frozen.requires_grad_(False)
        self.broken = False

    def forward(self, x: torch.Tensor, number: int) -> torch.Tensor:
        x = self.twice(self.twice(self.first(x)).tanh()).tanh()
        if self.broken:
            x = Broken.apply(x)
        if number % 3 != 1:
            x = x + self.sometimes(x)
        order = (self.left, self.right) if number % 4 != 2 else (self.right, self.left)
        return self.frozen(order[1](order[0](x).tanh())).square().mean()


def decaying(steps: int) -> float:
    return 0.1 / (steps + 1)


class Broken(torch.autograd.Function):
    """Backward fails here."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise ArithmeticError("half way")


def samples(number: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(number))


def grouped(net: Net, name: str = "adamw", **options: Any) -> Any:
    """An optimizer with two groups, whose parameters come in turns."""
    params = list(net.parameters())
    groups = [{"params": params[::2], "lr": 0.05}, {"params": params[1::2], "lr": 0.02, "maximize": False}]
    return create(name, groups, **options)


def trained(released: bool, make: Callable[[Net], Any], between: Callable[[int, Net, Any], None] | None = None) -> Any:
    """Everything after 12 passes. between: is called after each, with its number."""
    net = Net()
    opt = make(net)
    end = gpuopt.torch.release_gradients(net, opt) if released else None
    for number in range(12):
        net(samples(number), number).backward()
        assert not released or between or all(p.grad is None for p in net.parameters())
        opt.step()
        opt.zero_grad()
        if between:
            between(number, net, opt)
    if end is not None:
        end()
    return everything(opt)


# ---------------------------------------------------------------------------------------------------- the same bits


SIZES = {"each alone": 1, "some together": 100, "all at once": 1 << 20}  # of batches, in bytes


@pytest.fixture(params=SIZES)
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many bytes. The search among all objects would take nearly all the time."""
    monkeypatch.setattr(release, "BATCH", SIZES[request.param])
    monkeypatch.setattr(release, "refuse_users", lambda params: None)


@pytest.mark.parametrize(("name", "batches"), each(LOCAL, SIZES, single=True), indirect=["batches"])
def test_it_is_ordinary_training(name: str, batches: None) -> None:
    assert trained(True, lambda net: grouped(net, name)) == trained(False, lambda net: grouped(net, name))


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize(
    "options",
    [
        {"state_format": "bfloat16", "seed": 9},
        {"amsgrad": True, "l1": 0.01, "clip_value": 0.01},
        {"lr": decaying},
        {"lr": torch.tensor(0.1)},
        {"grad_scale": 4.0, "backend": "numpy"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(options: dict[str, Any]) -> None:
    """Numbers at random belong to a parameter's place in the optimizer, whatever it is stepped with."""

    def make(net: Net) -> Any:
        return gpuopt.torch.Adam(net.parameters(), **options)

    assert trained(True, make) == trained(False, make)


@pytest.mark.usefixtures("batches")
def test_steps_are_counted_where_no_state_says_so() -> None:
    """Whatever a parameter was stepped with the last time."""

    def make(net: Net) -> Any:
        return gpuopt.torch.SGD(net.parameters(), lr=decaying)

    assert trained(True, make) == trained(False, make)


def halve(number: int, net: Net, opt: Any) -> None:
    opt.param_groups[number % 2]["lr"] *= 0.5


def reload(number: int, net: Net, opt: Any) -> None:
    opt.load_state_dict(copied(opt.state_dict()))


def save(number: int, net: Net, opt: Any) -> None:
    torch.save(opt.state_dict(), io.BytesIO())
    assert everything(copy.deepcopy(opt)) == everything(opt) == everything(pickle.loads(pickle.dumps(opt)))


def step_by_hand(number: int, net: Net, opt: Any) -> None:
    """A step with gradients that no backward pass has made."""
    for k, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, 0.1 * k) if k != number % 5 else None
    opt.step()
    opt.zero_grad()


def unfreeze(number: int, net: Net, opt: Any) -> None:
    net.frozen.requires_grad_(number % 5 == 4)


def freeze(number: int, net: Net, opt: Any) -> None:
    net.left.requires_grad_(number % 5 == 4)


def another_group(number: int, net: Net, opt: Any) -> None:
    if number == 5:
        net.left.weight = nn.Parameter(net.left.weight.detach() * 2)
        opt.add_param_group({"params": [net.left.weight], "lr": 0.3})


def other_group(number: int, net: Net, opt: Any) -> None:
    """Parameters change groups."""
    here, there = (group["params"] for group in opt.param_groups)
    here.append(there.pop(0))
    there.append(here.pop(0))


def take_out(opt: Any, p: torch.Tensor) -> None:
    group = opt.param_groups[0]
    group["params"] = [other for other in group["params"] if other is not p]
    opt.state.pop(p, None)


def removed(number: int, net: Net, opt: Any) -> None:
    if number == 5:
        take_out(opt, net.twice.weight)


def forget(number: int, net: Net, opt: Any) -> None:
    if number == 4:
        opt.state.clear()
    if number == 7:
        del opt.state[net.twice.weight]


def rewind(number: int, net: Net, opt: Any) -> None:
    if "step" in opt.state[net.twice.weight] and number == 5:
        opt.state[net.twice.weight]["step"].fill_(1.0)


def move(number: int, net: Net, opt: Any) -> None:
    net.first.weight.data = net.first.weight.data.clone()
    net.twice.weight.data = net.twice.weight.data.t().contiguous().t()
    for name, tensor in opt.state[net.right.weight].items():
        if name != "step":
            tensor.data = tensor.data.clone()


def init(number: int, net: Net, opt: Any) -> None:
    opt.init_state()


BETWEEN = {
    f.__name__: f
    for f in (
        halve, reload, save, step_by_hand, unfreeze, freeze, another_group, other_group, removed, forget, rewind, move, init,
    )
}  # fmt: skip


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", ["adamw", "sgd"])  # the one keeps step counts, the other does not
def test_whatever_is_done_between_passes(name: str, between: str) -> None:
    options = {"momentum": 0.9, "dampening": 0.5} if name == "sgd" else {}
    runs = [trained(flag, lambda net: grouped(net, name, **options), BETWEEN[between]) for flag in (True, False)]
    assert runs[0] == runs[1]


def test_the_gradient_of_a_parameter_that_was_taken_out_stays() -> None:
    net = Net()
    opt = gpuopt.torch.AdamW(net.parameters())
    gpuopt.torch.release_gradients(net, opt)
    take_out(opt, net.twice.weight)
    net(samples(0), 0).backward()
    assert net.twice.weight.grad is not None and net.twice.bias.grad is None


@pytest.mark.parametrize("after", ["none", "zeros", "kept"])
@pytest.mark.parametrize("broken", [0, 3])
def test_a_pass_that_fails_half_way(broken: int, after: str) -> None:
    """What has not been stepped is as torch leaves it: in `.grad`."""

    def run(released: bool) -> Any:
        net = Net()
        opt = gpuopt.torch.AdamW(net.parameters(), lr=0.1)
        if released:
            gpuopt.torch.release_gradients(net, opt)
        for number in range(6):
            net.broken = number == broken
            if net.broken:
                with pytest.raises(ArithmeticError):
                    net(samples(number), number).backward()
                left = bits([p.grad for p in net.parameters()])
                if after != "kept":
                    opt.zero_grad(set_to_none=after == "none")
            else:
                net(samples(number), number).backward()
                opt.step()
                opt.zero_grad()
        return left, everything(opt)

    assert run(True) == run(False)


def test_a_step_that_fails_leaves_its_gradients() -> None:
    net = Net()
    opt = gpuopt.torch.AdamW(net.parameters())
    gpuopt.torch.release_gradients(net, opt)
    net(samples(0), 0).backward()
    before = everything(opt)
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(InputError, match="lr"):
        net(samples(1), 0).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    opt.param_groups[0]["lr"] = 1e-3
    assert everything(opt) == before


@pytest.mark.usefixtures("batches")
def test_passes_inside_a_pass() -> None:
    """As checkpoints make them that enter autograd again."""

    def run(released: bool) -> Any:
        torch.manual_seed(0)
        layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        opt = gpuopt.torch.AdamW(layers.parameters(), lr=0.1)
        if released:
            gpuopt.torch.release_gradients(layers, opt)
        for number in range(4):
            x = layers[0](samples(number))
            x = checkpoint(lambda y: layers[2](layers[1](y).tanh()), x, use_reentrant=True)
            layers[3](x).square().mean().backward()
            assert not released or all(p.grad is None for p in layers.parameters())
            opt.step()
            opt.zero_grad()
        return everything(opt)

    assert run(True) == run(False)


def test_each_pass_ends_with_its_own_steps() -> None:
    """Also one that another makes half way, where gradients of both wait."""
    net, left = Net(), []

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            with torch.enable_grad():
                net.left(samples(0)).sum().backward()
            left.extend([net.left.weight.grad, net.right.weight.grad])
            return grads

    gpuopt.torch.release_gradients(net, gpuopt.torch.AdamW(net.parameters()))
    net.right(Inner.apply(net.first(samples(1)))).sum().backward()
    assert left[0] is None and left[1] is not None and net.right.weight.grad is None


def test_two_passes_through_one_graph_are_two_steps() -> None:
    def run(released: bool) -> Any:
        layer = nn.Linear(4, 4)
        with torch.no_grad():
            layer.weight.fill_(0.5), layer.bias.fill_(0.1)
        opt = gpuopt.torch.AdamW(layer.parameters(), lr=0.1)
        if released:
            gpuopt.torch.release_gradients(layer, opt)
        loss = layer(samples(0)).square().mean()
        for again in (True, False):
            loss.backward(retain_graph=again)
            if not released:
                opt.step()
                opt.zero_grad()
        return everything(opt)

    assert run(True) == run(False)


def test_autograd_is_told_of_what_is_written() -> None:
    p = nn.Parameter(torch.ones(3))
    holder = nn.ParameterList([p])
    gpuopt.torch.release_gradients(holder, gpuopt.torch.AdamW([p]))
    loss = p.square().sum()
    before = p._version
    loss.backward(retain_graph=True)
    assert p._version > before
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_it_begins_and_ends_within_training() -> None:
    """What has a gradient after a pass is what is not released."""
    nets = Net(), Net()
    (found, net), (usual, ordinary) = ((gpuopt.torch.AdamW(n.parameters(), lr=0.1), n) for n in nets)
    for number in range(12):
        if number == 4:
            end = gpuopt.torch.release_gradients(net, found)
        if number == 8:
            assert found.state_dict()["state"][0]["step"] == 8
            end()
        for opt, model in ((found, net), (usual, ordinary)):
            opt.zero_grad()
            model(samples(number), number).backward()
            assert (model.first.weight.grad is None) == (model is net and 4 <= number < 8)
            opt.step()
    assert everything(found) == everything(usual)


def test_a_pass_that_failed_is_forgotten() -> None:
    net = Net()
    net.broken = True
    params = set(net.parameters())
    released = release.Release(gpuopt.torch.AdamW(params), params)
    for p in net.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(released.take)
    for _ in range(3):
        with pytest.raises(ArithmeticError):
            net(samples(0), 0).backward()
    assert not released.waiting
