"""The config of sample.py."""

from dataclasses import dataclass, field

from fyp_jax.config import config_field
from fyp_jax.convert.style_specs import embedding_spec, lora_spec
from fyp_jax.errors import UserError
from fyp_jax.models.attention_kernels.names import ATTENTION_HELP, check_attention
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pipeline.params import TRAINED_FRAMES, SamplingParams
from fyp_jax.pose.config import PoseConfig

PRETRAINED_HELP = (
    "bundled model (mini; sd14 has sizes alone), pipeline folder, Hub id, single .safetensors or .ckpt file, "
    "or checkpoint of ours"
)
VARIANT_HELP = "which weights, where there are several: fp16, bf16, non_ema, ...; of a single file: ema"
TOKENIZER_HELP = "folder or Hub id of the tokenizer, which single files lack; null: CLIP's"
PREDICTION_TYPE_HELP = "what the UNet predicts: epsilon, v_prediction, sample; null: as the pipeline says"

RANDOM_WEIGHTS = (
    "The weights are random: this clip shows that everything runs, not what a trained model makes."
)
CLIP_FORMATS = ("folder", "tar")
"""How the clips of a prompt file are kept."""


@dataclass
class SampleConfig(SamplingParams):
    """One run of sample.py: weights, prompts, a pose sequence, and where the clips go."""

    pretrained: str = config_field("mini", PRETRAINED_HELP)
    variant: str | None = config_field(None, VARIANT_HELP)
    tokenizer: str | None = config_field(None, TOKENIZER_HELP)
    prediction_type: str | None = config_field(None, PREDICTION_TYPE_HELP)
    checkpoint: str | None = config_field(
        None, "checkpoint of ours with UNet and pose encoder: a folder of steps, a run's, or one step's"
    )
    step: int | None = config_field(None, "step of the checkpoint; null: the latest")
    lora: list[str] = field(
        default_factory=list,
        metadata={"help": "LoRA to add: FILE or Hub id, or [A:0.7,B:0.4] with scales (default: 1)"},
    )
    embedding: list[str] = field(
        default_factory=list,
        metadata={"help": "textual inversions: FILE or Hub id, or FILE:TOKEN to choose the token's name"},
    )
    random_init: bool = config_field(
        False, "initialise all weights at random, the same each time; only sizes come from `pretrained`"
    )
    pose: PoseConfig = field(default_factory=PoseConfig)
    prompt: list[str] = field(default_factory=list, metadata={"help": "texts; each makes one clip"})
    invert: str | None = config_field(
        None,
        "start from the inversion of this clip and not from noise, as Tune-A-Video does: a clip, or inverted "
        "latents (.npz of a run, .pt of Tune-A-Video)",
    )
    invert_stride: int | None = config_field(
        None, "take every n-th frame of that clip; null: as the weights were tuned on it, or else 1"
    )
    invert_start: int | None = config_field(
        None, "first frame of that clip to take, from 0; null: as the weights were tuned on it, or else 0"
    )
    dtype: str = config_field("float32", "dtype of UNet and pose encoder: float32 or bfloat16")
    attention_implementation: str = config_field("auto", ATTENTION_HELP)
    aot_path: str | None = config_field(
        None, "compiled programs that scripts/compile_tpu.py --save wrote; null: compile now"
    )
    verify: bool = config_field(True, "compare a checkpoint with its checksums before it is used")
    fps: float = config_field(8.0, "frames per second of the files written")
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1))
    output_dir: str = config_field("runs", "folder in which each run makes a new folder")

    def check(self) -> None:
        """Raise UserError for values that have the right type but make no clip."""
        super().check()
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise UserError("the prompt is empty: give --prompt TEXT, or set prompt in the config")
        for prompt in self.prompt:
            if not prompt.encode(errors="surrogatepass").decode(errors="ignore") == prompt:
                raise UserError(f"prompt {prompt!a}: is not valid UTF-8; give it in that encoding")
        self.check_model()
        for name, least in (("invert_stride", 1), ("invert_start", 0)):
            value = getattr(self, name)
            if value is not None and self.invert is None:
                raise UserError(f"{name}={value}: there is no clip to invert; give invert=FILE")
            if value is not None and value < least:
                raise UserError(f"{name}={value} must be at least {least}")
        if not self.in_windows and self.mesh.frame != -1 and self.num_frames % self.mesh.frame:
            raise UserError(f"num_frames={self.num_frames} is not a multiple of mesh.frame={self.mesh.frame}")
        if not 0 < self.fps <= 50:
            raise UserError(f"fps={self.fps} is not between 0 and 50")

    @property
    def in_windows(self) -> bool:
        """Whether a clip is longer than a window, and so made in several."""
        return self.num_frames > (self.window or TRAINED_FRAMES)

    def check_model(self) -> None:
        """Raise UserError for values that load no model, whatever clips it is for."""
        data, frame = self.mesh.data, self.mesh.frame
        fits = data == -1 or 1 <= data <= (data if self.in_windows else 2)
        if not fits or self.mesh.fsdp != 1 or (frame < 1 and frame != -1) or data == frame == -1:
            raise UserError(
                f"mesh.data={data} mesh.fsdp={self.mesh.fsdp} mesh.frame={frame}: "
                "sampling takes mesh.data=1 or 2 (branches of guidance; or any number for the windows of a "
                "long clip), any mesh.frame, and mesh.fsdp=1; data or frame may be -1: all that are left"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype={self.dtype} is not float32 or bfloat16")
        check_attention(self.attention_implementation)
        for text in self.lora:
            lora_spec(text)
        for text in self.embedding:
            embedding_spec(text)
        if self.step is not None and self.random_init:
            raise UserError(f"step={self.step} and random_init=true exclude each other: leave one out")
        if self.checkpoint is not None and self.random_init:
            raise UserError(
                f"checkpoint={self.checkpoint} and random_init=true exclude each other: leave one out"
            )
