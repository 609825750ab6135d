"""A knockout cell against loops over single images and patches."""

import json

import numpy as np
import pytest
import tiny_runs
import torch
from narrow import Narrow

from segbench import probes
from segbench.adapters import base
from segbench.data.scenes import CLASSES
from segbench.errors import SpecError
from segbench.kinds import knockout
from segbench.types import Site

SITES = ["adapter", "llm.1", "llm.2", "llm.3", "llm.4"]
LEAST = 6


@pytest.fixture(scope="module")
def alone(cells, adapter, val):
    """Predicted class of every patch [l, t] of one image, alone in its batch, and what each patch really is [t]."""
    sites = [Site.parse(name) for name in SITES]
    bank = probes.ProbeBank.load(cells["probe"].arrays("probes"), sites, "cpu")

    def predict(image, blocked=None):
        encoded = adapter.encode(adapter.prepare([val[image]]))
        given = None if blocked is None else torch.from_numpy(blocked[None])
        return bank.patches(adapter.decode(encoded, sites, given))[:, 0].numpy()

    return predict


def truth(mask):
    """The commonest class of the 8 x 12 pixels of every patch."""
    return np.array([np.bincount(mask[y : y + 8, x : x + 12].ravel()).argmax() for y in range(0, 48, 8) for x in range(0, 72, 12)])  # fmt: skip  # noqa: E501


def rows(result):
    arrays = result.arrays("patches")
    return list(zip(arrays["image"].tolist(), arrays["class"].tolist(), arrays["n0"], arrays["n"], strict=True))


def test_every_condition_has_a_number_at_every_site(cells):
    measured = {(m.metric, m.key, m.site) for m in cells["knockout"].measures}
    classes = {CLASSES[c] for _, c, _, _ in rows(cells["knockout"])}
    assert measured == {
        (metric, f"{name}/{condition}", site)
        for metric in ("persistence", "persistence_of_sums", "persistence_median")
        for name in {"all", *classes}
        for condition in ("none", "incorrect", "correct", "random")
        for site in SITES
    }


def test_nothing_has_happened_at_the_adapter(cells):
    for _, _, n0, n in rows(cells["knockout"]):
        assert n[:, 0].tolist() == [n0] * 4


def test_none_counts_what_a_loop_over_images_counts(cells, alone, val):
    for image, c, n0, n in rows(cells["knockout"]):
        wrong = (alone(image) == c) & (truth(val[image].mask) != c)
        assert n[0].tolist() == wrong.sum(1).tolist()
        assert n0 == wrong[0].sum() >= LEAST


def test_images_with_few_wrong_patches_are_left_out_and_counted(cells, alone, val):
    few = dict.fromkeys(CLASSES, 0)
    taken = {(image, c) for image, c, _, _ in rows(cells["knockout"])}
    for image in range(len(val)):
        predicted, real = alone(image)[0], truth(val[image].mask)
        for c, name in enumerate(CLASSES):
            n0 = ((predicted == c) & (real != c)).sum()
            few[name] += 0 < n0 < LEAST
            assert ((image, c) in taken) == (n0 >= LEAST)
    assert cells["knockout"].about["left_out"] == few
    assert any(few.values())


def test_blocked_conditions_count_what_one_image_alone_counts(cells, alone, val):
    differs = 0
    for image, c, _, n in rows(cells["knockout"])[:4]:
        predicted, real = alone(image)[0], truth(val[image].mask)
        wrong = (predicted == c) & (real != c)
        g = np.bincount(real[wrong]).argmax()
        for condition, blocked in ((1, predicted == c), (2, predicted == g)):
            expected = ((alone(image, blocked) == c) & (real != c)).sum(1)
            assert n[condition].tolist() == expected.tolist()
            differs += (expected != n[0]).any()
    assert differs


