"""What a study in the toy world declares, checked before anything runs.

Its `settings` have the fields of `Settings`; each of its methods is an object with those of
`Method`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from robustpo_kit import objectives
from robustpo_kit.analysis import Contrast, Knobs, Study, knobs_of
from robustpo_kit.toy.runs import Run
from robustpo_kit.toy.setting import Setting

BASE = "base"  # the axis of cells without a further change
START = "SFT"  # the method of rows that show where all others begin
HARMS = ("contamination", "label_noise")  # what a dose sets
MEASURES = ("gold", "win_rate", "gold_valid", "win_rate_valid", "mass", "kl_reference", "proxy")
AT_KL = "gold_at_kl"  # gold where a run's path first has the divergence `equal_kl` from its start
OUTCOMES = (*MEASURES, AT_KL)
GOLDEN_LOGP = "golden_logp"  # what E log pi(golden reply) has gained since the start, nats
FURTHER = ("win", "lose", "kl_golden", GOLDEN_LOGP)  # outcomes of studies that name them


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a study in the toy world; changes of a setting are nested as `toy.setting.Setting` is."""

    world: str  # "toy"
    harm: str  # of HARMS
    tuning_seeds: Sequence[int]  # worlds that the study does not have
    tuning_doses: Sequence[float]  # a dose takes what was chosen at the nearest of these
    equal_kl: float  # nats, of the outcome AT_KL
    tie: Mapping[str, float]  # by outcome of a cell, the largest difference that does not matter
    axes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # changes
    axis_methods: Sequence[str] = ()
    axis_doses: Sequence[float] = ()
    axis_worlds: int = 8  # the first so many seeds
    setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # changes for all runs
    further: Sequence[str] = ()  # of FURTHER


