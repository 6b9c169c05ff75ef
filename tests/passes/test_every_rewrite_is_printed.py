"""Everything declared by `@rewrite` or `@step` has a test of its printed graph, and one of its numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.source_files import sources

TESTS = Path(__file__).parent.parent
PRINTED, STEPS = "passes/test_printed.py", "capture/test_steps.py"

# the name that is declared: the test of its printed graph, and the test of its numbers (none where it is the same)
REWRITES: dict[str, tuple[str, ...]] = {
    # capture
    "drop dead writes": (f"{STEPS}::test_drop_dead_writes",),
    "drop identities": (f"{STEPS}::test_drop_identities",),
    "finish": (f"{STEPS}::test_finish",),
    "free of device": (f"{STEPS}::test_free_of_device",),
    "freeze unread": (f"{STEPS}::test_freeze_unread",),
    "functionalise": (f"{STEPS}::test_functionalise",),
    "generalise": (f"{STEPS}::test_generalise",),
    "lower": (f"{STEPS}::test_lower",),
    "merge both modes": (f"{STEPS}::test_merge_both_modes",),
    "recognise stochastic depth": (f"{STEPS}::test_recognise_stochastic_depth",),
    "recompose": (f"{STEPS}::test_recompose",),
    "restore training form": (f"{STEPS}::test_restore_training_form",),
    "side by side": (f"{STEPS}::test_side_by_side",),
    "simplify": (f"{STEPS}::test_simplify",),
    # passes/rewrites
    "as before": (f"{PRINTED}::test_as_before", "passes/test_as_before.py::test_training_reads_a_buffer_as_it_was"),
    "channel counts": (
        "passes/test_channel_counts.py::test_printed",
        "passes/test_channel_counts.py::test_levels_compute_with_the_number_of_their_width",
    ),
    "consensus": (f"{PRINTED}::test_consensus_average", "passes/test_consensus.py::test_the_average_is_the_last_level"),
    "cut blocks": (
        "passes/test_cut_blocks.py::test_printed",
        "passes/test_cut_blocks.py::test_only_blocks_are_multiplied",
    ),
    "evaluate": (
        "passes/test_evaluate.py::test_the_evaluation_form_has_nothing_of_training",
        "passes/test_evaluate.py::test_a_program_and_its_evaluation_form_agree_in_eval_mode",
    ),
    "fold": ("passes/test_fold.py::test_views_of_one_parameter_become_a_small_parameter_of_that_name",),
    "fold batch norms": (
        f"{PRINTED}::test_fold_batch_norms",
        "passes/test_fold.py::test_a_batch_norm_becomes_part_of_the_convolution_before_it",
    ),
    "narrow": ("passes/test_narrow.py::test_groups_stay_whole",),
    "new head": (f"{PRINTED}::test_new_head", "model/test_reset_classifier.py::test_heads_of_any_kind"),
    "one writer": (f"{PRINTED}::test_one_writer", "passes/test_evaluate.py::test_the_backbones_own_level_writes"),
    "part heads": (
        f"{PRINTED}::test_part_heads",
        "passes/test_taxonomy.py::test_every_level_predicts_every_granularity",
    ),
    "project": (
        "passes/test_project.py::test_the_first_output_needs_neither_the_mask_nor_the_high_head",
        "passes/test_project.py::test_the_kept_outputs_are_the_same",
    ),
    "pack results": ("passes/test_results.py::test_all_results_become_one_prediction",),
    "unpack results": ("passes/test_results.py::test_nothing_of_it_is_left_where_results_are_left_alone",),
    "reorder": (f"{PRINTED}::test_reorder", "passes/test_reorder.py::test_the_function_stays"),
    "taxonomy": (
        f"{PRINTED}::test_taxonomy",
        "passes/test_taxonomy.py::test_whatever_lies_between_the_layer_and_the_prediction",
    ),
    "use blocks": (
        "passes/test_block_triangular.py::test_printed",
        "passes/test_block_triangular.py::test_same_numbers_and_cost",
    ),
    # what makes modules, extracts and stages of a program, and what counts
    "extract": (
        "model/test_extraction.py::test_printed",
        "model/test_extraction.py::test_extracts_are_small_and_equal_their_level",
    ),
    "to modules": ("test_to_modules.py::test_printed", "test_to_modules.py::test_layer_comes_back"),
    "part of a stage": ("staged/test_staged.py::test_printed", "staged/test_staged.py::test_every_exit_is_its_level"),
    "recount": (f"{PRINTED}::test_recount",),
}
NO_GRAPH = {"analyse", "settle"}  # give axes, and values of tensors


def declared() -> Iterator[str]:
    """The names in `@rewrite("name")` and `@step("name")`."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            for one in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in ("rewrite", "step"):
                    yield ast.literal_eval(one.args[0])


@cache
def module(path: str) -> ast.Module:
    return ast.parse((TESTS / path).read_text())


def function(test: str) -> ast.FunctionDef:
    path, name = test.split("::")
    found = [node for node in module(path).body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert found, f"there is no test {test}"
    return found[0]


def texts(test: str) -> Iterator[str]:
    """The strings in a test, and in the constants of its module that it names."""
    own = function(test)
    named = {node.id for node in ast.walk(own) if isinstance(node, ast.Name)}
    assigned = [
        node
        for node in module(test.split("::")[0]).body
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id in named for one in node.targets)
    ]
    for root in (own, *assigned):
        yield from (
            node.value for node in ast.walk(root) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )


def test_the_table_names_every_rewrite() -> None:
    names = sorted(declared())
    assert len(set(names)) == len(names)
    assert set(names) == REWRITES.keys() | NO_GRAPH


@pytest.mark.parametrize("name", REWRITES)
def test_every_rewrite_has_a_text_and_numbers(name: str) -> None:
    printed = REWRITES[name][0]
    assert any(re.search(r"^ *return \S", text, re.MULTILINE) for text in texts(printed)), f"{printed} shows no graph"
    for test in REWRITES[name]:
        function(test)
