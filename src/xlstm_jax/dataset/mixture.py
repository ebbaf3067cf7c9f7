"""Mixtures as data: datasets by name, their weights, and the stages in which the weights change."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from os import PathLike
from typing import Any, Literal, get_args

from xlstm_jax.dataset.arguments import are_records, exact_number, one_each
from xlstm_jax.dataset.config_file import read_config
from xlstm_jax.dataset.mixing import integer_weights
from xlstm_jax.dataset.schedule import Point, Schedule

__all__ = ["Mixture", "Stage"]

Unit = Literal["rows", "tokens"]
WhenOneEnds = Literal["share", "stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Weights that hold from a point of the run on.

    Datasets that are not named have weight 0: a stage is read on its own, without those before it.
    """

    at: Any
    """A step, or one of {"step": n}, {"rows": n}, {"tokens": n}; the stage begins with the first batch at or behind it.
    """
    weights: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Which share of the rows, or of the tokens, comes from each dataset, and from when on.

    Args:
        weights: Dataset name → weight, from the first step on; weights are ratios and need not add up to 1.
        stages: Later changes, in order.
        unit: What the weights are shares of: "rows", or "tokens" (real tokens, without padding; each dataset's rows
            then count by its mean tokens per row, fixed at the start of a stage, where lengths are known).
        when_one_ends: What happens when a dataset has been read `num_epochs` times: its weight is shared among the
            others ("share"), or no further batch begins ("stop"). Datasets without `num_epochs` never end: they
            restart with a new shuffle.
        revision: A saved position goes on with another mixture only where the revision is higher than the saved one.

    Raises:
        ValueError: A weight is negative, all of a stage are 0, or stages are out of order.
        TypeError: A weight is no number.
    """

    weights: Mapping[str, float]
    stages: Sequence[Stage] = field(default=())
    unit: Unit = "rows"
    when_one_ends: WhenOneEnds = "share"
    revision: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name, value, known in (
            ("unit", self.unit, get_args(Unit)),
            ("when_one_ends", self.when_one_ends, get_args(WhenOneEnds)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} of the mixture is unknown; use {' or '.join(map(repr, known))}.")
        if isinstance(self.revision, bool) or not isinstance(self.revision, int) or self.revision < 0:
            raise ValueError(f"revision of the mixture must be an integer, 0 or more; got {self.revision!r}.")
        for weights in [self.weights, *(stage.weights for stage in self.stages)]:
            if not isinstance(weights, Mapping):
                raise TypeError(f"weights of the mixture must be a mapping from dataset to weight, got {weights!r}.")
        for of_all in self.schedule(self.names).values:
            integer_weights(of_all)

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        dataset_weights: Sequence[float] | None = None,
        mixture: "Mixture | Mapping[str, Any] | None" = None,
    ) -> "Mixture":
        """The mixture that the arguments of a loader ask for; equal weights where they name none.

        Raises:
            ValueError: Both name weights, or the mixture names other datasets.
        """
        if mixture is None:
            weights = [1] * len(names) if dataset_weights is None else dataset_weights
            integer_weights(one_each("dataset_weights", weights, len(names)))  # Only in files, numbers may be text.
            return cls(weights=dict(zip(names, weights, strict=True)))
        if dataset_weights is not None:
            raise ValueError("dataset_weights and mixture both name weights; pass one of them.")
        return mixture if isinstance(mixture, Mixture) else cls.from_config(mixture)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Mixture":
        """The mixture that a configuration file describes: the fields of this class, stages as mappings.

        Raises:
            ValueError: There are other keys than these fields.
        """
        fields = dict(config) if isinstance(config, Mapping) else {}
        stages = fields.pop("stages", ())
        wrong = set(fields) - {"weights", "unit", "when_one_ends", "revision"}
        if wrong or "weights" not in fields or not are_records(stages, {"at", "weights"}):
            raise ValueError(
                "A mixture has weights, and may have stages (each with at and weights), unit, when_one_ends and "
                f"revision; got {config!r}."
            )
        return cls(stages=tuple(Stage(**stage) for stage in stages), **fields)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> "Mixture":
        """Read a mixture from a JSON, TOML or YAML file (YAML needs the extra `yaml`)."""
        return cls.from_config(read_config(path))

    @property
    def names(self) -> tuple[str, ...]:
        """Datasets in the order in which they are first named."""
        every = [self.weights, *(stage.weights for stage in self.stages)]
        return tuple(dict.fromkeys(name for weights in every for name in weights))

    def schedule(self, names: Sequence[str]) -> Schedule[tuple[float | Fraction, ...]]:
        """The weights of these datasets in each stage.

        Raises:
            ValueError: The mixture names other datasets than these.
        """
        if set(names) != set(self.names):
            raise ValueError(
                f"The mixture names the datasets {sorted(self.names)}, and the loader has {sorted(names)}; give each a "
                "weight in some stage, 0 where it is not to be read."
            )

        def of_all(weights: Mapping[str, float]) -> tuple[float | Fraction, ...]:
            return tuple(_weight(name, weights.get(name, 0)) for name in names)

        changes = [(Point.parse(stage.at, "`at` of a stage"), of_all(stage.weights)) for stage in self.stages]
        return Schedule.of(of_all(self.weights), changes, "Stages of a mixture")

    def digest(self, names: Sequence[str]) -> str:
        """8 hex digits of all that decides the shares of these datasets: tells another mixture from this one.

        The order of the datasets is part of it: where two rows are due at once, the earlier dataset goes first.
        """
        stages = [[list(point), integer_weights(weights)] for point, weights in self.schedule(names).entries]
        return _digest([stages, list(names), self.unit, self.when_one_ends])

    def stage_digest(self, names: Sequence[str], stage: int) -> str:
        """8 hex digits of what decides the shares of these datasets in one stage; those of weight 0 have no part."""
        weights = integer_weights(self.schedule(names).values[stage])
        return _digest([self.unit, [pair for pair in zip(names, weights, strict=True) if pair[1]]])


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=4).hexdigest()


def _weight(name: str, weight: Any) -> float | Fraction:
    """A weight, which may be text, as YAML has `1e-6`."""
    exact = exact_number(weight) if isinstance(weight, str) else weight
    if exact is None:
        raise TypeError(f"The weight of {name!r} must be a number, got {weight!r}.")
    return exact
