"""The one door to Optuna: which sample a sweep tries next, whether a trial is to stop early, what mattered.

Nothing of Optuna's is kept between two questions: each time, a study is made in memory from the trials on record. So
no two hosts append to one journal, none has to be repaired after a crash, and the same records get the same answer
(but for a sampler's own memory, which CMA-ES has: it is written down with each sample).
"""

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from gptjobs.errors import Refused
from gptjobs.sweep import ASHA, CMAES, HYPERBAND, MEDIAN, RANDOM, TPE, UNITS, Dimension, Sweep, Trial
from gptjobs.trials import Tried

optuna.logging.set_verbosity(optuna.logging.ERROR)

FACTOR = 3
"""of ASHA and Hyperband: one in so many goes on from each rung to the next, which is so many times as long (ASHA: Li et
al. 2020); with 4, and sixteen units, the best of a grid was stopped at the first rung"""
_RUNGS = (ASHA, HYPERBAND)
_MEDIAN_FROM = 4
"""trials that are whole, before a median of theirs stops others"""


def suggest(sweep: Sweep, tried: Sequence[Tried]) -> Trial:
    """The next trial of a sweep whose points are not fixed."""
    study = _study(sweep, tried, _sampler(sweep, tried))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samplers, that they draw the first samples by chance
        chosen = study.ask({each.name: _distribution(each) for each in sweep.dimensions})
    attrs = study.get_trials(deepcopy=False)[chosen.number].system_attrs
    return Trial(number=chosen.number, params=chosen.params, attrs={**attrs})


def _sampler(sweep: Sweep, tried: Sequence[Tried]) -> optuna.samplers.BaseSampler:
    """With a seed of its own for each trial, so that asked again it answers alike."""
    seed = int.from_bytes(hashlib.sha256(f"{sweep.seed}/{len(tried)}".encode()).digest()[:4])
    if sweep.sampler == RANDOM:
        return optuna.samplers.RandomSampler(seed=seed)
    if sweep.sampler == TPE:
        return optuna.samplers.TPESampler(seed=seed)
    assert sweep.sampler == CMAES
    for each in tried:
        _check_memory(each.trial)
    try:
        import cmaes  # noqa: F401
    except ModuleNotFoundError:
        raise Refused("CMA-ES needs the package cmaes on this host", hint="pip install 'gptjobs[worker]'") from None
    return optuna.samplers.CmaEsSampler(seed=seed)


