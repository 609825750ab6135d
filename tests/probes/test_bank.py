"""The bank of probes on features that are made by hand."""

import torch
from planted import SITES, Narrow, Planted, bank, train

from segbench import probes


def test_the_probe_finds_what_is_there_and_nothing_else():
    source = Planted()
    trained = train(source, probes.Schedule(30, 5, 0.05, (0.9, 0.999), 0.0, 0.9, 0)).bank
    counts = probes.count(trained, source, range(12)).sum(1)
    accuracy = counts[..., 0].sum(1) / counts[..., 1].sum(1)
    assert accuracy[0] > 0.85
    assert accuracy[1] < 0.7


def test_standardised_features_have_mean_zero_and_deviation_one_and_fold_into_the_probe():
    source, made = Planted(scale=50), bank()
    made.standardise(source, range(12))
    ((features, _),) = Planted(scale=50, batch_size=12).read(range(12))
    mean, deviation = made.means[0], made.deviations[0]
    centred = ((features[SITES[0]] - mean) / deviation).flatten(0, 1)
    torch.testing.assert_close(centred.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(centred.std(0, unbiased=False), torch.ones(5), atol=1e-3, rtol=0)
    folded = probes.ProbeBank.load(made.export(), SITES, "cpu")
    torch.testing.assert_close(folded(features), made(features), rtol=1e-3, atol=1e-3)


def test_a_standardised_bank_trains_as_a_plain_one_does_on_standardised_features():
    raw, ready, made = Planted(scale=50), Planted(scale=50), bank()
    made.standardise(raw, range(12))
    for site, mean, deviation in zip(SITES, made.means, made.deviations, strict=True):
        ready._features[site] = (ready._features[site] - mean) / deviation
    trained, plain = train(raw, made=made).bank, train(ready).bank
    for ours, theirs in zip(trained.linears.parameters(), plain.linears.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_standardisation_that_lacks_memory_says_the_same_with_fewer_images_at_once():
    made, other, narrow = bank(), bank(), Narrow(1, MemoryError(), batch_size=8)
    made.standardise(narrow, range(12))
    other.standardise(Planted(batch_size=1), range(12))
    assert narrow.tried == [8, 4, 2, *[1] * 12]
    for ours, theirs in zip([*made.means, *made.deviations], [*other.means, *other.deviations], strict=True):
        assert torch.equal(ours, theirs)
