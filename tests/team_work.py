"""What each process of a team does in test_distributed.py; it prints what it found as JSON."""

import json
import os
import sys

import numpy as np
import torch

from segbench.distributed import Group
from segbench.errors import Lost, PartnerFailed


def exchanges(group):
    number = group.rank + 1
    tensors = [torch.full((2, 3), float(number)), torch.tensor([10.0 * number])]
    group.sum(tensors)
    large = [torch.arange(100_000, dtype=torch.float32) * number, torch.tensor([1.0])]
    group.sum(large)
    rows = group.gather({"a": np.arange(group.rank, dtype=np.int32), "b": np.full((group.rank, 2), 0.5)})
    return {
        "sums": [tensor.tolist() for tensor in tensors],
        "large": [float((large[0] / torch.arange(100_000).clamp(min=1)).unique()[-1]), large[1].item()],
        "long": [[len(one), one.strip(b"y").decode()] for one in group.exchange(b"y" * (group.rank * 100_000))],
        "messages": [one.decode() for one in group.exchange(b"x" * group.rank)],
        "nothing": [one.decode() for one in group.exchange(b"")],
        "shapes": [[list(row["a"].shape), list(row["b"].shape)] for row in rows],
        "types": sorted({str(row["a"].dtype) for row in rows}),
        "agreed": group.agree({"from": group.rank}),
        "parts": [[*part] for part in group.parts(7)],
    }


def failures(group):
    """The second process fails in three ways; what the others hear, and whether all are in step afterwards."""
    heard = []
    for call in (lambda: group.sum([torch.ones(3)]), group.meet, lambda: group.agree(1)):
        try:
            if group.rank == 1:
                raise ValueError("no luck")
            call()
        except ValueError as error:
            group.fail(str(error))
        except PartnerFailed as error:
            heard.append(str(error))
        total = torch.ones(1)
        group.sum([total])
        heard.append(total.item())
    return heard


def all_fail(group):
    """All processes fail by themselves, each with its own words."""
    group.fail(f"reason {group.rank}")
    total = torch.ones(1)
    group.sum([total])
    return total.item()


def gone(group):
    """The last process dies without a word."""
    group.meet()
    if group.rank == group.size - 1:
        os._exit(9)
    try:
        group.sum([torch.ones(1)])
    except Lost as lost:
        print(json.dumps(str(lost)), flush=True)
        os._exit(0)


if __name__ == "__main__":
    team = Group(os.environ)
    print(json.dumps(globals()[sys.argv[1]](team)))
    team.close()
