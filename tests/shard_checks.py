"""What `test_torch_shards` has checked in four processes: parts of tensors are stepped as the whole ones are.

Run as `python shard_checks.py FOLDER [CHECK...]`: imports everything, forks four processes that talk through gloo, and each writes
into the folder what it found.
"""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

import gpuopt
import gpuopt.torch as optimizers
import shard_checks_engines  # noqa: F401  whose checks are made too
from gpuopt import rules, tensor_file
from gpuopt.compiler.tree import operations
from gpuopt.torch.owners import Everyone, Owners
from shard_samples import (
    CHECKS,
    PARAMS,
    SHAPES,
    SIZE,
    STATES,
    agree,
    both,
    check,
    cut,
    line,
    params,
    random,
    rate,
    refused,
    same,
    square,
)

SUMS = {"tensor_sum", "tensor_max", "global_sum"}


@check
def every_rule() -> None:
    """Elements bit for bit, and matrices, which one process each steps whole; sums to rounding. Nothing is left out."""
    found = dict.fromkeys(("elements", "sums", "matrices"), 0)
    for name in optimizers.optimizers():
        rule, before = rules.get(name), Owners.exchanges
        asked = operations(rule.definition().tree.body)
        sums = bool(asked & SUMS) or rule.joint
        agree(*both(name, steps=2, **rate(name)), within=1e-6 if sums else 0.0)
        along = rule.definition().along
        assert Owners.exchanges - before == (4 if along else 0), "there and back for each of two steps"
        found["matrices" if along else "sums" if sums else "elements"] += 1
    assert min(found.values()) > 3 and sum(found.values()) == len(optimizers.optimizers()), found


@check
def every_format() -> None:
    """Of states and parameters, with random numbers that are those of the whole; the numbers of codes fit the whole shape."""
    for options in (*STATES, *PARAMS, {"state_format": "int4", "param_format": "split8"}):
        dtype = torch.bfloat16 if "param_format" in options else torch.float32
        whole, parts = both("adamw", dtype=dtype, weight_decay=0.1, **options)
        agree(whole, parts)
        assert parts.nbytes < whole.nbytes
        assert torch.equal(gpuopt.full_precision(whole)[2], gpuopt.full_precision(parts)[2].full_tensor())
    agree(*both("adamw", backend="numba"))


@check
def columns_and_meshes() -> None:
    """Cut along columns, along both, copied along one dimension of a mesh; where a cut would split blocks there are no codes."""
    matrices = [(7, 5), (64, 1024), (3, 4, 5), (5, 2)]
    for placements, mesh in (
        ((Shard(1),), line()),
        ((Replicate(), Shard(0)), square()),
        ((Shard(0), Shard(1)), square()),
        ((Shard(0), Shard(0)), square()),
        ((Replicate(), Replicate()), square()),
    ):
        for options in ({"state_format": "int8"}, {"state_format": "bfloat16"}):
            agree(*both("adamw", placements, mesh, matrices, **options))
        agree(*both("lamb", placements, mesh, matrices, lr=0.01), within=1e-6)
    wide = [(64, 300)]
    whole, parts = both("adamw", (Shard(1),), shapes=wide, state_format="int8")
    assert "exp_avg" in next(iter(parts.state.values())) and "exp_avg" not in next(iter(whole.state.values()))
    agree(*both("muon", (Replicate(), Replicate()), square(), matrices))
    for name, placements, clip, within in (
        ("muon", (Shard(0), Shard(1)), {"max_grad_norm": 0.1}, 1e-4),  # a norm in another order, and products behind it
        ("adafactor", (Shard(0), Shard(0)), {}, 0.0),
        ("soap", (Shard(0), Shard(1)), {}, 0.0),
    ):
        before = Everyone.gathers, Owners.exchanges
        agree(*both(name, placements, square(), matrices[:2], steps=2, **rate(name), **clip), within=within)
        assert Everyone.gathers > before[0] and Owners.exchanges == before[1], "by everyone, and told"


