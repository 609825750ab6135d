"""Several processes on one cell, started by torchrun: gloo between CPUs, NCCL between GPUs.

Every exchange begins with one number per process, which says whether it is still well. So a process whose part fails
can tell the others, which then give the cell up, too, and go on with the next one, all in step. A process that is gone
without a word (killed, out of memory) breaks the connection, and the rest of them end with `Lost`.
"""

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from segbench.errors import Lost, PartnerFailed, SpecError
from segbench.team import Team

PATIENCE = datetime.timedelta(days=7)  # for others that measure whole cells; who is dead breaks the connection
MEETING = datetime.timedelta(minutes=5)
STARTING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Group(Team):
    """The processes that torchrun started, as torch.distributed knows them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """SpecError where the variables that torchrun sets are not there, or lead to nobody."""
        if absent := [name for name in STARTING if name not in environment]:
            raise SpecError(f"{', '.join(absent)} not set: start several processes with torchrun")
        self.rank, self.size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        self.local, self.here = int(environment["LOCAL_RANK"]), int(environment["LOCAL_WORLD_SIZE"])
        self.complete = True  # nobody is gone
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, *_ = next(dist.rendezvous("env://", self.rank, self.size, timeout=MEETING))
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            place = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
            raise SpecError(f"the processes do not find each other at {place}: {error}") from error

    def close(self) -> None:
        """Leave; nothing can be exchanged afterwards. Who is gone is not waited for."""
        if self.complete:
            dist.destroy_process_group()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """As in Team; floating-point sums may differ from one process's in their last digits."""
        self._well()
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._connected():
            dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def exchange(self, message: bytes) -> list[bytes]:
        """As in Team."""
        sizes = self._well(len(message))
        room = max(sizes)
        mine = torch.zeros(room, dtype=torch.uint8)
        mine[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else 0
        rows = [torch.empty_like(mine) for _ in sizes]
        if room:
            with self._connected():
                dist.all_gather(rows, mine)
        return [row[:size].numpy().tobytes() for row, size in zip(rows, sizes, strict=True)]

    def fail(self, reason: str) -> None:
        """As in Team; returns when all others have heard it. Nobody hears a second failure of the same cell."""
        with contextlib.suppress(PartnerFailed):
            self._well(failed=reason.encode())

    def _well(self, number: int = 0, failed: bytes | None = None) -> list[int]:
        """Every process's number; PartnerFailed, here as everywhere, if one of them failed."""
        own = torch.tensor([number, -1 if failed is None else len(failed)])
        told = [torch.empty_like(own) for _ in range(self.size)]
        with self._connected():
            dist.all_gather(told, own)
        for rank, (_, length) in enumerate(map(Tensor.tolist, told)):
            if length >= 0:
                reason = torch.zeros(length, dtype=torch.uint8)
                if rank == self.rank and failed:
                    reason = torch.frombuffer(bytearray(failed), dtype=torch.uint8)
                if length:
                    with self._connected():
                        dist.broadcast(reason, rank)
                raise PartnerFailed(f"process {rank}: {reason.numpy().tobytes().decode()}")
        return [int(one[0]) for one in told]

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Lost, in place of what the transport says, when a process is gone."""
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's own errors are of this type
            self.complete = False
            reason = str(error).strip().splitlines()[0]
            raise Lost(
                f"another process of this run is gone ({reason}); what is finished is kept, "
                "and the same command goes on from the last epoch"
            ) from error
