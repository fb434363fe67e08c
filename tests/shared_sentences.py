"""Sentences on which the scores were compared with the reference packages."""

from __future__ import annotations

SHARED = [
    "the cat sat on the mat and the dog sat on the mat",
    "the cat sat on the red mat",
    "a dog ran over the mat and the cat",
    "rain fell",
    "the cat",
    "completely different words stand here today",
    "the the the the the the the",
]
