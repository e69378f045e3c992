"""Options that bend an update by lengths of tensors and rows, against their papers' formulas in NumPy, in float64.

The oracle is a composition: an update before the rate as its author has it, and what the option means around it, both written out
here. That all backends have these bits is in test_bits.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt
from cases import Array
from gpuopt.optim import companions, geometry, hyper
from gpuopt.source import program
from repository import ROOT
from samples import bits, difference, gradients, parameters, refused

README = ROOT / "README.md"

LR, STEPS = 0.05, 6
# Wide, tall, a convolution, one axis, a number, of several chunks; then a tensor of zeros, one that is never moved, and nothing.
SHAPES = ((3, 50), (40, 3), (4, 2, 3), (7,), (), (300, 130), (4, 5), (5, 4), (0, 3))
ZEROS, STILL = 6, 7
States = dict[str, Array]


def sgd(t: int, p: Array, g: Array, s: States) -> Array:
    """Sutskever et al. 2013, in torch's form."""
    s["b"] = g if t == 1 else 0.9 * s["b"] + g
    return s["b"]


def adam(t: int, p: Array, g: Array, s: States) -> Array:
    """Kingma & Ba 2015."""
    s["m"] = 0.8 * s.get("m", 0) + 0.2 * g
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g * g
    return s["m"] / (1 - 0.8**t) / (np.sqrt(s["v"] / (1 - 0.9**t)) + 1e-3)


def lion(t: int, p: Array, g: Array, s: States) -> Array:
    """Chen et al. 2023."""
    m = s.get("m", np.zeros_like(g))
    s["m"] = 0.99 * m + 0.01 * g
    return np.sign(0.9 * m + 0.1 * g)


def lamb(t: int, p: Array, g: Array, s: States) -> Array:
    """You et al. 2020."""
    u = adam(t, p, g, s)
    held, length = np.linalg.norm(p), np.linalg.norm(u)
    return u * (held / length if held > 0 and length > 0 else 1.0)


ADAM = {"betas": (0.8, 0.9), "eps": 1e-3}
# Class -> hyperparameters, and the update before the rate.
RULES: dict[str, tuple[dict[str, Any], Callable[..., Array]]] = {
    "SGD": ({"momentum": 0.9}, sgd),
    "AdamW": ({**ADAM, "weight_decay": 0.0}, adam),
    "Lion": ({"weight_decay": 0.0}, lion),
    "LAMB": ({**ADAM, "weight_decay": 0.0, "always_adapt": True, "max_grad_norm": None}, lamb),
}
NAMES = pytest.mark.parametrize("name", RULES)


def norm(x: Array) -> float:
    return float(np.sqrt(np.sum(x * x)))


def units(x: Array) -> Array:
    """The norm of each output unit (all axes but the first), of a vector or number the whole one's."""
    if x.ndim < 2:
        return np.asarray(norm(x))
    return np.sqrt(np.sum(x * x, axis=tuple(range(1, x.ndim)), keepdims=True))


def moved(p: Array, u: Array) -> Array:
    return p - LR * u


def adaptive(p: Array, g: Array) -> Array:
    """Brock et al. 2021, equation 3."""
    slope, held = units(g), np.maximum(units(p), 1e-3)
    with np.errstate(all="ignore"):
        return np.where(slope / held > 0.2, 0.2 * held / slope * g, g)


def cautious(p: Array, u: Array, g: Array) -> Array:
    """Liang et al. 2024, and the authors' code."""
    keep = (u * g > 0).astype(float)
    return u * keep / max(keep.mean() if keep.size else 1.0, 1e-3)


def unscaled(p: Array, u: Array, g: Array) -> Array:
    return u * (u * g > 0)


def clipped(p: Array, u: Array, g: Array) -> Array:
    """Shazeer & Stern 2018, update clipping."""
    return u / max(1.0, np.sqrt(np.mean(u * u)) / 0.3) if u.size else u


