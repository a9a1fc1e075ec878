"""What learns, how fast, and the running average of it."""

import torch
from torch import nn

from services.trainer.backbones import Backbone
from services.trainer.finetune_config import FinetuneConfig


def unfreeze(net: nn.Module, stages: tuple[tuple[str, ...], ...], wanted: int | str) -> list[nn.Parameter]:
    """Let the last `wanted` stages learn, and nothing else. Gives their parameters."""
    names = {name for stage in learning_stages(stages, wanted) for name in stage}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in names)
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def learning_stages(stages: tuple[tuple[str, ...], ...], wanted: int | str) -> tuple[tuple[str, ...], ...]:
    return stages[max(0, len(stages) - wanted) :] if isinstance(wanted, int) else stages


def train_mode(net: nn.Module, head_only: bool) -> None:
    """Training mode, except in frozen parts: their batch norms keep the statistics they were trained with."""
    net.train(not head_only)
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def make_optimizer(
    backbone: Backbone, net: nn.Module, head: nn.Linear, config: FinetuneConfig
) -> torch.optim.Optimizer:
    """Each group carries its `full_lr`, what its learning rate is a share of at every step."""
    # From scratch there is nothing to be careful with.
    pretrained = backbone.info.weights != "none"
    share = config.backbone_lr_share if pretrained else 1.0
    by_name = dict(net.named_parameters())
    stages = learning_stages(backbone.stages, config.stages)
    parts = [([*head.parameters()], config.learning_rate)]
    for before_last, stage in enumerate(reversed(stages)):
        rate = config.learning_rate * share * config.layer_decay**before_last
        parts.append(([by_name[name] for name in stage], rate))
    groups = []
    for parameters, rate in parts:
        # Biases and batch norms are not decayed.
        for decayed, decay in ((True, config.weight_decay), (False, 0.0)):
            members = [p for p in parameters if (p.ndim > 1) is decayed]
            if members:
                groups.append({"params": members, "lr": rate, "full_lr": rate, "weight_decay": decay})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.momentum > 0)
    # Fused: one pass over each tensor instead of ten, a quarter of a small network's step on a CPU.
    return torch.optim.AdamW(groups, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * share


class Average:
    """A running average of parameters, short at first: min(decay, (1 + t) / (10 + t)) after t steps."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.tensors = [p.detach().clone() for p in parameters]
        self._decay = decay

    def follow(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, [p.detach() for p in self.parameters], 1 - decay)

    def swap(self) -> None:
        """The parameters become the average and the other way round: call it twice."""
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            kept = parameter.detach().clone()
            parameter.data.copy_(tensor)
            tensor.copy_(kept)
