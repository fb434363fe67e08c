"""The ``tune`` stage: Ray Tune over the RE model's hyperparameters, into ``search.json``.

Repeated cross-validation over the human seed examples scores a trial.  The search never reads the test set, nor generated samples:
the LLM wrote these from the very seeds that a fold leaves out.  Optuna's TPE sampler proposes the values.  The first trial has the given
ones; the second adds the tuned network to them, or removes it if they have it.  ASHA (arXiv 1810.05934) stops weak trials after a repeat.
The given values stay unless the best trial is better beyond chance over the examples: the more trials, the more it must be better
(Bonferroni), since with a few examples most differences are noise.  A killed search continues with its unfinished trials.  Which trials
ASHA stops depends on their speed, so the result may differ by chance.  A trial with the network runs its folds as tasks in its placement
group, on CPUs several at a time.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import optuna
import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from scipy.stats import norm

from divray.config import Config
from divray.datasets.stage import read_relations, read_seeds
from divray.errors import DivrayError
from divray.extraction.metrics import Scorer
from divray.extraction.sets import SEARCH, usual
from divray.extraction.training import Hyperparameters, fold_of, held_out_scores, train, training_rows, untrained
from divray.relations import Example, Relation
from divray.resources import lacking, machines_there, task_gpus, worker
from divray.run_folder import RunFolder
from divray.stages import Progress

EXPERIMENT = "tune"
"""Ray Tune's own folder inside the run, there only while the search is under way."""
NETWORK_EPOCHS = 12
"""Epochs of the tuned network that a search tries beside the given ones."""
SPACE = {
    "epochs": [0, NETWORK_EPOCHS],
    "depth": (0.34, 1.0),
    "entity_weight": (0.3, 1.0),
    "words_weight": (0.2, 1.0),
    "last_weight": (0.2, 1.0),
    "shrinkage": (0.5, 0.95),
}
"""Hyperparameter -> the range to search, on a linear scale; for ``epochs``, the choices beside the given value."""

CHANCE = 0.05
"""Probability that a search in which all trials are as good leaves the given values."""
AT_ONCE, REPEATS, MAX_FAILURES = 2, 3, 3
"""Trials at the same time, and on CPUs also folds of a trial with the network; rounds of cross-validation; restarts of a trial after the
loss of its machine or process."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``search.json``: ``best`` (hyperparameters), ``score`` (of ``best``), ``metric``, and all ``trials``.

    With ``extraction.trials`` 0, or one seed a relation, it holds the usual values and no trials.
    Returns counts: ``trials``, ``stopped_early``.
    """
    given = {name: getattr(usual(config), name) for name in SPACE}
    best, trials = {**given, "score": None}, []
    if config.extraction.trials and max(Counter(seed.relation for seed in read_seeds(run)).values()) > 1:
        _Told.listener, _Told.total = on_progress, config.extraction.trials
        trials = _search(config, run, given)
        if all(trial["score"] is None for trial in trials):
            raise DivrayError(f"every trial of the hyperparameter search failed: {trials[0]['error'] if trials else 'none ran'}")
        best = chosen(trials)
        trials = [{name: value for name, value in {**trial, "chosen": trial is best}.items() if name != "right"} for trial in trials]
    found = {"best": {name: best[name] for name in SPACE}, "score": best["score"], "metric": config.task.metric, "trials": trials}
    run.write_json(SEARCH, found)
    run.delete(EXPERIMENT)
    return {"trials": len(trials), "stopped_early": sum(trial["stopped_early"] for trial in trials)}