_OF_CMAES = {
    ("cmaes._cma", "CMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
"""what the pickle that CMA-ES keeps its memory in is made of"""


def _check_memory(trial: Trial) -> None:
    """Raise Refused where a trial's file would have Optuna unpickle something else: it lies where others can write."""
    words = [(name.rpartition(":")[2], value) for name, value in trial.attrs.items() if ":optimizer:" in name]
    if not words:
        return
    content = "".join(value for _, value in sorted(words, key=lambda each: int(each[0])))
    try:
        _Known(io.BytesIO(bytes.fromhex(content))).load()
    except (ValueError, TypeError, EOFError, AttributeError, IndexError, pickle.UnpicklingError) as error:
        raise Refused(f"trial {trial.number} has a sampler's memory that is none: {error}") from error


class _Known(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _OF_CMAES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _distribution(each: Dimension) -> BaseDistribution:
    if each.choices:
        return CategoricalDistribution(each.choices)
    if each.is_whole:
        return IntDistribution(int(each.low), int(each.high), log=each.log)
    return FloatDistribution(each.low, each.high, log=each.log)


def is_to_stop(sweep: Sweep, tried: Sequence[Tried], number: int) -> bool:
    """Whether the pruner stops a trial at its newest evaluation."""
    count = len(tried[number].by_unit())
    return bool(count) and _stops(sweep, tried, _all_rungs(sweep, tried), number, count)


def can_be_let_go_on(sweep: Sweep, tried: Sequence[Tried]) -> list[Tried]:
    """Trials that were stopped at a rung, and would be at none of theirs any more, as others have come since that did
    worse."""
    pruned = [each for each in tried if each.is_pruned] if sweep.pruner in _RUNGS else []
    rungs = _all_rungs(sweep, tried) if pruned else {}
    return [
        each
        for each in pruned
        if not any(_stops(sweep, tried, rungs, each.trial.number, count) for count in range(1, 1 + len(each.by_unit())))
    ]


def _stops(
    sweep: Sweep, tried: Sequence[Tried], rungs: Mapping[int, Mapping[str, Any]], number: int, count: int
) -> bool:
    """Whether the pruner stops a trial at its `count`-th evaluation, having let it go on from those before."""
    judged = tried[number]
    attrs = {**rungs, number: _rungs(sweep, judged, count - 1)}
    study = _study(sweep, tried, optuna.samplers.RandomSampler(), attrs, going_on=number)
    trial = study.get_trials(deepcopy=False)[number]
    trial.intermediate_values = dict(list(judged.by_unit().items())[:count])
    return _pruner(sweep).prune(study, trial)


def _all_rungs(sweep: Sweep, tried: Sequence[Tried]) -> dict[int, Mapping[str, Any]]:
    return {each.trial.number: _rungs(sweep, each, len(each.by_unit())) for each in tried}


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    if sweep.pruner == MEDIAN:
        return optuna.pruners.MedianPruner(n_startup_trials=_MEDIAN_FROM)
    if sweep.pruner == ASHA:
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR)
    if sweep.pruner == HYPERBAND:
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=UNITS, reduction_factor=FACTOR)
    return optuna.pruners.NopPruner()


def _rungs(sweep: Sweep, tried: Tried, count: int) -> Mapping[str, Any]:
    """What the pruner notes of a trial that it let go on until its `count`-th evaluation: the values at its rungs.
    Made by asking of each in turn, of a trial that has no others beside it, which always goes on."""
    if sweep.pruner not in _RUNGS or not count:
        return {}
    alone = optuna.create_study(study_name=sweep.id)
    alone.add_trial(_frozen(sweep, tried, {}, is_open=True))
    pruner = _pruner(sweep)
    for until in range(1, count + 1):
        trial = alone.get_trials()[0]
        trial.number = tried.trial.number
        trial.intermediate_values = dict(list(tried.by_unit().items())[:until])
        pruner.prune(alone, trial)
    return alone.get_trials()[0].system_attrs


def _study(
    sweep: Sweep, tried: Sequence[Tried], sampler: optuna.samplers.BaseSampler,
    attrs: Mapping[int, Mapping[str, Any]] | None = None, going_on: int | None = None,
) -> optuna.Study:  # fmt: skip
    """One with the trials on record; the sampler's notes of them, and a pruner's (`attrs`)."""
    study = optuna.create_study(study_name=sweep.id, sampler=sampler)
    for each in tried:
        number = each.trial.number
        noted = {**each.trial.attrs, **(attrs or {}).get(number, {})}
        study.add_trial(_frozen(sweep, each, noted, is_open=number == going_on))
    return study


def _frozen(sweep: Sweep, tried: Tried, attrs: Mapping[str, Any], *, is_open: bool) -> FrozenTrial:
    """A trial as Optuna knows one. What failed, diverged or was cancelled has failed; `is_open` is one that is
    asked about."""
    searched = {each.name: each for each in sweep.dimensions}
    params = {name: value for name, value in tried.trial.params.items() if name in searched}
    last = tried.last
    if tried.goes_on or is_open:
        state, value = TrialState.RUNNING, None
    elif tried.is_pruned and last is not None:
        state, value = TrialState.PRUNED, last.val_loss
    elif tried.is_whole and last is not None:
        state, value = TrialState.COMPLETE, last.val_loss
    else:
        state, value = TrialState.FAIL, None
    return create_trial(
        state=state,
        value=value,
        params=params,
        distributions={name: _distribution(searched[name]) for name in params},
        system_attrs=dict(attrs),
        intermediate_values=tried.by_unit(),
    )


def importances(sweep: Sweep, tried: Sequence[Tried]) -> dict[str, float]:
    """How much of the difference between the trials each hyperparameter accounts for, summing to 1, the largest first
    (PED-ANOVA, Watanabe et al. 2023); empty where too few trials are whole to say."""
    study = _study(sweep, [each for each in tried if each.is_whole], optuna.samplers.RandomSampler())
    if len(sweep.dimensions) < 2 or len(study.get_trials(deepcopy=False)) < 2 * len(sweep.dimensions):
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
    try:
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all alike, or none that differ
        return {}
