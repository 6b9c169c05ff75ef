"""What schemes write, as text: triangular levels, interpolated tables, branches, members; and their numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anytimeify import AuxiliaryBranches, Branch, HierarchicalEnsemble, NestedChannels, NestedDepth, NestedResolution
from anytimeify.capture import capture
from anytimeify.ir.rewritten import Output
from anytimeify.passes.rewrites.project import project
from tests.building import run
from tests.printing import applied, calls, lines

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Deep(nn.Module):
    """A layer norm between two layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = (
            nn.Linear(4, 4),
            nn.RMSNorm(4, eps=1e-5),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.b(self.norm(self.a(x))).relu())
        return result


def test_triangular() -> None:
    torch.manual_seed(0)
    model = Deep()
    captured = capture(model, X)
    assert calls(captured.program) == lines("""
        a = linear(x, a_weight, a_bias)
        norm = rms_norm(a, [4], norm_weight, 1e-05)
        b = linear(norm, b_weight, b_bias)
        relu = relu(b)
        head = linear(relu, head_weight, head_bias)
        return head
    """)
    rewritten = applied(NestedChannels((0.5, 1.0), connectivity="triangular"), captured)
    joint, alone, step = (
        project(rewritten.program, [rewritten.names.index(Output(role, level)) for level in (0, 1)])
        for role in ("level", "alone", "step")
    )
    assert calls(joint) == lines("""
        a = linear(x, a_weight, a_bias)
        joint_norm = anytimeify.prefix_norm(a, [2, 4], norm_weight, None, 1e-05, False)
        joint_b_weight = mul.Tensor(b_weight, anytime_constants_mask_0)
        joint_b = linear(joint_norm, joint_b_weight, b_bias)
        joint_relu = relu(joint_b)
        joint_relu_at0 = slice.Tensor(joint_relu, 1, 0, 2)
        joint_head = linear(joint_relu_at0, anytime_0_head_weight, anytime_0_head_bias)
        joint_head_1 = linear(joint_relu, head_weight, head_bias)
        return joint_head, joint_head_1
    """)
    assert (
        calls(step)[-14:]
        == lines("""
        step_head = linear(step_relu, anytime_0_head_weight, anytime_0_head_bias)
        step_a_weight_chunk = slice.Tensor(a_weight, 0, 2, 4)
        step_a_bias_chunk = slice.Tensor(a_bias, 0, 2, 4)
        step_a_1 = linear(x, step_a_weight_chunk, step_a_bias_chunk)
        step_a_to1 = cat([step_a, step_a_1], 1)
        step_norm_1 = rms_norm(step_a_to1, [4], norm_weight, 1e-05)
        step_norm_new1 = slice.Tensor(step_norm_1, 1, 2, 4)
        step_b_weight_new1 = slice.Tensor(b_weight, 0, 2, 4)
        step_b_bias_new1 = slice.Tensor(b_bias, 0, 2, 4)
        step_norm_to1 = cat([step_norm, step_norm_new1], 1)
        step_b_1 = linear(step_norm_to1, step_b_weight_new1, step_b_bias_new1)
        step_relu_1 = relu(step_b_1)
        step_relu_to1 = cat([step_relu, step_relu_1], 1)
        step_head_1 = linear(step_relu_to1, head_weight, head_bias)
        return step_head, step_head_1
    """)[-14:]
    )
    with torch.no_grad():
        model.b.weight[:2, 2:] = 0
        wide = model.a(X)
        half = nn.functional.rms_norm(wide[:, :2], [2], model.norm.weight[:2], 1e-5)
        hidden = model.b(torch.cat([half, model.norm(wide)[:, 2:]], 1)).relu()
        weight, bias = (joint.tensors[f"anytime.0.head.{name}"] for name in ("weight", "bias"))
        low, full = nn.functional.linear(hidden[:, :2], weight, bias), model.head(hidden)
    for form in (joint, alone, step):
        torch.testing.assert_close(run(form, X), (low, full))


