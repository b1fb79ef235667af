"""Objectives: one base loss, perhaps with dynamic target margins, under one aggregator, built from a spec.

    build("dpo(beta=0.1)")                                                     erm is the default aggregator
    build("dora(dpo_pl, beta=0.1, lam=1.0)")                                   flat: each keyword finds its layer
    build("dora(gamma(simpo(beta=10), gamma_beta_ratio=0.4, tau=10), lam=1)")  nested: the same, said in full
    build("hh/dora_dpo_pl")                                                    a preset with the papers' hyperparameters

What trains the model sees only `Objective`: what it needs, whether its samples are coupled, and `step_loss`.
"""

import ast
import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustpo_kit import losses, margins, robust
from robustpo_kit.losses import Scores
from robustpo_kit.records import KitError


class SpecError(KitError, ValueError):
    """A spec that is not understood, or a combination that makes no sense; the message says why."""


class StepLoss(NamedTuple):
    """What an objective makes of one optimizer step."""

    loss: Tensor  # scalar, differentiable in scores.logps
    per_sample: Tensor  # [B]
    weights: Tensor  # [B] d loss / d per_sample, detached
    metrics: dict[str, Tensor]  # scalars, detached


@dataclasses.dataclass(frozen=True)
class Base:
    """What a base loss needs of its scores; `gap` is the reward gap for a dynamic margin, None = it takes none."""

    loss: Callable[..., Tensor]
    responses: str  # "pair" | "list" | "one"
    needs_reference: bool = True
    needs_rewards: bool = False
    gap: Callable[..., Tensor] | None = None
    coupled: bool = False  # a sample's value depends on the other samples of the step
    extra: tuple[str, ...] = ()  # options of the objective's own, such as the seed of a generator

    @property
    def options(self) -> tuple[str, ...]:
        """The keywords a spec may give."""
        return (*(name for name in inspect.signature(self.loss).parameters if name not in SUPPLIED), *self.extra)

    @property
    def required(self) -> tuple[str, ...]:
        """The keywords a spec must give."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty and p.name not in SUPPLIED)


SUPPLIED = ("scores", "margin", "state", "generator", "training")  # arguments of losses that the objective fills in


BASES = {
    "dpo": Base(losses.dpo, "pair", gap=losses.dpo_gap),
    "cdpo": Base(losses.cdpo, "pair", gap=losses.dpo_gap),
    "rdpo": Base(losses.rdpo, "pair", gap=losses.dpo_gap),
    "r_dpo_length": Base(losses.r_dpo_length, "pair", gap=losses.dpo_gap),
    "ipo": Base(losses.ipo, "pair"),
    "exo": Base(losses.exo, "pair"),
    "simpo": Base(losses.simpo, "pair", needs_reference=False, gap=losses.simpo_gap),
    "cpo": Base(losses.cpo, "pair", needs_reference=False),
    "orpo": Base(losses.orpo, "pair", needs_reference=False),
    "kto": Base(losses.kto, "pair", coupled=True),
    "kto_pair": Base(losses.kto_pair, "pair", coupled=True),
    "beta_dpo": Base(losses.beta_dpo, "pair", coupled=True, extra=("momentum", "seed")),
    "dpo_pl": Base(losses.dpo_pl, "list", needs_rewards=True),
    "rrhf": Base(losses.rrhf, "list", needs_reference=False, needs_rewards=True),
    "lire": Base(losses.lire, "list", needs_reference=False, needs_rewards=True),
    "sft": Base(losses.sft, "one", needs_reference=False),
}
AGGREGATOR_OPTIONS = {
    "erm": ("loss_shift",),
    "reweight": ("loss_shift", "normalise_h"),
    "dro": ("lam", "loss_shift"),
    "dora": ("lam", "loss_shift", "normalise_h"),
    "dora_outside": ("lam", "loss_shift", "normalise_h"),
    "dr_dpo": ("lam", "loss_shift"),
}
TARGETS = ("gamma0", "gamma_beta_ratio")
MARGIN_OPTIONS = (*TARGETS, "tau", "solver", "steps", "center", "capacity", "solve_size", "seed", "parity")
LAYERS = (*AGGREGATOR_OPTIONS, "gamma")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published setting. `learning_rates` by base model; empty where the paper states none."""

    spec: str
    task: str
    learning_rates: dict[str, float]
    batch_size: int
    source: str


