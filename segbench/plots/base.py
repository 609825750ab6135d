"""What all pictures share: style, colours, the class palette, and files that are the same for the same results."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from segbench.files import write_whole
from segbench.store import Result, folder_name
from segbench.types import IGNORE, Interval, Site

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

WIDTH = 9.0  # inches: a README shows it about 900 pixels wide, and 9 points are then 12 pixels
DPI = 178  # 1600 pixels wide
GREY = "#666666"
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CONDITIONS = {  # of a knockout: colour, marker, line, what is blocked
    "none": ("#000000", "o", "-", "nothing"),
    "incorrect": ("#d55e00", "s", "-", "incorrect class"),
    "correct": ("#0072b2", "^", "-", "correct class"),
    "random": ("#767676", "D", "--", "random tokens"),
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "figure.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "segbench",
}


@dataclass(frozen=True)
class Look:
    """How one model is drawn in every picture: colour and marker by name, dashed where attention is bidirectional."""

    colour: str
    marker: str
    line: str


def looks(results: Iterable[Result]) -> dict[str, Look]:
    """A look for every model, the same in all pictures of the same models."""
    cards = {one.model: one.model_card for one in results}
    return {
        model: Look(
            OKABE_ITO[index % len(OKABE_ITO)],
            MARKERS[index % len(MARKERS)],
            "--" if cards[model].get("attention") == "bidirectional" else "-",
        )
        for index, model in enumerate(sorted(cards))
    }


def described(result: Result) -> str:
    """A model's name with its attention, for legends."""
    return plain(f"{result.model} ({result.model_card.get('attention', 'causal')})")


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics, short enough for a label."""
    text = "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")
    return text if len(text) <= 60 else text[:57] + "..."


def about(result: Result) -> str:
    """What a picture of one task is of: task, images, seed, and whether the run was limited."""
    images = f"{len(result.about['images'])} images, " if "images" in result.about else ""
    limited = f" (limited to {result.limit} images)" if result.limit else ""
    limited += " (part of the data set)" if "partial" in result.about else ""
    return plain(f"{result.task}, {images}seed {result.seed}{limited}")


def stem(picture: str, result: Result, *more: str) -> str:
    """File name of a picture of one task, seed and limit."""
    limit = [f"limit{result.limit}"] if result.limit else []
    limit += ["partial"] if "partial" in result.about else []
    return "-".join([picture, *map(folder_name, [result.task, *more]), f"seed{result.seed}", *limit])


def groups(results: Sequence[Result], kind: str) -> list[list[Result]]:
    """Results of one kind that belong in one picture: the same task, seed, limit and data; models in order."""
    found: dict[tuple[str, int, int, bool], list[Result]] = {}
    for one in sorted((one for one in results if one.kind == kind), key=lambda one: (one.model, one.fingerprint)):
        found.setdefault((one.task, one.seed, one.limit or 0, "partial" in one.about), []).append(one)
    return [found[key] for key in sorted(found)]


@contextmanager
def canvas(height: float, width: float = WIDTH) -> Iterator["Figure"]:
    """An empty figure in segbench's own style, in inches; whatever the user's matplotlibrc says."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg, whole or not at all; the same figure gives the same bytes."""
    _settle(figure)
    paths = []
    for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        content = io.BytesIO()
        figure.savefig(content, format=form, dpi=DPI, metadata=metadata)
        write_whole(folder / f"{name}.{form}", content.getvalue())
        paths.append(folder / f"{name}.{form}")
    return paths


def legend(figure: "Figure | SubFigure", *rows: Mapping[str, "Artist"], columns: int = 3, title: str = "") -> None:
    """A legend below everything; each group of labels starts on a row of its own."""
    from matplotlib.lines import Line2D

    entries: "list[tuple[str, Artist]]" = []
    for row in rows:
        entries += row.items()
        entries += [("", Line2D([], [], ls=""))] * (-len(row) % columns)
    order = [entries[index] for column in range(columns) for index in range(column, len(entries), columns)]
    signs, words = [sign for _, sign in order], [word for word, _ in order]
    figure.legend(signs, words, loc="outside lower center", ncols=columns, title=title or None)


