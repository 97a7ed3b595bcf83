"""csrc/row_math.h in Triton: the same functions, names and order of arguments.

The derivation stands there. Values are columns of one value a row, (ROWS, 1), or tiles of classes,
(ROWS, BLOCK); options are scalars. testmath.py holds the two against each other.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class LossOptions(NamedTuple):
    """Scalars of the accumulate dtype, then flags that are known when a kernel is compiled."""

    label_smoothing: tl.tensor
    lse_square_scale: tl.tensor
    logit_scale: tl.tensor
    softcap: tl.tensor  # of int1: none
    over_others: tl.constexpr
    kl_div: tl.constexpr
    from_log_probs: tl.constexpr


class ClassSums(NamedTuple):
    coef: tl.tensor  # V = sum_c v_c
    coef_log: tl.tensor  # sum_c v_c log u_c


@triton.jit
def finite_or_zero(x):
    return tl.where(x - x == 0, x, 0.0)


@triton.jit
def weighted(coef, x):
    return tl.where(coef == 0, 0.0, coef * x)


@triton.jit
def x_log_x(x):
    return tl.where(x > 0, x * tl.log(x), 0.0)


@triton.jit
def tanh(x):
    """To within a few ulp: near 0 the formula with exp alone would cancel."""
    magnitude = 2 * tl.abs(x)
    magnitude = tl.where(magnitude > 80, 80.0, magnitude)  # exp stays finite; NaN passes
    exp_x = tl.exp(magnitude)
    if x.dtype == tl.float64:  # exp - 1, whose rounding is in its logarithm too
        less_one = tl.where(exp_x == 1, magnitude, (exp_x - 1) * (magnitude / tl.log(exp_x)))
        far = less_one / (less_one + 2)
        return tl.where(x < 0, -far, far)
    s = x * x
    p = -5.70498872745e-3 * s + 2.06390887954e-2
    p = p * s - 5.37397155531e-2
    p = p * s + 1.33314422036e-1
    p = p * s - 3.33332819422e-1
    far = 1 - 2 / (exp_x + 1)
    return tl.where(magnitude > 1.25, tl.where(x < 0, -far, far), x + x * s * p)


# ---- logits: scale and softcap -------------------------------------------------------------------


@triton.jit
def transform_logit(x0, options):
    x = x0 * options.logit_scale
    if options.softcap.dtype == tl.int1:
        return x
    else:  # noqa: RET505  (Triton wants one return or a branch for each)
        return options.softcap * tanh(x / options.softcap)


@triton.jit
def transform_slope(x, options):
    if options.softcap.dtype == tl.int1:
        return options.logit_scale
    else:  # noqa: RET505
        ratio = x / options.softcap
        return options.logit_scale * (1 - ratio * ratio)


# ---- class probabilities as the target -----------------------------------------------------------


@triton.jit
def soft_coef(class_coef, weighted_prob, beta):
    return beta * class_coef + weighted_prob


@triton.jit
def soft_negative_entropy(weight, prior, prob, beta, kappa):
    return weighted(x_log_x(weighted(beta, prior) + kappa * prob), weight)


@triton.jit
def soft_nll(prob, lse, x):
    return weighted(prob, lse - x)


# ---- row statistics ------------------------------------------------------------------------------


class RowStats(NamedTuple):
    """Of a part of a row. `coef_dot` is taken to a reference logit that all parts share."""

    shift: tl.tensor
    sum_exp: tl.tensor
    coef_dot: tl.tensor
    coef_sum: tl.tensor


@triton.jit
def add(a, b):
    return RowStats(
        a.shift, a.sum_exp + b.sum_exp, a.coef_dot + b.coef_dot, a.coef_sum + b.coef_sum
    )


@triton.jit
def combine(a, b):
    shift = tl.maximum(a.shift, b.shift)
    point = finite_or_zero(shift)
    return add(
        RowStats(shift, a.sum_exp * tl.exp(a.shift - point), a.coef_dot, a.coef_sum),
        RowStats(shift, b.sum_exp * tl.exp(b.shift - point), b.coef_dot, b.coef_sum),
    )


@triton.jit
def log_sum_exp(stats, options):
    if options.from_log_probs:
        return tl.zeros_like(stats.shift)
    else:  # noqa: RET505
        return stats.shift + tl.log(stats.sum_exp)


@triton.jit
def log_sum_exp_from(reference, stats, options):
    if options.from_log_probs:
        return -reference
    else:  # noqa: RET505
        return (stats.shift - reference) + tl.log(stats.sum_exp)


# ---- row loss ------------------------------------------------------------------------------------


class RowTerms(NamedTuple):
    beta: tl.tensor
    kappa: tl.tensor
    tau: tl.tensor
    mass: tl.tensor
    target_prob: tl.tensor
    target_coef: tl.tensor


@triton.jit
def row_terms(target_prior, target_weight, coef_sum, options):
    a = options.label_smoothing
    if options.over_others:
        beta = tl.where(a > 0, a / (1 - target_prior), 0.0)
        kappa = 1 - a - weighted(beta, target_prior)
        target_prob = 1 - a + tl.zeros_like(target_prior)
    else:
        beta = a + tl.zeros_like(target_prior)
        kappa = 1 - beta
        target_prob = weighted(beta, target_prior) + kappa
    tau = weighted(kappa, target_weight)
    mass = beta * coef_sum + tau
    target_coef = weighted(target_prob, target_weight)
    return RowTerms(beta, kappa, tau, mass, target_prob, target_coef)


@triton.jit
def row_loss(stats, terms, target_logit, reference, options):
    """The caller's coef_dot leaves out the target's class, which adds 0 to it if it is finite."""
    spread = weighted(terms.beta, stats.coef_dot)
    own = tl.where(
        target_logit - target_logit == 0,
        spread + weighted(terms.tau, target_logit - reference),
        tl.where(terms.target_coef != 0, terms.target_coef * target_logit, spread),
    )
    lse = log_sum_exp(stats, options)
    loss = weighted(terms.mass, log_sum_exp_from(reference, stats, options)) - own
    return loss + weighted(options.lse_square_scale, lse * lse)


@triton.jit
def negative_entropy(terms, target_prior, target_weight, sums):
    spread = weighted(terms.beta, target_prior)
    everywhere = tl.where(
        terms.beta > 0, terms.beta * (tl.log(terms.beta) * sums.coef + sums.coef_log), 0.0
    )
    return everywhere + weighted(x_log_x(terms.target_prob) - x_log_x(spread), target_weight)


# ---- gradient ------------------------------------------------------------------------------------


class GradTerms(NamedTuple):
    shift: tl.tensor
    exp_scale: tl.tensor
    beta: tl.tensor
    kappa: tl.tensor
    target_coef: tl.tensor


@triton.jit
def grad_terms(stats, terms, scale, options):
    extra = weighted(2 * options.lse_square_scale, log_sum_exp(stats, options))
    if options.from_log_probs:
        exp_scale = tl.zeros_like(stats.sum_exp)
    else:
        exp_scale = scale * (terms.mass + extra) / stats.sum_exp
    return GradTerms(
        stats.shift, exp_scale, scale * terms.beta, scale * terms.kappa, scale * terms.target_coef
    )


@triton.jit
def logit_grad(exp_x, coef, grad):
    return grad.exp_scale * exp_x - coef
