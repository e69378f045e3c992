"""Sharpness-aware minimisation around any optimizer over arrays: `gpuopt.SAM`, and what it has in common with `gpuopt.torch.SAM`.

Perturbing and restoring are rules of their own (`rules.perturbation`), each run by an engine over the parameters of the optimizer,
which knows nothing of it. Called by users; knows no kernel and no array library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpuopt.errors import InputError, entries
from gpuopt.optim.between import check_training
from gpuopt.optim.engine import Engine
from gpuopt.optim.full_precision import bytes_of
from gpuopt.optim.hyper import check_group, check_number
from gpuopt.optim.optimizer import Optimizer
from gpuopt.optim.parameters import Parameter, parameter_view
from gpuopt.optim.settings import Settings
from gpuopt.rules.language import Rule
from gpuopt.rules.perturbation import perturbation, restoration

# What looks at parameters between two steps.
OF_SETTLED = ("eval", "train", "averaged_params", "_full_precision", "_checkpoint")
LIMITS = ("mask", "lower", "upper")  # what lies beside a parameter and holds for a perturbed one too


@entries
class TwoPhases:
    """What both classes share: which phase it is, what cannot be asked for in the middle of a step, hyperparameters."""

    phases = "perturb()", "step()"
    optimizer: Any
    rho: float
    adaptive: bool
    eta: float
    perturbed: bool

    def _begin(self, optimizer: Any, kind: type, rho: float, adaptive: bool, eta: float) -> None:
        if not isinstance(optimizer, kind):
            raise InputError(
                f"SAM: found {type(optimizer).__name__}: expected an optimizer of {kind.__module__.partition('.optim')[0]}, "
                "such as AdamW(params, lr=1e-3)"
            )
        self.optimizer, self.rho, self.adaptive, self.eta, self.perturbed = optimizer, rho, adaptive, eta, False
        self._hyper()

    def _hyper(self) -> dict[str, Any]:
        """The hyperparameters of a perturbation as they are now. Raises InputError for what they cannot be."""
        numbers = {name: check_number(name, getattr(self, name), "SAM", perturbation.ranges) for name in ("rho", "eta")}
        made = numbers | {"adaptive": self.adaptive}
        check_group(made, perturbation, "SAM")
        return made

    def _expect(self, perturbed: bool, call: str) -> None:
        """Raise InputError where this call belongs to the other phase."""
        first, second = self.phases
        if perturbed and not self.perturbed:
            raise InputError(f"SAM.{call}: the parameters are not perturbed: expected {first} before it")
        if self.perturbed and not perturbed:
            raise InputError(f"SAM.{call}: the parameters are perturbed: expected {second} before it, or restore()")

    def __repr__(self) -> str:
        adaptive = f", adaptive=True, eta={self.eta}" if self.adaptive else ""
        return f"SAM(rho={self.rho}{adaptive}) around {self.optimizer!r}"

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked for is the optimizer's."""
        if name == "optimizer":  # there is none yet
            raise AttributeError(name)
        found = getattr(self.optimizer, name)
        if name in OF_SETTLED:
            self._expect(False, name.lstrip("_"))
        return found

    def add_param_group(self, param_group: Any, **options: Any) -> None:
        """The optimizer's. Raises InputError while parameters are perturbed."""
        self._expect(False, "add_param_group")
        self.optimizer.add_param_group(param_group, **options)

    def state_dict(self) -> Any:
        """The optimizer's, to which nothing is added. Raises InputError while parameters are perturbed."""
        self._expect(False, "state_dict")
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The optimizer's. Raises InputError while parameters are perturbed."""
        self._expect(False, "load_state_dict")
        self.optimizer.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        self._expect(False, "copy")
        return {name: getattr(self, name) for name in ("optimizer", "rho", "adaptive", "eta")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state)


