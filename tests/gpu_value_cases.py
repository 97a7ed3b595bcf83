"""Those of the GPU's cases in which NaN and infinity might arise, and how a case is written."""

from __future__ import annotations

import math
from typing import Any

import torch
from gpu_problem import Case


def case_of(name: str, change: dict[str, Any] | None = None, **fields: Any) -> Case:
    """A case of fields and of a change, sorted into fields and options."""
    options = dict(fields.pop("options", {}))
    for key, value in (change or {}).items():
        (fields if key in Case.__dataclass_fields__ else options)[key] = value
    return Case(name, options=options, **fields)


TWO_PHASES: dict[str, Any] = {"one_step": False, "options": {"reduction": "none"}}


def values_and_targets() -> list[Case]:
    """Where NaN and infinity might arise, in short rows and in long ones."""
    cases = []
    for classes in (1000, 33003):
        for values in ("offset", "negative", "rising", "half", "masked", "target"):
            cases.extend(
                Case(
                    f"{values}, smoothing {smoothing}, C={classes}",
                    shape=(2, classes),
                    values=values,
                    options={"label_smoothing": smoothing, "return_stats": True},
                )
                for smoothing in (0.0, 0.1)
            )
        bad = ("below", "beyond", "few below", "few beyond")
        for targets in ("ignored", "all ignored", *bad):
            for one_step in (True, False):
                phase = "one step" if one_step else "two phases"
                cases.append(
                    Case(
                        f"{targets}, {phase}, C={classes}",
                        shape=(3, classes),
                        targets=targets,
                        values="garbage" if targets == "ignored" else "normal",
                        one_step=one_step,
                        options={} if one_step else {"reduction": "none"},
                    )
                )
        cases.append(
            Case(
                f"rows of no mass, C={classes}",
                shape=(2, classes),
                values="empty",
                options={"from_log_probs": True, "reduction": "sum"},
            )
        )
        cases.append(
            Case(
                f"statistics of bad targets, C={classes}",
                shape=(3, classes),
                targets="beyond",
                vectors=("weight",),
                options={"return_stats": True},
            )
        )
    # Class 0 may be no point that differences are taken to, nor the first class of a target.
    cases.extend(
        Case(
            f"far masks, {targets}",
            shape=(2, 300),
            values="far",
            targets=targets,
            options={"label_smoothing": 0.0, "return_stats": True},
        )
        for targets in ("classes", "few", "probabilities")
    )
    masked: dict[str, Any] = {"shape": (2, 300), "values": "class 3"}
    cases.extend(
        Case(f"masked class without {vector}", vectors=(vector,), **masked)
        for vector in ("weight", "prior")
    )
    cases.append(
        Case(
            "masked class without probability",
            targets="probabilities",
            options={"label_smoothing": 0.0, "return_stats": True},
            **masked,
        )
    )
    return cases


def zero_coefficients() -> list[Case]:
    """An infinite or NaN weight of a class that no row gives anything, and such a prior where
    nothing is spread."""
    unsmoothed: dict[str, Any] = {"vectors": ("weight",), "label_smoothing": 0.0}
    both = ("weight", "prior")
    changes: dict[str, dict[str, Any]] = {
        "unsmoothed": unsmoothed,
        "unsmoothed kl_div": {
            **unsmoothed,
            "vectors": both,
            "objective": "kl_div",
            "prior_of_3": math.nan,
        },
        "prior of 0": {"vectors": both, "targets": "ignored", "lse_square_scale": 0.01},
        "others": {"vectors": both, "smooth_over": "others", "objective": "kl_div"},
        "smoothing 1": {"vectors": both, "label_smoothing": 1.0, "return_stats": True},
        "probabilities": {**unsmoothed, "targets": "probabilities", "return_stats": True},
        "probabilities, prior of 0": {
            "vectors": both,
            "targets": "probabilities",
            "objective": "kl_div",
        },
    }
    cases = []
    for value in (math.inf, math.nan):
        for name, change in changes.items():
            name = f"weight {value}, {name}"
            case: dict[str, Any] = {"weight_of_3": value}
            cases.append(case_of(f"{name}, one step", change, **case))
            cases.append(case_of(f"{name}, two phases", change, **case, **TWO_PHASES))
        for layout, classes in (("columns", 70), ("rows", 33003)):
            for targets in ("classes", "probabilities"):
                name = f"weight {value}, {layout}, {targets}, C={classes}"
                shape = {"shape": (2, classes), "layout": layout, "dtype": torch.bfloat16}
                change = {**unsmoothed, "targets": targets}
                cases.append(case_of(name, change, weight_of_3=value, **shape))
    return cases
