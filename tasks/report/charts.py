"""The page's charts as inline SVG: scores against their limits, drops with their bounds, the search's trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from editing.evals.compare import Comparison
from tasks.report.content import Scores

WIDTH, LABEL, VALUE = 1000, 410, 170
ROW, TOP = 30, 24
GOOD, BAD, WHOLE, CHAMPION, BASE, LIMIT = "#1a7f4b", "#c62f2f", "#c62f2f", "#1b6ca8", "#7b8794", "#222b36"


def _svg(height: float, parts: Iterable[str], title: str) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start", colour: str = "") -> str:
    style = f' style="fill: {colour}"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, more: str = "") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}" {more}/>'


def _dot(x: float, y: float, radius: float, fill: str, stroke: str = "none") -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{stroke}" stroke-width="2"/>'


def scores_chart(rows: Sequence[Scores]) -> Markup:
    """One line for each judged metric from 0 to 1: base, champion and candidate, and the limit that it had to reach."""
    left, right = LABEL, WIDTH - VALUE
    parts = [_text(left + (right - left) * share, 12, f"{share:.0%}", "axis", "middle") for share in (0, 0.5, 1)]
    for number, row in enumerate(rows):
        y = TOP + ROW * (number + 0.5)

        def at(share: float) -> float:
            return left + (right - left) * min(max(share, 0.0), 1.0)

        colour = BAD if row.failed else GOOD
        parts.append(_text(left - 14, y + 4, row.metric, "name", "end", BAD if row.failed else ""))
        parts.append(_line(left, y, right, y, "#d8dee6"))
        for limit in {*([row.floor] if row.floor is not None else []), *row.bounds.values()}:
            parts.append(_line(at(limit), y - 10, at(limit), y + 10, LIMIT, 2, 'stroke-dasharray="3 2"'))
        if row.candidate is None:
            parts.append(_text(right + 14, y + 4, "not asked tonight", "value"))
            continue
        if row.whole is not None and row.whole != row.candidate:
            parts.append(_line(at(row.whole), y, at(row.candidate), y, WHOLE, 2))
            parts.append(_dot(at(row.whole), y, 6, "white", WHOLE))
        for value, shade in ((row.base, BASE), (row.champion, CHAMPION)):
            if value is not None:
                parts.append(_dot(at(value), y, 4, shade))
        parts.append(_dot(at(row.candidate), y, 6.5, colour))
        told = f"{row.candidate:.1%} of {row.n}" + ("  fails" if row.failed else "")
        parts.append(_text(right + 14, y + 4, told, "value", colour=colour))
    return _svg(TOP + ROW * len(rows) + 6, parts, "Scores against their limits")


def drops_chart(rows: Sequence[tuple[str, Comparison]], alpha: float) -> Markup:
    """One line for each comparison: the drop, how large it may be at most, and the margin."""
    left, right = LABEL, WIDTH - VALUE
    low = min([0.0, *(c.drop for _, c in rows)]) - 0.01
    high = max([0.01, *(max(c.drop_bound, c.margin) for _, c in rows)]) + 0.01

    def at(drop: float) -> float:
        return left + (right - left) * (drop - low) / (high - low)

    bottom = TOP + ROW * len(rows)
    parts = [_line(at(0), TOP - 6, at(0), bottom, "#9aa5b1"), _text(at(0), 12, "no drop", "axis", "middle")]
    for number, (who, c) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        good = c.is_non_inferior(alpha)
        colour = GOOD if good else BAD
        parts.append(_text(left - 14, y + 4, f"{c.metric} vs {who}", "name", "end", "" if good else BAD))
        parts.append(_line(at(c.drop), y, at(c.drop_bound), y, colour, 4, 'stroke-linecap="round" opacity="0.45"'))
        parts.append(_dot(at(c.drop), y, 6, colour))
        parts.append(_line(at(c.margin), y - 10, at(c.margin), y + 10, LIMIT, 2, 'stroke-dasharray="3 2"'))
        told = f"{c.drop:+.3f}, at most {c.drop_bound:+.3f}"
        parts.append(_text(right + 14, y + 4, told, "value", colour=colour))
    return _svg(bottom + 6, parts, "Drops against their margins")


def trials_chart(trials: Sequence[tuple[int, bool]]) -> Markup:
    """One bar for each evaluation of the search, in order: how many facts were in, and whether they passed."""
    tall, bottom = 84, 104
    most = max([1, *(size for size, _ in trials)])
    step = min(44.0, (WIDTH - 20) / max(1, len(trials)))
    parts = [_line(0, bottom, step * len(trials), bottom, "#9aa5b1")]
    for number, (size, passes) in enumerate(trials):
        height, x = 4 + (tall - 4) * size / most, number * step
        colour = GOOD if passes else BAD
        shape = f'x="{x + 2:.1f}" y="{bottom - height:.1f}" width="{step - 4:.1f}" height="{height:.1f}"'
        parts.append(f'<rect {shape} fill="{colour}" opacity="0.85"/>')
        parts.append(_text(x + step / 2, bottom - height - 4, str(size), "axis", "middle"))
    return _svg(bottom + 8, parts, "The search's evaluations")
