r"""Encoders: networks that compress an array-valued context, such as a spectrum, into a few features.

An encoder sees ``x: [n, channels, length]``, standardised (a channel is an array column: flux, its errors), and gives
``[n, features]``. It runs once per context, never once per draw; whatever flow stands behind it sees the features alone.

============== ======================================================================================================
``components`` principal components of the pixels, weighted by their noise, and how noisy the array is: fitted once to
               the training rows, with nothing left to train; what a few thousand spectra can tell apart and no more
``spectrum``   patches of pixels to a few channels by one product, a hidden layer that knows its place, and a read-out
               that keeps positions: which line it is matters more than that there is one
``cnn``        six convolutions over all pixels, each with a rectifier and max-pooling, then two dense layers
``tiny-cnn``   three convolutions and an average over sixteen regions, then two dense layers
============== ======================================================================================================

The last two are the plain networks that are commonly trained on GALAH's spectra, here for comparison.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from fluvial.errors import StudyError, nearest
from fluvial.nets.components import pixel_noise, principal_components, second_differences

#: What is used for an array column when a study names no encoder.
DEFAULT = "spectrum"


class Encoder(nn.Module):
    """What every encoder is: ``x: [n, channels, length]`` to ``[n, features]``.

    A subclass makes its layers and defines :meth:`encode`. Its keyword options become keys under ``[encoder]`` of a
    study.

    Parameters
    ----------
    channels, length : int
        Arrays of each context, and numbers in each.
    features : int
        What is left of them.
    """

    #: Whether :meth:`fit` takes anything from the training arrays.
    fitted = False

    def __init__(self, channels: int, length: int, features: int):
        super().__init__()
        for name, value in {"channels": channels, "length": length, "features": features}.items():
            if value < 1:
                raise ValueError(f"Expected {name} of at least 1; got {value}.")
        self.channels, self.length, self.features = channels, length, features
        #: Whether products are made in bfloat16 in training.
        self.bf16 = False

    def forward(self, x: Tensor) -> Tensor:
        """Return features ``[n, features]`` of ``x: [n, channels, length]``."""
        if self.bf16 and self.training:
            with torch.autocast(x.device.type, torch.bfloat16):
                return self.encode(x).to(x.dtype)
        return self.encode(x)

    def encode(self, x: Tensor) -> Tensor:
        """Return the features; what a subclass defines."""
        raise NotImplementedError

    def fit(self, x: Tensor) -> None:
        """Take from training arrays ``[n, channels, length]``, standardised, what is not trained: most take nothing."""


class ComponentsEncoder(Encoder):
    r"""Principal components of noise-weighted, smoothed pixels, and the logarithm of the noise; nothing to train.

    .. math:: f = P x - o, \qquad f_{K + 1} = \tfrac12 \log \overline{(\Delta^2 x / \sigma)^2}

    for every channel, with the projection P of :func:`fluvial.nets.components.principal_components` and the second
    differences of neighbouring pixels in units of their noise: a noisy spectrum is one whose labels are known less well.
    A network behind it can learn by heart no more than these few numbers of each spectrum, which is what keeps a
    density that was trained on a few thousand (or hundred) of them from being overconfident.

    Parameters
    ----------
    channels, length : int
        See :class:`Encoder`.
    components : int
        Of every channel, at most; those that are not reproduced on held-out rows are zero.
    smooth : float
        Standard deviation of the Gaussian that smooths the arrays, in pixels: about half the width of the narrowest
        feature; 0 where neighbours have nothing to do with one another.
    """

    fitted = True
    projection: Tensor
    offset: Tensor
    weight: Tensor
    level: Tensor

    def __init__(self, channels: int, length: int, *, components: int = 24, smooth: float = 2.0):
        if components < 1 or not 0 <= smooth <= length / 6 + 2:
            raise ValueError(
                f"Expected components of at least 1 and smooth from 0 to a sixth of the length; got {components} and "
                f"{smooth}."
            )
        super().__init__(channels, length, channels * (components + 1))
        self.components, self.smooth = components, float(smooth)
        # Until it is fitted: random projections, of order one.
        self.register_buffer("projection", torch.randn(channels, components, length) / math.sqrt(length))
        self.register_buffer("offset", torch.zeros(channels, components))
        self.register_buffer("weight", torch.ones(channels, max(0, length - 2)))
        self.register_buffer("level", torch.tensor([[0.0, 1.0]]).repeat(channels, 1))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Fit the components, and the usual level of noise, to arrays ``[n, channels, length]``."""
        for k, values in enumerate(x.unbind(1)):
            self.projection[k], self.offset[k] = principal_components(
                values, self.components, smooth=self.smooth
            )
            noise = pixel_noise(values)[1:-1]
            self.weight[k] = torch.where(noise > 0, 1 / noise.clamp_min(1e-6), 0.0)
        level = torch.cat([self._log_noise(part) for part in x.split(256)])
        self.level[:, 0], self.level[:, 1] = level.mean(0), level.std(0, correction=0).clamp_min(1e-3)

    def encode(self, x: Tensor) -> Tensor:
        """Return features ``[n, channels * (components + 1)]`` of ``x: [n, channels, length]``."""
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.einsum("ncl,ckl->nck", x, self.projection) - self.offset
            noise = (self._log_noise(x) - self.level[:, 0]) / self.level[:, 1]
        return torch.cat([scores, noise[..., None]], -1).flatten(1)

    def _log_noise(self, x: Tensor) -> Tensor:
        """Return half the logarithm of the mean square of second differences in units of noise, ``[n, channels]``."""
        if self.length < 3:
            return x.new_zeros(x.shape[:-1])
        return 0.5 * (second_differences(x) * self.weight).square().mean(-1).clamp_min(1e-6).log()


