"""The lesson: how a pretrained model is fine-tuned, and what the five scripts share. Read it from the top.

1. The loop        CustomTrainer: epochs, forward, loss, backward, clipping, optimizer step, schedule, checkpoints
2. The kinds       how an example becomes tensors, logits a prediction, predictions a score
3. The data        a catalog entry, or a file of your own -> train, validation, test
4. The model       tokenizer, head, precision, prediction
5. The run folder  where a run is kept; CSV files and figures

Try it:  python train.py --dataset mrpc --sample && python evaluate.py --dataset mrpc --sample
"""

import csv
import ctypes
import difflib
import functools
import hashlib
import importlib
import io
import json
import math
import os
import platform
import re
import shutil
import sys
import textwrap
import time
import tomllib
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import huggingface_hub
import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import transformers
import yaml
from accelerate import skip_first_batches
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from huggingface_hub import ModelCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from matplotlib import font_manager
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp, softmax
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import rotate_checkpoints

Array, Table, Task = np.ndarray, pd.DataFrame, dict[str, Any]  # a task is a catalog entry

CATALOG = Path(__file__).parent / "catalog"
REQUIRED = ("row", "title", "kind", "splits", "why", "text", "label", "metrics", "max_length", "task", "licence",
            "source", "cite")  # of a catalog entry
OWN_FILES = (".csv", ".tsv", ".jsonl", ".parquet")
# Columns of the scripts' tables that stand beside the task's own: no names for texts.
RESERVED = re.compile(r"id|split|label|group|gold|predicted|correct|confidence|gold_confidence|margin|abs_error|f1|"
                      r"gold_step|predicted_step|raw_output|(prob_|llm_|who_is_right_).*")
OF_LABELS = ("labels", "positive", "averaged", "scale", "steps", "edges")  # what says what labels mean
FONTS = ("Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", "Noto Sans Devanagari", "Noto Sans Ethiopic",
         "Noto Emoji", "Arial Unicode MS")  # where installed, they draw what matplotlib's own font lacks
SAMPLE_MODEL = "sample"  # the name that runs of --sample's own model stand under
SPLIT_SEED = 13  # splits and samples of the data do not move with --seed, so that seeds differ in the training alone
PROCESS, PROCESSES = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun sets them


class UserError(SystemExit):
    """What a user can mend, or what ends a run: one line on stderr, from the first process, and the exit code.

    The line says what was given, what is allowed and how to go on. It is printed at once and never caught.
    """

    def __init__(self, message: str, code: int = 2):
        if PROCESS == 0:  # tqdm.write clears an open progress bar first
            tqdm.write(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr)
        super().__init__(code)


# ================================================== 1. The loop ==================================================
# One update (= optimizer step) over n examples, in k micro-batches B_1 .. B_k that fit into memory:
#     L      = 1/n  sum_j  sum_{(x, y) in B_j}  loss(model(x), y)       the mean over all n examples    `loss`
#     g      = dL/dw  = sum_j  d(loss of B_j)/dw                        backward() adds into .grad      `param.grad`
#     g     <- g * min(1, c / ||g||)                                    c: --max-grad-norm              `grad_norm`
#     m     <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2            AdamW's running means           `optimizer`
#     w     <- w - lr * (m_hat / (sqrt(v_hat) + eps) + decay * w)       _hat: corrected for starting at 0
#     lr     = schedule(updates done)                                   linear: falls to 0 at the end   `lr_scheduler`
# An epoch is ceil(batches / k) updates. 8 micro-batches of 4 an update have the formula of a batch of 32, but not its
# examples: batches of 4 examples of like length are made and shuffled, so that the two runs do not match to the digit.


