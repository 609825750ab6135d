"""Everything is looked at in order, whatever the model is, on the user's image where there is one."""

import numpy as np
import pytest
import tiny_families
import tiny_models
from examined import examine, named
from PIL import Image

from segbench.adapters import report
from segbench.adapters.report.checks import ABOUT
from segbench.data import scenes
from segbench.specs import ModelSpec
from segbench.types import Sample

KNOCKOUT = {"leak", "effect", "nothing", "generate_knockout"}


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_sound_model_passes_every_check_with_its_numbers(folders, attention):
    found = examine(folders["clip"], attention=attention)
    assert [one.name for one in found.checks] == list(ABOUT)
    assert all(one.passed for one in found.checks), found.checks
    checks = named(found)
    assert checks["leak"].value == 0 < checks["effect"].value
    assert (checks["first_token"].value > 0) is (attention == "bidirectional")
    assert 0 < checks["generate"].value < 1e-5
    assert checks["example"].value == 36


def test_where_attention_cannot_be_edited_the_report_says_why(tmp_path):
    tiny_families.write("qwen3_5", tmp_path)
    spec = ModelSpec(name="tiny", adapter="auto", weights=tmp_path, attention="native", prompt=None)
    found = report.examine(spec, "cpu", None, lambda line: None)
    assert found.failed == ()
    untested = {one.name: one.note for one in found.checks if one.passed is None}
    assert set(untested) == KNOCKOUT
    assert all("can be edited here" in note for note in untested.values())
    assert [one.name for one in found.checks] == list(ABOUT)


def test_the_example_is_the_users_image_where_there_is_one(folders):
    scene = scenes.draw(1, 7, (120, 60))
    sample = Sample("mine.png", Image.fromarray(scene.image), np.zeros((120, 60), np.uint8))
    found = report.examine(tiny_models.spec(folders["clip"]), "cpu", sample, lambda line: None)
    assert (found.tokens.image, found.tokens.size) == ("mine.png", (120, 60))
    assert found.views[0].grid_map.image == (120, 60)
