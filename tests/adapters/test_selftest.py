"""The self-tests at load catch an attention that is not what a measurement will say it is."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models

from segbench import attention
from segbench.adapters import _selftest, base
from segbench.adapters.base import Adapter
from segbench.errors import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.write(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def adapter(request, folder) -> Adapter:
    return base.load(tiny_models.spec(folder, attention=request.param), "cpu")


def test_sound_model_passes_with_its_numbers(adapter):
    found = dict(adapter.selftests)
    _selftest.run(adapter)
    assert found == adapter.selftests
    assert found["layout"] < 0.1
    assert found["encoder"] < 0.1
    assert found["leak"] == 0 < found["effect"]
    assert found["nothing"] < 1e-4
    assert found["plain"] < 1e-4
    assert (found["first_token"] > 0) is (adapter.spec.attention == "bidirectional")


def test_knockout_mask_that_does_nothing_is_caught(adapter, monkeypatch):
    monkeypatch.setattr(base, "knockout", lambda *_: nullcontext())
    with pytest.raises(ModelError, match="a knockout changes nothing: its mask is not honoured"):
        _selftest.run(adapter)


def test_knockout_that_skips_a_layer_is_caught(adapter, monkeypatch):
    monkeypatch.setattr(
        base, "knockout", lambda text, image, blocked, _: attention.knockout(text, image, blocked, range(3))
    )
    with pytest.raises(ModelError, match="knocked-out image tokens still reach others"):
        _selftest.run(adapter)


def test_mask_of_the_first_image_used_for_all_is_caught(adapter, monkeypatch):
    def shared(text, image, blocked, window):
        return attention.knockout(text, image, blocked[:1].expand_as(blocked), window)

    monkeypatch.setattr(base, "knockout", shared)
    with pytest.raises(ModelError, match="knocked-out image tokens still reach others"):
        _selftest.run(adapter)


def test_causal_model_labelled_bidirectional_is_caught(folder, monkeypatch):
    adapter = base.load(tiny_models.spec(folder, attention="bidirectional"), "cpu")
    monkeypatch.setattr(base, "bidirectional_mask", lambda text, embeddings, real, image: real)
    monkeypatch.setattr(base, "bidirectional_images", lambda *_: nullcontext())
    with pytest.raises(ModelError, match="does not see the last one, yet the spec says bidirectional"):
        _selftest.run(adapter)


def test_bidirectional_model_labelled_causal_is_caught(folder, monkeypatch):
    adapter = base.load(tiny_models.spec(folder, attention="bidirectional"), "cpu")
    labelled = adapter.spec.model_copy(update={"attention": "causal"})
    mask = base.bidirectional_mask
    monkeypatch.setattr(Adapter, "spec", labelled)
    run = Adapter._run

    def bidirectional(self, encoded, *others):
        embeddings, real = encoded.call["inputs_embeds"], encoded.call["attention_mask"]
        both = {**encoded.call, "attention_mask": mask(self.parts.text, embeddings, real, encoded.image)}
        run(self, replace(encoded, call=both), *others)

    monkeypatch.setattr(Adapter, "_run", bidirectional)
    with pytest.raises(ModelError, match="the first image token sees the last one, yet the spec says causal"):
        _selftest.run(adapter)


def test_replay_that_differs_from_the_models_own_forward_is_caught(adapter, monkeypatch):
    encode = Adapter.encode

    def shifted(self, batch):
        encoded = encode(self, batch)
        return encoded.with_embeddings(encoded.call["inputs_embeds"] * 1.5 + 0.1)

    monkeypatch.setattr(Adapter, "encode", shifted)
    with pytest.raises(ModelError, match="the model's own forward pass differs by"):
        _selftest.run(adapter)


def test_image_that_depends_on_its_neighbour_in_the_batch_is_caught(adapter, monkeypatch):
    encode = Adapter.encode

    def mixed(self, batch):
        encoded = encode(self, batch)
        vectors = encoded.call["inputs_embeds"]
        return encoded.with_embeddings(vectors + 0.1 * vectors.mean(0, keepdim=True))

    monkeypatch.setattr(Adapter, "encode", mixed)
    with pytest.raises(ModelError, match="an image alone differs from itself in a batch by"):
        _selftest.run(adapter)


def test_prompt_that_cannot_be_cut_behind_the_image_is_caught(adapter, monkeypatch):
    words = _selftest._with_words
    monkeypatch.setattr(_selftest, "_with_words", lambda *given: words(*given) * 1.1)
    with pytest.raises(ModelError, match=r"words behind the image change it by .* no prompt can be cut there"):
        _selftest.run(adapter)
