"""The config of the UNet and the pose encoder, with the field names of a diffusers `unet/config.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fyp_jax.errors import UserError

# Fields that change the network, each with the values that are implemented.
FIXED = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Field types of positive whole numbers, each with the Python types that a value may have.
COUNTS: dict[Any, tuple[type, ...]] = {
    int: (int,),
    Sequence[int]: (tuple,),
    int | Sequence[int]: (int, tuple),
}
DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
"""Whether the blocks of each type have transformers."""
BLOCK_FIELDS = ("down_block_types", "up_block_types", "mid_block_type")


@dataclasses.dataclass(frozen=True)
class UNet3DConfig:
    """Sizes of a UNet; the defaults are those of Stable Diffusion 1.4 and 1.5."""

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: Sequence[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    attention_head_dim: int | Sequence[int] = 8
    """The *number of heads*, in spite of its name (as in SD's configs): one for all blocks, or one for each
    down block."""
    transformer_layers_per_block: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = False
    zero_init_temporal: bool = True
    """True: the output projection of temporal attention is initialised to 0. False: initialised as in the
    published code."""
    cross_frame_attention: bool = True
    """False: each frame attends to itself alone, as in an image model (an ablation of the paper)."""

    def __post_init__(self):
        for name in ("down_block_types", "up_block_types", "block_out_channels", "attention_head_dim"):
            value = getattr(self, name)
            if isinstance(value, Sequence):
                object.__setattr__(self, name, tuple(value))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kinds, counts = COUNTS.get(field.type), value if isinstance(value, tuple) else (value,)
            if kinds and not (isinstance(value, kinds) and all(type(n) is int and n > 0 for n in counts)):
                raise UserError(f"unet config: {field.name}={value!r} is not made of whole numbers above 0")
        levels = len(self.block_out_channels)
        per_level: dict[str, Sequence[Any]] = {
            "down_block_types": self.down_block_types,
            "up_block_types": self.up_block_types,
        }
        if not isinstance(self.attention_head_dim, int):
            per_level["attention_head_dim"] = self.attention_head_dim
        for name, value in per_level.items():
            if len(value) != levels:
                raise UserError(f"unet config: {name} has {len(value)} entries for {levels} levels")
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            if unknown := set(getattr(self, name)) - set(known):
                raise UserError(f"unet config: {name} {sorted(unknown)} not among {sorted(known)}")
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % self.norm_num_groups or width % heads:
                raise UserError(
                    f"unet config: {width} channels do not split into {self.norm_num_groups} groups "
                    f"and {heads} heads"
                )

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads of each level, from the highest resolution to the lowest."""
        if isinstance(self.attention_head_dim, int):
            return (self.attention_head_dim,) * len(self.block_out_channels)
        return tuple(self.attention_head_dim)

    @property
    def time_width(self) -> int:
        """Channels of the timestep's embedding."""
        return 4 * self.block_out_channels[0]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "UNet3DConfig":
        """The config in a diffusers `unet/config.json`. Raises UserError for a field with a value that is not
        implemented."""
        values = with_image_blocks(values)
        known = {field.name for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name in FIXED and value not in FIXED[name]:
                raise UserError(f"unet config: {name}={value!r} is not supported, only {FIXED[name][0]!r} is")
        return cls(**{name: value for name, value in values.items() if name in known})

    def sizes(self) -> dict[str, Any]:
        """All fields on which a compiled program depends: all but `zero_init_temporal`."""
        return {name: value for name, value in self.to_json().items() if name != "zero_init_temporal"}

    def to_json(self) -> dict[str, Any]:
        """Values for JSON, which `from_json` reads back equal."""
        return dataclasses.asdict(self)


def with_video_blocks(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `unet/config.json` with the names of video blocks: undoes `with_image_blocks`."""
    return _renamed_blocks(values, "Block2D", "Block3D")


def with_image_blocks(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `unet/config.json` with the names of image blocks.

    Video UNets of Follow Your Pose and Tune-A-Video name the same blocks with 3D in place of 2D.
    """
    return _renamed_blocks(values, "Block3D", "Block2D")


def _renamed_blocks(values: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    def rename(name: Any) -> Any:
        return name.replace(old, new) if isinstance(name, str) else name

    renamed = {
        field: [rename(x) for x in value] if isinstance(value, (list, tuple)) else rename(value)
        for field, value in values.items()
        if field in BLOCK_FIELDS
    }
    return {**values, **renamed}
