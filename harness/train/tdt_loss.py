"""The loss of token-and-duration transducers (TDT) where there is no CUDA.

NeMo 3.0 has it as a CUDA kernel alone: on a CPU it says "not yet implemented for non CUDA computation", and its
`tdt_pytorch` calls `.cuda()`. transformers' `tdt_loss` gives the same numbers, but goes back through every cell of the
lattice, which takes longer than the whole of a small model. Source: Xu et al. 2023, https://arxiv.org/abs/2304.06795.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

NEVER = -1e30
"""Log-probability of what cannot happen; finite, since the difference of two infinities is not a number."""


@dataclass(frozen=True, slots=True)
class TdtSettings:
    """What NeMo's `tdt_kwargs` say."""

    blank: int
    durations: tuple[int, ...]
    """How many frames a token may last, by index of the duration logits."""
    sigma: float = 0.0
    """Logit under-normalisation: taken off the log-probability of every token."""
    omega: float = 0.0
    """Share of batches that are trained by the plain transducer's loss."""
    fastemit_lambda: float = 0.0
    """How much more labels are learnt than blanks. Source: https://arxiv.org/abs/2010.11148, equation 11."""
    clamp: float = 0.0
    """The largest gradient of a token's logit; 0: any."""


def make_portable(loss: Any) -> None:
    """Let a NeMo `RNNTLoss` train a TDT model on a CPU too; on CUDA, and for other losses, nothing changes.

    Twice is as good as once.
    """
    from nemo.collections.asr.parts.numba.rnnt_loss import TDTLossNumba

    # A private name of NeMo's, and its only handle on the loss inside.
    if isinstance(loss._loss, TDTLossNumba):  # noqa: SLF001
        loss._loss = _portable(loss._loss)  # noqa: SLF001


def _portable(kernel: Any) -> Any:
    from torch import nn

    settings = TdtSettings(
        blank=kernel.blank,
        durations=tuple(kernel.durations),
        sigma=kernel.sigma,
        omega=kernel.omega,
        fastemit_lambda=kernel.fastemit_lambda,
        clamp=kernel.clamp,
    )

    class PortableTdtLoss(nn.Module):  # type: ignore[misc]  # untyped
        """NeMo's kernel on CUDA, `tdt_loss` elsewhere; one loss an utterance, which NeMo reduces."""

        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.settings = kernel, settings
            self.reduction = kernel.reduction

        def forward(
            self, acts: torch.Tensor, labels: torch.Tensor, act_lens: torch.Tensor, label_lens: torch.Tensor
        ) -> torch.Tensor:
            if acts.is_cuda:
                return self.kernel(acts, labels, act_lens, label_lens)
            # A dev loss that is another one for every tenth batch would say nothing.
            settings = self.settings if self.training else replace(self.settings, omega=0.0)
            return tdt_loss(acts, labels, num_frames=act_lens, num_labels=label_lens, settings=settings)

    return PortableTdtLoss()


def tdt_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_frames: torch.Tensor,
    num_labels: torch.Tensor,
    settings: TdtSettings,
) -> torch.Tensor:
    """Negative log-likelihood of each utterance, [batch], differentiable by `logits` once.

    logits: float [batch, frames, labels + 1, tokens + durations], not normalised; the blank is one of the tokens.
    labels: int64 [batch, labels]. num_frames, num_labels: int64 [batch], of each utterance.
    """
    import torch

    class TdtLoss(torch.autograd.Function):  # type: ignore[misc]  # untyped
        @staticmethod
        def forward(context: Any, logits: torch.Tensor) -> torch.Tensor:
            cells = _Cells(logits.detach(), labels, settings)
            lattice = {"durations": cells.durations, "num_frames": num_frames, "num_labels": num_labels}
            back, ends = _backward(cells.blanks, cells.emitted, **lattice)
            if context.needs_input_grad[0]:
                context.save_for_backward(cells.gradient(back, ends))
            return -back[:, 0, 0].to(logits)

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            (own,) = context.saved_tensors
            return own * gradient[:, None, None, None]

    loss: torch.Tensor = TdtLoss.apply(logits)
    return loss