@check
def matrices_and_owners() -> None:
    """In formats, clipped, in copies and cut along columns; owners are balanced, and nothing else is sent but what is counted."""
    shapes = [(64, 96), (33, 5), (96, 64), (9,), (2, 64, 64)]
    for options in (
        {"state_format": "int8"},
        {"param_format": "split8", "state_format": "bfloat16"},
        {"max_grad_norm": 0.1},
    ):
        dtype = torch.bfloat16 if "param_format" in options else torch.float32
        agree(*both("muon", shapes=shapes, dtype=dtype, **options), within=1e-4 if "max_grad_norm" in options else 0.0)
    for name, placements, mesh in (
        ("soap", (Replicate(), Shard(0)), square()),
        ("muon", (Shard(1),), line()),
        ("adafactor", (Replicate(), Shard(1)), square()),
    ):
        agree(*both(name, placements, mesh, shapes[:3], **rate(name)), within=1e-6 if name == "adafactor" else 0.0)
    agree(*both("sgd", shapes=shapes, lr=0.1, momentum=0.9, adaptive_clip=0.1), within=1e-6)  # of the vector: a sum
    _, parts = both("muon", shapes=shapes, state_format="int8")
    owned = [sum(piece.work.numel() for piece in of.matrices) for of in parts._trackers[None].gathering.groups.values()]
    sizes = [torch.zeros(1) for _ in range(SIZE)]
    dist.all_gather(sizes, torch.tensor([float(owned[0])]))
    assert sum(map(float, sizes)) == 64 * 96 * 2 + 33 * 5 + 2 * 64 * 64 and max(map(float, sizes)) <= 8192
    with CommDebugMode() as seen:
        parts.step()
    assert seen.get_total_counts() == 2, seen.get_comm_counts()  # there and back, and no full_tensor()


@check
def nothing_is_sent_for_elements() -> None:
    """A step that walks elements calls no collective operation."""
    calls: list[str] = []
    names = ("all_reduce", "all_gather_into_tensor", "all_to_all_single", "broadcast", "barrier")
    before = {name: getattr(dist, name) for name in names}
    for name in names:
        setattr(dist, name, lambda *_, name=name, **__: calls.append(name))
    try:
        both("adamw", state_format="int8", mask=None)
    finally:
        for name, function in before.items():
            setattr(dist, name, function)
    assert calls == []


@check
def states_go_on() -> None:
    """Copies, pickles, state dicts of parts and of whole tensors in other formats, new groups, other local tensors."""
    whole, parts = both("adamw", state_format="int8")
    twin, other = both("adamw", steps=0, state_format="int8")
    twin.load_state_dict(copy.deepcopy(whole.state_dict()))
    other.load_state_dict(copy.deepcopy(parts.state_dict()))
    agree(twin_of(twin, whole), twin_of(other, parts))
    _, plain = both("adamw", steps=0)
    plain.load_state_dict(whole.state_dict())  # whole codes, for parts that are kept in float32
    _, own = both("adamw", steps=0)
    own.load_state_dict(parts.state_dict())
    for p, q in zip(params(plain), params(own), strict=True):
        assert torch.equal(plain.state[p]["exp_avg"].to_local(), own.state[q]["exp_avg"].to_local())
    again = copy.deepcopy(parts)
    assert isinstance(again.state[params(again)[0]]["exp_avg"], DTensor)
    file = io.BytesIO()
    torch.save(parts.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=False))
    agree(twin, twin_of(other, parts))
    square_states, cut_states = both("soap"), both("soap", steps=0)
    cut_states[1].load_state_dict(copy.deepcopy(square_states[0].state_dict()))
    agree(square_states[0], twin_of(cut_states[1], square_states[1]))
    path = f"{sys.argv[1]}/saved"
    writes, write = list[int](), tensor_file.write
    tensor_file.write = lambda *given: (writes.append(1), write(*given))  # type: ignore[assignment]
    gpuopt.save(parts, path)
    tensor_file.write = write
    assert len(writes) == (dist.get_rank() == 0), "the first process writes, and no other"
    nowhere = f"{sys.argv[1]}/nowhere/saved"
    refused("failed in another" if dist.get_rank() else "No such file", lambda: gpuopt.save(parts, nowhere))
    for empty, saved in zip(both("adamw", steps=0, state_format="int8"), (whole, parts), strict=True):
        gpuopt.load(empty, path)
        agree(twin, twin_of(empty, saved))
    first = dist.get_rank() == 0  # who cannot write, and all are told so
    refused("a folder" if first else "in another", lambda: gpuopt.save(parts, sys.argv[1]))
    extra = random([(6, 6)], torch.float32, 5)[0]
    for opt, p in ((whole, torch.nn.Parameter(extra)), (parts, torch.nn.Parameter(cut(extra, line(), [Shard(0)])))):
        p.grad = torch.ones_like(p)
        opt.add_param_group({"params": [p], "lr": 0.5})
    for p in params(parts)[:1]:  # as model.to() leaves it
        p._local_tensor = p._local_tensor.clone()
    for opt in (whole, parts):
        opt.step()
    agree(whole, parts)


