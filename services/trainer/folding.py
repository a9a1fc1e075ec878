"""A head as plain layers: standardisation and temperature become part of the weights, where that costs no accuracy.

(x - mean) / scale, the product and the division by the temperature are linear, so one product does for all of them:
weights' = weights / scale / temperature, biases' = biases / temperature - weights' @ mean. The mean is another matter
in float32. Folded, each logit adds up the terms weights'_d x_d in the place of weights'_d (x_d - mean_d): what is new
in any partial sum is at most M = sum_d |weights'_d mean_d|, which the biases take away again. Each of the D roundings
errs by up to u = 2^-24 of the partial sum, in either direction, so that together they come to about sqrt(D) u M (Higham
& Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019; D u M if all went one
way). Heads on real embeddings stay below 4e-5 (M up to 20). A dimension that hardly changes has a tiny scale and makes
M huge: the mean of such a head is subtracted first, as it stands.
"""

from dataclasses import dataclass

import numpy as np

from services.trainer.learning import Head

# In a logit; a probability moves by half of that at most. Parity allows it 1e-3.
MAX_FOLDING_ERROR = 1e-4
_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Layer:
    weights: np.ndarray  # float64 (O, I)
    biases: np.ndarray  # float64 (O,)


@dataclass(frozen=True)
class FoldedHead:
    """relu between `layers`; the last one gives all K * C logits, divided by the temperature."""

    layers: tuple[Layer, ...]
    # (D,), to subtract from an embedding; None where the first layer's biases have done it.
    mean: np.ndarray | None
    # (D,), to divide by after that; None where the first layer's weights have done it.
    scale: np.ndarray | None


def folded(head: Head) -> FoldedHead:
    """The same logits up to MAX_FOLDING_ERROR. A head of directions keeps mean and scale: the length is theirs."""
    layers = _layers(head)
    mean, scale = head.mean.astype(np.float64), head.scale.astype(np.float64)
    if head.unit:
        return FoldedHead(layers, mean, scale)
    first = Layer(layers[0].weights / scale, layers[0].biases)
    if folding_error(first, mean, layers[1:]) > MAX_FOLDING_ERROR:
        return FoldedHead((first, *layers[1:]), mean, None)
    centred = Layer(first.weights, first.biases - first.weights @ mean)
    return FoldedHead((centred, *layers[1:]), None, None)


def folding_error(first: Layer, mean: np.ndarray, behind: tuple[Layer, ...] = ()) -> float:
    """sqrt(D) u M: about what float32 logits lose when the mean (D,) goes into the biases of `first`."""
    reach = np.abs(first.weights) @ np.abs(mean)  # M of each output
    for layer in behind:
        reach = np.sqrt(layer.weights**2 @ reach**2)  # errors of units are as independent as roundings are
    return float(np.sqrt(len(mean)) * _ROUNDOFF * reach.max())


def _layers(head: Head) -> tuple[Layer, ...]:
    members, classes, size = head.weights.shape
    # All members in one product.
    weights = head.weights.reshape(members * classes, size).astype(np.float64)
    last = Layer(weights / head.temperature, head.biases.reshape(-1).astype(np.float64) / head.temperature)
    if head.hidden is None:
        return (last,)
    return Layer(head.hidden.weights.astype(np.float64), head.hidden.biases.astype(np.float64)), last
