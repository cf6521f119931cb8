"""Contrastive representation distillation.

Paper: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, eq. 18, with embeddings of both
sides that train, memory banks with momentum and a constant Z from the first batch, as in the authors' code.
Deviations: negatives are drawn on the device, uniformly and with replacement; the authors' loader draws them without
replacement (CIFAR-100) or by the alias method, with replacement and from all classes (ImageNet). As their CIFAR-100
loader they leave out the class of the sample, but a class is only known once its sample has been seen: in the first
epoch some negatives are of the same class. The sample itself is never drawn. There are at most N - 1 negatives. Banks
and Z are set after the step with the embeddings from before it; the authors set the banks in the forward pass, with the
same values. The paper's best rows add KD (``method.weights.crd=0.8`` beside a KD term), which is not added here.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench import Context, Feature, KDBenchError, Logits, Method, Need, Signals, State, Vector
from kdbench.functional.crd import contrast_logits, draw_negatives, log_normalizer, momentum_update, nce_loss
from kdbench.functional.numerics import unit, upcast


class CRD(Method):
    """Tells each sample's feature on the other side from those of other samples, kept in memory banks.

    Args:
        embed_dim: Width of both embeddings and banks.
        negatives: Negatives a sample, at most the other samples of the set.
        temperature: Divides similarities.
        momentum: Share of the old entry when a bank is updated.
        bank_dtype: Of the banks; sums are float32 either way.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("pooled", Vector), Need("logits", Logits, ("student",)))
    requires: ClassVar[frozenset[str]] = frozenset({"sample_id"})
    over_batch: ClassVar[bool] = True
    bank_student: Tensor
    bank_teacher: Tensor
    classes: Tensor
    log_z: Tensor
    estimated: Tensor

    def __init__(
        self,
        embed_dim: PositiveInt = 128,
        negatives: PositiveInt = 16384,
        temperature: PositiveFloat = 0.07,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        bank_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.dtype = torch.float32 if bank_dtype == "float32" else torch.bfloat16
        self._seen: tuple[Tensor, ...] | None = None

    def build(self, probe: Signals) -> None:
        """Makes the embeddings and the banks, whose entries start about as long as embeddings."""
        student, teacher = probe.pair("pooled")
        self.embed_student = nn.Linear(student.values.shape[1], self.embed_dim)
        self.embed_teacher = nn.Linear(teacher.values.shape[1], self.embed_dim)
        size, bound = probe.cast.task.dataset().sizes["train"], (3 / self.embed_dim) ** 0.5
        for side in ("student", "teacher"):
            entries = torch.empty(size, self.embed_dim).uniform_(-bound, bound)
            self.register_buffer(f"bank_{side}", entries.to(self.dtype))
        self.register_buffer("classes", torch.full((size,), -1))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("estimated", torch.tensor(False))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``crd``, the sum of both directions."""
        ids, size = self._ids(signals), len(self.classes)
        classes = self.classes.index_copy(0, ids, self._labels(signals))
        # A seed of this step by name, for a generator of the device.
        generator = torch.Generator(ids.device).manual_seed(ctx.generator("crd").initial_seed())
        negatives = draw_negatives(classes, ids, min(self.negatives, size - 1), generator)
        index = torch.cat([ids[:, None], negatives], dim=1)

        student, teacher = signals.pair("pooled")
        embedded = self._embed(self.embed_student, student), self._embed(self.embed_teacher, teacher)
        # Each side is the anchor once, and meets the bank of the other.
        pairs = zip(embedded, (self.bank_teacher, self.bank_student), strict=True)
        logits = [contrast_logits(anchor, bank, index, self.temperature) for anchor, bank in pairs]
        log_z = torch.where(self.estimated, self.log_z, torch.stack([log_normalizer(x, size) for x in logits]))
        if self.training and len(ids):
            self._seen = (ids, classes, log_z, *(e.detach() for e in embedded))
        return {"crd": nce_loss(logits[0] - log_z[0], size) + nce_loss(logits[1] - log_z[1], size)}

    def after_step(self, signals: Signals, state: State) -> None:
        """Moves the entries of this batch's samples; keeps their classes and, the first time, the constant Z."""
        if self._seen is None:
            return
        (ids, classes, log_z, *embedded), self._seen = self._seen, None
        for bank, embedding in zip((self.bank_student, self.bank_teacher), embedded, strict=True):
            bank[ids] = momentum_update(bank[ids], embedding, self.momentum).to(bank.dtype)
        self.classes.copy_(classes)
        self.log_z.copy_(log_z)
        self.estimated.fill_(True)

    def _ids(self, signals: Signals) -> Tensor:
        ids, size = signals.batch().ids, len(self.classes)
        if len(ids) and int(ids.max()) >= size:
            raise KDBenchError(
                f"crd: found sample id {int(ids.max())}, expected at most {size - 1}: the memory banks hold the {size} "
                "training samples that the task's dataset() counts"
            )
        return ids

    def _labels(self, signals: Signals) -> Tensor:
        """Class of each sample of the batch; -1 where it is unknown or does not count."""
        batch, logits = signals.batch(), signals.feature("logits", "student")
        target = logits.row_target() if isinstance(logits, Logits) else None
        if target is None or target.shape != batch.ids.shape:
            return torch.full_like(batch.ids, -1)
        return target.long() if batch.supervised is None else torch.where(batch.supervised, target, -1).long()

    def _embed(self, linear: nn.Module, feature: Feature) -> Tensor:
        return unit(upcast(linear(feature.values)))
