"""A plotly figure as SVG, without a browser: lines, points, filled shapes, error bars, linear or log axes, panels.

plotly makes static images with a browser only. This draws what our figures use of it, plainly: no hover, no zoom.
Panels stand beside each other (`domain` of their x axes); a second y axis of a panel is on its right.
"""

# Shape letters: none.

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 480
"""Of a figure that does not say."""
LEFT, TOP, BESIDE, BELOW = 70, 40, 200, 60
"""Pixels around the frame; the legend stands to its right."""
PLACES = {"middle right": (6, 4, "start"), "middle center": (0, 4, "middle"), "middle left": (-6, 4, "end")}
"""Where a text stands beside its point; the others stand above it, to the left."""
MANY, LONGEST = 40, 28
"""Names in a legend, and letters of each."""
DASHES = {"dash": "6 4", "dot": "2 3", "dashdot": "6 3 2 3"}


class Axis:
    """From data to pixels.

    Args:
        values: what has to fit on it.
        layout: of plotly's axis: `type`, `range`, `tickvals`, `ticktext`, `title`.
        ends: pixels at which it begins and ends.
    """

    def __init__(self, values: Sequence[float], layout: Mapping[str, Any], ends: tuple[float, float]):
        self.layout, self.ends = layout, ends
        self.is_log = layout.get("type") == "log"
        scaled = [self._scaled(value) for value in values if self._fits(value)]
        low, high = layout.get("range") or (min(scaled, default=0.0), max(scaled, default=1.0))
        pad = 0.0 if layout.get("range") else 0.04 * (high - low) or 0.5
        self.low, self.high = low - pad, high + pad

    def _fits(self, value: float | None) -> bool:
        return value is not None and math.isfinite(value) and (value > 0 or not self.is_log)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else float(value)

    def _shows(self, value: float) -> bool:
        return self.low <= self._scaled(value) <= self.high

    def pixel(self, value: float | None) -> float | None:
        """The pixel of a value, None where it has none."""
        if value is None or not self._fits(value):
            return None
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.ends[0] + share * (self.ends[1] - self.ends[0])

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and labels."""
        if self.layout.get("ticktext"):
            pairs = zip(self.layout["tickvals"], self.layout["ticktext"], strict=True)
        elif self.is_log and self.high - self.low >= 1:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            few = (1, 2, 5) if self.high - self.low < 2 else (1,)
            values = (factor * 10.0**power for power in range(powers.start - 1, powers.stop) for factor in few)
            pairs = ((value, _written(value)) for value in values if self._shows(value))  # type: ignore[assignment]
        else:
            said = _written if self.is_log else "{:.4g}".format
            pairs = ((value, said(value)) for value in self._round_values())  # type: ignore[assignment]
        return [(place, text) for value, text in pairs if (place := self.pixel(value)) is not None]

    def _round_values(self) -> list[float]:
        low, high = (10.0**self.low, 10.0**self.high) if self.is_log else (self.low, self.high)
        rough = (high - low) / (8 if self.is_log else 5)
        step = 10 ** math.floor(math.log10(rough))
        step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= rough)
        first = math.ceil(low / step)
        return [number * step for number in range(first, math.floor(high / step) + 1)]


def _written(value: float) -> str:
    """A number of a logarithmic axis; long ones as powers of ten."""
    power = math.floor(math.log10(value) + 1e-9)
    if abs(power) < 5:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    front = f"{value / 10.0**power:.3g}"
    above = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if front == "1" else f"{front}·") + f"10{above}"


@dataclass(frozen=True)
class Frame:
    """Pixels between which a panel lies."""

    left: float
    right: float
    top: float
    bottom: float

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def svg(figure: Mapping[str, Any]) -> str:
    """SVG of a figure as plotly's JSON has it."""
    traces, layout = figure["data"], figure["layout"]
    width, height = layout.get("width") or WIDTH, layout.get("height") or HEIGHT
    notes = layout.get("annotations") or []
    whole = Frame(LEFT, width - BESIDE, TOP + (22 if notes else 0), height - BELOW)
    parts = [_text(whole.middle[0], TOP - 16, _title(layout), more='font-size="15"')]
    for name in dict.fromkeys(one.get("xaxis") or "x" for one in traces) or ["x"]:
        own = [one for one in traces if (one.get("xaxis") or "x") == name]
        parts += _panel(own, layout, name, whole)
    parts += [_annotation(one, whole) for one in notes]
    parts.append(_legend(traces, whole.right + (78 if "overlaying" in layout.get("yaxis2", {}) else 20)))
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>\n"])


