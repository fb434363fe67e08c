"""Exact search for near-duplicates, as a separate library: of the rest of divray it uses only the errors.

:mod:`~divray.dedup.shingle` turns texts into sets of word or character n-grams.  :mod:`~divray.dedup.propose` proposes pairs of sets,
and :mod:`~divray.dedup.verify` compares them.  :mod:`~divray.dedup.decide` groups near pairs into clusters and decides which items stay,
with the reason.  :mod:`~divray.dedup.tables` and :mod:`~divray.dedup.files` do this for tables and files.  Import what you use from
its module: the package loads none of them, since some compile code when they load.
"""
