"""What numba compiles: the local solver of `evidence`, and products with sparse logs.

The solver works one sample at a time, in the precision of its input.

The equations and symbols are those of `evidence`, whose plain form is the reference that tests
compare with. Here a sample stays in the cache from the first Newton pass to the bound, and nothing
but the answer is written. Exponential and logarithm are power series of a reduced argument: unlike
the library's, they vectorise.
"""

import functools
import math
from typing import Any, NamedTuple, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic, overload

from countvae.omega import COEFFICIENTS, HIGH, LOW

F = np.float32

# Only `solve` is kept on disk, with all that it calls inlined. Separate functions have a copy of
# their own and one in each caller, and gave other bits where they were compiled than in later runs.
compiled: Any = functools.partial(njit, nogil=True, error_model="numpy")

EXACT = {"contract"}
ANY_ORDER = {"reassoc", "contract", "nsz", "arcp"}
"""Sums in any order, so that they vectorise; NaN and infinity keep their meaning."""

CHUNK = 512
"""Features summed in the precision of the input; the sums of chunks are added in double."""

# Rows of a chunk in the workspace. One array with constant distances between its rows lets the
# compiler see that they do not overlap.
LOG_U, STEP, INVERSE, PRIOR, FACTORS, COUNTS, NOISE, PRECISION = (row * CHUNK for row in range(8))
ROWS = 8 * CHUNK


class _Layout(NamedTuple):
    """Where a floating-point number keeps its exponent."""

    bits: ir.IntType
    number: ir.Type
    fraction: int
    bias: int
    sqrt_half: int
    """The bits of sqrt(1/2)."""


LAYOUTS = {
    types.float32: _Layout(ir.IntType(32), ir.FloatType(), 23, 127, 0x3F3504F3),
    types.float64: _Layout(ir.IntType(64), ir.DoubleType(), 52, 1023, 0x3FE6A09E667F3BCD),
}


@intrinsic
@no_type_check
def _power_of_two(typing_context, n):
    """2^n of a whole number n, in the precision that it comes in, if that has it."""
    at = LAYOUTS[n]

    def generate(context, builder, signature, arguments):
        whole = builder.fptosi(arguments[0], at.bits)
        exponent = builder.add(whole, ir.Constant(at.bits, at.bias))
        return builder.bitcast(builder.shl(exponent, ir.Constant(at.bits, at.fraction)), at.number)

    return n(n), generate


@intrinsic
@no_type_check
def _exponent(typing_context, y):
    """Whole number n for which 2^-n y lies between sqrt(1/2) and sqrt(2)."""
    at = LAYOUTS[y]

    def generate(context, builder, signature, arguments):
        above = builder.sub(
            builder.bitcast(arguments[0], at.bits), ir.Constant(at.bits, at.sqrt_half)
        )
        return builder.sitofp(builder.ashr(above, ir.Constant(at.bits, at.fraction)), at.number)

    return y(y), generate


def _inverse_factorials(kind: Any, degree: int) -> tuple[Any, ...]:
    return tuple(kind(1 / math.factorial(i)) for i in range(degree, -1, -1))


def _twice_odd_inverses(kind: Any, count: int) -> tuple[Any, ...]:
    return tuple(kind(2 / (2 * i + 1)) for i in range(count - 1, -1, -1))


EXP, EXP_DOUBLE = _inverse_factorials(F, 7), _inverse_factorials(np.float64, 13)
ATANH, ATANH_DOUBLE = _twice_odd_inverses(F, 6), _twice_odd_inverses(np.float64, 11)


@compiled(fastmath=EXACT, forceinline=True)
@no_type_check
def _polynomial(coefficients, x):
    """Evaluate by Horner's rule, the coefficient of the highest power first."""
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


@compiled(fastmath=EXACT, forceinline=True)
@no_type_check
def exp(x):
    """Exponential within two units in the last place, of x clipped to -87 ... 88."""
    x = min(max(x, F(-87.0)), F(88.0))
    n = np.floor(x * F(1.44269504) + F(0.5))
    # log 2 in two parts, the first with zeros to spare, so that n times it is exact
    r = (x - n * F(0.693145752)) - n * F(1.42860677e-06)
    return _polynomial(EXP, r) * _power_of_two(n)


@compiled(fastmath=EXACT, forceinline=True)
@no_type_check
def log(y):
    """Logarithm within two units in the last place, of normal y > 0 below 2^126."""
    n = _exponent(y)
    m = y * _power_of_two(-n)
    s = (m - F(1.0)) / (m + F(1.0))
    return n * F(0.693145752) + (n * F(1.42860677e-06) + s * _polynomial(ATANH, s * s))


