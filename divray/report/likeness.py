"""How far a fresh classifier can tell a run's sentences from human ones.

Logistic regression on embeddings of the entity-masked sentences, out of fold; its AUC is 0.5 where the two look the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.report.scan import rows

if TYPE_CHECKING:
    from divray.run_folder import RunFolder

_FOLDS = 5


def likeness(run: RunFolder) -> dict[str, float]:
    """Set (``round-00``, …, ``selected``) -> AUC against the embedded human test sentences; sets with fewer than ten are left out."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    human = [row["embedding"] for row in rows(run, "data/test_embeddings", ["example_id", "embedding"])]
    names = sorted({file.split("/")[1] for file in run.files("comparison", ".parquet")} - {"naive"})
    found: dict[str, float] = {}
    for name in names:
        ids = [row["sample_id"] for row in rows(run, f"comparison/{name}", ["sample_id"])]
        own = pc.is_in(pc.field("candidate_id"), pa.array(ids, pa.string()))
        tables = sorted({file.split("/")[0] for file in run.files("") if file.startswith("round-") and "/scores/" in file})
        made = [row["embedding"] for table in tables for row in rows(run, f"{table}/scores", ["embedding"], own)]
        if min(len(human), len(made)) < 2 * _FOLDS:
            continue
        labels = np.repeat([0, 1], [len(human), len(made)])
        model = LogisticRegression(max_iter=1000, class_weight="balanced")
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
        scores = cross_val_predict(model, np.array(human + made), labels, cv=folds, method="decision_function")
        found[name] = round(float(roc_auc_score(labels, scores)), 4)
    return found


def as_finding(found: dict[str, Any]) -> list[str]:
    """The same in a sentence."""
    if not found:
        return []
    told = ", ".join(f"{name.replace('round-0', 'round ')} {value:.2f}" for name, value in found.items())
    return [f"Told from human sentences by a fresh classifier (AUC, 0.50: not at all): {told}."]
