"""Rows of `cases` for optimizers of matrices: class name -> hyperparameters, each compared with a formula of the author's."""

from __future__ import annotations

from typing import Any

ROWS: dict[str, tuple[dict[str, Any], ...]] = {
    "Muon": (
        {},
        {
            "lr": 0.02,
            "ns_coefficients": "polar_express",
            "adjust_lr_fn": "match_rms_adamw",
            "nesterov": False,
            "maximize": True,
        },
        {
            "lr": 0.02,
            "ns_coefficients": "cubic5",
            "adjust_lr_fn": "rms_to_rms",
            "momentum": 0.5,
            "adamw_betas": (0.5, 0.9),
        },
        {"lr": 0.02, "ns_steps": 3, "adjust_lr_fn": "none", "weight_decay": 0.0, "adamw_eps": 1e-3},
    ),
    "NorMuon": (
        {},
        {"second_momentum": 0.5, "ns_coefficients": "cubic5", "eps": 1e-3, "weight_decay": 0.0, "maximize": True},
        {"lr": 0.01, "adjust_lr_fn": "match_rms_adamw", "nesterov": False},
    ),
    # Matrices of signs have low ranks, and a small eps would show the noise of what is 0 in them.
    "AdaMuon": (
        {"eps": 1e-4},
        {"momentum": 0.5, "nesterov": False, "eps": 1e-3, "ns_steps": 3, "maximize": True},
        {"lr": 0.01, "eps": 1e-3, "ns_coefficients": "cubic5", "weight_decay": 0.3},
    ),
    "Muon2": (
        {},
        {"lr": 0.02, "second_momentum": 0.5, "adjust_lr_fn": "match_rms_adamw", "eps": 1e-3, "maximize": True},
        {"lr": 0.01, "ns_steps": 4, "nesterov": False},
    ),
    "NAMO": (
        {},
        {"second_momentum": 0.5, "ns_coefficients": "polar_express", "eps": 1e-3, "nesterov": False, "maximize": True},
        {"lr": 0.01, "adjust_lr_fn": "rms_to_rms", "weight_decay": 0.3},
    ),
    # With eps = 1e-8, what is all but 0 in a basis would show the noise of float32; see test_soap for it in float64.
    "SOAP": (
        {"lr": 0.01, "eps": 1e-5},
        {
            "lr": 0.02,
            "precondition_frequency": 3,
            "betas": (0.5, 0.9),
            "shampoo_beta": 0.8,
            "eps": 1e-3,
            "maximize": True,
        },
        {"lr": 0.01, "max_precond_dim": 4, "correct_bias": False, "weight_decay": 0.3, "eps": 1e-3},
    ),
    "APOLLO": (
        {},
        {"lr": 0.01, "rank": 1, "scale": 128.0, "scale_type": "tensor", "norm_growth": 1.2, "maximize": True},
        {"lr": 0.02, "rank": 3, "update_proj_gap": 4, "betas": (0.5, 0.9), "weight_decay": 0.3, "eps": 1e-3},
    ),
    "Dion2": (
        {},
        {"lr": 0.02, "fraction": 0.5, "ef_decay": 0.5, "adjust_lr_fn": "match_rms_adamw", "maximize": True},
        {"lr": 0.02, "fraction": 1.0, "ns_coefficients": "cubic5", "adjust_lr_fn": "none", "weight_decay": 0.3},
    ),
    # With a precond_lr of 0.25 roundings of factors, whose inverses are taken, grow to 1e-12 in 50 steps.
    "Kron": (
        {},
        {"lr": 0.01, "max_prob": 0.5, "max_size_triangular": 4, "momentum": 0.5, "maximize": True},
        {
            "lr": 0.02,
            "flat_start": 3,
            "prob_decay": 0.1,
            "precond_lr": 0.05,
            "precond_init_scale": 2.0,
            "weight_decay": 0.3,
        },
    ),
    "SOAPMuon": (
        {"eps": 1e-5},
        {
            "precondition_frequency": 3,
            "second_momentum": 0.5,
            "shampoo_beta": 0.8,
            "nesterov": False,
            "eps": 1e-3,
            "maximize": True,
        },
        {
            "lr": 0.01,
            "max_precond_dim": 4,
            "weight_decay": 0.3,
            "eps": 1e-3,
            "ns_coefficients": "keller",
            "ns_steps": 4,
        },
    ),
    # Where an average has no full rank, a small matrix_eps would show the noise of float32 in what is 0.
    "Shampoo": (
        {"matrix_eps": 1e-3},
        {
            "lr": 0.01,
            "precondition_frequency": 3,
            "betas": (0.5, 0.9),
            "shampoo_beta": 0.8,
            "matrix_eps": 0.01,
            "maximize": True,
        },
        {"lr": 0.01, "max_precond_dim": 4, "exponent": 0.5, "matrix_eps": 1e-3, "eps": 1e-3, "weight_decay": 0.3},
    ),
    "SPlus": (
        {},
        {"lr": 0.3, "precondition_frequency": 3, "betas": (0.5, 0.8), "weight_decay": 0.3, "maximize": True},
        {"max_precond_dim": 4, "nonstandard_constant": 0.01, "precondition_frequency": 10},
    ),
    "Scion": (
        {},
        {"lr": 0.01, "momentum": 0.5, "scale": 3.0, "unconstrained": True, "maximize": True},
        {"lr": 0.001, "ns_coefficients": "cubic5", "ns_steps": 4},
    ),
}
