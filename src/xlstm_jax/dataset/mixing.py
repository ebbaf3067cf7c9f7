"""Mixtures: which dataset each row comes from.

The sequence is earliest-deadline-first scheduling in integers. Row n (from 0) may come from dataset d if d is not
ahead of its share, `c_d * A < (n + 1) * w_d`, where c_d counts its rows so far, w_d is its weight and A the sum of
all weights; of those, the one whose next row is due first, with the least `(c_d + 1) / w_d`, is taken (Liu and
Layland, "Scheduling algorithms for multiprogramming in a hard-real-time environment", 1973; with release times as in
Tijdeman, "The chairman assignment problem", 1980). Then, after every row, every dataset has had its share to within one
row, which rounding the cumulative shares, largest remainders and divisor methods do not give.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, isfinite, lcm

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.kernels import kernel

__all__ = ["MixtureSequence", "integer_weights", "mixture_plain"]

_LARGEST_SUM = 1 << 62


def integer_weights(weights: Sequence[float | Fraction]) -> tuple[int, ...]:
    """Weights as integers without a common divisor, in exactly the ratio that their decimals say.

    0.1, 0.2 and 0.7 become 1, 2 and 7. Only where the ratio needs integers whose sum exceeds 2^62 are they rounded to
    that many parts; a weight above 0 stays above 0.

    Raises:
        ValueError: There is no weight, one is negative, infinite or no number, or all are 0.
        TypeError: One is no number at all.
    """
    exact = [_fraction(weight, place) for place, weight in enumerate(weights)]
    if not any(exact):
        raise ValueError(f"dataset_weights must have at least one weight above 0, got {list(weights)}.")
    scale = lcm(*(weight.denominator for weight in exact))
    integers = [int(weight * scale) for weight in exact]
    if sum(integers) > _LARGEST_SUM:
        total = sum(integers)
        integers = [max(i * _LARGEST_SUM // total, 1 if i else 0) for i in integers]
    common = gcd(*integers)
    return tuple(i // common for i in integers)


def _fraction(weight: float | Fraction, place: int) -> Fraction:
    if isinstance(weight, (bool, str)) or not hasattr(weight, "__float__"):
        raise TypeError(f"dataset_weights[{place}] must be a number, got {weight!r}.")
    if isinstance(weight, (int, Fraction)):
        exact = Fraction(weight)
    elif not isfinite(weight):
        raise ValueError(f"dataset_weights[{place}] must be finite, got {weight!r}.")
    else:
        # The shortest decimals that give this number are what was written.
        exact = Fraction(str(weight))
    if exact < 0:
        raise ValueError(f"dataset_weights[{place}] must not be negative, got {weight!r}.")
    return exact


class MixtureSequence:
    """The sequence of datasets of a mixture, from any place on.

    Args:
        weights: Integers; see `integer_weights`. Datasets of weight 0 never appear.
        counts: Rows of each dataset so far: where in the sequence to go on.

    Raises:
        ValueError: The counts are none that the sequence ever has.
    """

    def __init__(self, weights: Sequence[int], counts: Sequence[int] | None = None) -> None:
        self.weights = tuple(weights)
        self._total = sum(self.weights)
        given = [0] * len(self.weights) if counts is None else list(counts)
        # After every A rows each dataset has had exactly its weight, and the sequence repeats: so numbers stay small.
        periods = sum(given) // self._total
        self._base = [periods * weight for weight in self.weights]
        inside = [count - base for count, base in zip(given, self._base, strict=True)]
        if any(not 0 <= count <= weight for count, weight in zip(inside, self.weights, strict=True)):
            raise ValueError(f"The counts {given} are none of a mixture by the weights {list(self.weights)}.")
        self._counts = np.array(inside, dtype=np.int64)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each dataset so far."""
        return tuple(base + count for base, count in zip(self._base, self._counts.tolist(), strict=True))

    def take(self, count: int) -> NDArray[np.int32]:
        """[count] int32: the datasets of the next rows, by place in the mixture."""
        out = np.empty(count, dtype=np.int32)
        periods = _schedule(np.array(self.weights, dtype=np.int64), self._counts, out)
        self._base = [base + periods * weight for base, weight in zip(self._base, self.weights, strict=True)]
        return out


def mixture_plain(weights: Sequence[int], count: int, counts: Sequence[int] | None = None) -> list[int]:
    """The definition of the sequence: its next `count` datasets after `counts` rows of each."""
    had = [0] * len(weights) if counts is None else list(counts)
    total = sum(weights)
    sequence = []
    for n in range(sum(had), sum(had) + count):
        eligible = [d for d, weight in enumerate(weights) if had[d] * total < (n + 1) * weight]
        chosen = min(eligible, key=lambda d: (Fraction(had[d] + 1, weights[d]), d))
        had[chosen] += 1
        sequence.append(chosen)
    return sequence


_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@kernel
def _product(a: int, b: int) -> tuple[np.uint64, np.uint64]:
    """High and low 64 bits of a product."""
    a_high, a_low = np.uint64(a) >> _HALF, np.uint64(a) & _LOW
    b_high, b_low = np.uint64(b) >> _HALF, np.uint64(b) & _LOW
    low = a_low * b_low
    middle = a_high * b_low + (low >> _HALF)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF), (other << _HALF) | (low & _LOW)


@kernel
def _less(a: int, b: int, c: int, d: int) -> bool:
    """Whether a * b < c * d, exactly."""
    left_high, left_low = _product(a, b)
    right_high, right_low = _product(c, d)
    return bool(left_high < right_high or (left_high == right_high and left_low < right_low))


@kernel
def _schedule(weights: NDArray[np.int64], counts: NDArray[np.int64], out: NDArray[np.int32]) -> int:
    """Write the next datasets, move `counts`, and tell how many whole periods have passed."""
    total, rows = weights.sum(), counts.sum()
    periods = 0
    for i in range(len(out)):
        if rows == total:
            counts[:] = 0
            rows = 0
            periods += 1
        best = -1
        for d in range(len(weights)):
            if _less(counts[d], total, rows + 1, weights[d]) and (
                best < 0 or _less(counts[d] + 1, weights[best], counts[best] + 1, weights[d])
            ):
                best = d
        out[i] = best
        counts[best] += 1
        rows += 1
    return periods