def braked(p: Array, u: Array, g: Array) -> Array:
    """What points outwards along p, shortened."""
    if norm(p) == 0:
        return u
    a = np.sum(u * p) / np.sum(p * p)
    return (u - a * p) + (0.25 if a < 0 else 1.0) * a * p


def floored(p: Array, u: Array, g: Array) -> Array:
    return u * (1.5 * norm(p) / norm(u)) if 0 < norm(u) < 1.5 * norm(p) else u


def floored_rows(p: Array, u: Array, g: Array) -> Array:
    with np.errstate(all="ignore"):
        return u * np.where(units(u) > 0, np.maximum(1.0, 1.5 * units(p) / units(u)), 1.0)


def relative(p: Array, u: Array, g: Array) -> Array:
    held, length = norm(p), norm(u)
    return u * held / length if held >= 1e-15 and length >= 1e-15 else 0 * u


def on_sphere(p: Array, u: Array, g: Array) -> Array:
    """The update that leads to the point on the sphere."""
    held = norm(p)
    q = p - LR * held * u / max(norm(u), 1e-10)
    return (p - (q * held / norm(q) if norm(q) > 0 else q)) / LR


# Options -> what becomes of the gradient, and of an update.
Bend = Callable[[Array, Array, Array], Array]
OPTIONS: dict[str, tuple[dict[str, Any], list[Bend]]] = {
    "cautious": ({"cautious": True}, [cautious]),
    "unscaled": ({"cautious": "unscaled"}, [unscaled]),
    "clipped": ({"clip_update_rms": 0.3}, [clipped]),
    "braked": ({"radial_brake": 0.25}, [braked]),
    "floored": ({"update_floor": 1.5}, [floored]),
    "floored-rows": ({"row_update_floor": 1.5}, [floored_rows]),
    "relative": ({"update_norm": "relative"}, [relative]),
    "hyperball": ({"hyperball": True}, [on_sphere]),
    "adaptive": ({"adaptive_clip": 0.2}, []),
    "together": (
        {"cautious": True, "clip_update_rms": 0.3, "radial_brake": 0.25, "update_floor": 1.5, "row_update_floor": 1.5}
        | {"adaptive_clip": 0.2},
        [cautious, clipped, braked, floored, floored_rows],
    ),
    "on-the-sphere": (
        {"cautious": True, "radial_brake": 0.25, "hyperball": True},
        [cautious, braked, on_sphere],
    ),
}


def samples() -> tuple[list[Array], list[list[Array]]]:
    """Parameters, and gradients of every step."""
    params, grads = parameters(SHAPES), [gradients(step, SHAPES) for step in range(STEPS)]
    params[ZEROS][...] = 0
    for each in grads:
        each[STILL][...] = 0
    return params, grads


def expected(name: str, option: str) -> list[Array]:
    params, grads = samples()
    given, bends = OPTIONS[option]
    states: list[States] = [{} for _ in params]
    for t, each in enumerate(grads, 1):
        for k, (p, g, s) in enumerate(zip(params, each, states, strict=True)):
            g = adaptive(p, g) if "adaptive_clip" in given else g
            u = RULES[name][1](t, p, g, s)
            for bend in bends:
                u = bend(p, u, g)
            params[k] = moved(p, u)
    return params


@pytest.mark.parametrize("option", OPTIONS)
@NAMES
def test_option_is_its_formula(name: str, option: str) -> None:
    params, grads = samples()
    opt = getattr(gpuopt, name)(params, lr=LR, backend="numpy", **RULES[name][0] | OPTIONS[option][0])
    for each in grads:
        opt.step(each)
    for p, q in zip(params, expected(name, option), strict=True):
        assert difference(p, q) < 1e-12


@pytest.mark.parametrize(
    "option", ["clip_update_rms", "update_floor", "row_update_floor", "adaptive_clip", "radial_brake"]
)
def test_what_does_not_bite_changes_no_bit(option: str) -> None:
    value = {"update_floor": 0.0, "row_update_floor": 0.0, "radial_brake": 1.0}.get(option, 1e9)
    found = []
    for given in ({}, {option: value}):
        params = parameters(SHAPES, np.float32)
        opt = gpuopt.AdamW(params, lr=LR, backend="numpy", **given)
        for step in range(3):
            opt.step(gradients(step, SHAPES, np.float32))
        found.append(bits(params))
    assert found[0] == found[1]


