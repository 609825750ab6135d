"""The leaderboard's files: what a reader opens, a spreadsheet reads, and a script computes with."""

import json
from collections.abc import Sequence
from pathlib import Path

from segbench.leaderboard import table
from segbench.store import Result, write_whole

LEGEND = """\
mIoU and its differences are of linear probes on the image tokens: `drop` = adapter - encoder, `recovery` = peak LLM
layer - adapter. The accuracy gap is patch accuracy minus the baseline's; `left` is the share of the patches wrongly
predicted at the adapter that still are at the last layer, with attention to some image tokens blocked: the mean over
confusions, and beside it the ratio of sums and the median. In brackets: 95 % intervals over images, or over the
clusters that they were taken in where the data set names them. Each is left out once, the same for all sites of a model
and for both models of a pair, and the peak is chosen anew without it; the peak layer and medians are bootstrapped. The
intervals hold for these images and one probe seed. The knockouts are in the paper's order if fewer patches stay wrong
with the incorrect class blocked than with as many random tokens blocked, and more with the correct class blocked, each
beyond its interval. Controls, trained like the probes: on the places of the patches without the model, and on the
labels of other images.
"""


def publish(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write leaderboard.md, .csv and .json, seeds.csv and records.csv, each whole or not at all; their paths.

    The same results give the same bytes, in whatever order they come. Runs on a few images or on a part of a published
    data set are only among the records, where they are marked.
    `seeds.csv` has rows only for models with several probe seeds.
    """
    frame = table.build(results)
    contents = {
        "leaderboard.md": f"# Leaderboard\n\n{LEGEND}\n{table.markdown(frame)}",
        "leaderboard.csv": table.csv(frame),
        "leaderboard.json": json.dumps(table.rows(frame), indent=1, allow_nan=False) + "\n",
        "seeds.csv": table.csv(table.spread(frame)),
        "records.csv": table.csv(table.records(results)),
    }
    for name, text in contents.items():
        write_whole(folder / name, text.encode())
    return [folder / name for name in contents]
