"""Schedule-free SGD: the average of the steps in the place of a falling rate."""

from gpuopt.rules.language import State, rule, where
from gpuopt.rules.parts import averaged_step, evaluated, resumed, weighed


@rule(
    state={
        "z": State("z", "z", exact=True),
        "h": State("h", "weight_max", shape="scalar"),
        "c": State("c", "weight_share", shape="scalar"),
    },
    title="ScheduleFreeSGD",
    ranges={"momentum": "(0, 1)", **dict.fromkeys(("warmup_steps", "r", "weight_lr_power"), "[0, inf)")},
)
def schedulefreesgd(
    p, g, z, h, c, *, lr=1.0, momentum=0.9, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0,
    first, rate, peak, growth, growth_before,
):  # fmt: skip
    """ScheduleFreeSGD, Defazio et al. 2024. p is trained, opt.eval() brings x = p + (1 - 1 / momentum)(z - p).

    z = p at the first step;  g <- g + weight_decay p;  p <- p + c (z - p);  p <- p - r_t (1 - momentum (1 - c)) g;
    z <- z - r_t g;  r_t = lr min(1, t / warmup_steps).
    c: the share of this step in the average, by weights t^r max(r_1 ... r_t)^weight_lr_power; real powers, which a
    GPU that decides on steps itself gives to an ulp.
    """
    z = where(first != 0, p, z)
    g = where(weight_decay != 0, g + weight_decay * p, g)
    p, z, h, c = averaged_step(p, z, g, h, c, momentum, rate, peak, growth, growth_before)
    return p, z, h, c


@schedulefreesgd.prepare
def _(step, *, lr, warmup_steps, r, weight_lr_power):
    rate = lr * (step / warmup_steps if step < warmup_steps else 1.0)
    peak, growth, growth_before = weighed(step, rate, r, weight_lr_power)
    return dict(
        first=1 if step == 1 else 0, rate=rate, peak=peak, growth=growth, growth_before=growth_before
    )  # fmt: skip


@schedulefreesgd.evaluate
def _(p, z, *, momentum):
    return evaluated(p, z, momentum)


@schedulefreesgd.resume
def _(p, z, *, momentum):
    return resumed(p, z, momentum)
