"""Takes a bad step back on the device, so that the host need not wait to know whether it was bad.

A device works behind the host. If the host asked before each optimizer step whether its gradient is finite, the device
would have nothing to do while optimizer, average and the next step are then queued. So the step is taken in any case,
and where it was bad, all that it has changed is put back.
"""

import copy
from typing import Any, Protocol, runtime_checkable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from configs.schema import Config
from trainer.module import EfficientNetModule

SET_BY_SCHEDULE = ("params", "lr")
"""Of a parameter group, what no optimizer step changes."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element, how it is seen to be put back: bit for bit, and 0 times a NaN is 0."""


def undoes(config: Config, accelerator: str) -> bool:
    """Whether bad steps are taken back; otherwise none is skipped, or whether one is to be is known beforehand.

    The CPU works with the host. DeepSpeed and fp16's loss scaler ask before each step themselves.
    """
    asks = config.trainer.strategy == "deepspeed" or config.trainer.precision == "16-mixed"
    return runs_behind(accelerator) and config.fault.max_skipped_steps > 0 and not asks


def runs_behind(accelerator: str) -> bool:
    """Whether what the host queues is done later."""
    return accelerator != "cpu"


@runtime_checkable
class ChangesWithSteps(Protocol):
    """A callback with tensors that an optimizer step changes."""

    def step_state(self) -> list[torch.Tensor]:
        """These tensors, the same ones throughout a training; asked once it has started."""


class StepUndo(Callback):
    """Keeps what a step is about to change, and puts it back. Must come after all callbacks that change with a step.

    In two halves. The device puts its tensors back, if `finite` says so, in a few kernels for all of them. What
    optimizers keep for the host, counts of steps and entries that the step made, is put back when the host knows
    (`put_back_on_host`), before the next step uses it.

    Attributes:
        finite: () bool on the device: whether the step under way is to count, once that is known there. None: it does.
    """

    def __init__(self, *changed: ChangesWithSteps) -> None:
        """Know who has what a step changes beside network and optimizer."""
        self._changed = changed
        self.finite: torch.Tensor | None = None
        self._fixed = Copies([])
        self._state = Copies([])
        self._places: list[tuple[dict[str, Any], str]] = []
        self._of_host: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is the same in every step."""
        network = pl_module.network
        assert isinstance(network, torch.nn.Module)
        besides = (tensor for each in self._changed for tensor in each.step_state())
        self._fixed = Copies([*network.parameters(), *network.buffers(), *besides])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what the step changes: statistics with its first micro-batch already."""
        self.finite = None
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._fixed.keep()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keep what the optimizer has."""
        self._places, self._of_host = [], []
        tensors = []
        for state in _states(optimizer):
            late = {}
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.dim():
                    self._places.append((state, key))
                    tensors.append(value)
                else:
                    late[key] = value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
            self._of_host.append((state, late))
        for group in optimizer.param_groups:
            late = {key: copy.deepcopy(value) for key, value in group.items() if key not in SET_BY_SCHEDULE}
            self._of_host.append((group, late))
        if not self._state.are_of(tensors):
            self._state = Copies(tensors)
        self._state.keep()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put back what a bad step has changed."""
        assert isinstance(pl_module, EfficientNetModule)
        if self.finite is None or not pl_module.ends_step(batch_idx):
            return
        self._fixed.put_back_unless(self.finite)
        self._state.put_back_unless(self.finite)
        for (place, key), old, kept in zip(self._places, self._state.tensors, self._state.copies, strict=True):
            if place[key] is not old:  # the step has put another one there
                place[key] = torch.where(self.finite, place[key], kept)

    def put_back_on_host(self, optimizer: Optimizer) -> None:
        """Undo what the latest step did to the optimizer's own counts."""
        known = {id(place): {*before, *SET_BY_SCHEDULE} for place, before in self._of_host}
        for place, key in self._places:
            known[id(place)].add(key)
        for place in (*_states(optimizer), *optimizer.param_groups):  # LAMB counts steps of a group
            for key in place.keys() - known.get(id(place), set()):
                del place[key]  # it is made anew
        for place, before in self._of_host:
            place.update(before)


class Copies:
    """Copies of tensors, kept up and put back without a wait, a few kernels for all.

    Attributes:
        tensors: What is copied.
        copies: Of the same shapes.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors
        self.copies = [torch.empty_like(tensor) for tensor in tensors]
        self._bits: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for tensor, kept in zip(tensors, self.copies, strict=True):
            size = tensor.element_size()
            for bits, each in zip(self._bits.setdefault(size, ([], [])), (tensor, kept), strict=True):
                bits.append(each.detach().view(INTEGERS[size]))

    def are_of(self, tensors: list[torch.Tensor]) -> bool:
        """Whether they are copies of these very tensors."""
        return len(tensors) == len(self.tensors) and all(map(_same, tensors, self.tensors))

    def keep(self) -> None:
        """Copy."""
        for live, copies in self._bits.values():
            torch._foreach_copy_(copies, live)

    def put_back_unless(self, good: torch.Tensor) -> None:
        """Copy back where ``good``, () bool on the device, is False; the copies are spent."""
        for size, (live, copies) in self._bits.items():
            factor = good.to(INTEGERS[size])
            torch._foreach_mul_(live, factor)
            torch._foreach_mul_(copies, 1 - factor)
            torch._foreach_add_(live, copies)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first is second


def _states(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What an optimizer keeps for each parameter; timm's Lookahead keeps it with the optimizer within."""
    return list(getattr(optimizer, "_base_optimizer", optimizer).state.values())
