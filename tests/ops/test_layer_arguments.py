"""The public functions on layers: errors name the argument, what was expected and what came."""

import pytest
import torch

from fastmtl import ops

A, D = torch.ones(4, 3), torch.ones(4, 2)
IMAGES, OUT = torch.ones(4, 6, 5, 5), torch.ones(4, 2, 5, 5)
TOKENS, OF_TOKENS = torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.linear_moments(A, [None]), ValueError, "grads: expected at least one gradient"),
        (lambda: ops.linear_moments(A, [[D], [D]]), TypeError, "grads: expected T tensors, got lists"),
        (
            lambda: ops.linear_moments(A, [D], way="fast"),
            ValueError,
            "way: expected 'auto', 'pairs' or 'form', got 'fast'",
        ),
        (lambda: ops.linear_moments(A[:3], [D]), ValueError, r"grads: expected the shape of input.*\[4, 2\].*\[3, 3\]"),
        (lambda: ops.linear_moments(A[0], [D[0]]), ValueError, r"grads: expected the shape of input \[B, ..., in\]"),
        (lambda: ops.linear_moments(A.int(), [D]), TypeError, "input: expected one of torch.float32.*got torch.int32"),
        (lambda: ops.linear_moments([A], [D]), TypeError, "input: expected a tensor, got list"),
        (lambda: ops.linear_moments(A.to("meta"), [D]), ValueError, "input: expected a tensor on cpu.*got one on meta"),
        (lambda: ops.conv_moments(IMAGES, [OUT], 3), ValueError, r"grads: expected \[4, C_out, \*\[3, 3\]\]"),
        (lambda: ops.conv_moments(IMAGES[:3], [OUT], 3, padding=1), ValueError, r"grads: expected \[3, C_out"),
        (lambda: ops.conv_moments(IMAGES, [OUT], (3,), padding=1), ValueError, r"kernel_size: .*2 numbers.*got \(3,\)"),
        (
            lambda: ops.conv_moments(IMAGES, [OUT], 3, padding=-1),
            ValueError,
            "padding: expected a number or 2 .*got -1",
        ),
        (lambda: ops.conv_moments(IMAGES, [OUT], 3, padding="full"), ValueError, "padding: expected .*got 'full'"),
        (lambda: ops.conv_moments(IMAGES, [OUT], 3, stride=2, padding="same"), ValueError, "padding: .*strided"),
        (lambda: ops.conv_moments(IMAGES, [OUT], 3, padding=1, groups=4), ValueError, "groups: expected .*got 4"),
        (lambda: ops.conv_moments(IMAGES, [OUT], 3, padding_mode="mirror"), ValueError, "padding_mode: .*got 'mirror'"),
        (
            lambda: ops.conv_moments(IMAGES, [OUT], 3, transposed=True, padding_mode="circular"),
            ValueError,
            "padding_mode: expected 'zeros', got 'circular'",
        ),
        (
            lambda: ops.conv_moments(IMAGES, [torch.ones(4, 2, 11, 9)], 3, stride=1, transposed=True),
            ValueError,
            r"grads: expected \[4, C_out, \*\[7, 7\]\]",
        ),
        (lambda: ops.conv_moments(A, [D], 3), ValueError, r"input: expected \[B, C_in, \*spatial\].*got \[4, 3\]"),
        (lambda: ops.embedding_moments(TOKENS, [D]), ValueError, "grads: expected the shape of indices"),
        (lambda: ops.embedding_moments(A, [OF_TOKENS]), TypeError, "indices: expected one of torch.int64, torch.int32"),
        (
            lambda: ops.embedding_moments(TOKENS, [OF_TOKENS], padding_idx=-1),
            ValueError,
            "padding_idx: expected an index from 0 on.*got -1",
        ),
        (lambda: ops.norm_moments(IMAGES, [OUT], (1,)), ValueError, "grads: expected the shape of normalized"),
        (lambda: ops.norm_moments(OUT, [OUT], (0, 1)), ValueError, r"parameter_dims: .*1 to 3, got \[0, 1\]"),
        (lambda: ops.norm_moments(OUT, [OUT], (1, -3)), ValueError, "parameter_dims: expected distinct"),
        (lambda: ops.norm_moments(OUT, [OUT], ()), ValueError, "parameter_dims: expected distinct"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_one_tensor_for_all_tasks():
    grads = torch.randn(3, 4, 2)
    for one, several in zip(ops.linear_moments(A, grads), ops.linear_moments(A, list(grads)), strict=True):
        assert torch.equal(one, several)


def test_moments_of_layers_have_no_derivative_and_say_so():
    grad = torch.randn(4, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"fastmtl\.ops\.linear_moments has no derivative"):
        ops.linear_moments(A, [grad])[0].sum().backward()


def test_mixed_dtypes_take_the_gradients_dtype_for_the_result():
    """Under autocast a layer may read bfloat16 and get gradients in float32, or the other way round."""
    inputs, grad = torch.randn(4, 3), torch.randn(4, 2)
    for a, d in ((inputs.bfloat16(), grad), (inputs, grad.bfloat16()), (inputs, grad.double())):
        M, Q = ops.linear_moments(a, [d])
        exact_M, exact_Q = ops.linear_moments(a.double(), [d.double()])
        assert M.dtype == (torch.float64 if d.dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(M.double(), exact_M, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(Q.double(), exact_Q, rtol=1e-6, atol=1e-6)


def test_compiles_without_graph_breaks():
    def step(inputs, grads):
        M, Q = ops.conv_moments(inputs, grads, 3, padding=1)
        return M + 1, Q.diagonal()

    grads = [torch.randn_like(OUT) for _ in range(3)]
    images = torch.randn_like(IMAGES)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(images, grads), step(images, grads), strict=True):
        assert torch.equal(got, expected)