def test_persistence_is_the_mean_and_the_median_of_ratios_and_the_ratio_of_sums(cells):
    arrays = cells["knockout"].arrays("patches")
    ratios = 100 * arrays["n"] / arrays["n0"][:, None, None]
    found = {(m.metric, m.key, m.site): m.value for m in cells["knockout"].measures}
    per_image = [ratios[arrays["image"] == image].sum(0) for image in np.unique(arrays["image"])]
    assert found["persistence", "all/incorrect", "llm.3"] == pytest.approx(sum(per_image)[1, 3] / len(ratios))
    sums = 100 * arrays["n"].sum(0) / arrays["n0"].sum()
    assert found["persistence_of_sums", "all/correct", "llm.1"] == pytest.approx(sums[2, 1])
    assert found["persistence_median", "all/random", "llm.4"] == pytest.approx(np.median(ratios[:, 3, 4]))


def test_blocking_no_token_changes_no_prediction(alone, val):
    for image in range(len(val)):
        assert np.array_equal(alone(image), alone(image, np.zeros(36, bool)))


def test_a_window_leaves_the_blocks_before_it_alone(cells):
    n = cells["knockout-late"].arrays("patches")["n"]
    whole = cells["knockout"].arrays("patches")["n"]
    assert (n[:, 1:, :3] == n[:, :1, :3]).all()  # what block 2 does is first seen at llm.3
    assert (n[:, 1:, 3:] != n[:, :1, 3:]).any()
    assert (whole[:, 1:, 1:3] != whole[:, :1, 1:3]).any()


@pytest.mark.parametrize(("text", "blocks"), [("all", range(8)), ("4", range(4, 5)), ("2-7", range(2, 8))])
def test_both_ends_of_a_window_count(text, blocks):
    assert knockout._window(text, 8) == blocks


@pytest.mark.parametrize("text", ["8", "5-8", "5-4"])
def test_a_window_outside_the_model_is_refused(text):
    with pytest.raises(SpecError, match=r"8 LLM blocks of this model \(0 to 7\)"):
        knockout._window(text, 8)


def test_random_blocks_as_many_tokens_as_incorrect_and_the_same_ones_for_the_same_seed():
    random = np.random.default_rng(0)
    predicted, real = random.integers(0, 3, (2, 36))
    first, again, other = (knockout._Case.of(0, 0, 1, predicted, real, (seed, 7, 1)) for seed in (0, 0, 1))
    incorrect, _, drawn = first.blocked
    assert drawn.sum() == incorrect.sum() == (predicted == 1).sum()
    assert np.array_equal(first.blocked, again.blocked)
    assert not np.array_equal(drawn, other.blocked[2])
    assert not np.array_equal(drawn, incorrect)


def test_correct_is_the_commonest_truth_of_the_wrong_patches_and_unlabelled_ones_have_no_say():
    predicted = np.array([1, 1, 1, 1, 1, 1, 2, 0, 2])
    real = np.array([0, 2, 2, 255, 255, 255, 2, 0, 1])
    case = knockout._Case.of(0, 0, 1, predicted, real, (0,))
    assert case.n0 == 3
    assert case.blocked[0].tolist() == (predicted == 1).tolist()
    assert case.blocked[1].tolist() == (predicted == 2).tolist()


def test_where_two_images_fit_into_memory_the_counts_are_the_same(cells, lab, tmp_path, monkeypatch):
    tiny_runs.measure(lab, "probe", tmp_path)
    load = base.load
    monkeypatch.setattr(base, "load", lambda *given: Narrow(load(*given), 2))
    found = tiny_runs.measure(lab, "knockout,starvation", tmp_path)
    for name, array in (("knockout", "patches"), ("starvation", "positions")):
        assert found[name].status == "ran", found[name].note
        expected = cells[name].arrays(array)
        for key, counts in found[name].result.arrays(array).items():
            np.testing.assert_array_equal(counts, expected[key])
        assert found[name].result.about == cells[name].about
        told = json.loads((found[name].result.path / "provenance.json").read_bytes())
        assert told["micro_batch"] == 1  # of 3, half
