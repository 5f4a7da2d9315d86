"""What a training run is made of: the parts' own configs, composed; `train.py --help` lists every field."""

import math
from dataclasses import dataclass, field

from fyp_jax.config import LATENT_GRID
from fyp_jax.data.loader import DataConfig
from fyp_jax.errors import UserError
from fyp_jax.media.pose import PoseConfig
from fyp_jax.models.compute import REMAT
from fyp_jax.options import option
from fyp_jax.parallel import MeshConfig
from fyp_jax.training.logs import LogConfig
from fyp_jax.training.stages import stage

MODELS = ("unet", "pose_encoder", "vae", "text_encoder")


@dataclass
class OptimizerConfig:
    """AdamW; the published motion stage has the defaults."""

    lr: float = option(3e-5, "learning rate")
    schedule: str = option("constant", "of the learning rate behind the warm-up: constant or cosine (to 0)")
    warmup: int = option(0, "updates over which the learning rate rises from 0")
    beta1: float = option(0.9, "decay of the mean of gradients")
    beta2: float = option(0.999, "decay of the mean of squared gradients")
    eps: float = option(1e-8, "added to the root of that mean")
    weight_decay: float = option(1e-2, "times the learning rate, of each parameter at each update")
    clip: float | None = option(1.0, "largest global norm of a gradient; null does not clip")
    accumulate: int = option(1, "parts in which a batch is computed one after the other, to save memory")
    ema: float | None = option(None, "decay of a moving average of the weights, which sampling then uses")

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

    folder: str | None = option(None, "where they stand, gs://BUCKET/... too; null: OUT/checkpoints")
    every: int = option(1000, "steps from one checkpoint to the next; there is one at the end, too")
    keep: int = option(2, "how many of the last ones are kept; the one with the lowest loss stays as well")


@dataclass
class ValidationConfig:
    """Clips that are sampled on the way, to be looked at."""

    every: int = option(0, "steps from one look to the next, 0 for none")
    prompt: list[str] = field(default_factory=list, metadata={"help": "one clip is made for each"})
    pose: PoseConfig = field(default_factory=PoseConfig)
    steps: int = option(20, "DDIM steps")
    guidance: float = option(12.5, "as in sampling")
    seed: int = option(0, "of the starting noise")


@dataclass
class TrainConfig:
    """One run of train.py."""

    stage: str = option(
        "motion",
        "pose: the pose encoder, from images; motion: temporal layers, from videos; "
        "autoencoder, image: a Stable Diffusion from nothing; video: all of the UNet",
    )
    pretrained: str = option("mini", "pipeline folder, Hub id, or a size of ours: mini, sd14")
    init: str | None = option(None, "checkpoint of an earlier stage to start from; null: the pipeline's UNet")
    fresh: list[str] = field(
        default_factory=list,
        metadata={"help": f"models that start untrained, whatever else is there, of {', '.join(MODELS)}"},
    )
    random_weights: bool = option(False, "draw weights, always the same; of `pretrained` take the sizes")
    zero_init_temporal: bool = option(
        True, "temporal attention that was never trained starts at 0; false: as the reference draws it"
    )
    shared_noise: float = option(0.0, "share of the noise that all frames of a clip have in common, 0 to 1")
    out: str = option("runs/train", "folder of the run; where it was stopped, it goes on")
    steps: int = option(10000, "steps in all, those before a restart too")
    seed: int = option(0, "of the order of data, of noise and of what starts fresh")
    dtype: str = option("float32", "of activations: float32 or bfloat16; what is trained stays float32")
    frozen_dtype: str = option("float32", "of the weights that are not trained: float32 or bfloat16")
    remat: str = option("none", f"blocks that a gradient computes again to save memory: {', '.join(REMAT)}")
    compiled: str | None = option(None, "the step, written by scripts/compile_tpu.py --save; null: compile")
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
        if self.fresh and self.random_weights:
            raise UserError(f"fresh={','.join(self.fresh)} and random_weights=true: which of them?")
        if self.init is not None and self.random_weights:
            raise UserError(f"init={self.init} and random_weights=true: which of them?")
        if not 0 <= self.shared_noise <= 1:
            raise UserError(f"shared_noise={self.shared_noise} is not between 0 and 1")
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
