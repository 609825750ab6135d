"""What is said of the token grid is what the grid does."""

import pytest
from examined import examine

from segbench.geometry import seen_mask


def test_tokens_say_what_has_no_place_and_what_no_patch_sees(folders):
    registers = examine(folders["dinov2-registers"]).tokens
    assert (registers.tokens, registers.placeless, registers.kinds) == (38, 2, "2 registers")
    border = examine(folders["siglip"]).tokens
    view = examine(folders["siglip"]).views[0]
    assert border.unseen == pytest.approx(1 - seen_mask(view.grid_map).mean())
    assert set(border.edges) == {"bottom", "right"}
    padded = examine(folders["clip"], preprocess="pad").tokens
    assert (padded.picture, padded.empty, padded.unseen) == ((360, 360), 12, 0)
    cropped = examine(folders["clip"], preprocess="crop").tokens
    assert (cropped.picture, cropped.empty, cropped.edges) == ((240, 240), 0, {"left": 60, "right": 60})
