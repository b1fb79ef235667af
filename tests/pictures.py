"""What is wrong with a picture, by the renderer's own boxes; and how far two pictures are apart."""

import io
import itertools
import re

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

SMALLEST = 9.0  # pixels of a letter's height as a notebook shows it
WIDTH, TILE = 512, 16  # of a picture to compare, in pixels
FAR = 0.03  # of a tile's greyscale: what a moved point or another word exceeds


def faults(figure: Figure) -> list[str]:
    """Overlapping, clipped and small text, empty legends, no finding, no n or seeds."""
    FigureCanvasAgg(figure).draw()
    texts = shown_texts(figure)
    boxes = [(text, _ink(text)) for text in texts]
    found = [*_overlaps(boxes), *_clipped(figure, boxes), *_legends(figure)]
    for text in texts:
        if text.get_fontsize() * figure.dpi / 72 < SMALLEST:
            found.append(f"small: {text.get_text()!r}")
    words = " ".join(text.get_text().replace("\n", " ") for text in texts)
    if not any(part.get_suptitle() for part in (figure, *figure.subfigs)):
        found.append("no finding")
    if not re.search(r"\bn = \d", words):
        found.append("no n")
    if not re.search(r"\bseeds?\b", words):
        found.append("no seeds")
    return found


def _ink(text: Text) -> Bbox:
    """The box of a text without the empty lines that it begins with, where a badge may stand."""
    box, lines = text.get_window_extent(), text.get_text().split("\n")
    empty = len(lines) - len(text.get_text().lstrip("\n").split("\n"))
    return Bbox.from_extents(box.x0, box.y0, box.x1, box.y1 - box.height * empty / len(lines))


def saved_by(monkeypatch) -> list[Figure]:
    """The figures that the code saves from now on; they are written all the same."""
    from robustpo_kit import plots

    figures, save = [], plots.save

    def save_and_keep(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(plots, "save", save_and_keep)
    return figures


def shown_texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: labels of ticks beyond an axis' ends are not."""
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    of_ticks, drawn = set(), set()
    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        slack = 1e-6 * (high - low)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            of_ticks |= {tick.label1, tick.label2}
            if axis.axes.get_visible() and low - slack <= tick.get_loc() <= high + slack:
                drawn |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if text not in of_ticks or text in drawn]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def _overlaps(boxes):
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        if wide > 1.5 and high > 1.5:
            yield f"overlap: {one.get_text()!r} and {other.get_text()!r}"


def _clipped(figure, boxes):
    for text, box in boxes:
        frames = [figure.bbox]
        if text.get_clip_on() and text.get_clip_path() is not None and text.axes is not None:
            frames.append(text.axes.bbox)
        for frame in frames:
            outside = (frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1)
            if max(outside) > 2:
                yield f"clipped: {text.get_text()!r}"


def _legends(figure):
    for legend in [*figure.legends, *(ax.get_legend() for ax in figure.axes)]:
        if legend is None:
            continue
        names = [text.get_text() for text in legend.get_texts()]
        if not names or not all(name.strip() for name in names):
            yield f"empty legend: {names}"
        for handle, name in zip(legend.legend_handles, names, strict=True):
            if isinstance(handle, Line2D):
                unseen = {"None", "", " "}
                if handle.get_linestyle() in unseen and str(handle.get_marker()) in unseen:
                    yield f"empty legend: nothing before {name!r}"


def greyscale(source) -> np.ndarray:
    """A picture's file, or a figure as it would be saved, in [0, 1] and WIDTH pixels wide."""
    if isinstance(source, Figure):
        from robustpo_kit import plots

        stream = io.BytesIO()
        with plots.styled():
            source.savefig(stream, format="png", **plots.SAVED)
        source = stream
    picture = Image.open(source).convert("L")
    height = round(picture.height * WIDTH / picture.width / TILE) * TILE
    return np.asarray(picture.resize((WIDTH, height), Image.Resampling.BOX)) / 255


def distance(one, other) -> float:
    """The largest mean difference of a tile of two pictures, 0 to 1; 1 where their forms differ."""
    first, second = greyscale(one), greyscale(other)
    if first.shape != second.shape:
        return 1.0
    tiles = np.abs(first - second).reshape(len(first) // TILE, TILE, -1, TILE)
    return float(tiles.mean(axis=(1, 3)).max())
