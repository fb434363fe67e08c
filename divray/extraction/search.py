"""The ``tune`` stage: Ray Tune over the RE model's hyperparameters, into ``search.json``.

A trial trains on the selected samples and is scored on the human seed examples after each epoch;
the test set is never read.  Optuna's TPE sampler proposes, ASHA (arXiv 1810.05934) stops weak trials
early.  A killed search goes on with the trials that it had not finished.  With more than one trial at
a time, which ones ASHA stops depends on their speed; ``cluster.concurrent_trials=1`` repeats exactly.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from divray.config import Config
from divray.errors import DivrayError
from divray.extraction.inputs import SEARCH, SEEDS, SELECTED, examples_of, labels_of, types_usable
from divray.runs import RunFolder

EXPERIMENT = "tune"
"""Ray Tune's own folder inside the run, there only while the search is under way."""

SEARCHED = ("learning_rate", "epochs", "dropout")

Progress = Callable[[int, int], None]
"""Called with (trials finished, trials in all)."""

_listeners: list[Progress] = []


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``search.json``: ``best`` (hyperparameters), ``score`` (its own), ``metric``, and all ``trials``.

    With ``extraction.search.trials`` 0 it holds the config's own values and no trials.

    Returns:
        Counts: ``trials``, ``stopped_early``.
    """
    count = config.extraction.search.trials
    if not count:
        own = {name: getattr(config.extraction, name) for name in SEARCHED}
        run.write_json(SEARCH, {"best": own, "score": None, "metric": config.task.metric, "trials": []})
        return {"trials": 0, "stopped_early": 0}
    _listeners[:] = [on_progress] if on_progress else []
    trials = _search(config, run)
    scored = [trial for trial in trials if trial["score"] is not None]
    if not scored:
        raise DivrayError(f"every trial of the hyperparameter search failed: {trials[0]['error'] if trials else 'none ran'}")
    best = max(scored, key=lambda trial: (not trial["stopped_early"], trial["score"], -trial["trial"]))
    run.write_json(
        SEARCH, {"best": {name: best[name] for name in SEARCHED}, "score": best["score"], "metric": config.task.metric, "trials": trials}
    )
    run.delete(EXPERIMENT)
    return {"trials": len(trials), "stopped_early": sum(trial["stopped_early"] for trial in trials)}


def _search(config: Config, run: RunFolder) -> list[dict[str, Any]]:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    space = config.extraction.search
    uri = run.uri

    def trial(values: dict[str, Any]) -> None:
        _trial(config, uri, values)

    trainable = tune.with_resources(trial, {"cpu": config.cluster.worker_cpus})
    folder = run.path(EXPERIMENT)
    if tune.Tuner.can_restore(folder, storage_filesystem=run.fs):
        tuner = tune.Tuner.restore(folder, trainable, resume_unfinished=True, restart_errored=True, storage_filesystem=run.fs)
    else:
        run.delete(EXPERIMENT)
        run.fs.create_dir(run.path(), recursive=True)
        tuner = tune.Tuner(
            trainable,
            param_space={
                "learning_rate": tune.loguniform(*space.learning_rate),
                "epochs": tune.randint(space.epochs[0], space.epochs[1] + 1),
                "dropout": tune.uniform(*space.dropout),
            },
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=space.trials,
                max_concurrent_trials=config.cluster.concurrent_trials,
                search_alg=OptunaSearch(seed=config.seed),
                scheduler=ASHAScheduler(
                    time_attr="epoch", grace_period=max(1, space.epochs[0] // 2), max_t=space.epochs[1], reduction_factor=2
                ),
            ),
            run_config=tune.RunConfig(
                name=EXPERIMENT,
                storage_path=run.path(),
                storage_filesystem=run.fs,
                verbose=0,
                callbacks=[_told(space.trials)],
            ),
        )
    results = tuner.fit()
    return [_outcome(number, results[number]) for number in range(len(results))]


def _trial(config: Config, uri: str, values: dict[str, Any]) -> None:
    from ray import tune

    from divray.extraction.metrics import main_score, score
    from divray.extraction.model import RelationExtractor
    from divray.extraction.training import train

    run = RunFolder(uri)
    examples, human, labels = examples_of(run, [SELECTED]), examples_of(run, [SEEDS]), labels_of(run)
    gold = [example.relation for example in human]

    def report(epoch: int, model: RelationExtractor) -> None:
        scores = score(gold, model.predict(human).labels, labels, config.task.none_label, config.task.metric)
        tune.report({"epoch": epoch, "score": main_score(scores, config.task.metric)})

    settings = config.extraction.model_copy(update=values)
    train(examples, labels, config.models.encoder, settings, config.seed, types_usable(examples, human), report)


def _outcome(number: int, result: Any) -> dict[str, Any]:
    metrics = result.metrics or {}
    epochs = int(metrics.get("epoch", 0))
    return {
        "trial": number,
        **{name: result.config[name] for name in SEARCHED},
        "score": metrics.get("score"),
        "epochs_done": epochs,
        "stopped_early": result.error is None and epochs < result.config["epochs"],
        "error": str(result.error).strip().splitlines()[-1] if result.error else "",
    }


def _told(total: int) -> Any:
    from ray.tune import Callback

    class Told(Callback):
        """Tells the listener how many trials have come to an end."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            for listener in _listeners:
                listener(1 + sum(other.is_finished() for other in trials if other is not trial), total)

        on_trial_error = on_trial_complete

        def __reduce__(self) -> Any:  # Tune pickles callbacks into its folder; a listener need not be picklable
            return _told, (total,)

    return Told()
