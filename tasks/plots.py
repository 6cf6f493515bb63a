"""The plots of a night, as matplotlib figures that no display is needed for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from editing.bench.prompt_space import PromptSpace
from editing.evals.retention import AgePoint

COLOURS = ("#1b6ca8", "#d1495b", "#3c8d63", "#8a5a9e", "#e0a030", "#5c6773")
SUCCESS = ("reliability", "generality", "locality", "retention")


def _axes(title: str, width: float = 7.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 3.6), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def success_by_night(nights: Sequence[Mapping[str, Any]]) -> Figure:
    """Lines over nights: rows with `night` (text) and, under the names in `SUCCESS`, shares 0 to 1 or None."""
    figure, axes = _axes("Success by night (generated exact match)")
    labels = [row["night"] for row in nights]
    for name, colour, width in zip(SUCCESS, COLOURS, (5.0, 3.4, 2.2, 1.2), strict=False):
        points = [(i, row[name]) for i, row in enumerate(nights) if row[name] is not None]
        if points:  # equal lines stay visible, one inside the other
            axes.plot(*zip(*points, strict=True), linewidth=width, marker="o", markersize=4, color=colour, label=name)
    step = max(1, len(labels) // 12)
    axes.set_xticks(range(0, len(labels), step), labels[::step], rotation=30, ha="right", fontsize=8)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)
    return figure


def retention_by_age(groups: Mapping[str, tuple[float, int]]) -> Figure:
    """Bars by age group: share of facts still answered, 0 to 1, and how many were asked."""
    figure, axes = _axes("Retention by age of the edit (generated exact match)")
    names = sorted(groups)
    bars = axes.bar(names, [groups[name][0] for name in names], color=COLOURS[0], width=0.6)
    axes.bar_label(bars, [f"{groups[name][0]:.0%} of {groups[name][1]}" for name in names], fontsize=8, padding=2)
    axes.set_ylim(0, 1.12)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="x", labelsize=8)
    return figure


def prompt_tokens(space: PromptSpace) -> Figure:
    """Prompt tokens by their place, among word embeddings, in the plane of the first two principal components."""
    figure, axes = _axes("Prompt tokens among word embeddings (PCA of directions)")
    axes.scatter(
        space.words_N2[:, 0], space.words_N2[:, 1], s=3, color=COLOURS[5], alpha=0.35, linewidths=0, label="words"
    )
    for place, colour in zip(range(space.prompts_NP2.shape[1]), COLOURS, strict=False):
        points_N2 = space.prompts_NP2[:, place]
        axes.scatter(
            points_N2[:, 0], points_N2[:, 1], s=6, color=colour, linewidths=0, label=f"prompt token {place + 1}"
        )
    axes.set_xlabel(f"component 1 ({space.explained[0]:.0%} of the variance)")
    axes.set_ylabel(f"component 2 ({space.explained[1]:.0%})")
    axes.legend(frameon=False, fontsize=8, markerscale=2)
    return figure


def forgetting_curve(points: Sequence[AgePoint]) -> Figure:
    """Share of facts still answered, 0 to 1, over their age when asked, with the 95% interval."""
    figure, axes = _axes("Forgetting curve: all facts asked so far (generated exact match)")
    at = range(len(points))
    shares = [point.answered for point in points]
    errors = [[p.answered - p.low for p in points], [p.high - p.answered for p in points]]
    axes.errorbar(at, shares, yerr=errors, color=COLOURS[0], marker="o", markersize=4, capsize=3, linewidth=1.6)
    for i, point in enumerate(points):
        axes.annotate(
            f"{point.asked}", (i, point.answered), (5, -11), textcoords="offset points", ha="left", fontsize=7
        )
    axes.set_xticks(at, [age_label(point) for point in points], rotation=30, ha="right", fontsize=8)
    axes.set_xlabel("age in days (beside each point: facts asked)", fontsize=8)
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def age_label(point: AgePoint) -> str:
    """The ages of a point, in days."""
    return f"{point.from_days}+" if point.to_days is None else f"{point.from_days}-{point.to_days - 1}"


def over_nights(title: str, nights: Sequence[tuple[str, Mapping[str, float]]], label: str) -> Figure:
    """A line for each figure over the nights that have it: rows of (night, figures by name)."""
    figure, axes = _axes(title)
    for name in sorted({name for _, figures in nights for name in figures}):
        points = [(i, figures[name]) for i, (_, figures) in enumerate(nights) if name in figures]
        axes.plot(*zip(*points, strict=True), linewidth=1.6, marker="o", markersize=3, label=name)
    step = max(1, len(nights) // 12)
    labels = [night for night, _ in nights]
    axes.set_xticks(range(0, len(labels), step), labels[::step], rotation=30, ha="right", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.legend(frameon=False, fontsize=7, ncols=2)
    return figure


def scope_margins(groups: Mapping[str, Sequence[float]]) -> Figure:
    """Histograms of how far prompts score above what lets an edit answer, by kind of prompt; infinite ones left out."""
    figure, axes = _axes("Scope: how far prompts score above the threshold")
    finite = {name: [margin for margin in margins if math.isfinite(margin)] for name, margins in groups.items()}
    everything = [margin for margins in finite.values() for margin in margins]
    edges = np.linspace(min(0.0, *everything), max(0.0, *everything), 41)
    for (name, margins), colour in zip(finite.items(), COLOURS, strict=False):
        axes.hist(
            margins, bins=edges.tolist(), density=True, alpha=0.55, color=colour, label=f"{name} ({len(margins)})"
        )
    axes.axvline(0.0, color="black", linewidth=1.2, linestyle="--", label="threshold")
    axes.set_xlabel("score minus threshold, in the method's unit")
    axes.set_ylabel("density")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.legend(frameon=False, fontsize=8)
    return figure