class SpectrumEncoder(Encoder):
    r"""Patches, one hidden layer that knows its place, and a read-out by position: cheap on a CPU.

    The array is cut into N patches of ``patch`` pixels. One product of all patches with the same matrix gives ``width``
    channels, to which every position adds numbers of its own, so that one shape of a line can mean different things in
    different places; what is left of a patch are ``rank`` numbers, and one linear map of all N × ``rank`` of them gives
    the features:

    .. math:: h_i = \operatorname{silu}(W x_i + b_i), \quad r_i = V h_i, \quad i = 1 \dots N, \qquad
              \text{features} = A\,(r_1, \dots, r_N) + a .

    Where a line is, which an average over the array would lose, is all in A. That map has most of the weights, and
    dropping half of what it reads in every step is what keeps it from learning a few thousand spectra by heart; deeper
    networks over the patches, and more numbers left of each, fitted such a set less well and several times as slowly.

    Parameters
    ----------
    channels, length, features : int
        See :class:`Encoder`.
    patch : int
        Pixels of a patch.
    width : int
        Channels of a patch.
    rank : int
        Numbers that a patch hands to the read-out.
    dropout : float
        Share of the numbers before the read-out that are dropped in training.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        features: int = 64,
        *,
        patch: int = 16,
        width: int = 32,
        rank: int = 4,
        dropout: float = 0.5,
    ):
        super().__init__(channels, length, features)
        for name, value in {"patch": patch, "width": width, "rank": rank}.items():
            if value < 1:
                raise ValueError(f"Expected {name} of at least 1; got {value}.")
        self.patch = min(patch, length)
        self.patches = math.ceil(length / self.patch)
        self.embed = nn.Linear(channels * self.patch, width, bias=False)
        self.position = nn.Parameter(torch.zeros(self.patches, width))
        self.squeeze = nn.Linear(width, rank)
        self.dropout = nn.Dropout(dropout)
        self.read = nn.Linear(self.patches * rank, features)

    def encode(self, x: Tensor) -> Tensor:
        """Return features ``[n, features]`` of ``x: [n, channels, length]``."""
        short = self.patches * self.patch - self.length
        if short:
            x = pad(x, (0, short))
        patches = x.unflatten(-1, (self.patches, self.patch)).transpose(1, 2).flatten(2)
        h = silu(self.embed(patches) + self.position)
        return self.read(self.dropout(self.squeeze(h).flatten(1)))


class CNN(Encoder):
    """Six convolutions over all pixels, each followed by a rectifier and max-pooling, then two dense layers.

    Parameters
    ----------
    channels, length, features : int
        See :class:`Encoder`; the length is at least 64.
    width : int
        Channels after the first convolution; they double with every second one, to four times as many.
    kernel : int
        Pixels of a convolution, odd.
    hidden : int
        Units of the dense layer.
    dropout : float
        Share of them dropped in training.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        features: int = 64,
        *,
        width: int = 16,
        kernel: int = 5,
        hidden: int = 128,
        dropout: float = 0.2,
    ):
        super().__init__(channels, length, features)
        widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        if length < 2 ** len(widths):
            raise ValueError(f"Expected arrays of at least {2 ** len(widths)} numbers for cnn; got {length}.")
        self.layers = _convolutions(channels, widths, kernel, last_pool=nn.MaxPool1d(2))
        flat = widths[-1] * (length // 2 ** len(widths))
        self.dense = _dense(flat, hidden, features, dropout)

    def encode(self, x: Tensor) -> Tensor:
        """Return features ``[n, features]`` of ``x: [n, channels, length]``."""
        return self.dense(self.layers(x).flatten(1))


class TinyCNN(Encoder):
    """Three convolutions over all pixels, an average over sixteen regions, then two dense layers.

    Parameters
    ----------
    channels, length, features : int
        See :class:`Encoder`; the length is at least 64.
    width : int
        Channels after the first convolution; they double with every one.
    kernel : int
        Pixels of a convolution, odd.
    hidden : int
        Units of the dense layer.
    dropout : float
        Share of them dropped in training.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        features: int = 64,
        *,
        width: int = 16,
        kernel: int = 5,
        hidden: int = 128,
        dropout: float = 0.2,
    ):
        super().__init__(channels, length, features)
        if length < 64:
            raise ValueError(f"Expected arrays of at least 64 numbers for tiny-cnn; got {length}.")
        widths = [width, 2 * width, 4 * width]
        self.layers = _convolutions(channels, widths, kernel, last_pool=nn.AdaptiveAvgPool1d(16))
        self.dense = _dense(16 * widths[-1], hidden, features, dropout)

    def encode(self, x: Tensor) -> Tensor:
        """Return features ``[n, features]`` of ``x: [n, channels, length]``."""
        return self.dense(self.layers(x).flatten(1))


def _convolutions(channels: int, widths: list[int], kernel: int, *, last_pool: nn.Module) -> nn.Sequential:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"Expected kernel to be odd; got {kernel}.")
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        before = widths[i - 1] if i else channels
        pool = nn.MaxPool1d(2) if i < len(widths) - 1 else last_pool
        layers += [_rectified(nn.Conv1d(before, width, kernel, padding=kernel // 2)), nn.ReLU(), pool]
    return nn.Sequential(*layers)


def _dense(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    first = _rectified(nn.Linear(inputs, hidden))
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))


def _rectified(layer: nn.Conv1d | nn.Linear) -> nn.Module:
    """Start a layer before a rectifier at the scale that keeps variances (He et al. 2015, arXiv:1502.01852)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


ENCODERS: dict[str, type[Encoder]] = {
    "components": ComponentsEncoder,
    "spectrum": SpectrumEncoder,
    "cnn": CNN,
    "tiny-cnn": TinyCNN,
}


def find_encoder(name: str) -> type[Encoder]:
    """Return the encoder of a name.

    Raises :class:`~fluvial.errors.StudyError` if there is none.
    """
    if not isinstance(name, str) or name not in ENCODERS:
        raise StudyError(f"[encoder] architecture {name!r} is not known{nearest(str(name), ENCODERS)}")
    return ENCODERS[name]


def encoder_options(name: str) -> dict[str, tuple[Any, Any]]:
    """Return the options of an encoder: name -> (type, default), read off its signature.

    >>> encoder_options("spectrum")["features"]
    (<class 'int'>, 64)

    Raises :class:`~fluvial.errors.StudyError` if the name is unknown.
    """
    init = find_encoder(name).__init__
    hints = get_type_hints(init)
    return {
        key: (hints[key], parameter.default)
        for key, parameter in inspect.signature(init).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def build_encoder(name: str, *, channels: int, length: int, **options: Any) -> Encoder:
    """Build an encoder by name.

    >>> encoder = build_encoder("spectrum", channels=1, length=100, features=8)
    >>> encoder(torch.zeros(5, 1, 100)).shape
    torch.Size([5, 8])

    Raises
    ------
    StudyError
        If the name is unknown, or an option cannot be.
    """
    make = find_encoder(name)
    try:
        return make(channels, length, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StudyError(f"[encoder] {name}: {error}") from error