def test_groups_do_not_notice_each_other() -> None:
    """Each has the passes of its own options, and the bits that it has alone."""
    options: list[dict[str, Any]] = [
        {},
        {"hyperball": True},
        {"cautious": True, "clip_value": 0.01},
        {"adaptive_clip": 0.1},
    ]
    shape = [(9, 50)]
    made = [parameters(shape, np.float32)[0] for _ in range(2 * len(options))]
    grads = gradients(3, shape, np.float32)[0]
    for p, option in zip(made[::2], options, strict=True):
        gpuopt.SGD(p, lr=LR, momentum=0.9, backend="numpy", **option).step(grads)
    groups = [{"params": p} | option for p, option in zip(made[1::2], options, strict=True)]
    opt = gpuopt.SGD(groups, lr=LR, momentum=0.9, backend="numpy")
    opt.step([grads] * len(options))
    assert bits(made[::2]) == bits(made[1::2]) and opt.launches == len(options)
    opt.param_groups[1]["hyperball"] = False
    opt.param_groups[3]["adaptive_clip"] = None
    opt.step([grads] * len(options))
    assert opt.launches == 2


def test_the_decay_of_a_mode_is_no_update() -> None:
    """It comes before the rule or behind the option; what is measured is the parameter that the rule is given."""
    p, g = np.array([3.0, 4.0]), np.array([0.3, -0.4])
    for mode, found in (("decoupled", lambda p: moved(0.9 * p, relative(0.9 * p, g, g))), ("proximal", None)):
        q = p.copy()
        options = {"weight_decay": 2.0, "weight_decay_mode": mode, "update_norm": "relative"}
        gpuopt.GD(q, lr=LR, backend="numpy", **options).step(g)
        expected = moved(p, relative(p, g, g)) / (1 + LR * 2.0) if found is None else found(p)
        assert difference(q, expected) < 1e-15


@pytest.mark.parametrize("option", OPTIONS)
def test_nan_never_hides(option: str) -> None:
    p = np.ones((3, 4))
    g = np.ones((3, 4))
    g[1, 2] = np.nan
    gpuopt.GD(p, lr=LR, backend="numpy", **OPTIONS[option][0]).step(g)
    assert np.isnan(p[1, 2])


@gpuopt.rule
def without_rate(p: Any, g: Any, *, gain: Any) -> Any:
    """No rate."""
    p = p - gain * g
    return p


REFUSED: list[tuple[Any, dict[str, Any], list[str]]] = [
    ("AdamW", {"hyperball": True}, ["hyperball = True", "weight_decay = 0.01"]),
    ("SGD", {"hyperball": True, "weight_decay": lambda step: 0.1}, ["hyperball", "weight_decay"]),
    ("SGD", {"hyperball": True, "update_norm": "relative"}, ["hyperball", "update_norm = 'relative'"]),
    ("SGD", {"hyperball": True, "row_update_floor": 0.1}, ["hyperball", "row_update_floor = 0.1"]),
    ("SGD", {"update_norm": "relative", "update_floor": 0.1}, ["update_norm", "update_floor = 0.1"]),
    ("SGD", {"update_norm": "relative", "clip_update_rms": 1.0}, ["update_norm", "clip_update_rms = 1.0"]),
    ("SGD", {"cautious": "scaled"}, ["cautious = 'scaled'", "(False, True, 'unscaled')"]),
    ("SGD", {"cautious": 1}, ["cautious = 1"]),
    ("SGD", {"update_norm": "absolute"}, ["update_norm = 'absolute'", "relative"]),
    ("SGD", {"radial_brake": 1.5}, ["radial_brake = 1.5", "[0, 1]"]),
    ("SGD", {"adaptive_clip": 0.0}, ["adaptive_clip = 0.0", "(0, inf)"]),
    ("SGD", {"clip_update_rms": np.nan}, ["clip_update_rms"]),
    (without_rate, {"gain": 0.1, "update_floor": 0.1}, ["update_floor = 0.1", "WithoutRate has no lr"]),
]


