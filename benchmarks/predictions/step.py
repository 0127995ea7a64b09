"""``python -m benchmarks.predictions.step``: a step of ``base64`` on an H100, part by part.

Nothing of it is measured. A training step runs on tensors without storage
(:mod:`benchmarks.predictions.launches`); for every operation that reaches the device, its products
and the bytes of its tensors give the least time at the rates there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from benchmarks.predictions.launches import Cost, count_step
from benchmarks.summary import lined_up
from ivcl_fast.command import run_command
from ivcl_fast.config import IVCLConfig
from ivcl_fast.errors import UserError
from ivcl_fast.kernels import _triton

CANNOT_COUNT = _triton.MISSING is not None or _triton.INTERPRET
"""Whether launches cannot be recorded: without Triton, and in its interpreter."""
CFG = IVCLConfig.preset("base64", mask_ratio=0.875, num_query_frames=1)
CLIPS = 256
EAGER, GRAPH = 5e-6, 1e-6
"""Seconds a launch takes the host, and those between kernels of a CUDA graph, both assumed."""
STEP = "forward and backward"
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "linear layers, products": (STEP, ("mm", "addmm", "bmm")),
    "bias gradients, sums": (STEP, ("sum",)),
    "attention": (STEP, ("short_attention",)),
    "LayerNorm, residuals": (STEP, ("add_layer_norm_biased", "add_layer_norm", "layer_norm")),
    "bias, GELU": (STEP, ("bias_gelu",)),
    "patch embedding": (STEP, ("embed_patches",)),
    "decoder's tokens, loss": (STEP, ("restore_tokens", "patch_loss")),
    "weights to bfloat16": (STEP, ("_foreach_copy_",)),
    "other operations": (STEP, ()),
    "clipping": ("clipping", ()),
    "AdamW": ("AdamW", ()),
    "Muon, products": ("Muon", ("mm", "bmm", "baddbmm")),
    "Muon, the rest": ("Muon", ()),
}
"""Rows of the table: a part of the step, and its operations, whose backwards are counted with them,
or all that no row before has."""


def step_costs(clips: int = CLIPS, cfg: IVCLConfig = CFG) -> dict[str, Cost]:
    """Return what each of :data:`ROWS` takes in a step of a model, by default of ``base64``."""
    parts = {name: part.costs for name, part in count_step(cfg, clips).items()}
    costs = {}
    for row, (part, names) in ROWS.items():
        left = parts[part]
        taken = [op for op in left if not names or op.removesuffix("_backward") in names]
        costs[row] = sum(map(left.pop, taken), Cost())
    return costs


def table(clips: int = CLIPS) -> list[str]:
    """Return Markdown: a line for each part of a step, with an empty column for measurements."""
    head = ["part", "launches", "GFLOP", "GB", "ms", "ms in a graph", "ms to launch", "measured"]
    costs = step_costs(clips)
    total = sum(costs.values(), Cost())
    body = [
        [
            row,
            f"{cost.launches:,}",
            f"{cost.flops / 1e9:,.0f}",
            f"{cost.bytes / 1e9:.2f}",
            f"{1e3 * cost.seconds:.2f}",
            f"{1e3 * (cost.seconds + GRAPH * cost.launches):.2f}",
            f"{1e3 * EAGER * cost.launches:.2f}",
            "",
        ]
        for row, cost in [*costs.items(), ("**a step**", total)]
    ]
    in_graph = total.seconds + GRAPH * total.launches
    low = sum(step_costs(clips, replace(CFG, low_precision_residual=True)).values(), Cost())
    low_in_graph = low.seconds + GRAPH * low.launches
    eager = max(total.seconds, EAGER * total.launches)
    return [
        *lined_up(head, body),
        "",
        f"{clips} clips of `base64` in {1e3 * in_graph:.1f} ms with a CUDA graph: "
        f"{clips / in_graph:,.0f} clips/s. Eager, at least {1e3 * eager:.1f} ms. "
        f"With `--low-precision-residual`, {1e3 * low_in_graph:.1f} ms in a graph: "
        f"{low.launches:,} launches, {low.bytes / 1e9:.2f} GB.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.predictions.step", description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS, help="in a step (%(default)s)")
    clips = parser.parse_args().clips
    if clips < 1:
        raise UserError(f"--clips {clips}: a step has at least 1")
    if CANNOT_COUNT:
        raise UserError("launches cannot be recorded: this needs Triton, and not its interpreter")
    print("\n".join(table(clips)))


if __name__ == "__main__":
    run_command(main)