@entries
class SAM(TwoPhases):
    """Sharpness-aware minimisation, Foret et al. 2021, around an optimizer over arrays: it steps by the gradients of where the loss
    is worst near the parameters. With `adaptive`, ASAM, Kwon et al. 2021, which does not depend on the scale of weights.

    p <- p + rho g / (|g| + 1e-12), adaptive p + rho T^2 g / (|T g| + 1e-12) with T = |p| + eta, norms over all tensors; gradients
    are taken there; p is put back bit for bit; the optimizer steps by them.

    optimizer: any of gpuopt, with all of its options: where it has a mask or bounds, perturbed parameters keep to them; `maximize`
    of a group turns its perturbation round; parameters without a first gradient stay where they are.
    rho: how far, 0 or more; ASAM takes about ten times more. eta: of ASAM. All three may be set between steps: `sam.rho = 0.1`.

        sam.perturb(grads)   # of params as they are
        sam.step(grads)      # of params as they are now: puts them back, then steps the optimizer
        sam.step(closure)    # both, where closure(params) gives gradients

    The old values take one array for each parameter (float32 for those of 16 bits), made by the first `perturb` and kept for the
    next. All parameters are on one device. Raises InputError for what is no such optimizer, and for calls in another order.
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01) -> None:
        self._begin(optimizer, Optimizer, rho, adaptive, eta)
        self._perturbing, self._restoring = self._engine(perturbation), self._engine(restoration)
        self._old: list[Any] = []

    def _engine(self, rule: Rule) -> Engine:
        """An engine for a rule over the parameters of the optimizer."""
        base, groups = self.optimizer._engine, [dict[str, Any]() for _ in self.optimizer.param_groups]
        made = Engine(rule, Settings(capturable=self.optimizer.settings.capturable), groups, base.asked)
        counters = [made.counter(index, 0) for index in range(len(groups))]
        parameters = []
        for p in base.parameters:
            limits = {name: p.beside[name] for name in LIMITS if name in p.beside} if rule is perturbation else {}
            parameters.append(
                Parameter(p.label, p.array, parameter_view(p.array, p.label), p.group, counters[p.group], limits)
            )
        made.add(parameters)
        return made

    def perturb(self, grads: Any) -> None:
        """Move every parameter to where the loss is worst near it, by the gradients of where it is; these are only read.

        grads mirrors params as in `optimizer.step`; None leaves a tensor where it is. Raises InputError or DtypeError before
        anything is written.
        """
        self._expect(False, "perturb()")
        self.optimizer._check_groups()
        check_training(self.optimizer.rule, self.optimizer.param_groups)
        leaves = self.optimizer._leaves(grads)
        if len(self._perturbing.parameters) != len(self.optimizer._engine.parameters):  # there are more of them
            self._perturbing, self._restoring = self._engine(perturbation), self._engine(restoration)
        hyper = self._hyper()
        for group, own in zip(self._perturbing.groups.dicts, self.optimizer.param_groups, strict=True):
            group.update(hyper, maximize=own.get("maximize", False))
        self._run(self._perturbing, leaves)
        of_each = zip(self._perturbing.parameters, leaves, strict=True)
        self._old = [None if grad is None else p.states["old"] for p, grad in of_each]
        self.perturbed = True

    def _run(self, engine: Engine, leaves: Sequence[Any]) -> None:
        engine.look()
        engine.step(leaves)

    def restore(self) -> None:
        """Put the parameters back to what they were before `perturb`, bit for bit, without a step."""
        self._expect(True, "restore()")
        self._run(self._restoring, self._old)
        self.perturbed = False

    def step(self, grads: Any) -> None:
        """Put the parameters back, then step the optimizer by the gradients of where they were, which mirror params.

        grads may be a function that takes params, in their structure, and gives such gradients: it is called before and after
        `perturb`, which this then does. Whatever is raised, by it or by the optimizer's step, the parameters are put back.
        """
        if callable(grads):
            self._expect(False, "step(closure)")
            params = self.optimizer._mirrored([p.array for p in self.optimizer._engine.parameters])
            self.perturb(grads(params))
            try:
                grads = grads(params)
            except BaseException:
                self.restore()
                raise
        self._expect(True, "step()")
        self.restore()
        self.optimizer.step(grads)

    @property
    def nbytes(self) -> int:
        """Bytes of the optimizer's states and of the old values."""
        old = sum(bytes_of(a) for p in self._perturbing.parameters for a in p.states.values())
        return old + int(self.optimizer.nbytes)
