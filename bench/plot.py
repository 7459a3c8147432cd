"""Curves as SVG pictures, written by hand: panels side by side, a logarithmic axis to the right, a linear one from 0 up.

The ground is white in the picture itself, so that it can be read on a dark page as well.
"""

import math
from collections import namedtuple

LEFT, WIDTH, HEIGHT, TOP, BOTTOM, BETWEEN = 64, 330, 210, 46, 74, 84
COLOURS = {"f32": "#1f6f8b", "bf16": "#c2571a"}

# points: [(x, y)]; a line is drawn through them where `line`, else they are dots.
Curve = namedtuple("Curve", "name colour points line")
# ticks: [(x, label, label of a second row or "")]
Panel = namedtuple("Panel", "title x_label y_label ticks curves")


def step_of(most):
    """A round distance of grid lines, for three to seven of them up to `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * part for part in (0.2, 0.5, 1, 2) if most / (power * part) <= 6)


def number(value):
    return f"{value:g}"


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def text(x, y, words, **attributes):
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escaped(words)}</text>'


def drawn(panel, left):
    """The elements of one panel, whose axes meet at `left`."""
    xs = [x for x, _, _ in panel.ticks]
    low, high = math.log2(min(xs)) - 0.3, math.log2(max(xs)) + 0.3
    step = step_of(max(y for curve in panel.curves for _, y in curve.points) * 1.05)
    lines = math.ceil(max(y for curve in panel.curves for _, y in curve.points) * 1.05 / step)
    base = TOP + HEIGHT
    at = lambda x, y: (left + WIDTH * (math.log2(x) - low) / (high - low), base - HEIGHT * y / (step * lines))
    out = [text(left, TOP - 26, panel.title, font_weight="bold", font_size="13")]
    for i in range(lines + 1):
        y = base - HEIGHT * i / lines
        out.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="{"#555" if i == 0 else "#d4d4d4"}"/>')
        out.append(text(left - 8, y + 4, number(step * i), text_anchor="end"))
    out.append(f'<line x1="{left}" x2="{left}" y1="{TOP}" y2="{base}" stroke="#555"/>')
    middle = TOP + HEIGHT / 2
    out.append(text(left - 46, middle, panel.y_label, text_anchor="middle",
                    transform=f"rotate(-90 {left - 46} {middle:.1f})"))
    for x, label, below in panel.ticks:
        place = at(x, 0)[0]
        out.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{base}" y2="{base + 4}" stroke="#555"/>')
        out.append(text(place, base + 17, label, text_anchor="middle"))
        if below:
            out.append(text(place, base + 31, below, text_anchor="middle", fill="#666", font_size="10"))
    out.append(text(left + WIDTH / 2, base + 48, panel.x_label, text_anchor="middle"))
    for curve in panel.curves:
        places = [at(x, y) for x, y in sorted(curve.points)]
        if curve.line:
            through = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            out.append(f'<polyline points="{through}" fill="none" stroke="{curve.colour}" stroke-width="1.5" '
                       'stroke-dasharray="5 4"/>')
        else:
            for (x, y), point in zip(places, sorted(curve.points)):
                out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{curve.colour}">'
                           f"<title>{escaped(curve.name)}, {number(point[0])}: {point[1]:.4g}</title></circle>")
    place = left
    for curve in panel.curves:
        y = TOP + HEIGHT + 64
        if curve.line:
            out.append(f'<line x1="{place}" x2="{place + 18}" y1="{y}" y2="{y}" stroke="{curve.colour}" stroke-width="1.5" '
                       'stroke-dasharray="5 4"/>')
        else:
            out.append(f'<circle cx="{place + 9}" cy="{y}" r="3.5" fill="{curve.colour}"/>')
        out.append(text(place + 23, y + 4, curve.name))
        place += 34 + 6 * len(curve.name)
    return out


def picture(panels):
    """The whole SVG."""
    width = len(panels) * (LEFT + WIDTH) + (len(panels) - 1) * (BETWEEN - LEFT) + 24
    height = TOP + HEIGHT + BOTTOM
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="11" fill="#222">', f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for i, panel in enumerate(panels):
        lines += drawn(panel, LEFT + i * (WIDTH + BETWEEN))
    return "\n".join([*lines, "</svg>"]) + "\n"
