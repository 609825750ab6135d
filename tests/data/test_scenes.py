"""The drawn world is what it says: determined, ambiguous in a patch, decided by its panel, and truly described."""

import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from segbench.data import scenes

SURFACES = [name for pair in scenes.PAIRS for name in pair]


def test_a_scene_is_a_function_of_seed_and_index():
    first, again, other = scenes.draw(1, 7), scenes.draw(1, 7), scenes.draw(2, 7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.mask, other.mask)


def test_another_process_draws_the_same_scene():
    code = "from segbench.data import scenes; s = scenes.draw(3, 5); print(s.image.sum(), s.mask.astype(int).sum())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = scenes.draw(3, 5)
    assert told.split() == [str(here.image.sum()), str(here.mask.astype(int).sum())]


def test_the_layout_is_the_same_at_every_resolution():
    small, large = scenes.draw(1, 3, (96, 96)), scenes.draw(1, 3, (192, 192))
    agree = (large.mask[::2, ::2] == small.mask).mean()
    assert agree > 0.9
    assert large.image.shape == (192, 192, 3)


def test_data_set_splits_are_disjoint_whatever_their_sizes():
    train = scenes.load(scenes.Params(train=1000, val=2), "train")
    val = scenes.load(scenes.Params(train=1000, val=2), "val")
    assert (len(train), len(val)) == (1000, 2)
    assert {train[999].name, train[0].name}.isdisjoint({val[0].name, val[1].name})
    assert not np.array_equal(train[0].mask, val[0].mask)
    assert train[0].image.mode == "RGB"
    assert train.classes == scenes.CLASSES


def test_manifest_names_seed_split_and_size():
    def manifest(split="val", **params):
        return scenes.load(scenes.Params(**params), split).manifest

    base = manifest()
    assert base == manifest(train=7)
    assert len({base, manifest(seed=2), manifest(val=100), manifest(size=(48, 96)), manifest("train")}) == 5


def test_the_world_of_training_cannot_be_measured_on():
    with pytest.raises(ValidationError):
        scenes.Params(seed=0)
    with pytest.raises(ValidationError):
        scenes.Params(size=(100, 96))


def test_only_cues_differ_between_views():
    for index in range(60):
        scene = scenes.draw(1, index)
        for panel in scene.panels:
            seen = {scenes.CLASSES[k] for k in np.unique(scene.mask[:, panel.left : panel.right])}
            other = "indoor" if panel.view == "outdoor" else "outdoor"
            allowed = {pair[scenes.VIEWS.index(panel.view)] for pair in scenes.PAIRS}
            assert seen <= allowed | set(scenes.CUES[panel.view]) | set(scenes.NEUTRAL)
            assert seen & set(scenes.CUES[panel.view]), f"nothing in panel {panel} of scene {index} tells its view"
            assert not seen & set(scenes.CUES[other])


def test_a_patch_cannot_tell_the_pairs_apart_but_its_panel_can():
    """Nearest neighbours on sorted patch colours and gradients: chance within a pair, right about which pair."""
    patches, labels, cue = [], [], []
    for index in range(260):
        scene = scenes.draw(1, index)
        random = np.random.default_rng(index)
        for _ in range(12):
            row, column = random.integers(0, 96 - 8, 2)
            window = scene.mask[row : row + 8, column : column + 8]
            if window.min() != window.max() or window[0, 0] >= len(SURFACES):
                continue
            patches.append(_describe(scene.image[row : row + 8, column : column + 8].astype(float)))
            labels.append(int(window[0, 0]))
            panel = next(p for p in scene.panels if p.left <= column < p.right)
            things = np.unique(scene.mask[:, panel.left : panel.right])
            cue.append(any(scenes.CLASSES[k] in scenes.CUES["indoor"] for k in things))
    x, y, cue = np.array(patches), np.array(labels), np.array(cue)
    half = len(x) // 2
    x = (x - x.mean(0)) / x.std(0)
    distance = ((x[half:, None] - x[None, :half]) ** 2).sum(-1)
    nearest = y[:half][distance.argsort(1)[:, :15]]
    votes = np.stack([(nearest == k).sum(1) for k in range(len(SURFACES))], 1)
    predicted = votes.argmax(1)
    same_pair = predicted // 2 == y[half:] // 2
    assert same_pair.mean() > 0.9
    within = (predicted == y[half:])[same_pair].mean()
    assert abs(within - 0.5) < 0.07
    assert (y[half:] % 2 == cue[half:]).all()


def test_captions_say_only_what_is_there():
    for index in range(20):
        counts = scenes.cell_counts(scenes.draw(1, index).mask)
        place = None
        for word in scenes.caption(counts, np.random.default_rng(index)).split():
            if word in scenes.PLACES:
                place = scenes.PLACES.index(word)
            else:
                assert counts[:, 4 * place : 4 * place + 4, scenes.CLASSES.index(word)].sum() >= 64


def test_answers_are_true_of_the_mask():
    for index in range(20):
        mask = scenes.draw(1, index).mask
        asked = scenes.questions(scenes.cell_counts(mask), np.random.default_rng(index), 10, 6, balanced=0.5)
        assert [q.kind for q in asked] == ["position"] * 10 + ["any"] * 6
        for question in asked:
            if question.kind == "position":
                row, column = (int(word[1:]) for word in question.text.split())
                cell = mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert (cell == scenes.CLASSES.index(question.answer)).mean() >= 0.6
            else:
                present = (mask == scenes.CLASSES.index(question.text.split()[1])).any()
                assert question.answer == ("yes" if present else "no")


def test_questions_and_captions_are_determined_and_use_the_vocabulary():
    counts = scenes.cell_counts(scenes.draw(1, 0).mask)
    asked = scenes.questions(counts, np.random.default_rng(3))
    assert asked == scenes.questions(counts, np.random.default_rng(3))
    words = {word for q in asked for word in (*q.text.split(), q.answer)}
    assert words <= set(scenes.WORDS)
    assert len(set(scenes.WORDS)) == len(scenes.WORDS)


def test_cell_counts_add_up_to_the_pixels():
    mask = scenes.draw(1, 0).mask
    counts = scenes.cell_counts(mask)
    assert counts.shape == (12, 12, len(scenes.CLASSES))
    assert (counts.sum(-1) == 64).all()
    assert np.array_equal(counts.sum((0, 1)), np.bincount(mask.ravel(), minlength=len(scenes.CLASSES)))


def test_drawing_needs_no_torch():
    code = "import sys; from segbench.data import scenes; scenes.draw(1, 0); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _describe(patch):
    """Sorted colours by channel and sorted absolute differences: what an 8 x 8 patch looks like, wherever it is."""
    edges = np.abs(np.diff(patch.mean(-1), axis=0)).ravel(), np.abs(np.diff(patch.mean(-1), axis=1)).ravel()
    quantiles = [np.quantile(patch[..., c], [0.1, 0.5, 0.9]) for c in range(3)]
    return np.concatenate([*quantiles, *(np.quantile(e, [0.5, 0.9]) for e in edges)])
