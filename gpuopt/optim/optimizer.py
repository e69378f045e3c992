"""The optimizer over arrays: groups, masks, structures of gradients; stepping is the engine's.

Made by `gpuopt.AdamW(...)` and its kin (optim.factory), subclassed by nothing. Knows no kernel and no array library.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from gpuopt.errors import InputError, entries
from gpuopt.formats.language import Format
from gpuopt.native.objects import same
from gpuopt.optim import beside, between, routes, state_dict, trees
from gpuopt.optim.decay import peak_of
from gpuopt.optim.engine import Engine
from gpuopt.optim.full_precision import bytes_of
from gpuopt.optim.hyper import MODE, check_group, defaults_of
from gpuopt.optim.keeping import check_narrow, of_settings
from gpuopt.optim.parameters import Parameter, parameter_view
from gpuopt.optim.settings import Settings
from gpuopt.rules.language import Rule, checked_rule


@entries
class Optimizer(between.BetweenSteps):
    """Runs a rule on arrays, in place, all tensors of equal dtypes in one launch.

    rule: the update rule. params: an array, a (nested) list, dict or other iterable of arrays, or a list of group
    dicts `{"params": ..., "lr": ...}`. Arrays are float64, float32, float16, bfloat16, complex128 or complex64, dense, on the
    host or a GPU; complex numbers are stepped as pairs of real ones, as in torch.
    backend: "auto" (None), "numpy", "numba", "cuda", "cupy" or "numba-cuda".
    state_format: "float32", "bfloat16" (rounded stochastically), "int8", "float8", "int4", "auto8" or "auto4", a `gpuopt.format` of
    states, or a dict of one for each state; states of float64 parameters are float64. In 8 and 4 bits are the states of tensors of
    two axes or more with 4,096 elements or more, those of others are float32.
    param_format: of parameters of 16 bits, "native" (rounded to nearest), "stochastic", "kahan", "split8", "split16", "master32" or
    a `gpuopt.format`; what it keeps beside a parameter is among the states.
    state_device: "device": states lie where their parameters do; "host": in pinned host memory, from where each step copies them to
    the GPU and back, 64 MiB at a time, while kernels work on others. States of one number, row or column stay on the device.
    seed: of what is rounded at random; the same seed gives the same bits on every backend.
    max_grad_norm: clip all gradients by their global 2-norm. grad_scale: divide gradients by this number or one-element
    array. skip_nonfinite: skip the whole step, step counts included, where a gradient holds NaN or infinity.
    mask: mirrors params, boolean arrays or None; parameters are kept at zero where it is false.
    bounds: mirrors params, for each array None or a pair (lower, upper), each None, a number or an array of its shape: after the
    update the parameter is brought between them. Bounds are copied, in the parameter's dtype; the first step is what brings
    parameters between them that were not. Pruned weights (mask) are 0 all the same. NaN stays NaN.
    anchor: mirrors params, arrays or None: what a weight_decay_mode decays is how far parameters are from them; or "initial": from
    what they are before their first step. Arrays are copied, in the parameter's dtype.
    weight_decay_mask: mirrors params with True or False, or a function of path and array, such as `lambda path, a: a.ndim > 1`;
    where it is false, parameters are in a group of their own, without decay. path: keys and indices in params, a tuple.
    matrices: of an optimizer of matrices (Muon and its kin), mirrors params with True or False, or a function of path and array;
    where it is false, a tensor is stepped as vectors are, such as embeddings and output layers. rest: hyperparameters of all that
    is so stepped, such as {"lr": 3e-4}; with either of both they are in a group of their own. See `routing`.
    capturable: step counts live on the GPU, so that a step can be captured into a CUDA graph.
    hyper: the rule's hyperparameters and `maximize`, `l1` (proximal soft threshold), `clip_value` (gradient bound); `lr` and
    `betas` may be one-element float32 or float64 arrays on the GPU, which every step, or replay of one, reads there.

    Raises InputError, DtypeError or BackendUnavailable before anything is written.
    """

    def __init__(
        self,
        /,
        rule: Rule,
        params: Any,
        *,
        backend: str | None = None,
        state_format: str | Format | Mapping[str, str | Format] = "float32",
        param_format: str | Format = "native",
        max_grad_norm: float | None = None,
        grad_scale: Any = None,
        skip_nonfinite: bool = False,
        mask: Any = None,
        bounds: Any = None,
        anchor: Any = None,
        weight_decay_mask: Any = None,
        matrices: Any = None,
        rest: Mapping[str, Any] | None = None,
        capturable: bool = False,
        seed: int = 0,
        state_device: str = "device",
        **hyper: Any,
    ) -> None:
        self.rule = rule = checked_rule(rule)
        if "max_grad_norm" in rule.hyperparameters:  # its own, with a default of its own that classes give
            hyper, max_grad_norm = hyper | {"max_grad_norm": max_grad_norm}, None
        if isinstance(anchor, str):
            hyper, anchor = hyper | {"anchor": anchor}, None
        self.settings = Settings(
            state_format, param_format, max_grad_norm, grad_scale, None, skip_nonfinite, capturable, seed, state_device
        )
        self.settings.check(rule)
        routes.check(rule, matrices, rest)
        self._rest = rest
        self.defaults = defaults_of(rule) | hyper
        self.rule = rule = of_settings(rule, self.settings, hyper)
        given = {k: v for k, v in self.defaults.items() if v is not inspect.Parameter.empty}
        options = inspect.signature(Optimizer).parameters.values()
        check_group(given | peak_of(given), rule, rule.title, [p.name for p in options if p.kind is p.KEYWORD_ONLY])
        self.param_groups: list[dict[str, Any]] = []
        self._engine = Engine(rule, self.settings, self.param_groups, backend)
        self._structures: list[Any] = []
        self._kept: list[tuple[Any, ...]] = []  # the arrays of each group
        params = (
            list(params) if trees.is_iterable(params) and not isinstance(params, (Mapping, set, frozenset)) else params
        )
        self._grouped = trees.is_group_list(params)
        groups = params if self._grouped else [{"params": params}]
        of_tensors = {"mask": mask, "bounds": bounds, "anchor": anchor}
        of_tensors |= {"weight_decay_mask": weight_decay_mask, "matrices": matrices}
        of_groups = [self._of_each(name, value, groups) for name, value in of_tensors.items()]
        for group, *own in zip(groups, *of_groups, strict=True):
            self.add_param_group(group, **dict(zip(of_tensors, own, strict=True)))
        if not self._engine.parameters:
            raise InputError("params: expected at least one array, found none")
        check_narrow(param_format, [p.view.dtype for p in self._engine.parameters])

    def _of_each(self, name: str, value: Any, groups: Sequence[Any]) -> list[Any]:
        """An option that mirrors params, for each group. Raises InputError unless there is one for each."""
        if not self._grouped or value is None or callable(value):
            return [value] * len(groups)
        if not isinstance(value, (list, tuple)) or len(value) != len(groups):
            raise InputError(f"{name}: expected a list with one entry for each of {len(groups)} groups")
        return list(value)

    def __repr__(self) -> str:
        options = f", {self.settings}" if str(self.settings) else ""
        groups = "\n".join(
            f"  group {k}: {len(g['params'])} tensors, " + ", ".join(f"{n}={v}" for n, v in g.items() if n != "params")
            for k, g in enumerate(self.param_groups)
        )
        return f"{self.rule.title} on {self.backend}{options} (\n{groups}\n)"

    @property
    def backend(self) -> str:
        """The name of the backend that runs the (first) parameters."""
        return self._engine.choice(self._engine.parameters[0])[0]

    @property
    def backend_reason(self) -> str:
        """Why that backend."""
        return self._engine.choice(self._engine.parameters[0])[1]

    # ------------------------------------------------------------------------------------------- groups

    def add_param_group(
        self, group: Mapping[str, Any], *, mask: Any = None, bounds: Any = None, anchor: Any = None,
        weight_decay_mask: Any = None, matrices: Any = None,
    ) -> None:  # fmt: skip
        """Add tensors with hyperparameters of their own; `group["params"]` is an array or a nested list or dict.

        With a weight_decay_mask that is false somewhere, it becomes two groups, the second without decay; with `matrices`, or
        `rest` of the optimizer, those that are no matrices are behind them. Raises InputError or DtypeError and changes nothing if
        the group cannot be used.
        """
        index = len(self.param_groups)
        name = f"param_groups[{index}]"
        if not isinstance(group, Mapping) or "params" not in group:
            raise InputError(f"{name}: expected a dict with the key 'params', found {type(group).__name__}")
        made = self.defaults | dict(group)
        made |= peak_of(made)
        check_group(made, self.rule, name)
        prefix = f"{name}['params']" if self._grouped or index else "params"
        structure = trees.settled(group["params"], prefix)
        leaves = list(trees.flatten(structure, prefix))
        around = [
            [None] * len(leaves) if value is None else list(trees.mirror(structure, value, name, "params"))
            for name, value in (("mask", mask), ("bounds", bounds), ("anchor", anchor))
        ]
        beside.check_anchors(around[-1], made, name)
        routes.check(self.rule, matrices, None)
        of_each = self._kinds(structure, leaves, weight_decay_mask, matrices)
        kinds = sorted(set(of_each), reverse=True)  # of groups
        counters = {kind: self._engine.counter(index + k, 0) for k, kind in enumerate(kinds)}
        parameters = []
        for (label, array), kind, *beside_it in zip(leaves, of_each, *around, strict=True):
            if getattr(array, "requires_grad", False):
                raise InputError(
                    f"{label}: a {type(array).__name__} of torch that requires grad: expected one without, such as "
                    f"p.detach(); or use gpuopt.torch.{self.rule.title}, which reads p.grad"
                )
            counter = counters[kind]
            p = Parameter(label, array, parameter_view(array, label), counter.group, counter)
            self._engine.choice(p)
            p.beside = beside.checked(self.rule, p, *beside_it)
            parameters.append(p)
        self._engine.add(parameters)
        for kind in kinds or [(True, True)]:
            members = [s.array for s, own in zip(parameters, of_each, strict=True) if own == kind]
            mode = {MODE: True} if between.averages(self.rule) else {}
            matrix, decays = kind
            own = {**mode, **routes.group_of(made, self._rest, matrix), "params": members}
            self.param_groups.append(own | ({} if decays else {"weight_decay": 0.0}))
            self._kept.append(tuple(members))
        self._structures.append(structure)
        flat = isinstance(structure, (list, tuple))
        self._flat = flat and not any(isinstance(leaf, (list, tuple, Mapping)) for leaf in structure)

    def _kinds(self, structure: Any, leaves: Any, decay: Any, matrices: Any) -> list[tuple[bool, bool]]:
        """Of each array, whether it is a matrix (if that divides the group at all), and whether it decays."""
        decayed = trees.choices(structure, decay, "weight_decay_mask")
        if matrices is None and self._rest is None:
            return [(True, decays) for decays in decayed]
        chosen = trees.choices(structure, matrices, "matrices")
        shapes = [parameter_view(array, label) for label, array in leaves]
        found = [chose and len(view.shape) > 1 + view.pairs for chose, view in zip(chosen, shapes, strict=True)]
        return list(zip(found, decayed, strict=True))

    def routing(self) -> routes.Routing:
        """Which tensors are stepped as matrices and which as vectors, with rate and decay: prints as a table."""
        every = [(p.label, p.view.shape, p.view.pairs, self.param_groups[p.group]) for p in self._engine.parameters]
        return routes.routing(self.rule, every)

    # ------------------------------------------------------------------------------------------- step

    def step(self, grads: Any, rows: Any = None) -> None:
        """Update every parameter in place from its gradient; gradients are only read.

        grads mirrors params (a list of one such tree per group where there are several groups); None skips a tensor, its
        step count included. rows mirrors params: for each tensor None, or which of its rows (of the first axis) are read and
        written, those of its gradient and states too: int64 or int32 numbers, each once, or booleans, one for each row; the
        gradient is then of the tensor's shape or has these rows only, in their order. The step count is the tensor's.

        Raises InputError or DtypeError before anything is written; on a GPU, rows that are not there are left out.
        """
        self._check_groups()
        if self.rule.between:
            between.check_training(self.rule, self.param_groups)
        self._step(self._leaves(grads), None if rows is None else self._leaves(rows, "rows"))

    def _step(self, leaves: Sequence[Any], rows: Sequence[Any] | None = None) -> None:
        """One step with a gradient for each tensor, or for its part where the engine has parts of them."""
        self._engine.look()
        self._engine.step(leaves, rows)

    def _divide(self, parts: Sequence[Parameter]) -> None:
        """Step these parts of the tensors from now on, one for each of them, with what states there are: whole ones until now."""
        saved, old = self.state_dict(), self._engine
        self._engine = Engine(self.rule, self.settings, self.param_groups, old.asked)
        self._engine.skipped = old.skipped
        for p in parts:
            p.counter = self._engine.counter(p.group, p.counter.step)
        self._engine.add(parts)
        self.load_state_dict(saved)

    def _check_groups(self) -> None:
        """Raise InputError where groups or their arrays are others than those that were given: nothing would update them."""
        groups, kept = self.param_groups, self._kept
        self._engine.groups.dicts = groups  # the list may have been replaced
        if len(groups) != len(kept):
            raise InputError(
                f"param_groups: {len(groups)} groups, expected the {len(kept)} that were given: use add_param_group"
            )
        for index, (group, arrays) in enumerate(zip(groups, kept, strict=True)):
            found = group.get("params", ())
            if found is not arrays and not same(found, arrays):
                raise InputError(
                    f"param_groups[{index}]['params']: other arrays than those that were given, which nothing would update: use "
                    "add_param_group for more, a new optimizer for others"
                )

    def _leaves(self, given: Any, name: str = "grads") -> Sequence[Any]:
        """What mirrors params, gradients or rows, one for each parameter."""
        if not isinstance(given, (list, tuple, Mapping)) and trees.is_iterable(given):
            given = list(given)
        if len(self._structures) == 1 and not self._grouped:
            if self._flat and isinstance(given, (list, tuple)) and len(given) == len(self._engine.parameters):
                return given
            return list(trees.mirror(self._structures[0], given, name, "params"))
        if not isinstance(given, (list, tuple)) or len(given) != len(self._structures):
            raise InputError(f"{name}: expected a list with one entry for each of {len(self._structures)} groups")
        leaves: list[Any] = []
        for k, (structure, tree) in enumerate(zip(self._structures, given, strict=True)):
            tree = tree["params"] if isinstance(tree, Mapping) and "params" in tree else tree
            leaves += trees.mirror(structure, tree, f"{name}[{k}]", "params")
        return leaves

    # ------------------------------------------------------------------------------------------- state

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: arrays, groups and states; launches are planned anew."""
        kept = ("rule", "settings", "defaults", "param_groups", "_structures", "_kept", "_grouped", "_flat", "_rest")
        parameters = self._engine.parameters
        tensors = [(s.label, s.array, s.group, s.beside) for s in parameters]
        extra = {"asked": self._engine.asked, "tensors": tensors, "saved": self.state_dict(), "skipped": self.skipped}
        return {name: self.__dict__[name] for name in kept} | {"engine": extra}

    def __setstate__(self, state: dict[str, Any]) -> None:
        extra = state.pop("engine")
        self.__dict__.update(state)
        self._engine = Engine(self.rule, self.settings, self.param_groups, extra["asked"])
        counters = [self._engine.counter(index, 0) for index in range(len(self.param_groups))]
        self._engine.add(
            [
                Parameter(label, a, parameter_view(a, label), g, counters[g], around)
                for label, a, g, around in extra["tensors"]
            ]
        )
        self._engine.skipped = extra["skipped"]
        self.load_state_dict(extra["saved"])

    @property
    def nbytes(self) -> int:
        """Bytes of all states that there are by now, those of a format beside parameters included."""
        every = {id(a): a for p in self._engine.parameters for a in p.states.values()}
        return sum(bytes_of(a) for a in every.values())

    @property
    def nbytes_on_host(self) -> int:
        """Those of them that `state_device="host"` keeps in host memory."""
        if not self.settings.on_host:
            return 0
        large = {s.name for s in self.rule.states if s.large}
        return sum(bytes_of(a) for p in self._engine.parameters for name, a in p.states.items() if name in large)

    @property
    def launches(self) -> int:
        """Kernel launches that update parameters in a step as it was last planned: one for each set of equal dtypes."""
        return sum(len(launches) for _, launches, _ in self._engine._launches)

    @property
    def skipped(self) -> int:
        """Steps skipped so far because a gradient was not finite or found_inf was set; waits for the device."""
        self._engine.synchronize()
        return self._engine.skipped

    def state_dict(self) -> dict[str, Any]:
        """Copies of all states by parameter index, step counts and groups; see optim.state_dict."""
        self._engine.synchronize()
        self._engine.wait()
        return state_dict.save(self.rule, self._engine.parameters, self.param_groups)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take states, step counts and hyperparameters from `state_dict()`. Raises InputError and changes nothing if it
        does not fit. With `capturable`, replays of CUDA graphs that were captured before go on with what was loaded.
        """
        engine, in_place = self._engine, self.settings.capturable
        engine.wait()
        groups = state_dict.load(
            self.rule, engine.parameters, self.param_groups, saved, engine.missing_states, in_place, self.settings.seed
        )
        for group, values in zip(self.param_groups, groups, strict=True):
            group.update(values)
        engine.forget()
        engine.recount()
        engine.wait()
