"""The cases that every GPU backend is held against, one table for all of them.

    from gpu_cases import CASES, Case, check_case

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_case(case: Case) -> None:
        with simulated(...):
            check_case(case, backend)

A backend is an object with the package's pair of functions,

    forward(inputs, options, *, with_grad) -> Outputs
    backward(grad_loss, row_stats, inputs, options, *, inplace) -> Tensor

gpu_problem.py makes the tensors of a case and checks what comes back. Rows are few, for simulators
are slow.
"""

from __future__ import annotations

from typing import Any

import torch
from checks import DTYPES, REDUCTIONS
from gpu_problem import Case, check_case
from gpu_value_cases import TWO_PHASES, case_of, values_and_targets, zero_coefficients

__all__ = ["CASES", "EACH_KERNEL", "Case", "check_case"]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Around a vector of 16 bytes, a warp of them, blocks of 128 and 1024 threads with vectors of them.
EDGES = (1, 2, 7, 8, 9, 31, 32, 33, 128, 129, 255, 256, 257, 1000, 1023, 1024, 1025, 4095, 4097)
FEW_EDGES = (1, 5, 32, 129, 1025, 4096)
# Beyond what the registers, or the shared memory, of a block hold.
LONG = {torch.float32: (33003, 66000), torch.bfloat16: (40003, 140000), torch.float64: (20011,)}

# One change of the default call each: of Options, or `vectors` or `targets` of a case.
CHANGES: dict[str, dict[str, Any]] = {
    "smoothing 0": {"label_smoothing": 0.0},
    "smoothing 1": {"label_smoothing": 1.0},
    "others": {"smooth_over": "others"},
    "weight": {"vectors": ("weight",)},
    "prior": {"vectors": ("prior",)},
    "kl_div": {"objective": "kl_div"},
    "log-probabilities": {"from_log_probs": True},
    "lse squared": {"lse_square_scale": 0.01},
    "scale": {"logit_scale": -1.5},
    "softcap": {"softcap": 2.0},
    "ignored": {"targets": "ignored"},
    "ignored class": {"ignore_index": 0},
    "int32": {"targets": "int32"},
    "probabilities": {"targets": "probabilities"},
    "float32 probabilities": {"targets": "probabilities", "probs_dtype": torch.float32},
    "float16 probabilities": {"targets": "probabilities", "probs_dtype": torch.float16},
    "float64 probabilities": {"targets": "probabilities", "probs_dtype": torch.float64},
    "few": {"targets": "few"},
    "many": {"targets": "many"},
    "normalizer": {"vectors": ("normalizer",)},
    "row weight": {"vectors": ("row_weight",), "targets": "ignored"},
    "weight over the target": {"vectors": ("weight",), "weight_over": "target"},
    "unmasked": {"smooth_over": "unmasked", "values": "masked"},
    "unmasked, lowest": {"smooth_over": "unmasked", "values": "lowest", "return_stats": True},
    "statistics": {"return_stats": True},
    "weighted others": {"vectors": ("weight", "prior"), "smooth_over": "others"},
    "weighted kl_div": {
        "vectors": ("weight", "prior"),
        "smooth_over": "others",
        "objective": "kl_div",
    },
    "weighted probabilities": {
        "vectors": ("weight", "prior"),
        "targets": "probabilities",
        "objective": "kl_div",
        "return_stats": True,
    },
    "weighted few": {
        "vectors": ("weight", "prior", "row_weight"),
        "targets": "few",
        "objective": "kl_div",
        "lse_square_scale": 0.01,
        "return_stats": True,
    },
    "weighted unmasked": {
        "vectors": ("weight", "prior", "row_weight"),
        "smooth_over": "unmasked",
        "values": "masked",
        "objective": "kl_div",
        "softcap": 5.0,
    },
    "unmasked few": {
        "vectors": ("weight", "prior"),
        "targets": "few",
        "smooth_over": "unmasked",
        "values": "masked",
        "return_stats": True,
    },
    "unmasked probabilities": {
        "vectors": ("weight",),
        "targets": "probabilities",
        "weight_over": "target",
        "smooth_over": "unmasked",
        "values": "masked probabilities",
        "return_stats": True,
    },
    "weighted kl_div over the target": {
        "vectors": ("weight", "prior"),
        "weight_over": "target",
        "objective": "kl_div",
    },
    "everything": {
        "vectors": ("weight", "prior", "normalizer"),
        "targets": "ignored",
        "smooth_over": "others",
        "objective": "kl_div",
        "lse_square_scale": 0.01,
        "logit_scale": 0.7,
        "softcap": 5.0,
        "return_stats": True,
    },
}


def _sizes() -> list[Case]:
    """float16 in two phases, as the package runs it."""
    cases = []
    for dtype in DTYPES:
        edges = EDGES if dtype == torch.bfloat16 else FEW_EDGES
        for classes in (*edges, *LONG.get(dtype, ())):
            phases: dict[str, Any] = TWO_PHASES if dtype == torch.float16 else {}
            name = f"{_name(dtype)} C={classes}"
            cases.append(Case(name, dtype=dtype, shape=(2, classes), **phases))
    return cases


