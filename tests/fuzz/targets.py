"""All kinds of input from outside."""

from __future__ import annotations

from tests.fuzz import checkpoints, corpora, hubs, models, records, remotes

TARGETS = (*corpora.TARGETS, *hubs.TARGETS, *models.TARGETS, *checkpoints.TARGETS, *records.TARGETS, *remotes.TARGETS)
