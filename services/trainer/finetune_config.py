"""`learner.finetune`: how the network itself is trained."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

# Keys that once stood in `learner` itself.
MOVED = ("stages", "epochs", "batch_size", "learning_rate", "backbone_lr_share", "weight_decay", "mirror", "device")


class FinetuneConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    # ---- what learns, and for how long
    # How many of the network's last stages are trained, or "all".
    stages: PositiveInt | Literal["all"] = "all"
    # Epochs in which only the head learns; those of `epochs` follow, with everything that `stages` names.
    head_epochs: int = Field(default=0, ge=0)
    epochs: int = Field(default=10, ge=1)
    # Networks trained with different seeds and published as one committee.
    members: int = Field(default=1, ge=1, le=20)
    # Each member on its own resample of the labels, drawn with replacement within each class.
    bootstrap: bool = False

    # ---- the optimiser
    optimizer: Literal["adamw", "sgd"] = "adamw"
    # Of the head; for sgd ten times as much is usual.
    learning_rate: float = Field(default=1e-3, gt=0)
    # Learning rate of the last pretrained stage as a share of the head's.
    backbone_lr_share: float = Field(default=0.1, gt=0, le=1)
    # Learning rate of each earlier stage as a share of the next one's.
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    # Share of the steps in which the learning rate rises; then it falls to zero along half a cosine.
    warm_up: float = Field(default=0.05, ge=0, lt=1)
    # Images behind each step.
    batch_size: int = Field(default=32, ge=1)
    # A batch goes through the network in so many parts whose gradients are added up: less memory, the same step.
    accumulate: int = Field(default=1, ge=1)
    # Decay of a running average of the weights, which is what is published; 0: the last weights are.
    ema: float = Field(default=0.0, ge=0, lt=1)

    # ---- the loss
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    # "balanced": each class counts the same, however many labels it has.
    class_weights: Literal["none", "balanced"] = "none"

    # ---- the images
    mirror: bool = True
    # Up to this share of the side, in both directions; what is uncovered is filled with the mirrored border.
    shift: float = Field(default=0.0, ge=0, le=0.5)
    # Brightness, contrast and saturation change by up to this share.
    colour_jitter: float = Field(default=0.0, ge=0, le=1)
    # Operations of RandAugment on each image; 0: none. Their strength, of 30.
    rand_augment: int = Field(default=0, ge=0, le=5)
    rand_augment_magnitude: int = Field(default=9, ge=0, le=30)
    # Probability that a rectangle of the image is erased.
    erase: float = Field(default=0.0, ge=0, le=1)
    # Of the beta distribution that says how much of another image is mixed in; 0: none. With both, each batch draws.
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)

    # ---- when to stop, decided on labels that are held out of the training
    # Share of the labels that choose the epoch whose weights are kept; 0: the last epoch's are.
    validation_share: float = Field(default=0.0, ge=0, le=0.5)
    # Enough after so many epochs without a better loss on them; none: all epochs are trained.
    patience: PositiveInt | None = None

    # ---- the machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # "auto": bf16 on a GPU that has it, fp16 on one that has not, fp32 on a CPU.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # "auto": on a GPU in 16 bits, where the convolutions of tensor cores want it.
    channels_last: bool | Literal["auto"] = "auto"
    # torch.compile: pays for long trainings on a GPU; the first step then takes a minute.
    compile: bool = False

    @model_validator(mode="after")
    def _goes_together(self) -> "FinetuneConfig":
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 is for GPUs; with device cpu use bf16 or fp32")
        if self.patience and not self.validation_share:
            raise ValueError("patience looks at held-out labels and there are none; set validation_share, such as 0.15")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"a batch of {self.batch_size} has no {self.accumulate} parts; accumulate is at most batch_size"
            )
        if self.bootstrap and self.members == 1:
            raise ValueError("bootstrap is for committees: set members to 2 or more, or leave it out")
        return self