class _Cells:
    """What may happen in each cell (frame × labels so far) of the lattice, as log-probabilities in float64."""

    def __init__(self, logits: torch.Tensor, labels: torch.Tensor, settings: TdtSettings) -> None:
        import torch

        self.settings = settings
        self.logits = logits
        num_durations = len(settings.durations)
        self.tokens, self.lasting = logits.split([logits.shape[-1] - num_durations, num_durations], dim=-1)
        # Of a whole vocabulary a cell needs the blank and one label; of the others only the sum that normalises them.
        self.total = self.tokens.logsumexp(-1, keepdim=True)
        self.index = labels[:, None, :, None].expand(-1, logits.shape[1], -1, -1)
        blank = (self.tokens[..., settings.blank, None] - self.total).double()
        label = (self.tokens[:, :, :-1].gather(-1, self.index) - self.total[:, :, :-1]).double()
        self.plain = random.random() < settings.omega  # as NeMo draws it, once a batch  # noqa: S311
        if self.plain:
            # A plain transducer: a blank always lasts one frame, a label none.
            self.durations: tuple[int, ...] = (0, 1)
            self.blanks = torch.cat([torch.full_like(blank, NEVER), blank], dim=-1)
            self.emitted = torch.cat([label, torch.full_like(label, NEVER)], dim=-1)
        else:
            self.durations = settings.durations
            lasts = self.lasting.log_softmax(-1).double() - settings.sigma
            self.blanks, self.emitted = blank + lasts, label + lasts[:, :, :-1]
        """Of a blank, and of the next label, for each duration: [batch, frames, labels + 1 or labels, durations]."""

    def gradient(self, back: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Of the loss by the logits. back, ends: as `_backward` gives them."""
        import torch

        by_blank, by_label = self._occupancy(back, ends)
        by_label *= 1 + self.settings.fastemit_lambda
        blanked, labelled = by_blank.sum(-1, keepdim=True), by_label.sum(-1, keepdim=True)
        visited = blanked.clone()
        visited[:, :, :-1] += labelled
        gradient = torch.zeros_like(self.logits)
        tokens, lasting = gradient.split([self.tokens.shape[-1], self.lasting.shape[-1]], dim=-1)
        torch.mul((self.tokens - self.total).exp_(), visited.to(gradient), out=tokens)
        tokens[..., self.settings.blank] -= blanked[..., 0].to(gradient)
        tokens[:, :, :-1].scatter_add_(-1, self.index, -labelled.to(gradient))
        if self.settings.clamp > 0:
            tokens.clamp_(-self.settings.clamp, self.settings.clamp)
        if not self.plain:
            by_blank[:, :, :-1] += by_label
            lasting.copy_(self.lasting.softmax(-1) * visited.to(gradient) - by_blank.to(gradient))
        return gradient

    def _occupancy(self, back: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How probable each blank and each label is in the paths of the utterance; as `blanks` and `emitted`."""
        import torch

        here = _forward(self.blanks, self.emitted, durations=self.durations) - back[:, :1, :1]
        frames = here.shape[1]
        by_blank, by_label = torch.zeros_like(self.blanks), torch.zeros_like(self.emitted)
        for place, lasts in enumerate(self.durations):
            if lasts:
                onward = ends[:, lasts : lasts + frames]
                by_blank[..., place] = (here + self.blanks[..., place] + onward).exp()
            onward = back[:, lasts : lasts + frames, 1:]
            by_label[..., place] = (here[:, :, :-1] + self.emitted[..., place] + onward).exp()
        return by_blank, by_label


def _forward(blanks: torch.Tensor, emitted: torch.Tensor, *, durations: Sequence[int]) -> torch.Tensor:
    """Log-probability of arriving in each cell, [batch, frames, labels + 1]."""
    import torch

    blank_rows, label_rows = blanks.unbind(1), emitted.unbind(1)
    row = blanks.new_full((len(blanks), blanks.shape[2]), NEVER)
    row[:, 0] = 0.0
    rows: list[torch.Tensor] = []
    for frame in range(len(blank_rows)):
        arriving = [row] if frame == 0 else [torch.full_like(row, NEVER)]
        for place, lasts in enumerate(durations):
            if 0 < lasts <= frame:
                before = rows[frame - lasts]
                arriving.append(before + blank_rows[frame - lasts][..., place])
                labelled = before[:, :-1] + label_rows[frame - lasts][..., place]
                arriving.append(torch.nn.functional.pad(labelled, (1, 0), value=NEVER))
        here = torch.stack(arriving).logsumexp(0)
        if 0 in durations:
            # Labels that last no frame follow each other within the row: a cumulative sum in place of a loop.
            reach = _reach(label_rows[frame][..., durations.index(0)])
            here = reach + (here - reach).logcumsumexp(1)
        rows.append(here)
    return torch.stack(rows, dim=1)


def _backward(
    blanks: torch.Tensor,
    emitted: torch.Tensor,
    *,
    durations: Sequence[int],
    num_frames: torch.Tensor,
    num_labels: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of completing the utterance from each cell, [batch, frames + longest duration, labels + 1].

    Twice: within the utterance, where labels lead, and with its end, one cell after it, where only blanks lead.
    """
    import torch

    blank_rows, label_rows = blanks.unbind(1), emitted.unbind(1)
    batch, frames, width = blanks.shape[:3]
    end = blanks.new_full((batch, frames + max(durations), width), NEVER)
    end[torch.arange(batch), num_frames, num_labels] = 0.0
    back = torch.full_like(end, NEVER)
    ends = end.clone()
    for frame in reversed(range(frames)):
        leaving = []
        for place, lasts in enumerate(durations):
            if lasts:
                leaving.append(blank_rows[frame][..., place] + ends[:, frame + lasts])
                labelled = label_rows[frame][..., place] + back[:, frame + lasts, 1:]
                leaving.append(torch.nn.functional.pad(labelled, (0, 1), value=NEVER))
        here = torch.stack(leaving).logsumexp(0)
        if 0 in durations:
            reach = _reach(label_rows[frame][..., durations.index(0)])
            here = (here + reach).flip(1).logcumsumexp(1).flip(1) - reach
        back[:, frame] = torch.where((frame < num_frames)[:, None], here, NEVER)
        ends[:, frame] = torch.maximum(back[:, frame], end[:, frame])
    return back, ends


def _reach(still: torch.Tensor) -> torch.Tensor:
    """Log-probability of all labels so far, one after the other in one frame, [batch, labels + 1]."""
    import torch

    return torch.nn.functional.pad(still.cumsum(1), (1, 0))
