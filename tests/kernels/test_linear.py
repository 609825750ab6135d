"""The probes' matrix products against float64, and the three bfloat16 parts of a GPU's with a CPU's arithmetic."""

import logging

import pytest
import torch

from segbench.kernels import linear as products
from segbench.kernels.linear import linear, split, split_gradient, split_logits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def scene(tokens=300, width=512, classes=19, dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    sizes = (tokens, width), (classes, width), (classes,), (tokens, classes)
    features, weight, bias, slope = (torch.randn(size, generator=draw).to(DEVICE) for size in sizes)
    return features.to(dtype), (weight / 50).requires_grad_(), bias.requires_grad_(), slope / 1e4


def results(features, weight, bias, slope):
    logits = linear(features, weight, bias)
    return logits.detach(), *torch.autograd.grad(logits, (weight, bias), slope)


def exact(features, weight, bias, slope):
    """Logits and gradients in float64."""
    right = features.double(), weight.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    logits = torch.addmm(right[2], right[0], right[1].T)
    return logits.detach(), *torch.autograd.grad(logits, right[1:], slope.double())


def off(ours, right):
    return float((ours - right).norm() / right.norm())


def by_hand(left, right):
    """What tensor cores do: exact products, float32 sums."""
    assert left.dtype == right.dtype == torch.bfloat16
    return left.float() @ right.float()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 300, 1500])
def test_logits_and_gradients_are_float64s_up_to_float32s_rounding(dtype, tokens):
    given = scene(tokens, dtype=dtype)
    for ours, right in zip(results(*given), exact(*given), strict=True):
        assert ours.dtype == torch.float32
        assert off(ours, right) < 1e-6


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU the two come from different kernels")
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision_features_give_the_bits_of_the_same_features_in_float32(dtype):
    features, *rest = scene(1500, dtype=dtype)
    for ours, theirs in zip(results(features, *rest), results(features.float(), *rest), strict=True):
        assert torch.equal(ours, theirs)


def test_no_copy_of_half_precision_features_waits_for_the_backward():
    features, weight, bias, _ = scene(dtype=torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda one: one):
        linear(features, weight, bias)
    assert [one.data_ptr() for one in kept] == [features.data_ptr()]


def test_three_bfloat16_parts_hold_a_float32():
    numbers = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 50)
    parts = split(numbers)
    assert parts.dtype == torch.bfloat16
    assert torch.equal(parts.double().sum(0), numbers.double())


def test_products_of_three_parts_are_float32s(monkeypatch):
    features, weight, bias, slope = scene(576, 2048, dtype=torch.bfloat16)
    logits, gradient, _ = exact(features, weight, bias, slope)
    assert off(split_logits(features, weight.detach(), bias.detach(), by_hand), logits) < 5e-7
    assert off(split_gradient(slope, features, by_hand), gradient) < 5e-7
    monkeypatch.setattr(products, "PARTS", 2)
    assert off(split_logits(features, weight.detach(), bias.detach(), by_hand), logits) > 1e-6


def test_a_gpu_multiplies_by_parts_where_they_prove_exact(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for product, exact_enough in ((by_hand, True), (lambda a, b: (a @ b).float(), False)):
        monkeypatch.setattr(products, "_tensor_cores", product)
        products._cores_are_exact.cache_clear()
        assert products._cores_are_exact(DEVICE) == exact_enough
    products._cores_are_exact.cache_clear()
    assert "weights in three bfloat16 parts" in caplog.messages[0]
    assert "plain PyTorch, as three bfloat16 parts are off by" in caplog.messages[1]


@pytest.fixture
def setting():
    """The process's own setting for float32 products on a CPU, whatever it is, put back afterwards."""
    before = products.ONEDNN.fp32_precision
    yield products.ONEDNN
    products.ONEDNN.fp32_precision = before


@pytest.mark.parametrize("own", ["none", "ieee"])
def test_the_setting_for_the_probes_products_is_not_left_behind(setting, own):
    setting.fp32_precision = own
    results(*scene(1024))
    assert setting.fp32_precision == own

    def fail():
        with products._precision(setting, "bf16"):
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert setting.fp32_precision == own


def test_onednn_is_taken_for_its_error_and_not_where_it_rounds(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    rounded = torch.Tensor.bfloat16
    for quick, taken, says in (
        (lambda one: one.float(), False, "plain PyTorch"),
        (lambda one: one + 1e-7 * one, True, "oneDNN, in float32"),
        (lambda one: rounded(one).float(), False, "plain PyTorch, as oneDNN's are off by"),
    ):
        products.onednn.cache_clear()
        products._tell.cache_clear()
        caplog.clear()
        monkeypatch.setattr(products, "_under_onednn", lambda a, b, quick=quick: quick(a @ b))
        assert products.onednn(64, 100, 20) == taken
        assert caplog.messages[0].startswith(f"probes' products on a CPU: {says}")
        products._making.cache_clear()
        assert products.making("cpu").startswith(says)
    assert products.making("meta") == "plain PyTorch"
    products._making.cache_clear()
    products.onednn.cache_clear()
    products._tell.cache_clear()


def test_equal_products_are_equal_to_the_bit_whoever_asked_first():
    given = scene(1024)
    first = results(*given)
    products.onednn.cache_clear()
    results(*scene(700, 300))
    for ours, again in zip(first, results(*given), strict=True):
        assert torch.equal(ours, again)
