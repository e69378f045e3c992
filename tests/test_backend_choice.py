"""How often a backend is chosen: asking what can run imports libraries and asks the driver."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt import backends


@pytest.mark.parametrize("api", ["arrays", "torch"])
def test_a_model_asks_once_which_backend_runs_it(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each tensor, nor again for another set of gradients."""
    asked: list[str] = []
    choose = backends.choose
    monkeypatch.setattr(backends, "choose", lambda name, device: (asked.append(device), choose(name, device))[1])
    if api == "torch":
        params = [torch.ones(3) for _ in range(50)]
        made = gpuopt.torch.SGD(params, lr=0.1)
        for some in (50, 20):
            for k, p in enumerate(params):
                p.grad = torch.ones(3) if k < some else None
            made.step()
        assert len(asked) <= 2, "an engine for each set of gradients"
    else:
        params = [np.ones(3) for _ in range(50)]
        opt = gpuopt.SGD(params, lr=0.1)
        for some in (50, 20):
            opt.step([np.ones(3) if k < some else None for k in range(50)])
        assert len(asked) == 1