class CustomTrainer(Trainer):
    """A Trainer whose training loop is written out, so that it can be read from top to bottom.

    It takes Trainer's own arguments; `kind` (of KINDS) brings the loss, without it the model's problem_type does;
    `class_weights`, float32 (labels,), weighs the examples of each label. Data sets of TokenDataset pad themselves.

    It differs from transformers 5.23's Trainer in this: the loss is the mean over the examples of the whole update,
    whatever the accumulation and the number of processes (Trainer's is gradient_accumulation_steps times too large for
    text-classification heads, github.com/huggingface/transformers/issues/47688); a loss that is not finite ends the
    run; a micro-batch that does not fit into memory is cut; a checkpoint is whole or not taken for one; total_flos
    stays 0; what REFUSED names raises NotImplementedError.
    """

    REFUSED = {"auto_find_batch_size": False, "eval_on_start": False, "label_smoothing_factor": 0.0,
               "neftune_noise_alpha": None, "torch_empty_cache_steps": None, "ignore_data_skip": False,
               "save_only_model": False, "dataloader_drop_last": False}  # argument: the value that leaves it off

    def __init__(self, *args: Any, kind: Any = None, class_weights: Tensor | None = None, **kwargs: Any):
        if collate := getattr(kwargs.get("train_dataset"), "collate", None):
            kwargs.setdefault("data_collator", collate)
        super().__init__(*args, **kwargs)
        config = self.model.config
        problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
        self.kind = kind or KINDS[PROBLEM_TYPES[problem]]  # as the heads of transformers choose their loss
        self.class_weights = None if class_weights is None else class_weights.to(self.args.device)
        self._tr_loss, self._epoch_start = torch.zeros((), device=self.args.device), 0.0
        refused = [name for name, off in self.REFUSED.items() if getattr(self.args, name) != off]
        if self.args.n_gpu > 1 or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            refused.append("DataParallel (set CUDA_VISIBLE_DEVICES=0, or use torchrun), DeepSpeed and FSDP")
        if self.args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            refused.append(f"lr_scheduler_type={self.args.lr_scheduler_type.value}")
        if self.args.fp16 and self.args.device.type == "cpu":
            refused.append("fp16 on a CPU, where accelerate trains in fp32")
        if refused:
            raise NotImplementedError(f"CustomTrainer's loop does without {', '.join(refused)}; Trainer has it")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of one micro-batch in nats: the sum over its examples, divided by the examples of the update.

        inputs["labels"]: (batch, ...), as kind.targets makes them; the model is called without.
        num_items_in_batch: examples in the whole update, None where this batch is all. Dividing each micro-batch's sum
        by it, class weights or not, makes k micro-batches equal one batch k times as large, short ones included.
        """
        labels = inputs["labels"]
        outputs = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
        loss = self.loss_of(outputs, labels, len(labels) if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def loss_of(self, outputs, labels, examples):
        """The summed loss divided by `examples`: the one way to it, in training and in evaluation."""
        if self.compute_loss_func is not None:
            return self.compute_loss_func(outputs, labels, num_items_in_batch=examples)
        return self.kind.loss(outputs, labels, self.class_weights) / examples

    def _inner_training_loop(self, batch_size=None, args=None,  # noqa: C901, PLR0915 - a lesson is read in one piece
                             resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Train; returns TrainOutput(global_step, training_loss, metrics). Trainer.train() calls it."""
        # 1. Plan. An epoch has num_batches micro-batches; an update takes up to gradient_accumulation_steps of them.
        self.accelerator.free_memory()
        loader = self.get_train_dataloader()
        plan = self.set_initial_training_values(args, loader)
        num_epochs, num_updates, _, num_samples, _, num_batches, max_steps = plan

        # 2. State. train() has loaded a checkpoint's weights. Of Trainer's own two, the first reads trainer_state.json
        #    (first_epoch, and how many of its micro-batches are done); the second makes AdamW (create_optimizer), wraps
        #    forward in autocast for bf16 and fp16, makes the schedule (create_scheduler), loads those two's states.
        first_epoch, to_skip = self._init_training_state(
            max_steps, num_updates, num_epochs, resume_from_checkpoint, trial)
        model, loader = self._prepare_for_training(max_steps, loader, resume_from_checkpoint)
        self._start_sums(resume_from_checkpoint)
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)

        for epoch in range(first_epoch, num_epochs):
            # 3. Epoch. The order depends on seed and epoch alone, so a resumed one goes on with the batches that are
            #    left. iter() draws a random number: a state saved between epochs is restored before, others after.
            self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
            loader.set_epoch(epoch)
            resuming = resume_from_checkpoint is not None and epoch == first_epoch
            batches_done = to_skip if resuming else 0
            if resuming and batches_done == 0:
                self._load_rng_state(resume_from_checkpoint)
            batches = iter(skip_first_batches(loader, batches_done) if batches_done else loader)
            learning_rate, save_later = self._get_learning_rate(), False
            self._epoch_start = time.time() - self._epoch_seconds  # those before the checkpoint, if resumed within

            # 4. Micro-batches: forward, loss, backward. islice takes the next batches, fewer of them at the end.
            while group := list(islice(batches, args.gradient_accumulation_steps)):
                if resuming and batches_done == to_skip > 0:  # the first update after a resume within an epoch
                    self._load_rng_state(resume_from_checkpoint)
                self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
                model.train()
                examples = self._count(group)
                parts = [{name: tensor[cut::self.cuts] for name, tensor in batch.items()}
                         for batch in group for cut in range(min(self.cuts, len(batch["labels"])))]
                sums = torch.zeros_like(self._epoch_sums)
                try:
                    for number, batch in enumerate(parts, start=1):
                        with self.accelerator.no_sync(model) if number < len(parts) else nullcontext():  # meet at last
                            loss, outputs = self.compute_loss(model, batch, True, examples)  # forward and loss
                            self.accelerator.backward(loss * args.world_size)  # into param.grad; DDP takes the mean
                        sums += self._measure(loss, outputs, batch["labels"], examples)
                        if number < len(parts):
                            self.control = self.callback_handler.on_substep_end(args, self.state, self.control)
                except RuntimeError as error:
                    self._cut_smaller(error, parts)  # raises all but out of memory
                    model.zero_grad()
                    batches = chain(group, batches)  # the same update again, in smaller micro-batches
                    continue
                self._tr_loss += sums[0] * args.world_size  # the log, as DDP, takes the mean over processes
                self._epoch_sums += sums
                batches_done += len(group)

                # 5. Update: clip the gradient, step the optimizer, step the schedule, clear the gradient.
                grad_norm = self.accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
                self.control = self.callback_handler.on_pre_optimizer_step(args, self.state, self.control)
                self.optimizer.step()
                self.control = self.callback_handler.on_optimizer_step(args, self.state, self.control)
                learning_rate = self._get_learning_rate()  # the rate of this update, for the log
                if not self.accelerator.optimizer_step_was_skipped:  # fp16 skips an update that overflowed
                    self.lr_scheduler.step()
                model.zero_grad()
                self.state.global_step += 1
                self.state.epoch = epoch + batches_done / num_batches

                # 6. Log, evaluate, save: as should_log, should_evaluate and should_save say (Trainer's own callback,
                #    DefaultFlowCallback, sets them). A save at the epoch's last update waits for its evaluation.
                self.control = self.callback_handler.on_step_end(args, self.state, self.control)
                save_later = self.control.should_save and batches_done == num_batches
                self.control.should_save &= not save_later
                self._maybe_log_save_evaluate(self._tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval,
                                              self._start_time, learning_rate)
                if self.control.should_epoch_stop or self.control.should_training_stop:
                    break

            self._close_epoch(learning_rate)
            self.control = self.callback_handler.on_epoch_end(args, self.state, self.control)
            self.control.should_save |= save_later
            self._maybe_log_save_evaluate(self._tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval,
                                          self._start_time, learning_rate)
            if self.control.should_training_stop:
                break

        # 7. Close: mean loss, speed, the best epoch's weights back into memory (_load_best_model), on_train_end.
        return self._finalize_training(trial, num_samples, self._start_time)

    # For the loop you may stop reading here. The CPU waits for the GPU where it reads a number of it: for a log, a
    # checkpoint, an evaluation, the end of an epoch, and as transformers asks whether a mask is all ones. An update
    # that overflows fp16 counts in global_step; fused AdamW skips it unseen, and the schedule goes on, as in Trainer.

    def get_train_dataloader(self):
        """Batches of like lengths; for a data set without `lengths` those of Trainer."""
        args, dataset = self.args, self.train_dataset
        if not hasattr(dataset, "lengths"):
            return super().get_train_dataloader()
        batches = LengthGroupedBatches(dataset.lengths, self._train_batch_size * args.world_size, args.seed,
                                       getattr(dataset, "window", 50), args.process_index, args.world_size)
        return DataLoaderShard(dataset, device=args.device, batch_sampler=batches, collate_fn=self.data_collator,
                               pin_memory=args.dataloader_pin_memory, _non_blocking=True)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """The metrics of a TokenDataset by predict(), which takes the longest first; of any other as Trainer's."""
        dataset, args = self.eval_dataset if eval_dataset is None else eval_dataset, self.args
        with self._clock_stopped():
            if not isinstance(dataset, TokenDataset):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            outputs = predict(self.model, dataset, self.kind, args.per_device_eval_batch_size,
                              "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
                              loss=lambda outputs, labels: self.loss_of(outputs, labels, 1))
            scores = {"loss": outputs.loss / len(dataset)}
            found = EvalPrediction(outputs.logits, dataset.labels)
            scores |= self.compute_metrics(found) if self.compute_metrics else {}
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
            return metrics

    def log(self, logs, start_time=None):
        """Trainer's log, which ends the run (exit code 1) where the loss is not finite."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(f"the training loss is {logs['loss']} at step {self.state.global_step}; a lower "
                            "--learning-rate or --precision fp32 may help; checkpoints written before are kept", code=1)
        super().log(logs, start_time)

    # What history.csv says of the training is added up on the device: the loss as a part of the update's mean, the
    # summed loss, the summed kind.score, the examples. _tr_loss is Trainer's: the updates' losses since the last log.

    def _measure(self, loss, outputs, labels, examples):
        return torch.stack([loss.detach(), loss.detach() * examples, self.kind.score(outputs, labels),
                            torch.full_like(loss, len(labels))])

    def _count(self, group):
        """The examples of an update, those of all processes, filled in on the device: nobody waits for it."""
        examples = float(sum(len(batch["labels"]) for batch in group))
        return self.accelerator.reduce(torch.full((), examples, device=self.args.device))

    def _close_epoch(self, learning_rate):
        """Append the epoch's training loss, score and seconds to state.log_history, and start anew."""
        _, loss, score, examples = self.accelerator.reduce(self._epoch_sums.clone()).tolist()  # waits for the device
        seconds = time.time() - self._epoch_start
        self.state.log_history.append({
            "epoch": self.state.epoch, "step": self.state.global_step, "epoch_train_loss": loss / examples,
            f"epoch_train_{self.kind.train_metric}": score / examples, "learning_rate": learning_rate,
            "seconds": seconds, "samples_per_second": examples / seconds})
        self._epoch_sums.zero_()
        self._epoch_seconds = 0.0

    @contextmanager
    def _clock_stopped(self):
        """Leave what happens inside, evaluating or saving, out of the epoch's seconds."""
        self._tr_loss.item()  # waits for the device, whose work up to here is training
        start = time.time()
        yield
        self._epoch_start += time.time() - start

    def _cut_smaller(self, error, parts):
        """Double self.cuts if `error` says that memory did not suffice (printed), else raise it."""
        largest = max(len(batch["labels"]) for batch in parts)
        if not should_reduce_batch_size(error) or largest == 1 or self.args.world_size > 1:
            raise error
        self.cuts *= 2
        print(f"out of memory with {largest} examples in a micro-batch: going on with {-(-largest // 2)} and "
              f"{self.cuts} times as many micro-batches per update, which leaves the result as it is", flush=True)

    # A checkpoint is Trainer's own, and sums.json, which is written last: without it the checkpoint is not whole.

    def _start_sums(self, checkpoint):
        """Set the running sums to zero, or to what sums.json of the checkpoint says."""
        saved = json.loads(Path(checkpoint, "sums.json").read_text()) if checkpoint else {}
        since_log, *sums = saved["processes"][self.args.process_index] if saved else [0.0] * 5
        self._tr_loss = torch.tensor(since_log, device=self.args.device)
        self._epoch_sums = torch.tensor(sums, device=self.args.device)
        self._total_loss_scalar = -since_log  # _tr_loss is added to it: what came before this call cancels out
        self._initial_global_step = self.state.global_step
        self._globalstep_last_logged = saved.get("last_logged", self.state.global_step)
        self._start_time = time.time()
        self._epoch_seconds, self.cuts = saved.get("seconds", 0.0), saved.get("cuts", 1)

    def _save_checkpoint(self, model, trial):
        """Write checkpoint-<step>; older ones go when it is whole."""
        folder, limit = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"), self.args.save_total_limit
        with self._clock_stopped():
            seconds = time.time() - self._epoch_start if self._epoch_sums[3] else 0.0
            self.args.save_total_limit = None
            super()._save_checkpoint(model, trial)
            self.args.save_total_limit = limit
            sums = self.accelerator.gather(torch.cat([self._tr_loss[None], self._epoch_sums])[None]).tolist()
            if self.is_world_process_zero():
                for path in folder.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                write_text(folder / "sums.json", json.dumps({
                    "processes": sums, "last_logged": self._globalstep_last_logged, "seconds": seconds,
                    "cuts": self.cuts}))
                rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint)


class LengthGroupedBatches:
    """A batch_sampler of examples of like length, so that few tokens are padding.

    The examples are shuffled, sorted by length within windows of `window` batches (1: not at all) and cut into batches,
    which are shuffled; the short one stays last. The order depends on seed and epoch alone. Of several processes each
    takes every processes-th example of a batch, so that together they make the batches of one; a last batch of fewer
    examples than processes joins the one before it.

    lengths: int (examples,), tokens of each; batch_size: examples of a batch, those of all processes together.
    """

    def __init__(self, lengths: Array, batch_size: int, seed: int, window: int = 50, process: int = 0,
                 processes: int = 1):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.window = window * batch_size if window > 1 else 0
        self.share = slice(process, None, processes)
        self.cuts = range(0, max(1, len(lengths) - processes + 1), batch_size)[1:]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which DataLoaderShard passes on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cuts) + 1

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        if self.window:
            order = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")]
                                    for part in np.split(order, range(self.window, len(order), self.window))])
        batches, full = np.split(order, self.cuts), len(order) // self.batch_size
        for number in [*rng.permutation(full), *range(full, len(batches))]:
            yield batches[number][self.share].tolist()


# ============================ 2. The kinds: examples -> tensors -> logits -> predictions -> scores ===================
# A split is a table with the columns id, the task's texts, label (as predictions.csv shows it), and group where the
# catalog names one: rows that must not be parted.