def _panel(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], name: str, whole: Frame) -> list[str]:
    """Axes and traces of one panel."""
    across = layout[f"xaxis{name[1:]}"]
    ends = [whole.left + share * (whole.right - whole.left) for share in across.get("domain") or (0, 1)]
    frame = Frame(ends[0], ends[1], whole.top, whole.bottom)
    x = Axis([value for one in traces for value in _with_bars(one, "x")], across, (frame.left, frame.right))
    used = list(dict.fromkeys(one.get("yaxis") or "y" for one in traces)) or ["y"]
    sides = {
        key: Axis(_heights(traces, key), layout.get(f"yaxis{key[1:]}", {}), (frame.bottom, frame.top))
        for key in sorted(used, key=lambda key: "overlaying" in layout.get(f"yaxis{key[1:]}", {}))
    }
    first, *others = sides.values()
    if first.layout.get("scaleanchor"):
        _one_scale(x, first)
    parts = [] if across.get("visible") is False else [_axes(x, first, others[0] if others else None, frame)]
    return parts + [_trace(one, x, sides[one.get("yaxis") or "y"]) for one in traces]


def _one_scale(x: Axis, y: Axis) -> None:
    """As many pixels for a unit on both axes: the one with more gets a wider range."""
    sizes = [abs(axis.ends[1] - axis.ends[0]) for axis in (x, y)]
    scale = min(size / (axis.high - axis.low) for size, axis in zip(sizes, (x, y), strict=True))
    for size, axis in zip(sizes, (x, y), strict=True):
        middle = (axis.low + axis.high) / 2
        axis.low, axis.high = middle - size / scale / 2, middle + size / scale / 2


def _heights(traces: Sequence[Mapping[str, Any]], axis: str) -> list[float]:
    return [value for one in traces if (one.get("yaxis") or "y") == axis for value in _with_bars(one, "y")]


def _with_bars(trace: Mapping[str, Any], axis: str) -> list[float]:
    """Values of a trace along an axis and the ends of their error bars."""
    values, bars = list(trace[axis]), trace.get(f"error_{axis}") or {}
    up = [value + bar for value, bar in zip(values, bars.get("array", []), strict=False)]
    return values + up + [value - bar for value, bar in zip(values, bars.get("arrayminus", []), strict=False)]


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _title(layout: Mapping[str, Any]) -> str:
    title = layout.get("title") or ""
    return str(title.get("text") or "") if isinstance(title, Mapping) else str(title)


def _axes(x: Axis, y: Axis, right: Axis | None, frame: Frame) -> str:
    middle, height = frame.middle
    ends = f"M{frame.left:.1f} {frame.top}V{frame.bottom}H{frame.right:.1f}{f'V{frame.top}' if right else ''}"
    at = frame.left - 52
    parts = [
        f'<path d="{ends}" fill="none" stroke="black"/>',
        _text(middle, frame.bottom + 38, _title(x.layout)),
        _text(at, height, _title(y.layout), more=f'transform="rotate(-90 {at:.1f} {height})"'),
    ]
    parts += [_text(place, frame.bottom + 18, text) for place, text in x.ticks()]
    parts += [_text(frame.left - 6, place + 4, text, "end") for place, text in y.ticks()]
    parts += [_tick(place, frame.bottom, 0, 4) for place, _ in x.ticks()]
    parts += [_tick(frame.left, place, -4, 0) for place, _ in y.ticks()]
    if right:
        parts += [_text(frame.right + 6, place + 4, text, "start") for place, text in right.ticks()]
        at = frame.right + 62
        parts.append(_text(at, height, _title(right.layout), more=f'transform="rotate(90 {at:.1f} {height})"'))
    return "\n".join(parts)


def _tick(x: float, y: float, across: float, down: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}l{across} {down}" stroke="black"/>'


def _annotation(note: Mapping[str, Any], whole: Frame) -> str:
    """Text at a place of the whole figure, such as the title of a panel."""
    x = whole.left + note["x"] * (whole.right - whole.left)
    y = whole.bottom - note["y"] * (whole.bottom - whole.top)
    return _text(x, y - 6, note["text"], more='font-size="12"')


