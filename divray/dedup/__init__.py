"""Near-duplicates, found exactly, as a library of its own: it needs nothing of the rest of divray but the errors.

Texts become sets of word or character n-grams (:mod:`~divray.dedup.shingle`).  Some pairs of sets are proposed
(:mod:`~divray.dedup.propose`) and compared (:mod:`~divray.dedup.verify`); near pairs make clusters, of which some items stay
(:mod:`~divray.dedup.decide`), for a reason that can be told.  :mod:`~divray.dedup.tables` and :mod:`~divray.dedup.files` do this to
tables and files.  Import what you use from its module: the package itself loads none, since some compile their kernels.
"""
