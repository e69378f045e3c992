"""Libraries whose optimizers have torch's interface: one row of a table each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from gpuopt.bench.adapters.torch_steps import TorchSession, torch_tensors
from gpuopt.bench.providers import Provider, Session, distribution_version, importable
from gpuopt.bench.suites import Case, hyper


@dataclass(frozen=True)
class Peer:
    """A library. classes: optimizer -> its class in `module`; state_format: what its states are kept in.

    drop: hyperparameters that it does not take and that have the same value by definition; options: fixed arguments.
    """

    name: str
    distribution: str
    module: str
    devices: tuple[str, ...]
    classes: Mapping[str, str]
    state_format: str = "float32"
    param_format: str = "native"
    dtypes: tuple[str, ...] = ("float32",)
    drop: tuple[str, ...] = ("amsgrad", "dampening", "nesterov", "maximize")
    options: Mapping[str, Any] = field(default_factory=dict)


GPU, BOTH = ("cuda",), ("cuda", "cpu")
BNB8 = {"adamw": "AdamW8bit", "adam": "Adam8bit", "lion": "Lion8bit", "sgd": "SGD8bit"}
BNB32 = {"adamw": "AdamW32bit", "adam": "Adam32bit", "lion": "Lion32bit"}
FLASH = {"adamw": "FlashAdamW", "adam": "FlashAdam", "lion": "FlashLion", "sgd": "FlashSGD"}
OPTIMI = {"adamw": "AdamW", "lion": "Lion"}  # its Adam and SGD decay in another way: not the same step
# Those of these libraries whose step is the author's, as ours is: pytorch_optimizer's Lamb, for one, has no bias correction.
PYTORCH_OPTIMIZER = {"ademamix": "AdEMAMix", "prodigy": "Prodigy"}
AMSGRAD = ("amsgrad",)
TIMM = {"lamb": "Lamb", "lars": "Lars", "novograd": "NvNovoGrad"}  # its Adafactor takes other steps
WARM_UPS = ("alpha_warmup", "beta3_warmup")  # none by default there too
TWO = ("float32", "bfloat16")
PEERS = (
    Peer("bitsandbytes 8-bit", "bitsandbytes", "bitsandbytes.optim", GPU, BNB8, "int8", dtypes=TWO),
    Peer("bitsandbytes 32-bit", "bitsandbytes", "bitsandbytes.optim", GPU, BNB32, dtypes=TWO),
    Peer("flashoptim", "flashoptim", "flashoptim", GPU, FLASH, "int8", options={"master_weight_bits": None}),
    Peer("flashoptim 24-bit", "flashoptim", "flashoptim", GPU, FLASH, "int8", "split8", ("bfloat16",)),
    Peer("optimi", "torch-optimi", "optimi", BOTH, OPTIMI),
    Peer("torchao 8-bit", "torchao", "torchao.optim", GPU, {"adamw": "AdamW8bit", "adam": "Adam8bit"}, "int8"),
    Peer(
        "pytorch_optimizer",
        "pytorch_optimizer",
        "pytorch_optimizer",
        BOTH,
        PYTORCH_OPTIMIZER,
        drop=WARM_UPS,
        options={"weight_decouple": True},
    ),
    Peer("timm", "timm", "timm.optim", BOTH, TIMM, drop=AMSGRAD),
    Peer("prodigyopt", "prodigyopt", "prodigyopt", BOTH, {"prodigy": "Prodigy"}, drop=()),
    Peer("apex", "apex", "apex.optimizers", GPU, {"adamw": "FusedAdam", "sgd": "FusedSGD"}),
    Peer("DeepSpeed FusedAdam", "deepspeed", "deepspeed.ops.adam", GPU, {"adamw": "FusedAdam"}),
    Peer("DeepSpeed CPUAdam", "deepspeed", "deepspeed.ops.adam", ("cpu",), {"adamw": "DeepSpeedCPUAdam"}),
)


class TorchPeer(Provider):
    """A row of the table on one device."""

    float32_sums = True  # torch's
    rank = 5

    def __init__(self, device: str, peer: Peer) -> None:
        super().__init__(device)
        self.peer = peer
        self.name = peer.name

    def missing(self) -> str | None:
        if self.device not in self.peer.devices:
            return f"{self.name} does not run on a CPU" if self.device == "cpu" else f"{self.name} runs on a CPU only"
        why = importable("torch", self.peer.module)
        if why is None and self.device != "cpu" and not import_module("torch").cuda.is_available():
            why = "torch finds no GPU"
        return why

    def refuses(self, case: Case) -> str | None:
        peer = self.peer
        if case.optimizer not in peer.classes:
            return f"{peer.name} has no {case.optimizer} that is measured"
        if (
            case.dtype not in peer.dtypes
            or case.state_format != peer.state_format
            or case.param_format != peer.param_format
        ):
            kept = f"{peer.param_format} {'/'.join(peer.dtypes)} parameters and {peer.state_format} states"
            return f"{peer.name} is measured with {kept}"
        return None

    def start(self, case: Case) -> Session:
        params = torch_tensors(case, self.device)
        made = getattr(import_module(self.peer.module), self.peer.classes[case.optimizer])
        wanted = {k: v for k, v in hyper(case.optimizer).items() if k not in self.peer.drop}
        return TorchSession(params, made(params, **wanted, **self.peer.options))

    @property
    def version(self) -> str:
        return distribution_version(self.peer.distribution)


def providers(device: str) -> Iterator[Provider]:
    """One for each row."""
    for peer in PEERS:
        yield TorchPeer(device, peer)