@compiled(fastmath=EXACT, forceinline=True)
@no_type_check
def exp_double(x):
    """Exponential within two units in the last place, of x clipped to -700 ... 700."""
    x = min(max(x, -700.0), 700.0)
    n = np.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    return _polynomial(EXP_DOUBLE, r) * _power_of_two(n)


@compiled(fastmath=EXACT, forceinline=True)
@no_type_check
def log_double(y):
    """Logarithm within two units in the last place, of normal y > 0 below 2^1022."""
    n = _exponent(y)
    m = y * _power_of_two(-n)
    s = (m - 1.0) / (m + 1.0)
    series = _polynomial(ATANH_DOUBLE, s * s)
    return n * 0.6931471803691238 + (n * 1.9082149292705877e-10 + s * series)


def _exp(x: Any) -> Any:
    """Exponential in the precision of x."""


def _log(y: Any) -> Any:
    """Logarithm in the precision of y."""


INLINE: Any = {"fastmath": EXACT, "forceinline": True, "nogil": True, "error_model": "numpy"}


@overload(_exp, jit_options=INLINE)
@no_type_check
def _(x):
    return (lambda x: exp(x)) if x == types.float32 else (lambda x: exp_double(x))


@overload(_log, jit_options=INLINE)
@no_type_check
def _(y):
    return (lambda y: log(y)) if y == types.float32 else (lambda y: log_double(y))


@compiled(fastmath=EXACT, forceinline=True)
@no_type_check
def log1p(u):
    """Return log(1 + u) for u >= 0: what rounding took from 1 + u is put back."""
    t = F(1.0) + u
    return _log(t) + (u - (t - F(1.0))) / t


@compiled(fastmath=ANY_ORDER, forceinline=True)
@no_type_check
def _load(work, first, size, m0, Q, x, sigma2, log_sigma2, c):
    """Bring features `first` ... into a chunk, with log_u at the start that `evidence` has."""
    for j in range(size):
        work[NOISE + j] = sigma2[first + j]
    for j in range(size):
        work[PRIOR + j] = m0[first + j]
    for j in range(size):
        work[PRIOR + j] += work.dtype.type(log_sigma2[first + j])
    for j in range(size):
        work[FACTORS + j] = Q[first + j]
    for j in range(size):
        work[COUNTS + j] = x[first + j]
    for j in range(size):
        s, q = work[NOISE + j], work[FACTORS + j]
        Y = work[PRIOR + j] + s * work[COUNTS + j] + F(0.5) * (q + s) + c
        y = min(max(Y, F(LOW)), F(HIGH))
        root = F(COEFFICIENTS[6])
        root = root * y + F(COEFFICIENTS[5])
        root = root * y + F(COEFFICIENTS[4])
        root = root * y + F(COEFFICIENTS[3])
        root = root * y + F(COEFFICIENTS[2])
        root = root * y + F(COEFFICIENTS[1])
        root = root * y + F(COEFFICIENTS[0])
        positive = max(Y, F(1.0))
        high = _log(positive) * (positive / (F(1.0) + positive))
        root = high if Y > F(HIGH) else root
        root = Y if Y < F(LOW) else root
        u = Y - root
        rho = F(1.0) / (F(1.0) + u)
        h = rho * (s + rho * q)
        slope = F(1.0) + u + u * rho * (h - F(0.5) * rho * s)
        work[PRECISION + j] = F(1.0) / s
        work[LOG_U + j] = root + F(0.5) * (h - q - s) / slope
        work[STEP + j] = F(0.0)
        work[INVERSE + j] = F(0.0)


@compiled(fastmath=ANY_ORDER, forceinline=True)
@no_type_check
def _newton(work, size, shift, c, deep):
    """Finish the last step and find the next.

    Returns this chunk's part of sum(lambda / g'), of N - sum(lambda (1 + step)) and of the nats
    that the step moves.
    """
    pull, excess, moved = F(0.0), F(0.0), F(0.0)
    for j in range(size):
        s, per_s, q = work[NOISE + j], work[PRECISION + j], work[FACTORS + j]
        log_u = work[LOG_U + j] + work[STEP + j] + shift * work[INVERSE + j]
        u = _exp(log_u)
        rho = F(1.0) / (F(1.0) + u)
        h = rho * (s + rho * q)
        inverse = F(1.0) / (F(1.0) + u + u * rho * (h - F(0.5) * rho * s))
        e = log_u - work[PRIOR + j] - c - F(0.5) * h
        error = work[COUNTS + j] * s - u - e
        step = min(max(error * inverse, F(-4.0)), F(4.0))
        pull += u * inverse * per_s
        excess += (e + error - u * step if deep else -u - u * step) * per_s
        moved += step * error * per_s
        work[LOG_U + j] = log_u
        work[STEP + j] = step
        work[INVERSE + j] = inverse
    return pull, excess, moved


