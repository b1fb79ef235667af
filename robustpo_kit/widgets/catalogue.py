"""The parts by name, and how a notebook shows one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from robustpo_kit import notebook, plots
from robustpo_kit.errors import KitError
from robustpo_kit.widgets import figures, states

STATIC = Path(__file__).resolve().parent / "static"


@dataclasses.dataclass(frozen=True)
class Part:
    """A picture whose settings a reader moves; its mathematics runs in the browser."""

    name: str
    notebook: str  # number of the notebook that explains it
    caption: str
    state: Callable[[], dict[str, Any]]  # JSON: the numbers drawn, and where the controls stand
    figure: Callable[[dict[str, Any]], Figure]  # of a state

    @property
    def module(self) -> str:
        """Its whole ES module, without imports: `export default { render({ model, el }) }`."""
        texts = [STATIC / f"{name}.js" for name in ("tools", self.name)]
        return "\n".join(path.read_text(encoding="utf-8") for path in texts)


CATALOGUE = {
    part.name: part
    for part in (
        Part(
            "batch_weights",
            "04a",
            "The weights of one batch: drag lambda, or a sample's loss and h~.",
            states.batch_weights,
            figures.batch_weights,
        ),
        Part(
            "gamma_gap",
            "07",
            "The target margin against the gap: drag gamma0 and tau.",
            states.gamma_gap,
            figures.gamma_gap,
        ),
        Part(
            "reliability",
            "02",
            "Whether 0.7 means seven of ten, and what h~ becomes: drag the temperature.",
            states.reliability,
            figures.reliability,
        ),
        Part(
            "pair",
            "04b",
            "One pair from tokens to log-probabilities, loss and weight: drag beta or lambda.",
            states.pair,
            figures.pair,
        ),
        Part(
            "phase",
            "11",
            "Where each method wins, ties and loses: choose the harm, the outcome, a method.",
            states.phase,
            figures.phase,
        ),
    )
}


def show(name: str, **state: Any) -> Any:
    """The moving part where a person looks (`notebook.interactive`), else its figure, drawn.

    Args:
        name: in `CATALOGUE`.
        state: values in place of those of the part's own state, such as ``lam=0.3``.

    Raises:
        KitError: for an unknown part, or a value that it does not have.
    """
    if name not in CATALOGUE:
        raise KitError(f"part '{name}': unknown; there are {', '.join(CATALOGUE)}")
    part = CATALOGUE[name]
    values = part.state()
    if unknown := [key for key in state if key not in values]:
        raise KitError(f"{unknown[0]}: part '{name}' has {', '.join(values)}")
    values |= state
    if notebook.interactive():
        return _moving(part, values)
    with plots.styled():
        part.figure(values)
        plt.show()
    return None


def _moving(part: Part, values: dict[str, Any]) -> Any:
    import anywidget
    import traitlets

    traits = {key: traitlets.Any(value).tag(sync=True) for key, value in values.items()}
    kind = type(part.name, (anywidget.AnyWidget,), {"_esm": part.module, **traits})
    return kind()
