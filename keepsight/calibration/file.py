"""``Calibration`` holds constants of one checkpoint that ``keepsight calibrate`` measured, and their JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepsight.errors import InputError, UnsupportedModel
from keepsight.files import write_whole

if TYPE_CHECKING:
    from keepsight.target import Target

FORMAT = "keepsight calibration 1"
"""The value of the entry ``format``, by which a calibration file is recognised."""


class BadCalibration(InputError):
    """A calibration file is missing, damaged or another kind of file."""


class CalibrationMismatch(InputError):
    """A calibration was made for another model than the one it is used on."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured in one checkpoint, and on which pictures and question.

    Args:
        model: ``demo``, or the folder or id the checkpoint was loaded from.
        model_class: the class of the model.
        revision: the commit of the checkpoint on the hub; None where it is not known.
        fingerprint: by decoder layer, the length of all its one-dimensional weights (norms, biases).
        hidden_size, layers, heads: the dimensions of the text decoder.
        images: the number of pictures.
        prompt: the question about each picture.
        supported: whether VAR's idea of a sink fits the model.
        reasons: the reasons why it does not.
        dims: the sink dimensions, the strongest first; empty if no activation is massive.
        tau: the threshold of the sink score; None without dimensions.
        evidence: the figures behind ``supported``; see docs/calibration.md.
        divergence: by layer and head, the mean VHD: how far the head's output moves when the picture is taken away.
        chosen: by layer and head, the share of pictures on which VHR's rule selects the head.
        visual_mass: by layer, the mean attention of text after the picture to all of the picture.
        window: the first and the last layer around the peak of ``visual_mass`` with at least half of it.
        versions: the versions of Keepsight, torch, transformers and Python that took part.
    """

    model: str
    model_class: str
    revision: str | None
    fingerprint: tuple[float, ...]
    hidden_size: int
    layers: int
    heads: int
    images: int
    prompt: str
    supported: bool
    reasons: tuple[str, ...]
    dims: tuple[int, ...]
    tau: float | None
    evidence: Mapping[str, Any]
    divergence: tuple[tuple[float, ...], ...]
    chosen: tuple[tuple[float, ...], ...]
    visual_mass: tuple[float, ...]
    window: tuple[int, int]
    versions: Mapping[str, str]

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read the calibration in ``path``.

        Raises:
            BadCalibration: there is no such file, it is not JSON, or it is not what ``save`` writes.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadCalibration(
                f"no such calibration: {path} (keepsight calibrate MODEL writes one)"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise BadCalibration(f"cannot read {path}: {error}") from None
        except ValueError as error:
            raise BadCalibration(f"{path} is not JSON ({error}): run keepsight calibrate again") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise BadCalibration(f"{path} is no calibration: keepsight calibrate MODEL writes one")
        values: dict[str, Any] = {}
        # Every field is checked here, so a file that was edited by hand is refused by
        # the name of the field, instead of failing somewhere in a generation.
        for field in fields(cls):
            # JSON knows lists alone, and the fields are tuples.
            value = _frozen(found.get(field.name))
            if field.name not in found or not _KINDS[str(field.type)](value):
                raise BadCalibration(
                    f"{path}: {field.name!r} is missing or malformed; run keepsight calibrate again"
                )
            values[field.name] = value
        made = cls(**values)
        # Each field may be well-formed while the three do not fit together.
        if made.dims and not (made.tau is not None and made.tau > 0 and max(made.dims) < made.hidden_size):
            raise BadCalibration(
                f"{path}: 'dims' do not fit 'tau' and 'hidden_size'; run keepsight calibrate again"
            )
        return made

    def save(self, path: str | Path) -> None:
        """Write the calibration to ``path``. A program that reads the file meanwhile sees the old one or the whole new one.

        Raises:
            InputError: the file cannot be written.
        """
        write_whole(Path(path), self.text())

    def text(self) -> str:
        """Returns the calibration as JSON, with each field on one line: ``json`` would indent every number of a list."""
        lines = (
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for key, value in {"format": FORMAT, **asdict(self)}.items()
        )
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def check(self, target: Target) -> None:
        """Check that a model is the one that was calibrated.

        Raises:
            CalibrationMismatch: ``target`` is another model, or the same model with other weights.
        """
        config = target.text_config
        here = {
            # The quick comparisons come first, and their messages name what
            # differs; the fingerprint can only say that weights do.
            "model": _last_part(model_name(target.model)),
            "class": target.name,
            "hidden size": int(config.hidden_size),
            "layers": len(target.layers),
            "heads": int(config.num_attention_heads),
        }
        there = {
            "model": _last_part(self.model),
            "class": self.model_class,
            "hidden size": self.hidden_size,
            "layers": self.layers,
            "heads": self.heads,
        }
        for what, value in here.items():
            if value != there[what]:
                raise CalibrationMismatch(
                    f"the calibration was made for another model ({what} {there[what]}, here {value}):"
                    " run keepsight calibrate on this one"
                )
        # A dtype other than the calibrated one moves a length by much less than this.
        # Both have one number for each layer, and the numbers of layers were compared above.
        same = zip(self.fingerprint, fingerprint(target), strict=True)
        if any(abs(a - b) > 5e-3 * max(a, b) for a, b in same):
            raise CalibrationMismatch(
                "the calibration was made for other weights under the same name: run keepsight calibrate on these"
            )

    def sinks(self, target: Target) -> tuple[tuple[int, ...], float]:
        """Returns the sink dimensions and the threshold for ``target``.

        Raises:
            CalibrationMismatch: ``target`` is another model than the calibrated one.
            UnsupportedModel: the calibrated model has no sinks of the kind; the message says what was found.
        """
        self.check(target)
        if not self.supported or self.tau is None:
            raise UnsupportedModel(
                f"var: {self.model} has no sinks that its calibration could confirm: {'; '.join(self.reasons)}"
            )
        return self.dims, self.tau


def model_name(model: Any) -> str:
    """Returns the name of a model: the folder or id it was loaded from, ``demo`` for the packaged one, else its class.

    transformers keeps that name in the configuration; whoever loads the packaged checkpoint writes ``demo`` there, so that
    this module need not know where the package keeps its weights.
    """
    return str(model.config._name_or_path or type(model).__name__)


def fingerprint(target: Target) -> tuple[float, ...]:
    """Returns for each decoder layer the Euclidean length of its one-dimensional weights (norms, biases) taken together.

    That is enough to tell one training run from another, and needs no pass over the large matrices.
    """
    return tuple(
        math.sqrt(sum(float(p.detach().float().square().sum()) for p in layer.parameters() if p.ndim == 1))
        for layer in target.layers
    )


def _last_part(name: str) -> str:
    """Returns the last part of a folder or id, which stays the same when a checkpoint is moved or cached."""
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _frozen(value: Any) -> Any:
    """Returns ``value`` with tuples in place of lists, also inside lists."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _is_whole(value: Any) -> bool:
    """Returns whether a value is a whole number of 0 or more. In Python a bool is an int, so it is excluded."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    """Returns whether a value is a finite number; ``json`` also reads NaN and Infinity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _every(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns a check whether a value is a tuple whose items all pass ``kind``."""
    return lambda value: isinstance(value, tuple) and all(map(kind, value))


_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "int": _is_whole,
    "bool": lambda value: isinstance(value, bool),
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[int, ...]": _every(_is_whole),
    "tuple[int, int]": lambda value: _every(_is_whole)(value) and len(value) == 2,
    "tuple[str, ...]": _every(lambda value: isinstance(value, str)),
    "tuple[float, ...]": _every(_is_number),
    "tuple[tuple[float, ...], ...]": _every(_every(_is_number)),
    "Mapping[str, Any]": lambda value: isinstance(value, dict),
    "Mapping[str, str]": lambda value: isinstance(value, dict),
}
"""For each annotation of a field, the check that a value from a file must pass.

The annotations are texts here, which is what ``dataclasses.fields`` gives under ``from __future__ import annotations``.
"""
