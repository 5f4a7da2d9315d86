"""The config of train.py: the configs of its parts, composed; `train.py --help` lists every field."""

import math
from dataclasses import dataclass, field

from fyp_jax.config import config_field
from fyp_jax.data.config import ONE_CLIP, DataConfig
from fyp_jax.errors import UserError
from fyp_jax.models.attention_kernels.names import ATTENTION_HELP, check_attention
from fyp_jax.models.execution import REMAT
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pipeline.config import (
    PREDICTION_TYPE_HELP,
    PRETRAINED_HELP,
    TOKENIZER_HELP,
    VARIANT_HELP,
)
from fyp_jax.pipeline.params import LATENT_GRID, SamplingParams
from fyp_jax.pose.config import PoseConfig
from fyp_jax.training.stages import check_cachable, get_stage

MODELS = ("unet", "pose_encoder", "vae", "text_encoder")


@dataclass
class OptimizerConfig:
    """AdamW or Muon; the defaults are those of the published motion stage."""

    name: str = config_field(
        "adamw",
        "adamw, or muon for kernels of layers with adamw for the rest; models from nothing learn faster",
    )
    lr: float = config_field(3e-5, "learning rate")
    lr_schedule: str = config_field("constant", "learning rate after the warm-up: constant, or cosine to 0")
    warmup_steps: int = config_field(0, "updates over which the learning rate rises from 0")
    beta1: float = config_field(
        0.9, "decay of the mean of gradients, where adamw trains; muon's own decay is 0.95"
    )
    beta2: float = config_field(0.999, "decay of the mean of squared gradients, where adamw trains")
    eps: float = config_field(1e-8, "added to the root of that mean")
    weight_decay: float = config_field(
        1e-2, "decay of each parameter at each update, times the learning rate"
    )
    max_grad_norm: float | None = config_field(1.0, "gradients are clipped to this global norm; null: never")
    grad_accumulation_steps: int = config_field(
        1, "a batch is computed in so many parts, one after the other, to save memory"
    )
    ema_decay: float | None = config_field(
        None, "decay of a moving average of the weights, which sampling then uses; null: none"
    )

    def check(self) -> None:
        """Raise UserError for values that cannot train."""
        for name, in_range in {
            "name": self.name in ("adamw", "muon"),
            "lr": 0 < self.lr < math.inf,
            "lr_schedule": self.lr_schedule in ("constant", "cosine"),
            "warmup_steps": self.warmup_steps >= 0,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "eps": 0 < self.eps < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "max_grad_norm": self.max_grad_norm is None or 0 < self.max_grad_norm < math.inf,
            "grad_accumulation_steps": self.grad_accumulation_steps >= 1,
            "ema_decay": self.ema_decay is None or 0 < self.ema_decay < 1,
        }.items():
            if not in_range:
                raise UserError(
                    f"optimizer.{name}={getattr(self, name)} is out of range (see train.py --help)"
                )


@dataclass(frozen=True)
class LossConfig:
    """How errors become a loss; the defaults are the published ones."""

    min_snr_gamma: float | None = config_field(
        None, "diffusion: no timestep counts more than at this signal-to-noise ratio (5 is usual); null: off"
    )
    edge_weight: float = config_field(
        0.0, "autoencoder: weight of the error of differences between neighbouring pixels"
    )
    kl_weight: float = config_field(
        1e-3, "autoencoder: weight of the latents' KL divergence from a standard normal, a mean over latents"
    )

    def check(self) -> None:
        """Raise UserError for a weight that is negative or not finite."""
        for name, in_range in {
            "min_snr_gamma": self.min_snr_gamma is None or 0 < self.min_snr_gamma < math.inf,
            "edge_weight": 0 <= self.edge_weight < math.inf,
            "kl_weight": 0 <= self.kl_weight < math.inf,
        }.items():
            if not in_range:
                raise UserError(f"loss.{name}={getattr(self, name)} is out of range (see train.py --help)")


@dataclass
class CheckpointConfig:
    """When checkpoints are saved, and which stay."""

    folder: str | None = config_field(
        None, "folder of the checkpoints, gs://... too; null: OUTPUT_DIR/checkpoints"
    )
    save_interval: int = config_field(1000, "steps between checkpoints; the last step is saved too")
    max_to_keep: int = config_field(
        2, "the newest checkpoints that stay; the one with the lowest loss stays too"
    )
    verify: bool = config_field(True, "compare a checkpoint with its checksums before it is used")


@dataclass
class LogConfig:
    """How often a run writes its metrics."""

    log_interval: int = config_field(10, "steps between rows of metrics.csv")


@dataclass
class ValidationConfig(SamplingParams):
    """Clips that are sampled during training. Height and width are those of the data."""

    sample_interval: int = config_field(0, "steps between validation clips; 0: none")
    prompt: list[str] = field(
        default_factory=list,
        metadata={"help": "texts; each makes one clip; one_shot without any: the caption"},
    )
    pose: PoseConfig = field(default_factory=PoseConfig)
    num_inference_steps: int = config_field(20, "steps of the solver")
    noise_correlation: float | None = config_field(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, "fraction of the initial noise's variance that all frames have in common; null: as in training"
    )
    height: int | None = config_field(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, "pixels; null: data.height"
    )
    width: int | None = config_field(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, "pixels; null: data.width"
    )


