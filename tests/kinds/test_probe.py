"""The numbers of a probe cell, from its own arrays and by torchmetrics."""

import json
import re

import numpy as np
import pytest
import tiny_runs
import torch
from command import segbench
from safetensors.torch import load_file, save_file
from torchmetrics.classification import MulticlassJaccardIndex

from segbench import stats
from segbench.data.scenes import CLASSES
from segbench.errors import Stopped
from segbench.features.estimate import SHARES
from segbench.metrics import oracle
from segbench.plots import draw_all
from segbench.probes import Trainer
from segbench.types import IGNORE, GridMap

SITES = ["encoder", "adapter", "llm.1", "llm.2", "llm.3", "llm.4", "llm.norm"]
POLICIES = {
    policy: tiny_runs.PROBE.replace("lr: 3e-2", "lr: 3e-2, norm: standardize") + f"features: {policy}\n"
    for policy in ("memory", "stream", "sweep", "groups", "disk")
}


@pytest.fixture(scope="module")
def policies(lab, tmp_path_factory):
    for name, text in POLICIES.items():
        (lab / f"tasks/probe-{name}.yaml").write_text(text)
    names, output = ",".join(f"probe-{name}" for name in POLICIES), tmp_path_factory.mktemp("policies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHARES, "host", 1e-12)  # so that every group is one site
        outcomes = tiny_runs.measure(lab, names, output)
    assert {one.status for one in outcomes.values()} == {"ran"}, [one.note for one in outcomes.values()]
    return outcomes


def told(result):
    """A cell's provenance."""
    return json.loads((result.path / "provenance.json").read_text())


def values(result, metric):
    return {m.site: m.value for m in result.measures if m.metric == metric}


def test_counts_probes_and_examples_of_every_site_are_kept(cells):
    result = cells["probe"]
    assert result.about["sites"] == SITES
    assert result.arrays("counts")["best"].shape == (len(SITES), tiny_runs.VAL, len(CLASSES), 3)
    probes, examples = result.arrays("probes"), result.arrays("examples")
    for site in SITES:
        assert probes[f"{site}.weight"].shape == (len(CLASSES), 32 if site == "encoder" else 48)
        assert examples[f"3.{site}"].shape == tiny_runs.SIZE


def test_miou_is_that_of_the_counts(cells):
    result = cells["probe"]
    for name, metric in (("best", "miou"), ("last", "miou_last"), ("val_best", "miou_val_best")):
        expected = stats.miou(result.arrays("counts")[name].sum(1))
        assert list(values(result, metric).values()) == expected.tolist()


def test_miou_is_that_of_torchmetrics_on_the_label_maps(cells):
    examples = cells["probe"].arrays("examples")
    for site, ours in values(cells["probe"], "miou").items():
        theirs = MulticlassJaccardIndex(len(CLASSES), average="macro", ignore_index=IGNORE)
        for image in range(tiny_runs.VAL):
            predicted, truth = examples[f"{image}.{site}"], examples[f"{image}.truth"]
            theirs.update(torch.from_numpy(predicted[None].astype(int)), torch.from_numpy(truth[None].astype(int)))
        assert ours == pytest.approx(100 * theirs.compute().item(), abs=1e-3)


def test_examples_hold_the_scenes_as_they_are(cells, val):
    examples = cells["probe"].arrays("examples")
    for image in range(tiny_runs.VAL):
        np.testing.assert_array_equal(examples[f"{image}.image"], np.asarray(val[image].image))
        np.testing.assert_array_equal(examples[f"{image}.truth"], val[image].mask)


def test_the_ceiling_is_the_oracles_own_and_all_is_seen(cells, val):
    grid_map = GridMap.squash(tiny_runs.GRID, tiny_runs.SIZE)
    total = sum(oracle.counts(sample.mask, grid_map, len(CLASSES)) for sample in map(val.__getitem__, range(4)))
    assert values(cells["probe"], "oracle_miou") == {None: stats.miou(total)}
    assert values(cells["probe"], "coverage") == {None: 100}


def test_the_best_epoch_on_val_is_no_worse_than_the_last(cells):
    last, best = (values(cells["probe"], f"miou_{name}") for name in ("last", "val_best"))
    assert all(best[site] >= last[site] for site in SITES)
    assert values(cells["probe"], "miou") == best


def test_the_probes_learn_something(cells):
    counts = cells["probe"].arrays("counts")["best"].sum(1)
    commonest = counts[0, :, 1].max() / counts[0, :, 1].sum()
    assert values(cells["probe"], "pixel_accuracy")["encoder"] > 100 * commonest


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "stream"])
def test_every_policy_gives_the_numbers_of_a_stream(policies, policy):
    ours, stream = policies[f"probe-{policy}"].result, policies["probe-stream"].result
    assert told(ours)["features"]["policy"] == policy
    assert told(ours)["micro_batch"] == tiny_runs.OPTIONS.batch_size
    for name, array in ours.arrays("probes").items():
        np.testing.assert_allclose(array, stream.arrays("probes")[name], rtol=1e-3, atol=1e-4)
    for name in ("counts", "confusion", "examples"):
        mine, theirs = ours.arrays(name), stream.arrays(name)
        assert {key: (one.shape, one.dtype) for key, one in mine.items()} == {
            key: (one.shape, one.dtype) for key, one in theirs.items()
        }
    assert ours.about == stream.about
    for a, b in zip(ours.measures, stream.measures, strict=True):
        assert (a.metric, a.site) == (b.metric, b.site)
        assert a.value == pytest.approx(b.value, abs=0.1)


