"""csrc/row_math.h in Triton: the same functions, names and order of arguments.

The derivation stands there. Values are columns of one value a row, (ROWS, 1), or tiles of classes,
(ROWS, BLOCK); options are scalars. test_row_math.py holds the two against each other.
"""

from typing import NamedTuple

import triton
import triton.language as tl

# SmoothOver.
ALL = tl.constexpr(0)
OTHERS = tl.constexpr(1)
UNMASKED = tl.constexpr(2)


class LossOptions(NamedTuple):
    """Scalars of the accumulate dtype, then flags that are known when a kernel is compiled, and are
    tensors to the language: what depends on them is of one type either way."""

    label_smoothing: tl.tensor
    lse_square_scale: tl.tensor
    logit_scale: tl.tensor  # of int1: logits are as they were given
    softcap: tl.tensor  # of int1: none
    lowest: tl.tensor
    smooth_over: tl.tensor
    weight_over_target: tl.tensor
    kl_div: tl.tensor
    from_log_probs: tl.tensor


class ClassSums(NamedTuple):
    coef: tl.tensor  # V = sum_c v_c
    coef_log: tl.tensor  # sum_c v_c log u_c
    prior: tl.tensor  # sum_c u_c


@triton.jit
def finite_or_zero(x):
    return tl.where(x - x == 0, x, 0.0)


@triton.jit
def reference_from(x):
    return finite_or_zero(tl.where(x > -30000, x, 0.0))


@triton.jit
def weighted(coef, x):
    return tl.where(coef == 0, 0.0, coef * x)


@triton.jit
def exp(x):
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:  # noqa: RET505  (Triton wants one return or a branch for each)
        return tl.exp2(x * 1.4426950408889634)  # fewer instructions than exp


@triton.jit
def x_log_x(x):
    return tl.where(x > 0, x * tl.log(x), 0.0)


@triton.jit
def tanh(x):
    """To within a few ulp: near 0 the formula with exp alone would cancel."""
    magnitude = 2 * tl.abs(x)
    magnitude = tl.where(magnitude > 80, 80.0, magnitude)  # exp stays finite; NaN passes
    exp_x = exp(magnitude)
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
    if options.logit_scale.dtype == tl.int1:
        return x0
    elif options.softcap.dtype == tl.int1:  # noqa: RET505
        return x0 * options.logit_scale
    else:
        return options.softcap * tanh(x0 * options.logit_scale / options.softcap)


@triton.jit
def transform_slope(x, options):
    if options.logit_scale.dtype == tl.int1:
        return 1.0
    elif options.softcap.dtype == tl.int1:  # noqa: RET505
        return options.logit_scale
    else:
        ratio = x / options.softcap
        return options.logit_scale * (1 - ratio * ratio)


# ---- classes -------------------------------------------------------------------------------------


@triton.jit
def coef_log_of_class(coef, prior):
    return weighted(coef, tl.log(prior))


@triton.jit
def unless_masked(value, x0, options):
    return tl.where((x0 > options.lowest) | (options.smooth_over != UNMASKED), value, 0.0)


@triton.jit
def soft_coef(class_coef, weighted_prob, beta):
    return beta * class_coef + weighted_prob


@triton.jit
def soft_nll(prob, lse, x):
    return weighted(prob, lse - x)


# ---- row statistics ------------------------------------------------------------------------------


class RowStats(NamedTuple):
    """Of a part of a row. `spread_dot` is taken to a reference logit that all parts share."""

    shift: tl.tensor
    sum_exp: tl.tensor
    spread_dot: tl.tensor


@triton.jit
def add(a, b):
    return RowStats(a.shift, a.sum_exp + b.sum_exp, a.spread_dot + b.spread_dot)


@triton.jit
def combine(a, b):
    shift = tl.maximum(a.shift, b.shift)
    point = finite_or_zero(shift)
    return add(
        RowStats(shift, a.sum_exp * exp(a.shift - point), a.spread_dot),
        RowStats(shift, b.sum_exp * exp(b.shift - point), b.spread_dot),
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
    mass: tl.tensor  # of the smoothing, beta V; the target's is added to it


@triton.jit
def row_terms(target_prior, sums, options):
    a = options.label_smoothing
    beta = a + tl.zeros_like(target_prior)
    kappa = 1 - beta
    if options.smooth_over == OTHERS:
        beta = tl.where(a > 0, a / (1 - target_prior), 0.0)
        kappa -= weighted(beta, target_prior)
    if options.smooth_over == UNMASKED:
        beta = tl.where(sums.prior > 0, a / sums.prior, 0.0) + tl.zeros_like(target_prior)
    return RowTerms(beta, kappa, beta * sums.coef)


class TargetTerms(NamedTuple):
    tau: tl.tensor
    prob: tl.tensor
    coef: tl.tensor
    spread_prior: tl.tensor
    spread_coef: tl.tensor


@triton.jit
def target_terms(target_prob, weight, prior, x0, terms, options):
    tau = weighted(terms.kappa * target_prob, weight)
    spread_prior = weighted(terms.beta, unless_masked(prior, x0, options))
    if options.smooth_over == OTHERS:
        prob = 1 - options.label_smoothing + tl.zeros_like(spread_prior)
    else:
        prob = spread_prior + terms.kappa * target_prob
    spread_coef = spread_prior
    coef = weighted(prob, weight)
    if not options.weight_over_target:
        spread_coef = weighted(spread_prior, weight)
    elif options.smooth_over == OTHERS:
        tau = coef - spread_coef
    else:
        coef = spread_coef + tau
    return TargetTerms(tau, prob, coef, spread_prior, spread_coef)


@triton.jit
def row_loss(stats, terms, target_dot, reference, options):
    lse = log_sum_exp(stats, options)
    loss = weighted(terms.mass, log_sum_exp_from(reference, stats, options)) - (
        weighted(terms.beta, stats.spread_dot) + target_dot
    )
    return loss + weighted(options.lse_square_scale, lse * lse)


@triton.jit
def smoothing_entropy(terms, sums):
    return x_log_x(terms.beta) * sums.coef + terms.beta * sums.coef_log


@triton.jit
def target_entropy(target):
    return weighted(target.coef, tl.log(target.prob)) - weighted(
        target.spread_coef, tl.log(target.spread_prior)
    )


# ---- gradient ------------------------------------------------------------------------------------


class GradTerms(NamedTuple):
    shift: tl.tensor
    exp_scale: tl.tensor
    beta: tl.tensor
    kappa: tl.tensor
    scale: tl.tensor


@triton.jit
def grad_terms(stats, terms, scale, options):
    extra = weighted(2 * options.lse_square_scale, log_sum_exp(stats, options))
    if options.from_log_probs:
        exp_scale = tl.zeros_like(stats.sum_exp)
    else:
        exp_scale = scale * (terms.mass + extra) / stats.sum_exp
    return GradTerms(stats.shift, exp_scale, scale * terms.beta, scale * terms.kappa, scale)


@triton.jit
def logit_grad(exp_x, coef, grad):
    return grad.exp_scale * exp_x - coef
