"""A plan: what a run will read, known before it runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from xlstm_jax.dataset.schedule import Moment

__all__ = ["DatasetPlan", "Plan", "StagePlan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPlan:
    """What a run reads of one dataset."""

    rows: int
    tokens: int
    """Real tokens, without padding."""
    epochs: float
    repeats_at: tuple[int, ...]
    """Steps at which its second, third, … epoch begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """Consecutive steps with one mixture."""

    begin: Moment
    steps: int
    weights: Mapping[str, int]
    """Integer row weights; 0 also for datasets that have ended."""
    rows: Mapping[str, int]
    tokens: Mapping[str, int]
    """Real tokens of each dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run reads."""

    end: Moment
    """Steps, rows and positions of the whole run."""
    tokens: int
    """Real tokens."""
    shapes: tuple[tuple[int, int, int], ...]
    """(first step, rows, positions) of batches, wherever one of these changes."""
    stages: tuple[StagePlan, ...]
    datasets: Mapping[str, DatasetPlan]
    warnings: tuple[str, ...]

    @property
    def padding(self) -> float:
        """Share of all positions that holds no token."""
        return 1 - self.tokens / self.end.tokens if self.end.tokens else 0.0
