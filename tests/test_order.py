import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emnist_dali import order
from emnist_dali.order import Stream

SEEDS = st.integers(0, 2**63 - 1)


@given(seed=SEEDS, epoch=st.integers(0, 10_000), n=st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_an_epoch_is_a_permutation_and_nothing_but_its_key_decides_it(seed, epoch, n):
    members = np.arange(n) * 3 + 1
    first = order.permutation(members, seed, epoch)
    np.testing.assert_array_equal(np.sort(first), members)
    np.testing.assert_array_equal(first, order.permutation(members, seed, epoch))
    assert first.dtype == np.int64


def test_epochs_and_seeds_are_shuffled_apart():
    members = np.arange(100)
    orders = {order.permutation(members, seed, epoch).tobytes() for seed in range(5) for epoch in range(5)}
    assert len(orders | {members.tobytes()}) == 26


def test_members_are_not_shuffled_in_place():
    members = np.arange(50)
    order.permutation(members, 0, 0)
    np.testing.assert_array_equal(members, np.arange(50))


@given(st.integers(0, 10**6), st.integers(1, 600), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_an_epoch_is_as_many_whole_steps_as_the_samples_fill(samples, batch_size, accumulation):
    batches = order.batches_per_epoch(samples, batch_size, accumulation)
    assert batches % accumulation == 0
    assert 0 <= samples - batches * batch_size < batch_size * accumulation


@given(n=st.integers(1, 200), share=st.integers(1, 20), world=st.sampled_from([1, 2, 4]), epoch=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_ranks_together_are_the_order_of_one_rank(n, share, world, epoch):
    members, batch_size = np.arange(n), share * world
    shuffled = order.permutation(members, 1, epoch)
    batches = -(-n // batch_size)  # with the short last batch of an evaluation
    together = []
    for batch in range(batches):
        slices = [order.rank_batch(shuffled, batch, batch_size, rank, world) for rank in range(world)]
        assert max(map(len, slices)) <= share
        np.testing.assert_array_equal(np.concatenate(slices), order.rank_batch(shuffled, batch, batch_size))
        together += slices
    # Equal to the order: nothing is twice, nothing is missing.
    np.testing.assert_array_equal(np.concatenate(together), shuffled)


def test_whole_batches_give_all_ranks_the_same_number():
    members = np.arange(70)
    for batch in range(order.batches_per_epoch(70, 16)):
        assert [len(order.rank_batch(members, batch, 16, rank, 4)) for rank in range(4)] == [4] * 4


def test_the_last_evaluation_batch_is_short():
    members = np.arange(70)
    assert [order.rank_batch(members, 4, 16, rank, 4).tolist() for rank in range(4)] == [
        [64, 65, 66, 67],
        [68, 69],
        [],
        [],
    ]


LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=300).map(lambda labels: np.array(labels, np.uint8))


@given(labels=LABELS, fraction=st.floats(0, 1, exclude_max=True), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_holdout_is_disjoint_complete_sorted_and_stratified(labels, fraction, seed):
    train, held_out = order.holdout(labels, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(len(labels)))
    for part in (train, held_out):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    counts = np.bincount(labels, minlength=7)
    taken = np.bincount(labels[held_out], minlength=7)
    assert (np.abs(taken - counts * fraction) <= 0.5 + 1e-9).all()
    for part, again in zip((train, held_out), order.holdout(labels, fraction, seed), strict=True):
        np.testing.assert_array_equal(part, again)


def test_holdout_differs_by_seed_and_takes_from_everywhere():
    labels = np.repeat(np.arange(4, dtype=np.uint8), 100)
    parts = [order.holdout(labels, 0.2, seed)[1] for seed in range(10)]
    assert len({part.tobytes() for part in parts}) == 10
    # 0.8¹⁰ of a class is never taken.
    assert 320 < len(np.unique(parts)) < 400


def test_holding_out_nothing_leaves_everything_for_training():
    train, held_out = order.holdout(np.arange(10, dtype=np.uint8), 0, 5)
    assert (train.tolist(), held_out.tolist()) == (list(range(10)), [])


def test_every_key_has_its_own_numbers():
    keys = [
        (seed, stream, epoch, batch)
        for seed in (0, 1, 2**63 - 1)
        for stream in Stream
        for epoch in (0, 1, 2)
        for batch in (0, 1, 2)
    ]
    draws = {order.generator(*key).bytes(64) for key in keys}
    assert len(draws) == len(keys)
    assert draws == {order.generator(*key).bytes(64) for key in keys}


def test_positions_next_to_each_other_do_not_overlap():
    """A neighbour's numbers are no later part of this position's."""
    here = order.generator(0, Stream.AFFINE).integers(2**63, size=4_000).tolist()
    for epoch, batch in ((0, 1), (1, 0), (1, 1)):
        assert not set(here) & set(order.generator(0, Stream.AFFINE, epoch, batch).integers(2**63, size=100).tolist())


@pytest.mark.parametrize("stream", Stream)
def test_numbers_are_uniform_over_positions(stream):
    first = np.array(
        [order.generator(7, stream, epoch, batch).random() for epoch in range(20) for batch in range(50)]
    )
    shares = np.histogram(first, 10, (0, 1))[0] / len(first)
    assert np.abs(shares - 0.1).max() < 4 * np.sqrt(0.1 * 0.9 / len(first))
