"""Checks of single arguments: an error says what was got and what would work."""

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["are_records", "exact_number", "flag", "integer", "mapping", "one_each", "one_of", "seconds"]


def are_records(value: Any, keys: Collection[str]) -> bool:
    """Whether a value, as a configuration file holds it, is a list of mappings with exactly these keys."""
    every = value if isinstance(value, (list, tuple)) else [None]
    return all(isinstance(entry, Mapping) and set(entry) == set(keys) for entry in every)


def exact_number(value: Any) -> Fraction | None:
    """The number that the shortest decimals of `value` say, or None if it is none, or not finite.

    Text counts as what it says: YAML, as commonly read, takes `1e-6` for one.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, str, Fraction, np.number)):
        return None
    try:
        return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        return None


def integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int, whatever kind of integer it is.

    Raises:
        TypeError: It is no integer.
        ValueError: It is less than `least` or more than `most`.
    """
    bounds = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
    wanted = " of ".join(["an integer", *[" and ".join(bounds)] * bool(bounds)])
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be {wanted}, got {value!r}.")
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(f"{name} must be {wanted}, got {value!r}.")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; nothing else is taken for one, so that arguments in the wrong place are noticed.

    Raises:
        TypeError: It is neither True nor False.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def seconds(name: str, value: Any) -> float | None:
    """`value` as a time in seconds; None stays None.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0, or not finite.
    """
    wanted = "a number of seconds above 0, or None for never"
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be {wanted}, got {value!r}.")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be {wanted}, got {value!r}.")
    return float(value)


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """`value`, if it is a mapping.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {value!r}.")
    return value


def one_each(name: str, given: Any, datasets: int) -> list[Any]:
    """What was given for each of so many datasets.

    Raises:
        TypeError: It is no list.
        ValueError: It has another number of entries.
    """
    if not hasattr(given, "__len__") or isinstance(given, (str, bytes, Mapping)):
        raise TypeError(f"{name} must be a list with one entry for each dataset, got {given!r}.")
    if len(given) != datasets:
        raise ValueError(f"{name} has {len(given)} entries for {datasets} datasets; pass one for each.")
    return list(given)


def one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value that is none of those known.

    Raises:
        ValueError: It is another.
    """
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(map(repr, known))}.")
