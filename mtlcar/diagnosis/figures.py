"""Figures of a diagnosis; markers, grey levels and line styles carry the meaning, so that they print in black."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from mtlcar.diagnosis.showing import pair_name
from mtlcar.report.figures import FONTS, MARKERS, STYLES

GREYS = ("0.1", "0.45", "0.65")
"""Of pairs or tasks in turn; their markers and line styles differ too."""


def conflict_figure(gradients: Mapping[str, Any]) -> Figure:
    """Two panels over the parts of the network: cosine of each pair of tasks (mean over batches, bar from the least to
    the greatest, hollow: of the mean gradients), and the share of batches in conflict."""
    rows = gradients["parts"]
    parts = list(dict.fromkeys(r["part"] for r in rows))[::-1]
    pairs = list(dict.fromkeys((r["task_a"], r["task_b"]) for r in rows))
    with rc_context(cast(Any, FONTS)):
        height = 1.5 + len(parts) * (0.2 + 0.14 * len(pairs))
        figure = Figure(figsize=(7.2, height), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for i, pair in enumerate(pairs):
            own = {r["part"]: r for r in rows if (r["task_a"], r["task_b"]) == pair and r["cosine"] is not None}
            y = np.array([parts.index(p) for p in own]) + _offset(i, len(pairs))
            _cosines(left, y, list(own.values()), i)
            share = [r["conflict"] for r in own.values()]
            right.barh(y, share, 0.8 / (len(pairs) + 0.5), color=GREYS[i % 3], edgecolor="black", hatch=_hatch(i))
            for at, value in zip(y, share, strict=True):
                right.annotate(
                    f"{100 * value:.0f} %", (value, at), (3, 0), textcoords="offset points", va="center", size=7
                )
        left.axvline(0, color="black", lw=0.8)
        left.set_xlim(-1.05, 1.05)
        left.set_xticks([-1, -0.5, 0, 0.5, 1])
        left.set_xlabel("cosine of the tasks' gradients")
        left.set_yticks(range(len(parts)), parts)
        right.set_xlim(0, 1.18)
        right.set_xticks([0, 0.25, 0.5, 0.75, 1])
        right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.set_xlabel(f"batches in conflict (of {gradients['batches']})")
        for ax in (left, right):
            ax.spines[["top", "right"]].set_visible(False)
        left.grid(axis="x", color="0.9")
        left.set_axisbelow(True)
        handles = _pair_handles([f"{a}, {b}" for a, b in pairs]) if len(pairs) > 1 else []
        handles += [
            Line2D([], [], color="black", marker="o", ls="-", ms=5, label="mean and range over batches"),
            Line2D([], [], color="black", marker="o", ls="", mfc="white", ms=7, label="of the mean gradients"),
        ]
        title = "" if len(pairs) > 1 else f"{pairs[0][0]} and {pairs[0][1]}"
        figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, title=title or None)
    return figure


def _cosines(ax: Axes, y: np.ndarray, rows: Sequence[Mapping[str, Any]], i: int) -> None:
    colour, marker = GREYS[i % 3], MARKERS[i % len(MARKERS)]
    mean, low, high = (np.array([r[k] for r in rows]) for k in ("cosine", "cosine_low", "cosine_high"))
    ax.hlines(y, low, high, color=colour, lw=1.5)
    of_mean = [np.nan if r["cosine_of_mean"] is None else r["cosine_of_mean"] for r in rows]
    ax.plot(of_mean, y, marker, mfc="white", mec=colour, ms=7)
    ax.plot(mean, y, marker, color=colour, ms=5)


def features_figure(features: Mapping[str, Any]) -> Figure:
    """Two panels over the features, input side left: scores of the linear probes, and the overlap of the tasks'
    directions with that of shuffled labels (thin)."""
    of = features["of"]
    names = [row["name"] for row in of]
    x = np.arange(len(names))
    with rc_context(cast(Any, FONTS)):
        pairs = [pair_name(o) for o in of[0]["overlaps"]]
        panels = 2 if pairs else 1
        figure = Figure(figsize=(3.7 * panels + 0.1 * len(names), 3.6), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        probes = axes[0]
        for i, (task, score) in enumerate(features["scores"].items()):
            style: dict[str, Any] = {"color": GREYS[i % 3], "marker": MARKERS[i % len(MARKERS)], "ls": STYLES[i % 4]}
            values = [_value(row["probes"][task]) for row in of]
            label = f"{task} ({'R²' if score == 'R2' else 'accuracy'})"
            probes.plot(x, values, ms=5, label=label, **style)
            if score != "R2" and features["baselines"][task] is not None:
                probes.axhline(features["baselines"][task], color=GREYS[i % 3], ls=STYLES[i % 4], lw=0.6)
        probes.set_ylim(top=1.02)
        lowest = min((v for row in of for v in row["probes"].values() if v is not None), default=0)
        probes.set_ylim(bottom=min(0.0, max(lowest, -0.5)) - 0.02)
        probes.set_ylabel("linear probe (thin: most frequent class)")
        if pairs:
            _overlap_panel(axes[1], of, pairs, x)
        for ax in axes:
            ax.set_xticks(x, names, rotation=40, ha="right", rotation_mode="anchor")
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="y", color="0.9")
            ax.set_axisbelow(True)
            ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=3.2)
    return figure


def _overlap_panel(ax: Axes, of: Sequence[Mapping[str, Any]], pairs: Sequence[str], x: np.ndarray) -> None:
    for i, pair in enumerate(pairs):
        colour = GREYS[i % 3]
        own = [next(o for o in row["overlaps"] if pair_name(o) == pair) for row in of]
        ls = STYLES[i % 4]
        ax.plot(x, [_value(o["overlap"]) for o in own], color=colour, marker=MARKERS[i % 10], ls=ls, ms=5, label=pair)
        ax.plot(
            x,
            [_value(o["shuffled"]) for o in own],
            color=colour,
            marker=MARKERS[i % 10],
            ls=ls,
            lw=0.6,
            ms=5,
            mfc="white",
        )
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("overlap (hollow: shuffled labels)")


def _pair_handles(names: Sequence[str]) -> list[Line2D]:
    return [Line2D([], [], color=GREYS[i % 3], marker=MARKERS[i % 10], ls="", label=n) for i, n in enumerate(names)]


def _offset(i: int, n: int) -> float:
    """Where the i-th of n pairs stands within its part; the first on top."""
    return 0.8 * (0.5 - (i + 0.5) / n) if n > 1 else 0.0


def _hatch(i: int) -> str:
    return ("", "///", "...", "xxx")[i % 4]


def _value(x: float | None) -> float:
    return float("nan") if x is None else x