def layer_axis(axes: "Axes", sites: Iterable[str], zero: bool = False) -> int:
    """Ticks for LLM layers, from the adapter's output at 0 if `zero`, and for the norm; returns the last layer."""
    parsed = [Site.parse(site) for site in sites]
    last = max(int(site.layer) for site in parsed if site.is_layer)
    step = max(1, -(-last // 10))
    ticks = {float(layer): str(layer) for layer in (0, 1, *range(step, last + 1, step)) if layer or zero}
    if any(site.layer == "norm" for site in parsed):
        ticks[norm_at(last)] = "norm"
    axes.set_xticks(sorted(ticks), [ticks[at] for at in sorted(ticks)])
    return last


def norm_at(last: int) -> float:
    """Where the final norm stands on an axis of `last` layers: apart from them, it is not a layer."""
    return last + max(1.0, 0.07 * last)


def band(intervals: Iterable[Interval | None]) -> tuple[list[float], list[float]]:
    """Lower and upper ends for `fill_between`; nan, which draws nothing, where there is no interval."""
    pairs = [(one.low, one.high) if one else (np.nan, np.nan) for one in intervals]
    return [low for low, _ in pairs], [high for _, high in pairs]


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions near those wanted, in the same order and at least `gap` apart: labels that do not overlap."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[list[float]] = []  # [centre, members] of labels that touch
    for index in order:
        blocks.append([wanted[index], 1])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2:
            (centre, many), (before, more) = blocks.pop(), blocks.pop()
            blocks.append([(centre * many + before * more) / (many + more), many + more])
    placed = [centre + gap * (step - (many - 1) / 2) for centre, many in blocks for step in range(int(many))]
    result = [0.0] * len(wanted)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


def class_colours(many: int) -> UInt8[np.ndarray, "k 3"]:
    """A colour for each class id, each as far as possible from all before it, also for eyes without green or red cones.

    Neighbouring ids come first and hence lie furthest apart. Distances are taken in OKLab (Ottosson 2020), deficient
    colour vision is simulated after Vienot, Brettel and Mollon (1999).
    """
    steps = np.linspace(0, 255, 8).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    linear = np.where(candidates > 10, ((candidates / 255 + 0.055) / 1.055) ** 2.4, candidates / 255 / 12.92)
    views = np.stack([_oklab(linear @ view.T) for view in (np.eye(3), _DEUTAN, _PROTAN)])
    light, chroma = views[0, :, 0], np.linalg.norm(views[0, :, 1:], axis=-1)
    medium = (light > 0.35) & (light < 0.92) & (chroma < 0.18)  # neither ink nor paper, and nothing glaring
    candidates, views = candidates[medium], views[:, medium]
    away = _far(views, _oklab(np.ones((1, 3)))[0])  # white is for pixels without a label
    chosen: list[int] = []
    for _ in range(many):
        chosen.append(int(away.argmax()))
        away = np.minimum(away, _far(views, views[:, chosen[-1]][:, None]))
        away[chosen] = 0
    return candidates[chosen].astype(np.uint8).reshape(-1, 3)


def painted(mask: UInt8[np.ndarray, "H W"], colours: UInt8[np.ndarray, "k 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """A label map in the colours of its classes; white where there is no label."""
    table = np.full((256, 3), 255, np.uint8)
    table[: min(len(colours), IGNORE)] = colours[:IGNORE]
    return table[mask]


def _settle(figure: "Figure") -> None:
    """Place everything, once and to six digits: the last ones that the layout finds change with addresses in memory."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    parts = list(figure.subfigs)
    for part in parts:
        part.bbox_relative.set_points(_rounded(part.bbox_relative.get_points()))
        parts += part.subfigs
    for axes in figure.axes:
        left, low, right, high = _rounded(axes.get_position(original=True).get_points()).ravel()
        axes.set_position((left, low, right - left, high - low))


def _rounded(points: Float[np.ndarray, "2 2"]) -> Float[np.ndarray, "2 2"]:
    return points.round(6) + 0.0  # which makes -0 zero


_DEUTAN = np.array([[0.2928, 0.7072, 0.0], [0.2928, 0.7072, 0.0], [-0.0223, 0.0223, 1.0]])  # on linear RGB
_PROTAN = np.array([[0.1124, 0.8876, 0.0], [0.1124, 0.8876, 0.0], [0.0040, -0.0040, 1.0]])


_CONES = np.array([[0.4122, 0.5363, 0.0515], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
_OKLAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])


def _oklab(linear: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return np.cbrt(np.clip(linear, 0, None) @ _CONES.T) @ _OKLAB.T


def _far(views: Float[np.ndarray, "v n 3"], colour: Float[np.ndarray, "#v #n 3"]) -> Float[np.ndarray, " n"]:
    """OKLab distance under the least favourable vision; the deficient ones count double, or they would decide alone."""
    return (np.linalg.norm(views - colour, axis=-1) * np.array([[1.0], [2.0], [2.0]])).min(0)