def twin_of(loaded: Any, saved: Any) -> Any:
    """The loaded optimizer with the parameters of the saved one."""
    with torch.no_grad():
        for p, q in zip(params(loaded), params(saved), strict=True):
            p.copy_(q)
    return loaded


@check
def options_of_parts() -> None:
    """Masks, bounds, anchors and averages, given whole or in parts; parameters to evaluate; perturbations."""
    shapes, mesh = SHAPES[:3], line()
    wholes = [torch.nn.Parameter(t) for t in random(shapes, torch.float32, 0)]
    parts = [torch.nn.Parameter(cut(p.detach(), mesh, [Shard(0)])) for p in wholes]
    made, kept = [], [w.detach() > 0 for w in wholes]
    for ps in (wholes, parts):
        masks = dict(zip(ps, kept, strict=True))
        if ps is parts:
            masks[ps[2]] = cut(kept[2], mesh, [Shard(0)])
        bounds = {ps[0]: (-0.5, np.full(shapes[0], 0.25, np.float32)), ps[1]: (None, 0.1)}
        anchor = {ps[2]: torch.ones(shapes[2])}
        options: dict[str, Any] = {"mask": masks, "bounds": bounds, "anchor": anchor, "ema_decay": 0.9, "lr": 0.1}
        opt = optimizers.AdamW(ps, backend="numpy", weight_decay_mode="decoupled", **options)
        for step in range(3):
            for p, g in zip(ps, random(shapes, torch.float32, step), strict=True):
                p.grad = g if ps is wholes else cut(g, mesh, [Shard(0)])
            opt.step()
        made.append(opt)
    agree(*made)
    assert all(same(a, b) for a, b in zip(*(opt.averaged_params() for opt in made), strict=True))
    free = both("schedulefreeadamw", param_format="split8", dtype=torch.bfloat16)
    for opt in free:
        opt.eval()
    agree(*free)
    for opt in free:
        opt.train()
    agree(*free)
    pair = [optimizers.SAM(opt) for opt in both("sgd", lr=0.1)]
    for sam in pair:
        sam.first_step()
        sam.second_step()
    agree(pair[0].optimizer, pair[1].optimizer, within=1e-6)


@check
def gradients_of_parts() -> None:
    """Sums that are still to be made are made; one that is missing on one process leaves the others' steps alone."""
    whole, parts = both("adamw")
    for p, q, g in zip(params(whole), params(parts), random(SHAPES, torch.float32, 7), strict=True):
        p.grad, q.grad = SIZE * g, DTensor.from_local(g, line(), [Partial()], run_check=False)
    whole.step()
    parts.step()
    agree(whole, parts, within=1e-6)
    lonely = params(parts)[2]
    before = lonely.to_local().clone()
    for q in params(parts):
        q.grad = None if q is lonely and dist.get_rank() == 1 else cut(torch.ones(q.shape), line(), [Shard(0)])
    parts.step()
    assert torch.equal(before, lonely.to_local()) == (dist.get_rank() == 1)
    for name, given in (("lamb", {"lr": 0.01}), ("muon", {"shapes": [(8, 8), (4, 8), (4, 2)]})):
        _, parts = both(name, **given)
        before = [p.to_local().clone() for p in params(parts)]
        params(parts)[2].grad = None if dist.get_rank() == 1 else params(parts)[2].grad
        refused("expected (one on all|gradients of the same)", parts.step)
        assert all(torch.equal(p.to_local(), b) for p, b in zip(params(parts), before, strict=True))
    _, parts = both("adamw")
    refused(
        "on .*: expected .*, the mesh",
        lambda: stepped_with(parts, cut(torch.ones(7, 5), square(), [Replicate(), Shard(0)])),
    )