class TokenDataset:
    """Tokenised examples in flat arrays: memory grows with the tokens, not with Python objects.

    columns: input name -> an int array per sequence, e.g. {"input_ids": [...], "token_type_ids": [...]}.
    labels: (examples, ...), what the kind's loss takes.
    pads: input name -> the value that fills it up to the batch's longest sequence.
    sequences: sequences per example (2 options of a multiple-choice question: 2).
    left: whether the padding goes before the tokens.

    `lengths` are tokens, (examples,): the longest sequence of each; `window` is what LengthGroupedBatches takes.
    """

    window = 50

    def __init__(self, columns: dict[str, list[Any]], labels: Array, pads: dict[str, int], sequences: int = 1,
                 left: bool = False):
        sizes = np.array([len(ids) for ids in columns["input_ids"]], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.columns = {name: np.concatenate(rows, dtype=np.int32) for name, rows in columns.items()}
        self.labels, self.pads, self.sequences, self.left = labels, pads, sequences, left
        self.lengths = sizes.reshape(-1, sequences).max(axis=1, initial=0)
        self.tokens = int(sizes.sum())
        self.examples = np.arange(len(labels))  # the row of the table that each item is cut from

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example's sequences (int32 arrays of different lengths) by input name, and its label."""
        rows = range(index * self.sequences, (index + 1) * self.sequences)
        inputs = {name: [flat[self.starts[row]:self.starts[row + 1]] for row in rows]
                  for name, flat in self.columns.items()}
        return {**inputs, "labels": self.labels[index]}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad to the batch's longest sequence.

        Returns input_ids, attention_mask and the like, int64 (batch, tokens), or (batch, sequences, tokens) where an
        example has several, and labels, (batch, ...).
        """
        rows = {name: [sequence for example in examples for sequence in example[name]] for name in self.columns}
        sizes = np.array([len(row) for row in rows["input_ids"]])
        real = np.arange(sizes.max())[None, :] < sizes[:, None]  # (batch * sequences, tokens)
        real = real[:, ::-1] if self.left else real
        batch = {"attention_mask": real.astype(np.int64)}
        for name, sequences in rows.items():
            batch[name] = np.full(real.shape, self.pads[name], dtype=np.int64)
            batch[name][real] = np.concatenate(sequences)
        if self.sequences > 1:
            batch = {name: array.reshape(len(examples), self.sequences, -1) for name, array in batch.items()}
        batch["labels"] = np.stack([example["labels"] for example in examples])
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def tokenize(tokenizer: Any, first: list[str], second: list[str] | None, max_length: int) -> dict[str, list[Any]]:
    """Token ids, and token types where the model takes them: an int32 array per text or pair, cut to `max_length`."""
    columns = {name: [] for name in pad_values(tokenizer)}
    for start in range(0, len(first), 1000):  # a tokenizer's lists take many times the memory of the arrays
        block = slice(start, start + 1000)
        encoded = tokenizer(first[block], second and second[block], truncation=True, max_length=max_length,
                            return_attention_mask=False, split_special_tokens=True)  # a text's own "</s>" is a text
        for name, rows in columns.items():
            rows += [np.array(ids, dtype=np.int32) for ids in encoded[name]]
    return columns


def pad_values(tokenizer: Any) -> dict[str, int]:
    """The value that pads each input that the model takes of the tokenizer."""
    values = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return {name: value for name, value in values.items() if name in tokenizer.model_input_names}


class Counts:
    """What the figures of labels are made of, over samples in which example i occurs weights[:, i] times.

    gold, predicted: bool (examples, labels), the labels that each example has and gets; weights: (samples, examples).
    hits, gold, predicted: float64 (samples, labels), how often a label is right, there, predicted; n: (samples,).
    """

    def __init__(self, gold: Array, predicted: Array, weights: Array):
        weights = weights.astype(np.float64)
        self.n = weights.sum(axis=1)
        self.hits, self.gold, self.predicted = (weights @ cells for cells in (gold & predicted, gold, predicted))
        self.all_right = weights @ (gold == predicted).all(axis=1) / self.n
        self.labels_right = weights @ (gold == predicted).mean(axis=1) / self.n
        self.precision, self.recall = ratio(self.hits, self.predicted), ratio(self.hits, self.gold)
        self.f1 = ratio(2 * self.hits, self.gold + self.predicted)


def auroc(positive: Array, scores: Array, weights: Array) -> Array:
    """The share of pairs of a positive and another example that the scores put in order, ties half, (samples,)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    hits, others = (np.add.reduceat((weights * part)[:, order], starts, axis=1) for part in (positive, ~positive))
    return ratio((hits * (others.cumsum(axis=1) - others / 2)).sum(axis=1), hits.sum(axis=1) * others.sum(axis=1))


def ratio(part: Array, whole: Array) -> Array:
    """part / whole; 0/0 counts as 0, scikit-learn's zero_division."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(part / whole)


class Kind:
    """A kind of task, here the plainest: one label of a closed set for one text or a pair. The others say what differs.

    The column `label` holds the label's name. A kind that one row of the catalog alone uses stands in catalog/<row>.py,
    by its name in the dict KINDS, and extends one of those here. What it differs in beyond them it brings as well:
    confusion, floors (as evaluate.py has them), error_types (errors.py), answer_form (llm_compare.py's FORM).
    """

    auto_class = "AutoModelForSequenceClassification"
    problem_type: str | None = None  # what the model's config calls it
    outputs: tuple[str, ...] = ()  # what each output of the head stands for; (): the labels
    model_types: tuple[str, ...] = ()  # the families of models that it takes; (): all that have such a head
    sample_config = "BertConfig"  # what --sample builds
    train_metric = "accuracy"  # what score() adds up
    closed_set = True  # task["labels"] lists what a label can be
    takes_class_weights = True
    lower_is_better: tuple[str, ...] = ()
    confidence_is = "softmax probability of the predicted label"  # "": a prediction comes without a confidence
    tuned: tuple[str, ...] = ("temperature",)  # what tune() chooses on the validation split
    # Every metric that a catalog entry may name, by the names that README explains: name -> function of the counts (in
    # Regression of gold and predicted) and the task. All are computed, those of NEEDS where the entry has that key.
    METRICS: dict[str, Callable[..., Any]] = {
        "accuracy": lambda counts, task: counts.all_right,
        "macro_f1": lambda counts, task: counts.f1.mean(axis=1),
        "weighted_f1": lambda counts, task: (counts.f1 * counts.gold).sum(axis=1) / counts.n,
        "macro_recall": lambda counts, task: counts.recall.mean(axis=1),
        "f1": lambda counts, task: counts.f1[:, task["labels"].index(task["positive"])],
        "mean_f1": lambda counts, task: counts.f1[:, np.isin(task["labels"], task["averaged"])].mean(axis=1),
        "auroc": lambda counts, task: counts.auroc,
    }
    NEEDS = {"f1": "positive", "mean_f1": "averaged", "auroc": "positive"}

    def read_labels(self, column: pd.Series, task: Task) -> pd.Series:
        """A raw column as names of task["labels"]; None where a label is missing, or hidden (-1).

        Numbers are positions in the catalog's labels, unless it says otherwise by raw_labels; in a file of one's own
        labels are text. UserError for a label that the task doesn't know.
        """
        raw = [str(name) for name in task.get("raw_labels", task["labels"])]
        texts = column.map(label_text)
        if "file" not in task and pd.api.types.is_numeric_dtype(column) and not set(raw) & set(texts):
            raw = [str(number) for number in range(len(raw))]
        names = dict(zip(raw, task["labels"], strict=True))
        unknown = texts[~texts.isin([*names, "", "-1"])]
        if len(unknown):
            raise UserError(f"{task['key']}: label {unknown.iloc[0]!r} ({len(unknown)} rows) is not one that it knows: "
                            f"{', '.join(map(repr, names))}")
        return texts.map(names).astype(object).where(texts.isin([*names]), None)

    def gold(self, table: Table) -> Array:
        """The labels as predictions.csv shows them, (examples,)."""
        return table["label"].to_numpy()

    def strata(self, table: Table, task: Task) -> Array:
        """What a split or a sample keeps in proportion, (examples,)."""
        return self.targets(table, task)

    def targets(self, table: Table, task: Task) -> Array:
        """The labels as the loss takes them: int64 (examples,), positions in task["labels"]."""
        numbers = {label: number for number, label in enumerate(task["labels"])}
        return table["label"].map(numbers).to_numpy(dtype=np.int64)

    def encode(self, table: Table, task: Task, tokenizer: Any, max_length: int) -> TokenDataset:
        """The split as tensors: one sequence per example, a pair joined by the tokenizer's separator."""
        texts = [table[name].tolist() for name in task["text"]]
        return TokenDataset(tokenize(tokenizer, texts[0], texts[1] if len(texts) > 1 else None, max_length),
                            self.targets(table, task), pad_values(tokenizer), left=tokenizer.padding_side == "left")

    def loss(self, outputs: Any, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Summed cross-entropy in nats; logits (batch, labels), labels int64 (batch,), weights (labels,) or None."""
        if labels.is_floating_point():
            raise TypeError("labels are numbers with a point, not ids; say what they are by the model's problem_type")
        return F.cross_entropy(outputs["logits"].float(), labels, weight=weights, reduction="sum")

    def score(self, outputs: Any, labels: Tensor) -> Tensor:
        """Number of right predictions in the batch, on the device: the sum of train_metric over it."""
        return (outputs["logits"].detach().argmax(dim=-1) == labels).sum()

    def logits(self, outputs: Any) -> Tensor:
        """What predict() needs of the model's outputs, float32 (batch, outputs)."""
        return outputs["logits"].float()

    def head_vectors(self, hidden: Tensor, inputs: dict[str, Tensor], pad_token_id: int) -> Tensor:
        """The vector that the head reads, (batch, hidden size): GPT-2 and Llama read the last token but padding."""
        if hidden.ndim == 2:
            return hidden
        ids = inputs["input_ids"].flatten(0, -2)  # (batch or batch * options, tokens)
        places = torch.arange(ids.shape[1], device=ids.device) * (ids != pad_token_id)
        return hidden[torch.arange(len(hidden), device=ids.device), places.argmax(dim=1)]

    def tune(self, logits: Array, table: Table, task: Task, dataset: TokenDataset) -> dict[str, float]:
        """What predict() takes of `task` beside the logits, chosen on the validation split.

        temperature: what the logits are divided by so that the gold labels' cross-entropy is least (fit_temperature).
        """
        if not self.tuned:
            return {}
        logits, gold = logits.astype(np.float64), self.targets(table, task)
        rows = np.arange(len(gold))
        return {"temperature": fit_temperature(
            lambda t: (logsumexp(logits / t, axis=1) - logits[rows, gold] / t).mean())}

    def predict(self, logits: Array, table: Table, task: Task, dataset: TokenDataset) -> Table:
        """The columns of predictions.csv, in the order of `table`; logits: what logits() gives, of all examples.

        gold, predicted, correct, confidence (of the predicted label), gold_confidence, margin (the highest probability
        less the second highest), prob_<label>.
        """
        probabilities, gold = softmax(logits.astype(np.float64), axis=1), self.targets(table, task)
        names, rows = np.array(task["labels"], dtype=object), np.arange(len(gold))
        predicted, ranked = probabilities.argmax(axis=1), np.sort(probabilities, axis=1)
        return pd.DataFrame({
            "gold": names[gold], "predicted": names[predicted], "correct": predicted == gold,
            "confidence": probabilities[rows, predicted], "gold_confidence": probabilities[rows, gold],
            "margin": ranked[:, -1] - ranked[:, -2],
            **{f"prob_{name}": probabilities[:, i] for i, name in enumerate(names)}})

    def sets(self, column: pd.Series, task: Task) -> Array:
        """The labels in a column of predictions.csv, bool (examples, labels); none for what is no label."""
        return column.to_numpy()[:, None] == np.array(task["labels"], dtype=object)

    def figures(self, predictions: Table, task: Task, weights: Array) -> dict[str, Array]:
        """The metrics by name of samples in which example i occurs weights[:, i] times, (samples,) each."""
        counts = Counts(self.sets(predictions["gold"], task), self.sets(predictions["predicted"], task), weights)
        names = [name for name in self.METRICS if name not in self.NEEDS or self.NEEDS[name] in task]
        if "auroc" in task["metrics"] and f"prob_{task['positive']}" in predictions:
            positive = (predictions["gold"] == task["positive"]).to_numpy()
            counts.auroc = auroc(positive, predictions[f"prob_{task['positive']}"].to_numpy(np.float64), weights)
        else:
            names = [name for name in names if name != "auroc"]
        scores = {name: self.METRICS[name](counts, task) for name in names}
        for i, label in enumerate(task["labels"]):
            scores |= {f"precision_{label}": counts.precision[:, i], f"recall_{label}": counts.recall[:, i],
                       f"f1_{label}": counts.f1[:, i]}
        return scores

    def metrics(self, predictions: Table, task: Task) -> dict[str, float]:
        """The figures by name, the task's main metrics first."""
        scores = self.figures(predictions, task, np.ones((1, len(predictions))))
        return {name: float(scores[name][0]) for name in dict.fromkeys([*task["metrics"], *scores]) if name in scores}

    def resample(self, predictions: Table, task: Task, draws: int = 2000) -> dict[str, Array]:
        """The metrics of `draws` bootstrap samples of the examples, (draws,) each, all of one draw."""
        parts = [self.figures(predictions, task, weights) for weights in bootstrap_weights(predictions, draws)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def examples_of(self, metric: str, predictions: Table) -> int:
        """The number of examples that a metric is over."""
        return len(predictions)


class Multilabel(Kind):
    """Any number of labels; task["label"] lists their columns of 0 and 1. label: the names joined by ` | `, or none."""

    problem_type = "multi_label_classification"
    train_metric = "exact_match"
    takes_class_weights = False
    confidence_is = "probability of the whole predicted set of labels, taken as independent"
    METRICS: dict[str, Callable[..., Any]] = {
        "macro_f1": lambda counts, task: counts.f1.mean(axis=1),
        "micro_f1": lambda counts, task: ratio(2 * counts.hits.sum(1), counts.gold.sum(1) + counts.predicted.sum(1)),
        "exact_match": lambda counts, task: counts.all_right,
        "accuracy": lambda counts, task: counts.labels_right,
    }

    def read_labels(self, column: Table, task: Task) -> pd.Series:
        """The set of each row; None where a cell is missing. UserError for any other value than 0 or 1."""
        texts = column.map(lambda value: label_text(float(value) if isinstance(value, bool | np.bool_) else value))
        wrong = texts[~texts.isin(["0", "1", ""]).all(axis=1)]
        if len(wrong):
            raise UserError(f"{task['key']}: labels {wrong.iloc[0].tolist()} ({len(wrong)} rows) are not all 0 or 1")
        return pd.Series(self.names(texts == "1", task), column.index).where((texts != "").all(axis=1), None)

    def names(self, sets: Any, task: Task) -> Array:
        """The inverse of sets()."""
        labels = np.array(task["labels"], dtype=object)
        return np.array([" | ".join(labels[row]) or "none" for row in np.asarray(sets, dtype=bool)], dtype=object)

    def sets(self, column: pd.Series, task: Task) -> Array:
        """The labels in a column, bool (examples, labels)."""
        names = column.str.split(" | ", regex=False)
        return np.array([[label in row for row in names] for label in task["labels"]], dtype=bool).T

    def strata(self, table: Table, task: Task) -> Array:
        """The set of labels."""
        return table["label"].to_numpy()

    def targets(self, table: Table, task: Task) -> Array:
        """float32 (examples, labels)."""
        return self.sets(table["label"], task).astype(np.float32)

    def loss(self, outputs: Any, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Binary cross-entropy in nats, the mean over the labels, summed over the batch; both (batch, labels)."""
        per_label = F.binary_cross_entropy_with_logits(outputs["logits"].float(), labels, reduction="none")
        return per_label.mean(dim=1).sum()

    def score(self, outputs: Any, labels: Tensor) -> Tensor:
        """Number of examples whose labels are all right."""
        return ((outputs["logits"].detach() >= 0) == (labels > 0)).all(dim=1).sum()

    def tune(self, logits: Array, table: Table, task: Task, dataset: TokenDataset) -> dict[str, float]:
        """temperature: one for all labels, at which the summed binary cross-entropy is least."""
        margins = np.where(self.sets(table["label"], task), logits, -logits).astype(np.float64)
        return {"temperature": fit_temperature(lambda t: np.logaddexp(0, -margins / t).mean())}

    def predict(self, logits: Array, table: Table, task: Task, dataset: TokenDataset) -> Table:
        """A label is predicted from probability 0.5 on; the set's probability takes the labels as independent.

        confidence: of the predicted set; gold_confidence: of the gold set; margin: the least |2p - 1| of the labels.
        """
        probabilities = expit(logits.astype(np.float64))
        gold, predicted = self.sets(table["label"], task), logits >= 0
        return pd.DataFrame({
            "gold": table["label"].to_numpy(), "predicted": self.names(predicted, task),
            "correct": (gold == predicted).all(axis=1),
            "confidence": np.maximum(probabilities, 1 - probabilities).prod(axis=1),
            "gold_confidence": np.where(gold, probabilities, 1 - probabilities).prod(axis=1),
            "margin": np.abs(2 * probabilities - 1).min(axis=1),
            **{f"prob_{name}": probabilities[:, i] for i, name in enumerate(task["labels"])}})


class Regression(Kind):
    """One number per text or pair; the steps of task["scale"] name it in words and stratify. label: float64."""

    problem_type = "regression"
    train_metric = "mse"
    closed_set = takes_class_weights = False
    outputs = ("number",)
    lower_is_better = ("mse",)
    confidence_is = ""
    tuned = ()
    METRICS: dict[str, Callable[..., Any]] = {
        "pearson": lambda gold, predicted: np.corrcoef(gold, predicted)[0, 1],
        "spearman": lambda gold, predicted: np.corrcoef(pd.Series(gold).rank(), pd.Series(predicted).rank())[0, 1],
        "mse": lambda gold, predicted: np.mean((predicted - gold) ** 2),
    }

    def read_labels(self, column: pd.Series, task: Task) -> pd.Series:
        """float64; NaN where there is none. UserError for what is no number."""
        numbers = pd.to_numeric(column, errors="coerce").astype("float64")
        wrong = column[numbers.isna() & (column.map(label_text) != "")]
        if len(wrong):
            raise UserError(f"{task['key']}: label {wrong.iloc[0]!r} ({len(wrong)} rows) is no number")
        return numbers

    def steps(self, numbers: Any, task: Task) -> Array:
        """Which of task["steps"] each number falls into: equal parts of the scale, or parted at task["edges"]."""
        edges = task.get("edges", np.linspace(*task["scale"], len(task["steps"]) + 1)[1:-1])
        return np.array(task["steps"], dtype=object)[np.digitize(numbers, edges)]

    def strata(self, table: Table, task: Task) -> Array:
        """The step of each label."""
        return self.steps(table["label"], task)

    def targets(self, table: Table, task: Task) -> Array:
        """float32 (examples,)."""
        return table["label"].to_numpy(dtype=np.float32)

    def loss(self, outputs: Any, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Summed squared error; logits (batch, 1), labels float32 (batch,)."""
        return ((outputs["logits"].float().squeeze(-1) - labels) ** 2).sum()

    def score(self, outputs: Any, labels: Tensor) -> Tensor:
        """The same sum, for the log."""
        return self.loss(outputs, labels, None).detach()

    def predict(self, logits: Array, table: Table, task: Task, dataset: TokenDataset) -> Table:
        """gold and predicted are numbers; correct: they fall into the same step; there is no confidence."""
        gold, predicted = table["label"].to_numpy(np.float64), logits[:, 0].astype(np.float64)
        gold_step, predicted_step = self.steps(gold, task), self.steps(predicted, task)
        return pd.DataFrame({
            "gold": gold, "predicted": predicted, "correct": gold_step == predicted_step, "confidence": math.nan,
            "gold_confidence": math.nan, "margin": math.nan, "abs_error": np.abs(predicted - gold),
            "gold_step": gold_step, "predicted_step": predicted_step})

    def figures(self, predictions: Table, task: Task, weights: Array) -> dict[str, Array]:
        """Each of the METRICS; 0 for the correlation with what does not vary."""
        columns = [predictions[name].to_numpy(np.float64) for name in ("gold", "predicted")]
        samples = [[column.repeat(row.astype(int)) for column in columns] for row in weights]
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: np.nan_to_num([metric(*sample) for sample in samples])
                    for name, metric in self.METRICS.items()}


class MultipleChoice(Kind):
    """One of the options that each example brings, in the columns task["options"]. label: the option's name."""

    auto_class = "AutoModelForMultipleChoice"
    takes_class_weights = False  # an option's place says nothing
    confidence_is = "softmax probability of the chosen option"

    def encode(self, table: Table, task: Task, tokenizer: Any, max_length: int) -> TokenDataset:
        """A pair of sequences per option: (question, option), or, where the text has a blank `_`, parted at the blank.

        (text up to the blank, option + rest) is how github.com/allenai/winogrande fills it.
        """
        firsts, seconds = [], []
        for text, *options in table[[task["text"][0], *task["options"]]].itertuples(index=False, name=None):
            first, *rest = re.split("_+", text, maxsplit=1)
            firsts += [first.strip()] * len(options)
            seconds += [option + (rest[0] if rest else "") for option in options]
        return TokenDataset(tokenize(tokenizer, firsts, seconds, max_length), self.targets(table, task),
                            pad_values(tokenizer), len(task["options"]), left=tokenizer.padding_side == "left")

    def head_vectors(self, hidden: Tensor, inputs: dict[str, Tensor], pad_token_id: int) -> Tensor:
        """The head reads one vector per option, (batch * options, size): they stand side by side in one row."""
        return super().head_vectors(hidden, inputs, pad_token_id).reshape(len(inputs["input_ids"]), -1)


KINDS: dict[str, Kind] = {"classification": Kind(), "multilabel": Multilabel(), "regression": Regression(),
                          "multiple_choice": MultipleChoice()}
PROBLEM_TYPES = {kind.problem_type or "single_label_classification": name for name, kind in reversed(KINDS.items())}


def bootstrap_weights(predictions: Table, draws: int = 2000) -> Iterator[Array]:
    """How often each example occurs in bootstrap samples (Efron 1979), int (100, examples) at a time.

    Where there is a column `group`, whole groups are drawn: questions on one text are right or wrong together
    (Miller 2024, https://arxiv.org/abs/2411.00640, section 2.2).
    """
    unit = pd.factorize(predictions["group"])[0] if "group" in predictions else np.arange(len(predictions))
    rng, n = np.random.default_rng(SPLIT_SEED), unit.max() + 1
    for first in range(0, draws, 100):  # memory stays flat
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(100, draws - first))[:, unit]


def kind_of(task: Task) -> Kind:
    """The task's kind, which may stand in catalog/<row>.py."""
    KINDS.update(getattr(row_module(task), "KINDS", {}))
    return KINDS[task["kind"]]


def fit_temperature(loss: Callable[[float], float]) -> float:
    """The temperature from 0.05 to 20 at which `loss` is least (Guo, Pleiss, Sun & Weinberger 2017, section 4.2).

    Above 1: the model is surer of itself than it should be. At an end of the range the validation split could not
    tell, as where the model gets all of it right.
    """
    found = minimize_scalar(lambda logarithm: loss(math.exp(logarithm)), bounds=(math.log(0.05), math.log(20)),
                            method="bounded", options={"xatol": 1e-4})
    return math.exp(found.x)


def label_text(value: Any) -> str:
    """A label as text: stripped; 1.0 is "1", a missing one is "". UserError for a list or an object."""
    if isinstance(value, list | dict | np.ndarray):
        raise UserError(f"a label is a text or a number, not {value!r}: name another --label-column")
    if value is None or pd.isna(value):
        return ""
    return str(int(value) if isinstance(value, float | np.floating) and float(value).is_integer() else value).strip()


# ====================== 3. The data: a catalog entry or a file of your own -> train, validation, test ================
# A catalog entry says where the rows lie, which columns are text, the labels in the order of their ids, which split is
# which and why, and the metrics. catalog/<row>.py, where there is one, defines what that row alone needs:
# read(data_dir, task) -> {the publisher's split: table} where it is not the hub's, prepare(table) from the hub's
# columns to the task's, KINDS. A table's index numbers the source's rows; attrs["dropped"] counts what was left out.


@functools.cache
def catalog() -> dict[str, Task]:
    """Every entry of catalog/*.toml by its key, the file's [defaults] under it; with `key` and `row_file` in it."""
    entries = {}
    for path in sorted(CATALOG.glob("*.toml")):
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        defaults = tables.pop("defaults", {})
        entries |= {key: {"key": key, "row_file": path.stem, **defaults, **entry} for key, entry in tables.items()}
    return entries


def row_module(task: Task) -> Any:
    """catalog/<row>.py, or None where the row needs none."""
    name = task.get("row_file", "")
    return importlib.import_module(f"catalog.{name}") if name and (CATALOG / f"{name}.py").is_file() else None


def find_task(dataset: str, text_column: list[str] | None = None, label_column: str | None = None) -> Task:
    """A copy of the catalog's entry, checked, or an entry made for a file of one's own."""
    path = Path(dataset)
    if path.suffix.lower() in OWN_FILES:
        columns = [*(text_column or []), label_column]
        if not text_column or not label_column or len(columns) > 3 or len(set(columns)) < len(columns):
            raise UserError(f"{path} takes --text-column A [B] and --label-column L, all different")
        return {"key": path.stem, "row": "own file", "title": path.name, "kind": "classification",
                "file": str(path.resolve()), "text": text_column, "label": label_column, "labels": "from data",
                "splits": {"train": "all"}, "validation_share": 0.1, "test_share": 0.1, "max_length": 128,
                "metrics": ["accuracy", "macro_f1"], "why": "one file: 80/10/10, stratified by label with a fixed seed"}
    if dataset not in catalog():
        near = ", ".join(difflib.get_close_matches(dataset, catalog(), 3, 0.4)) or "see python train.py --list"
        raise UserError(f"no dataset {dataset!r} in the catalog ({near}), and no {', '.join(OWN_FILES)} file; a "
                        "spreadsheet is saved as CSV UTF-8")
    task = dict(catalog()[dataset])
    if fault := fault_of(task):
        raise UserError(f"catalog/{task['row_file']}.toml, [{dataset}]: {fault}")
    return task


def fault_of(task: Task) -> str:
    """What a catalog entry lacks, or names though there is no such; "" where nothing."""
    if missing := [name for name in REQUIRED if name not in task]:
        return f"it lacks {', '.join(missing)}"
    module, labels = row_module(task), task.get("labels", [])
    kinds = KINDS | getattr(module, "KINDS", {})
    if task["kind"] not in kinds:
        return f"no kind {task['kind']!r} among {', '.join(kinds)}"
    kind, named = kinds[task["kind"]], [*task.get("averaged", []), *([task["positive"]] if "positive" in task else [])]
    of_a_label = [f"{name}_{label}" for name in ("precision", "recall", "f1") for label in labels]
    faults = {f"no metric {name!r} among {', '.join(kind.METRICS)}": name not in [*kind.METRICS, *of_a_label]
              for name in task["metrics"]}
    faults |= {f"{name} needs {needs!r}": name in task["metrics"] and needs not in task
               for name, needs in kind.NEEDS.items()}
    faults |= {f"{name!r} is not among its labels": name not in labels for name in named}
    faults["raw_labels are not as many as labels"] = len(task.get("raw_labels", labels)) != len(labels)
    faults |= {f"it has neither a {name} split nor a {name}_share, the part of train that is cut off for it":
               "train" in task["splits"] and name not in task["splits"] and f"{name}_share" not in task
               for name in ("validation", "test")}
    faults["it lacks labels"] = kind.closed_set and not labels
    faults["it lacks hub, or a read() in a file beside it"] = "hub" not in task and not hasattr(module, "read")
    return next((fault for fault, holds in faults.items() if holds), "")


class Data(NamedTuple):
    """The splits of a task, ready to be encoded, and what run.json says of them."""

    task: Task
    splits: dict[str, Table]  # train, validation, test
    record: dict[str, Any]


def load_data(
    dataset: str, *, sample: bool = False, data_dir: str | Path = "data", text_column: list[str] | None = None,
    label_column: str | None = None, train_per_class: int | None = None, max_train_samples: int | None = None,
    max_eval_samples: int | None = None, max_images: int | None = None, test_only: bool = False,
    labels: list[str] | None = None, whole_file: bool = False, revision: str | None = None, like: Task | None = None
) -> Data:
    """Read, clean, split and sample a data set; UserError where it can't be had or used.

    Every draw depends on SPLIT_SEED alone: two seeds of a model train and are tested on the same examples. test_only
    takes tasks without a train split as well, and leaves the other splits out; `labels` are those of a run, for tasks
    whose labels are found in the training data; with whole_file all of a user's file is the test; with `like`, a run's
    task, it has no labels. revision: the hub's commit to ask for. record["digests"] tells whether two splits hold the
    same ids, texts and labels.
    """
    if like:
        task = like | {"file": str(Path(dataset).resolve()), "key": slug(dataset), "text": text_column, "label": None}
    else:
        task = find_task(dataset, text_column, label_column)
    kind, from_data = kind_of(task), task.get("labels") == "from data"
    if whole_file and "file" in task:
        task |= {"splits": {"test": "all"}, "why": "all of a file that the run was not trained on"}
    if "train" not in task["splits"] and not test_only:
        raise UserError(f"{dataset} has no train split; train on {' or '.join(task['trained_on'][:2])}, then python "
                        f"evaluate.py --run FOLDER_OF_THAT_RUN --dataset {dataset}")
    if test_only and not from_data and "test" in task["splits"]:
        task["splits"] = {"test": task["splits"]["test"]}  # nothing has to be cut from train, nor learned from it
    task |= {"revision": revision} if revision else {}
    raw, revision = read_source(task, CATALOG / "samples" if sample else Path(data_dir), sample, max_images)
    if from_data:
        task["labels"] = labels or labels_in(raw, task)
    cleaned = {name: clean(raw.pop(name), name, task, kind) for name in list(raw)}  # a large file is not held twice
    splits = make_splits({name: table for name, (table, _) in cleaned.items()}, task, kind)
    splits = {"test": splits["test"]} if test_only else splits
    record = {"source": task.get("file", "catalog/samples, rows of our own writing" if sample else task.get("source")),
              "revision": revision, "why": task["why"], "rows": {name: len(table) for name, table in splits.items()},
              "digests": {name: hashlib.sha256(table.to_json().encode()).hexdigest() for name, table in splits.items()}}
    for name, table in splits.items():
        if table.empty:
            dropped = cleaned[name][1] if name in cleaned else {}
            raise UserError(f"{dataset}: the {name} split holds no example with a label and a text; rows dropped: "
                            f"{dropped}; a split whose labels are hidden is no test split")
        rng, strata, rows = np.random.default_rng(SPLIT_SEED), kind.strata(table, task), np.arange(len(table))
        if name == "train" and train_per_class:
            places = np.unique(strata, return_inverse=True)[1]
            rows = draw_rows(places, [train_per_class] * (places.max() + 1), rng)
        most = max_train_samples if name == "train" else max_eval_samples
        rows = rows[stratified_rows(strata[rows], most or len(rows), rng)]
        splits[name] = table.iloc[rows].reset_index(drop=True)
    if kind.closed_set and "train" in splits and splits["train"]["label"].nunique() < 2:
        raise UserError(f"{dataset}: all training examples that are left have the same label: nothing to learn")
    return Data(task, splits, record | {
        "used": {name: len(table) for name, table in splits.items()},
        "labels": {name: dict(Counter(table["label"] if kind.closed_set else kind.strata(table, task)).most_common(100))
                   for name, table in splits.items()},
        "dropped": {name: dropped for name, (_, dropped) in cleaned.items() if any(dropped.values())},
        "leakage": {f"train/{name}": {"n": int(found.sum()), "share": float(found.mean())} for name, found in (
            (name, stand_in(table, splits["train"], task)) for name, table in splits.items()
            if "train" in splits and name != "train")}})


def read_source(task: Task, data_dir: Path, sample: bool = False, max_images: int | None = None
                ) -> tuple[dict[str, Table], str | None]:
    """The source's own splits by its names, in the task's columns, and the hub's commit; `task` may get other columns.

    With `sample`, an entry that names another key under `sample` takes that one's files, columns and raw labels.
    """
    if "file" in task:
        path, columns = Path(task["file"]), [*task["text"], *([task["label"]] if task["label"] else [])]
        readers = {".jsonl": functools.partial(read_jsonl, dtype=object), ".parquet": pd.read_parquet}
        with loading(str(path), "is it what its ending says?"):
            read = readers.get(path.suffix.lower(), functools.partial(read_csv, required=columns, ours=False))
            table = read(path)
            for name in table.columns[table.dtypes.astype(str).str.lower() == "float32"]:  # its 0.1 is none of Python's
                table[name] = table[name].to_numpy("float32", na_value=np.nan).astype(str).astype(float)
            return {"all": table}, None
    if sample and "sample" in task:
        other, kept = catalog()[task["sample"]], {*REQUIRED, *OF_LABELS, "key"} - {"splits", "text", "label"}
        task |= {name: value for name, value in other.items() if name not in kept}
        task |= {"raw_labels": other.get("raw_labels", other["labels"])} if "labels" in other else {}
    module = row_module(task)
    if hasattr(module, "read") and ("hub" not in task or "images" in task):
        asked = task | {"max_images": max_images}
        with loading(f"{task['key']}, as {task['source']} published it, from {data_dir}",
                     "delete a broken file to have it fetched again, or put the right one there by hand"):
            return module.read(data_dir, asked), asked.get("revision")
    raw, revision = read_hub(task, data_dir)
    return {name: getattr(module, "prepare", lambda same: same)(table) for name, table in raw.items()}, revision


def read_hub(task: Task, data_dir: Path) -> tuple[dict[str, Table], str | None]:
    """The task's splits from DIR/<hub id>/<config>/<split>.jsonl, else from the hub, all of one commit.

    `data_files` ({split: file}) names single files of a repository whose splits datasets would guess wrong: it merges
    every test*.csv into one test split.
    """
    hub, tables, revision = task["hub"], {}, task.get("revision")
    for name in sorted(set(task["splits"].values())):
        config = task.get("configs", {}).get(name, task.get("config"))
        local = data_dir / hub / (config or "default") / f"{name}.jsonl"
        if local.is_file():
            with loading(str(local), "mend the file, or move it away to have the hub's"):
                tables[name] = read_jsonl(local)
            continue
        if data_dir == CATALOG / "samples":
            raise UserError(f"{task['key']} has no sample rows: {local} is missing")
        with loading(f"the dataset {hub}"):
            if "data_files" in task:
                path = hf_hub_download(hub, task["data_files"][name], repo_type="dataset", revision=revision)
                tables[name], found = pd.read_csv(path, keep_default_na=False), path
            else:
                rows = datasets.load_dataset(hub, config, split=name, revision=revision)
                tables[name], found = rows.to_pandas(), f"{rows.info.download_checksums} {rows.cache_files}"
        commit = re.search(r"[@/]([0-9a-f]{40})/", found)
        revision = commit[1] if commit else revision  # the other splits come from the same commit
    return tables, revision


@contextmanager
def loading(what: str, ways_on: str = "check the name, give a folder, or go on without: --sample; a gated one takes "
            "its terms accepted on its page and `hf auth login`") -> Iterator[None]:
    """Turn what goes wrong while `what` is fetched or read into one line: the library's first, and the ways on.

    Every exception: each library has its own, and on a broken file any of Python's comes out of them.
    """
    try:
        yield
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        why = f"{type(error).__name__}: {' '.join(lines[:2])[:200]}"
        raise UserError(f"could not load {what}: {why}; {ways_on}") from error


def fetch(path: Path, url: str = "", how: str = "") -> Path:
    """`path`, fetched from `url` where it is not there, whole or not at all; UserError says `how` to get it by hand."""
    if path.exists():
        return path
    if not url:
        raise UserError(f"{path} is missing and can't be fetched; put it there by hand: {how}")
    print(f"fetching {url} to {path}")

    def download(part: Path) -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "common.py"})  # some servers refuse urllib's own
        try:
            with urllib.request.urlopen(request, timeout=60) as reply, part.open("wb") as file:
                shutil.copyfileobj(reply, file)
                if file.tell() < int(reply.headers["Content-Length"] or 0):  # what breaks off raises nothing
                    raise OSError(f"{file.tell()} of {reply.headers['Content-Length']} bytes came")
        except OSError as error:
            raise UserError(f"could not fetch {url}: {error}; put the file at {path} by hand, or go on without: "
                            "--sample") from error

    write_whole(path, download)
    return path


def read_strings(source: Any) -> Table:
    """A .csv file with every cell as text, as it stands: "" and "NA" stay."""
    return pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def read_lines(path: Any) -> list[str]:
    r"""The lines of a text file, cut at \n alone: str.splitlines would also cut at a text's own U+0085 or U+2028."""
    return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")


def read_jsonl(path: Any, dtype: Any = None) -> Table:
    """A .jsonl file, an object per line; ValueError names the line that is none. dtype=object: numbers stay exact."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            rows += [{**json.loads(line)}] if line.strip() else []
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} is no JSON object: {line[:60]}") from error
    return pd.DataFrame(rows, dtype=dtype)


def keep(table: Table, wanted: pd.Series, why: str) -> Table:
    """The `wanted` rows; the others are counted under `why`, the reason for leaving them out."""
    kept = table[wanted]
    kept.attrs["dropped"] = {**table.attrs.get("dropped", {}), why: int((~wanted).sum())}
    return kept


def labels_in(raw: dict[str, Table], task: Task) -> list[str]:
    """The labels of train and validation together, or of a user's file, in which -1 is a label like any other."""
    names = [theirs for ours, theirs in task["splits"].items() if ours != "test"] or list(raw)
    found = set().union(*(require(raw[name], [task["label"]], task)[task["label"]].map(label_text) for name in names))
    labels, rows = sorted(found - ({""} if "file" in task else {"", "-1"})), sum(map(len, raw.values()))
    if len({re.sub(r"[\s\u200b-\u200f\ufeff]", "", name.casefold()) for name in labels}) < len(labels):
        print(f"labels that look alike are taken for different ones: {', '.join(map(repr, labels[:50]))}")
    if len(labels) < 2 or ("file" in task and len(labels) > max(20, rows / 2)):
        raise UserError(f"{task['key']}: column {task['label']!r} holds {len(labels)} labels in {rows} rows; it takes "
                        "two or more, and at most one in two rows: is it another column that holds the label?")
    return labels


def text_columns(task: Task) -> list[str]:
    """The columns that hold the task's inputs as text: texts, then options, then the image's id."""
    return [*task["text"], *task.get("options", []), *([task["image"]] if "image" in task else [])]


def require(table: Table, columns: Iterable[str], task: Task) -> Table:
    """The table; UserError where a column is missing."""
    for name in columns:
        if name not in table:
            near = difflib.get_close_matches(name, map(str, table.columns), 1)
            raise UserError(f"{task['key']}: no column {name!r} among {', '.join(map(str, table.columns))}"
                            + (f"; did you mean {near[0]}?" if near else ""))
    return table


def clean(raw: Table, split: str, task: Task, kind: Kind) -> tuple[Table, dict[str, int]]:
    """The rows that can be used: id (<split>-<row in the source>), texts, label, group; and counts of the dropped.

    Texts stay as they stand; UserError for a cell that is no text, or holds half of a UTF-16 pair, which no tokenizer
    takes, and for a text column with a name that predictions.csv needs.
    """
    names = text_columns(task)
    require(raw, [*names, *(np.atleast_1d(task["label"]) if task["label"] else [])], task)
    table = pd.DataFrame({"id": [f"{split}-{number:06d}" for number in raw.index]})
    for name in names:
        if RESERVED.fullmatch(name):
            raise UserError(f"{task['key']}: predictions.csv has a column {name!r} of its own; rename the text column")
        texts = raw[name].reset_index(drop=True)
        texts = texts.map(label_text) if name == task.get("image") else texts.where(texts.notna(), "")
        wrong = texts[~texts.map(lambda text: isinstance(text, str) and not re.search("[\ud800-\udfff]", text))]
        if len(wrong):
            raise UserError(f"{task['key']}: column {name!r} holds {len(wrong)} cells that are no text, such as "
                            f"{wrong.iloc[0]!r} in row {wrong.index[0] + 1}")
        table[name] = texts
    if task.get("group") in raw:
        table["group"] = pd.factorize(raw[task["group"]])[0]
    if task["label"]:
        table["label"] = kind.read_labels(raw[task["label"]].reset_index(drop=True), task)
    else:  # a file without labels: something has to stand there, which nobody reads
        table["label"] = {"multilabel": "none", "regression": 0.0}.get(task["kind"], task.get("labels", [""])[0])
    no_text, no_label = table[names].map(str.strip).eq("").any(axis=1), table["label"].isna()
    return table[~no_text & ~no_label].reset_index(drop=True), {
        **raw.attrs.get("dropped", {}), "without a label": int(no_label.sum()),
        "without a text": int((no_text & ~no_label).sum())}


def make_splits(source: dict[str, Table], task: Task, kind: Kind) -> dict[str, Table]:
    """train, validation and test; those that the source lacks are cut from its train, stratified, with SPLIT_SEED.

    A cut is the catalog's share of train, and no less than a tenth of it up to 1,000 examples: with fewer, chance
    chooses the epoch. Rows of one group stay together, or validation would hold texts that were seen in training.
    """
    splits = {name: source[theirs] for name, theirs in task["splits"].items()}
    if "train" not in splits:
        return splits
    train, left = splits["train"], np.arange(len(splits["train"]))
    for name in ("test", "validation"):
        if name in splits:
            continue
        size = max(round(task[f"{name}_share"] * len(train)), min(math.ceil(len(train) / 10), 1000))
        rng, rest = np.random.default_rng(SPLIT_SEED), train.iloc[left]
        rows = (whole_groups(rest["group"], size, rng) if "group" in rest
                else stratified_rows(kind.strata(rest, task), size, rng))
        splits[name] = rest.iloc[rows].reset_index(drop=True)
        left = np.delete(left, rows)
    splits["train"] = train.iloc[left].reset_index(drop=True)
    return {name: splits[name] for name in ("train", "validation", "test")}


def whole_groups(groups: pd.Series, total: int, rng: np.random.Generator) -> Array:
    """Positions of the rows of randomly drawn groups, ascending: no more groups than it takes for `total` rows."""
    places = pd.factorize(groups)[0]
    order = rng.permutation(places.max() + 1)
    drawn = order[:np.searchsorted(np.cumsum(np.bincount(places)[order]), total) + 1]
    return np.flatnonzero(np.isin(places, drawn))


def stratified_rows(strata: Array, total: int, rng: np.random.Generator) -> Array:
    """Positions of `total` rows (all, where there are fewer), each stratum in proportion, ascending.

    Shares are rounded by largest remainder; where `total` allows, no stratum that has rows goes empty.
    """
    _, places, counts = np.unique(strata, return_inverse=True, return_counts=True)
    total = min(total, len(strata))
    exact = counts * (total / max(len(strata), 1))
    take = np.maximum(np.floor(exact), 1 if total >= len(counts) else 0).astype(int)
    by_remainder = np.argsort(take - exact, kind="stable")  # the stratum that is owed most comes first
    while take.sum() != total:
        step = 1 if take.sum() < total else -1
        for i in by_remainder[::step]:
            if take.sum() != total and 1 <= take[i] + step <= counts[i]:
                take[i] += step
    return draw_rows(places, take, rng)


def draw_rows(places: Array, take: Iterable[int], rng: np.random.Generator) -> Array:
    """Up to take[i] rows at random of those whose place is i (int, (rows,)): their positions, ascending."""
    groups = np.split(np.argsort(places, kind="stable"), np.cumsum(np.bincount(places)))[:-1]
    picked = [rng.permutation(group)[:n] for group, n in zip(groups, take, strict=True)]
    return np.sort(np.concatenate(picked)) if picked else np.array([], dtype=int)


def stand_in(table: Table, train: Table, task: Task) -> Array:
    """Which rows have the words of a training row, in their order, bool (rows,).

    Case, punctuation and white space do not count; of a text without a word, such as a single emoji, all counts.
    """
    def keys(table: Table) -> list[int]:
        return [hash(tuple(" ".join(re.findall(r"\w+", text.casefold())) or text for text in row))
                for row in table[text_columns(task)].itertuples(index=False, name=None)]

    return np.isin(keys(table), keys(train))


# ================================== 4. The model: tokenizer, head, precision, prediction =============================
for library in (transformers, datasets, huggingface_hub):
    library.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # else the hub is asked to convert a model's pickle
torch.backends.cuda.enable_cudnn_sdp(False)  # torch's first choice from Hopper on plans each new length anew
for option in (-1, -3) if sys.platform == "linux" else ():  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: freed memory is
    ctypes.CDLL(None).mallopt(option, 2**30)  # kept; else the large gradients of each step take fresh pages again


def load_model(name: str, task: Task, dropout: float | None = None, own: bool = False) -> tuple[Any, Any]:
    """Tokenizer and model of a hub id or a folder, with a head for the task; UserError where they can't be had.

    A head that was trained for other labels is replaced by a new one (printed); with `own`, a run's model, nothing may
    be replaced. Weights are read from safetensors only, and code that lies beside them is not run.
    """
    kind = kind_of(task)
    with loading(f"the model {name}"):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        wanted, found = head_config(task, kind), list(config.id2label.values())
        if own and found != [*wanted["id2label"].values()]:
            raise UserError(f"the model in {name} is of the labels {found[:9]}, the run has others: it was replaced")
        for key, value in wanted.items():
            setattr(config, key, value)
        if kind.model_types and config.model_type not in kind.model_types:
            raise UserError(f"{task['kind']} takes a {' or '.join(kind.model_types)} model, not {config.model_type}")
        if config.model_type in ("fnet", "yoso"):  # they mix padding in with the tokens
            raise UserError(f"a {config.model_type} model sees the padding, so its figures hang on the batches")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        adapt(config, tokenizer, dropout)
        model, report = getattr(transformers, kind.auto_class).from_pretrained(
            name, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True,
            dtype="float32", trust_remote_code=False)
    replaced = [key for key, *_ in report["mismatched_keys"]]
    absent = [key for key in [*report["missing_keys"], *replaced] if own or (  # some are pretrained without a pooler
        key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key)]
    tokens, embeddings = len(tokenizer), getattr(config, "vocab_size", None) or len(tokenizer)
    if absent:
        raise UserError(f"{name} lacks {len(absent)} weights of a {config.model_type} model, or has them in another "
                        f"shape, such as {sorted(absent)[0]}; take another model")
    if not len(tokenizer.all_special_tokens) < tokens <= embeddings:
        raise UserError(f"{name}: the tokenizer has {tokens} tokens, the model {embeddings}; they are no pair")
    if replaced:
        print(f"the head of {name} has another number of labels: it is replaced by a new one")
    return tokenizer, model


def head_config(task: Task, kind: Kind) -> dict[str, Any]:
    """What the model's config has to know of the task."""
    names = kind.outputs or tuple(task["labels"])
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "problem_type": kind.problem_type,
            "label2id": {name: number for number, name in enumerate(names)}}


