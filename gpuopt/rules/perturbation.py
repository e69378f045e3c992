"""The two passes of sharpness-aware minimisation that are no step of an optimizer: to where the loss is worst nearby, and back.

Run by `gpuopt.SAM` and `gpuopt.torch.SAM` over the parameters of any optimizer; on no list of optimizers.
"""

from gpuopt.rules.language import State, global_sum, rule, sqrt


@rule(state={"old": State("old", "old_p", exact=True)}, title="SAM", ranges={"rho": "[0, inf)", "eta": "[0, inf)"})
def perturbation(p, g, old, *, rho=0.05, eta=0.01, adaptive: bool = False):
    """SAM, Foret et al. 2021, up to where the gradients are taken again: old <- p;  p <- p + rho g / (|g| + 1e-12).

    adaptive: ASAM, Kwon et al. 2021: with T = |p| + eta, p <- p + rho T^2 g / (|T g| + 1e-12). Norms are over all tensors.
    """
    old = p
    if adaptive:
        size = abs(p) + eta
        s = size * g
        p = p + (rho / (sqrt(global_sum(s * s)) + 1e-12)) * (size * s)
    else:
        p = p + (rho / (sqrt(global_sum(g * g)) + 1e-12)) * g
    return p, old


@rule(title="SAM")
def restoration(p, g):
    """p <- g, the old values in the place of a gradient."""
    p = g
    return p
