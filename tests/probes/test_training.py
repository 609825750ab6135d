"""The steps of a training, against torch's own and in every grouping of the images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import CLASSES, GRID, LACKS, SCHEDULE, SITES, Narrow, Planted, bank, same, train

from segbench import probes
from segbench.errors import CellError
from segbench.types import IGNORE


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


def test_a_diverging_probe_names_its_site_and_epoch():
    source = Planted()
    source._features[SITES[1]][:, 3] = torch.inf
    trainer = probes.Trainer(bank(), Planted(), range(12), SCHEDULE)
    trainer.epoch(0, lambda images: None)
    trainer.source = source
    with pytest.raises(CellError, match=r"probe at llm\.1 diverged in epoch 2 \(step 3\): its largest logit is"):
        trainer.epoch(1, lambda images: None)


def test_features_in_half_precision_train_as_the_same_features_in_float32():
    half, full = Planted(), Planted()
    for site in SITES:
        half._features[site] = half._features[site].bfloat16()
        full._features[site] = half._features[site].float()
    assert same(train(half).state(), train(full).state())


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
    assert narrow.micro_batch.images == 2
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
