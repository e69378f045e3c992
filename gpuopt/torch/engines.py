"""An engine for parameters of a torch optimizer: each as it lies here, with the states and step counts that are in `self.state`.

Called by the optimizer where the last engine does not fit any more. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuopt.optim.engine import Engine
from gpuopt.torch import joint, loading, refusals, shards
from gpuopt.torch.owners import Gathering
from gpuopt.torch.parameters import (
    Member,
    check_apart,
    in_rows,
    local_states,
    make_parameter,
    new_states,
    show,
    walked,
)
from gpuopt.torch.step_tensors import step_tensor

if TYPE_CHECKING:
    from gpuopt.torch.optimizer import TorchOptimizer


def made(opt: TorchOptimizer, members: Sequence[Member]) -> tuple[Engine, Gathering]:
    """An engine for parameters with these labels and groups, and those of them that one process steps for all, whose states are in
    `self.state` from now on. Raises InputError for what cannot be stepped.
    """
    rule, settings, groups = opt.rule, opt._settings(), opt.param_groups
    refusals.alone(opt, rule, settings)
    gathering = gathered(opt, members)
    engine, along = Engine(rule, settings, groups, opt._asked), in_rows(rule, groups)
    own = [(label, shards.local(p), gathering.of.get(p)) for label, p, *_ in members]
    walks = [(label, p, walked(p, label, along) if of is None else of.work) for label, p, of in own]
    check_apart(walks)
    parameters, common = [], joint.states(rule, groups, opt.state)
    for (label, _, work), (_, p, index, number) in zip(walks, members, strict=True):
        found, group, matrix = opt.state.get(p, {}), groups[index], gathering.of.get(p)
        always = [s for s in loading.required(rule, group, p) if s.when is None]
        loading.check_entry(rule, found, always, group, opt._counts_steps, p, label)
        states = {s.name: found[s.key] for s in rule.states if found.get(s.key) is not None}
        states = local_states(rule, p, states, label) | joint.of(rule, common, p)
        new = new_states(rule, settings, group, p, states)
        taken = max(bool(states), opt._taken.get(p, 0)) * (not new)
        step = int(found.get("step", 0)) if opt._counts_steps else taken
        beside, states = opt._beside.of(rule, p, label, work), states | new
        if matrix is not None:
            if opt._counts_steps:
                opt.state[p].setdefault("step", step_tensor(step, group))
            show(rule, p, opt.state[p], states, group)
            states = matrix.states(rule, p, states, group)
        counter, shard = engine.counter(index, step), None if matrix is None else matrix.shard
        parameter = make_parameter(rule, p, work, label, counter, beside, states, shard)
        parameter.counter.word, parameter.number = opt._replayed.word(p), number
        engine.choice(parameter)
        parameters.append(parameter)
    engine.add(parameters)
    return engine, gathering


def gathered(opt: TorchOptimizer, members: Sequence[Member]) -> Gathering:
    """The parameters that a step needs whole and of which this process has parts. Raises InputError for what it cannot have."""
    beside, found = opt._beside.given.values(), {}
    for label, p, index, number in members:
        if refusals.check(opt.rule, opt.param_groups[index], p, label, any(p in of for of in beside)):
            found[p] = number
    return Gathering(found)
