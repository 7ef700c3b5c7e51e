"""Which methods can be fitted, and what fitting one means.

A method is a :class:`Fitter`: it says what it needs of each picture (what it keeps of the backbone's taps, the
prepared picture itself, or both) and turns that into a head and the residuals of good pictures that the head has
not seen. Reading pictures, thresholds, the report and the bundle are the same for all methods and know none of
them by name. Adding a method is a module with a fitter, a line in :data:`FITTERS` and one in
:data:`edge.heads.METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from calibration import Progress, no_progress
from edge.bundle import BackboneInfo, InputInfo, TapInfo
from edge.errors import DataError
from edge.heads.scorer import Rule
from edge.heads.tail import TailSpec

if TYPE_CHECKING:
    from calibration.options import FitOptions

FITTERS: dict[str, str] = {
    "fair": "calibration.fair:FairFitter",
    "fre": "calibration.fre:FreFitter",
    "grad": "calibration.grad:GradFitter",
    "hfra": "calibration.hfra:HfraFitter",
    "sgfr": "calibration.sgfr:SgfrFitter",
}
"""Method name -> "module:class", imported when asked for: a closed-form fit must not load torch."""

PICTURES = "pictures"
"""The name under which :attr:`Job.stored` holds prepared pictures, where the fitter asked for them."""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Indices = NDArray[np.intp]
Stored = Mapping[str, NDArray[Any]]
How = Literal["folds", "loo", "holdout"]
"""How good pictures get scores from a model that has not seen them: ten folds, each picture left out in turn, or a
share of the pictures held out of the fit altogether."""


class Settings(BaseModel):
    """Base of a method's own settings. Every field needs a default and a description."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True)
class Defaults:
    """What a fit does where nothing was asked for. calibrations: those that the method can do. mapped: what is kept
    of the pictures may lie in a file where memory does not do, as the fit takes a few pictures at a time. probe:
    settings of the shortest training there is, to learn what a picture will cost before training for real; empty where
    a fit takes seconds anyway."""

    layers: tuple[str, ...]
    rule: Rule
    calibration: How
    calibrations: tuple[How, ...]
    tail: TailSpec
    mapped: bool = False
    probe: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The network that gave the features. graph: ONNX; empty for a method that brings its own."""

    backbone: BackboneInfo
    input: InputInfo
    graph: bytes
    runtime: str

    def shape(self, tap: str) -> tuple[int, int, int]:
        """[C, H, W] of one picture's tap."""
        info = next(info for info in self.backbone.taps if info.name == tap)
        return info.channels, info.height, info.width


@dataclass(frozen=True)
class Job:
    """What a fitter is given.

    stored: name -> [N, ...] of all N readable good pictures in order, what :meth:`Fitter.keep` kept; ``pictures``:
        uint8 [N, H, W, 3] RGB, prepared, where asked for.
    train: indices of the pictures that may shape the head; held: those that may not, or None; together all.
    folds: a fixed random partition of ``train``, for methods that calibrate by it.
    known: from an earlier fit of the same features what that fit put into :attr:`MethodFit.refit`; empty else.
    """

    stored: Stored
    source: Source
    options: FitOptions
    train: Indices
    held: Indices | None
    folds: tuple[Indices, ...]
    known: Stored = field(default_factory=dict)
    progress: Progress = no_progress


@dataclass(frozen=True)
class Unseen:
    """Residuals of n good pictures under models fitted without them.

    levels: float32 [n, h, w] a level, as the head gives them; norms: float64 [n], or None where the head gives
    none."""

    levels: list[F32]
    norms: F64 | None


@dataclass(frozen=True)
class OwnGraph:
    """An ONNX graph that the bundle carries in place of the backbone's. Input: uint8 NHWC, as any engine's; the
    outputs, in order, are ``taps``."""

    graph: bytes
    taps: tuple[TapInfo, ...]


@dataclass(frozen=True)
class MethodFit:
    """What a fitter gives.

    spec, arrays: what :func:`edge.heads.load_head` builds the head from; spec is flat and plain (JSON).
    scaling: residuals to set the score's constants with, of the train pictures. calibrating: those that thresholds
        are drawn from, in the order of the train pictures, or of the held ones where there are any; may be
        ``scaling`` itself.
    refit: arrays beyond the head's own that a refit needs (:meth:`Fitter.restore` reads them).
    tail: with what the fit has measured (level scales); None: the options' tail.
    own: the graph in place of the backbone's, or None.
    details: plain values for the report (components kept, final loss, ...).
    """

    spec: dict[str, object]
    arrays: dict[str, NDArray[Any]]
    scaling: Unseen
    calibrating: Unseen
    refit: dict[str, NDArray[Any]] = field(default_factory=dict)
    tail: TailSpec | None = None
    own: OwnGraph | None = None
    details: dict[str, object] = field(default_factory=dict)


class Fitter(Protocol):
    """One method's fit. Stateless: everything comes in by argument.

    needs_graph: a backbone's graph must be given. needs_pictures: :attr:`Job.stored` holds the prepared pictures.
    settings: the model of ``FitOptions.settings``.
    """

    method: str
    needs_graph: bool
    needs_pictures: bool
    defaults: Defaults
    settings: type[Settings]

    def check(self, options: FitOptions) -> None:
        """Raises DataError, one line, for options (defaults filled in) that this method cannot work with."""
        ...

    def taps(self, options: FitOptions) -> tuple[str, ...]:
        """The backbone's taps that are read of every picture; empty: no backbone runs."""
        ...

    def keep(self, options: FitOptions, taps: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        """What is kept of one picture's taps (float32 [1, C, H, W] each): new arrays without the batch axis, of
        the same shapes for every picture. Runs on several threads. Not called without taps."""
        ...

    def fit(self, job: Job) -> MethodFit:
        """Raises DataError for pictures that cannot be learnt from, ResourceError where memory does not do."""
        ...

    def restore(self, options: FitOptions, spec: Mapping[str, Any], arrays: Stored, refit: Stored | None) -> Restored:
        """What a refit starts from, from a bundle's spec, head arrays and refit arrays. Raises DataError where
        the bundle does not hold it or ``options`` ask for something it was not kept for."""
        ...


@dataclass(frozen=True)
class Restored:
    """stored, known: as in :class:`Job`."""

    stored: Stored
    known: Stored


def methods() -> tuple[str, ...]:
    """Names of the methods that can be fitted, sorted. Loads none of them."""
    return tuple(sorted(FITTERS))


def fitter_of(method: str) -> Fitter:
    """The method's fitter. Raises DataError for a name that this version does not know."""
    where = FITTERS.get(method)
    if where is None:
        raise DataError(f"unknown method {method!r}; this version fits {', '.join(methods())}")
    module, name = where.split(":")
    fitter: Fitter = getattr(import_module(module), name)()
    return fitter


def settings_of(model: type[AnySettings], method: str, given: Mapping[str, object]) -> AnySettings:
    """``given`` (values may be strings, as from a command line) as the method's settings. Raises DataError naming
    the first wrong one, and the known names."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        known = ", ".join(model.model_fields) or "none"
        reason = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise DataError(f"{method}: {name}: {reason} (its settings: {known})") from None
