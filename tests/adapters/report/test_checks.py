"""A check fails where its own thing is broken, and the others are reported all the same."""

from contextlib import nullcontext
from dataclasses import replace

from examined import examine, named

from segbench.adapters import _generation, llava
from segbench.adapters.base import Adapter
from segbench.adapters.canvas import Canvas
from segbench.adapters.report.checks import ABOUT
from segbench.attention import decoder_layers


def test_transposed_patches_fail_their_check_and_the_others_are_reported_all_the_same(folders, monkeypatch):
    place = Canvas.place

    def transposed(self, picture):
        found = place(self, picture)
        return replace(found, patches=found.patches.reshape(found.grid).T.ravel())

    monkeypatch.setattr(Canvas, "place", transposed)
    found = examine(folders["clip"])
    assert found.failed == ("layout",)
    assert "5.00 patches from where the grid puts it" in named(found)["layout"].note
    assert [one.name for one in found.checks] == list(ABOUT)
    assert found.views


def test_a_model_that_answers_otherwise_than_it_reads_fails_only_in_generation(folders, monkeypatch):
    load = llava.load

    def astray(spec, device):
        adapter = load(spec, device)

        def moved(_, args):
            return (2 * args[0] + 1, *args[1:]) if args[0].shape[1] == 1 else None  # a decoding step

        decoder_layers(adapter.parts.text)[0].register_forward_pre_hook(moved)
        return adapter

    monkeypatch.setattr(llava, "load", astray)
    found = examine(folders["clip"])
    assert found.failed == ("generate",)
    assert "answers come from other states" in named(found)["generate"].note


def test_a_knockout_that_generate_drops_is_caught(folders, monkeypatch):
    monkeypatch.setattr(_generation, "knockout", lambda *_: nullcontext())
    assert examine(folders["clip"]).failed == ("generate_knockout",)


def test_an_attention_that_generate_drops_is_caught(folders, monkeypatch):
    monkeypatch.setattr(Adapter, "attention", lambda self: nullcontext())
    assert examine(folders["clip"], attention="bidirectional").failed == ("plain", "behind", "generate_knockout")


def test_whatever_a_model_raises_is_a_check_that_failed(folders, monkeypatch):
    load = llava.load

    def broken(spec, device):
        adapter = load(spec, device)

        def fail(*_):
            raise RuntimeError("the matrix is of no use")

        decoder_layers(adapter.parts.text)[1].register_forward_pre_hook(fail)
        return adapter

    monkeypatch.setattr(llava, "load", broken)
    found = examine(folders["clip"])
    assert named(found)["layout"].passed
    assert named(found)["plain"].note == "RuntimeError: the matrix is of no use"
    assert {"plain", "alone", "leak", "sites", "generate"} <= set(found.failed)
