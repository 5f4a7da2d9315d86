"""What a training run is made of: the parts' own configs, composed; `train.py --help` lists every field."""

import math
from dataclasses import dataclass, field

from fyp_jax.config import LATENT_GRID
from fyp_jax.data.config import DataConfig
from fyp_jax.errors import UserError
from fyp_jax.models.execution import REMAT
from fyp_jax.options import config_field
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pose.config import PoseConfig
from fyp_jax.training.logs import LogConfig
from fyp_jax.training.stages import stage

MODELS = ("unet", "pose_encoder", "vae", "text_encoder")


@dataclass
class OptimizerConfig:
    """AdamW; the published motion stage has the defaults."""

    lr: float = config_field(3e-5, "learning rate")
    lr_schedule: str = config_field("constant", "constant or cosine (to 0) after the warm-up")
    warmup_steps: int = config_field(0, "updates over which the learning rate rises from 0")
    beta1: float = config_field(0.9, "decay of the mean of gradients")
    beta2: float = config_field(0.999, "decay of the mean of squared gradients")
    eps: float = config_field(1e-8, "added to the root of that mean")
    weight_decay: float = config_field(1e-2, "times the learning rate, of each parameter at each update")
    max_grad_norm: float | None = config_field(1.0, "largest global norm of a gradient; null does not clip")
    grad_accumulation_steps: int = config_field(
        1, "parts in which a batch is computed one after the other, to save memory"
    )
    ema_decay: float | None = config_field(
        None, "decay of a moving average of the weights, which sampling then uses"
    )

    def check(self) -> None:
        """Raise UserError for values that cannot train."""
        for name, fits in {
            "lr": 0 < self.lr < math.inf,
            "schedule": self.schedule in ("constant", "cosine"),
            "warmup": self.warmup >= 0,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "eps": 0 < self.eps < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip": self.clip is None or 0 < self.clip < math.inf,
            "accumulate": self.accumulate >= 1,
            "ema": self.ema is None or 0 < self.ema < 1,
        }.items():
            if not fits:
                raise UserError(f"optimizer.{name}={getattr(self, name)} is out of range (train.py --help)")


@dataclass
class CheckpointConfig:
    """Which steps are kept."""

    folder: str | None = config_field(None, "where they stand, gs://BUCKET/... too; null: OUT/checkpoints")
    every: int = config_field(1000, "steps from one checkpoint to the next; there is one at the end, too")
    keep: int = config_field(
        2, "how many of the last ones are kept; the one with the lowest loss stays as well"
    )


@dataclass
class ValidationConfig:
    """Clips that are sampled on the way, to be looked at."""

    every: int = config_field(0, "steps from one look to the next, 0 for none")
    prompt: list[str] = field(default_factory=list, metadata={"help": "one clip is made for each"})
    pose: PoseConfig = field(default_factory=PoseConfig)
    steps: int = config_field(20, "DDIM steps")
    guidance: float = config_field(12.5, "as in sampling")
    seed: int = config_field(0, "of the starting noise")


@dataclass
class TrainConfig:
    """One run of train.py."""

    stage: str = config_field(
        "motion",
        "pose: the pose encoder, from images; motion: temporal layers, from videos; "
        "autoencoder, image: a Stable Diffusion from nothing; video: all of the UNet",
    )
    pretrained: str = config_field("mini", "pipeline folder, Hub id, or a size of ours: mini, sd14")
    init: str | None = config_field(
        None, "checkpoint of an earlier stage to start from; null: the pipeline's UNet"
    )
    fresh: list[str] = field(
        default_factory=list,
        metadata={"help": f"models that start untrained, whatever else is there, of {', '.join(MODELS)}"},
    )
    random_init: bool = config_field(False, "draw weights, always the same; of `pretrained` take the sizes")
    zero_init_temporal: bool = config_field(
        True, "temporal attention that was never trained starts at 0; false: as the reference draws it"
    )
    noise_correlation: float = config_field(
        0.0, "share of the noise that all frames of a clip have in common, 0 to 1"
    )
    out: str = config_field("runs/train", "folder of the run; where it was stopped, it goes on")
    steps: int = config_field(10000, "steps in all, those before a restart too")
    seed: int = config_field(0, "of the order of data, of noise and of what starts fresh")
    dtype: str = config_field("float32", "of activations: float32 or bfloat16; what is trained stays float32")
    frozen_dtype: str = config_field("float32", "of the weights that are not trained: float32 or bfloat16")
    remat: str = config_field(
        "none", f"blocks that a gradient computes again to save memory: {', '.join(REMAT)}"
    )
    compiled: str | None = config_field(
        None, "the step, written by scripts/compile_tpu.py --save; null: compile"
    )
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    @property
    def checkpoint_folder(self) -> str:
        return self.checkpoint.folder or f"{self.out}/checkpoints"

    def check(self) -> None:
        """Raise UserError for values that have the right type and train nothing."""
        stage(self.stage)
        self.optimizer.check()
        self.data.check()
        for name in ("height", "width"):
            if getattr(self.data, name) % LATENT_GRID:
                raise UserError(f"data.{name}={getattr(self.data, name)} is not a multiple of {LATENT_GRID}")
        for name in ("dtype", "frozen_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise UserError(f"{name}={getattr(self, name)} is not float32 or bfloat16")
        if self.remat not in REMAT:
            raise UserError(f"remat={self.remat} is not one of {', '.join(REMAT)}")
        if unknown := [name for name in self.fresh if name not in MODELS]:
            raise UserError(f"fresh={unknown[0]}: the models are {', '.join(MODELS)}")
        if self.fresh and self.random_init:
            raise UserError(f"fresh={','.join(self.fresh)} and random_init=true: which of them?")
        if self.init is not None and self.random_init:
            raise UserError(f"init={self.init} and random_init=true: which of them?")
        if not 0 <= self.noise_correlation <= 1:
            raise UserError(f"noise_correlation={self.noise_correlation} is not between 0 and 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is not between 0 and {2**32 - 1}")
        for name, value, least in (
            ("steps", self.steps, 1),
            ("checkpoint.every", self.checkpoint.every, 1),
            ("checkpoint.keep", self.checkpoint.keep, 1),
            ("log.every", self.log.every, 1),
            ("validation.every", self.validation.every, 0),
            ("validation.steps", self.validation.steps, 1),
        ):
            if value < least:
                raise UserError(f"{name}={value} must be at least {least}")
        if self.validation.every and not self.validation.prompt:
            raise UserError("validation.every is given, but validation.prompt is empty")