@dataclasses.dataclass(frozen=True)
class Method:
    """What is trained, what of it is tuned, what it is held against."""

    spec: str  # of objectives.build, with {knob} where a knob's value stands
    h: str = "ones"  # of setting.H_SOURCES
    sft_h: str = "ones"
    against: Sequence[str] = ()  # methods that it is held against in every cell
    tries: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)  # by knob
    tuned_as: str = ""  # the method whose choice it takes, where it has no tries
    worlds: int | None = None  # the study's first so many seeds; None: all
    window: int | None = None  # prompts that its aggregator sees at once; None: the step's
    rounds: Sequence[str] = ("given",)  # of rounds.ROUNDS: what it trains on, one after the other

    def knobs(self) -> list[Knobs]:
        """Every try: a value for learning_rate and each other knob; none without `tries`."""
        return knobs_of(self.tries)

    def run(self, setting: Setting, knobs: Knobs, *, points: int = 1) -> Run:
        """The run of one try, with its `points` shared out among its rounds."""
        return Run(
            self.spec.format(**knobs),
            self.h,
            self.sft_h,
            setting,
            learning_rate=knobs["learning_rate"],
            window=self.window,
            points=max(1, points // max(1, len(self.rounds))),
            rounds=tuple(self.rounds),
            rso_beta=knobs.get("rso_beta", Run.rso_beta),
        )


@dataclasses.dataclass(frozen=True)
class Declared:
    """A study as the toy world reads it."""

    study: Study
    settings: Settings
    methods: Mapping[str, Method]

    def setting(self, seed: int, dose: float, axis: str = BASE) -> Setting:
        """One world of a cell."""
        setting = Setting(seed=seed)
        for change in (self.settings.setting, self.settings.axes.get(axis, {})):
            setting = _changed(setting, change)
        return _changed(setting, {"data": {self.settings.harm: float(dose)}})


def read(study: Study) -> Declared:
    """The declaration, checked.

    Raises:
        KitError: naming the study and the field of a setting, method or contrast that is wrong.
    """
    settings = study.fields(Settings, study.settings, "settings")
    methods = {
        name: study.fields(Method, fields, f"method '{name}'")
        for name, fields in study.methods.items()
    }
    declared = Declared(study, settings, methods)
    _check_settings(declared)
    _check_worlds(declared)
    for name in methods:
        _check_method(declared, name)
    return declared


def _one_of(study: Study, place: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise study.error(place, f"'{value}' is none of {', '.join(known)}")


def _changed(value: Any, changes: Mapping[str, Any]) -> Any:
    """A frozen dataclass with other fields; an object changes the fields of a field."""
    fields = {}
    for name, change in changes.items():
        if isinstance(change, Mapping):
            change = _changed(getattr(value, name), change)
        fields[name] = tuple(change) if isinstance(change, list) else change
    return dataclasses.replace(value, **fields)


def _check_settings(declared: Declared) -> None:
    study, settings = declared.study, declared.settings
    _one_of(study, "settings.harm", settings.harm, HARMS)
    study.check_tuning_seeds(settings.tuning_seeds, "settings.tuning_seeds")
    for field in ("tuning_seeds", "tuning_doses", "tie"):
        if not getattr(settings, field):
            raise study.error(f"settings.{field}", "needs a value at least")
    if START in declared.methods:
        raise study.error("methods", f"'{START}' names where all begin; take another name")
    if not any(method.against for method in declared.methods.values()):
        raise study.error("methods", "one at least needs `against`, what it is held against")
    for name in settings.axis_methods:
        _known(declared, name, "settings.axis_methods")
    for outcome in settings.further:
        _one_of(study, "settings.further", outcome, FURTHER)
    for outcome in (*(contrast.outcome for contrast in study.primary), *settings.tie):
        _one_of(study, "outcome", outcome, (*OUTCOMES, *settings.further))
    for contrast in study.primary:
        _check_primary(declared, contrast)


def _check_primary(declared: Declared, contrast: Contrast) -> None:
    place = f"{contrast.method} minus {contrast.baseline}"
    if set(contrast.where) != {"dose"} or set(contrast.against) != {"dose"}:
        raise declared.study.error(place, "where should name a dose, and nothing else")
    for name in (contrast.method, contrast.baseline):
        if declared.methods[name].worlds is not None:
            raise declared.study.error(place, f"'{name}' should have all worlds of the study")


def _check_worlds(declared: Declared) -> None:
    """Every world can be drawn, without drawing one."""
    settings = declared.settings
    for axis in (BASE, *settings.axes):
        for dose in (*declared.study.doses, *settings.tuning_doses, *settings.axis_doses):
            try:
                declared.setting(0, dose, axis)
            except (AttributeError, TypeError, ValueError) as error:
                place = f"dose {dose:g}, axis '{axis}'"
                raise declared.study.error(place, error) from None


def _known(declared: Declared, name: str, place: str) -> Method:
    if name not in declared.methods:
        known = ", ".join(declared.methods)
        raise declared.study.error(place, f"'{name}' is none of the methods {known}")
    return declared.methods[name]


def _check_method(declared: Declared, name: str) -> None:
    """Refuse a method that cannot run, or has more tries than another."""
    method, place = declared.methods[name], f"method '{name}'"
    for other in method.against:
        _known(declared, other, f"{place}, against")
    tuned = _known(declared, method.tuned_as or name, f"{place}, tuned_as")
    if not tuned.tries or bool(method.tries) == bool(method.tuned_as):
        said = "needs tries, or else tuned_as, a method that has tries"
        raise declared.study.error(place, said)
    budget = max(len(other.knobs()) for other in declared.methods.values())
    if len(tuned.knobs()) != budget:
        said = f"has {len(tuned.knobs())} tries, another has {budget}: give all the same number"
        raise declared.study.error(place, said)
    used = {"learning_rate", *(("rso_beta",) if "rso" in method.rounds else ())}
    for knob in method.tries:
        if knob not in used and f"{{{knob}}}" not in method.spec:
            raise declared.study.error(place, f"tries have '{knob}', which nothing takes")
    try:
        for knobs in tuned.knobs():
            objectives.build(method.run(Setting(), knobs).objective)
    except KeyError as error:
        raise declared.study.error(place, f"tries lack the knob {error}") from None
    except ValueError as error:
        raise declared.study.error(place, error) from None
