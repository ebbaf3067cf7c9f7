"""What the demo shows: progress, the comparison of the runs, rows in words, the picture."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.progress
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from train import Settings, make_loader

from xlstm_jax.dataset import Tokenizer

__all__ = ["Console", "Step", "draw_losses", "show_comparison", "show_epoch", "show_rows"]

SILENCE_S = 10.0
"""Where there is no terminal with a bar, a line of progress appears this often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a training process reports of a step."""

    step: int
    loss: str
    """As `float.hex`: every bit of it."""
    tokens: int
    wait_s: float
    """How long the step waited for its batch."""
    step_s: float

    @property
    def value(self) -> float:
        """The loss as a number."""
        return float.fromhex(self.loss)


class Console:
    """Writes for a person at a terminal, and plain lines for everyone else."""

    def __init__(self) -> None:
        self._rich = rich.console.Console(highlight=False, soft_wrap=True)

    def title(self, text: str) -> None:
        """The first line."""
        self._rich.print(f"[bold]{text}[/]")

    def heading(self, text: str) -> None:
        """A line over a section."""
        self._rich.print(f"\n[bold cyan]{text}[/]")

    def line(self, text: str, style: str = "") -> None:
        """A line, as it is."""
        self._rich.print(f"  {text}", style=style, markup=False)

    @contextmanager
    def timed(self, label: str) -> Iterator[Callable[[str], None]]:
        """A task and how long it took; yields a function that takes its result in words."""
        begun = time.perf_counter()
        said: list[str] = []
        yield said.append
        self.line(f"{label:<18} {said[0]}  ({time.perf_counter() - begun:.1f} s)")

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar, at a terminal."""
        with self._bars() as bars:
            task = bars.add_task(f"  {label}", total=total)
            yield lambda amount: bars.advance(task, amount)

    @contextmanager
    def training(self, label: str, steps: int) -> Iterator[Callable[[Step], None]]:
        """Progress of a training process, and its sum at the end; yields a function that takes each step."""
        seen: list[Step] = []
        said = time.monotonic()
        with self._bars() as bars:
            task = bars.add_task(f"  {label}", total=steps)

            def show(step: Step) -> None:
                nonlocal said
                seen.append(step)
                description = f"  {label:<18} loss {step.value:.3f}"
                bars.update(task, completed=step.step, description=description)
                if not self._rich.is_terminal and time.monotonic() - said >= SILENCE_S:
                    said = time.monotonic()
                    self.line(f"{label:<18} step {step.step:>4} of {steps}, loss {step.value:.3f}")

            yield show
        if seen:
            self.line(f"{label:<18} {_summary(seen)}")

    def _bars(self) -> rich.progress.Progress:
        columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
        return rich.progress.Progress(*columns, console=self._rich, transient=True, disable=not self._rich.is_terminal)


def _summary(steps: Sequence[Step]) -> str:
    # The first step compiles; it says nothing of speed.
    timed = steps[1:] or steps
    seconds, tokens = sum(s.step_s for s in timed), sum(s.tokens for s in timed)
    waited = sum(s.wait_s for s in timed) / seconds
    return (
        f"steps {steps[0].step} to {steps[-1].step}: loss {steps[0].value:.3f} to {steps[-1].value:.3f}, "
        f"{tokens / seconds:,.0f} tokens/s, {waited:.1%} of the time waiting for data"
    )


