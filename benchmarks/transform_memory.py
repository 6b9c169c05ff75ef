"""What `transform` takes of a large network beside `torch.export`: processor time, and memory beside the result.

    python benchmarks/transform_memory.py

Every line is a process of its own, without verification. Memory is the most that the process has held since before
the call, less what it held then, over the bytes of the result's parameters (Linux only).
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.export import Dim

from anytimeify import AuxiliaryBranches, HierarchicalEnsemble, NestedChannels, transform
from anytimeify._torch import prepare_torchvision

SCHEMES = {
    "widths": NestedChannels(widths=(0.25, 0.5, 1.0)),
    "triangular": NestedChannels(widths=(0.25, 0.5, 1.0), connectivity="triangular"),
    "ensemble": HierarchicalEnsemble(depth=1),
    "branches": AuxiliaryBranches(branches=2),
}
HEAD = "| scheme | consume | torch.export s | transform s | transform / export | result MB | memory / result |"


def main() -> None:
    """One process for every line of the table; or, with `--scheme`, one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--scheme", choices=SCHEMES)
    parser.add_argument("--consume", action="store_true")
    arguments = parser.parse_args()
    if arguments.scheme is not None:
        print(measure(arguments.model, arguments.scheme, consume=arguments.consume))
        return
    print(table(arguments.model))


def table(model: str) -> str:
    """The whole table, as Markdown."""
    lines = [HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    for scheme in SCHEMES:
        for consume in ([], ["--consume"]):
            command = [sys.executable, __file__, "--model", model, "--scheme", scheme, *consume]
            lines.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
            print(lines[-1], flush=True)
    return "\n".join(lines)


def measure(name: str, scheme: str, *, consume: bool) -> str:
    """One line: what the process takes for one call, after one for a small network."""
    prepare_torchvision()
    import timm

    torch.set_num_threads(1)
    small = timm.create_model("test_vit")
    transform(small, SCHEMES[scheme], torch.randn(2, *small.pretrained_cfg["input_size"]), verify=False)
    model = timm.create_model(name).train()
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    start = time.process_time()
    torch.export.export(model, (x,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    exported = time.process_time() - start
    del small
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before, start = _status("VmRSS"), time.process_time()
    net = transform(model, SCHEMES[scheme], (x,), verify=False, consume=consume)
    seconds, grown = time.process_time() - start, _status("VmHWM") - before
    size = sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())
    return (
        f"| {scheme} | {'yes' if consume else 'no'} | {exported:.2f} | {seconds:.2f} | {seconds / exported:.2f} "
        f"| {size / 2**20:.0f} | {max(0, grown) / size:.2f} |"
    )


def _status(key: str) -> int:
    """Bytes, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
