"""Plots in SVG: scores with error bars beside saved bytes."""

import math
import statistics
from xml.sax.saxutils import escape

ROW, LABEL, PANEL, BAR, GAP, TOP, BOTTOM = 20, 230, 300, 130, 26, 46, 34
PLAIN, COMPRESSED, FROZEN = "#1f5fa8", "#d1581a", "#777777"


def colour(row):
    return COMPRESSED if row["compressed"] else FROZEN if row["frozen_like"] else PLAIN


def ticks(low, high, count=5):
    """Round numbers between two."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(power * part for part in (1, 2, 5, 10) if (high - low) / (power * part) <= count)
    first = math.ceil(low / step)
    return [round(step * n, 10) for n in range(first, math.floor(high / step) + 1)]


def dots(results):
    """A panel for each result: one line for each row, a dot with the standard deviation, and a bar of saved bytes."""
    results = [result for result in results if result.get("rows")]
    if not results:
        return None
    heights = [TOP + ROW * len(result["rows"]) + BOTTOM for result in results]
    width, height = LABEL + PANEL + GAP + BAR + 70, sum(heights)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    offset = 0
    for result, size in zip(results, heights, strict=True):
        parts += [f'<g transform="translate(0 {offset})">', *panel(result), "</g>"]
        offset += size
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(result):
    rows = result["rows"]
    stats = []
    for row in rows:
        scores = [x for x in row["scores"] if math.isfinite(x)]
        mean = statistics.mean(scores) if scores else math.nan
        stats.append((mean, statistics.stdev(scores) if len(scores) > 1 else 0.0))
    finite = [(m, s) for m, s in stats if math.isfinite(m)]
    low, high = min(m - s for m, s in finite), max(m + s for m, s in finite)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    most = max(row["saved"] for row in rows)
    x = lambda value: LABEL + PANEL * (value - low) / (high - low)  # noqa: E731
    bottom = TOP + ROW * len(rows)
    bars = LABEL + PANEL + GAP
    metric = "accuracy, %" if result["metric"] == "accuracy" else result["metric"]
    out = [
        f'<text x="8" y="16" font-size="12">{escape(result["task"])}</text>',
        f'<text x="{LABEL}" y="34">{metric}</text><text x="{bars}" y="34">saved bytes</text>',
    ]
    for tick in ticks(low, high):
        out.append(
            f'<path d="M{x(tick):.1f} {TOP}V{bottom}" stroke="#ddd"/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>'
        )
    for number, (row, (mean, deviation)) in enumerate(zip(rows, stats, strict=True)):
        y = TOP + ROW * (number + 0.5)
        fill = colour(row)
        out.append(f'<text x="{LABEL - 8}" y="{y + 4}" text-anchor="end">{escape(row["name"])}</text>')
        if math.isfinite(mean):
            out.append(
                f'<path d="M{x(mean - deviation):.1f} {y}H{x(mean + deviation):.1f}" stroke="{fill}" stroke-width="2"/>'
                f'<circle cx="{x(mean):.1f}" cy="{y}" r="3.5" fill="{fill}"/>'
            )
        length = BAR * row["saved"] / most
        out.append(
            f'<rect x="{bars}" y="{y - 6}" width="{length:.1f}" height="12" fill="{fill}" opacity="0.6"/>'
            f'<text x="{bars + length + 4:.1f}" y="{y + 4}">{row["saved"] / most:.2f}</text>'
        )
    return out
