"""DistiLLM: a skewed divergence on texts of the data set and, more and more, on what the student wrote before.

Paper: Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024.
Equations: the skewed KL, forward or reverse, with 0.1 of the other law; a batch is the student's own with a
probability, the share, that begins at 0 and rises over training. Own batches are written anew with the share times what
is left of training (or while there are fewer than ``capacity`` texts), and else drawn from those written before.
Deviations: the paper's share rises by 0.1 whenever the loss on validation has, which a method is not told here; ours
rises evenly to ``share``. A text is stored as the student wrote it, and the oldest one goes. The store of each process
is its own.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from kdbench import Batch, Context, Logits, Method, Need, Signals
from kdbench.functional.skl import skew_kl_loss, skew_reverse_kl_loss

Share = Annotated[float, Field(ge=0, le=1)]


class DistiLLM(Method):
    """Teacher and student are compared on texts of the data set, and on the student's own, new or replayed.

    Args:
        skew: Share of the law that is held against the other in the mixture.
        reverse: The student is held against the teacher mixed with some of the student (SRKL).
        share: Of the batches that are the student's own, at the end of training.
        capacity: Texts that are kept to be read again.
        sampling: Temperature at which the student writes.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"generates"})
    written: Tensor

    def __init__(
        self,
        skew: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        reverse: bool = True,
        share: Share = 0.5,
        capacity: PositiveInt = 1000,
        sampling: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.loss = skew_reverse_kl_loss if reverse else skew_kl_loss
        self.skew, self.share, self.capacity, self.sampling = skew, share, capacity, sampling
        self.register_buffer("written", torch.tensor(0))

    def build(self, probe: Signals) -> None:
        """Makes room for what the student will write."""
        batch = probe.batch()
        made = probe.generate("student", batch, torch.Generator().manual_seed(0), temperature=self.sampling)
        self.fixed, self.form = tree_flatten((made.inputs, made.targets))
        for place, value in enumerate(self.fixed):
            if isinstance(value, Tensor):
                self.register_buffer(f"kept{place}", value.new_zeros(self.capacity, *value.shape[1:]))
        self.fixed = [None if isinstance(value, Tensor) else value for value in self.fixed]

    def keep(self, batch: Batch) -> None:
        """Stores a written batch in place of the oldest texts."""
        rows = (int(self.written) + torch.arange(len(batch), device=batch.ids.device)) % self.capacity
        for place, value in enumerate(tree_flatten((batch.inputs, batch.targets))[0]):
            if isinstance(value, Tensor):
                self.get_buffer(f"kept{place}")[rows[-self.capacity :]] = value[-self.capacity :]
        self.written += len(batch)

    def again(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Returns as many texts as a batch has, of those that were written before."""
        count = min(int(self.written), self.capacity)
        rows = torch.randint(count, (len(batch),), generator=draw).to(batch.ids.device)
        kept = {int(name.removeprefix("kept")): value for name, value in self.named_buffers() if "kept" in name}
        leaves = [kept[place][rows] if place in kept else value for place, value in enumerate(self.fixed)]
        inputs, targets = tree_unflatten(leaves, self.form)
        none = torch.zeros_like(batch.ids, dtype=torch.bool)
        return batch.with_inputs(inputs, targets=targets, supervised=none)

    def read(self, signals: Signals, ctx: Context) -> Batch:
        """Returns what both read at this step."""
        batch, progress = signals.batch(), ctx.state.progress
        draw = ctx.generator("whose")
        chance, share = torch.rand((), generator=draw).item(), self.share * progress
        if chance >= share:
            return batch
        few = int(self.written) < max(self.capacity, len(batch))
        if chance < share * (1 - progress) or few:
            made = signals.generate("student", batch, ctx.generator("words"), temperature=self.sampling)
            self.keep(made)
            return made
        return self.again(batch, draw)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``distillm``."""
        student, teacher = signals.pair("logits", self.read(signals, ctx))
        rows = student.rows(), teacher.rows(), self.skew
        return {"distillm": self.loss(*rows, law=student.law, weight=student.row_weight())}
