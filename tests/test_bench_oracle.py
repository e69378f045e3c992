"""What a peer's result may be off by: sums in float32 of rules that sum, and nothing more."""

from __future__ import annotations

from gpuopt.bench import oracle
from gpuopt.bench.adapters.own import Own
from gpuopt.bench.adapters.torch_steps import TorchStep
from gpuopt.bench.suites import Case


def test_only_peers_that_sum_in_float32_may_be_off_by_such_a_sum() -> None:
    allowed = {}
    for name in ("lamb", "adamw"):
        case = Case("", "", ((64,),), name)
        providers = Own("cpu", "numba"), TorchStep("cpu", "foreach", {}, 2)
        allowed[name] = [oracle.tolerance(case, provider.float32_sums) for provider in providers]
    assert allowed["lamb"][1] == allowed["lamb"][0] + oracle.SUMS and allowed["adamw"][0] == allowed["adamw"][1]
