"""Supervised pretraining of the image encoder in plain PyTorch, a baseline for IV-CL.

The reference's encoder sees each frame unmasked and separately, and a linear head learns labels of
the frame; :class:`~ivcl_fast.reference.IVCLClassifier` then starts from the encoder. Shapes are
written as in :mod:`~ivcl_fast.reference`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ivcl_fast.config import IVCLConfig, SupervisedObjective, check_classes, check_objective
from ivcl_fast.models.reference import Encoder, all_patches, init_linears, patch_rows


class Supervised(nn.Module):
    """Image encoder and a linear head with ``num_classes`` independent classes.

    With ``objective="classification"``, ``label_head`` reads the mean of a frame's slots; with
    ``"detection"``, ``detect_head`` reads every patch; with ``"objects"``, ``slot_head`` reads
    every slot. Raises ``ValueError`` for any other objective.
    """

    def __init__(self, cfg: IVCLConfig, num_classes: int) -> None:
        super().__init__()
        check_objective(cfg, SupervisedObjective)
        check_classes(num_classes)
        self.cfg, self.num_classes = cfg, num_classes
        self.encoder = Encoder(cfg)
        head = nn.Linear(cfg.embed_dim, num_classes)
        if cfg.objective == "classification":
            self.label_head = head
        elif cfg.objective == "detection":
            self.detect_head = head
        else:
            self.slot_head = head
        init_linears(self)

    def forward(self, video: Tensor) -> Tensor:
        """Logits of a video (see :class:`~ivcl_fast.reference.IVCL`).

        Shape ``[B, T, num_classes]``; for detection ``[B, T, N, num_classes]`` with row-major
        patches; for objects ``[B, T, S, num_classes]``.
        """
        rows = patch_rows(video, self.cfg)
        if self.cfg.objective == "detection":
            return self.detect_head(self.encoder(rows, all_patches(rows))[1])
        slots = self.encoder.slots(rows)
        if self.cfg.objective == "objects":
            return self.slot_head(slots)
        return self.label_head(slots.mean(dim=2))