def _options() -> list[Case]:
    """In one step and in two phases; those that change the loops in long rows too."""
    cases = []
    for name, change in CHANGES.items():
        cases.append(case_of(f"{name}, one step", change))
        if name != "normalizer":  # it is the mean's
            cases.append(case_of(f"{name}, two phases", change, **TWO_PHASES))
    cases += [
        case_of(f"{name}, float64", CHANGES[name], dtype=torch.float64)
        for name in (
            *("weighted kl_div", "weighted probabilities", "everything", "weighted few"),
            *("float32 probabilities", "float16 probabilities", "weighted unmasked"),
        )
    ]
    several = ("weighted probabilities", "weighted few", "many", "weighted unmasked", "everything")
    for name in several:
        cases.append(case_of(f"{name}, long rows", CHANGES[name], shape=(2, 33003)))
        cases.append(
            case_of(
                f"{name}, long rows in two phases",
                CHANGES[name],
                dtype=torch.bfloat16,
                shape=(2, 40003),
                one_step=False,
            )
        )
    return cases


def _layouts() -> list[Case]:
    """Fresh and in place; columns of 16 bits are unaligned in every other row."""
    cases = []
    for layout in ("rows", "odd", "padded", "columns", "every 2nd"):
        for dtype in (torch.float32, torch.bfloat16):
            for inplace in (False, True):
                for one_step in (True, False):
                    words = (
                        _name(dtype),
                        layout,
                        "in place" if inplace else "fresh",
                        "one step" if one_step else "two phases",
                    )
                    cases.append(
                        Case(
                            ", ".join(words),
                            dtype=dtype,
                            shape=(3, 517),
                            layout=layout,
                            targets="ignored",
                            one_step=one_step,
                            options={"inplace": inplace},
                        )
                    )
    cases += [  # each row's probabilities of another alignment than its logits, wider and narrower
        case_of(
            f"{_name(dtype)}, {_name(of)} probabilities, {layout}",
            dtype=dtype,
            shape=(3, 517),
            layout=layout,
            targets="probabilities",
            probs_dtype=of,
        )
        for dtype, of in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16))
        for layout in ("odd", "columns")
    ]
    for layout in ("rows", "padded", "columns"):
        for targets in ("ignored", "probabilities", "few"):
            name = f"{layout}, (N, C, S), {targets}"
            options = {"return_stats": True, "inplace": targets == "ignored"}
            cases.append(
                Case(name, shape=(2, 37, 5), layout=layout, targets=targets, options=options)
            )
    cases.append(Case("odd, long rows", shape=(2, 33003), layout="odd"))
    cases.append(Case("columns, long rows", shape=(2, 33003), layout="columns"))
    for name in ("weighted probabilities", "weighted few", "weighted unmasked", "everything"):
        columns: dict[str, Any] = {"shape": (3, 2003), "layout": "columns"}
        cases.append(case_of(f"{name}, long columns", CHANGES[name], **columns))
        cases.append(
            case_of(
                f"{name}, long columns in two phases",
                CHANGES[name],
                dtype=torch.bfloat16,
                one_step=False,
                **columns,
            )
        )
    cases.append(Case("many positions", shape=(1, 21, 130), targets="ignored"))
    cases.append(Case("negative, positions", shape=(2, 37, 40), values="negative"))
    cases.append(Case("negative, columns", shape=(5, 45), layout="columns", values="negative"))
    return cases


def _calls() -> list[Case]:
    """Reductions and phases, and batches of any size."""
    cases = []
    for reduction in REDUCTIONS:
        for vectors in ((), ("weight",)):
            name = f"{reduction}{', weight' if vectors else ''}"
            call: dict[str, Any] = {"vectors": vectors, "targets": "ignored", "shape": (5, 70)}
            cases.append(
                Case(
                    f"{name}, two phases", one_step=False, options={"reduction": reduction}, **call
                )
            )
            if reduction != "none":
                cases.append(Case(f"{name}, one step", options={"reduction": reduction}, **call))
    cases.append(Case("expanded grad_loss", expanded=True, **TWO_PHASES))
    for rows in (0, 1, 67):
        for one_step in (True, False):
            phase = "one step" if one_step else "two phases"
            cases.append(
                Case(
                    f"N={rows}, {phase}",
                    shape=(rows, 40),
                    targets="classes",
                    one_step=one_step,
                    options={"return_stats": True, "reduction": "sum"},
                )
            )
    cases.append(Case("S=0", shape=(2, 40, 0), options={"reduction": "sum"}))
    cases.append(
        Case("N=0, every 2nd", shape=(0, 40), layout="every 2nd", options={"reduction": "sum"})
    )
    return cases


CASES = [
    *_sizes(),
    *_options(),
    *_layouts(),
    *values_and_targets(),
    *zero_coefficients(),
    *_calls(),
]


def _each_kernel() -> list[Case]:
    """Small ones that, whole and over ranks, launch every kernel of every dtype."""
    cases = []
    for dtype in DTYPES:
        for layout, classes in (("rows", 70), ("columns", 70), ("rows", 6000)):
            for option in ("everything", "weighted few"):
                name = f"{_name(dtype)}, {option}, {layout}, C={classes}"
                fields = {"dtype": dtype, "shape": (3, classes), "layout": layout}
                cases.append(case_of(name, CHANGES[option], **fields))
    return cases


EACH_KERNEL = _each_kernel()
