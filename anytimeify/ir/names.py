"""The names that the package makes: this module builds them, and this module alone reads them.

Tensors have dotted names, `layer1.0.conv1.weight`: the path of a layer, and what the tensor is there. What the backbone
does not have lies below `anytime`, in state dicts and in saved files:

    anytime.<level>.<name>                  a level's own copy of the backbone's tensor <name>, or a tensor of a branch
    anytime.<level>.masks.<weight>          which elements of <weight> the level keeps
    anytime.<level>.taxonomy.<g>.<name>     the level's own head for the granularity <g>, made after <name>
    anytime.taxonomy.<g>.<name>             one for several levels
    anytime.consensus.weight, .bias         a learned consensus
    anytime.constants.<what>                index tables and masks that are part of the graph
    anytime.blocks.index_<n>                index tables of an extract
    anytime.calls.<path>                    modules that hold nothing, of operations for which the backbone has none
    anytime.loss.<name>                     the objective's

Nodes have the names of the backbone's nodes after a prefix: `level<n>_`, of a level alone; `member<n>_`; `joint_`, of
all levels in one pass; `step_`, of one level after the other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

__all__ = [
    *("ADDED", "BLOCKS", "CONSENSUS", "CONSTANTS", "JOINT", "LOSS", "STEP"),
    *(
        "backbone_names",
        "backbone_node",
        "bias",
        "block",
        "call",
        "counter",
        "fresh",
        "is_added",
        "is_counter",
        "is_mean",
        "join",
    ),
    *("layer", "level_of", "level_prefix", "mask", "member_prefix", "node_name", "of_level", "of_mask", "settled"),
    *("split", "taxonomy_prefix", "without_level", "without_level_prefix", "without_weight"),
]

ADDED = "anytime"
BLOCKS, CONSENSUS, CONSTANTS, LOSS = (f"{ADDED}.{what}." for what in ("blocks", "consensus", "constants", "loss"))
_COARSE = re.compile(rf"({ADDED}\.\d+\.)?{ADDED}\.taxonomy\.")
_COUNTER, _MEAN = "num_batches_tracked", "running_mean"

# Any tensor's.


def split(name: str) -> tuple[str, str]:
    """The path of the layer that has a tensor, and what it is there."""
    path, _, last = name.rpartition(".")
    return path, last


def join(path: str, last: str) -> str:
    """The inverse."""
    return f"{path}.{last}" if path else last


def layer(name: str) -> str:
    """The path of the layer that has a tensor."""
    return split(name)[0]


def without_weight(name: str) -> str:
    """A weight as it is listed: by its layer, where it is called `weight` there."""
    return name.removesuffix(".weight")


def counter(name: str) -> str:
    """What counts the batches of the norm that has a tensor."""
    return join(layer(name), _COUNTER)


def is_counter(name: str) -> bool:
    """Whether a tensor counts the batches of a norm."""
    return split(name)[1] == _COUNTER


def is_mean(name: str) -> bool:
    """Whether a tensor is the running mean of a norm: every norm that counts batches has one."""
    return split(name)[1] == _MEAN


def bias(weight: str) -> str:
    """The bias beside a weight."""
    return re.sub(r"weight$", "", weight) + "bias"


def block(weight: str, number: int, kind: str) -> str:
    """One of the blocks that a weight, or what stands beside it, is cut into."""
    return join(re.sub(r"\.?weight$", "", weight), f"{number}.{kind}")


# Tensors that the backbone does not have.


def is_added(name: str) -> bool:
    """Whether the package made a tensor."""
    return name.startswith(f"{ADDED}.")


def of_level(level: int, name: str) -> str:
    """A level's own tensor."""
    return f"{ADDED}.{level}.{name}"


def level_of(name: str) -> int | None:
    """The level that a tensor belongs to alone, if there is one."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if first == ADDED and number.isdigit() else None


def without_level(name: str, level: int) -> str:
    """What a level's own tensor stands for; other names as they are."""
    return name.removeprefix(of_level(level, ""))


def backbone_names(given: Iterable[str], level: int) -> dict[str, str]:
    """The names that tensors have where a level is alone: without its prefix, where that name is free."""
    names: dict[str, str] = {}
    taken = set(given)
    for name in given:
        plain = without_level(name, level)
        names[name] = plain if plain == name or plain not in taken else name
        taken.add(names[name])
    return names


def mask(level: int, group: str, weight: str) -> str:
    """The mask of a weight at a level. `group`: `masks`, or longer where the backbone has something of that name."""
    return of_level(level, f"{group}.{weight}")


def of_mask(name: str) -> tuple[int, str]:
    """The level of a mask, and the weight."""
    _, level, _, weight = name.split(".", 3)
    return int(level), weight


def taxonomy_prefix(granularity: str) -> str:
    """What stands before the tensors of heads of one granularity, as schemes find them."""
    return f"{ADDED}.taxonomy.{granularity}."


def settled(name: str, levels: Collection[int]) -> str:
    """The name of a coarse head's tensor after the scheme: that of the level which has it for itself, by the scheme,
    or because it alone of `levels` reads it. Other names as they are."""
    found = _COARSE.match(name)
    if found is None:
        return name
    scope = found[1] or (of_level(min(levels), "") if len(levels) == 1 else f"{ADDED}.")
    return f"{scope}taxonomy.{name[found.end() :]}"


def call(path: str) -> str:
    """Where a module is that an operation calls which came out of the backbone's module at `path`."""
    return f"{ADDED}.calls.{node_name(path)}"


# Nodes.

JOINT, STEP = "joint_", "step_"  # before the nodes of all levels in one pass, and of one level after the other


def node_name(name: str) -> str:
    """The name of the node that reads a tensor."""
    return name.replace(".", "_")


def level_prefix(level: int) -> str:
    """What stands before the nodes of one level."""
    return f"level{level}_"


def member_prefix(member: int) -> str:
    """What stands before the nodes of one member."""
    return f"member{member}_"


def without_level_prefix(name: str) -> str:
    """A node's name without the prefix of any level."""
    return re.sub(r"^level\d+_", "", name)


def backbone_node(name: str, level: int) -> str:
    """A node's name without the prefix of a level, or of the first member, which is the backbone."""
    return re.sub(f"^({level_prefix(level)}|{member_prefix(0)})", "", name)


def fresh(name: str, taken: set[str]) -> str:
    """`name`, numbered if it is taken; the result is taken from then on."""
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate)
    return candidate
