"""Every setting of a run: its type, meaning, unit and default. Checked one by one here, together in configs/checks."""

from configs.schema.audio import Audio
from configs.schema.data import Augmentation, Data
from configs.schema.launch import Hardware, Kubernetes, Launch, Slurm, Ssh, Volume
from configs.schema.model import Model, Stage
from configs.schema.operation import Checkpoint, Doctor, Fault, Resume, Tracking
from configs.schema.section import NonNegativeInt, RunId, Section
from configs.schema.text import Text
from configs.schema.training import Deepspeed, Distillation, Ema, Loss, Optimizer, Progressive, Scheduler, Trainer

__all__ = [
    "Audio",
    "Augmentation",
    "Config",
    "Data",
    "Distillation",
    "Doctor",
    "Ema",
    "Hardware",
    "Kubernetes",
    "Model",
    "Optimizer",
    "Scheduler",
    "Section",
    "Slurm",
    "Ssh",
    "Stage",
    "Text",
    "Trainer",
    "Volume",
]


class Config(Section):
    """A whole run."""

    name: RunId = "run"
    """Short name; the default run id starts with it."""
    run_id: RunId | None = None
    """Folder under runs_dir; None is `name` plus a hash of the experiment: the same command, the same run."""
    runs_dir: str = "runs"
    """Where run directories are made."""
    seed: NonNegativeInt = 0
    """Seeds weights, order, augmentation and dropout."""
    data: Data
    model: Model = Model()
    loss: Loss = Loss()
    distillation: Distillation = Distillation()
    progressive: Progressive = Progressive()
    optimizer: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()
    ema: Ema = Ema()
    trainer: Trainer = Trainer()
    deepspeed: Deepspeed = Deepspeed()
    resume: Resume = Resume()
    checkpoint: Checkpoint = Checkpoint()
    fault: Fault = Fault()
    doctor: Doctor = Doctor()
    tracking: Tracking = Tracking()
    launch: Launch = Launch()

    @property
    def monitor(self) -> str:
        """The validation metric by which a checkpoint is better than another."""
        return self.checkpoint.monitor or ("val/ema_top1" if self.ema.enabled else "val/top1")

    @property
    def plateau_monitor(self) -> str:
        """The validation metric by which the schedule `plateau` decays."""
        return self.scheduler.monitor or ("val/ema_top1" if self.ema.enabled else "val/top1")

    @property
    def width_and_depth(self) -> tuple[float, float] | None:
        """Multipliers of B0's channels and repeats, or None where `model.name` says all.

        Constants: Tan and Le, EfficientNet, ICML 2019, section 4 (alpha 1.2, beta 1.1, gamma 1.15).
        """
        if self.model.compound_phi is not None:
            return 1.1**self.model.compound_phi, 1.2**self.model.compound_phi
        if self.model.width_multiplier is None and self.model.depth_multiplier is None:
            return None
        return self.model.width_multiplier or 1.0, self.model.depth_multiplier or 1.0
