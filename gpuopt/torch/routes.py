"""Groups of an optimizer of matrices: those that are stepped as matrices, and all else, from a model or from parameters.

Called by the optimizer where it is made. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from gpuopt.errors import InputError, KindError
from gpuopt.optim import routes
from gpuopt.rules.language import Rule
from gpuopt.torch.groups import EMBEDDINGS, NORM

HEADS = ("lm_head", "head", "classifier", "output_projection", "score")  # what output layers are called

Chosen = Callable[[str, torch.Tensor], bool]


def grouped(rule: Rule, params: Any, matrices: Any, rest: Mapping[str, Any] | None) -> Any:
    """The groups to make an optimizer of: `params` themselves where nothing divides them, else each group as two.

    params: as of any optimizer, or a model, whose embeddings, norms and output layers are no matrices; matrices: a function of name
    and parameter that says so in the place of that, called for tensors of two axes or more; rest: hyperparameters of what is none.
    Raises InputError for options that the rule has no use for, KindError for a model that it cannot tell apart.
    """
    routes.check(rule, matrices, rest)
    if matrices is not None and not callable(matrices):
        raise InputError(f"matrices: found {type(matrices).__name__}: expected a function of name and parameter")
    if isinstance(params, torch.nn.Module):
        if not rule.definition().multiplies:
            raise KindError(f"params: a model: expected its parameters, such as {rule.title}(model.parameters())")
        matrices = matrices or hidden(params)
        params = list(params.named_parameters())
    elif matrices is None and rest is None:
        return params
    every = list(params)
    groups = every if every and isinstance(every[0], dict) else [{"params": every}]
    return [made for group in groups for made in divided(group, matrices or (lambda name, p: True), rest)]


def divided(group: Mapping[str, Any], chosen: Chosen, rest: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The group of the matrices, and that of all else; one without members is left out."""
    given = group["params"]
    members = [given] if isinstance(given, torch.Tensor) else list(given)
    parts: dict[bool, list[Any]] = {True: [], False: []}
    for place, member in enumerate(members):
        name, p = member if isinstance(member, tuple) else (str(place), member)
        parts[p.ndim > 1 and not p.is_complex() and bool(chosen(name, p))].append(member)
    for matrix, own in parts.items():
        if own:
            yield {**routes.group_of(group, rest, matrix), "params": own}


def hidden(model: torch.nn.Module) -> Chosen:
    """Whether a parameter of this model is a hidden matrix: no table of embeddings, of no norm, and of no layer that puts out as
    many numbers as a table has entries, or is called as output layers are.
    """
    tables = [module for module in model.modules() if isinstance(module, EMBEDDINGS)]
    entries = {table.num_embeddings for table in tables}
    apart = {id(p) for table in tables for p in table.parameters(recurse=False)}
    for name, module in model.named_modules():
        norm = any(NORM.search(kind.__name__) for kind in type(module).__mro__)
        head = isinstance(module, torch.nn.Linear) and (
            module.out_features in entries or name.rpartition(".")[2] in HEADS
        )
        if norm or head:
            apart |= {id(p) for p in module.parameters(recurse=False)}
    return lambda name, p: id(p) not in apart