def dropout_rates(config: Any) -> dict[str, float]:
    """The dropout rates of a model's config, by the names that its family calls them."""
    return {name: value for name, value in vars(config).items()
            if re.search("dropout|pdrop", name) and isinstance(value, float | int)}


def adapt(config: Any, tokenizer: Any, dropout: float | None) -> None:
    """Set every dropout rate that `config` has (None: the model's own), and the padding token where there is none.

    The heads of GPT-2, Llama and the like look for the last token that is not padding.
    """
    for name in dropout_rates(config) if dropout is not None else ():
        setattr(config, name, dropout)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError("the tokenizer has neither a padding nor an end-of-text token, so texts can't be batched")
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    if getattr(config, "type_vocab_size", 2) < 2:  # a RoBERTa with the tokenizer of a BERT
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    tokenizer.padding_side = "left" if config.model_type == "xlnet" else "right"  # XLNet's head reads the last place


def build_sample_model(data: Data, dropout: float | None = None) -> tuple[Any, Any]:
    """What --sample trains: a word-level tokenizer over the training texts, two layers with random weights."""
    kind, train = kind_of(data.task), data.splits["train"]
    tokenizer = word_tokenizer(text for name in text_columns(data.task) for text in train[name])
    config = getattr(transformers, kind.sample_config)(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        **head_config(data.task, kind))
    adapt(config, tokenizer, dropout)
    return tokenizer, getattr(transformers, kind.auto_class).from_config(config)