class WrittenOut(nn.Module):
    """A layer norm in single operations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale, self.head = nn.Linear(4, 4), nn.Parameter(torch.rand(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x - x.mean(1, keepdim=True)
        x = x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        result: Tensor = self.head(x * self.scale)
        return result


def test_triangular_norms_that_are_written_out() -> None:
    """The variance of a level is that of channels around the means of their own levels."""
    torch.manual_seed(0)
    model = WrittenOut()
    rewritten = applied(NestedChannels((0.5, 1.0), connectivity="triangular"), capture(model, X))
    joint = project(rewritten.program, [rewritten.names.index(Output("level", level)) for level in (0, 1)])
    assert calls(joint) == lines("""
        a = linear(x, a_weight, a_bias)
        joint_a_chunks = split_with_sizes(a, [2, 2], 1)
        joint_a_chunks_0 = getitem(joint_a_chunks, 0)
        joint_a_chunks_1 = getitem(joint_a_chunks, 1)
        joint_mean = mean.dim(joint_a_chunks_0, [1], True)
        joint_mean_1 = mean.dim(joint_a_chunks_1, [1], True)
        joint_mean_to1 = lerp.Scalar(joint_mean, joint_mean_1, 0.5)
        joint_sub = sub.Tensor(joint_a_chunks_0, joint_mean)
        joint_sub_1 = sub.Tensor(joint_a_chunks_1, joint_mean_to1)
        joint_sub_2 = cat([joint_sub, joint_sub_1], 1)
        joint_pow_op = pow.Tensor_Scalar(joint_sub_2, 2)
        joint_pow_op_chunks = split_with_sizes(joint_pow_op, [2, 2], 1)
        joint_pow_op_chunks_0 = getitem(joint_pow_op_chunks, 0)
        joint_pow_op_chunks_1 = getitem(joint_pow_op_chunks, 1)
        joint_mean_1_1 = mean.dim(joint_pow_op_chunks_0, [1], True)
        joint_mean_1_2 = mean.dim(joint_pow_op_chunks_1, [1], True)
        joint_mean_1_to1 = lerp.Scalar(joint_mean_1_1, joint_mean_1_2, 0.5)
        joint_add = add.Tensor(joint_mean_1_1, 1e-05)
        joint_add_1 = add.Tensor(joint_mean_1_to1, 1e-05)
        joint_sqrt = sqrt(joint_add)
        joint_sqrt_1 = sqrt(joint_add_1)
        joint_div = div.Tensor(joint_sub, joint_sqrt)
        joint_div_1 = div.Tensor(joint_sub_1, joint_sqrt_1)
        joint_div_2 = cat([joint_div, joint_div_1], 1)
        joint_mul = mul.Tensor(joint_div_2, scale)
        joint_mul_at0 = slice.Tensor(joint_mul, 1, 0, 2)
        joint_head = linear(joint_mul_at0, anytime_0_head_weight, anytime_0_head_bias)
        joint_head_1 = linear(joint_mul, head_weight, head_bias)
        return joint_head, joint_head_1
    """)
    with torch.no_grad():
        wide = model.a(X)
        away = wide - torch.stack([wide[:, :2].mean(1), wide.mean(1)], 1).repeat_interleave(2, 1)
        square = torch.stack([away[:, :2].pow(2).mean(1), away.pow(2).mean(1)], 1).repeat_interleave(2, 1)
        hidden = away / (square + 1e-5).sqrt() * model.scale
        weight, bias = (joint.tensors[f"anytime.0.head.{name}"] for name in ("weight", "bias"))
        low, full = nn.functional.linear(hidden[:, :2], weight, bias), model.head(hidden)
    torch.testing.assert_close(run(joint, X), (low, full))


class Standardised(nn.Module):
    """A convolution whose weight is standardised, and a group norm of one group."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 4, 1, bias=False), nn.Conv1d(4, 4, 1, bias=False)
        self.norm, self.head = nn.GroupNorm(1, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.norm(self.a(x)), self.b.weight
        flat = nn.functional.batch_norm(weight.reshape(1, 4, -1), None, None, training=True, momentum=0.0)
        result: Tensor = self.head(nn.functional.conv1d(x, flat.reshape_as(weight)).mean(2))
        return result


def test_triangular_group_norms_and_standardised_weights() -> None:
    torch.manual_seed(0)
    model, x = Standardised(), torch.randn(2, 3, 5)
    rewritten = applied(NestedChannels((0.5, 1.0), connectivity="triangular"), capture(model, x))
    joint = project(rewritten.program, [rewritten.names.index(Output("level", level)) for level in (0, 1)])
    assert calls(joint) == lines("""
        a = conv1d(x, a_weight)
        reshape = reshape(b_weight, [1, 4, -1])
        joint_norm = anytimeify.prefix_group_norm(a, [2, 4], norm_weight, norm_bias, 1e-05)
        joint_batch_norm = anytimeify.prefix_standardise(reshape, [2, 4], [2, 4], None, None, 1e-05)
        joint_reshape_as = reshape_as(joint_batch_norm, b_weight)
        joint_conv1d_weight = mul.Tensor(joint_reshape_as, anytime_constants_mask_0)
        joint_conv1d = conv1d(joint_norm, joint_conv1d_weight)
        joint_mean = mean.dim(joint_conv1d, [2])
        joint_mean_at0 = slice.Tensor(joint_mean, 1, 0, 2)
        joint_head = linear(joint_mean_at0, anytime_0_head_weight, anytime_0_head_bias)
        joint_head_1 = linear(joint_mean, head_weight, head_bias)
        return joint_head, joint_head_1
    """)
    with torch.no_grad():
        wide, weight = model.a(x), model.b.weight
        normed = torch.cat([nn.functional.group_norm(wide[:, :2], 1), nn.functional.group_norm(wide, 1)[:, 2:]], 1)
        rows = [nn.functional.layer_norm(part[..., 0], part.shape[1:2]) for part in (weight[:2, :2], weight[2:])]
        low, high = (
            nn.functional.linear(normed[:, :k].movedim(1, -1), row) for k, row in zip((2, 4), rows, strict=True)
        )
        hidden = torch.cat([low, high], -1).mean(1)
        own = [joint.tensors[f"anytime.0.head.{name}"] for name in ("weight", "bias")]
        expected = nn.functional.linear(hidden[:, :2], *own), model.head(hidden)
    torch.testing.assert_close(run(joint, x), expected)


class Table(nn.Module):
    """Patches, and an embedding of where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.positions, self.head = (
            nn.Conv1d(3, 4, 2, stride=2),
            nn.Parameter(torch.randn(1, 4, 8)),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head((self.patch(x) + self.positions).mean(2))
        return result


def test_interpolated_positions() -> None:
    torch.manual_seed(0)
    model, x = Table(), torch.randn(2, 3, 16)
    captured = capture(model, x)
    assert calls(captured.program) == lines("""
        patch = conv1d(x, patch_weight, patch_bias, [2])
        add = add.Tensor(patch, positions)
        mean = mean.dim(add, [2])
        head = linear(mean, head_weight, head_bias)
        return head
    """)
    low = project(applied(NestedResolution((0.5, 1.0)), captured).program, [0])
    assert calls(low) == lines("""
        level0_x_resized = upsample_linear1d.vec(x, [8], False, None)
        level0_patch = conv1d(level0_x_resized, patch_weight, patch_bias, [2])
        level0_positions_positions_last = permute(positions, [0, 1, 2])
        level0_positions_grid = reshape(level0_positions_positions_last, [1, 4, 8])
        level0_positions_interpolated = upsample_linear1d.vec(level0_positions_grid, [4], False, None)
        level0_positions_in_a_row = reshape(level0_positions_interpolated, [1, 4, 4])
        level0_positions_positions = permute(level0_positions_in_a_row, [0, 1, 2])
        level0_add = add.Tensor(level0_patch, level0_positions_positions)
        level0_mean = mean.dim(level0_add, [2])
        level0_head = linear(level0_mean, head_weight, head_bias)
        return level0_head
    """)
    model.positions = nn.Parameter(nn.functional.interpolate(model.positions, 4, mode="linear"))
    torch.testing.assert_close(run(low, x), (model(nn.functional.interpolate(x, 8, mode="linear")),))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.fc(x).relu()
        return result


class Residual(nn.Module):
    """A stem, residual blocks, a layer, and a head."""

    def __init__(self, repeats: int = 2, width: int = 8) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Linear(4, 6), nn.Linear(6, width), nn.Linear(width, 3)
        self.body = nn.Sequential(*(Block() for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.mid(self.body(self.stem(x))).relu())
        return result


RESIDUAL = """
    stem = linear(x, stem_weight, stem_bias)
    body_0_fc = linear(stem, body_0_fc_weight, body_0_fc_bias)
    body_0_relu = relu(body_0_fc)
    body_0_add = add.Tensor(stem, body_0_relu)
    body_1_fc = linear(body_0_add, body_1_fc_weight, body_1_fc_bias)
    body_1_relu = relu(body_1_fc)
    body_1_add = add.Tensor(body_0_add, body_1_relu)
    mid = linear(body_1_add, mid_weight, mid_bias)
    relu = relu(mid)
    head = linear(relu, head_weight, head_bias)
    return head
"""


def test_branch() -> None:
    captured = capture(Residual(), X)
    assert calls(captured.program) == lines(RESIDUAL)
    branch = Branch("stem", repeats={"body": 1}, widths={"mid": 0.5})
    program = applied(AuxiliaryBranches((branch,)), captured).program
    assert calls(program) == lines(RESIDUAL)[:-1] + lines("""
        level0_body_0_fc = linear(stem, anytime_0_body_0_fc_weight, anytime_0_body_0_fc_bias)
        level0_body_0_relu = relu(level0_body_0_fc)
        level0_body_0_add = add.Tensor(stem, level0_body_0_relu)
        level0_mid = linear(level0_body_0_add, anytime_0_mid_weight, anytime_0_mid_bias)
        level0_relu = relu(level0_mid)
        level0_head = linear(level0_relu, anytime_0_head_weight, anytime_0_head_bias)
        return level0_head, head
    """)
    small, tensors = Residual(repeats=1, width=4), program.tensors
    small.load_state_dict({name: tensors.get(f"anytime.0.{name}", tensors[name]) for name in small.state_dict()})
    low, full = run(program, X)
    torch.testing.assert_close(low, small(X))
    torch.testing.assert_close((full,), run(captured.program, X))


def test_pooled_head() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(256, 5)), torch.randn(2, 3, 10, 10)
    backbone = """
        m0 = conv2d(input_op, m0_weight, m0_bias)
        m1 = flatten.using_ints(m0, 1)
        m2 = linear(m1, m2_weight, m2_bias)
        return m2
    """
    captured = capture(model, x)
    assert calls(captured.program) == lines(backbone)
    program = applied(AuxiliaryBranches((Branch("0", head="pool"),)), captured).program
    assert calls(program) == lines(backbone)[:-1] + lines("""
        level0_average = adaptive_avg_pool2d(m0, [4, 4])
        level0_flat = flatten.using_ints(level0_average, 1)
        level0_pooled = linear(level0_flat, anytime_0_pooled_weight, anytime_0_pooled_bias)
        return level0_pooled, m2
    """)
    pooled = nn.functional.avg_pool2d(model[0](x), 2).flatten(1)
    weight, bias = (program.tensors[f"anytime.0.pooled.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(run(program, x), (nn.functional.linear(pooled, weight, bias), model(x)))


class Ordered(nn.Module):
    """What a sample becomes depends on those before it: members cannot be more samples."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.stem(x).tanh()).cumsum(0)
        return result


def test_what_is_not_fused_runs_member_by_member() -> None:
    torch.manual_seed(0)
    model = Ordered()
    captured = capture(model, X)
    assert calls(captured.program) == lines("""
        stem = linear(x, stem_weight, stem_bias)
        tanh = tanh(stem)
        head = linear(tanh, head_weight, head_bias)
        cumsum = cumsum(head, 0)
        return cumsum
    """)
    fused, unrolled = (
        project(rewritten.program, [rewritten.names.index(Output("member", member)) for member in (0, 1)])
        for fuse in (True, False)
        for rewritten in [applied(HierarchicalEnsemble(splits=(("stem", 2),), fuse=fuse), captured)]
    )
    assert calls(unrolled) == lines("""
        stem = linear(x, stem_weight, stem_bias)
        tanh = tanh(stem)
        head_weight_part = slice.Tensor(head_weight, 0, 0, 3)
        head_weight_part_1 = slice.Tensor(head_weight, 0, 3, 6)
        head_bias_part = slice.Tensor(head_bias, 0, 0, 3)
        head_bias_part_1 = slice.Tensor(head_bias, 0, 3, 6)
        member0_head = linear(tanh, head_weight_part, head_bias_part)
        member1_head = linear(tanh, head_weight_part_1, head_bias_part_1)
        member0_cumsum = cumsum(member0_head, 0)
        member1_cumsum = cumsum(member1_head, 0)
        return member0_cumsum, member1_cumsum
    """)
    assert calls(fused) == lines("""
        stem = linear(x, stem_weight, stem_bias)
        tanh = tanh(stem)
        tanh_repeated = repeat(tanh, [2, 1])
        tanh_wide = unflatten.int(tanh_repeated, 0, [2, -1])
        head_weight_wide = unflatten.int(head_weight, 0, [2, 3])
        head_weight_turned = transpose.int(head_weight_wide, 1, 2)
        head_bias_wide = unflatten.int(head_bias, 0, [2, 3])
        head_bias_more = unsqueeze(head_bias_wide, 1)
        head_product = baddbmm(head_bias_more, tanh_wide, head_weight_turned)
        head_flat = flatten.using_ints(head_product, 0, 1)
        head_members = chunk(head_flat, 2, 0)
        head_member = getitem(head_members, 0)
        head_member_1 = getitem(head_members, 1)
        member0_cumsum_1 = cumsum(head_member, 0)
        member1_cumsum_1 = cumsum(head_member_1, 0)
        return member0_cumsum_1, member1_cumsum_1
    """)
    for program in (unrolled, fused):
        weights, biases = (program.tensors[f"head.{name}"].chunk(2) for name in ("weight", "bias"))
        hidden = model.stem(X).tanh()
        expected = [nn.functional.linear(hidden, *own).cumsum(0) for own in zip(weights, biases, strict=True)]
        torch.testing.assert_close(run(program, X), tuple(expected))


def test_residual_units_are_left_out() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 3)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x + shift).relu()
            result: Tensor = self.head(x)
            return result

    captured = capture(Shifted(), (X, X))
    program = applied(NestedDepth(), captured).program
    assert calls(program) == lines("""
        add = add.Tensor(x, shift)
        layers_0 = linear(add, layers_0_weight, layers_0_bias)
        relu = relu(layers_0)
        add_1 = add.Tensor(x, relu)
        add_2 = add.Tensor(add_1, shift)
        layers_1 = linear(add_2, layers_1_weight, layers_1_bias)
        relu_1 = relu(layers_1)
        add_3 = add.Tensor(add_1, relu_1)
        head = linear(add_3, head_weight, head_bias)
        level0_head = linear(add_1, head_weight, head_bias)
        return level0_head, head
    """)
    one, other = run(program, X, X)
    torch.testing.assert_close(other, run(captured.program, X, X)[0])
    assert not torch.equal(one, other)


