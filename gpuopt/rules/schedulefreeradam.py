"""Schedule-free RAdam: schedule-free AdamW whose warm-up is RAdam's."""

from gpuopt.rules.language import State, rule, sqrt, where
from gpuopt.rules.parts import averaged_step, evaluated, resumed, weighed


@rule(
    state={
        "z": State("z", "z", exact=True),
        "v": State("v", "exp_avg_sq", holds="squares"),
        "h": State("h", "weight_max", shape="scalar"),
        "c": State("c", "weight_share", shape="scalar"),
    },
    title="ScheduleFreeRAdam",
    ranges={"beta1": "(0, 1)", **dict.fromkeys(("r", "weight_lr_power"), "[0, inf)")},
)
def schedulefreeradam(
    p, g, z, v, h, c, *, lr=2.5e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, r=0.0, weight_lr_power=2.0,
    first, rate, peak, growth, growth_before, inv_bias2, known,
):  # fmt: skip
    """ScheduleFreeRAdam, Defazio et al. 2024: ScheduleFreeAdamW, r_t = lr times RAdam's factor where rho > 4, else 0, or
    with silent_sgd_phase=False lr and u = g + weight_decay p. opt.eval() brings x = p + (1 - 1 / beta1)(z - p).

    z = p at the first step;  v <- beta2 v + (1 - beta2) g^2;  u = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p;
    p <- p - r_t (1 - beta1 (1 - c)) u behind p <- p + c (z - p);  z <- z - r_t u; c as in ScheduleFreeAdamW.
    """
    z = where(first != 0, p, z)
    v = beta2 * v + (1 - beta2) * g * g
    u = where(known != 0, g / (sqrt(v * inv_bias2) + eps), g)
    u = where(weight_decay != 0, u + weight_decay * p, u)
    p, z, h, c = averaged_step(p, z, u, h, c, beta1, rate, peak, growth, growth_before)
    return p, z, v, h, c


@schedulefreeradam.prepare
def _(step, *, lr, beta2, r, weight_lr_power, silent_sgd_phase=True):
    power = beta2**step
    most = 2 / (1 - beta2) - 1
    rho = most - 2 * step * power / (1 - power)
    ratio = (rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho) if rho > 4 else 0.0
    rate = lr * (sqrt(ratio) if rho > 4 else 0.0 if silent_sgd_phase else 1.0)
    peak, growth, growth_before = weighed(step, rate, r, weight_lr_power)
    return dict(
        first=1 if step == 1 else 0, rate=rate, peak=peak, known=1 if rho > 4 else 0,
        growth=growth, growth_before=growth_before, inv_bias2=1 / (1 - power),
    )  # fmt: skip


@schedulefreeradam.evaluate
def _(p, z, *, beta1):
    return evaluated(p, z, beta1)


@schedulefreeradam.resume
def _(p, z, *, beta1):
    return resumed(p, z, beta1)
