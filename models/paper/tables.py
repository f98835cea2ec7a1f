"""Statistics and Markdown of what `suite.Suite.execute` found."""

import json
import math
import statistics

import plots

KIB = 1024


def spread(values, digits):
    """Mean ± standard deviation over seeds."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def digits_of(metric):
    return 2 if metric == "accuracy" else 3


def named(result):
    return {row["name"]: row for row in result["rows"]}


def frozen_of(result, row):
    """The row in which the layers that `row` rewrites are not trained."""
    return named(result).get(row["frozen_row"])


def gap(result, row):
    """How much of the held-out loss between frozen and fully trained layers a rewrite recovers, in percent.

    The numerators are of each seed, the denominator is the mean over seeds. None where nothing is compared; "noise" where
    the gap itself is less than two standard errors from nothing, "none" where frozen layers are better.
    """
    rows = named(result)
    twin, frozen = rows.get(row["twin"]), frozen_of(result, row)
    if not row["compressed"] or twin is None or frozen is None:
        return None
    gaps = [f - t for f, t in zip(frozen["losses"], twin["losses"], strict=True)]
    mean = statistics.mean(gaps)
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    if not math.isfinite(mean) or abs(mean) <= 2 * error:
        return "noise"
    if mean < 0:
        return "none"
    return [100 * (f - v) / mean for f, v in zip(frozen["losses"], row["losses"], strict=True)]


def against_twin(result, row):
    """By seed, the score minus the twin's."""
    twin = named(result).get(row["twin"])
    return twin and [a - b for a, b in zip(row["scores"], twin["scores"], strict=True)]


def is_close(result, row):
    """Whether the means are within 0.5 points, or 2 % of perplexity, at half the saved bytes or less."""
    twin = named(result).get(row["twin"])
    if not row["compressed"] or twin is None:
        return None
    mean, other = statistics.mean(row["scores"]), statistics.mean(twin["scores"])
    worse = other - mean if result["metric"] == "accuracy" else 100 * (mean / other - 1)
    limit = 0.5 if result["metric"] == "accuracy" else 2.0
    return worse <= limit, row["saved"] <= 0.5 * twin["saved"], worse, row["saved"] / twin["saved"]


def total(row):
    return sum(row["memory"].values())


def ratios(row):
    """By round, seconds per step as parts of the first row's beside it."""
    return [own / first for own, first in row["seconds"]]


def grid(head, rows):
    """A table's lines in Markdown."""
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(cells) + " |" for cells in rows)]


def lines(result, paper_columns=()):
    """The table of a task."""
    metric, first = result["metric"], result["rows"][0]
    digits = digits_of(metric)
    unit = ", %" if metric == "accuracy" else ""
    head = [
        "", f"{metric}{unit}", "minus its twin", "gap recovered, %", "saved, KiB", "÷ first", "peak, KiB", "÷ first",
        "optimiser, KiB", "step ÷ first", "rate", *paper_columns,
    ]  # fmt: skip
    said = f"{result['task']}: {result['steps']} steps of batches of {result['batch']}, {result['seeds']} seeds, mean ± standard deviation."
    rows = []
    for row in result["rows"]:
        differences, recovered = against_twin(result, row), gap(result, row)
        steps = ratios(row)
        cells = [
            row["name"],
            spread(row["scores"], digits),
            "" if differences is None else spread(differences, digits),
            {None: "", "noise": "gap within noise", "none": "frozen is better"}.get(recovered) if not isinstance(recovered, list) else spread(recovered, 0),
            f"{row['saved'] / KIB:,.0f}",
            f"{row['saved'] / first['saved']:.2f}",
            f"{total(row) / KIB:,.0f}",
            f"{total(row) / total(first):.2f}",
            f"{row['memory']['optimizer'] / KIB:,.0f}",
            f"{statistics.median(steps):.2f} ({min(steps):.2f} to {max(steps):.2f})",
            f"{row['rate']:g}",
            *(row["paper"] or [""] * len(paper_columns)),
        ]
        rows.append(cells)
    return [said, "", *grid(head, rows), "", *verdicts(result)]


def verdicts(result):
    """What the numbers say of each compressed row."""
    limit = "0.5 points" if result["metric"] == "accuracy" else "2 % of perplexity"
    for row in result["rows"]:
        found = is_close(result, row)
        if found is None:
            continue
        close, small, worse, saved = found
        unit = "points" if result["metric"] == "accuracy" else "%"
        how = f"{abs(worse):.2f} {unit} {'worse' if worse > 0 else 'better'}"
        yield (
            f"- {row['name']}: {how} than {row['twin']} at {saved:.2f} of its saved bytes"
            f"{': within ' + limit + ' at half the bytes' if close and small else ''}."
        )


def write(opt, name, title, command, results, remarks, paper_columns=(), sections=None):
    """Writes the table's Markdown, its data, and its plot.

    `sections` are lines for each result, in place of the standard table.
    """
    opt.out.mkdir(parents=True, exist_ok=True)
    out = [f"# {title}", "", f"Made by `{command}`; [README.md](README.md) says what the columns mean.", ""]
    if opt.quick:
        out += ["**A quick run, which says nothing but that all of it works.**", ""]
    for number, result in enumerate(results):
        made = sections[number] if sections else lines(result, paper_columns)
        out += [f"## {result['task']}", "", *made, ""]
    if not opt.quick:
        out += ["## Beside the paper", "", *remarks, ""]
    svg = plots.dots([result for result in results if "seeds" in result])
    if svg:
        (opt.out / f"{name}.svg").write_text(svg)
        out += [f"![{title}]({name}.svg)", "", "Means and standard deviations over seeds; bars are saved bytes.", ""]
    (opt.out / f"{name}.md").write_text("\n".join(out).rstrip() + "\n")
    (opt.out / f"{name}.json").write_text(json.dumps(compact(results)) + "\n")
    print("\n".join(out))
    if opt.quick:
        check(results)


def compact(found):
    """Numbers that are no whole ones, to seven digits."""
    if isinstance(found, float):
        return float(f"{found:.7g}")
    if isinstance(found, dict):
        return {name: compact(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [compact(value) for value in found]
    return found


def check(results):
    """What a quick run must show: complete rows, losses that fall, and memory that does."""
    problems = []
    for result in results:
        for row in result["rows"]:
            where = f"{result['task']}, {row['name']}"
            if not row["seconds"] or min(map(min, row["seconds"])) <= 0:
                problems.append(f"{where}: no time was measured")
            if "scores" not in row:
                first = result["rows"][0]
                if row is not first and row["saved"] >= first["saved"]:
                    problems.append(f"{where}: nothing is saved")
                continue
            curve = [statistics.mean(losses) for losses in zip(*row["curves"])]
            numbers = [*row["scores"], *row["losses"], *curve]
            if not numbers or not all(isinstance(x, float) and math.isfinite(x) for x in numbers):
                problems.append(f"{where}: not all runs have numbers: {numbers}")
                continue
            quarter = len(curve) // 4
            if statistics.mean(curve[-quarter:]) >= statistics.mean(curve[:quarter]):
                problems.append(f"{where}: the loss does not fall")
            twin = named(result).get(row["twin"])
            if row["compressed"] and row["frees"] and twin and row["saved"] >= twin["saved"]:
                problems.append(f"{where}: nothing is saved against {twin['name']}")
            frozen = frozen_of(result, row)
            if row["compressed"] and frozen is None:
                problems.append(f"{where}: no row with the same layers frozen")
    if problems:
        from suite import Failed

        raise Failed("\n".join(["the quick run is not as it should be:", *problems]))
    print("the quick run is as it should be")