def chosen(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The best whole trial if it beats the first, which has the given values, beyond chance (:data:`CHANCE`); else the first."""
    scored = [trial for trial in trials if trial["score"] is not None]
    whole = [trial for trial in scored if not trial["stopped_early"] and not trial["error"]]
    best, given = max(whole or scored, key=lambda trial: (trial["score"], -trial["trial"])), trials[0]
    if best is given or given["score"] is None:
        return best
    gains = np.array(best["right"]) - np.array(given["right"])
    others = sum(not trial["error"] for trial in scored if trial is not given)
    least = norm.isf(CHANCE / others)  # in standard errors of the mean gain
    return best if gains.mean() > least * gains.std() / np.sqrt(len(gains)) else given


def _search(config: Config, run: RunFolder, given: dict[str, Any]) -> list[dict[str, Any]]:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    uri = run.uri

    def trial(values: dict[str, Any]) -> None:
        own, settings = RunFolder(uri), replace(usual(config), **values)
        for repeat, (mean, right) in enumerate(cross_validated(config, settings, read_seeds(own), read_relations(own)), 1):
            tune.report({"repeat": repeat, "score": mean, "right": right})

    each = {"CPU": config.cluster.worker_cpus, "GPU": task_gpus(config)}
    folds = 1 if each["GPU"] or lacking({"": [each] * AT_ONCE}, machines_there()) else AT_ONCE
    places = {False: [each], True: [{}, *[each] * folds]}
    trainable = tune.with_resources(trial, lambda values: tune.PlacementGroupFactory(places[values["epochs"] > 0]))
    folder = run.path(EXPERIMENT)
    kinds = sorted({given["epochs"], *SPACE["epochs"]})
    other = {**given, "epochs": 0 if given["epochs"] else NETWORK_EPOCHS}
    if tune.Tuner.can_restore(folder, storage_filesystem=run.fs):
        tuner = tune.Tuner.restore(folder, trainable, resume_unfinished=True, restart_errored=True, storage_filesystem=run.fs)
    else:
        run.delete(EXPERIMENT)
        run.fs.create_dir(run.path(), recursive=True)
        tuner = tune.Tuner(
            trainable,
            param_space={name: tune.choice(kinds) if name == "epochs" else tune.uniform(*ends) for name, ends in SPACE.items()},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=config.extraction.trials,
                max_concurrent_trials=AT_ONCE,
                reuse_actors=True,
                search_alg=OptunaSearch(seed=config.seed, points_to_evaluate=[given, other]),
                scheduler=ASHAScheduler(time_attr="repeat", grace_period=1, max_t=REPEATS, reduction_factor=2),
            ),
            run_config=tune.RunConfig(
                name=EXPERIMENT,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                storage_path=run.path(),
                storage_filesystem=run.fs,
                verbose=0,
                callbacks=[_Told()],
            ),
        )
    results = tuner.fit()
    return [_outcome(number, results[number]) for number in range(len(results))]


def cross_validated(
    config: Config, settings: Hyperparameters, examples: Sequence[Example], relations: Sequence[Relation]
) -> Iterator[tuple[float, list[float]]]:
    """Yield, after each repeat, the mean main score so far, and each example's share of repeats with the right label."""
    labels = [relation.name for relation in relations]
    rows, totals, hits = training_rows(examples, relations), [], np.zeros(len(examples))
    gold = rows.targets[: len(examples)]
    scorer = Scorer([labels[number] for number in gold], labels, config.task.none_label, config.task.metric)
    if not settings.epochs:
        model = untrained(relations, config.models.encoder, settings)
        features, described = model.features(rows.examples), model.described(relations)
    for repeat in range(REPEATS):
        fold = fold_of(rows, np.random.default_rng([config.seed, repeat]).permutation(len(examples)))
        if not settings.epochs:
            scores = held_out_scores(features, rows, fold, described, settings)[: len(examples)]
            found = np.where(np.isnan(scores[:, 0]), len(labels), np.nan_to_num(scores).argmax(axis=1))
        else:
            found, answer = np.zeros(len(examples), np.int64), worker(config, gpus=True)(_answers)
            outs = [fold[: len(examples)] == number for number in np.unique(fold)]
            told = ray.get([answer.remote(config, settings, examples, relations, out) for out in outs])
            for out, numbers in zip(outs, told, strict=True):
                found[out] = numbers
        totals.append(scorer(scorer.numbered([(*labels, None)[number] for number in found])))
        hits += found == gold
        yield float(np.mean(totals)), (hits / (repeat + 1)).round(4).tolist()


def _answers(
    config: Config, settings: Hyperparameters, examples: Sequence[Example], relations: Sequence[Relation], out: np.ndarray
) -> np.ndarray:
    """The label numbers that a model trained on the other examples gives the examples that are ``out``."""
    kept = [example for example, left in zip(examples, out, strict=True) if not left]
    fitted = train(kept, relations, config.models.encoder, settings, config.seed)
    return fitted.predict([examples[row] for row in np.flatnonzero(out)]).probabilities.argmax(axis=1)


def _outcome(number: int, result: Any) -> dict[str, Any]:
    metrics = result.metrics or {}
    return {
        "trial": number,
        **{name: result.config[name] for name in SPACE},
        "score": metrics.get("score"),
        "right": metrics.get("right", []),
        "stopped_early": result.error is None and int(metrics.get("repeat", 0)) < REPEATS,
        "error": str(result.error).strip().splitlines()[-1] if result.error else "",
    }


class _Told(Callback):
    """Tells ``listener`` how many of the ``total`` trials have ended.  These are the class's own, since Tune pickles a callback."""

    listener: ClassVar[Progress | None] = None
    total: ClassVar[int] = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if listener := type(self).listener:
            listener(1 + sum(other.is_finished() for other in trials if other is not trial), self.total, "")

    on_trial_error = on_trial_complete
