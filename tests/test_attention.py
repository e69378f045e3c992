"""QK-clip: logits of heads that grew too large shrink to the threshold, all else keeps its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import InputError

HEADS, DIM, WIDTH = 4, 3, 6


def weights(groups: int = HEADS) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((HEADS * DIM, WIDTH)),
        rng.standard_normal((groups * DIM, WIDTH)),
        rng.standard_normal((20, WIDTH)),
    )


def maxima(query: Any, key: Any, x: Any) -> Any:
    """The largest logit of every head."""
    q, k = (x @ w.T for w in (query, key))
    q, k = q.reshape(20, HEADS, DIM), np.repeat(k.reshape(20, -1, DIM), HEADS * DIM // key.shape[0], axis=1)
    return np.einsum("ihd,jhd->hij", q, k).max((1, 2))


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_large_logits_become_the_threshold_and_others_keep_their_bits(balance: float) -> None:
    query, key, x = weights()
    old = query.copy(), key.copy()
    found = maxima(query, key, x)
    threshold = float(np.sort(found)[1:3].mean())
    factors = gpuopt.qk_clip(query, key, found, threshold, balance)
    after = maxima(query, key, x)
    assert np.allclose(after, np.minimum(found, threshold)) and np.allclose(factors, np.minimum(threshold / found, 1))
    kept = np.repeat(found <= threshold, DIM)
    assert np.array_equal(query[kept], old[0][kept]) and np.array_equal(key[kept], old[1][kept])
    assert np.array_equal(query, old[0]) == (balance == 0) and np.array_equal(key, old[1]) == (balance == 1)


def test_key_heads_that_several_query_heads_share() -> None:
    query, key, x = weights(groups=2)
    found = maxima(query, key, x)
    gpuopt.qk_clip(query, key, list(found), threshold=float(found.min()))
    assert maxima(query, key, x).max() <= found.min() * (1 + 1e-12)


def test_what_does_not_go_together_is_refused_before_anything_is_written() -> None:
    query, key, _ = weights()
    old = query.copy(), key.copy()
    with pytest.raises(InputError, match="query of 12 rows and key of 12 for 5 heads"):
        gpuopt.qk_clip(query, key, np.ones(5))
    with pytest.raises(InputError, match="query of 12 rows and key of 9 for 4 heads"):
        gpuopt.qk_clip(query, key[:9], np.ones(4))
    with pytest.raises(InputError, match=r"key of shape \(12,\), maxima of shape \(4,\)"):
        gpuopt.qk_clip(query, key[:, 0], np.ones(4))
    with pytest.raises(InputError, match=r"threshold = 0: expected a number in \(0, inf\)"):
        gpuopt.qk_clip(query, key, np.ones(4), 0)
    with pytest.raises(InputError, match=r"balance = 2: expected a number in \[0, 1\]"):
        gpuopt.qk_clip(query, key, np.ones(4), 1.0, 2)
    assert np.array_equal(query, old[0]) and np.array_equal(key, old[1])
