"""Schedule-free AdamW: the average of the steps in the place of a falling rate."""

from gpuopt.rules.language import State, rule, sqrt, where
from gpuopt.rules.parts import averaged_step, evaluated, resumed, weighed


@rule(
    state={
        "z": State("z", "z", exact=True),
        "v": State("v", "exp_avg_sq", holds="squares"),
        "h": State("h", "weight_max", shape="scalar"),
        "c": State("c", "weight_share", shape="scalar"),
    },
    title="ScheduleFreeAdamW",
    ranges={"beta1": "(0, 1)", **dict.fromkeys(("warmup_steps", "r", "weight_lr_power"), "[0, inf)")},
)
def schedulefreeadamw(
    p, g, z, v, h, c, *, lr=2.5e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, warmup_steps=0, r=0.0,
    weight_lr_power=2.0, first, rate, peak, growth, growth_before, inv_bias2,
):  # fmt: skip
    """ScheduleFreeAdamW, Defazio et al. 2024. p is trained, opt.eval() brings x = p + (1 - 1 / beta1)(z - p).

    z = p at the first step;  v <- beta2 v + (1 - beta2) g^2;  u = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p;
    p <- p + c (z - p);  p <- p - r_t (1 - beta1 (1 - c)) u;  z <- z - r_t u;  r_t = lr min(1, t / warmup_steps).
    c: the share of this step in the average, by weights t^r max(r_1 ... r_t)^weight_lr_power; real powers, which a
    GPU that decides on steps itself gives to an ulp.
    """
    z = where(first != 0, p, z)
    v = beta2 * v + (1 - beta2) * g * g
    u = g / (sqrt(v * inv_bias2) + eps)
    u = where(weight_decay != 0, u + weight_decay * p, u)
    p, z, h, c = averaged_step(p, z, u, h, c, beta1, rate, peak, growth, growth_before)
    return p, z, v, h, c


@schedulefreeadamw.prepare
def _(step, *, lr, beta2, warmup_steps, r, weight_lr_power):
    rate = lr * (step / warmup_steps if step < warmup_steps else 1.0)
    peak, growth, growth_before = weighed(step, rate, r, weight_lr_power)
    return dict(
        first=1 if step == 1 else 0, rate=rate, peak=peak, growth=growth, growth_before=growth_before,
        inv_bias2=1 / (1 - beta2**step),
    )  # fmt: skip


@schedulefreeadamw.evaluate
def _(p, z, *, beta1):
    return evaluated(p, z, beta1)


@schedulefreeadamw.resume
def _(p, z, *, beta1):
    return resumed(p, z, beta1)
