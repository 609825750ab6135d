"""A sweep that was killed goes on from the layer that it had reached."""

from dataclasses import replace

from tiny_features import read_all, work

from segbench import features
from segbench.adapters.stepping import Stepper
from segbench.types import Site


def test_a_sweep_that_was_killed_goes_on_from_the_files_of_its_layer(adapter, dataset, tmp_path, monkeypatch):
    sites = tuple(Site("llm", layer) for layer in (1, 2, 3))
    plan = features.choose(work(adapter, dataset, tmp_path, sites=sites), "disk")
    for stage in plan.stages((), lambda images: None):
        if stage.sites == sites[1:2]:
            break  # as a kill while the probe at llm.2 is trained
    steps = []
    advance = Stepper.advance
    monkeypatch.setattr(
        Stepper,
        "advance",
        lambda self, e, s, block, *more: steps.append(block) or advance(self, e, s, block, *more),
    )
    again = work(adapter, dataset, tmp_path, sites=sites[1:])
    plan = replace(features.choose(again, "disk"), stepper=plan.stepper)
    steps.clear()
    assert read_all(plan, dataset, adapter) == sites[1:]
    assert set(steps) == {2}


def test_a_damaged_file_is_set_aside_and_made_anew(adapter, dataset, tmp_path, caplog):
    sites = tuple(Site("llm", layer) for layer in (1, 2))
    plan = features.choose(work(adapter, dataset, tmp_path / "features", sites=sites), "disk")
    for stage in plan.stages((), lambda images: None):
        if stage.sites == sites[1:]:
            break
    (file,) = tmp_path.glob("features/train-llm.2.raw")
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    again = features.choose(work(adapter, dataset, tmp_path / "features", sites=sites[1:]), "disk")
    assert read_all(again, dataset, adapter) == sites[1:]
    told = "it is set aside as train-llm.2.raw.damaged; it is made anew"
    assert f"train-llm.2.raw does not match its checksum; {told}" in caplog.text
    assert (tmp_path / "train-llm.2.raw.damaged").exists()
