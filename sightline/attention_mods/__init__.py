"""Methods that edit attention: scores, probabilities or head outputs. One file per paper."""

from sightline.attention_mods.pai import PAI
from sightline.attention_mods.var import VAR
from sightline.attention_mods.vhr import VHR

__all__ = ["PAI", "VAR", "VHR"]
