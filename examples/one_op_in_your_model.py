"""Use one op in your own model: bias and GELU in one pass, with gradients.

    python examples/one_op_in_your_model.py

The op runs in Triton on an NVIDIA GPU and in C++ on a CPU; if neither is available, it runs in
plain PyTorch. `python -m ivcl_fast.info` shows which.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ivcl_fast.kernels import bias_gelu, dispatches


class Mlp(nn.Module):
    """A two-layer perceptron, optionally with a fused activation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.fused = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return self.down(nn.functional.gelu(self.up(x)))
        x = nn.functional.linear(x, self.up.weight)  # without the bias, which the op adds
        return self.down(bias_gelu(x, self.up.bias))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the loss and its gradient for each parameter."""
    loss = model(x).square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


if __name__ == "__main__":
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Mlp(64, 256).to(device)
    x = torch.randn(8, 12, 64, device=device)  # [B, tokens, width]

    fused = gradients(model, x)
    # torch.compile's default backend works too, but needs a C++ compiler.
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), x)
    model.fused = False
    plain = gradients(model, x)
    for found in (fused, compiled):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    print(f"loss {plain[0]:.6f}, and {len(plain) - 1} gradients: the same in all three ways")
    print("calls by op and implementation:", dict(dispatches()) or "none: plain PyTorch")
