"""Slow, readable twins of the row-sparse optimizers: one row at a time, in float64."""

from __future__ import annotations

import math

import torch


class RowsReference:
    """Keeps weights and state of every row as float64, and steps the rows that it is told."""

    def __init__(self, weight, **options):
        self.weight = weight.detach().double().clone()
        self.options = options
        self.steps = 0
        self.state = [None] * len(weight)

    def step(self, gradients: dict[int, torch.Tensor]) -> None:
        self.steps += 1
        for row, grad in gradients.items():
            self.weight[row], self.state[row] = self.rule(self.weight[row], grad.double(), self.state[row])


class SGDReference(RowsReference):
    def rule(self, w, g, velocity):
        o = self.options
        g = g + o["weight_decay"] * w
        if o["momentum"] == 0:
            return w - o["lr"] * g, None
        velocity = g if velocity is None else o["momentum"] * velocity + g
        direction = g + o["momentum"] * velocity if o["nesterov"] else velocity
        return w - o["lr"] * direction, velocity


class AdamWReference(RowsReference):
    def rule(self, w, g, moments):
        o = self.options
        beta1, beta2 = o["betas"]
        mean, square, last = (torch.zeros_like(w), torch.zeros_like(w), 0) if moments is None else moments
        if o.get("missed_steps") == "decay" and last > 0:
            for _ in range(last + 1, self.steps):  # a gradient of zero each
                mean, square = beta1 * mean, beta2 * square
        w = w - o["lr"] * o["weight_decay"] * w
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g * g
        corrected_mean = mean / (1 - beta1**self.steps)
        corrected_square = square / (1 - beta2**self.steps)
        return w - o["lr"] * corrected_mean / (corrected_square.sqrt() + o["eps"]), (mean, square, self.steps)


class RowWiseAdagradReference(RowsReference):
    def rule(self, w, g, total):
        o = self.options
        g = g + o["weight_decay"] * w
        total = (total or 0.0) + (g * g).mean().item()
        return w - o["lr"] * g / (math.sqrt(total) + o["eps"]), total