def test_a_fork_that_two_tensors_pass() -> None:
    class SkipConnected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 4), nn.Linear(8, 3)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = whole = self.stem(x).relu()
            for layer in self.layers:
                x = x + layer(x).relu()
            result: Tensor = self.head(torch.cat([x, whole], 2))
            return result

    captured = capture(SkipConnected(), X[None])
    rewritten = applied(AuxiliaryBranches(1), captured)
    assert rewritten.levels[0].name == "branch at add_1 and 1 more"
    assert calls(rewritten.program)[-7:] == lines("""
        head = linear(cat, head_weight, head_bias)
        level0_layers_2 = linear(add_1, anytime_0_layers_2_weight, anytime_0_layers_2_bias)
        level0_relu_3 = relu(level0_layers_2)
        level0_add_2 = add.Tensor(add_1, level0_relu_3)
        level0_cat = cat([level0_add_2, relu], 2)
        level0_head = linear(level0_cat, anytime_0_head_weight, anytime_0_head_bias)
        return level0_head, head
    """)
    torch.testing.assert_close(run(rewritten.program, X[None])[1], run(captured.program, X[None])[0])


def test_a_pooled_head_of_a_dense_prediction() -> None:
    class Segmentation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.out = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 2, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(self.out(self.down(x).relu()), scale_factor=2.0, mode="nearest")

    captured = capture(Segmentation(), torch.randn(2, 3, 8, 8))
    program = applied(AuxiliaryBranches((Branch("down", head="pool"),)), captured).program
    assert calls(program) == lines("""
        down = conv2d(x, down_weight, down_bias, [2, 2])
        relu = relu(down)
        out = conv2d(relu, out_weight, out_bias, [1, 1], [1, 1])
        upsample_nearest2d = upsample_nearest2d.vec(out, None, [2.0, 2.0])
        level0_pooled = conv2d(down, anytime_0_pooled_weight, anytime_0_pooled_bias)
        level0_interpolated = upsample_bilinear2d.vec(level0_pooled, [8, 8], False, None)
        return level0_interpolated, upsample_nearest2d
    """)
    x = torch.randn(2, 3, 8, 8)
    assert run(program, x)[0].shape == (2, 2, 8, 8)
