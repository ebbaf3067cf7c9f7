"""Where passes end, said as plainly as possible: row after row, and batch after batch.

A pass lasts until every dataset has been seen once more. It begins anew at a restart that changes what it is counted
by.
"""

from fractions import Fraction
from types import SimpleNamespace

from plain_run import PlainRun, integers


class PlainPasses:
    """The passes of a plain run."""

    def __init__(self, run: PlainRun) -> None:
        self.run = run
        self.passes = 0
        self.counted: dict[object, int] = {}
        self.asked = None
        self.restart()

    def restart(self) -> None:
        """Count from here on."""
        self.origin = self.at(self.run.step, self.run.rows, self.run.tokens)
        self.before = self.passes

    def at(self, step, rows, tokens):
        return SimpleNamespace(step=step, rows=rows, tokens=tokens)

    def ask(self) -> None:
        """The run goes on by its plan of now."""
        plan = self.run.plan
        asked = plan.names, [(point, integers(plan.exact(n))) for n, (point, _) in enumerate(plan.stages)]
        varies = len(plan.stages) > 1 or len(plan.lengths) > 1
        if self.asked not in (None, asked) or (varies and not self.comes_here()):
            self.restart()
        self.asked = asked

    def comes_here(self) -> bool:
        """Whether the batches of now, from the origin on, would have led to where the run is."""
        now = self.origin
        while now.step < self.run.step:
            now, _, _ = self.after(now)
        return now == self.at(self.run.step, self.run.rows, self.run.tokens)

    def after(self, now):
        """Behind the next batch; and its rows and their length."""
        plan = self.run.plan
        length, size = plan.lengths[plan.now(plan.lengths, now)][1], plan.size(now)
        if plan.constant_tokens:
            size = size * plan.lengths[0][1] // length
        return self.at(now.step + 1, now.rows + size, now.tokens + size * length), size, length

    def holds(self, rows: int, passes: int) -> bool:
        """Whether so many passes hold so many rows of the run."""
        plan, passes, rows = self.run.plan, passes - self.before, rows - self.origin.rows
        if passes <= 0:
            return rows <= 0
        now, row, stage = self.origin, 0, None
        seen = dict.fromkeys(plan.names, Fraction(0))
        ends: dict[str, int] = {}
        while row < rows or stage != len(plan.stages) - 1:
            behind, size, length = self.after(now)
            if stage != plan.now(plan.stages, now):
                stage = plan.now(plan.stages, now)
                self.run.length = length
                weights = self.run.row_weights(stage)
            for number in range(row, row + size):
                for name, weight in zip(plan.names, weights, strict=True):
                    if weight and name not in ends:
                        of_an_epoch = self.epoch_rows(name, length) * sum(weights)
                        seen[name] += Fraction(weight, of_an_epoch) if of_an_epoch else passes + 1
                        if seen[name] >= passes:
                            ends[name] = number + (seen[name] == passes)
            now, row = behind, row + size
        reading = [name for name, weight in zip(plan.names, weights, strict=True) if weight and name not in ends]
        return bool(reading) or rows <= max(ends.values())

    def epoch_rows(self, name: str, length: int) -> int:
        if self.run.streamed:
            return len(self.run.streams[name, 0].documents)
        key = name, length, self.run.plan.num_epochs[name] is None
        if key not in self.counted:
            self.run.length = length
            self.counted[key] = self.run.first_epoch(name)[0]
        return self.counted[key]

    def ends_here(self) -> bool:
        """Whether the next batch belongs to the next pass."""
        plan = self.run.plan
        epochs = [plan.num_epochs[name] for name in plan.names if any(stage.get(name) for _, stage in plan.stages)]
        if None not in epochs and self.passes - self.before + 1 >= max(epochs):
            return False
        _, size, _ = self.after(self.run)
        in_this, in_those_before = self.passes + 1, self.passes
        return not self.holds(self.run.rows + size, in_this) and not self.holds(self.run.rows, in_those_before)

    def end(self) -> None:
        """The pass is over: the next one is the first that holds all there has been."""
        self.passes += 1
        while not self.holds(self.run.rows, self.passes):
            self.passes += 1
