"""Supervised pretraining of the image encoder, in plain PyTorch: what IV-CL is compared with.

The reference's encoder sees every frame whole and alone, and a linear head is taught what the frame
shows; :class:`~ivcl_fast.reference.IVCLClassifier` goes on from the encoder. Letters in shapes as
in :mod:`~ivcl_fast.reference`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ivcl_fast.config import IVCLConfig
from ivcl_fast.models.reference import Encoder, all_patches, init_linears, patch_rows


class Supervised(nn.Module):
    """Image encoder and a linear head of ``num_classes`` independent classes.

    ``objective="classification"``: ``label_head`` reads the mean of a frame's slots.
    ``objective="detection"``: ``detect_head`` reads every patch. Raises ``ValueError`` for any
    other objective.
    """

    def __init__(self, cfg: IVCLConfig, num_classes: int) -> None:
        super().__init__()
        cfg.check_supervised(True)
        if num_classes < 1:
            raise ValueError(f"num_classes: {num_classes} is not a whole number of at least 1")
        self.cfg, self.num_classes = cfg, num_classes
        self.encoder = Encoder(cfg)
        head = nn.Linear(cfg.embed_dim, num_classes)
        if cfg.objective == "classification":
            self.label_head = head
        else:
            self.detect_head = head
        init_linears(self)

    def forward(self, video: Tensor) -> Tensor:
        """Logits of a video as :class:`~ivcl_fast.reference.IVCL` takes it.

        ``[B, T, num_classes]``, or in detection ``[B, T, N, num_classes]``, the patches row-major.
        """
        rows = patch_rows(video, self.cfg)
        if self.cfg.objective == "classification":
            return self.label_head(self.slots(rows).mean(dim=2))
        return self.detect_head(self.encoder(rows, all_patches(rows))[1])

    def slots(self, rows: Tensor) -> Tensor:
        """Slots of every frame ``[B, T, S, D]``, of patch rows."""
        return self.encoder(rows, all_patches(rows))[0]