@pytest.mark.parametrize(("rule", "options", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_contradictions_are_refused(rule: Any, options: dict[str, Any], words: list[str]) -> None:
    """When an optimizer is made, and where a group is changed."""
    p = np.ones(3)
    make = gpuopt.optimizer if rule is without_rate else gpuopt.create
    with pytest.raises(gpuopt.InputError) as caught:
        make(rule, p, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    own = {"gain": 0.1} if rule is without_rate else {}
    opt = make(rule, p, **own)
    with refused(opt, gpuopt.InputError, *words):
        opt.param_groups[0].update(options)
        try:
            opt.step(np.ones(3))
        finally:
            opt.param_groups[0].update(
                {name: hyper.GROUP_OPTIONS.get(name, opt.defaults.get(name)) for name in options}
            )


def test_options_may_follow_the_step() -> None:
    p, q = np.arange(1.0, 5.0), np.arange(1.0, 5.0)
    g = np.array([0.1, 0.2, -0.1, 0.05])
    opt = gpuopt.GD(p, lr=LR, backend="numpy", update_floor=lambda taken: 0.5 + taken)
    for step in range(3):
        opt.step(g)
        q = moved(q, g * (0.5 + step) * norm(q) / norm(g))
    assert difference(p, q) < 1e-13


@pytest.mark.parametrize(("p", "g"), [(5e-16, 1.0), (2e-15, 5e-16)])
def test_what_is_next_to_nothing_is_no_length(p: float, g: float) -> None:
    """A relative update is 0 where the parameter or the update is shorter than 1e-15."""
    found = np.array([p])
    gpuopt.GD(found, lr=LR, backend="numpy", update_norm="relative").step(np.array([g]))
    assert found[0] == p


def test_matrices_on_a_sphere() -> None:
    """MuonH: Muon around whose product of matrices the option is, its norms between the last stage's passes."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal((6, 8))
    before, first = p.copy(), norm(p)
    opt = gpuopt.Muon(p, lr=0.1, weight_decay=0.0, hyperball=True, backend="numpy")
    for _ in range(3):
        opt.step(rng.standard_normal((6, 8)))
    assert abs(norm(p) / first - 1) < 1e-14 and norm(p - before) > 0.1


def test_an_option_of_rows_asks_for_rows_in_order() -> None:
    with pytest.raises(gpuopt.GpuoptError, match="rows"):
        gpuopt.SGD(np.ones((4, 3)).T, lr=LR, adaptive_clip=0.1).step(np.ones((3, 4)))


def test_the_table_of_costs_is_counted_from_the_programs() -> None:
    """An option that is no norm costs no pass; one of norms one more read of what they are made of."""
    lines = [line.strip("| ").split(" | ") for line in README.read_text().splitlines()]
    known = {*geometry.OPTIONS, *companions.OPTIONS} - {"anchor"}  # which a table of decays has
    rows = [cells for cells in lines if len(cells) == 4 and cells[0].strip("`").partition("=")[0] in known]
    assert {cells[0].strip("`").partition("=")[0] for cells in rows} == known
    for cells in rows:
        options = eval(f"dict({cells[0].strip('`')})")
        for name, cell in (("adamw", cells[1]), ("lamb", cells[2])):
            made = program(name, **options)
            assert cell == f"{len(made.passes)}, {made.traffic()}", (name, options)
    assert [program(name).traffic() for name in ("adamw", "lamb")] == [28, 44]
    every = program(
        "adamw", **{k: v for k, v in OPTIONS["together"][0].items() if "row" not in k and "adaptive" not in k}
    )
    assert (len(every.passes), every.traffic()) == (2, 44), "one look for all norms of tensors"
