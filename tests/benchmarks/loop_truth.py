"""Loops by name against the libraries themselves: `python tests/benchmarks/loop_truth.py`.

A small GPT-2 is trained for three steps on the CPU by Hugging Face's Trainer and by Lightning; the truth is the sum of
the allocator's own events (torch.profiler) on top of parameters and buffers. Beside the plan of `loop: ...` stands that
of the loop that is assumed where a recipe names none. Trainers hold a few KB more: batches on their way, counters.
Needs `pip install transformers accelerate lightning`.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from pytest_modelbudget import plan  # noqa: E402
from tests.real_steps import KERNELS, measured  # noqa: E402

BATCH, TOKENS, WORDS, STEPS, WITHIN = 4, 128, 4_096, 3, 0.001
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda params: torch.optim.AdamW(params, foreach=False),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, foreach=False),
}


def gpt2() -> nn.Module:
    """Two blocks; scores of 4,096 words are most of what a step takes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=2, n_embd=64, n_head=4, vocab_size=WORDS, use_cache=False, loss_type="ForCausalLM", **dropout
        )
    )


def _examples(passes: int) -> list[dict[str, torch.Tensor]]:
    row = {"input_ids": torch.zeros(TOKENS, dtype=torch.int64), "labels": torch.zeros(TOKENS, dtype=torch.int64)}
    return [row] * (BATCH * passes * STEPS)


def _held(model: nn.Module) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in {*model.parameters(), *model.buffers()})


def hf_trainer(optimizer: str, passes: int) -> int:
    """Bytes at the peak of a training by `transformers.Trainer`, whose AdamW is fused."""
    from transformers import Trainer, TrainingArguments

    model = gpt2()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, gradient_accumulation_steps=passes, max_steps=STEPS,
            use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            **({} if optimizer == "adamw" else {"optim": optimizer}),
        )  # fmt: skip
        trainer = Trainer(model=model, args=settings, train_dataset=_examples(passes))
        return measured(trainer.train, 1) + _held(model)


def lightning(optimizer: str, passes: int) -> int:
    """Bytes at the peak of a training by `lightning.Trainer`, with automatic optimization."""
    import lightning

    model = gpt2()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return OPTIMIZERS[optimizer](self.parameters())

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_steps=STEPS, accelerator="cpu", accumulate_grad_batches=passes, **quiet)
    loader = torch.utils.data.DataLoader(_examples(passes), batch_size=BATCH)
    module = Module()
    return measured(lambda: trainer.fit(module, loader), 1) + _held(model)


REAL: dict[str, Callable[[str, int], int]] = {"hf-trainer": hf_trainer, "lightning": lightning}


def planned(**training: Any) -> int:
    """The planned peak of the same step."""
    inputs = {"input_ids": "int64[B, T]", "labels": "int64[B, T]"}
    recipe = {"batch": BATCH, "dims": {"T": TOKENS}, "kernels": KERNELS, **training}
    peak = plan(gpt2, inputs, training=recipe).peak_bytes
    assert peak is not None
    return peak


def main() -> int:
    """Print a line for each loop; 1 when one is further off than a thousandth."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(2)
    good = True
    print(f"{'loop':12}{'optimizer':>10}{'passes':>8}{'real MiB':>10}{'planned':>10}{'error':>9}{'assumed loop':>14}")
    for loop, run in REAL.items():
        for optimizer in OPTIMIZERS:
            for passes in (1, 2):
                truth, keys = run(optimizer, passes), {"optimizer": optimizer, "gradient_accumulation": passes}
                ours, assumed = planned(loop=loop, **keys), planned(**keys)
                good &= abs(ours / truth - 1) <= WITHIN
                print(
                    f"{loop:12}{optimizer:>10}{passes:8}{truth / 2**20:10.2f}{ours / 2**20:10.2f}"
                    f"{ours / truth - 1:+9.3%}{assumed / truth - 1:+14.1%}",
                    flush=True,
                )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
