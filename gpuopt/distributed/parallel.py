"""`gpuopt.distributed.data_parallel`: an optimizer over arrays on several processes, each with gradients of its own data.

Public. What travels is `averaging`'s and `sharded`'s business, who sends it that of a communicator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from gpuopt import arrays
from gpuopt.distributed import agreement, gathering
from gpuopt.distributed.averaging import AllReduced, Buckets
from gpuopt.distributed.choice import communicator
from gpuopt.distributed.communicators import Communicator
from gpuopt.distributed.flats import flat, is_flat, shaped
from gpuopt.distributed.sharded import Scattered
from gpuopt.errors import InputError, entries, entry
from gpuopt.launch.shards import agree
from gpuopt.optim import between, contents
from gpuopt.optim.checkpoint import Entry
from gpuopt.optim.optimizer import Optimizer
from gpuopt.optim.parameters import Parameter
from gpuopt.tensor_file import Tensor

REDUCED = ("float32", "float16", "bfloat16")


@entries
class DataParallel:
    """An optimizer whose `step(grads)` averages gradients over all processes; made by `data_parallel`. All else is the optimizer's,
    `param_groups` and `nbytes` among it. Every process makes the same calls.
    """

    def __init__(self, opt: Optimizer, comm: Any, shard: bool, buckets: Buckets, broadcast: bool) -> None:
        self.optimizer, self.comm, self.shard = opt, communicator(comm), shard
        engine = opt._engine
        agreement.check(opt, self.comm, f"shard={shard}, {buckets}, broadcast={broadcast}")
        if broadcast:
            for p in engine.parameters:
                begin_alike(self.comm, p)
        whole = list(engine.parameters)
        self._gradients: AllReduced | Scattered
        if shard:
            self._gradients = Scattered(opt.rule, whole, self.comm, buckets)
            opt._divide(self._gradients.parts)
        else:
            self._gradients = AllReduced(whole, self.comm, buckets)

    def step(self, grads: Any) -> None:
        """Average the gradients over the processes and update every parameter in place, on all of them alike.

        grads mirrors params, as in the optimizer's own step. A gradient that is None on some processes counts as zeros there; a
        tensor is skipped where it is None on all. A gradient that is not finite on one process is so on all. Raises InputError or
        DtypeError before anything is sent, CommunicationError where another process is gone. Where only one process raises, the
        others wait for it until their library gives up, which MPI never does.
        """
        opt = self.optimizer
        opt._check_groups()
        if opt.rule.between:
            between.check_training(opt.rule, opt.param_groups)
        with self._averaging():
            opt._step(self._gradients.sums(opt._leaves(grads)))
        self._gradients.spread()

    @contextmanager
    def _averaging(self) -> Iterator[None]:
        """Gradients are sums over all processes: the kernel divides them, as it does by a grad_scale."""
        settings = self.optimizer.settings
        own = settings.grad_scale
        if self.comm.size > 1:
            settings.grad_scale = float(self.comm.size) if own is None else own * self.comm.size
        try:
            yield
        finally:
            settings.grad_scale = own

    def state_dict(self) -> dict[str, Any]:
        """As that of the optimizer alone, of whole tensors, on every process: it loads on any number of them, or on none but one.
        With shard=True, arrays of NumPy.
        """
        saved = self.optimizer.state_dict()
        of = self._gradients
        return gathering.states(saved, self.optimizer.rule, of) if isinstance(of, Scattered) else saved

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take what `state_dict()` returned, here or of the optimizer alone, on every process; each keeps its part."""
        self.optimizer.load_state_dict(saved)

    def _switched(self, switch: Callable[[], None]) -> None:
        """`eval()` or `train()` of the optimizer, which has them where it averages: other parameters, in all processes' arrays."""
        switch()
        self._gradients.spread()

    def averaged_params(self) -> Any:
        """The optimizer's, of whole tensors; with shard=True, arrays of NumPy."""
        return self._whole(self.optimizer.averaged_params())

    def _full_precision(self) -> Any:
        """See `gpuopt.full_precision`; with shard=True, arrays of NumPy."""
        return self._whole(self.optimizer._full_precision())

    @property
    def _writes(self) -> bool:
        """Whether this process writes the file of `gpuopt.save`."""
        return self.comm.rank == 0

    def _agree(self, failed: bool, unread: Sequence[Tensor]) -> None:
        """Raises CommunicationError where another process has failed. unread: what is on the host by now, of whole tensors."""
        agree(self.comm, failed, "gpuopt.save", self._gradients.parameters[0].array)

    def _entries(self) -> list[Entry]:
        """See `optim.checkpoint`: of whole tensors."""
        states = self.state_dict()["state"]
        of_each = [states.get(place, {}) for place in contents.order(self.optimizer)]
        return [{k: v if k == "step" else contents.tensor(v, k) for k, v in entry.items()} for entry in of_each]

    def add_param_group(self, group: Mapping[str, Any], **options: Any) -> None:
        """Refused: what travels is planned once. Raises InputError."""
        raise InputError(
            "add_param_group of a data_parallel optimizer: expected all groups before data_parallel(opt, comm)"
        )

    def _whole(self, made: Any) -> Any:
        """New arrays in the structure of params, as parts or whole, as whole ones."""
        if not isinstance(self._gradients, Scattered):
            return made
        return self.optimizer._mirrored(gathering.arrays_of(self.optimizer._leaves(made), self._gradients))

    def __repr__(self) -> str:
        return f"data_parallel({self.optimizer!r}, {self.comm!r}, shard={self.shard})"

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked for is the optimizer's. Raises InputError for what takes gradients of this process alone."""
        if name in ("optimizer", "_gradients"):  # there is none yet
            raise AttributeError(name)
        found = getattr(self.optimizer, name)
        if name in ("eval", "train"):
            return partial(self._switched, found)
        if name in self.optimizer.rule.between and self.comm.size > 1:
            raise InputError(
                f"{name} of a data_parallel optimizer would take the gradients of one process: expected one process"
            )
        return found

    def __reduce__(self) -> Any:
        raise InputError("a data_parallel optimizer cannot be copied or pickled: expected its state_dict() instead")


