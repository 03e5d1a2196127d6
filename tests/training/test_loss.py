import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emnist_dali.core.errors import UserError
from emnist_dali.training.loss import class_weights, kl_divergence, log_frequencies


def batch(n: int = 6, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand((n, classes), generator=generator) + 0.01
    return 3 * torch.randn((n, classes), generator=generator), targets / targets.sum(1, keepdim=True)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=62))
@settings(max_examples=100, deadline=None)
def test_class_weights_are_rescaled_inverse_frequencies(counts):
    weights = class_weights(counts, range(len(counts)))
    assert weights.dtype == torch.float32
    inverse = 1 / np.array(counts)
    spread = inverse.max() - inverse.min()
    expected = 1 + (inverse - inverse.min()) / spread if spread else np.ones(len(counts))
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert 1 <= weights.min() <= weights.max() <= 2
    if spread:
        assert weights[int(np.argmin(counts))] == 2
        assert weights[int(np.argmax(counts))] == 1


def test_equal_counts_give_exactly_one():
    assert torch.equal(class_weights([2_400] * 47, "x" * 47), torch.ones(47))


@pytest.mark.parametrize("function", [class_weights, log_frequencies])
def test_a_class_without_images_is_named(function):
    with pytest.raises(UserError, match="'q'"):
        function([3, 0, 5], "pqr")


def test_adjusted_logits_of_a_balanced_prediction_are_the_frequencies():
    """A model that knows nothing of an image takes all classes to be equally likely."""
    adjustment = log_frequencies([10, 30, 60], "pqr")
    torch.testing.assert_close((torch.zeros(1, 3) + adjustment).softmax(1), torch.tensor([[0.1, 0.3, 0.6]]))
    assert kl_divergence(torch.zeros(100, 3) + adjustment, torch.tensor([[0.1, 0.3, 0.6]]).expand(100, 3)) < 1e-6


def test_it_is_cross_entropy_less_the_targets_entropy():
    logits, targets = batch()
    entropy = -(targets * targets.log()).sum(1).mean()
    expected = torch.nn.functional.cross_entropy(logits, targets) - entropy
    torch.testing.assert_close(kl_divergence(logits, targets), expected)


def test_it_is_zero_where_prediction_and_target_agree_and_above_elsewhere():
    logits, targets = batch()
    assert abs(kl_divergence(targets.log(), targets)) < 1e-6
    assert kl_divergence(logits, targets) > 0.1


def test_gradients_are_those_of_cross_entropy():
    logits, targets = batch()
    logits.requires_grad_()
    ours = torch.autograd.grad(kl_divergence(logits, targets), logits)[0]
    torch.testing.assert_close(
        ours, torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), logits)[0]
    )


def test_hard_targets_are_finite():
    logits, _ = batch()
    logits[0] = torch.tensor([90.0, -90, 0, 0, 0])
    logits.requires_grad_()
    labels = torch.tensor([1, 2, 4, 0, 3, 0])
    loss = kl_divergence(logits, torch.nn.functional.one_hot(labels, 5).float())
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels))
    loss.backward()
    assert logits.grad.isfinite().all()


def test_weights_scale_the_terms_of_their_classes():
    logits, targets = batch()
    weights = torch.tensor([1.0, 1.5, 2.0, 1.1, 1.9])
    log_p = logits.double().log_softmax(1)
    terms = weights * targets * (targets.double().log() - log_p)
    torch.testing.assert_close(kl_divergence(logits, targets, weights).double(), terms.sum() / len(logits))
    ones = torch.ones(5)
    torch.testing.assert_close(kl_divergence(logits, targets, ones), kl_divergence(logits, targets))


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 1.5, 2.0, 1.1, 1.9])])
def test_half_batches_average_to_the_whole(weights):
    """Also where the halves' classes, and so their sums of weights, differ."""
    logits, _ = batch()
    targets = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 2, 2, 2]), 5).float()
    halves = [kl_divergence(logits[part], targets[part], weights) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(halves) / 2, kl_divergence(logits, targets, weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits, targets = batch(n=64, classes=47)
    rounded = logits.to(dtype)
    loss = kl_divergence(rounded, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, kl_divergence(rounded.float(), targets))
