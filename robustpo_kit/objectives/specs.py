"""Objectives: one base loss, perhaps with dynamic target margins, under one aggregator, built from a spec.

    build("dpo(beta=0.1)")                                                     erm is the default aggregator
    build("dora(dpo_pl, beta=0.1, lam=1.0)")                                   flat: each keyword finds its layer
    build("dora(gamma(simpo(beta=10), gamma_beta_ratio=0.4, tau=10), lam=1)")  nested: the same, said in full
    build("hh/dora_dpo_pl")                                                    a preset with the papers' hyperparameters

What trains the model sees only `Objective`: what it needs, whether its samples are coupled, and `step_loss`.
"""

import ast
import difflib
from typing import Any

from robustpo_kit.losses import BASES
from robustpo_kit.objectives.layers import (
    LAYERS,
    TARGETS,
    SpecError,
    check_takes_margin,
    layer_options,
)
from robustpo_kit.objectives.objective import Objective
from robustpo_kit.objectives.presets import PRESETS


def build(spec: str) -> Objective:
    """An `Objective` from a spec (see the module's examples) or the name of a preset.

    Raises SpecError (a KitError and a ValueError) for a spec that is not understood or makes no sense, and ValueError
    that names the argument for a value outside its range.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise SpecError(f"objective: expected a spec such as 'dpo(beta=0.1)', got {spec!r}")
    if spec in PRESETS:
        spec = PRESETS[spec].spec
    layers = _layers(_parse(spec), spec)
    names = [name for name, _, _ in layers]
    if names[-1] not in BASES:
        raise SpecError(
            f"{spec}: '{names[-1]}' needs a base loss inside, such as {names[-1]}(dpo, beta=0.1)"
        )
    wrappers = names[:-1]
    if wrappers.count("gamma") > 1:
        raise SpecError(f"{spec}: one dynamic margin at most")
    if "gamma" in wrappers[:-1]:
        raise SpecError(
            f"{spec}: the dynamic margin belongs to the loss; write {wrappers[-1]}(gamma({names[-1]}, ...))"
        )
    if "gamma" in wrappers:
        check_takes_margin(names[-1])
    aggregators = [name for name in wrappers if name != "gamma"]
    if len(aggregators) > 1:
        raise SpecError(
            f"{spec}: one aggregator at most, got {' and '.join(aggregators)}; each is a mean over the step"
        )
    keywords = _assign(layers, spec)
    aggregator = aggregators[0] if aggregators else "erm"
    return Objective(
        names[-1], keywords[names[-1]], aggregator, keywords.get(aggregator), keywords.get("gamma")
    )


def _parse(spec: str) -> ast.expr:
    try:
        return ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SpecError(
            f"{spec}: not a spec ({getattr(error, 'msg', error)}); expected e.g. dora(dpo, beta=0.1)"
        ) from None


def _layers(node: ast.expr, spec: str) -> list[tuple[str, dict[str, Any], bool]]:
    """(name, keywords, whether it has parentheses) from the outermost layer to the base loss; nothing is evaluated."""
    if isinstance(node, ast.Name):
        return [(_known(node.id, spec), {}, False)]
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise SpecError(f"{spec}: expected a name or name(...), got {ast.unparse(node)}")
    name = _known(node.func.id, spec)
    keywords = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in keywords:
            raise SpecError(
                f"{spec}: '{ast.unparse(keyword)}' in {name}(...) must be a keyword given once"
            )
        keywords[keyword.arg] = _literal(keyword, spec)
    if name in BASES and node.args:
        raise SpecError(
            f"{spec}: the base loss {name} takes keywords only, got {ast.unparse(node.args[0])}"
        )
    if len(node.args) > 1:
        raise SpecError(f"{spec}: {name}(...) takes one loss, got {len(node.args)}")
    return [(name, keywords, True), *(_layers(node.args[0], spec) if node.args else [])]


def _known(name: str, spec: str) -> str:
    names = (*BASES, *LAYERS)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"
    raise SpecError(f"{spec}: unknown name '{name}'{hint}")


def _literal(keyword: ast.keyword, spec: str) -> Any:
    try:
        value = ast.literal_eval(keyword.value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        value = keyword
    if value is not None and not isinstance(value, int | float | str | bool):
        raise SpecError(f"{spec}: {keyword.arg} must be a number, a text, True, False or None")
    return value


def _assign(layers: list[tuple[str, dict[str, Any], bool]], spec: str) -> dict[str, dict[str, Any]]:
    """The keywords of each layer by its name; what a layer has no use for goes to the layer inside that has.

    A keyword that a layer shares with a bare name inside it (dora's lam and cpo's lam) is refused as ambiguous.
    """
    names = [name for name, _, _ in layers]
    owned = [layer_options(name, "gamma" in names) for name in names]
    result: dict[str, dict[str, Any]] = {name: {} for name in names}
    for level, (name, keywords, _) in enumerate(layers):
        for keyword, value in keywords.items():
            homes = [inner for inner in range(level, len(layers)) if keyword in owned[inner]]
            if name in BASES and "gamma" in names and keyword in TARGETS:
                homes = [
                    names.index("gamma")
                ]  # the margin layer's mean takes the place of SimPO's constant
            if not homes:
                accepted = ", ".join(sorted({key for keys in owned[level:] for key in keys}))
                raise SpecError(
                    f"{spec}: unknown argument '{keyword}'; accepted here: {accepted or 'none'}"
                )
            if len(homes) > 1 and not (
                homes[0] == level and all(layers[inner][2] for inner in homes[1:])
            ):
                both, inside = (" and ".join(names[home] for home in homes), names[homes[-1]])
                raise SpecError(
                    f"{spec}: '{keyword}' is an argument of {both}; write {inside}({keyword}=...) inside"
                )
            if keyword in result[names[homes[0]]]:
                raise SpecError(f"{spec}: '{keyword}' of {names[homes[0]]} is given twice")
            result[names[homes[0]]][keyword] = value
    if missing := [key for key in BASES[names[-1]].required if key not in result[names[-1]]]:
        raise SpecError(f"{spec}: {names[-1]} needs {missing[0]}")
    if "gamma" in names and "tau" not in result["gamma"]:
        raise SpecError(f"{spec}: gamma needs tau")
    return result
