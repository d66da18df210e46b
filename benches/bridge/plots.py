"""Plots of how the cost grows, as SVG, made from the JSON."""

import dataclasses
import math
import os

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 60, 52
# Told apart on light and dark pages.
COLOURS = ("#2f81f7", "#d9822b", "#3fa45b")


@dataclasses.dataclass
class Plot:
    file: str
    workload: str
    title: str
    across: str
    up: str
    # Name, and its points.
    lines: list


def made(result):
    """The plots that there are figures for."""
    workloads = {w["name"]: w["rows"] for w in result["workloads"]}

    def points(workload, thing, figure):
        rows = workloads.get(workload, [])
        return sorted((row["of"][thing], row["median"][figure]) for row in rows if thing in row["of"] and figure in row["median"])

    cpu = "CPU us per delivery"
    found = [
        Plot("subscriptions.svg", "growth", "CPU per delivery against subscriptions, of which one matches", "subscriptions", cpu,
             [("Kafka", points("growth", "subscriptions", "cpu_us"))]),
        Plot("endpoints.svg", "growth", "CPU per delivery against endpoints, asked in turn", "endpoints", cpu,
             [("Kafka", points("growth", "endpoints", "cpu_us"))]),
        Plot("partitions.svg", "growth", "CPU per delivery against partitions", "partitions", cpu,
             [("Kafka", points("growth", "partitions", "cpu_us"))]),
        Plot("sizes.svg", "sizes", "CPU per delivery against event size", "bytes", cpu,
             [("Kafka", points("sizes", "bytes", "cpu_us")), ("bare", points("sizes", "bare_bytes", "cpu_us"))]),
        Plot("index.svg", "index", "Routing one event against subscriptions in the index", "subscriptions", "ns per event",
             [("exact pattern, one match", points("index", "indexed", "ns_per_event"))]),
    ]
    return [plot for plot in found if any(len(line) > 1 for _, line in plot.lines)]


def write(result, folder):
    os.makedirs(folder, exist_ok=True)
    for plot in made(result):
        with open(os.path.join(folder, plot.file), "w") as file:
            file.write(svg(plot))


def svg(plot):
    """Across in powers; up from zero, or in powers too where values differ by much."""
    every = [point for _, line in plot.lines for point in line]
    least, most = math.log(min(x for x, _ in every)), math.log(max(x for x, _ in every))
    marks = scale([y for _, y in every])
    bend = math.log if marks[0] else float
    bottom, top = bend(marks[0]), bend(marks[-1])

    def place(x, y):
        across, up = (math.log(x) - least) / ((most - least) or 1), (bend(y) - bottom) / (top - bottom)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{plot.title}</title>",
        "<style>text{font:12px sans-serif;fill:#808890}.grid{stroke:#80889055}.line{fill:none;stroke-width:2}</style>",
        text(12, 18, plot.title, "start"),
        text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 12, plot.across, "middle"),
        text(12, TOP - 10, plot.up, "start"),
    ]
    for value in marks:
        _, y = place(math.exp(least), value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{value:g}", "end"))
    for x in sorted({x for x, _ in every}):
        parts.append(text(place(x, 0 if not marks[0] else marks[0])[0], HEIGHT - BOTTOM + 18, short(x), "middle"))
    for number, ((name, line), colour) in enumerate(zip(plot.lines, COLOURS)):
        at = [place(*point) for point in line]
        parts.append(f'<polyline class="line" stroke="{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in at]
        # The first line's values above it, the others' below.
        away = 18 if number else -9
        parts += [coloured(x, y + away, f"{value:.3g}", colour, "middle") for (x, y), (_, value) in zip(at, line)]
        parts.append(coloured(WIDTH - RIGHT, 18 + 16 * number, name, colour, "end"))
    return "\n".join([*parts, "</svg>", ""])


def scale(values):
    """Where the lines of the grid are."""
    if max(values) < 8 * min(values):
        top = rounded_up(max(values))
        return [top * step / 4 for step in range(5)]
    steps = [step * 10.0**power for power in range(-3, 9) for step in (1, 2, 5)]
    inside = [step for step in steps if min(values) / 2.5 < step < max(values) * 2.5]
    return inside


def coloured(x, y, words, colour, anchor):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour}">{words}</text>'


def text(x, y, words, anchor):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def short(number):
    for size, letter in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if number % size == 0:
            return f"{number // size}{letter}"
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number % size == 0:
            return f"{number // size}{letter}"
    return str(number)


def rounded_up(value):
    """To a number of which quarters can be read."""
    power = 10 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 6, 8, 10, 12) if power * step >= value * 1.1)
