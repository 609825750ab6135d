"""Several processes on one cell, started by torchrun: gloo between CPUs, NCCL between GPUs.

Every exchange begins with a few bytes per process, which say whether it is still well. So a process whose part fails
can tell the others, which then give the cell up, too, and go on with the next one, all in step. A process that is gone
without a word (killed, out of memory) breaks the connection, and the rest of them end with `Lost`.
"""

import contextlib
import datetime
import functools
import struct
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Shaped, UInt8
from torch import Tensor

from segbench.errors import Lost, PartnerFailed, SpecError
from segbench.team import Team

PATIENCE = datetime.timedelta(days=7)  # for others that measure whole cells; who is dead breaks the connection
ROOM = 1 << 16  # bytes that an exchange takes along in its first round
HEAD = struct.Struct("<?q")  # whether the process failed, and how long its message is
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
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        if flat.nbytes <= ROOM:  # less than half the time of a reduction, which takes 2 ms for a single number
            parts = [torch.frombuffer(bytearray(part), dtype=flat.dtype) for part in self.exchange(_bytes(flat))]
            flat = functools.reduce(torch.add, parts).to(flat.device)
        else:
            self._well()
            with self._connected():
                dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def exchange(self, message: bytes) -> list[bytes]:
        """As in Team."""
        told = self._well(message)
        longest = max(length for length, _ in told)
        if longest <= ROOM:
            return [text for _, text in told]
        mine = _padded(message, longest)
        rows = [torch.empty_like(mine) for _ in told]
        with self._connected():
            dist.all_gather(rows, mine)
        return [_bytes(row[:length]) for row, (length, _) in zip(rows, told, strict=True)]

    def fail(self, reason: str) -> None:
        """As in Team; returns when all others have heard it. Nobody hears a second failure of the same cell."""
        with contextlib.suppress(PartnerFailed):
            self._well(reason.encode()[:ROOM], failed=True)

    def _well(self, message: bytes = b"", failed: bool = False) -> list[tuple[int, bytes]]:
        """The length of every process's message, and the message as far as there is room for it.

        PartnerFailed, here as everywhere, if one of them failed; then the message says why.
        """
        mine = _padded(HEAD.pack(failed, len(message)) + message[:ROOM], HEAD.size + ROOM)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        with self._connected():
            dist.all_gather(rows, mine)
        told = []
        for rank, row in enumerate(map(_bytes, rows)):
            broken, length = HEAD.unpack_from(row)
            text = row[HEAD.size : HEAD.size + min(length, ROOM)]
            if broken:
                raise PartnerFailed(f"process {rank}: {text.decode(errors='replace')}")
            told.append((length, text))
        return told

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


def _padded(message: bytes, length: int) -> UInt8[Tensor, " n"]:
    return torch.frombuffer(bytearray(message.ljust(length, b"\0")), dtype=torch.uint8)


def _bytes(tensor: Shaped[Tensor, "..."]) -> bytes:
    return tensor.cpu().numpy().tobytes()