@dataclass
class TrainConfig:
    """One run of train.py."""

    stage: str = config_field(
        "motion",
        "pose: pose encoder, from images; motion: temporal layers and queries, from videos; one_shot: "
        "Tune-A-Video, from one clip; autoencoder, image: a Stable Diffusion from nothing; decoder: a "
        "VAE's decoder; video: all of the UNet",
    )
    pretrained: str = config_field("mini", PRETRAINED_HELP.removesuffix(", or checkpoint of ours"))
    variant: str | None = config_field(None, VARIANT_HELP)
    tokenizer: str | None = config_field(None, TOKENIZER_HELP)
    prediction_type: str | None = config_field(None, PREDICTION_TYPE_HELP)
    init_checkpoint: str | None = config_field(
        None,
        "checkpoint of an earlier stage to start from, as a run's folder, its checkpoints, or one step's "
        "folder; null: start from `pretrained`",
    )
    reinit: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"models that start untrained, even if there are weights for them: {', '.join(MODELS)}"
        },
    )
    random_init: bool = config_field(
        False, "initialise all weights at random, the same each time; only sizes come from `pretrained`"
    )
    zero_init_temporal: bool = config_field(
        True, "temporal attention that was never trained starts at 0; false: at the published initialisation"
    )
    noise_correlation: float = config_field(
        0.0, "fraction of the noise's variance that all frames of a clip have in common, 0 to 1"
    )
    output_dir: str = config_field("runs/train", "folder of the run; the same command resumes what is there")
    num_train_steps: int = config_field(10000, "steps in all, those before a restart included")
    seed: int = config_field(0, "seed of the data's order, of noise and of models that start untrained")
    dtype: str = config_field(
        "float32", "dtype of activations: float32 or bfloat16; trained weights stay float32"
    )
    frozen_dtype: str = config_field("float32", "dtype of weights that are not trained: float32 or bfloat16")
    remat: str = config_field(
        "none", f"blocks that are rematerialised for the gradient, to save memory: {', '.join(REMAT)}"
    )
    attention_implementation: str = config_field("auto", ATTENTION_HELP)
    aot_path: str | None = config_field(
        None, "compiled step that scripts/compile_tpu.py --save wrote; null: compile now"
    )
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    @property
    def checkpoint_folder(self) -> str:
        """The folder of the run's checkpoints."""
        return self.checkpoint.folder or f"{self.output_dir}/checkpoints"

    def validation_sampling(self) -> SamplingParams:
        """The options of validation clips: what the config leaves open is as in training."""
        chosen, open_fields = (
            self.validation,
            {
                "noise_correlation": self.noise_correlation,
                "height": self.data.height,
                "width": self.data.width,
            },
        )
        values = {name: getattr(chosen, name) for name in SamplingParams.__dataclass_fields__}
        for name, value in open_fields.items():
            values[name] = value if values[name] is None else values[name]
        return SamplingParams(**values)

    def check(self) -> None:
        """Raise UserError for values that have the right type but train nothing."""
        stage = get_stage(self.stage)
        self.data.check_source(stage.dataset)
        self.loss.check()
        self.optimizer.check()
        self.data.check()
        if self.data.cached_latents:
            check_cachable(self.data, stage)
        for name in ("height", "width", "random_crop"):
            if (getattr(self.data, name) or 0) % LATENT_GRID:
                raise UserError(f"data.{name}={getattr(self.data, name)} is not a multiple of {LATENT_GRID}")
        for name in ("dtype", "frozen_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise UserError(f"{name}={getattr(self, name)} is not float32 or bfloat16")
        check_attention(self.attention_implementation)
        if self.remat not in REMAT:
            raise UserError(f"remat={self.remat} is not one of {', '.join(REMAT)}")
        if unknown := [name for name in self.reinit if name not in MODELS]:
            raise UserError(f"reinit={unknown[0]}: the models are {', '.join(MODELS)}")
        for name, value in (("reinit", ",".join(self.reinit)), ("init_checkpoint", self.init_checkpoint)):
            if value and self.random_init:
                raise UserError(f"{name}={value} and random_init=true exclude each other: leave one out")
        if not 0 <= self.noise_correlation <= 1:
            raise UserError(f"noise_correlation={self.noise_correlation} is not between 0 and 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is not between 0 and {2**32 - 1}")
        for name, value, least in (
            ("num_train_steps", self.num_train_steps, 1),
            ("checkpoint.save_interval", self.checkpoint.save_interval, 1),
            ("checkpoint.max_to_keep", self.checkpoint.max_to_keep, 1),
            ("log.log_interval", self.log.log_interval, 1),
            ("validation.sample_interval", self.validation.sample_interval, 0),
        ):
            if value < least:
                raise UserError(f"{name}={value} must be at least {least}")
        if self.validation.sample_interval and not self.validation.prompt and stage.dataset != ONE_CLIP:
            raise UserError("validation.sample_interval is given, but validation.prompt is empty")
        if self.validation.sample_interval and stage.dataset == ONE_CLIP:
            self._check_inversion()
        try:
            self.validation_sampling().check()
        except UserError as error:
            raise UserError(f"validation.{error}") from error

    def _check_inversion(self) -> None:
        """Raise UserError where validation clips have another size than the clip, whose inversion they start
        from."""
        sampling = self.validation_sampling()
        for name in ("num_frames", "height", "width"):
            if (found := getattr(sampling, name)) != (needed := getattr(self.data, name)):
                raise UserError(
                    f"validation.{name}={found}, but validation starts from the inverted clip, which has "
                    f"data.{name}={needed}"
                )
