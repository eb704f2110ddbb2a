"""The steps that prepare a corpus together: one lists it, the others decode a share each.

What they leave is joined by the corpus's own step, into the same files as if it had been alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from harness.core.artifact import Resources
from harness.data.corpus import CorpusSpec
from harness.data.preparation import Share
from harness.suite import spec as base
from harness.suite.kinds import KindOf, kinds

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True, divisible=True)


class Spec(base.Spec):
    """One of these steps."""

    corpus: Annotated[CorpusSpec, KindOf("dataset")]
    version: int
    """Of the corpus's kind."""
    number: int | None = None
    """Of the share that it decodes, from 0; None: it lists the corpus."""
    of: int

    def outside(self) -> list[Path]:
        """The shares are told by the listing what the corpus consists of."""
        return self.corpus.outside() if self.number is None else []


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """List the corpus, or decode a share of what `inputs["listing"]` lists. Raises what the corpus's kind raises."""
    kind = kinds("dataset")[spec.corpus.kind]
    meta: dict[str, Any] = kind.run(spec.corpus, inputs, work, share=Share(spec.number, spec.of))
    return meta
