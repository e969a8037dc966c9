"""What streaming is meant to reach, row by row, and whether a result file says that it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.memory_measure import COMPILED, PAPER

__all__ = ["TARGETS", "Target", "Verdict", "judge"]


@dataclass(frozen=True)
class Target:
    """``measure`` of the streamed model is at most ``most`` times that of ``rival``.

    Attributes:
        case: name.
        measure: ``"allocated_bytes"`` or ``"seconds"``.
        rival: variant.
        most: ratio.
        peak: if given, any budget may be taken with which the peak is at most this share of the
            KAN's; else it is the default budget's.
    """

    case: str
    measure: str
    rival: str
    most: float
    peak: float | None = None

    def __str__(self) -> str:
        """For people."""
        of = {
            "MLP": "the MLP's or CNN's",
            "KAN": "the KAN's",
            PAPER: "the paper's code",
            COMPILED: COMPILED,
        }
        if self.measure == "seconds":
            limit = "" if self.peak is None else f" (with peak {_ratio(self.peak)} of the KAN's)"
            return f"time <= {_ratio(self.most)} of {of[self.rival]}{limit}"
        return f"peak <= {_ratio(self.most)} of {of[self.rival]}"


_FRACTIONS = 0.13  # below: ratios are written as fractions


def _ratio(value: float) -> str:
    return _fraction(value) if value < _FRACTIONS else f"{value:.2f}"


def _fraction(value: float) -> str:
    return f"1/{1 / value:.1f}".removesuffix(".0")


def _peak(case: str, **rivals: float) -> tuple[Target, ...]:
    return tuple(Target(case, "allocated_bytes", rival, most) for rival, most in rivals.items())


def _time(case: str, rival: str, most: float, peak: float | None = None) -> Target:
    return Target(case, "seconds", rival, most, peak)


TARGETS = (
    *_peak("large-batch", MLP=1.0, KAN=1 / 28, paper=1 / 28),
    _time("large-batch", "KAN", 0.2),
    _time("large-batch", COMPILED, 0.75),
    *_peak("small-batch", MLP=1.05, KAN=1 / 9),
    _time("small-batch", "KAN", 1.0),
    *_peak("small-net", MLP=1.5, KAN=1 / 12),
    _time("small-net", "KAN", 0.6),
    *_peak("small-net-G10", MLP=1.5, KAN=1 / 20),
    _time("small-net-G10", "KAN", 0.6),
    *_peak("fine-grid", KAN=1 / 75, paper=1 / 50),
    _time("fine-grid", "KAN", 0.3, peak=1 / 33),
    *_peak("fine-grid-64", KAN=1 / 60),
    _time("fine-grid-64", "KAN", 0.5, peak=1 / 45),
    *_peak("convolution", MLP=1.05, KAN=1 / 8, paper=1 / 9),
    _time("convolution", "KAN", 0.85),
    *_peak("fast-kan", MLP=1.1),
    _time("fast-kan", "KAN", 0.5),
    *_peak("pinn", MLP=1.0, KAN=1 / 30),
    _time("pinn", "KAN", 1.0),
)


@dataclass(frozen=True)
class Verdict:
    """What was measured for a target.

    Attributes:
        measured: ratio, for people; why there is none, if there is none.
        met: None where it cannot be said.
        variant: whose ratio it is.
    """

    measured: str
    met: bool | None
    variant: str = ""


def judge(target: Target, rows: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Compare a target with the variants of its case's result file."""
    rival = rows.get(target.rival, {}).get(target.measure)
    if rival is None:
        return Verdict("not measured", None)
    names = ["stream"]
    if target.peak is not None:
        limit = target.peak * rows["KAN"]["allocated_bytes"]
        streams = [name for name in rows if name.startswith("stream")]
        names = [name for name in streams if rows[name]["allocated_bytes"] <= limit]
        if not names:
            return Verdict("no budget fits", False)
    best = min(names, key=lambda name: float(rows[name][target.measure]))
    ratio = rows[best][target.measure] / rival
    shown = _fraction(ratio) if target.most < _FRACTIONS else f"{ratio:.3g}"
    return Verdict(shown, ratio <= target.most, best)