_PAIR_RATES = {"mistral-7b-v0.1": 3e-7, "llama-3.1-8b": 6e-7}
_LIST_RATES = {"mistral-7b-v0.1": 2e-5, "llama-3.1-8b": 4e-5}  # LoRA
_DORA_TABLE_8 = {  # task: base loss, learning rates; UltraFeedback: full fine-tuning, rate not stated
    "hh": (
        ("dpo(beta=0.1)", _PAIR_RATES),
        ("r_dpo_length(alpha=0.01, beta=0.1)", _PAIR_RATES),
        ("exo(beta=0.5)", _PAIR_RATES),
        ("simpo(beta=2.0, gamma0=0.8)", _PAIR_RATES),
        ("dpo_pl(beta=0.1)", _LIST_RATES),
        ("rrhf(alpha=1.0)", _LIST_RATES),
        ("lire(temperature=2.0)", _LIST_RATES),
    ),
    "summarization": (
        ("dpo_pl(beta=0.5)", _LIST_RATES),
        ("rrhf(alpha=0.5)", _LIST_RATES),
        ("lire(temperature=1.0)", _LIST_RATES),
    ),
    "ultrafeedback": (("dpo_pl(beta=0.1)", {}), ("rrhf(alpha=1.0)", {}), ("lire(temperature=2.0)", {})),
}
_GAMMA_PO_TABLE_7 = {  # setting: beta, gamma/beta ratio, tau, learning rate; the table's "gamma" is the ratio
    "llama3-8b-instruct": (10.0, 0.4, 10.0, 1e-6),
    "mistral-7b-instruct": (2.5, 0.15, 10.0, 6e-7),
    "gemma-2-9b-it": (10.0, 0.5, 20.0, 8e-7),
    "qwen2.5-7b-instruct": (10.0, 0.3, 3.0, 1e-6),
}
# Hyperparameters gamma-PO searched for its baselines (Table 6). Its "rDPO" is our cdpo by Eq. 5 and, up to a constant,
# our rdpo by the sign printed in the table.
SEARCH_RANGES: dict[str, dict[str, tuple[float, ...]]] = {
    "dpo": {"beta": (0.01, 0.05, 0.1)},
    "ipo": {"tau": (0.01, 0.1, 0.5, 1.0)},
    "cpo": {"beta": (0.01, 0.05, 0.1), "lam": (1.0,)},
    "kto": {"beta": (0.01, 0.05, 0.1), "weight_chosen": (1.0,), "weight_rejected": (1.0,)},
    "orpo": {"lam": (0.1, 0.5, 1.0, 2.0)},
    "r_dpo_length": {"beta": (0.01, 0.05, 0.1), "alpha": (0.05, 0.1, 0.5, 1.0)},
    "cdpo": {"beta": (0.01, 0.05, 0.1), "epsilon": (0.01, 0.05, 0.1)},
    "rdpo": {"beta": (0.01, 0.05, 0.1), "epsilon": (0.01, 0.05, 0.1)},
    "simpo": {"beta": (2.5, 5.0, 10.0), "gamma_beta_ratio": (0.3, 0.4, 0.5, 1.0)},
    "beta_dpo": {"beta": (0.01, 0.05, 0.1), "alpha": (0.01, 0.05, 0.1, 0.2)},
}


def _presets() -> dict[str, Preset]:
    """Every published setting by name: TASK/LOSS, TASK/dora_LOSS, MODEL/simpo, MODEL/gamma_simpo."""
    found = {}
    for task, rows in _DORA_TABLE_8.items():
        for spec, rates in rows:
            name = spec.partition("(")[0]
            source = "DoRA Table 8 and App. C.3"
            found[f"{task}/{name}"] = Preset(spec, task, rates, 32, source)
            robust_spec = f"dora({spec}, lam=1.0)"
            found[f"{task}/dora_{name}"] = Preset(robust_spec, task, rates, 32, f"{source}; lam = 1 from Fig. 5")
    for model, (beta, ratio, tau, rate) in _GAMMA_PO_TABLE_7.items():
        base = f"simpo(beta={beta}, gamma_beta_ratio={ratio})"
        layer = f"gamma(simpo(beta={beta}), gamma_beta_ratio={ratio}, tau={tau})"
        source = "gamma-PO Table 7 and App. B"
        found[f"{model}/gamma_simpo"] = Preset(layer, "ultrafeedback", {model: rate}, 128, source)
        found[f"{model}/simpo"] = Preset(
            base, "ultrafeedback", {model: rate}, 128, f"{source}, with the margin constant"
        )
    return found


PRESETS = _presets()