@compiled(fastmath=ANY_ORDER, forceinline=True)
@no_type_check
def _evaluate(work, size, shift, c):
    """Finish the last step and sum lambda, x log(sigma2 lambda) - x h / 2, the noise's KL, slack.

    Leaves u, e / sigma2, w, curvature and lambda in LOG_U, STEP, INVERSE, PRECISION, FACTORS.
    """
    rates, expected, divergence, informed = 0.0, 0.0, F(0.0), F(0.0)
    for j in range(size):
        s, per_s, q = work[NOISE + j], work[PRECISION + j], work[FACTORS + j]
        log_u = work[LOG_U + j] + work[STEP + j] + shift * work[INVERSE + j]
        u = _exp(log_u)
        rho = F(1.0) / (F(1.0) + u)
        h = rho * (s + rho * q)
        slope = F(1.0) + u + u * rho * (h - F(0.5) * rho * s)
        e = log_u - work[PRIOR + j] - c - F(0.5) * h
        rate = u * per_s
        slack = u * rho
        rates += np.float64(rate)
        expected += np.float64(work[COUNTS + j]) * (np.float64(log_u) - 0.5 * np.float64(h))
        divergence += (e * e + slack * slack * q) * per_s - slack + log1p(u)
        informed += slack * per_s
        work[LOG_U + j] = u
        work[STEP + j] = e * per_s if u > F(1.0) else F(0.0)
        work[INVERSE + j] = rate * rho
        work[PRECISION + j] = rate / slope
        work[FACTORS + j] = rate
    return rates, expected, divergence, informed


@compiled(fastmath=ANY_ORDER, forceinline=True)
@no_type_check
def _store(work, first, size, scale, Q, r, of_Q, curvature, squares, information, fisher):
    """Write what `_evaluate` left, with rates that sum to N, and add up what sigma2 depends on."""
    for j in range(size):
        near = work[COUNTS + j] - scale * work[FACTORS + j]
        r[first + j] = work[STEP + j] if work[LOG_U + j] > F(1.0) else near
    for j in range(size):
        of_Q[first + j] = F(-0.5) * scale * work[INVERSE + j]
    for j in range(size):
        curvature[first + j] = scale * work[PRECISION + j]
    if len(squares):
        for j in range(size):
            w = F(-2.0) * of_Q[first + j]
            square = w * w
            squares[first + j] += r[first + j] * r[first + j] + square * Q[first + j]
            information[first + j] += w
            fisher[first + j] += square


@compiled(fastmath=ANY_ORDER, cache=True)
@no_type_check
def solve(
    m0,
    Q,
    x,
    sigma2,
    log_sigma2,
    c,
    tolerance,
    passes,
    likelihood,
    kl,
    overcount,
    r,
    of_Q,
    curvature,
    settled,
    squares,
    information,
    fisher,
):
    """Solve every sample of a block and evaluate its bound.

    The first arguments are those of `evidence.solve_noise`, with sigma2 by feature, its logarithm
    in double precision and a log-scale for each sample. From `likelihood` on, and c, are written;
    the sums of `evidence.Sums`, where they have a length, are added to. A sample whose `settled` is
    false, before or after, is to be solved by other means; it is in no sum.
    """
    b, d = x.shape
    chunks = (d + CHUNK - 1) // CHUNK
    work = np.empty(chunks * ROWS, m0.dtype)
    precision = 0.0
    for j in range(d):
        precision += 1.0 / sigma2[j]
    for i in range(b):
        if not settled[i]:
            continue
        total, offset = 0.0, 0.0
        for j in range(d):
            total += x[i, j]
            offset += x[i, j] * log_sigma2[j]
        N = max(total, 1e-6)
        deep = N > 10 * precision
        ci, shift = m0.dtype.type(c[i]), m0.dtype.type(0.0)
        for chunk in range(chunks):
            part, first = work[chunk * ROWS : (chunk + 1) * ROWS], chunk * CHUNK
            size = min(CHUNK, d - first)
            _load(part, first, size, m0[i], Q[i], x[i], sigma2, log_sigma2, ci)
        settled[i] = False
        for _ in range(passes):
            pull, excess, moved = 0.0, 0.0 if deep else N, 0.0
            for chunk in range(chunks):
                part, size = work[chunk * ROWS : (chunk + 1) * ROWS], min(CHUNK, d - chunk * CHUNK)
                sums = _newton(part, size, shift, ci, deep)
                pull += sums[0]
                excess += sums[1]
                moved += sums[2]
            change = min(max(excess / pull, -6.0), 6.0)
            shift = m0.dtype.type(change)
            ci += shift
            moved += change * excess
            if moved < tolerance:
                settled[i] = True
                break
        rates, expected, divergence, informed = 0.0, 0.0, 0.0, 0.0
        for chunk in range(chunks):
            part, size = work[chunk * ROWS : (chunk + 1) * ROWS], min(CHUNK, d - chunk * CHUNK)
            sums = _evaluate(part, size, shift, ci)
            rates += sums[0]
            expected += sums[1]
            divergence += sums[2]
            informed += sums[3]
        scale = m0.dtype.type(N / rates)
        for chunk in range(chunks):
            part, first = work[chunk * ROWS : (chunk + 1) * ROWS], chunk * CHUNK
            size = min(CHUNK, d - first)
            sums = squares if settled[i] else squares[:0]
            _store(
                *(part, first, size, scale, Q[i]),
                *(r[i], of_Q[i], curvature[i], sums, information, fisher),
            )
        likelihood[i] = expected - offset - total * math.log(rates)
        kl[i] = 0.5 * divergence
        overcount[i] = 0.5 * (math.log1p(rates / precision) - informed / precision)
        c[i] = ci