def stepped_with(opt: Any, grad: torch.Tensor) -> None:
    params(opt)[0].grad = grad
    opt.step()


@check
def skipped_everywhere() -> None:
    """One process's NaN, or a scaler's found_inf, skips the step on all; what was found is the same."""
    _, parts = both("adamw", skip_nonfinite=True)
    before = [p.to_local().clone() for p in params(parts)]
    for q in params(parts):
        q.grad = cut(torch.ones(q.shape), line(), [Shard(0)])
    if dist.get_rank() == 2:
        params(parts)[2].grad.to_local()[0, 0] = float("nan")
    parts.step()
    _, scaled = both("adamw")
    scaled.found_inf, scaled.grad_scale = torch.tensor(float(dist.get_rank() == 1)), torch.tensor(2.0)
    seen = [p.to_local().clone() for p in params(scaled)]
    scaled.step()
    for opt, old in ((parts, before), (scaled, seen)):
        assert all(torch.equal(p.to_local(), b) for p, b in zip(params(opt), old, strict=True))
        assert {int(state["step"]) for state in opt.state.values()} == {3}


@check
def refusals() -> None:
    """Whatever a part cannot be is said before anything is made."""
    deep = random([(4, 4, 4)], torch.float32, 0)[0]
    refused("at most one cut axis behind", lambda: both("adamw", (Shard(1), Shard(2)), square(), [(4, 4, 4)], steps=1))
    held = torch.nn.Parameter(DTensor.from_local(deep, line(), [Partial()], run_check=False))
    held.grad = held.detach().clone()
    refused("no sum still to be made", lambda: optimizers.AdamW([held]).step())
    live = torch.nn.Parameter(cut(deep, line(), [Shard(0)]))
    live.grad = live.detach().clone()
    refused("cannot go with DTensors", lambda: optimizers.AdamW([live], differentiable=True).step())
    twice = torch.nn.Parameter(cut(deep, square(), [Shard(0), Shard(1)]))
    twice.grad = twice.detach().clone()
    optimizers.Muon([twice]).init_state()
    refused("with a mask, bounds", lambda: optimizers.Muon([live], bounds={live: (0.0, None)}).step())
    opt = optimizers.AdamW([live], backend="numpy")
    opt.step()
    opt.state[live]["exp_avg"] = torch.zeros(4, 4, 4)
    refused("found a Tensor: expected a DTensor with placements", opt.step)
    flat = torch.nn.Parameter(torch.zeros(8))
    flat.grad = torch.ones(8)
    for attribute, who in (("_fsdp_flattened", "FullyShardedDataParallel"), ("ds_id", "DeepSpeed")):
        setattr(flat, attribute, 1)
        for make in (optimizers.Muon, optimizers.LAMB, optimizers.Adafactor):
            refused(f"{who} has flattened", lambda make=make: make([flat], lr=0.1).step())
        optimizers.AdamW([flat]).step()
        delattr(flat, attribute)


@check
def dead_process() -> None:
    """The last: one process ends; a step that needs its sums fails in the others, and does not wait."""
    _, parts = both("lamb", lr=0.01)
    if dist.get_rank() == SIZE - 1:
        return
    for q in params(parts):
        q.grad = cut(torch.ones(q.shape), line(), [Shard(0)])
    try:
        for _ in range(3):
            parts.step()
    except RuntimeError:
        return
    raise AssertionError("the step was made without the sums of a process that is dead")


def work(rank: int, folder: Path) -> None:
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=SIZE, timeout=timedelta(seconds=60))
    found: dict[str, str] = {}
    line(), square()
    try:
        for each in [c for c in CHECKS if c.__name__ in sys.argv[2:] or not sys.argv[2:]]:
            found[each.__name__] = "never ended"
            each()
            found[each.__name__] = ""
    except BaseException:
        found[each.__name__] = traceback.format_exc()
    (folder / f"found{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # the others' last check is what this does to them


def main() -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=work, args=(k, Path(sys.argv[1]))) for k in range(SIZE)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
