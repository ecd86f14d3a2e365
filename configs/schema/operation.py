"""Settings of a run that goes on for days: checkpoints, resuming, faults, examining nodes, tracking."""

from typing import Annotated, Literal

from pydantic import Field

from configs.schema.section import NonNegativeInt, PositiveFloat, PositiveInt, Section, ValidationMetric


class Resume(Section):
    """How an attempt goes on from what earlier ones saved.

    `resume=X` is short for `resume.checkpoint=X`; where X is the directory of a run, for `model.checkpoint_path=X`: its
    weights alone, a warm start.
    """

    checkpoint: str = "auto"
    """`auto` goes on from the newest checkpoint that verifies, `never` refuses to touch a run that has one; else the
    path of a checkpoint directory; a relative one begins where the command is given."""
    allow_changes: bool = False
    """Go on though settings differ that make another experiment of it (seed, data, global batch, learning rate, …). The
    data goes on at the same share of its epoch, to within a batch. The network, its classes and the kind of optimizer
    must stay the same."""


class Checkpoint(Section):
    """When checkpoints are written, where, and which are kept. One is always written at the end."""

    every_n_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; None is off."""
    every_n_minutes: PositiveFloat | None = None
    """Minutes after a checkpoint of any kind until the next; None is off."""
    every_n_epochs: PositiveInt = 1
    """Epochs between checkpoints."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in host memory. DeepSpeed's own files are written before it goes on."""
    keep_last: PositiveInt = 3
    """Newest checkpoints kept. The last one that verifies is never removed."""
    keep_best: PositiveInt | None = 1
    """Checkpoints kept beside these for their value of `monitor`; None is none."""
    monitor: ValidationMetric | None = None
    """Validation metric that `keep_best` goes by: losses the lower, others the higher the better. None is
    `val/ema_top1`, or `val/top1` where no average is kept."""
    keep_every_n_steps: PositiveInt | None = None
    """The first checkpoint at or after each multiple of this many optimizer steps is kept for ever; None is none."""
    remote_dir: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://[^@:]*$")] | None = None
    """URL of a folder (`s3://bucket/folder`, or any other that fsspec writes to) in which the run's checkpoints are
    kept as well, in a folder of its id. A run without checkpoints here goes on from those there. None is off."""
    max_failures: PositiveInt = 5
    """Saves that may fail in a row, whether on disk or to remote_dir; then training stops, to be tried again."""
    retry_pause_s: PositiveFloat = 60.0
    """Seconds of training until a failed save is tried again; doubles with each failure in a row, up to 10 minutes."""


class Fault(Section):
    """What happens when something goes wrong."""

    timeout_s: PositiveFloat = 300.0
    """Longest wait in a collective operation before a rank gives up on its peers."""
    hang_timeout_s: PositiveFloat | None = 900.0
    """Seconds without a micro-batch, of training or validation, after which a rank writes its Python stacks to its log
    and ends, to be tried again. The first micro-batch may take half an hour. None is off."""
    max_time_minutes: PositiveFloat | None = None
    """Minutes after which the run is checkpointed and ends with exit code 85, as after a signal; from the start of
    `effnet fit`, restarts included, or of a job's rank 0. Set it below a scheduler's limit by more than a step and a
    save take. None is no limit."""
    restart_backoff_s: PositiveFloat = 10.0
    """Seconds before the first restart of `effnet fit --max-restarts`, give or take half; doubles with each further one
    without a newer checkpoint, up to 5 minutes."""
    check_every_n_steps: PositiveInt | None = None
    """Optimizer steps between two agreements of the ranks on whether a signal has arrived. None: as many as take 0.4
    seconds, but at most 8."""
    max_skipped_steps: NonNegativeInt = 10
    """Optimizer steps in a row that are left out because loss or gradient is not finite; one more, and the run goes
    back to the checkpoint before them, past their data. 0 goes back at the first: then a GPU keeps no copies to undo
    steps from, which are as large as weights, average and optimizer."""
    max_rollbacks: NonNegativeInt = 2
    """Times that a run goes back so; one more, and it ends with exit code 93. 0 ends it at once."""


class Doctor(Section):
    """What `effnet doctor` and `effnet launch … --preflight` hold a node to."""

    timeout_s: PositiveFloat = 300.0
    """Longest time that an examination of all nodes may take. Nodes that have not answered by then are named."""
    min_bandwidth_gb_per_s: PositiveFloat | None = None
    """Least bus bandwidth of an all-reduce over all devices, of that inside a node, and between two nodes; None goes by
    what joins them (docs/doctor.md)."""
    max_latency_ms: PositiveFloat | None = None
    """Longest time of an all-reduce of one number over all devices; None goes by what joins them."""
    max_clock_skew_s: PositiveFloat = 1.0
    """Most that a node's clock may differ from the first node's: clocks tell which rank failed first."""
    min_disk_mb_per_s: PositiveFloat = 20.0
    """Least speed at which the run directory, and the cache of remote shards, are written, forced to disk."""
    min_open_files: PositiveInt = 1024
    """Least `ulimit -n`."""
    images_per_s_per_device: PositiveFloat | None = None
    """Images that a device trains on per second, which shards must keep up with; None is what this run has measured
    before, else a published figure for that model and device, if there is one."""


class Tracking(Section):
    """Weights & Biases, and TensorBoard. metrics.csv is always written."""

    mode: Literal["online", "offline", "disabled"] = "online"
    """W&B's own modes. `offline` keeps all in the run directory, for `wandb sync` later."""
    project: str = "effnet"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; None is the key's default."""
    tags: tuple[str, ...] = ()
    """W&B tags."""
    group: str | None = None
    """W&B group, by which its pages put runs together; None is none."""
    notes: str | None = None
    """What W&B shows as the run's notes; None is none."""
    alert_data_wait_share: Annotated[float, Field(gt=0, lt=1)] | None = 0.5
    """Share of its time that training waits for data, in three rows of metrics in a row, at which the log and W&B are
    told once an attempt that input has stalled; None is never."""
    checkpoint_artifacts: Literal["none", "best", "last", "best_and_last", "all"] = "none"
    """Which checkpoints W&B gets as versions of the artifact `model-ID`, with aliases `latest`, `best` and `step-…`:
    `all` as they are saved; the others when training is done: the best by `checkpoint.monitor`, the last, or both. With
    `checkpoint.remote_dir` W&B gets references to the files there, not the files."""
    tensorboard: bool = False
    """Write TensorBoard's files too, to `tensorboard/` in the run directory (`pip install effnet[tensorboard]`)."""
    examples: Annotated[int, Field(ge=0, le=50)] | None = 12
    """Worst, and as many best, predictions of the last validation that are kept with their pictures, of each set of
    weights, beside accuracy by class and confusion matrix, as `effnet validate` writes them. 0 keeps no pictures, None
    has `effnet fit` write nothing of all this."""
