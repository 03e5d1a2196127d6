import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emnist_dali.loading import sampling
from emnist_dali.loading.sampling import Stream

SEEDS = st.integers(0, 2**63 - 1)


@given(seed=SEEDS, epoch=st.integers(0, 10_000), n=st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_an_epoch_is_a_permutation_and_nothing_but_its_key_decides_it(seed, epoch, n):
    first = sampling.shuffled(n, range(n), seed, epoch)
    assert sorted(first.tolist()) == list(range(n))
    np.testing.assert_array_equal(first, sampling.shuffled(n, range(n), seed, epoch))
    assert first.dtype == np.int64
    middle = range(n // 3, n // 2)
    np.testing.assert_array_equal(first[n // 3 : n // 2], sampling.shuffled(n, middle, seed, epoch))


def test_epochs_and_seeds_are_shuffled_apart():
    orders = {sampling.shuffled(100, range(100), seed, epoch).tobytes() for seed in range(5) for epoch in range(5)}
    assert len(orders | {np.arange(100).tobytes()}) == 26


@pytest.mark.parametrize("samples", [5, 16, 100])
def test_every_sample_comes_to_every_place_equally_often(samples):
    orders = np.stack([sampling.shuffled(samples, range(samples), 0, epoch) for epoch in range(20_000)])
    followers = np.diff(orders, axis=1) % samples
    for drawn, values in ((orders, range(samples)), (followers, range(1, samples))):
        counts = np.stack([(drawn == value).sum(0) for value in values])
        expected, freedom = len(orders) / len(values), (len(values) - 1) * counts.shape[1]
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        # Six standard deviations of the distribution that even chances have.
        assert abs(chi_squared - freedom) < 6 * np.sqrt(2 * freedom)


def test_ten_million_samples_are_a_permutation_in_places():
    places = [range(start, start + 1000) for start in range(0, 10**7, 10**6)]
    drawn = np.concatenate([sampling.shuffled(10**7, part, 3, 4) for part in places])
    assert len(np.unique(drawn)) == 10_000
    assert drawn.min() >= 0
    assert drawn.max() < 10**7
    assert abs(drawn.mean() / 10**7 - 0.5) < 0.02


@given(st.integers(0, 10**6), st.integers(1, 600), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_an_epoch_is_as_many_whole_steps_as_the_samples_fill(samples, batch_size, accumulation):
    batches = sampling.batches_per_epoch(samples, batch_size, accumulation)
    assert batches % accumulation == 0
    assert 0 <= samples - batches * batch_size < batch_size * accumulation


@given(n=st.integers(1, 200), share=st.integers(1, 20), world=st.sampled_from([1, 2, 4]))
@settings(max_examples=100, deadline=None)
def test_ranks_together_are_the_order_of_one_rank(n, share, world):
    batch_size = share * world
    together = []
    for batch in range(-(-n // batch_size)):  # with the short last batch of an evaluation
        slices = [sampling.rank_batch(n, batch, batch_size, rank, world) for rank in range(world)]
        assert max(map(len, slices)) <= share
        places = [place for part in slices for place in part]
        assert places == list(sampling.rank_batch(n, batch, batch_size))
        together += places
    # Nothing is twice, nothing is missing.
    assert together == list(range(n))


def test_whole_batches_give_all_ranks_the_same_number():
    for batch in range(sampling.batches_per_epoch(70, 16)):
        assert [len(sampling.rank_batch(70, batch, 16, rank, 4)) for rank in range(4)] == [4] * 4


def test_the_last_evaluation_batch_is_short():
    slices = [list(sampling.rank_batch(70, 4, 16, rank, 4)) for rank in range(4)]
    assert slices == [[64, 65, 66, 67], [68, 69], [], []]


def every(classes, samples, seed, epoch):
    return sampling.balanced(classes, range(samples), seed, epoch)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_balanced_epoch_has_as_many_of_each_class(sizes, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    classes = sampling.Classes.of(labels)
    epochs = [every(classes, len(labels), seed, epoch) for epoch in range(3)]
    for samples in epochs:
        counts = np.bincount(labels[samples], minlength=len(sizes))[np.array(sizes) > 0]
        assert counts.max() - counts.min() <= 1
    # The images of a class come in turns, whatever the epochs: each as often as any other, to one.
    seen = np.bincount(np.concatenate(epochs), minlength=len(labels))
    for c in np.unique(labels):
        assert np.ptp(seen[labels == c]) <= 1
    middle = range(len(labels) // 3, len(labels) // 2)
    np.testing.assert_array_equal(epochs[1][middle], sampling.balanced(classes, middle, seed, 1))


def test_turns_epochs_and_seeds_of_a_class_are_shuffled_apart():
    labels = np.repeat([0, 1], [50, 10])
    classes, turns = sampling.Classes.of(labels), []
    for seed in range(3):
        for epoch in range(3):
            # Back in the order of an unshuffled epoch, in which the classes take turns.
            drawn = every(classes, 60, seed, epoch)[np.argsort(sampling.shuffled(60, range(60), seed, epoch))]
            assert labels[drawn].tolist() == 30 * [0, 1]
            turns += drawn[1::2].reshape(3, 10).tolist()
    assert all(sorted(turn) == list(range(50, 60)) for turn in turns)
    assert len(set(map(tuple, turns))) == 27


LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=300).map(lambda labels: np.array(labels, np.uint8))


@given(labels=LABELS, fraction=st.floats(0, 1, exclude_max=True), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_holdout_is_disjoint_complete_sorted_and_stratified(labels, fraction, seed):
    train, held_out = sampling.holdout(labels, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(len(labels)))
    for part in (train, held_out):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    counts = np.bincount(labels, minlength=7)
    taken = np.bincount(labels[held_out], minlength=7)
    assert (np.abs(taken - counts * fraction) <= 0.5 + 1e-9).all()
    for part, again in zip((train, held_out), sampling.holdout(labels, fraction, seed), strict=True):
        np.testing.assert_array_equal(part, again)


def test_holdout_differs_by_seed_and_takes_from_everywhere():
    labels = np.repeat(np.arange(4, dtype=np.uint8), 100)
    parts = [sampling.holdout(labels, 0.2, seed)[1] for seed in range(10)]
    assert len({part.tobytes() for part in parts}) == 10
    # 0.8¹⁰ of a class is never taken.
    assert 320 < len(np.unique(parts)) < 400


def test_holding_out_nothing_leaves_everything_for_training():
    train, held_out = sampling.holdout(np.arange(10, dtype=np.uint8), 0, 5)
    assert (train.tolist(), held_out.tolist()) == (list(range(10)), [])


def test_holdout_is_what_it_always_was():
    """Runs that are there were split like this; going on with one must not move an image."""
    labels = np.array([0, 1, 2, 1, 0, 1, 1, 2, 0, 1, 0, 2, 1, 1, 0, 0, 2, 1, 0, 1], np.uint8)
    frozen = {0: [1, 4, 8, 12, 16, 17], 7: [2, 4, 5, 10, 13, 17], 2**63 - 1: [0, 7, 8, 9, 12, 13]}
    assert {seed: sampling.holdout(labels, 0.3, seed)[1].tolist() for seed in frozen} == frozen


@given(labels=LABELS, number=st.integers(2, 8), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_folds_are_stratified_and_give_every_sample_one_place(labels, number, seed):
    fold_of = sampling.folds(labels, number, seed)
    assert fold_of.shape == labels.shape
    assert set(fold_of.tolist()) <= set(range(number))
    for label in np.unique(labels):
        counts = np.bincount(fold_of[labels == label], minlength=number)
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(fold_of, sampling.folds(labels, number, seed))


def test_folds_differ_by_seed_and_are_not_the_holdout_again():
    labels = np.repeat(np.arange(4, dtype=np.uint8), 100)
    parts = [sampling.folds(labels, 5, seed) for seed in range(10)]
    assert len({part.tobytes() for part in parts}) == 10
    # By chance a fifth of the first fold is held out of training too.
    first, held_out = np.flatnonzero(parts[0] == 0), sampling.holdout(labels, 0.2, 0)[1]
    assert 0.05 < np.isin(first, held_out).mean() < 0.4


def test_every_key_has_its_own_numbers():
    keys = [
        (seed, stream, epoch, batch)
        for seed in (0, 1, 2**63 - 1)
        for stream in Stream
        for epoch in (0, 1, 2)
        for batch in (0, 1, 2)
    ]
    draws = {sampling.generator(*key).bytes(64) for key in keys}
    assert len(draws) == len(keys)
    assert draws == {sampling.generator(*key).bytes(64) for key in keys}


def test_positions_next_to_each_other_do_not_overlap():
    """A neighbour's numbers are no later part of this position's."""
    here = sampling.generator(0, Stream.AFFINE).integers(2**63, size=4_000).tolist()
    for epoch, batch in ((0, 1), (1, 0), (1, 1)):
        assert not set(here) & set(
            sampling.generator(0, Stream.AFFINE, epoch, batch).integers(2**63, size=100).tolist()
        )


@pytest.mark.parametrize("stream", Stream)
def test_numbers_are_uniform_over_positions(stream):
    first = np.array(
        [sampling.generator(7, stream, epoch, batch).random() for epoch in range(20) for batch in range(50)]
    )
    shares = np.histogram(first, 10, (0, 1))[0] / len(first)
    assert np.abs(shares - 0.1).max() < 4 * np.sqrt(0.1 * 0.9 / len(first))
