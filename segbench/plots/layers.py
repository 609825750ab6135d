"""The layerwise curve: mIoU at encoder and adapter, through the LLM and after its norm; drop and recovery marked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench.leaderboard.drop_recovery import DropRecovery, drop_recovery
from segbench.plots import base
from segbench.store import Result
from segbench.types import Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

WIDTHS = (2.4, 5.0, 1.4)  # of the three panels: before the LLM, inside it, what it won back
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "position_miou": ("places of the patches alone", {"color": base.GREY, "lw": 1, "ls": "-."}),
    "shuffled_miou": ("labels of other images", {"color": base.GREY, "lw": 1, "ls": (0, (1, 1))}),
}
_STEP = 0.7  # between the arrows of two models
_ROOM = 0.5  # of the height of the curves: how far above them the oracle's line may stretch the axis


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """One picture per probe task and seed, all its models in it."""
    paths = []
    for probes in base.groups(results, "probe"):
        with base.canvas(4.8) as figure:
            plot(figure, probes, base.looks(results))
            figure.suptitle(f"Linear probes along the model\n{base.about(probes[0])}")
            paths += base.save(figure, folder, base.stem("layers", probes[0]))
    return paths


def plot(figure: "Figure | SubFigure", probes: Sequence[Result], looks: dict[str, base.Look]) -> None:
    """Fill a figure with the curves of some models on one task."""
    left, right, end = figure.subplots(1, 3, sharey=True, width_ratios=WIDTHS)
    anatomies = [drop_recovery(probe) for probe in probes]
    for axes in (left, right, end):
        for probe, anatomy in zip(probes, anatomies, strict=True):
            if encoder := anatomy.curve.get("encoder"):
                axes.axhline(encoder.value, color=looks[probe.model].colour, lw=1, ls=(0, (1, 2)), alpha=0.7)
    for index, (probe, anatomy) in enumerate(zip(probes, anatomies, strict=True)):
        look, offset = looks[probe.model], 0.12 * (index - (len(probes) - 1) / 2)
        _before(left, anatomy, look, offset, base.described(probe))
        _inside(right, anatomy, look)
    _arrows(left, [(a.curve.get("encoder"), a.drop) for a in anatomies], probes, looks, 1.75, "drop")
    _arrows(end, [(a.curve.get("adapter"), a.recovery) for a in anatomies], probes, looks, 0.0, "recovery")
    left.set_xticks([0, 1], ["encoder", "adapter"])
    left.set_xlim(-0.4, 1.75 + _STEP * (len(probes) - 0.4))
    left.set_ylabel("mIoU (%)")
    sites = {site for anatomy in anatomies for site in anatomy.curve if Site.parse(site).is_layer or site == "llm.norm"}
    if sites:
        base.layer_axis(right, sites)
    right.set_xlabel("LLM layer (bands and bars: 95 % intervals over images)")
    end.set_xlim(-0.6, _STEP * (len(probes) - 0.2))
    end.set_axis_off()
    signs = _controls(right, probes)
    if _ceiling(right, {one.oracle for one in anatomies if one.oracle is not None}):
        signs["best that these patches allow"] = {"color": "black", "lw": 1, "ls": (0, (6, 2, 1, 2))}
    _legend(figure, left, anatomies, signs)


def _controls(axes: "Axes", probes: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """What is reached without the image, as grey lines: by the places of patches, and with other images' labels."""
    signs: dict[str, dict[str, Any]] = {}
    for metric, (name, line) in CONTROLS.items():
        for probe in probes:
            found = [one for one in probe.measures if one.metric == metric]
            layers = [(one.site, one.value) for one in found if one.site and Site.parse(one.site).is_layer]
            if layers:
                axes.plot([int(Site.parse(site).layer) for site, _ in layers], [value for _, value in layers], **line)
            elif found:
                axes.axhline(found[0].value, **line)
            if found:
                signs[name] = line
    return signs


