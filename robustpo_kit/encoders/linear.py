"""A linear head on frozen embeddings: features of (prompt, response) pairs, logistic regression."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from robustpo_kit.encoders.encoder import Encoder

Pair = tuple[str, str]  # prompt, response


@dataclass(frozen=True, eq=False)
class LinearScorer:
    """features [N, F] @ weight [F] + bias."""

    weight: np.ndarray
    bias: float = 0.0

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight + self.bias

    def trained_state(self) -> dict[str, Tensor]:
        """Weight and bias as float64 tensors."""
        return {
            "weight": torch.tensor(self.weight),
            "bias": torch.tensor([self.bias], dtype=torch.float64),
        }


def response_features(encoder: Encoder, pairs: Sequence[Pair]) -> np.ndarray:
    """[N, D + 1] for telling sources: the response's embedding, and its cosine to the prompt.

    Both are scaled to about unit variance.
    """
    prompt, response = _embedded(encoder, pairs)
    cosine = (prompt * response).sum(1, keepdims=True)
    return np.hstack([response * np.sqrt(encoder.width), 3 * cosine])


def relevance_features(encoder: Encoder, pairs: Sequence[Pair]) -> np.ndarray:
    """[N, D + 1] for relevance: the cosine of prompt and response, and its D summands.

    Both are scaled to about unit variance.
    """
    prompt, response = _embedded(encoder, pairs)
    product = prompt * response
    return np.hstack([10 * product.sum(1, keepdims=True), product * encoder.width])


def _embedded(encoder: Encoder, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, D] of prompts and of responses, float64."""
    prompts = encoder.embed([prompt for prompt, _ in pairs]).double().numpy()
    return prompts, encoder.embed([response for _, response in pairs]).double().numpy()


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, penalty: float, *, intercept: bool = True
) -> LinearScorer:
    """Minimise sum log(1 + exp(-y (x.w + b))) + penalty/2 |w|^2, y = +-1.

    Without intercept and with differences of features as `features` it is Bradley-Terry.

    Args:
        features: x, [N, F].
        labels: [N], 0 or 1.
        penalty: of the weight; the intercept goes unpunished.
        intercept: whether there is a b.

    Raises:
        ValueError: when `penalty` is not positive.
    """
    if penalty <= 0:
        raise ValueError(f"penalty = {penalty}: a positive number is expected")
    signs = np.where(np.asarray(labels) == 1, 1.0, -1.0)
    design = features
    ridge = np.full(features.shape[1], float(penalty))
    if intercept:
        design = np.hstack([features, np.ones((len(features), 1))])
        ridge = np.append(ridge, 0.0)

    def objective(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margin = signs * (design @ weight)
        slope = -signs * expit(-margin)
        value = np.logaddexp(0, -margin).sum() + 0.5 * ridge @ weight**2
        return value, design.T @ slope + ridge * weight

    start = np.zeros(design.shape[1])
    limits = {"maxiter": 500, "gtol": 1e-6}
    weight = minimize(objective, start, jac=True, method="L-BFGS-B", options=limits).x
    if intercept:
        return LinearScorer(weight[:-1], float(weight[-1]))
    return LinearScorer(weight)
