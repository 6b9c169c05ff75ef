"""Scripts that run in two processes at once, as in data parallel training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["run_in_two_processes"]

HANGS = 600  # seconds: many times what a script takes on a busy machine

GROUP = """
import sys, torch
from torch import distributed

torch.set_num_threads(1)
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
"""
EQUAL = """
both = [torch.empty_like(mine) for _ in range(2)]
distributed.all_gather(both, mine)
assert torch.equal(*both)
assert mine.isfinite().all()
distributed.destroy_process_group()
"""


def run_in_two_processes(script: str, folder: Path) -> None:
    """Runs a script with its `rank` in a process group, and asserts that its tensor `mine` is the same in both."""
    command = [sys.executable, "-c", GROUP + script + EQUAL]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder / "meeting")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=HANGS)
            assert process.returncode == 0, errors
    finally:  # the other one waits for it
        for process in processes:
            process.kill()
            process.communicate()