def _ceiling(axes: "Axes", oracles: set[float]) -> bool:
    """The ceiling that the patch grid sets: a line where the curves come near it, else its number; whether a line."""
    low, high = axes.get_ylim()
    near = {one for one in oracles if one <= high + _ROOM * (high - low)}
    for oracle in near:
        axes.axhline(oracle, color="black", lw=1, ls=(0, (6, 2, 1, 2)))
    if far := sorted(oracles - near):
        words = " and ".join(f"{oracle:.1f} %" for oracle in far)
        axes.annotate(
            f"↑ best that these patches allow: {words}",
            (1, 1), (0, 2), "axes fraction", "offset points", ha="right", va="bottom", fontsize=8, color=base.GREY,
        )  # fmt: skip
    return bool(near)


def _before(axes: "Axes", anatomy: DropRecovery, look: base.Look, offset: float, label: str) -> None:
    """Encoder and adapter, side by side with the other models' where they would cover each other."""
    there = [
        (at + offset, anatomy.curve[site]) for at, site in enumerate(("encoder", "adapter")) if site in anatomy.curve
    ]
    if not there:
        return
    places, values = zip(*there, strict=True)
    axes.plot(places, [one.value for one in values], look.line, marker=look.marker, color=look.colour, label=label)
    low, high = base.band(one.interval for one in values)
    axes.vlines(places, low, high, color=look.colour, lw=1)


def _inside(axes: "Axes", anatomy: DropRecovery, look: base.Look) -> None:
    """The layers with their band, the final norm as an open marker, a ring around the peak."""
    parsed = {Site.parse(site): estimate for site, estimate in anatomy.curve.items()}
    layers = {int(site.layer): one for site, one in parsed.items() if site.is_layer}
    if not layers:
        return
    low, high = base.band(one.interval for one in layers.values())
    values = [one.value for one in layers.values()]
    axes.fill_between(list(layers), low, high, color=look.colour, alpha=0.15, lw=0)
    axes.plot(list(layers), values, look.line, marker=look.marker, color=look.colour)
    if norm := parsed.get(Site("llm", "norm")):
        at = base.norm_at(max(layers))
        axes.plot([at], [norm.value], look.marker, mfc="white", color=look.colour)
        axes.vlines([at], *base.band([norm.interval]), color=look.colour, lw=1, zorder=1)
    if anatomy.peak and anatomy.peak_layer:
        axes.plot(
            [anatomy.peak_layer], [anatomy.peak.value], "o", ms=11, mfc="none", mec=look.colour, mew=1.3, zorder=4
        )


def _arrows(
    axes: "Axes",
    changes: Sequence[tuple],
    probes: Sequence[Result],
    looks: dict[str, base.Look],
    start: float,
    word: str,
) -> None:
    """For each model an arrow from where it starts to where it ends, with the difference at its head."""
    shown = False
    for index, ((origin, change), probe) in enumerate(zip(changes, probes, strict=True)):
        if origin is None or change is None:
            continue
        at, look, end = start + _STEP * index, looks[probe.model], origin.value + change.value
        arrow = {"arrowstyle": "-|>", "color": look.colour, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (at, end), (at, origin.value), arrowprops=arrow)
        below = change.value < 0
        axes.annotate(
            f"{change.value:+.1f}",
            (at, end),
            (0, -3 if below else 3),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            color=look.colour,
            fontweight="bold",
        )
        shown = True
    if shown:
        middle = start + _STEP * (len(probes) - 1) / 2
        axes.annotate(
            f"{word} (pp)", (middle, 1), (0, 2), ("data", "axes fraction"), "offset points", ha="center", va="bottom"
        )


def _legend(
    figure: "Figure | SubFigure", left: "Axes", anatomies: Sequence[DropRecovery], lines: Mapping[str, dict[str, Any]]
) -> None:
    """The models, and those signs that are in the picture."""
    from matplotlib.lines import Line2D

    handles, labels = left.get_legend_handles_labels()
    signs = {}
    if any("encoder" in one.curve for one in anatomies):
        signs["encoder's level"] = Line2D([], [], color=base.GREY, lw=1, ls=(0, (1, 2)))
    if any(one.peak for one in anatomies):
        signs["peak LLM layer"] = Line2D([], [], color=base.GREY, ls="", marker="o", ms=9, mfc="none")
    if any("llm.norm" in one.curve for one in anatomies):
        signs["after the final norm"] = Line2D([], [], color=base.GREY, ls="", marker="o", mfc="white")
    signs |= {name: Line2D([], [], **line) for name, line in lines.items()}
    base.legend(figure, dict(zip(labels, handles, strict=True)), signs)
