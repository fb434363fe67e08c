"""Does a sentence express its relation, in its direction?  A judge made from the user's seed examples.

Two signals, each a multinomial logistic regression on frozen features (embeddings and n-grams):

``seeds``
    Fitted on the seed examples and on their reversed copies (head and tail exchanged), which stand
    as classes of their own: with them the judge learns direction from the seeds alone.
``out_of_fold``
    Fitted on the generated samples under their intended labels, each weighted by what ``seeds`` says
    of it, plus the seeds; a sample is judged by the model of the fold it was left out of, in the manner
    of confident learning (Northcutt et al. 2021, arXiv 1911.00068).

A relation whose held-out seeds do not show their direction (``spouse``) is judged without direction.
The mean of the log-odds is calibrated on the seeds, which pass through the same folds: 0.5 is where
a seed under its own label and a seed under its most tempting wrong label are equally likely.

``llm``, the LLM's own likelihood, joins where the samples carry a column ``llm_score`` in [0, 1].

On workers, :func:`sentence_features` streams over the samples in fixed chunks; one task fits a
:class:`Judge` with :func:`fit_judge`; :meth:`Judge.score` streams again.  Everything after the embeddings
is exact or rounded and fitted on sorted rows, so that the scores do not depend on how the rows were
ordered or partitioned.
"""

from __future__ import annotations

from divray.correctness.features import VIEWS, feature_texts, lexical_features, sentence_features
from divray.correctness.judge import Judge, correctness_scores, fit_judge, fitting_rows

__all__ = ["VIEWS", "Judge", "correctness_scores", "feature_texts", "fit_judge", "fitting_rows", "lexical_features", "sentence_features"]