class Objective:
    """A base loss (+ dynamic margin) (+ aggregator); `build` makes one from a spec.

    Attributes: `spec` (canonical: building it gives the same objective), `base`, `aggregator`, `margin` (None or the
    gamma layer's options), `responses` "pair" | "list" | "one", `needs_reference`, `needs_rewards`, `needs_h`,
    `needs_kl`, and `coupling`: "separable" if the loss is a mean over samples with weights known beforehand, so that
    micro-batches can be backpropagated one by one; "log_sum_exp" if the step's gradient is a mean of its parts'
    gradients with weights known at the end (`log_mass`); "step" if it needs all samples of the optimizer step at once.
    """

    def __init__(
        self,
        base: str,
        options: dict[str, Any],
        aggregator: str = "erm",
        aggregation: dict[str, Any] | None = None,
        margin: dict[str, Any] | None = None,
    ) -> None:
        self.base, self.options = base, dict(options)
        self.aggregator, self.aggregation = aggregator, dict(aggregation or {})
        self.margin = None if margin is None else dict(margin)
        needs = BASES[base]
        self.responses = needs.responses
        self.needs_reference = needs.needs_reference
        self.needs_rewards = needs.needs_rewards
        self.needs_h = aggregator in robust.NEEDS_H
        self.needs_kl = base == "kto"
        _refuse_nonsense(self)
        self._queue = self._beta_state = self._generator = None
        if base == "beta_dpo":
            self._generator = torch.Generator().manual_seed(_seed(self.options))
            self._beta_state = losses.BetaState(**_pick(self.options, "momentum"))
        if self.margin is not None:
            self._prepare_margin()
        self._check_arguments()

    @property
    def coupling(self) -> str:
        """ "separable", "log_sum_exp" or "step"; see the class."""
        if self.margin is not None or BASES[self.base].coupled or self.aggregation.get("normalise_h", "none") != "none":
            return "step"
        return robust.COUPLING[self.aggregator]

    def log_mass(self, loss: Tensor, count: int) -> Tensor:
        """log sum exp over a part's `count` samples from the part's loss: its weight in the step's gradient, unscaled.

        For parts S and T of a "log_sum_exp" step, grad f(S + T) is the mean of grad f(S) and grad f(T) weighted by
        exp(log_mass), as lam * log-mean-exp (DoRA Eq. 9) is differentiated.
        """
        return robust.log_mass(loss, count, kind=self.aggregator, lam=self.aggregation.get("lam", 1.0))

    @property
    def stateful(self) -> bool:
        """Whether steps change the objective: a gap queue or a moving average."""
        return self._queue is not None or self._beta_state is not None

    @property
    def spec(self) -> str:
        """The canonical spec, every layer's keywords in its own parentheses."""
        text = _call(self.base, None, self.options)
        if self.margin is not None:
            text = _call("gamma", text, self.margin)
        if self.aggregator != "erm" or self.aggregation:
            text = _call(self.aggregator, text, self.aggregation)
        return text

    def __repr__(self) -> str:
        return f"<Objective {self.spec}: {self.responses}, {self.coupling}>"

    def step_loss(self, scores: Scores, h: Tensor | None = None, *, training: bool = True) -> StepLoss:
        """The loss of a step from the scores of *all* its samples, with h [B] where `needs_h`.

        `training=False` reads the gap queue and the moving averages without changing them.
        Raises ValueError that names the field or argument that is missing, misshapen or not finite.
        """
        if self.needs_h and h is None:
            raise ValueError(f"h: '{self.aggregator}' needs the calibration factor of every sample, got None")
        margin = self._margins(scores, training)
        per_sample = self._per_sample(scores, margin, training)
        arguments = {"kind": self.aggregator, **self.aggregation}
        h = h if self.needs_h else None
        loss = robust.aggregate(per_sample, h, **arguments)
        weights = robust.weights(per_sample, h, **arguments)
        return StepLoss(loss, per_sample, weights, self._metrics(scores, per_sample, weights, h, margin))

    def state_dict(self) -> dict[str, Any]:
        """Queue, moving averages and generators as tensors and numbers; empty for stateless objectives."""
        state: dict[str, Any] = {}
        if self._queue is not None:
            state |= {f"queue.{name}": value for name, value in self._queue.state_dict().items()}
        if self._beta_state is not None:
            state |= {f"beta.{name}": value for name, value in self._beta_state.state_dict().items()}
            state["beta.generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises ValueError for entries that are missing or of another objective."""
        expected = set(self.state_dict())
        if wrong := sorted(expected.symmetric_difference(state)):
            raise ValueError(f"state: entry '{wrong[0]}' does not fit {self.spec}")
        if self._queue is not None:
            self._queue.load_state_dict(_section(state, "queue."))
        if self._beta_state is not None:
            section = _section(state, "beta.")
            self._generator.set_state(torch.as_tensor(section.pop("generator"), dtype=torch.uint8).cpu())
            self._beta_state.load_state_dict(section)

    def _prepare_margin(self) -> None:
        """The queue and the solver's arguments of a gamma layer; centred by default, except over SimPO."""
        layer, parity = self.margin, self.margin.get("parity")
        self.gamma0 = losses.target_gamma0(beta=self.options["beta"], **_pick(layer, *TARGETS))
        sizes = _pick(layer, "capacity", "solve_size")
        generator = torch.Generator().manual_seed(_seed(layer))
        self._queue = margins.GapQueue(**sizes, generator=generator, parity=parity)
        self._solver = _pick(layer, "tau", "solver", "steps", "parity")
        self._center = layer.get("center", self.base != "simpo")
        if self._center is not True and self._center is not False:
            raise ValueError(f"center: must be True or False, got {self._center!r}")

    def _margins(self, scores: Scores, training: bool) -> Tensor | None:
        """Dynamic target margins [B] of the step, or None."""
        if self.margin is None:
            return None
        gaps = BASES[self.base].gap(scores, beta=self.options["beta"]).detach()
        return margins.dynamic_margins(
            gaps, self._queue, gamma0=self.gamma0, center=self._center, training=training, **self._solver
        )

    def _per_sample(self, scores: Scores, margin: Tensor | None, training: bool) -> Tensor:
        arguments = _pick(self.options, *inspect.signature(BASES[self.base].loss).parameters)
        if margin is not None:
            arguments["margin"] = margin
        if self._beta_state is not None:
            arguments |= {"state": self._beta_state, "generator": self._generator, "training": training}
        return BASES[self.base].loss(scores, **arguments)

    @torch.no_grad()
    def _metrics(
        self, scores: Scores, per_sample: Tensor, weights: Tensor, h: Tensor | None, margin: Tensor | None
    ) -> dict[str, Tensor]:
        """Scalars of the whole step for the log."""
        found = {
            "loss_mean": per_sample.mean(),
            "ess": robust.effective_sample_size(weights),
            "max_weight": weights.max() / weights.sum().clamp(min=1e-30),
            "weight_sum": weights.sum(),
            "logps_chosen": scores.logps[:, 0].mean(),
        }
        if self.needs_reference:
            found["chosen_shift"] = (scores.logps - scores.ref_logps)[:, 0].mean()
        if self.responses != "one":
            found["accuracy"] = self._accuracy(scores)
        if self.responses == "pair":
            found["gap_mean"] = (self._implicit(scores)[:, 0] - self._implicit(scores)[:, 1]).mean()
        if h is not None:
            found["h_mean"] = h.mean()
            found["corr_h_weight"] = _correlation(h, weights)
        if margin is not None:
            total = margin + self.gamma0 if self._center else margin
            found |= {"gamma_min": total.min(), "gamma_max": total.max(), "margin_mean": total.mean()}
        return {name: value.detach() for name, value in found.items()}

    def _implicit(self, scores: Scores) -> Tensor:
        """The policy's own score of each response [B, K]: r_k with a reference, else the mean log-probability."""
        return scores.logps - scores.ref_logps if self.needs_reference else losses.mean_logps(scores)

    def _accuracy(self, scores: Scores) -> Tensor:
        """Share of samples whose best response (chosen, or highest reward) has the highest implicit score."""
        implicit = self._implicit(scores)
        real = torch.ones_like(implicit, dtype=torch.bool) if scores.mask is None else scores.mask
        if self.responses == "pair":
            return (implicit[:, 0] > implicit[:, 1]).to(implicit.dtype).mean()
        best = scores.rewards.masked_fill(~real, -math.inf).argmax(dim=-1)
        return (implicit.masked_fill(~real, -math.inf).argmax(dim=-1) == best).to(implicit.dtype).mean()

    def _check_arguments(self) -> None:
        """Run one toy step, so that a bad argument is refused when the objective is built and not an epoch later."""
        logps = torch.tensor([[-2.0, -3.0]], dtype=torch.float64)
        toy = Scores(logps, logps - 0.5, torch.tensor([[2, 3]]), logps, None, logps[:, 0], logps[:, 0])
        self.step_loss(toy, torch.ones(1, dtype=torch.float64), training=False)


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
        raise SpecError(f"{spec}: '{names[-1]}' needs a base loss inside, such as {names[-1]}(dpo, beta=0.1)")
    wrappers = names[:-1]
    if wrappers.count("gamma") > 1:
        raise SpecError(f"{spec}: one dynamic margin at most")
    if "gamma" in wrappers[:-1]:
        raise SpecError(
            f"{spec}: the dynamic margin belongs to the loss; write {wrappers[-1]}(gamma({names[-1]}, ...))"
        )
    if "gamma" in wrappers:
        _check_takes_margin(names[-1])
    aggregators = [name for name in wrappers if name != "gamma"]
    if len(aggregators) > 1:
        raise SpecError(
            f"{spec}: one aggregator at most, got {' and '.join(aggregators)}; each is a mean over the step"
        )
    keywords = _assign(layers, spec)
    aggregator = aggregators[0] if aggregators else "erm"
    return Objective(names[-1], keywords[names[-1]], aggregator, keywords.get(aggregator), keywords.get("gamma"))


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
            raise SpecError(f"{spec}: '{ast.unparse(keyword)}' in {name}(...) must be a keyword given once")
        keywords[keyword.arg] = _literal(keyword, spec)
    if name in BASES and node.args:
        raise SpecError(f"{spec}: the base loss {name} takes keywords only, got {ast.unparse(node.args[0])}")
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
    owned = [_options(name, "gamma" in names) for name in names]
    result: dict[str, dict[str, Any]] = {name: {} for name in names}
    for level, (name, keywords, _) in enumerate(layers):
        for keyword, value in keywords.items():
            homes = [inner for inner in range(level, len(layers)) if keyword in owned[inner]]
            if name in BASES and "gamma" in names and keyword in TARGETS:
                homes = [names.index("gamma")]  # the margin layer's mean takes the place of SimPO's constant
            if not homes:
                accepted = ", ".join(sorted({key for keys in owned[level:] for key in keys}))
                raise SpecError(f"{spec}: unknown argument '{keyword}'; accepted here: {accepted or 'none'}")
            if len(homes) > 1 and not (homes[0] == level and all(layers[inner][2] for inner in homes[1:])):
                both, inside = (" and ".join(names[home] for home in homes), names[homes[-1]])
                raise SpecError(f"{spec}: '{keyword}' is an argument of {both}; write {inside}({keyword}=...) inside")
            if keyword in result[names[homes[0]]]:
                raise SpecError(f"{spec}: '{keyword}' of {names[homes[0]]} is given twice")
            result[names[homes[0]]][keyword] = value
    if missing := [key for key in BASES[names[-1]].required if key not in result[names[-1]]]:
        raise SpecError(f"{spec}: {names[-1]} needs {missing[0]}")
    if "gamma" in names and "tau" not in result["gamma"]:
        raise SpecError(f"{spec}: gamma needs tau")
    return result


def _options(name: str, under_gamma: bool) -> tuple[str, ...]:
    """The keywords of a layer; under a dynamic margin SimPO has no constant of its own."""
    if name == "gamma":
        return MARGIN_OPTIONS
    if name in AGGREGATOR_OPTIONS:
        return AGGREGATOR_OPTIONS[name]
    return tuple(key for key in BASES[name].options if not (under_gamma and key in TARGETS))


def _check_takes_margin(base: str) -> None:
    if BASES[base].gap is None:
        takers = ", ".join(name for name, entry in BASES.items() if entry.gap)
        raise SpecError(f"gamma({base}): {base} has no target margin on a pairwise reward gap; gamma takes {takers}")


def _refuse_nonsense(objective: Objective) -> None:
    """Combinations that run but mean nothing."""
    base, aggregator = objective.base, objective.aggregator
    if objective.margin is not None:
        _check_takes_margin(base)
    if base == "beta_dpo" and objective.options.get("keep", 1.0) < 1 and aggregator != "erm":
        raise SpecError(
            f"{aggregator}(beta_dpo(keep=...)): the filter sets dropped samples to a loss of 0, which {aggregator} "
            "would weigh as if they were good; use keep=1.0 or erm"
        )
    if base in ("kto", "kto_pair") and aggregator == "dr_dpo":
        raise SpecError(
            f"dr_dpo({base}): Dr.DPO's soft minimum is derived for log-losses of pairs; use it with dpo and kin"
        )


def _call(name: str, inside: str | None, keywords: dict[str, Any]) -> str:
    parts = ([inside] if inside else []) + [f"{key}={value!r}" for key, value in sorted(keywords.items())]
    return f"{name}({', '.join(parts)})"


def _pick(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _seed(options: dict[str, Any]) -> int:
    seed = options.get("seed", 0)
    if type(seed) is not int:
        raise ValueError(f"seed: must be a whole number, got {seed!r}")
    return seed


def _section(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation; 0 where either is constant."""
    x, y = (x - x.mean()).to(y.dtype), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return torch.where(scale > 0, (x * y).sum() / scale.clamp(min=torch.finfo(y.dtype).tiny), 0.0)
