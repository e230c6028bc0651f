"""Exchanges logits between the processes of a joint training: over gloo, on one machine or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sensai_serve.errors import WorkError


class Exchange(Protocol):
    """Shares logits between processes, and lets them agree on when to write snapshots."""

    @property
    def leads(self) -> bool:
        """Whether this process decides for all."""

    def gather(self, own: Mapping[int, Tensor], due: bool) -> tuple[dict[int, Tensor], bool]:
        """Gather all workers' tensors, FP32, and whether the leading process says that a snapshot is due.

        Args:
            own: the tensors of this process, by worker.
            due: whether this process holds that a snapshot is due.

        Raises:
            WorkError: another process is gone.
        """

    def wait(self) -> None:
        """Return when every process has come here.

        Raises:
            WorkError: another process is gone.
        """


class Alone:
    """One process that holds all networks."""

    leads = True

    def gather(self, own: Mapping[int, Tensor], due: bool) -> tuple[dict[int, Tensor], bool]:
        """The tensors of this process, which are all that there are, and `due`."""
        return dict(own), due

    def wait(self) -> None:
        """Return at once."""


class Gloo:
    """Several processes, each with some of the networks, in torch's default process group."""

    def __init__(self, n_workers: int) -> None:
        """Use the default process group, which must be there.

        Args:
            n_workers: whose networks the processes hold together.
        """
        self._n_workers = n_workers
        self._widths: list[dict[int, int]] | None = None  # for each rank, how many outputs each of its workers has

    @property
    def leads(self) -> bool:
        """Whether this process decides for all."""
        return dist.get_rank() == 0

    def gather(self, own: Mapping[int, Tensor], due: bool) -> tuple[dict[int, Tensor], bool]:
        """See `Exchange`. What travels is one flat tensor of each process, made as long as the longest."""
        try:
            if self._widths is None:
                self._widths = self._widths_of_all(own)
            return self._gather(own, due, self._widths)
        except RuntimeError as error:  # gloo raises nothing more special where a connection is lost
            raise _gone(error) from None

    def wait(self) -> None:
        """See `Exchange`."""
        try:
            dist.barrier()
        except RuntimeError as error:
            raise _gone(error) from None

    def _widths_of_all(self, own: Mapping[int, Tensor]) -> list[dict[int, int]]:
        mine = torch.zeros(self._n_workers, dtype=torch.int64)
        for worker, logits in own.items():
            mine[worker] = logits.shape[1]
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        return [{worker: width for worker, width in enumerate(of_rank.tolist()) if width} for of_rank in every]

    def _gather(
        self, own: Mapping[int, Tensor], due: bool, widths: list[dict[int, int]]
    ) -> tuple[dict[int, Tensor], bool]:
        some = next(iter(own.values()))
        n_inputs = len(some)
        most = n_inputs * max(sum(of_rank.values()) for of_rank in widths) + 1
        flat = torch.zeros(most)
        flat[0] = float(due)
        at = 1
        for worker in widths[dist.get_rank()]:
            values = own[worker].float().cpu().reshape(-1)
            flat[at : at + len(values)] = values
            at += len(values)
        everybody = [torch.empty(most) for _ in widths]
        dist.all_gather(everybody, flat)
        found: dict[int, Tensor] = {}
        for its, values in zip(widths, everybody, strict=True):
            at = 1
            for worker, width in its.items():
                part = values[at : at + n_inputs * width].view(n_inputs, width)
                found[worker] = part.to(some.device).clone()
                at += n_inputs * width
        return found, bool(everybody[0][0])


@contextmanager
def exchange_between(meeting: Path, rank: int, count: int, n_workers: int) -> Iterator[Exchange]:
    """Find the other processes of a joint training, and part from them in the end.

    Args:
        meeting: a file that all of them see, new for this training; removed in the end.
        rank: number of this process, below `count`.
        count: number of processes.
        n_workers: whose networks the processes hold together.

    Raises:
        WorkError: the others do not come, or one of them is gone.
    """
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting.absolute()}", rank=rank, world_size=count)
    except RuntimeError as error:
        raise _gone(error) from None
    try:
        yield Gloo(n_workers)
    finally:
        dist.destroy_process_group()
        meeting.unlink(missing_ok=True)


def _gone(error: RuntimeError) -> WorkError:
    reason = " ".join(str(error).split())[:160]
    return WorkError(
        f"a process of the joint training is gone ({reason}); what is done is kept, and running again goes on"
    )
