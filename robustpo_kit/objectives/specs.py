"""Specs, in two spellings, and what is built from them; `build` is the door.

dora(dpo_pl(beta=0.1), lam=1.0)    nested: each layer's keywords in its own parentheses
dora(dpo_pl, beta=0.1, lam=1.0)    flat: what a layer has no use for goes to the layer inside
"""

import ast
import difflib
from typing import Any

from robustpo_kit.losses import BASES, TARGETS
from robustpo_kit.objectives.layers import Layer, SpecError, margin_gap
from robustpo_kit.objectives.objective import Objective
from robustpo_kit.published import PRESETS
from robustpo_kit.robust import AGGREGATORS


def build(spec: str, *, seed: int = 0) -> Objective:
    """An `Objective` from a spec (see the examples of `objectives`) or the name of a preset.

    Args:
        spec: in either spelling.
        seed: of the run, for what the objective draws itself (gamma-PO's queue, beta-DPO's filter)
            where the spec has no `seed`; other than 0, the objective's own spec then has it.

    Raises:
        SpecError: (a KitError and a ValueError) a spec that is not understood or makes no sense.
        ValueError: naming the argument whose value is outside its range.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise SpecError(f"objective: expected a spec such as 'dpo(beta=0.1)', got {spec!r}")
    if spec in PRESETS:
        spec = PRESETS[spec].spec
    layers = _layers(_parse(spec), spec)
    _check_order([layer.name for layer in layers], spec)
    _nest_keywords(layers, spec)
    _check_required(layers, spec)
    for layer in layers:
        if seed and "seed" in layer.accepts(under_gamma=False):
            layer.keywords.setdefault("seed", seed)
    keywords = {layer.name: layer.keywords for layer in layers}
    *wrappers, base = keywords
    aggregator = next((name for name in wrappers if name != "gamma"), "erm")
    return Objective(
        base, keywords[base], aggregator, keywords.get(aggregator), keywords.get("gamma")
    )


def _check_order(names: list[str], spec: str) -> None:
    """One aggregator around one dynamic margin around a loss that takes it; both may be missing."""
    *wrappers, base = names
    if base not in BASES:
        raise SpecError(f"{spec}: '{base}' needs a base loss inside, such as {base}(dpo, beta=0.1)")
    if wrappers.count("gamma") > 1:
        raise SpecError(f"{spec}: one dynamic margin at most")
    if "gamma" in wrappers[:-1]:
        raise SpecError(
            f"{spec}: the dynamic margin belongs to the loss; "
            f"write {wrappers[-1]}(gamma({base}, ...))"
        )
    if "gamma" in wrappers:
        margin_gap(base)
    aggregators = [name for name in wrappers if name != "gamma"]
    if len(aggregators) > 1:
        raise SpecError(
            f"{spec}: one aggregator at most, got {' and '.join(aggregators)}; "
            "each is a mean over the step"
        )


def _parse(spec: str) -> ast.expr:
    try:
        return ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", error)
        raise SpecError(
            f"{spec}: not a spec ({reason}); expected e.g. dora(dpo, beta=0.1)"
        ) from None


def _layers(node: ast.expr, spec: str) -> list[Layer]:
    """The layers as written, from the outermost to the base loss; nothing is evaluated."""
    if isinstance(node, ast.Name):
        return [Layer(_known(node.id, spec), {}, has_parentheses=False)]
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise SpecError(f"{spec}: expected a name or name(...), got {ast.unparse(node)}")
    layer = Layer(_known(node.func.id, spec), {}, has_parentheses=True)
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in layer.keywords:
            written = ast.unparse(keyword)
            raise SpecError(
                f"{spec}: '{written}' in {layer.name}(...) must be a keyword given once"
            )
        layer.keywords[keyword.arg] = _literal(keyword, spec)
    if not node.args:
        return [layer]
    if layer.name in BASES:
        raise SpecError(
            f"{spec}: the base loss {layer.name} takes keywords only, "
            f"got {ast.unparse(node.args[0])}"
        )
    if len(node.args) > 1:
        raise SpecError(f"{spec}: {layer.name}(...) takes one loss, got {len(node.args)}")
    return [layer, *_layers(node.args[0], spec)]


def _known(name: str, spec: str) -> str:
    names = (*BASES, *AGGREGATORS, "gamma")
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    raise SpecError(f"{spec}: unknown name '{name}'; {hint}")


def _literal(keyword: ast.keyword, spec: str) -> Any:
    """The value of a keyword; a bare word is a text, but for true and false."""
    value: object
    if isinstance(keyword.value, ast.Name):
        return {"true": True, "false": False}.get(keyword.value.id, keyword.value.id)
    try:
        value = ast.literal_eval(keyword.value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        value = keyword
    if value is not None and not isinstance(value, int | float | str | bool):
        raise SpecError(f"{spec}: {keyword.arg} must be a number, a text, True, False or None")
    return value


def _nest_keywords(layers: list[Layer], spec: str) -> None:
    """Flat to nested: move each keyword to the layer that takes it, outermost layer first."""
    under_gamma = any(layer.name == "gamma" for layer in layers)
    if under_gamma:  # the margins' mean takes the place of SimPO's constant
        *_, margin, base = layers
        for target in TARGETS:
            if target in base.keywords:
                _move(target, base, margin, spec)
    accepted = [layer.accepts(under_gamma=under_gamma) for layer in layers]
    for level, layer in enumerate(layers):
        for keyword in list(layer.keywords):
            home = _home(keyword, layers[level:], accepted[level:], spec)
            if home is not layer:
                _move(keyword, layer, home, spec)


def _home(keyword: str, layers: list[Layer], accepted: list[tuple[str, ...]], spec: str) -> Layer:
    """The layer that takes a keyword given in the first of `layers`.

    A keyword that it shares with a bare name inside (dora's lam and cpo's lam) is ambiguous.
    """
    takers = [
        layer for layer, keywords in zip(layers, accepted, strict=True) if keyword in keywords
    ]
    if not takers:
        known = ", ".join(sorted(set().union(*accepted)))
        raise SpecError(f"{spec}: unknown argument '{keyword}'; accepted here: {known or 'none'}")
    home, *others = takers
    own = home is layers[0] and all(other.has_parentheses for other in others)
    if others and not own:
        names = " and ".join(taker.name for taker in takers)
        raise SpecError(
            f"{spec}: '{keyword}' is an argument of {names}; "
            f"write {others[-1].name}({keyword}=...) inside"
        )
    return home


def _move(keyword: str, source: Layer, target: Layer, spec: str) -> None:
    if keyword in target.keywords:
        raise SpecError(f"{spec}: '{keyword}' of {target.name} is given twice")
    target.keywords[keyword] = source.keywords.pop(keyword)


def _check_required(layers: list[Layer], spec: str) -> None:
    for layer in reversed(layers):
        if missing := [keyword for keyword in layer.required if keyword not in layer.keywords]:
            raise SpecError(f"{spec}: {layer.name} needs {missing[0]}")
