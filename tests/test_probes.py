"""The bank of probes on features that are made by hand, so that what it must find is known."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segbench import probes
from segbench.errors import CellError
from segbench.features import FeatureSource
from segbench.kernels import Target
from segbench.metrics import confusion
from segbench.probes.memory import MicroBatch
from segbench.types import IGNORE, GridMap, Site

SITES = (Site("encoder"), Site("llm", 1))
GRID, CLASSES = (3, 4), 3
SCHEDULE = probes.Schedule(epochs=4, batch=5, lr=0.05, betas=(0.9, 0.999), weight_decay=0.0, power=0.9, seed=0)


class Planted(FeatureSource):
    """Features that hold the class of their patch at the encoder, and noise at llm.1."""

    def __init__(self, images: int = 12, batch_size: int = 3, seed: int = 0, scale: float = 1.0) -> None:
        random = np.random.default_rng(seed)
        self.sites, self.batch_size = SITES, batch_size
        labels = random.integers(0, CLASSES, (images, 12))
        one_hot = np.eye(5)[labels]
        self._features = {
            SITES[0]: torch.from_numpy(one_hot * scale + random.normal(0, 0.1, one_hot.shape)).float(),
            SITES[1]: torch.from_numpy(random.normal(0, 1, (images, 12, 6))).float(),
        }
        masks = labels.reshape(images, *GRID).repeat(4, 1).repeat(4, 2).astype(np.uint8)
        masks[:, 0] = IGNORE
        self._targets = [Target.of(GridMap.squash(GRID, (12, 16)), mask) for mask in masks]

    def read(self, indices):
        for start in range(0, len(indices), self.batch_size):
            chosen = [int(i) for i in indices[start : start + self.batch_size]]
            yield {site: x[chosen] for site, x in self._features.items()}, [self._targets[i] for i in chosen]

    def target(self, index):
        return self._targets[index]


def bank(seed=0, **options):
    return probes.ProbeBank({SITES[0]: 5, SITES[1]: 6}, CLASSES, seed=seed, **options)


def train(source, schedule=SCHEDULE, made=None):
    trainer = probes.Trainer(made or bank(), source, range(12), schedule)
    for epoch in range(schedule.epochs):
        trainer.epoch(epoch, lambda images: None)
    return trainer


class Narrow(Planted):
    """Planted features of which only a few images fit into memory at once."""

    def __init__(self, fit: int, lack: BaseException | None, **options) -> None:
        super().__init__(**options)
        self.fit, self.lack, self.tried = fit, lack, []

    def read(self, indices):
        for features, targets in super().read(indices):
            self.tried.append(len(targets))
            if len(targets) > self.fit:
                if self.lack is None:
                    torch.empty(1 << 55)
                raise self.lack
            yield features, targets


LACKS = (None, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_the_probe_finds_what_is_there_and_nothing_else():
    source = Planted()
    trained = train(source, probes.Schedule(30, 5, 0.05, (0.9, 0.999), 0.0, 0.9, 0)).bank
    counts = probes.count(trained, source, range(12)).sum(1)
    accuracy = counts[..., 0].sum(1) / counts[..., 1].sum(1)
    assert accuracy[0] > 0.85
    assert accuracy[1] < 0.7


def test_one_step_is_adamw_on_the_mean_over_the_valid_pixels_of_the_whole_batch():
    source, made, plain = Planted(images=4, batch_size=1), bank(), bank()
    schedule = probes.Schedule(1, 4, 0.05, (0.9, 0.999), 0.0, 0.9, 0)
    probes.Trainer(made, source, range(4), schedule).epoch(0, lambda images: None)
    ((features, targets),) = Planted(images=4, batch_size=4).read(range(4))
    optimiser = torch.optim.AdamW(plain.linears.parameters(), lr=0.05, weight_decay=0.0)
    truth = torch.stack([target.labels.where(target.valid, IGNORE) for target in targets]).long()
    for site, logits in zip(SITES, plain(features), strict=True):
        picture = logits.unflatten(1, GRID).permute(0, 3, 1, 2)
        pixels = F.interpolate(picture, (12, 16), mode="bilinear", align_corners=False)
        F.cross_entropy(pixels, truth, ignore_index=IGNORE).backward(retain_graph=site == SITES[0])
    optimiser.step()
    for ours, theirs in zip(made.linears.parameters(), plain.linears.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 12])
def test_micro_batches_change_nothing(batch_size):
    reference, other = train(Planted(batch_size=3)).bank, train(Planted(batch_size=batch_size)).bank
    for a, b in zip(reference.linears.parameters(), other.linears.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_training_together_is_training_alone():
    together = train(Planted()).bank.export()
    alone = Planted()
    alone.sites = SITES[1:]
    torch_bank = probes.ProbeBank({SITES[1]: 6}, CLASSES)
    torch_bank.load_state_dict(
        {name.replace("1", "0", 1): value for name, value in bank().state_dict().items() if ".1" in name}
    )
    single = train(alone, made=torch_bank).bank.export()
    np.testing.assert_allclose(together["llm.1.weight"], single["llm.1.weight"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_training_ends_in_the_same_bits(stop):
    whole = train(Planted())
    first = probes.Trainer(bank(), Planted(), range(12), SCHEDULE)
    for epoch in range(stop):
        first.epoch(epoch, lambda images: None)
    second = probes.Trainer(bank(seed=99), Planted(), range(12), SCHEDULE)
    second.restore({name: array.copy() for name, array in first.state().items()})
    for epoch in range(stop, SCHEDULE.epochs):
        second.epoch(epoch, lambda images: None)
    assert same(whole.bank.export(), second.bank.export())
    assert same(whole.state(), second.state())


def test_seeds_differ_and_one_seed_does_not():
    schedule = probes.Schedule(4, 5, 0.05, (0.9, 0.999), 0.0, 0.9, seed=1)
    assert same(train(Planted()).bank.export(), train(Planted()).bank.export())
    assert not same(train(Planted()).bank.export(), train(Planted(), schedule, bank(seed=1)).bank.export())


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


def test_a_diverging_probe_names_its_site_and_epoch():
    source = Planted()
    source._features[SITES[1]][:, 3] = torch.inf
    trainer = probes.Trainer(bank(), Planted(), range(12), SCHEDULE)
    trainer.epoch(0, lambda images: None)
    trainer.source = source
    with pytest.raises(CellError, match=r"probe at llm\.1 diverged in epoch 2 \(step 3,"):
        trainer.epoch(1, lambda images: None)


def test_evaluation_counts_every_image_once_and_sums_the_pairs_over_all():
    made = bank()
    counted = probes.evaluate(made, Planted(), [7, 2, 5])
    predicted = np.zeros((2, 3, 3), int)
    for row, (pixels, target) in enumerate(probes.predictions(made, Planted(), [7, 2, 5])):
        truth = target.labels.where(target.valid, IGNORE).numpy()
        for site in range(2):
            pairs = confusion.confusion(pixels[site].numpy(), truth, CLASSES)
            np.testing.assert_array_equal(counted.images[site, row, :, 0], pairs.diagonal())
            np.testing.assert_array_equal(counted.images[site, row, :, 1], pairs.sum(1))
            np.testing.assert_array_equal(counted.images[site, row, :, 2], pairs.sum(0))
            predicted[site] += pairs
    np.testing.assert_array_equal(counted.confusion, predicted)
    assert (predicted.sum((1, 2)) == 3 * 11 * 16).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e38])
def test_an_evaluation_of_a_probe_that_diverged_names_its_site(bad):
    made = bank()
    made.linears[1].weight.data[2] = bad
    with pytest.raises(CellError, match=r"the probe at llm\.1 diverged: its largest logit is"):
        probes.evaluate(made, Planted(), range(4))
    with pytest.raises(CellError, match=r"the probe at llm\.1 diverged"):
        next(probes.predictions(made, Planted(), range(4)))


def test_best_keeps_each_sites_own_epoch():
    best = probes.Best()
    for epoch, score in enumerate(([1.0, 5.0], [2.0, 4.0], [2.0, 5.0])):
        weights = {f"{site}.weight": np.full((3, 2), epoch) for site in SITES}
        best.offer(epoch, np.array(score), np.full((2, 4, 3, 3), epoch), weights)
    assert best.arrays["epoch"].tolist() == [1, 0]
    assert best.arrays["counts"][:, 0, 0, 0].tolist() == [1, 0]
    assert [int(best.probes[f"{site}.weight"][0, 0]) for site in SITES] == [1, 0]


def test_features_in_half_precision_train_as_the_same_features_in_float32():
    half, full = Planted(), Planted()
    for site in SITES:
        half._features[site] = half._features[site].bfloat16()
        full._features[site] = half._features[site].float()
    assert same(train(half).state(), train(full).state())


def test_a_standardised_bank_trains_as_a_plain_one_does_on_standardised_features():
    raw, ready, made = Planted(scale=50), Planted(scale=50), bank()
    made.standardise(raw, range(12))
    for site, mean, deviation in zip(SITES, made.means, made.deviations, strict=True):
        ready._features[site] = (ready._features[site] - mean) / deviation
    trained, plain = train(raw, made=made).bank, train(ready).bank
    for ours, theirs in zip(trained.linears.parameters(), plain.linears.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_steps_of_all_parameters_at_once_are_those_of_one_after_the_other():
    made = bank()
    ours = probes.Trainer(made, Planted(), range(12), SCHEDULE)
    assert ours.optimiser.defaults["fused"]
    theirs = probes.Trainer(bank(), Planted(), range(12), SCHEDULE)
    theirs.optimiser = torch.optim.AdamW(theirs.bank.linears.parameters(), weight_decay=0.0, fused=False)
    for epoch in range(4):
        ours.epoch(epoch, lambda images: None)
        theirs.epoch(epoch, lambda images: None)
    for a, b in zip(made.linears.parameters(), theirs.bank.linears.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lack", LACKS, ids=["torch on a CPU", "python", "torch on a GPU"])
def test_a_training_that_lacks_memory_goes_on_in_the_bits_of_smaller_micro_batches(lack, caplog):
    narrow = Narrow(2, lack, batch_size=64)
    found = train(narrow)
    assert narrow.tried[:4] == [5, 2, 2, 1]
    assert max(narrow.tried[1:]) == 2
    assert found.micro_batch.images == 2
    assert same(found.state(), train(Planted(batch_size=2)).state())
    assert [message for message in caplog.messages if "out of memory: 2 image(s) at once" in message]


def test_a_step_that_fails_half_way_through_its_gradients_begins_anew():
    made, failed = bank(), []

    def fail_once(gradient):
        if len(failed) < 1:
            failed.append(gradient)
            raise MemoryError
        return gradient

    next(made.linears.parameters()).register_hook(fail_once)
    found = train(Planted(batch_size=5), made=made)
    assert len(failed) == 1
    assert same(found.state(), train(Planted(batch_size=2)).state())


def test_memory_too_small_for_one_image_ends_the_cell_and_says_what_to_do():
    for lack in LACKS:
        with pytest.raises(
            CellError, match=r"memory does not suffice for the probes of one image; free some, name few"
        ):
            train(Narrow(0, lack))


def test_an_error_that_is_no_lack_of_memory_is_not_tried_again():
    narrow = Narrow(2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), batch_size=4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(narrow)
    assert narrow.tried == [4]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(MicroBatch(4).each(narrow, range(4), lambda batch: batch))


@pytest.mark.parametrize("lack", LACKS, ids=["torch on a CPU", "python", "torch on a GPU"])
def test_what_was_read_before_memory_ran_out_is_not_read_again(lack):
    narrow, grown = Narrow(4, lack, batch_size=64), []

    def work(batch):
        if len(grown) == 1:
            narrow.fit = 1
        grown.append([int(target.labels.sum()) for target in batch[1]])
        return grown[-1]

    micro_batch = MicroBatch(4)
    made = list(micro_batch.each(narrow, range(12), work))
    assert made == grown
    assert narrow.tried == [4, 4, 4, 2, 1, 1, 1, 1]
    assert list(itertools.chain(*made)) == [int(narrow.target(index).labels.sum()) for index in range(12)]
    assert micro_batch.images == 1


def test_an_evaluation_and_a_standardisation_that_lack_memory_say_the_same_with_fewer_images_at_once():
    made, other = bank(), bank()
    narrow, wide = Narrow(1, MemoryError(), batch_size=8), Planted(batch_size=1)
    made.standardise(narrow, range(12))
    other.standardise(wide, range(12))
    assert narrow.tried == [8, 4, 2, *[1] * 12]
    for ours, theirs in zip([*made.means, *made.deviations], [*other.means, *other.deviations], strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = probes.evaluate(made, narrow, [7, 2, 5]), probes.evaluate(other, wide, [7, 2, 5])
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.confusion, theirs.confusion)