def word_tokenizer(texts: Iterable[str]) -> Any:
    """A lower-casing tokenizer whose vocabulary is the words and marks of `texts`, the most frequent ones first."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=10**6, special_tokens=marks))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=512, model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def check_length(tokenizer: Any, model: Any, wanted: int) -> None:
    """UserError where the model has fewer than `wanted` positions, or special tokens leave no room for a text."""
    positions = getattr(model.config, "max_position_embeddings", None) or wanted
    for name, module in model.named_modules():  # RoBERTa and its like count positions from pad_token_id + 1 on
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    most = min(positions if positions > 0 else wanted, tokenizer.model_max_length)  # XLNet's -1 is no limit
    least = 4 * tokenizer.num_special_tokens_to_add(pair=True) + 1
    if not least <= wanted <= most:
        raise UserError(f"--max-length {wanted} is not from {least} to {most}, which this model takes")


def model_revision(name: str) -> str | None:
    """The commit of a model on the hub, by the hub client's cache; None of a folder."""
    path = None if Path(name).is_dir() else try_to_load_from_cache(name, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


def model_card(name: str) -> dict[str, Any]:
    """Licence, languages, training data and base model by the model's card, the README.md beside its weights; or {}."""
    try:
        card = ModelCard.load(Path(name, "README.md") if Path(name).is_dir() else name, ignore_metadata_errors=True)
    except (EntryNotFoundError, ValueError, yaml.YAMLError):  # there is none, or a broken one
        return {}
    facts = card.data.to_dict()
    return {key: facts[key] for key in ("license", "language", "datasets", "base_model") if facts.get(key)}


def choose_precision(wanted: str = "auto") -> str:
    """fp32, fp16 or bf16 for `wanted`; auto is what the hardware multiplies natively.

    bf16 by software is several times slower than fp32, so a CPU needs AVX512-BF16 or AMX for it, a GPU Ampere or later.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native and not torch.backends.mps.is_available() else "fp32"


def pick_device() -> torch.device:
    """The GPU (the first one; of several processes each has its own), Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


class Outputs(NamedTuple):
    """What predict() returns, in the order of the data set."""

    logits: Array  # float32 (items, ...), what kind.predict takes; an item is an example, or a window of one
    vectors: Array  # float32 (examples, size): what the head's last layer sees, of an example's first item
    loss: float | None  # what `loss` gave, summed over the batches
    seconds: float  # of the forward passes, copies to the host included


def predict(model: Any, dataset: TokenDataset, kind: Kind, batch_size: int, precision: str = "fp32",
            loss: Callable[[Any, Tensor], Tensor] | None = None) -> Outputs:
    """Run the model over the data set, the longest items first: memory shows at once whether it suffices.

    Where it does not, batches are halved. Several processes share the items, and each returns the whole. batch_size:
    items per forward pass; precision: fp32, fp16 or bf16.
    """
    rows = np.argsort(-dataset.lengths, kind="stable")[PROCESS::PROCESSES]
    parts, done, total, start = [], 0, torch.zeros((), device=model.device), time.perf_counter()
    with progress("prediction", total=len(rows)) as bar:
        while done < len(rows):
            picked = rows[done:done + batch_size]
            batch = dataset.collate([dataset[i] for i in picked])  # while a GPU is still at work on the batch before
            parts[-1:] = map(to_host, parts[-1:])
            try:
                outputs, logits, vectors = forward(model, batch, kind, precision)
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or len(picked) == 1:
                    raise
                batch_size = -(-len(picked) // 2)
                continue
            total += loss(outputs, batch["labels"].to(model.device)) if loss else 0
            parts.append((picked, logits, vectors))
            done += len(picked)
            bar.update(len(picked))
    parts[-1:] = map(to_host, parts[-1:])
    total, seconds = total.item(), time.perf_counter() - start
    if PROCESSES > 1:
        parts, total = gather_object(parts), sum(gather_object([total]))
    logits, vectors = (np.zeros((len(dataset), *np.max([part[i].shape[1:] for part in parts], axis=0)), np.float32)
                       for i in (1, 2))
    for picked, some_logits, some_vectors in parts:
        logits[(picked, *map(slice, some_logits.shape[1:]))] = some_logits  # those per token: fewer in shorter items
        vectors[picked] = some_vectors
    first_items = np.unique(dataset.examples, return_index=True)[1]
    return Outputs(logits, vectors[first_items], total if loss else None, seconds)


def to_host(part: tuple[Any, Any, Any]) -> tuple[Array, Array, Array]:
    """Rows, logits and vectors as arrays; the host waits for the device here."""
    return part[0], *(torch.as_tensor(tensor).cpu().numpy() for tensor in part[1:])


def forward(model: Any, batch: dict[str, Tensor], kind: Kind, precision: str) -> tuple[Any, Tensor, Tensor]:
    """The model's outputs of one batch; logits (kind.logits) and head vectors (kind.head_vectors), float32.

    A vector is the input of the head's last linear layer; where that is one per token, of the token that the head
    reads, or the mean over all that it takes the mean of.
    """
    seen: list[Any] = []
    hook = head_layer(model)[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, dtype, enabled=dtype is not None):
            outputs = model(**inputs)
            if getattr(model.config, "classifier_pooling", "") == "late":  # EuroBERT takes the mean of all tokens
                mask = inputs["attention_mask"].unsqueeze(-1)
                seen[0] = (seen[0] * mask).sum(dim=-2) / mask.sum(dim=-2)
            vectors = kind.head_vectors(seen[0], inputs, model.config.pad_token_id).float()
            return outputs, kind.logits(outputs), vectors
    finally:
        hook.remove()


def head_layer(model: Any) -> tuple[str, Any]:
    """Name and module of the last linear layer: of the head, which RoBERTa's family defines before the body."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    of_head = [(name, layer) for name, layer in layers if f".{model.base_model_prefix}." not in f".{name}"]
    return (of_head or layers)[-1]


def progress(label: str, **options: Any) -> Any:
    """A tqdm bar; where stderr is no terminal (a notebook's shell cell, a file) it writes few lines."""
    return tqdm(desc=label, leave=False, dynamic_ncols=True, disable=PROCESS > 0,
                mininterval=0.2 if sys.stderr.isatty() else 10.0, **options)


# =================================== 5. The run folder: runs/<dataset>/<model>/seed<k>/ ==============================


def slug(name: str) -> str:
    """A data set's or a model's name as one folder name, of a file or a folder the last part; a/b becomes a--b."""
    path = Path(name)
    name = path.stem if path.suffix.lower() in OWN_FILES else path.resolve().name if path.is_dir() else name
    return re.sub(r"[^\w.+-]+", "-", name.strip("/").replace("/", "--")) or "unnamed"


def find_run(args: Any) -> tuple[Path, dict[str, Any]]:
    """The finished run that --run, or --dataset, --model and --seed name, and its run.json; the newest one of several.

    With --run and another --dataset than the run's: the folder of its test on that one. UserError where there is none.
    """
    if args.run:
        folder = args.run
        if args.dataset and slug(args.dataset) != read_run(folder)["dataset"]:
            folder = folder / f"on-{slug(args.dataset)}"
        return folder, read_run(folder)
    if not args.dataset:
        raise UserError("neither --dataset nor --run given; python train.py --list prints the keys")
    model = slug(args.model) if args.model else SAMPLE_MODEL if args.sample else "*"
    pattern = f"{slug(args.dataset)}/{model}/seed{'*' if args.seed is None else args.seed}/run.json"
    runs = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in args.runs_dir.glob(pattern)}
    runs = {folder: run for folder, run in runs.items()
            if run["finished"] and run["sample"] == (args.sample or model == SAMPLE_MODEL)}
    if not runs:
        raise UserError(f"no finished run in {args.runs_dir / pattern}; train one first: python train.py --dataset "
                        f"{args.dataset}" + " --sample" * args.sample)
    newest = max(runs, key=lambda folder: runs[folder]["finished"])
    if len(runs) > 1:
        print(f"{len(runs)} finished runs match; taking the newest, {newest}")
    return newest, runs[newest]


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a finished run."""
    path = folder / "run.json"
    run = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not run.get("finished"):
        raise UserError(f"{folder} holds no finished run; train.py makes one, with --resume it goes on with one")
    return run


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `path`, sync what it wrote and rename it: a reader sees all of it or nothing."""
    part = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the ending, by which savers choose a format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:  # such as a sheet that a spreadsheet holds open
        raise UserError(f"could not write {path}: {error.strerror}; what was written before is whole") from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; half of a UTF-16 pair, which that lacks, becomes `?`."""
    write_whole(path, lambda part: part.write_bytes(text.encode("utf-8", "replace")))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


# A spreadsheet runs a cell that begins with one of these as a formula (CWE-1236). Such a text gets an apostrophe in
# front, which a spreadsheet shows as text; so does a text that already looks escaped, and reading takes one off again.
FORMULA = re.compile(r"'*[\s\0]*[=+\-@＝＋－＠]|'*[\t\r]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape_formula(text: str) -> str:
    """`text` as a spreadsheet shows it unrun; plain numbers stay as they are."""
    return "'" + text if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def unescape_formula(text: str) -> str:
    """What escape_formula was given."""
    return text[1:] if text[:1] == "'" and FORMULA.match(text[1:]) else text


def write_csv(path: Path, table: Table) -> None:
    """Write `table` as UTF-8 with BOM, comma-separated (RFC 4180); None and NaN are empty cells; texts are escaped."""
    def cell(value: Any) -> Any:
        if isinstance(value, str):
            return escape_formula(value)
        return "" if value is None or value != value else value  # NaN alone is not itself

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
            columns = [column.tolist() for _, column in table.items()]  # Python's own numbers, whose text is exact
            csv.writer(file).writerows(map(cell, row) for row in [table.columns, *zip(*columns, strict=True)])

    write_whole(path, write)


def decode(path: Path) -> str:
    """A text file: UTF-8, UTF-16 where it says so, or, where neither fits, Windows-1252 (printed)."""
    content = path.read_bytes()
    is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig", errors="surrogatepass")
    except UnicodeDecodeError:
        if b"\0" in content:
            raise UserError(f"{path} is no text; save the sheet as CSV UTF-8 (.xlsx is not read)") from None
        print(f"{path} is not UTF-8: read as Windows-1252")
        return content.decode("cp1252", errors="replace")


def sections_of(markdown: str) -> dict[str, str]:
    """{heading: text} by the `## ` headings."""
    _, *parts = re.split(r"^##(?!#)[ \t]*(.*?)[ \t#]*$", markdown.replace("\r", ""), flags=re.MULTILINE)
    return {title: part.strip() for title, part in zip(parts[::2], parts[1::2], strict=True)}


def read_csv(path: Path, numbers: tuple[str, ...] = (), required: Iterable[str] = (), ours: bool = True) -> Table:
    """A CSV file of ours, or what a person saved of it or wrote, every cell as text, those of `numbers` as float64.

    Comma, semicolon or tab, whichever makes the columns `required`. In a .tsv file quotation marks are text. Blank rows
    are passed over, short ones filled up.

    numbers: names, or prefixes that end in `_`; an empty cell is NaN. ours: cells are unescaped.
    UserError where the file, a column or its place in a row is missing or there twice.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing" + "; the script that writes it has not been run on this run yet" * ours)
    text, is_tsv = decode(path), path.suffix.lower() == ".tsv"
    csv.field_size_limit(2**31 - 1)  # a text may be longer than csv's default of 131,072 characters
    for delimiter in "\t" if is_tsv else ",;\t":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter,
                            quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL)
        header, *rows = [row for row in reader if any(row)] or [[]]
        header = [unescape_formula(name) if ours else name for name in header]
        if set(required) <= set(header):
            break
    else:
        header = next(csv.reader(io.StringIO(text, newline="")), [])
        missing = ", ".join(sorted(set(required) - set(header)))
        raise UserError(f"{path} has no column {missing}; its first line, which names them, has {', '.join(header)}")
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise UserError(f"{path} has the column {twice[0]!r} twice; rename one")
    for number, row in enumerate(rows, start=2):
        if len(row) > len(header):
            raise UserError(f"{path}, row {number} has {len(row)} cells under {len(header)} column names")
    cells = [[*(map(unescape_formula, row) if ours else row), *[""] * (len(header) - len(row))] for row in rows]
    table = pd.DataFrame(cells, columns=header, dtype=object)
    for name in header:
        if name in numbers or name.startswith(tuple(prefix for prefix in numbers if prefix.endswith("_"))):
            table[name] = np.array([float(cell or "nan") for cell in table[name]])  # pandas 2 rounds otherwise
    return table


def read_predictions(folder: Path) -> Table:
    """predictions.csv of a run: text columns, `correct` as bool, probabilities and the like as float64."""
    numbers = ("confidence", "gold_confidence", "margin", "prob_", "abs_error", "f1")
    table = read_csv(folder / "predictions.csv", numbers, ["id", "gold", "predicted", "correct"])
    table["correct"] = table["correct"].str.casefold() == "true"
    return table


def new_figure(width: float = 4.0, height: float = 3.0, **subplots: Any) -> tuple[Any, Any]:
    """A matplotlib figure (inches) and its axes; its text has 7 points or more in a column of 8 cm."""
    installed = set(font_manager.get_font_names())
    matplotlib.rcParams.update({
        "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 9, "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "text.parse_math": False,  # a `$` in a label is a dollar sign
        "font.family": ["DejaVu Sans", *(name for name in FONTS if name in installed)]})
    figure = Figure(figsize=(width, height), layout="constrained")  # without pyplot it needs no screen
    return figure, figure.subplots(**subplots)


def save_figure(figure: Any, path: Path, note: str = "") -> None:
    """Write `figure` as PNG at 200 dpi with `note` below it; what no font can draw becomes a box."""
    if note:
        figure.supxlabel(textwrap.fill(note, int(14 * figure.get_figwidth())), fontsize=9, color="0.4")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently")
        write_whole(path, lambda part: figure.savefig(part, dpi=200))


def describe_run(run: dict[str, Any], evaluated: int | None = None) -> str:
    """What stands under every picture: data set, model, seed, and that figures are of samples or of a part."""
    whole = run["data"]["rows"]["test"]
    parts = [run["dataset"], f"{Path(run['model']).name}, seed {run['seed']}"]
    parts += ["--sample: figures mean nothing"] if run["sample"] else []
    parts += [f"{evaluated} of {whole} test examples"] if evaluated is not None and evaluated < whole else []
    return "; ".join(parts)
