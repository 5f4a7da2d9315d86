"""The training stages, as data: what is trained, on which dataset, by which loss, and whether it sees poses.

`pose` and `motion` are Follow Your Pose's two. `autoencoder` and `image` make a Stable Diffusion from
nothing, for sizes that nobody has trained; `video` trains a whole UNet on clips.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fyp_jax import trees
from fyp_jax.errors import UserError

# All parameters of the UNet by what they do; together with a stage's own choice, each path is in exactly one.
CROSS_ATTENTION = r"unet/.*/attn[12]"
SPATIAL = (
    r"unet/(conv_in|conv_norm_out|conv_out|time_embedding)/.*",
    r"unet/.*/(resnets|downsamplers|upsamplers)_\d+/.*",
    r"unet/.*/attentions_\d+/(norm|proj_in|proj_out)/.*",
    r"unet/.*/transformer_blocks_\d+/(norm[123]|norm_temp|ff)/.*",
    CROSS_ATTENTION + r"/to_(k|v|out_0)/.*",
)
QUERIES = (CROSS_ATTENTION + r"/to_q/.*",)
TEMPORAL = (r"unet/.*/(attn_temp|conv_temporal)/.*",)
POSE_ENCODER = (r"pose_encoder/.*",)
VAE = (r"vae/.*",)
TEXT_ENCODER = (r"text_encoder/.*",)
ENCODERS = VAE + TEXT_ENCODER


@dataclass(frozen=True)
class Stage:
    """Patterns are regular expressions on whole parameter paths (`unet/...`, `pose_encoder/...`)."""

    name: str
    dataset: str
    """Kind of TFDS dataset (`data.datasets`)."""
    uses_pose: bool
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    objective: str = "denoise"
    """Which loss: of training.objectives."""

    def trains(self, paths: Iterable[str]) -> dict[str, bool]:
        """For each parameter whether it is trained. Raises RuleMismatch unless each has exactly one rule."""
        rules = [(pattern, True) for pattern in self.trained] + [(pattern, False) for pattern in self.frozen]
        return trees.match_rules(rules, paths)


STAGES = {
    stage.name: stage
    for stage in (
        # Follow Your Pose, section 3.1: the pose encoder alone learns, from pairs of image and pose.
        Stage(
            name="pose",
            dataset="pose_images",
            uses_pose=True,
            trained=POSE_ENCODER,
            frozen=SPATIAL + QUERIES + TEMPORAL + ENCODERS,
        ),
        # Section 3.2: what makes a clip of frames, from videos without poses.
        Stage(
            name="motion",
            dataset="captioned_videos",
            uses_pose=False,
            trained=QUERIES + TEMPORAL,
            frozen=SPATIAL + POSE_ENCODER + ENCODERS,
        ),
        # Rombach et al. 2022, section 3.1: a latent space; what the other stages train in.
        Stage(
            name="autoencoder",
            dataset="pose_images",
            uses_pose=False,
            trained=VAE,
            frozen=SPATIAL + QUERIES + TEMPORAL + POSE_ENCODER + TEXT_ENCODER,
            objective="reconstruct",
        ),
        # Section 3.3 there: text-to-image, the text encoder learning with the UNet.
        Stage(
            name="image",
            dataset="pose_images",
            uses_pose=False,
            trained=SPATIAL + QUERIES + TEXT_ENCODER,
            frozen=TEMPORAL + POSE_ENCODER + VAE,
        ),
        # The UNet as a whole, for a few clips that it shall know by heart.
        Stage(
            name="video",
            dataset="captioned_videos",
            uses_pose=False,
            trained=SPATIAL + QUERIES + TEMPORAL,
            frozen=POSE_ENCODER + ENCODERS,
        ),
    )
}


def stage(name: str) -> Stage:
    """The stage of this name, or UserError with the names that there are."""
    if name not in STAGES:
        raise UserError(f"stage={name}: the stages are {', '.join(STAGES)}")
    return STAGES[name]
