"""The settings every stage trains with: `[train]`."""

from typing import Literal

from pydantic import Field, model_validator

from llmcore.config import Config
from llmcore.train.optim import AdamW, AnyOptimizer
from llmcore.train.parallel import AnyParallel, OneProcess, per_rank
from llmcore.train.schedule import AnySchedule, Cosine
from llmcore.train.stopping import EarlyStopping
from llmcore.train.watchers import AnyWatcher, TensorBoard


class TrainConfig(Config):
    """How long, how fast and how precisely to train."""

    steps: int = Field(1000, ge=1)
    """Optimizer steps of the whole run."""
    batch: int = Field(16, ge=1)
    """Rows per optimizer step."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows per forward pass; fewer than `batch` need less memory and give the same update (none: all at once)."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    optimizer: AnyOptimizer = AdamW()
    """What turns gradients into updates."""
    schedule: AnySchedule = Cosine()
    """The learning rate over the steps."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient; a longer one is shortened to it."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is evaluated and kept in their place (0.999); none if absent."""
    early_stopping: EarlyStopping | None = None
    """End once a validation figure stops improving; absent, the run has all its steps."""
    seed: int = Field(0, ge=0)
    """What all randomness is a function of, together with the step."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the activations; weights are kept in fp32."""
    loss_scale: float = Field(256.0, ge=1, le=2**15)
    """With fp16, what the loss is multiplied by at first; halved by an overflow, doubled again while there is none."""
    loss_scale_window: int = Field(2000, ge=1)
    """With fp16, the steps without an overflow after which the scale is doubled."""
    compile: bool = False
    """Compile the blocks of the model for training (`torch.compile`): minutes at the start, then faster on a GPU."""
    checkpoint_activations: bool = False
    """Compute each block again in the backward instead of keeping what is inside: less memory, a third more time."""
    parallel: AnyParallel = OneProcess()
    """How the processes that torchrun starts share the work: single, ddp or fsdp (docs/distributed.md)."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of metrics."""
    eval_every: int = Field(100, ge=1)
    """Steps between two evaluations; the last step has one in any case."""
    save_every: int = Field(200, ge=1)
    """Steps between two resumable checkpoints; the last step has one in any case."""
    keep: int = Field(2, ge=2)
    """How many of the newest resumable checkpoints to keep."""
    keep_best: int = Field(0, ge=0)
    """How many of the best to keep beside them; an evaluation that is among the best is saved at once."""
    best_metric: str = "val_loss"
    """The figure of an evaluation that says what is best."""
    best_mode: Literal["auto", "min", "max"] = "auto"
    """Whether lower or higher is better; auto: by the metric's name (accuracy, reward and the like: higher)."""
    pin_every: int | None = Field(None, ge=1)
    """Keep for good every checkpoint whose step this divides; `llmcore runs pin` keeps others."""
    artifact: Literal["last", "best"] = "last"
    """Which weights the run ends with: the last, or those of the best checkpoint (`keep_best`)."""
    stop_after: int | None = Field(None, ge=0)
    """End early, and resumably, after this step."""
    watch: tuple[AnyWatcher, ...] = (TensorBoard(),)
    """Where the run is shown beside metrics.jsonl: tensorboard, wandb (`llmcore[wandb]`), or none: []."""
    histogram_every: int | None = Field(None, ge=1)
    """Steps between two histograms of every weight and its gradient; none if absent."""
    sample_every: int | None = Field(None, ge=1)
    """Steps between two samples of what the model says, in run/samples.jsonl and on the screen; none if absent."""
    sample_prompts: tuple[str, ...] = ()
    """What it is asked; the stage's own prompts if empty."""
    sample_tokens: int = Field(64, ge=1)
    """Longest sample."""
    mfu: bool = False
    """Record the share of the device's peak that is used, against a product measured at the start, and the memory."""
    profile: str | None = Field(None, pattern=r"^\d+\.\.\d+$")
    """Trace these steps with PyTorch's profiler, as 10..15, into run/profile."""

    @model_validator(mode="after")
    def check_rows(self) -> "TrainConfig":
        """A micro-batch is a part of the batch."""
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(f"micro_batch is {self.micro_batch}, more than the batch of {self.batch}")
        return self

    @model_validator(mode="after")
    def check_best(self) -> "TrainConfig":
        """The best weights can be taken from a checkpoint that is kept only."""
        if self.artifact == "best" and not self.keep_best:
            raise ValueError("artifact is 'best', and no best checkpoint is kept: set keep_best=1")
        return self

    @model_validator(mode="after")
    def check_profile(self) -> "TrainConfig":
        """From a step to a later one."""
        if self.profile is not None and self.profiled_steps[0] > self.profiled_steps[1]:
            raise ValueError(f"profile is {self.profile!r}, which ends before it begins")
        return self

    @property
    def profiled_steps(self) -> tuple[int, int]:
        """The first and last step to trace, counted from 1; (0, 0) for none."""
        first, _, last = (self.profile or "0..0").partition("..")
        return int(first), int(last)

    @property
    def rows(self) -> int:
        """Rows per forward pass of one process."""
        return min(self.micro_batch or self.batch, per_rank(self.batch))


SAFE_TO_CHANGE = frozenset(
    {"device", "parallel", "micro_batch", "log_every", "eval_every", "save_every", "stop_after"}
    | {"keep", "keep_best", "best_metric", "best_mode", "pin_every"}
    | {"compile", "checkpoint_activations"}
    | {"watch", "histogram_every", "sample_every", "sample_prompts", "sample_tokens", "mfu", "profile"}
)
"""Settings that may differ when a run goes on: they change neither the data nor the updates (beyond rounding)."""