def test_a_dry_run_tells_bytes_of_every_policy_and_seconds_once_a_cell_has_run(lab, tmp_path):
    command = ("run", "--include", lab, "--model", "tiny", "--tasks", "probe", "--device", "cpu", "--output", tmp_path)
    fresh = segbench(*command, "--dry-run", "--limit", 3)
    # 6 images of 36 patches: 32 wide at the encoder, 48 at six more sites, in float32; labels of pixels and patches
    size = f"{6 * (36 * (320 + len(CLASSES)) * 4 + 3 * 48 * 72) / 1e3:.3g} kB"
    assert f"tiny probe: features: memory: all sites in host memory, {size} of" in fresh.out
    assert " s\n" not in fresh.out
    tiny_runs.measure(lab, "probe", tmp_path)
    again = segbench(*command, "--dry-run", "--limit", 3, "--json")
    told = json.loads(again.out)[0]["features"]
    assert [line.split(":")[0] for line in told] == ["memory", "sweep", "groups", "disk", "stream"]
    assert all(re.search(r", about \S+ s$", line) for line in told)


class StopsAt(tiny_runs.Silent):
    """Stops the run while a site is trained, as a signal does."""

    def __init__(self, site):
        self._after = (site + 0.6) * 4 * (tiny_runs.TRAIN + tiny_runs.VAL)

    def progress(self, images, total, what):
        if what == "training" and images >= self._after:
            raise Stopped


@pytest.mark.parametrize("policy", ["sweep", "disk"])
def test_a_stop_in_the_middle_of_a_layer_costs_that_layer_at_most_and_no_number(
    lab, tmp_path, policies, policy, monkeypatch
):
    with pytest.raises(Stopped):
        tiny_runs.measure(lab, f"probe-{policy}", tmp_path, watcher=StopsAt(3))
    done = {path.name for path in tmp_path.rglob("checkpoint-done-*")}
    assert done == {f"checkpoint-done-{site}.safetensors" for site in SITES[:3]}
    trained = []
    monkeypatch.setattr(Trainer, "epoch", trained_epochs(Trainer.epoch, trained))
    again = tiny_runs.measure(lab, f"probe-{policy}", tmp_path)[f"probe-{policy}"].result
    assert [site for site, _ in trained] == [SITES[3]] * 2 + [site for site in SITES[4:] for _ in range(4)]
    whole = policies[f"probe-{policy}"].result
    files = [path.name for path in whole.path.iterdir() if path.name != "provenance.json"]
    assert [name for name in files if (again.path / name).read_bytes() != (whole.path / name).read_bytes()] == []
    assert {path.name for path in again.path.iterdir()} == {path.name for path in whole.path.iterdir()}


def trained_epochs(epoch, trained):
    """The method with a list of (site, epoch) that it was called for."""

    def listed(self, number, progress):
        trained.append((str(self.bank.sites[0]), number))
        epoch(self, number, progress)

    return listed


@pytest.mark.parametrize("policy", ["memory", "sweep"])
def test_a_probe_that_diverges_fails_its_own_site_and_the_others_are_kept(tmp_path, policy, cells):
    lab = tiny_runs.lab(tmp_path / "lab", {"probe": f"{tiny_runs.PROBE}features: {policy}\n"})
    weights = load_file(lab / "models/tiny/model.safetensors")
    weights["language_model.model.norm.weight"] *= 1e37
    save_file(weights, lab / "models/tiny/model.safetensors", {"format": "pt"})
    outcome = tiny_runs.measure(lab, "probe", tmp_path / "out")["probe"]
    assert outcome.status == "failed"
    assert re.fullmatch(
        r"the probe at llm\.norm diverged in epoch 1 \(step 0\): its largest logit is \S+e\+37; try .*", outcome.note
    )
    expected = cells["probe"].arrays("probes")
    for site in SITES[:-1]:
        (file,) = tmp_path.rglob(f"checkpoint-done-{site}.safetensors")
        np.testing.assert_allclose(load_file(file)["weight"].numpy(), expected[f"{site}.weight"], rtol=1e-3, atol=1e-4)


def test_keys_and_values_are_probed_where_they_are_named_and_drawn_beside_the_layers(tmp_path):
    sites = ["adapter", "llm.1", "llm.1.key", "llm.1.key_pre", "llm.1.value", "llm.2"]
    tasks = {
        "probe": f"{tiny_runs.PROBE}sites: [{', '.join(sites)}]\n",
        "starvation": "kind: starvation\nprobes: probe\n",
        "knockout": "kind: knockout\nprobes: probe\nleast: 6\n",
    }
    lab = tiny_runs.lab(tmp_path / "lab", tasks)
    cells = tiny_runs.measure(lab, ",".join(tasks), tmp_path / "out")
    assert {one.status for one in cells.values()} == {"ran"}, [one.note for one in cells.values()]
    assert cells["probe"].result.about["sites"] == [*sites[:2], *sorted(sites[2:5], key=_made), sites[5]]
    assert cells["starvation"].result.about["site"] in ("llm.1", "llm.2")  # a peak is a layer
    assert cells["knockout"].result.about["sites"] == ["adapter", "llm.1", "llm.2"]
    assert draw_all([one.result for one in cells.values()], tmp_path / "figures")


def _made(site):
    return ("key_pre", "key", "value").index(site.rpartition(".")[2])
