"""Pictures, drawn by matplotlib (the extra ``plot``) without a display.

Invariants:
    * matplotlib is imported only here, and only when something is to be drawn.
    * The same data gives the same SVG, byte for byte: no date, no random names.
"""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from .growth import Growth

__all__ = ["check_plot", "draw_growth"]

_SUFFIXES = (".svg", ".png")
_COLOURS = (
    "#4477aa",
    "#66ccee",
    "#228833",
    "#ccbb44",
    "#ee6677",
    "#aa3377",
    "#ee8866",
    "#77aadd",
    "#99ddff",
    "#44bb99",
)
"""Told apart also by those who see colours differently (Paul Tol's bright and light schemes)."""
_OTHERS = "#bbbbbb"
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))


def check_plot(path: Path) -> None:
    """Nothing happens if a picture can be drawn into ``path``. Raises ``InvalidInputError``."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInputError("a plot is an .svg or a .png file", found=path.name)
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise InvalidInputError(
            "drawing needs matplotlib, which is not installed",
            remedy="install it with the extra: pip install 'holdfast[plot]'; without --plot the table is complete",
        ) from error


def draw_growth(growth: Growth, suffix: str, *, title: str) -> bytes:
    """The picture: keys above, bytes below, each prefix a layer on those before it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    names = list(growth.series)
    colours = [_OTHERS if name is None else _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)]
    keys = [[item.keys for item in growth.series[name]] for name in names]
    top = max(growth.total(at).size for at in range(len(growth.heights)))
    factor, unit = next((pair for pair in _UNITS if top >= pair[0]), _UNITS[-1])
    sizes = [[item.size / factor for item in growth.series[name]] for name in names]
    with matplotlib.rc_context({"svg.hashsalt": "holdfast", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(10, 7), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        figure.suptitle(title)
        for axes, layers, label in ((above, keys, "keys"), (below, sizes, f"keys and values ({unit})")):
            _layers(axes, growth.heights, layers, colours)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.grid(visible=True, color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        above.yaxis.set_major_locator(MaxNLocator(integer=True))
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        below.set_xlabel("height")
        _legend(figure, growth)
        return _rendered(figure, suffix)


def _layers(axes: Any, heights: list[int], layers: list[list[Any]], colours: list[str]) -> None:
    if not layers:
        axes.set_xlim(heights[0], max(heights[-1], heights[0] + 1))
    elif len(heights) > 1:
        axes.stackplot(heights, layers, colors=colours, step="post" if len(heights) < 3 else None, linewidth=0)
        axes.set_xlim(heights[0], heights[-1])
    else:
        bottom = 0.0
        for layer, colour in zip(layers, colours, strict=True):
            axes.bar(heights, layer, bottom=[bottom], color=colour, width=0.5)
            bottom += layer[0]


def _legend(figure: Any, growth: Growth) -> None:
    from matplotlib.patches import Patch

    from .growth import short_names

    names = list(growth.series)
    colours = [_OTHERS if name is None else _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)]
    texts = short_names(growth)
    handles = [
        Patch(color=colour, label=texts[name].replace("$", r"\$"))  # no formulas
        for name, colour in zip(names, colours, strict=True)
    ]
    if handles:  # the topmost layer first, as it stands in the picture
        figure.legend(handles=handles[::-1], loc="outside right upper", title="prefix", frameon=False)


def _rendered(figure: Any, suffix: str) -> bytes:
    target = io.BytesIO()
    if suffix.lower() == ".svg":
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(target, format="png", dpi=120, metadata={"Software": None})
    return target.getvalue()
