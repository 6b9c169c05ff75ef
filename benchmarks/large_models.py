"""What it takes to look at, and to transform, language models of many billion parameters without their weights.

    python benchmarks/large_models.py --out docs/large_models.md

Each model is built from its configuration on the meta device; `anytimeify inspect --scheme` and `transform` run in a
child process each, whose processor time and peak memory are measured. `--models llama-3-70b` runs one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCHEME = "nested-channels{widths=0.25,0.5,1}"
MODELS: dict[str, dict[str, Any]] = {
    "llama-3-70b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
    },
    "qwen2-72b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
    },
    "mixtral-8x7b": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
    },
}


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "CONFIG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    times, levels = [], []
    for name in arguments.models:
        for what in ("inspect", "transform"):
            found = measured(what, MODELS[name])
            times.append(time_row(name, what, found))
            print(times[-1], flush=True)
        levels += [level_row(name, level) for level in found.get("levels", ())]
    tables = {"times": "\n".join([*TIMES, *times]), "levels": "\n".join([*LEVELS, *levels])}
    print(*tables.values(), sep="\n\n")
    if arguments.out:
        import torch
        import transformers

        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        arguments.out.write_text(
            PAGE.format(scheme=SCHEME, versions=f"{versions}, Python {platform.python_version()}", **tables)
        )


def measured(what: str, config: dict[str, Any]) -> dict[str, Any]:
    """What a child process found, and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        command = [sys.executable, __file__, "--child", what, folder]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(what: str, folder: str) -> None:
    """Looks at the model of one configuration, or transforms it; prints one line of JSON."""
    import anytimeify
    from anytimeify.cli import main as command_line

    found: dict[str, Any] = {}
    if what == "inspect":
        try:
            command_line(["inspect", f"hf:{folder}", "--scheme", SCHEME])
        except SystemExit as ended:
            found["status"] = ended.code
    else:
        model = anytimeify.source(f"hf:{folder}", values=False)
        try:
            net = anytimeify.transform(model, SCHEME, verify=False)
            found["nodes"] = len(net.rewritten.program.graph.nodes)
            found["levels"] = [(level.name, *level.cost) for level in net.levels]
        except anytimeify.AnytimeError as error:
            found["error"] = str(error)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found["seconds"] = usage.ru_utime + usage.ru_stime
    found["gigabytes"] = usage.ru_maxrss / 2**20
    print()
    print(json.dumps(found))


def time_row(name: str, what: str, found: dict[str, Any]) -> str:
    """One line of the table of times."""
    outcome = found.get("error") or (f"{found['nodes']} nodes" if "nodes" in found else f"status {found['status']}")
    return f"| {name} | {what} | {found['seconds']:.0f} | {found['gigabytes']:.2f} | {outcome} |"


def level_row(name: str, level: list[Any]) -> str:
    """One line of the table of levels."""
    title, macs, params, activations = level
    return f"| {name} | {title} | {macs / 1e9:.1f} | {params / 1e9:.2f} | {activations / 2**20:.1f} |"


TIMES = ("| model | what | processor s | peak GiB | outcome |", "|---|---|---|---|---|")
LEVELS = ("| model | level | MACs, 10^9 | parameters, 10^9 | activations MiB |", "|---|---|---|---|---|")
PAGE = """# Models that do not fit into memory

`python benchmarks/large_models.py --out docs/large_models.md`, {versions}, 2 CPU cores. Scheme: `{scheme}`.

A network is looked at and transformed without its weights:

```python
import anytimeify, torch
from anytimeify import NestedChannels, transform

net = transform(anytimeify.source("hf:Llama-3-70B", values=False), NestedChannels((0.25, 0.5, 1)), verify=False)
for level in net.levels:
    print(level.name, level.cost)
```

`source(..., values=False)` builds the model of a `config.json` with its parameters on the meta device: shapes without
memory. `with torch.device("meta"):` around any model, or `with anytimeify.parameters_on_meta():`, does so too.
`anytimeify inspect hf:DIR --scheme SPEC` prints the same from the command line, with what can be narrowed and what not.

## Time and memory

{times}

Seconds are those of the processor, of the whole process: imports take about five of them. Both grow in
proportion to the number of layers; most of it is `torch.export`. Mixtral is refused for the operation that computes its
experts, `_grouped_mm`, of which torch tells the shapes for bfloat16 alone.

## Levels

{levels}

Costs are those of one sample: the example inputs of transformers, 5 tokens, in float32.

## Weights afterwards

The result is on the meta device too. It gets memory, and then the checkpoint of the backbone, file after file:

```python
net.to_empty(device="cpu")
for file in sorted(folder.glob("*.safetensors")):
    net.load_state_dict(safetensors.torch.load_file(file), strict=False)
```

Then it equals the network that `transform` makes of the loaded backbone. What a level has for itself, its norms and its
head, is made from the backbone's tensors when the last of these has come. Buffers that no checkpoint holds, such as
rotary frequencies and tables of relative positions, have their values from the start, and `to_empty` keeps them: they
are computed by the initialisers of timm and transformers, or are there because only parameters were on the meta device
(`parameters_on_meta`). A buffer whose values nobody knows is refused.

Without values nothing is verified (`verify=False` is needed), and `extract`, `staged` and `save` say that weights are
missing. So do `NestedWeights`, `order="l1"` and `init="fresh"`, which read weights. The graphs of train mode and eval
mode are compared node by node; where they differ, both are kept.
"""

if __name__ == "__main__":
    main()
