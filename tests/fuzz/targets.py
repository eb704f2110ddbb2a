"""All kinds of input from outside."""

from __future__ import annotations

from tests.fuzz import corpora, models, records

TARGETS = (*corpora.TARGETS, *models.TARGETS, *records.TARGETS)