def show_comparison(
    console: Console, straight: Sequence[Step], killed: Sequence[Step], resumed: Sequence[Step]
) -> bool:
    """Compare the losses of the runs, bit for bit; whether they are equal."""
    console.heading("The same losses?")
    expected = {step.step: step for step in straight}
    console.line(f"{'step':>6}  {'uninterrupted':<22}{'killed, resumed':<22}")
    first = resumed[0].step
    shown = {1, first - 1, first, first + 1, straight[-1].step}
    for step in [*(s for s in killed if s.step < first), *resumed]:
        if step.step in shown:
            mark = "=" if step.loss == expected[step.step].loss else "DIFFERS"
            where = "   resumed here" if step.step == first else ""
            console.line(f"{step.step:>6}  {expected[step.step].loss:<22}{step.loss:<22}{mark}{where}")
    compared = [*killed, *resumed]
    different = [step.step for step in compared if step.loss != expected[step.step].loss]
    complete = resumed[-1].step == straight[-1].step
    again = max(0, killed[-1].step - first + 1)
    if first == 1:
        console.line("NOT RESUMED: the run was killed before its first checkpoint was written.", "bold red")
        return False
    if different or not complete:
        console.line(f"NOT EQUAL: the losses differ at the steps {different}.", "bold red")
        return False
    console.line(
        f"EQUAL, bit for bit: {len(killed)} steps up to the kill, {len(resumed)} after the resume "
        f"({again} steps were lost with the process, and done again).",
        "bold green",
    )
    return True


def show_epoch(console: Console, settings: Settings) -> None:
    """Read one whole epoch without a model: how fast, and how much padding."""
    console.heading("One epoch, the loader alone")
    with make_loader(settings, num_epochs=1) as loader:
        next(loader)
        batches, filled, begun = 1, 0, time.perf_counter()
        for batch in loader:
            batches += 1
            filled += np.count_nonzero(batch.inputs_segmentation)
        seconds = time.perf_counter() - begun
        announced = len(loader)
    positions = (batches - 1) * settings.batch_size * settings.row_length
    console.line(f"batches            {batches:,}; len(loader) had announced {announced:,}")
    console.line(f"speed              {filled / seconds / 1e6:.1f} million tokens/s, as jax arrays")
    console.line(f"padding            {1 - filled / positions:.3%} of all positions")


def show_rows(console: Console, settings: Settings, tokenizer_file: Path, width: int = 46) -> None:
    """Find a row with several segments, and show each in words."""
    tokenizer = Tokenizer.load(tokenizer_file)
    rows: list[tuple[Any, ...]] = []
    with make_loader(settings) as loader:
        for batch in islice(loader, 16):
            rows += zip(
                *map(np.asarray, (batch.inputs, batch.inputs_segmentation, batch.targets_segmentation)), strict=True
            )
    # Three or four documents fit on a screen.
    tokens, segments, predicted = min(rows, key=lambda row: abs(int(row[1].max()) - 4))
    console.heading(f"One row of {len(tokens)} positions, decoded")
    console.line(f"{'segment':<9}{'positions':<12}{'begins with':<{width + 3}}ends with")
    for segment in range(1, int(segments.max()) + 1):
        inside = np.flatnonzero(segments == segment)
        ended = tokens[inside[-1]] == settings.eod_token_id
        text = tokenizer.decode(tokens[inside[: len(inside) - ended]])
        ending = " ■" if ended else " …"
        cut = f"{inside[0]}-{inside[-1]}"
        console.line(f"{segment:<9}{cut:<12}{_shown(text)[:width]:<{width + 3}}{_shown(text)[-24:]}{ending}")
    padding = int(np.count_nonzero(segments == 0))
    masked = int(np.count_nonzero((segments != 0) & (predicted == 0)))
    console.line(f"■ the end of a document, which has no target: {masked} here; positions of padding: {padding}")


def _shown(text: str) -> str:
    """On one line: line breaks and the like as escapes."""
    return repr(text)[1:-1]


def draw_losses(path: Path, straight: Sequence[Step], killed: Sequence[Step], resumed: Sequence[Step]) -> Path:
    """Draw both loss curves."""
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for steps, style in (
        (straight, {"color": "#b8c4d0", "linewidth": 5, "label": "uninterrupted"}),
        (killed, {"color": "#d1495b", "linewidth": 1.5, "label": f"killed after step {killed[-1].step}"}),
        (
            resumed,
            {"color": "#00798c", "linewidth": 1.5, "linestyle": "--", "label": f"resumed at step {resumed[0].step}"},
        ),
    ):
        axes.plot([s.step for s in steps], [s.value for s in steps], **style)
    axes.plot(killed[-1].step, killed[-1].value, "x", color="#d1495b", markersize=9, markeredgewidth=2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title("The same run, with and without a kill", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