@entry
def data_parallel(
    opt: Any,
    comm: Any = None,
    shard: bool = False,
    *,
    bucket_bytes: int = 32 * 2**20,
    reduce_dtype: str | None = None,
    find_unused_parameters: bool = True,
    broadcast: bool = False,
) -> DataParallel:
    """The optimizer on several processes, each of which gives `step` the gradients of its own data: their average is what steps.

    opt: over arrays, the same on every process; for gpuopt.torch there are DDP and FSDP2. comm: what
    `gpuopt.distributed.communicator` takes. shard: each process keeps the states of its part only (ZeRO-1, Rajbhandari et al.
    2020): of rows of every tensor, or, where the rule looks at rows, columns or products of matrices, of whole tensors. Parameters
    are whole everywhere. The results are those of shard=False, to the bit where no sum over a tensor is taken and the sums of
    gradients have the same bits: in which order more than two processes are added up is the library's business.
    bucket_bytes: how much is sent at a time. reduce_dtype: in which gradients of float32 and 16-bit parameters are added up:
    float32 (None), float16 or bfloat16. find_unused_parameters: whether a gradient may be None on some processes and not on others;
    on a GPU, the host then waits for the sums of each step. False: every gradient is there. broadcast: whether all processes begin
    with the parameters of rank 0; else these are taken to be the same.

    Raises InputError, on all processes, where shapes, dtypes, hyperparameters or options differ between them.
    """
    if not isinstance(opt, Optimizer):
        hint = (
            "torch's DistributedDataParallel or fully_shard"
            if "torch" in type(opt).__module__
            else "gpuopt.AdamW(params)"
        )
        raise InputError(
            f"data_parallel: found {type(opt).__name__}: expected an optimizer over arrays, such as {hint}"
        )
    if isinstance(bucket_bytes, bool) or not isinstance(bucket_bytes, int) or bucket_bytes < 1:
        raise InputError(f"bucket_bytes = {bucket_bytes!r}: expected a whole number, 1 or more")
    if reduce_dtype is not None and reduce_dtype not in REDUCED:
        raise InputError(f"reduce_dtype = {reduce_dtype!r}: expected one of {', '.join(REDUCED)}, or None")
    buckets = Buckets(bucket_bytes, reduce_dtype, bool(find_unused_parameters))
    return DataParallel(opt, comm, bool(shard), buckets, bool(broadcast))


def begin_alike(comm: Communicator, p: Parameter) -> None:
    """Make a parameter what it is on rank 0."""
    values = flat(p.array, p.label)
    comm.broadcast(values)
    if not is_flat(p.array, p.label):
        arrays.kind_of(p.array, p.label).assign(p.array, shaped(values, p.view.shape, p.view.pairs))
