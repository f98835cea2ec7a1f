"""Tables in Markdown and curves in SVG, of what train.py has trained."""

import math
import statistics

COLOURS = {"plain": "#1f5fa8", "rewritten": "#d1581a", "8 groups": "#3a8f3a"}
REGIONS = ["parameters", "gradients", "optimizer", "constants", "inputs", "activations"]
WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 40


def write(part, results, folder):
    """Writes `part`.md, and `part`.svg where there are curves, to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    panels, table = {"digits": digits, "text": text, "time": time}[part](results)
    if panels:
        (folder / f"{part}.svg").write_text(svg(panels))
    (folder / f"{part}.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


def groups(runs):
    """Runs by model and variant, in the order of the list."""
    found = {}
    for run in runs:
        found.setdefault((run["model"], run["variant"]), []).append(run)
    return found


def digits(results):
    panels, rows = {}, []
    for (model, variant), runs in groups(results["runs"]).items():
        accuracy = [100 * run["eval"]["accuracy"] for run in runs]
        last = [statistics.mean(run["losses"][-44:]) for run in runs]
        held_out = [run["eval"]["loss"] for run in runs]
        rows.append(
            f"| `{model}` | {variant} | {spread(last, 4)} | {spread(held_out, 4)} | {spread(accuracy, 2)} |"
        )
        first = runs[0]
        points = [(step, scored["loss"]) for step, scored in first["evaluations"]]
        points.append((first["steps"], first["eval"]["loss"]))
        panels.setdefault(f"{model}: training loss, held-out loss", []).append(
            (variant, smooth(first["losses"], 44), points)
        )
    table = [
        "| model | graph | training loss, last pass | held-out loss | held-out accuracy, % |",
        "|---|---|---|---|---|",
        *rows,
        "",
        *memory(results["memory"]),
    ]
    return panels, table


def text(results):
    lines, rows = [], []
    for run in results["runs"]:
        variant = run["variant"]
        scored = run["eval"]
        last = statistics.mean(run["losses"][-20:])
        bits = scored["loss"] / 0.6931471805599453
        rows.append(
            f"| {variant} | {run['losses'][0]:.4f} | {last:.4f} | {scored['loss']:.4f} "
            f"| {scored['perplexity']:.3f} | {bits:.3f} |"
        )
        points = [(step, s["loss"]) for step, s in run["evaluations"]] + [(run["steps"], scored["loss"])]
        lines.append((variant, run["losses"], points))
    table = [
        f"{results['runs'][0]['steps']} steps of {results['batch']} sequences of 128 bytes.",
        "",
        "| graph | first loss | mean of the last 20 | held-out loss | held-out perplexity per byte | bits per byte |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    return {"aot/llama_256x4: training loss, held-out loss": lines}, table


def time(results):
    turns = {}
    for run in results["memory"]:
        turns.setdefault(run["variant"], []).append(run["seconds_per_step"])
    plain, rewritten = turns["plain"], turns["rewritten"]
    ratios = [b / a for a, b in zip(plain, rewritten)]
    table = [
        "| turn | plain, s per step | rewritten | ratio |",
        "|---|---|---|---|",
        *(f"| {n} | {a:.3f} | {b:.3f} | {r:.2f} |" for n, (a, b, r) in enumerate(zip(plain, rewritten, ratios), 1)),
        "",
        f"Median of the ratios {statistics.median(ratios):.2f}, ratio of the least times "
        f"{min(rewritten) / min(plain):.2f}.",
        "",
        *memory(results["memory"][:2]),
    ]
    return None, table


def memory(runs):
    """Bytes by region; the last column says whether every region's bytes were those of the plan."""
    yield "| model | graph | " + " | ".join(REGIONS) + " | total | predicted = measured |"
    yield "|---|---|" + "---|" * (len(REGIONS) + 2)
    for run in runs:
        regions = run["memory"]
        same = all(regions[name]["predicted"] == regions[name]["measured"] for name in REGIONS)
        measured = [regions[name]["measured"] for name in REGIONS]
        cells = [f"{bytes_:,}" for bytes_ in [*measured, sum(measured)]]
        yield f"| `{run['model']}` | {run['variant']} | " + " | ".join(cells) + f" | {'yes' if same else 'no'} |"


def spread(values, digits):
    """The least and the greatest."""
    low, high = min(values), max(values)
    if len(values) == 1:
        return f"{low:.{digits}f}"
    return f"{low:.{digits}f} to {high:.{digits}f}"


def smooth(losses, window):
    """Means over a window that ends at each step."""
    means, total = [], 0.0
    for step, loss in enumerate(losses):
        total += loss - (losses[step - window] if step >= window else 0.0)
        means.append(total / min(step + 1, window))
    return means


def svg(panels):
    """Panels beside each other, two in a row; lines are training losses, circles held-out ones."""
    rows = (len(panels) + 1) // 2
    width, height = WIDTH * min(2, len(panels)), HEIGHT * rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (title, lines) in enumerate(panels.items()):
        x, y = number % 2 * WIDTH, number // 2 * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *panel(title, lines), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(title, lines):
    steps = max(len(losses) for _, losses, _ in lines)
    values = [v for _, losses, points in lines for v in [*losses, *(loss for _, loss in points)]]
    low, high = 0.0, max(values)
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x = lambda step: LEFT + inner_width * step / steps  # noqa: E731
    y = lambda loss: TOP + inner_height * (high - loss) / (high - low)  # noqa: E731
    out = [f'<text x="{LEFT}" y="18" font-size="12">{title}</text>']
    for tick in ticks(high):
        out.append(
            f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in ticks(steps):
        out.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step</text>')
    for number, (variant, losses, points) in enumerate(lines):
        colour = COLOURS[variant]
        # At most some 300 points: more are not seen.
        stride = max(1, len(losses) // 300)
        shown = [(s + 1, losses[s]) for s in range(0, len(losses), stride)]
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in shown)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
        for step, loss in points:
            out.append(f'<circle cx="{x(step):.1f}" cy="{y(loss):.1f}" r="2.5" fill="white" stroke="{colour}"/>')
        top = TOP + 12 + 15 * number
        out.append(
            f'<path d="M{WIDTH - 110} {top - 4}h18" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{WIDTH - 86}" y="{top}">{variant}</text>'
        )
    return out


def ticks(high):
    """Round numbers from 0 to `high`, at least three and at most eight steps of them."""
    power = 10.0 ** math.floor(math.log10(high))
    step = next(power * part for part in (0.2, 0.5, 1, 2) if high / (power * part) <= 8)
    return [round(step * n, 10) for n in range(int(high / step) + 1)]
