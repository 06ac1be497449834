"""Fitting a verifier, and finding out by held-out images whether dropping what it doubts gains anything.

Nothing that a figure of the gain rests on was seen by the model that made it: images are put into folds, and for each
fold a model, its calibration and its threshold are found on the other folds alone, the last two by folds among these.
The model that is given back is made in the same way from all images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from scipy.stats import rankdata

from slideloom.errors import SlideloomError
from slideloom.instances.refine.features import Features
from slideloom.instances.refine.tokens import Projection
from slideloom.instances.refine.verifier import Verifier, standardise, transformed

__all__ = ["FitSettings", "Gain", "fit_verifier"]

_Floats = NDArray[np.float64]
_Flags = NDArray[np.bool_]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FitSettings:
    """How a verifier is fitted.

    Attributes
    ----------
    hidden : int
        Units of the hidden layer; 0: logistic regression.
    weight_decay : float
        Of all weights but biases, on the standardised features.
    folds : int
        Parts that the images are put into; fewer where there are fewer images.
    least : int
        Instances that there must be of each kind.
    steps : int
        Of the optimiser (L-BFGS), at most.
    resamples : int
        Draws of images for the interval of the gain.
    seed : int
        Of initial weights, folds and draws.
    threshold : float, optional
        Least probability of what is kept, whatever it gains; left out, the one with the best F1.
    called : str
        What messages call the images, such as ``patients``.
    """

    hidden: int = 8
    weight_decay: float = 0.01
    folds: int = 5
    least: int = 20
    steps: int = 100
    resamples: int = 1000
    seed: int = 0
    threshold: float | None = None
    called: str = "images"


@dataclass(frozen=True)
class Gain:
    """What dropping gained on images that the models had not seen. F1 and its parts are pooled over all images.

    Attributes
    ----------
    n_images, n_true, n_found, n_matched, n_kept, n_kept_matched : int
        Images; true nuclei; instances, and those that match one; those kept, likewise.
    f1_before, f1_after, f1_gain : float
        2 · matched / (instances + true nuclei), of all and of those kept; the difference.
    gain_low, gain_high : float
        95 % interval of the difference over draws of images.
    auc : float
        Probability that an instance that matches is ranked above one that does not.
    brier : float
        Mean squared error of the calibrated probabilities.
    """

    n_images: int
    n_true: int
    n_found: int
    n_matched: int
    n_kept: int
    n_kept_matched: int
    f1_before: float
    f1_after: float
    f1_gain: float
    gain_low: float
    gain_high: float
    auc: float
    brier: float

    @property
    def gains(self) -> bool:
        """Whether the interval lies above 0."""
        return self.gain_low > 0

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def fit_verifier(
    features: Features,
    matched: NDArray[Any],
    image: NDArray[Any],
    n_true: NDArray[Any],
    settings: FitSettings | None = None,
    projection: Projection | None = None,
) -> tuple[Verifier, Gain]:
    """Fit a verifier to instances that were found where the truth is known.

    Parameters
    ----------
    features : Features
        Of n instances. They should come of images that the decoder was not trained on, or of its training images with
        augmentation at the least: a decoder makes fewer mistakes on what it knows.
    matched : (n,) bool array
        Whether an instance is a true nucleus' match, with an IoU of at least 0.5.
    image : (n,) int array
        Number of the image that each was found in, 0 to m - 1; instances of an image are never parted.
    n_true : (m,) int array
        True nuclei of each image.
    settings : FitSettings, optional
        As said there.
    projection : Projection, optional
        What tokens were reduced with; goes into the verifier. Fitted on other images, or without their truth.

    Returns
    -------
    verifier : Verifier
        Its threshold is the one that gives the best F1 on held-back folds; 0, which keeps every instance, where the
        estimated gain is not above 0. A threshold of the settings stands in any case.
    gain : Gain
        Estimated with all of the procedure inside the folds, the choice of the threshold as well; of the settings'
        threshold where they give one.

    Raises
    ------
    SlideloomError
        ``verifier_examples``: fewer than ``least`` instances of a kind, all of a kind in fewer than three images, or
        none of a kind outside of one fold.
    ValueError
        Shapes do not fit, or an image has no number of true nuclei.

    Notes
    -----
    The loss is the binary cross-entropy with both kinds weighted alike, by full-batch L-BFGS. Probabilities are then
    calibrated by a temperature and a shift (Platt's method, with his smoothed targets) on held-back folds.
    """
    settings = settings or FitSettings()
    data = _Data(
        transformed(features.values, features.names),
        np.asarray(matched, np.bool_),
        np.asarray(image, np.int64),
        np.asarray(n_true, np.int64),
    )
    data.check(len(features))
    _check_examples(data, settings)
    after, probability = np.zeros(len(features), np.bool_), np.zeros(len(features))
    fold = _folds(data, settings)
    for part in range(int(fold.max()) + 1):
        inside = fold[data.image] != part
        model = _procedure(data.of(fold != part), settings)
        probability[~inside] = model.probability(data.values[~inside])
        after[~inside] = probability[~inside] >= model.threshold
    gain = _gain(data, after, probability, settings)
    model = _procedure(data, settings)
    verifier = Verifier(
        features.names,
        model.mean,
        model.deviation,
        *model.weights.arrays,
        scale=model.scale,
        shift=model.shift,
        threshold=model.threshold if gain.f1_gain > 0 or settings.threshold is not None else 0.0,
        about={"settings": asdict(settings), "gain": gain.as_dict()},
        projection=projection,
    )
    return verifier, gain


@dataclass(frozen=True, eq=False)
class _Data:
    """Instances: values (n, f), whether matched, image; and true nuclei of every image."""

    values: _Floats
    matched: _Flags
    image: _Ints
    n_true: _Ints

    def check(self, count: int) -> None:
        if self.matched.shape != (count,) or self.image.shape != (count,) or self.n_true.ndim != 1:
            raise ValueError(f"{self.matched.shape} matches and {self.image.shape} images of {count} instances")
        if count and not 0 <= self.image.min() <= self.image.max() < len(self.n_true):
            raise ValueError(f"images {self.image.min()} to {self.image.max()}, of {len(self.n_true)} there are counts")

    def of(self, images: _Flags) -> _Data:
        """What was found in some images, (m,) flags; the others have no true nucleus either."""
        chosen = images[self.image]
        return _Data(self.values[chosen], self.matched[chosen], self.image[chosen], np.where(images, self.n_true, 0))


@dataclass(frozen=True, eq=False)
class _Weights:
    weight: _Floats
    bias: _Floats
    last: _Floats

    @property
    def arrays(self) -> tuple[_Floats, _Floats, _Floats]:
        return self.weight, self.bias, self.last

    def logits(self, read: _Floats) -> _Floats:
        inner = np.maximum(read @ self.weight.T + self.bias, 0) if len(self.bias) else read
        return np.asarray(inner @ self.last[:-1] + self.last[-1])


@dataclass(frozen=True, eq=False)
class _Model:
    mean: _Floats
    deviation: _Floats
    weights: _Weights
    scale: float = 1.0
    shift: float = 0.0
    threshold: float = 0.0

    def logits(self, values: _Floats) -> _Floats:
        return self.weights.logits(standardise(values, self.mean, self.deviation))

    def probability(self, values: _Floats) -> _Floats:
        return np.asarray(expit(self.scale * self.logits(values) + self.shift))


def _check_examples(data: _Data, settings: FitSettings) -> None:
    for name, chosen in (("match a true nucleus", data.matched), ("match none", ~data.matched)):
        count, images = int(chosen.sum()), len(np.unique(data.image[chosen]))
        if count < settings.least or images < 3:
            what = f"{count} instances in {images} {settings.called} {name}"
            raise _few(what, f"at least {settings.least}, in three {settings.called} or more", settings)


def _few(what: str, expected: str, settings: FitSettings) -> SlideloomError:
    return SlideloomError(
        what,
        where="verifier",
        expected=expected,
        hint=f"Give it more annotated {settings.called} that the decoder was not trained on, or leave the verifier out",
        code="verifier_examples",
    )


def _folds(data: _Data, settings: FitSettings) -> _Ints:
    """Fold of each image: those with false instances first, the fold with the fewest of these gets the next."""
    n_false, count = (np.bincount(data.image[of], minlength=len(data.n_true)) for of in (~data.matched, slice(None)))
    folds = min(settings.folds, int((n_false > 0).sum()), len(np.unique(data.image[data.matched])))
    drawn = np.random.default_rng([settings.seed, 1]).permutation(len(data.n_true))
    order = drawn[np.lexsort((-count[drawn], -n_false[drawn]))]
    fold, held = np.zeros(len(data.n_true), np.int64), np.zeros((folds, 2), np.int64)
    for index in order:
        fold[index] = best = np.lexsort((held[:, 1], held[:, 0]))[0]
        held[best] += (n_false[index], count[index])
    return fold


def _procedure(data: _Data, settings: FitSettings) -> _Model:
    """A model of some images, calibrated and with a threshold by folds among them."""
    fold = _folds(data, settings)
    logits = np.zeros(len(data.matched))
    for part in range(int(fold.max()) + 1):
        outside = fold[data.image] == part
        logits[outside] = _fitted(data.of(fold != part), settings).logits(data.values[outside])
    scale, shift = _calibrated(logits, data.matched)
    threshold = settings.threshold
    if threshold is None:
        threshold = _best_threshold(expit(scale * logits + shift), data)
    return replace(_fitted(data, settings), scale=scale, shift=shift, threshold=threshold)


def _fitted(data: _Data, settings: FitSettings) -> _Model:
    if len(np.unique(data.matched)) < 2:
        name = "match none" if data.matched.any() else "match a true nucleus"
        what = f"once the {settings.called} of one part are held back, no instances are left that {name}"
        raise _few(what, f"true and false instances in most {settings.called}", settings)
    known = np.isfinite(data.values)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, data.values, 0).sum(0) / count
    deviation = np.sqrt((np.where(known, data.values - mean, 0) ** 2).sum(0) / count)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    read = standardise(data.values, mean, deviation)
    share = np.where(data.matched, 0.5 / data.matched.sum(), 0.5 / (~data.matched).sum())
    width, hidden = read.shape[1], settings.hidden
    rng = np.random.default_rng([settings.seed, 2])
    start = [np.zeros(width + 1)]
    if hidden:
        start = [rng.normal(0, np.sqrt(2 / width), hidden * width), np.zeros(hidden), rng.normal(0, 0.3, hidden + 1)]
    found = minimize(
        _loss(read, data.matched, share, settings),
        np.concatenate(start),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": settings.steps},
    )
    return _Model(mean, deviation, _shaped(found.x, width, hidden))


def _shaped(flat: _Floats, width: int, hidden: int) -> _Weights:
    inner = hidden * width
    return _Weights(flat[:inner].reshape(hidden, width), flat[inner : inner + hidden], flat[inner + hidden :])


def _loss(
    read: _Floats, matched: _Flags, share: _Floats, settings: FitSettings
) -> Callable[[_Floats], tuple[float, _Floats]]:
    """Weighted cross-entropy with its gradient, as a function of all weights."""
    sign = np.where(matched, 1.0, -1.0)
    width, hidden, decay = read.shape[1], settings.hidden, settings.weight_decay

    def loss(flat: _Floats) -> tuple[float, _Floats]:
        own = _shaped(flat, width, hidden)
        inner = np.maximum(read @ own.weight.T + own.bias, 0) if hidden else read
        logits = inner @ own.last[:-1] + own.last[-1]
        slope = -share * sign * expit(-sign * logits)
        last = np.append(inner.T @ slope + decay * own.last[:-1], slope.sum())
        total = -(share * log_expit(sign * logits)).sum() + decay / 2 * (own.last[:-1] ** 2).sum()
        if not hidden:
            return float(total), last
        back = np.outer(slope, own.last[:-1]) * (inner > 0)
        weight = back.T @ read + decay * own.weight
        total += decay / 2 * (own.weight**2).sum()
        return float(total), np.concatenate([weight.ravel(), back.sum(0), last])

    return loss


def _calibrated(logits: _Floats, matched: _Flags) -> tuple[float, float]:
    """Scale and shift that make the sigmoid of held-back logits a share of matches."""
    many, few = int(matched.sum()), int((~matched).sum())
    target = np.where(matched, (many + 1) / (many + 2), 1 / (few + 2))

    def loss(flat: _Floats) -> tuple[float, _Floats]:
        value = flat[0] * logits + flat[1]
        slope = expit(value) - target
        total = -(target * log_expit(value) + (1 - target) * log_expit(-value)).sum()
        return float(total) / len(logits), np.array([slope @ logits, slope.sum()]) / len(logits)

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(1e-3, 1e3), (None, None)])
    return float(found.x[0]), float(found.x[1])


def _best_threshold(probability: _Floats, data: _Data) -> float:
    """The threshold with the best F1; of equal ones the lowest, and 0 where every instance is best kept."""
    order = np.argsort(probability, kind="stable")
    ranked, matched = probability[order], data.matched[order]
    dropped = np.append(0, np.cumsum(matched))
    f1 = 2 * (data.matched.sum() - dropped) / (len(ranked) - np.arange(len(ranked) + 1) + data.n_true.sum())
    # Between equal probabilities there is no threshold, and to drop every instance is none either.
    possible = np.append(True, ranked[1:] > ranked[:-1])
    best = int(np.where(possible, f1[:-1], -1).argmax())
    return 0.0 if best == 0 else float((ranked[best - 1] + ranked[best]) / 2)


def _gain(data: _Data, kept: _Flags, probability: _Floats, settings: FitSettings) -> Gain:
    images = len(data.n_true)
    chosen = (np.ones_like(kept), data.matched, kept, kept & data.matched)
    found, matched, after, right = (np.bincount(data.image[one], minlength=images) for one in chosen)
    true = data.n_true

    def change(weight: _Floats) -> tuple[_Floats, _Floats]:
        before = 2 * (weight @ matched) / np.maximum(weight @ (found + true), 1)
        return before, 2 * (weight @ right) / np.maximum(weight @ (after + true), 1)

    before, later = change(np.ones((1, images)))
    draws = np.random.default_rng([settings.seed, 3]).multinomial(
        images, np.full(images, 1 / images), settings.resamples
    )
    first, second = change(draws.astype(np.float64))
    low, high = np.quantile(second - first, [0.025, 0.975])
    ranks = rankdata(probability)[data.matched].sum()
    many, few = int(data.matched.sum()), int((~data.matched).sum())
    return Gain(
        n_images=images,
        n_true=int(true.sum()),
        n_found=len(kept),
        n_matched=many,
        n_kept=int(kept.sum()),
        n_kept_matched=int((kept & data.matched).sum()),
        f1_before=float(before[0]),
        f1_after=float(later[0]),
        f1_gain=float(later[0] - before[0]),
        gain_low=float(low),
        gain_high=float(high),
        auc=float((ranks - many * (many + 1) / 2) / (many * few)),
        brier=float(np.mean((probability - data.matched) ** 2)),
    )
