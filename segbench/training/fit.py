"""One loop for every stage: transformers' Trainer over batches that are made as they are needed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from segbench.training.recipe import Schedule

Batch = dict[str, Any]  # keyword arguments of the model: tensors, and CLIP's return_loss
Rates = Sequence[tuple[float, Sequence[nn.Parameter]]]  # learning rate, and what it is for
Curve = list[dict[str, float]]  # step, loss and, where answers are learned, accuracy: means since the point before


@dataclass(frozen=True)
class Batches(torch.utils.data.Dataset):
    """`make(i)` is batch i of `count`, in this order: batches depend on their number only, never on who asks."""

    make: Callable[[int], Batch]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return self.make(index)


def fit(
    model: nn.Module,
    make: Callable[[int], Batch],
    schedule: Schedule,
    rates: Rates,
    *,
    precision: Literal["float32", "bfloat16"],
    report: Callable[[str], None],
    scratch: Path,
) -> Curve:
    """Train the parameters in `rates` ; every other one is frozen. Returns the curve.

    AdamW without weight decay, gradients clipped at 1, warm-up over 3 % of the steps, cosine to zero (paper A.1).
    """
    if schedule.steps == 0:
        return []
    model.requires_grad_(False)
    for _, parameters in rates:
        for parameter in parameters:
            parameter.requires_grad_(True)
    groups = [{"params": list(parameters), "lr": rate} for rate, parameters in rates]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=schedule.steps,
        per_device_train_batch_size=1,  # of ready-made batches
        train_sampling_strategy="sequential",
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.03 * schedule.steps)),
        max_grad_norm=1.0,
        bf16=precision == "bfloat16",
        use_cpu=True,
        remove_unused_columns=False,
        logging_steps=max(1, schedule.steps // 40),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        log_level="error",
        seed=0,
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=Batches(make, schedule.steps),
        data_collator=lambda batches: batches[0],
        optimizers=(optimizer, None),
    )
    trainer.remove_callback(type(trainer.callback_handler.callbacks[-1]))
    trainer.add_callback(_Report(report, schedule.steps))
    model.train()
    trainer.train()
    model.eval()
    return trainer.curve()


class _Trainer(Trainer):
    """Trainer that also counts how many labelled tokens were predicted right."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._right: list[float] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        if "labels" in inputs:
            with torch.no_grad():
                asked = inputs["labels"][:, 1:] != -100
                right = (outputs.logits[:, :-1].argmax(-1) == inputs["labels"][:, 1:])[asked]
                self._right.append(right.float().mean().item())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def curve(self) -> Curve:
        points, last = [], 0
        for entry in self.state.log_history:
            if "loss" not in entry:
                continue
            step = int(entry["step"])
            point = {"step": step, "loss": round(entry["loss"], 4)}
            if self._right:
                part = self._right[last:step]
                point["accuracy"] = round(sum(part) / len(part), 4)
            points.append(point)
            last = step
        return points


class _Report(TrainerCallback):
    def __init__(self, report: Callable[[str], None], steps: int):
        self._report, self._steps = report, steps

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self._report(f"step {state.global_step}/{self._steps} loss {logs['loss']:.3f}")


logging.getLogger("accelerate").setLevel(logging.ERROR)
