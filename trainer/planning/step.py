"""A training step of the real network in fake tensors: what it keeps, moves and computes, without its memory."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from configs.problems import ConfigError, Problem, shown
from configs.schema import Config
from trainer.module import EfficientNetModule
from trainer.network import build_network, image_size
from trainer.optimization import build_optimizer
from trainer.planning.fakes import make_fake, meta_distillation
from trainer.planning.tracker import StepTracker
from trainer.planning.work import Evaluation, Pass, Update


class FakeTraining:
    """The network and optimizer of a configuration in tensors that have a shape and no memory.

    They are on the CPU: the backward pass wants no GPU then. Operations and sizes are those of CUDA but for what its
    libraries work in.

    Attributes:
        network: As `build_network` makes it.
        optimizer: As `build_optimizer` makes it, one kernel for many tensors where it can on a GPU.
        distillation: With the teacher of the configuration, where it has one.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._mode = config, FakeTensorMode()
        casts = config.trainer.strategy == "deepspeed"  # it casts weights, where Lightning casts at each operation
        self._dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.trainer.precision)
        with torch.device("meta"):
            self.network = build_network(config, restored=True)
        if config.trainer.channels_last and not casts:
            self.network.to(memory_format=torch.channels_last)
        if config.trainer.gradient_checkpointing:
            self.network.set_grad_checkpointing()  # type: ignore[operator]
        self.distillation = meta_distillation(config, self._dtype if casts else None)
        with self._mode:
            make_fake(self.network, dtype=self._dtype if casts else None)
            if self.distillation is not None:
                make_fake(self.distillation)
            self._module = EfficientNetModule(config, self.network)
            self.optimizer: Optimizer = build_optimizer(self.network, config.optimizer)
            for group in self.optimizer.param_groups:
                if config.trainer.accelerator != "cpu" and "foreach" in group and not group.get("fused"):
                    group["foreach"] = True
        self._autocast = self._dtype if not casts else None

    def run(self, images: int, *, gradients_stay: bool, pixels: int | None = None, frozen: bool = False) -> Pass:
        """Forward and backward pass, with the teacher's forward pass where there is one.

        Args:
            images: Samples of the micro-batch.
            gradients_stay: They are there before (DDP's buckets, accumulation), and count among what stays.
            pixels: Side of the images; None is that of the whole run.
            frozen: Only the head trains.

        Raises:
            ConfigError: If BatchNorm has a single value of a channel to normalise, or the teacher takes no such images.
        """
        size = image_size(self._config) if pixels is None else pixels
        try:
            return self._run(images, size, gradients_stay=gradients_stay, frozen=frozen)
        except ValueError as error:
            accepted = f"more samples or pixels ({error})"
            raise ConfigError([Problem(key="data.micro_batch_size", received=str(images), accepted=accepted)]) from None

    def _run(self, images: int, size: int, *, gradients_stay: bool, frozen: bool) -> Pass:
        with self._mode:
            self._set_gradients(there=gradients_stay)
            with StepTracker(self._resident()) as tracker:
                count = images * (self._config.data.augmentation.aug_splits or 1)
                pixels, targets = self._pixels(count, size), torch.zeros(count, dtype=torch.long)  # there throughout
                inputs = self._module.normalise(pixels)
                tracker.kernels.clear()
                with self._precision():
                    logits = self._logits(inputs, frozen=frozen).float()
                    loss = cross_entropy(logits, targets)
                    network, student = len(tracker.kernels), tracker.peak_bytes
                    before = tracker.peak_bytes = tracker.live_bytes
                    if self.distillation is not None:
                        loss = self.distillation(inputs, logits, loss)
                teacher, tracker.peak_bytes = tracker.peak_bytes - before, max(student, tracker.peak_bytes)
                del inputs, logits
                forward, kept = len(tracker.kernels), tracker.live_bytes
                loss.backward()  # type: ignore[no-untyped-call]
            self._set_gradients(there=False)
        return Pass(
            images=images,
            image_size=size,
            network_kernels=network,
            forward_kernels=forward,
            teacher_bytes=teacher,
            kept_bytes=kept,
            peak_bytes=tracker.peak_bytes,
            kernels=tracker.kernels,
        )

    def evaluate(self) -> Evaluation:
        """The raw weights' forward pass over a batch of `data.eval_batch_size`, which the averaged ones' equals."""
        data = self._config.data
        size = data.eval_image_size or image_size(self._config)
        with self._mode, StepTracker(self._resident()) as tracker, torch.no_grad():
            pixels = self._pixels(data.eval_batch_size, size)
            inputs = self._module.normalise(pixels)
            tracker.kernels.clear()
            with self._precision():
                self.network.eval()(inputs)
        return Evaluation(
            images=data.eval_batch_size, image_size=size, peak_bytes=tracker.peak_bytes, kernels=tracker.kernels
        )

    def update(self) -> Update:
        """A step of the optimizer, by the second of two: the first makes its state.

        Raises:
            ConfigError: If the optimizer cannot step without values.
        """
        try:
            return self._update()
        except RuntimeError as error:
            opt = self._config.optimizer.opt
            accepted = f"one whose step needs no values, to be planned with: {opt} can only be tried ({error})"
            raise ConfigError([Problem(key="optimizer.opt", received=shown(opt), accepted=accepted)]) from None

    def _update(self) -> Update:
        with self._mode:
            self._set_gradients(there=True)
            with StepTracker(self._resident()) as tracker:
                self.optimizer.step()
                state = sum(tensor.untyped_storage().nbytes() for tensor in self._state())
                tracker.reset()
                self.optimizer.step()
            self._set_gradients(there=False)
        peak = tracker.peak_bytes - state
        return Update(
            state_bytes=state,
            state_tensors=len(self._state()),
            peak_bytes=max(peak, 0),
            kernels=tracker.kernels,
        )

    def _pixels(self, count: int, size: int) -> torch.Tensor:
        return torch.empty((count, self._config.model.in_chans, size, size), dtype=torch.uint8)

    def _logits(self, inputs: torch.Tensor, *, frozen: bool) -> torch.Tensor:
        """As `EfficientNetModule.training_step` has them."""
        network: Any = self.network
        if not frozen:
            return cast(torch.Tensor, network.train()(inputs))
        network.eval().classifier.train()
        with torch.no_grad():
            features = network.forward_features(inputs)
        return cast(torch.Tensor, network.forward_head(features))

    def _set_gradients(self, *, there: bool) -> None:
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if there else None

    def _resident(self) -> list[torch.Tensor]:
        weights = list(self.network.parameters())
        teacher = [] if self.distillation is None else [*self.distillation.parameters(), *self.distillation.buffers()]
        gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
        return [*weights, *gradients, *self.network.buffers(), *teacher]

    def _state(self) -> list[torch.Tensor]:
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if isinstance(value, torch.Tensor)]

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._autocast is None else torch.autocast("cpu", self._autocast)
