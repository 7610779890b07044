"""A plotly figure as SVG, without a browser: lines, points, filled shapes, error bars, two linear or log axes.

plotly makes static images with a browser only. This draws what `figures.py` uses of it, plainly: no hover, no zoom.
"""

# Shape letters: none.

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 560, 40, 420
"""The frame; the legend stands to its right."""
MANY = 40
DASHES = {"dash": "6 4", "dot": "2 3"}


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

    def at(self, value: float | None) -> float | None:
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
            pairs = ((value, f"{value:g}") for value in values if self._shows(value))  # type: ignore[assignment]
        else:
            pairs = ((value, f"{value:.4g}") for value in self._round_values())  # type: ignore[assignment]
        return [(place, text) for value, text in pairs if (place := self.at(value)) is not None]

    def _round_values(self) -> list[float]:
        low, high = (10.0**self.low, 10.0**self.high) if self.is_log else (self.low, self.high)
        rough = (high - low) / 5
        step = 10 ** math.floor(math.log10(rough))
        step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= rough)
        first = math.ceil(low / step)
        return [number * step for number in range(first, math.floor(high / step) + 1)]


def svg(figure: Mapping[str, Any]) -> str:
    """SVG of a figure as plotly's JSON has it."""
    traces, layout = figure["data"], figure["layout"]
    across = [value for one in traces for value in _with_bars(one, "x")]
    x = Axis(across, layout["xaxis"], (LEFT, RIGHT))
    sides = {
        name: Axis(_heights(traces, name), layout.get(key, {}), (BOTTOM, TOP))
        for name, key in (("y", "yaxis"), ("y2", "yaxis2"))
    }
    parts = [_frame(layout, x, sides, has_right="yaxis2" in layout)]
    parts += [_trace(one, x, sides[one.get("yaxis") or "y"]) for one in traces]
    parts.append(_legend(traces, RIGHT + (78 if "yaxis2" in layout else 20)))
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>\n"])


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


def _frame(layout: Mapping[str, Any], x: Axis, sides: Mapping[str, Axis], has_right: bool) -> str:
    middle, height = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    parts = [
        f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}{f"V{TOP}" if has_right else ""}" fill="none" stroke="black"/>',
        _text(middle, TOP - 16, _title(layout), more='font-size="15"'),
        _text(middle, BOTTOM + 38, _title(x.layout)),
        _text(18, height, _title(sides["y"].layout), more=f'transform="rotate(-90 18 {height})"'),
    ]
    parts += [_text(place, BOTTOM + 18, text) for place, text in x.ticks()]
    parts += [_text(LEFT - 6, place + 4, text, "end") for place, text in sides["y"].ticks()]
    if has_right:
        parts += [_text(RIGHT + 6, place + 4, text, "start") for place, text in sides["y2"].ticks()]
        where = RIGHT + 62
        parts.append(_text(where, height, _title(sides["y2"].layout), more=f'transform="rotate(90 {where} {height})"'))
    return "\n".join(parts)


def _trace(trace: Mapping[str, Any], x: Axis, y: Axis) -> str:
    points = [(x.at(a), y.at(b)) for a, b in zip(trace["x"], trace["y"], strict=True)]
    there = [(a, b) for a, b in points if a is not None and b is not None]
    line, marker = trace.get("line") or {}, trace.get("marker") or {}
    colour, mode = line.get("color") or marker.get("color") or "black", trace.get("mode") or "lines"
    parts = []
    if "lines" in mode and there:
        way = "L".join(f"{a:.1f} {b:.1f}" for a, b in there)
        fill = f'fill="{colour}" fill-opacity="0.4"' if trace.get("fill") else 'fill="none"'
        dash = f'stroke-dasharray="{DASHES[line["dash"]]}"' if line.get("dash") in DASHES else ""
        parts.append(f'<path d="M{way}" {fill} stroke="{colour}" stroke-width="1.5" {dash}/>')
    if "markers" in mode:
        size = f'r="{(marker.get("size") or 6) / 2}" fill="{colour}" fill-opacity="{marker.get("opacity") or 1}"'
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" {size}/>' for a, b in there]
    if "text" in mode:
        for text, (a, b) in zip(trace["text"], points, strict=True):
            parts += [_text(a - 4, b - 4, text, "end")] if text and a is not None and b is not None else []
    parts += _bars(trace, "error_y", lambda a, low, high: ((x.at(a), y.at(low)), (x.at(a), y.at(high))), colour)
    parts += _bars(trace, "error_x", lambda b, low, high: ((x.at(low), y.at(b)), (x.at(high), y.at(b))), colour)
    return "\n".join(parts)


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
    named: dict[str, str] = {}
    for one in traces:
        if one.get("name") and one.get("showlegend") is not False:
            line, marker = one.get("line") or {}, one.get("marker") or {}
            named.setdefault(one["name"], line.get("color") or marker.get("color") or "black")
    parts = []
    for number, (name, colour) in enumerate(list(named.items())[:MANY]):
        place = TOP + 10 * number * (1 if len(named) > 25 else 1.5)
        parts.append(f'<rect x="{left}" y="{place - 6:.1f}" width="10" height="6" fill="{colour}"/>')
        parts.append(_text(left + 14, place, name[:22], "start", f'font-size="{8 if len(named) > 12 else 11}"'))
    return "\n".join(parts)
