"""Methods that steer hidden states. One file per paper."""

from sightline.steering.vista import SLA, VSV

__all__ = ["SLA", "VSV"]