def _trace(trace: Mapping[str, Any], x: Axis, y: Axis) -> str:
    points = [(x.pixel(a), y.pixel(b)) for a, b in zip(trace["x"], trace["y"], strict=True)]
    there = [(a, b) for a, b in points if a is not None and b is not None]
    line, marker = trace.get("line") or {}, trace.get("marker") or {}
    colour, mode = line.get("color") or marker.get("color") or "black", trace.get("mode") or "lines"
    parts, solid = [], trace.get("opacity") or 1
    if "lines" in mode and there:
        way = "".join(f"{'L' if joined else 'M'}{a:.1f} {b:.1f}" for joined, a, b in _stretches(points))
        fill = f'fill="{colour}" fill-opacity="{0.4 * solid:g}"' if trace.get("fill") else 'fill="none"'
        dash = f'stroke-dasharray="{DASHES[line["dash"]]}"' if line.get("dash") in DASHES else ""
        width = 1.5 if line.get("width") is None else line["width"]
        stroke = f'stroke="{colour}" stroke-width="{width}"' if width else ""
        shown = "" if solid == 1 else f'stroke-opacity="{solid}"'
        parts.append(f'<path d="{way}" {fill} {stroke} {dash} {shown}/>')
    if "markers" in mode:
        seen = (marker.get("opacity") or 1) * solid
        size = f'r="{(marker.get("size") or 6) / 2:g}" fill="{colour}" fill-opacity="{seen:g}"'
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" {size}/>' for a, b in there]
    if "text" in mode:
        right, down, anchor = PLACES.get(trace.get("textposition") or "", (-4, -4, "end"))
        for text, (a, b) in zip(trace["text"], points, strict=True):
            parts += [_text(a + right, b + down, text, anchor)] if text and a is not None and b is not None else []
    parts += _bars(
        trace, "error_y", lambda a, low, high: ((x.pixel(a), y.pixel(low)), (x.pixel(a), y.pixel(high))), colour
    )
    parts += _bars(
        trace, "error_x", lambda b, low, high: ((x.pixel(low), y.pixel(b)), (x.pixel(high), y.pixel(b))), colour
    )
    return "\n".join(parts)


def _stretches(points: Sequence[tuple[float | None, float | None]]) -> list[tuple[bool, float, float]]:
    """Points that are there, and whether each is joined to the one before: not where others are missing between."""
    found, joined = [], False
    for a, b in points:
        if a is not None and b is not None:
            found.append((joined, a, b))
        joined = a is not None and b is not None
    return found


Ends = tuple[tuple[float | None, float | None], tuple[float | None, float | None]]


def _bars(trace: Mapping[str, Any], key: str, ends: Callable[[float, float, float], Ends], colour: str) -> list[str]:
    """Error bars along one axis."""
    bars = trace.get(key)
    if not bars or "array" not in bars:
        return []
    own, other = (trace["y"], trace["x"]) if key == "error_y" else (trace["x"], trace["y"])
    found = []
    for at, value, up, down in zip(other, own, bars["array"], bars["arrayminus"], strict=True):
        (a, b), (c, d) = ends(at, value - down, value + up)
        if a is not None and b is not None and c is not None and d is not None:
            found.append(f'<path d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" stroke="{colour}"/>')
    return found


def _legend(traces: Sequence[Mapping[str, Any]], left: float) -> str:
    named: dict[str, Mapping[str, Any]] = {}
    for one in traces:
        if one.get("name") and one.get("showlegend") is not False:
            named.setdefault(one["name"], one)
    parts = []
    for number, (name, one) in enumerate(list(named.items())[:MANY]):
        place = TOP + 10 * number * (1 if len(named) > 25 else 1.5)
        parts.append(_swatch(one, left, place - 3.5))
        parts.append(_text(left + 22, place, name[:LONGEST], "start", f'font-size="{8 if len(named) > 12 else 11}"'))
    return "\n".join(parts)


def _swatch(trace: Mapping[str, Any], left: float, height: float) -> str:
    """What a trace looks like, before its name: a line, a dot, or both; a bar for a filled shape."""
    line, marker = trace.get("line") or {}, trace.get("marker") or {}
    colour, mode = line.get("color") or marker.get("color") or "black", trace.get("mode") or "lines"
    if trace.get("fill"):
        shown = 0.4 * (trace.get("opacity") or 1)
        return f'<rect x="{left}" y="{height - 3:.1f}" width="18" height="6" fill="{colour}" fill-opacity="{shown:g}"/>'
    dash = f'stroke-dasharray="{DASHES[line["dash"]]}"' if line.get("dash") in DASHES else ""
    way = f'<path d="M{left} {height:.1f}h18" stroke="{colour}" stroke-width="2" {dash}/>'
    dot = f'<circle cx="{left + 9}" cy="{height:.1f}" r="3" fill="{colour}"/>'
    return (way if "lines" in mode else "") + (dot if "markers" in mode else "")