@compiled(fastmath=ANY_ORDER, cache=True)
@no_type_check
def find_counts(x, first, columns, ends, starts):
    """Find the entries of some columns of x, from `first` on, that are not zero.

    Writes the column of each, row by row, where each row ends, and where each column will start.
    """
    d = len(starts) - 1
    found = np.uint64(0)  # unsigned: an index that cannot be negative is one test less
    starts[:] = 0
    for i in range(x.shape[0]):
        before, row = found, x[i, first : first + d]
        for j in range(d):
            columns[found] = j
            if row[j] > 0:
                found += np.uint64(1)
        for e in range(before, found):
            starts[columns[e] + 1] += 1
        ends[i] = found
    for j in range(d):
        starts[j + 1] += starts[j]


@compiled(fastmath=ANY_ORDER, cache=True)
@no_type_check
def gather_logs(x, pseudocount, first, columns, ends, starts, rows, values, sums):
    """Collect s = log(x / pseudocount + 1) of what `find_counts` found, by column.

    Writes the row and the value of each entry, and the sum of s over these columns of each row.
    """
    free = starts[:-1].copy()
    e = 0
    for i in range(x.shape[0]):
        total = 0.0
        while e < ends[i]:
            j = columns[e]
            s = log1p(F(x[i, first + j] / pseudocount))
            at = free[j]
            free[j] = at + 1
            rows[at], values[at] = i, s
            total += s
            e += 1
        sums[i] = total


@compiled(fastmath=ANY_ORDER, cache=True)
@no_type_check
def logs_times(starts, rows, values, means, centre, W, out):
    """Write (s - mean of s - centre) W, a column of s and a row of W at a time."""
    d, h = W.shape
    sums, offset = np.zeros(h, F), np.zeros(h, F)
    out[:] = 0
    for j in range(d):
        for c in range(h):
            sums[c] += W[j, c]
            offset[c] += centre[j] * W[j, c]
        for e in range(starts[j], starts[j + 1]):
            i, s = rows[e], values[e]
            for c in range(h):
                out[i, c] += s * W[j, c]
    for i in range(out.shape[0]):
        for c in range(h):
            out[i, c] -= means[i] * sums[c] + offset[c]


@compiled(fastmath=ANY_ORDER, cache=True)
@no_type_check
def transposed_logs_times(starts, rows, values, means, centre, g, out):
    """Write (s - mean of s - centre)' g, a row of it at a time."""
    d, h = out.shape
    sums, offset = np.zeros(h, F), np.zeros(h, F)
    for i in range(g.shape[0]):
        for c in range(h):
            sums[c] += g[i, c]
            offset[c] += means[i] * g[i, c]
    for j in range(d):
        for c in range(h):
            out[j, c] = -centre[j] * sums[c] - offset[c]
        for e in range(starts[j], starts[j + 1]):
            i, s = rows[e], values[e]
            for c in range(h):
                out[j, c] += s * g[i, c]
