"""The lesson: how a pretrained model is fine-tuned, and what the five scripts share.

Read it from the top; each part rests on the ones above it only where it says so.

1. The loop          CustomTrainer: epochs, forward, loss, backward, clipping, optimizer step, schedule, checkpoints
2. The task kinds    how an example becomes tensors, logits a prediction, predictions a score
3. The data          catalog entry -> raw rows -> train, validation, test -> samples
4. The model         tokenizer, head, precision, prediction
5. The command line  flags that mean the same in all five scripts
6. The run folder    run.json, the CSV files, the figures

Try it:  python train.py --dataset mrpc --sample && python evaluate.py --dataset mrpc --sample
"""

import argparse
import contextlib
import csv
import dataclasses
import difflib
import errno
import functools
import http.client
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import random
import re
import shutil
import signal
import string
import sys
import tarfile
import tempfile
import textwrap
import time
import tomllib
import urllib.request
import warnings
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import pandas as pd

CATALOG_DIR = Path(__file__).parent / "catalog"
DEFAULT_MODEL = "google-bert/bert-base-uncased"
DEFAULT_SEED = 42
SAMPLE_MODEL = "sample"  # the name that runs of --sample stand under
SPLIT_SEED = 13  # splits and samples of the data do not move with --seed, so that seeds differ in the training alone
HIDDEN_LABEL = -1  # how GLUE and others mark the labels that they keep to themselves
# How a data file of the user's own is read, by its ending; texts and labels as they stand, "NA" and "null" included.
TABLE_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: read_delimited(path),
    ".tsv": lambda path: read_delimited(path, sep="\t", quoting=csv.QUOTE_NONE),
    ".jsonl": lambda path: read_objects(path),
    ".parquet": pd.read_parquet,
}
PREDICTION_COLUMNS = ("gold", "predicted", "correct", "confidence", "gold_confidence", "margin")  # of every kind
# Columns of the scripts' tables that stand beside the task's own, and beginnings of such: no names for texts.
RESERVED_COLUMNS = ("id", "split", "label", *PREDICTION_COLUMNS, "abs_error", "gold_step", "predicted_step", "f1",
                    "raw_output")
RESERVED_PREFIXES = ("prob_", "llm_", "who_is_right_")
DROPOUT_NAMES = (  # what the model families call their dropout rates
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "seq_classif_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "pooler_dropout", "embedding_dropout",
    "mlp_dropout")
COMPLETE = "complete.json"  # written last into a checkpoint: the size of each of its files
# What the system says where a disk is full, over its quota, past the largest file, or broken.
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
LOST_PROCESS = r"Connection (closed|reset) by peer|remote process exited|Broken pipe"  # in the words of gloo and NCCL
TOKENIZED_AT_ONCE = 1000  # texts: a tokenizer's lists take many times the memory of the arrays made of them
SECONDS_BETWEEN_WRITES = 5  # of history.csv and steps.csv while an epoch runs
EVAL_TIMES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")  # Trainer's, not ours to keep
# Where installed, these draw what matplotlib's own DejaVu Sans lacks. (It cannot use colour emoji: they are bitmaps.)
FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "Hiragino Sans",
                  "PingFang SC", "Malgun Gothic", "Noto Sans Devanagari", "Noto Sans Ethiopic", "Noto Emoji", "Symbola",
                  "Arial Unicode MS")
PLACEHOLDER = "□"
# Number columns of predictions.csv; a name that ends in _ is a prefix.
PREDICTION_NUMBERS = ("confidence", "gold_confidence", "margin", "prob_", "abs_error", "f1")


class UserError(Exception):
    """Something the user can mend: one line that says what was given, what is allowed and how to go on. Exit code 2."""


class RunBroken(Exception):
    """A run that can't go on, through no fault of its input: one line that says what is kept. Exit code 1."""


class TrainingStopped(Exception):
    """Training was stopped by a signal, after a checkpoint. Exit code 130."""


# =====================================================================================================================
# Part 1. The loop
# =====================================================================================================================
# One update (= optimizer step) over n examples, in k micro-batches B_1 .. B_k that fit into memory:
#     L      = 1/n  sum_j  sum_{(x, y) in B_j}  loss(model(x), y)       the mean over all n examples    `loss`
#     g      = dL/dw  = sum_j  d(loss of B_j)/dw                        backward() adds into .grad      `param.grad`
#     g     <- g * min(1, c / ||g||)                                    c: --max-grad-norm              `grad_norm`
#     m     <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2            AdamW's running means           `optimizer`
#     w     <- w - lr * (m^ / (sqrt(v^) + eps) + decay * w)             ^: corrected for the zero start
#     lr     = schedule(updates done)                                   linear: falls to 0 at the end   `lr_scheduler`
# An epoch is ceil(batches / k) updates; num_train_epochs epochs and one evaluation after each are a training.


def define_trainer() -> None:  # noqa: C901 - counts the methods inside
    """Define CustomTrainer, KeepStates and RunLog as names of this module.

    Importing transformers.Trainer takes seconds, which --help, a mistyped flag and errors.py need not wait for;
    __getattr__ below calls this the first time one of these names is asked for.
    """
    global CustomTrainer, KeepStates, RunLog

    import torch
    from accelerate import skip_first_batches
    from accelerate.utils.memory import should_reduce_batch_size
    from transformers import EvalPrediction, Trainer, TrainerCallback
    from transformers.trainer_callback import ExportableState
    from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

    class CustomTrainer(Trainer):
        """A Trainer whose training loop is written out, so that it can be read from top to bottom.

        It takes Trainer's own arguments and trains any sequence-classification model with them; `kind` (an entry of
        KINDS) brings another loss, `class_weights` (float32, (num_labels,)) weighs the examples of each label.

        It differs from transformers 5.23's Trainer in this: the loss is the mean over the examples of the whole update,
        whatever the accumulation and the number of processes (Trainer's is gradient_accumulation_steps times too large
        for the text-classification heads, github.com/huggingface/transformers/issues/47688); a loss that is not finite
        stops the run (FloatingPointError) instead of being replaced; where memory does not suffice for a micro-batch,
        it is computed in parts; checkpoints appear whole and hold no pickle, and one due at an epoch's last step is
        written after the epoch's evaluation; total_flos stays 0; what REFUSED names raises NotImplementedError instead
        of being ignored.
        """

        REFUSED = MappingProxyType({  # argument: the value that leaves it off
            "auto_find_batch_size": False, "eval_on_start": False, "label_smoothing_factor": 0.0,
            "neftune_noise_alpha": None, "torch_empty_cache_steps": None, "ignore_data_skip": False,
            "save_only_model": False, "dataloader_drop_last": False,
        })

        def __init__(self, *trainer_args: Any, kind: Any = None, class_weights: Any = None, **trainer_kwargs: Any):
            super().__init__(*trainer_args, **trainer_kwargs)
            self.kind = kind or KINDS["classification"]
            self.class_weights = None if class_weights is None else class_weights.to(self.args.device)
            self.cuts = 1  # parts that each micro-batch is computed in; doubled whenever memory does not suffice
            refused = [name for name, off in self.REFUSED.items() if getattr(self.args, name) != off]
            if self.args.n_gpu > 1 or self.is_deepspeed_enabled or self.is_fsdp_enabled:
                refused.append("DataParallel (set CUDA_VISIBLE_DEVICES=0, or use torchrun), DeepSpeed and FSDP")
            if self.args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
                refused.append(f"lr_scheduler_type={self.args.lr_scheduler_type.value}")
            if refused:
                raise NotImplementedError(f"CustomTrainer's loop does without {', '.join(refused)}; Trainer has it")

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            """The loss of one micro-batch in nats: the sum over its examples, divided by the examples of the update.

            inputs["labels"]: (batch, ...), what `kind.loss` expects; the model is called without it.
            num_items_in_batch: examples in the whole update; dividing every micro-batch's sum by it makes k accumulated
            micro-batches equal one batch k times as large, short ones included. In evaluation it does not count:
            there the loss is the mean over this batch.
            """
            labels = inputs["labels"]
            outputs = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
            examples = num_items_in_batch if model.training and num_items_in_batch is not None else len(labels)
            if self.compute_loss_func is not None:
                loss = self.compute_loss_func(outputs, labels, num_items_in_batch=examples)
            else:
                loss = self.kind.loss(outputs, labels, self.class_weights) / examples
            return (loss, outputs) if return_outputs else loss

        def _inner_training_loop(  # noqa: C901, PLR0915 - a lesson is read in one piece
            self, batch_size=None, args=None, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None
        ):
            """Train; returns TrainOutput(global_step, training_loss, metrics). Trainer.train() calls it."""
            # 1. Plan. A micro-batch is what fits into memory; an update is made of up to gradient_accumulation_steps of
            #    them. max_steps and state.global_step count updates.
            self.accelerator.free_memory()
            self._train_batch_size = batch_size
            loader = self.get_train_dataloader()
            (num_epochs, updates_per_epoch, _, num_samples, _, batches_per_epoch, max_steps
             ) = self.set_initial_training_values(args, loader)

            # 2. State. Model, optimizer and schedule are made ready; a checkpoint, if any, is loaded into them.
            first_epoch, batches_to_skip = self._init_training_state(
                max_steps, updates_per_epoch, num_epochs, resume_from_checkpoint, trial)
            model, loader = self._prepare_for_training(max_steps, loader, resume_from_checkpoint)
            self._start_sums(resume_from_checkpoint)
            start_time = time.time()
            model.zero_grad()
            self.control = self.callback_handler.on_train_begin(args, self.state, self.control)

            for epoch in range(first_epoch, num_epochs):
                # 3. Epoch: one pass over the data. The order depends on the seed and the epoch alone, so a resumed one
                #    goes on with the very batches that were left. The random state saved between two epochs belongs
                #    before their iterator, which draws from it; the one saved within an epoch, after.
                self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
                resuming = resume_from_checkpoint is not None and epoch == first_epoch
                batches_done = batches_to_skip if resuming else 0
                if resuming and batches_done == 0:
                    self._load_rng_state(resume_from_checkpoint)
                micro_batches, group = self._micro_batches(loader, epoch, batches_done), []
                self._start_clock()

                # 4. Micro-batches: forward, loss, backward. islice takes the next group, a shorter one at the end.
                #    Where memory does not suffice for it, the update begins again with smaller micro-batches.
                while group := group or list(islice(micro_batches, args.gradient_accumulation_steps)):
                    if resuming and batches_done == batches_to_skip > 0:
                        self._load_rng_state(resume_from_checkpoint)
                    self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
                    model.train()
                    examples, sums = self._examples_of_update(group), 0.0
                    try:
                        parts = self._cut(group)
                        for number, (batch, weight) in enumerate(parts, start=1):
                            batch = self._to_device(batch)
                            self._sync_gradients(model, number == len(parts))
                            loss, outputs = self.compute_loss(  # forward (under autocast for bf16 and fp16) and loss
                                model, batch, return_outputs=True, num_items_in_batch=examples)
                            self.accelerator.backward(loss * weight)  # adds this micro-batch's gradient to param.grad
                            sums += self._sums(loss.detach(), outputs, batch["labels"], weight)
                            if number < len(parts):
                                self.control = self.callback_handler.on_substep_end(args, self.state, self.control)
                    except RuntimeError as error:
                        self._use_less_memory(error, parts)
                        model.zero_grad()
                        continue
                    self._add_to_sums(sums, examples)
                    batches_done, group = batches_done + len(group), []

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
                    self.state.epoch = epoch + batches_done / batches_per_epoch

                    # 6. Log, evaluate, save: what the callbacks asked for in on_step_end or on_epoch_end. A checkpoint
                    #    due at an epoch's last step waits for the epoch's end, so that it knows of its evaluation.
                    self.control = self.callback_handler.on_step_end(args, self.state, self.control)
                    self._stop_clock()
                    self._log_evaluate_save(model, trial, ignore_keys_for_eval, start_time, grad_norm, learning_rate,
                                            may_save=batches_done < batches_per_epoch)
                    self._start_clock()
                    if self.control.should_epoch_stop or self.control.should_training_stop:
                        break

                self._close_epoch(learning_rate)
                self.control = self.callback_handler.on_epoch_end(args, self.state, self.control)
                self._log_evaluate_save(model, trial, ignore_keys_for_eval, start_time, grad_norm, learning_rate)
                if self.control.should_training_stop:
                    break

            # 7. Close: mean loss, speed, the best epoch's weights back in memory, on_train_end.
            return self._finalize_training(trial, num_samples, start_time)

        def _log_evaluate_save(
            self, model, trial, ignore_keys, start_time, grad_norm, learning_rate, may_save=True
        ):
            """Do what the callbacks asked for. The .item() calls here are the loop's only waits for the device."""
            updates = self.state.global_step - self._globalstep_last_logged
            if self.control.should_log and updates > 0:
                interval_loss = self._over_processes(self._tr_loss).item()
                if not math.isfinite(interval_loss):
                    raise FloatingPointError(
                        f"the training loss is {interval_loss} at step {self.state.global_step}; a lower "
                        "--learning-rate or --precision fp32 may help; checkpoints written before are kept")
                self._tr_loss.zero_()
                self._total_loss_scalar += interval_loss
                self._globalstep_last_logged = self.state.global_step
                logs = {"loss": interval_loss / updates, "grad_norm": float(grad_norm), "learning_rate": learning_rate}
                self.log(logs, start_time)
            if self.control.should_evaluate:
                is_best = self._determine_best_metric(self._evaluate(trial, ignore_keys), trial)
                if self.args.save_strategy == "best":
                    self.control.should_save = is_best
            if self.control.should_save and may_save:
                self._save_checkpoint(model, trial)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)

        # Where the micro-batches come from. Of each batch every process takes its share; the gradients of all of them
        # are averaged (torch's DistributedDataParallel), which makes the loss the sum that it would be in one process.

        def get_train_dataloader(self):
            """Batches of LengthGroupedBatches; in one process, those of Trainer for a data set without `lengths`."""
            args, dataset = self.args, self.train_dataset
            if not hasattr(dataset, "lengths") and args.world_size == 1:
                return super().get_train_dataloader()
            lengths = getattr(dataset, "lengths", np.zeros(len(dataset)))
            batches = LengthGroupedBatches(lengths, self._train_batch_size * args.world_size, args.seed,
                                           getattr(dataset, "window", 1), args.process_index, args.world_size)
            return torch.utils.data.DataLoader(
                dataset, batch_sampler=batches, collate_fn=self.data_collator, pin_memory=args.dataloader_pin_memory,
                num_workers=args.dataloader_num_workers)

        def _micro_batches(self, loader: Any, epoch: int, skip: int) -> Iterator[tuple[Any, int]]:
            """(micro-batch, this process's examples in it) of an epoch, without the first `skip`.

            A process whose share is 0 gets an example all the same, so that it takes part in adding up the gradients.
            """
            if isinstance(loader.batch_sampler, LengthGroupedBatches):
                loader.batch_sampler.start(epoch, skip)
                return zip(loader, loader.batch_sampler.shares(), strict=True)
            loader = skip_first_batches(loader, skip) if skip else loader
            loader.set_epoch(epoch)
            return ((batch, len(batch["labels"])) for batch in loader)

        def _examples_of_update(self, group: list[tuple[Any, int]]) -> Any:
            """Examples in the update, those of all processes; a tensor where there are several, so that none waits."""
            mine = sum(share for _, share in group)
            if self.args.world_size == 1:
                return mine
            return self.accelerator.reduce(torch.full((), mine, dtype=torch.float32, device=self.args.device))

        def _cut(self, group: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
            """(micro-batch, weight of its loss), each in self.cuts parts.

            The weight is the number of processes, for which the mean of their gradients makes up; 0 for a share of 0.
            """
            parts = []
            for batch, share in group:
                cuts = min(self.cuts, len(batch["labels"]))
                weight = self.args.world_size if share else 0
                parts += [({name: tensor[cut::cuts] for name, tensor in batch.items()}, weight) for cut in range(cuts)]
            return parts

        def _use_less_memory(self, error: RuntimeError, parts: list[tuple[Any, int]]) -> None:
            """Double self.cuts if `error` says that memory did not suffice (printed), else raise it.

            Also raised where no micro-batch can be cut any further, and with several processes, of which the others
            would wait for this one's gradient.
            """
            largest = max(len(batch["labels"]) for batch, _ in parts)
            if not should_reduce_batch_size(error) or largest == 1 or self.args.world_size > 1:
                raise error
            self.cuts *= 2
            print(f"out of memory with {largest} examples in a micro-batch: going on with {-(-largest // 2)} and "
                  f"{self.cuts} times as many micro-batches per update, which leaves the result as it is", flush=True)

        def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
            """The batch on the model's device; a copy out of pinned memory does not make the host wait."""
            return {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in batch.items()}

        def _sync_gradients(self, model: Any, is_last: bool) -> None:
            """Have processes exchange gradients in the update's last backward pass alone, as its no_sync() does."""
            if isinstance(model, torch.nn.parallel.DistributedDataParallel):
                model.require_backward_grad_sync = is_last

        def _over_processes(self, numbers: Any) -> Any:
            """The sum of each process's tensor, in every process."""
            return self.accelerator.reduce(numbers) if self.args.world_size > 1 else numbers

        def evaluation_loop(
            self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
        ):
            """Evaluate our own data sets with predict(), which takes the longest first; any other as Trainer does."""
            dataset, args = dataloader.dataset, self.args
            if not isinstance(dataset, TokenDataset):
                return super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
            self.callback_handler.eval_dataloader = dataloader

            def after_batch() -> None:
                self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)

            outputs = predict(
                self.model, dataset, self.kind, args.per_device_eval_batch_size,
                "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32", after_batch,
                loss=lambda outputs, labels: self.kind.loss(outputs, labels, self.class_weights))
            metrics = {"loss": outputs.loss}
            if self.compute_metrics is not None:
                metrics |= self.compute_metrics(EvalPrediction(outputs.logits, dataset.labels))
            return EvalLoopOutput(outputs.logits, dataset.labels, num_samples=len(dataset), metrics={
                f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})

        # What the log needs, added up on the device: the host reads it when it logs, not at every step.

        def _start_sums(self, checkpoint: str | None) -> None:
            """Set the running sums to zero, or to what the checkpoint says; the first process's hold the others'."""
            saved = read_json(Path(checkpoint, "sums.json")) if checkpoint else {}
            self.cuts = saved.get("cuts", 1)
            self._initial_global_step = self.state.global_step
            self._globalstep_last_logged = saved.get("last_logged_step", self.state.global_step)
            first = self.is_world_process_zero()
            since_log = saved.get("loss_since_log", 0.0) if first else 0.0
            self._tr_loss = torch.tensor(since_log, device=self.args.device)
            self._total_loss_scalar = -since_log  # a float on the host, of the steps of this call alone
            # summed loss and summed training score (kind.score) of this epoch's examples, and their number
            epoch_sums = saved.get("epoch_sums", [0.0, 0.0]) if first else [0.0, 0.0]
            self._epoch_sums = torch.tensor(epoch_sums, device=self.args.device)
            self._epoch_examples = saved.get("epoch_examples", 0)
            self._epoch_seconds = saved.get("epoch_seconds", 0.0)  # of this epoch's training, until the checkpoint

        def _sums(self, loss: Any, outputs: Any, labels: Any, weight: int) -> Any:
            """Loss and training score (kind.score) of a micro-batch, (2,); 0 for a share of 0."""
            return torch.stack([loss, self.kind.score(outputs, labels).to(loss.dtype)]) * (weight > 0)

        def _add_to_sums(self, sums: Any, examples: Any) -> None:
            """Count an update of `examples` examples, the number by which its loss was divided."""
            self._tr_loss += sums[0]
            self._epoch_sums += torch.stack([sums[0] * examples, sums[1]])
            self._epoch_examples += examples

        def _close_epoch(self, learning_rate: float) -> None:
            """Append the finished epoch's training loss, score and seconds to state.log_history; start new sums."""
            examples = int(self._epoch_examples)
            loss, score = (total / examples for total in self._over_processes(self._epoch_sums).tolist())
            self._stop_clock()  # after the line above, which waits for the device
            self.state.log_history.append({
                "epoch": self.state.epoch, "step": self.state.global_step, "epoch_train_loss": loss,
                f"epoch_train_{self.kind.train_metric}": score, "learning_rate": learning_rate,
                "seconds": self._epoch_seconds, "samples_per_second": examples / self._epoch_seconds})
            self._epoch_sums.zero_()
            self._epoch_examples, self._epoch_seconds = 0, 0.0

        def _start_clock(self) -> None:
            """Count the time from here on as training; evaluating, saving and what lies between two epochs is none."""
            self._clock_start = time.time()

        def _stop_clock(self) -> None:
            """Add the time since _start_clock() to the epoch's seconds."""
            self._epoch_seconds += time.time() - self._clock_start

        # Checkpoints: Trainer writes pickles in place; these are safetensors and JSON, and appear whole or not at all.

        def _save_checkpoint(self, model, trial):
            """Write checkpoint-<step>: weights, tokenizer, optimizer, schedule, random state, sums, trainer state."""
            run_dir = Path(self._get_output_dir(trial))
            best = run_dir / f"checkpoint-{self.state.best_global_step}"
            if self.state.best_global_step and (best.exists() or self.state.best_global_step == self.state.global_step):
                self.state.best_model_checkpoint = str(best)
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            sums = self._over_processes(torch.cat([self._tr_loss[None], self._epoch_sums])).tolist()
            random_states = self.accelerator.gather(random_state().to(self.args.device)[None]).cpu()
            if not self.is_world_process_zero():
                self.accelerator.wait_for_everyone()
                return
            with folder_atomically(run_dir / f"checkpoint-{self.state.global_step}") as folder:
                self.accelerator.unwrap_model(model).save_pretrained(folder)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder)
                save_optimizer(folder, self.optimizer, self.lr_scheduler, self.accelerator.scaler)
                save_random_states(folder, random_states)
                write_json(folder / "sums.json", {
                    "last_logged_step": self._globalstep_last_logged, "loss_since_log": sums[0],
                    "epoch_sums": sums[1:], "epoch_examples": int(self._epoch_examples), "cuts": self.cuts,
                    "epoch_seconds": self._epoch_seconds})
                write_json(folder / "trainer_state.json", dataclasses.asdict(self.state))  # save_to_json sorts names
                write_json(folder / COMPLETE, {str(path.relative_to(folder)): path.stat().st_size
                                               for path in folder.rglob("*") if path.is_file()})
            rotate_checkpoints(output_dir=str(run_dir), save_total_limit=self.args.save_total_limit,
                               best_model_checkpoint=self.state.best_model_checkpoint, use_mtime=True)
            self.accelerator.wait_for_everyone()

        def _load_optimizer_and_scheduler(self, checkpoint):
            load_optimizer(checkpoint, self.optimizer, self.lr_scheduler)

        def _load_scaler(self, checkpoint):
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(read_json(Path(checkpoint, "optimizer.json"))["scaler"])

        def _load_rng_state(self, checkpoint):
            load_random_state(checkpoint, self.args.process_index)

    class KeepStates(TrainerCallback):
        """Keeps what the head sees of some validation examples, before training (epoch 0) and after chosen epochs.

        `path`, an .npz: id, gold (examples,); epoch (epochs,); vector, float32 (epochs, examples, hidden size);
        predicted, correct, confidence (epochs, examples).
        """

        def __init__(self, path: Path, epochs: list[int], predict_rows: Callable[[Any], tuple[pd.DataFrame, Any]]):
            self.path, self.epochs, self.predict_rows = path, epochs, predict_rows

        def on_train_begin(self, _args, state, _control, model, **_):
            if state.global_step == 0:
                self._keep(0, model)

        def on_epoch_end(self, _args, state, _control, model, **_):
            self._keep(round(state.epoch), model)

        def _keep(self, epoch: int, model: Any) -> None:
            if epoch not in self.epochs:
                return
            table, vectors = self.predict_rows(model)
            if launched()[0] > 0:
                return
            new = {"epoch": np.array([epoch]), "vector": vectors[None],
                   "predicted": table["predicted"].to_numpy(dtype=np.str_)[None],
                   "correct": table["correct"].to_numpy(dtype=bool)[None],
                   "confidence": table["confidence"].to_numpy(dtype=np.float32)[None]}
            if self.path.is_file():  # of the epochs before, also of those before a resume
                with np.load(self.path, allow_pickle=False) as kept:
                    before = kept["epoch"] < epoch
                    new = {name: np.concatenate([kept[name][before], array]) for name, array in new.items()}
            new |= {name: table[name].to_numpy(dtype=np.str_) for name in ("id", "gold")}
            write_atomically(self.path, lambda path: np.savez(path, **new))

    class RunLog(TrainerCallback):
        """Writes history.csv and steps.csv, prints a line per epoch, draws progress bars, and saves when asked to stop.

        Ctrl-C and SIGTERM finish the step, save a checkpoint and raise TrainingStopped; a second Ctrl-C stops at once.
        """

        def __init__(self, folder: Path, save_steps: int | None = None, unprinted: tuple[str, ...] = ()):
            self.folder, self.save_steps, self.bar, self.signal = folder, save_steps, None, None
            self.unprinted = unprinted  # figures of an evaluation that are no scores
            self.written = -math.inf  # when the tables were; each time they are written whole
            self.handlers: dict[int, Any] = {}  # those that were there before ours

        def close(self, broken: bool = False) -> None:
            """Clear the bar off the screen and give the signals back.

            broken: the run breaks off. Of several processes torchrun sends SIGTERM to those that are left when one
            ends, and it must not come before the line that says why this one ends too: it is ignored from here on.
            """
            if self.bar is not None:
                self.bar.close()
            if broken and launched()[1] > 1:
                self.handlers[signal.SIGTERM] = signal.SIG_IGN
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            self.handlers = {}

        def on_train_begin(self, _args, _state, _control, **_):
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._on_signal)

        def _on_signal(self, number, _frame):
            self.signal = signal.Signals(number).name
            if launched()[1] == 1:  # a second one stops at once; torchrun sends one more whenever it gets one
                signal.signal(number, self.handlers[number])

        def _is_told_to_stop(self, args, control):
            """Whether a signal came. Several processes have to stop at the same step: they agree when they log."""
            if launched()[1] > 1 and control.should_log:
                told = torch.tensor(float(self.signal is not None), device=args.device)
                sum_over_processes([told], args.device)
                self.signal = (self.signal or "a signal") if told.item() else None
            return self.signal and (launched()[1] == 1 or control.should_log)

        def on_train_end(self, _args, _state, _control, **_):
            self.close()

        def on_epoch_begin(self, args, state, _control, **_):
            updates = math.ceil(state.max_steps / math.ceil(args.num_train_epochs))
            done = state.global_step % updates
            label = f"epoch {state.global_step // updates + 1}/{math.ceil(args.num_train_epochs)}"
            self.bar = progress_bar(updates, label, unit="step", initial=done)

        def on_step_end(self, args, state, control, **_):
            self.bar.update()
            if self._is_told_to_stop(args, control) or (self.save_steps and state.global_step % self.save_steps == 0):
                control.should_save = True
            return control

        def on_log(self, _args, state, _control, logs, **_):
            if "loss" in logs:
                self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
                if time.monotonic() > self.written + SECONDS_BETWEEN_WRITES:
                    self._write(state)

        def on_epoch_end(self, _args, _state, control, **_):
            self.bar.close()
            control.should_log = True  # the last, short interval of the epoch too
            return control

        def on_evaluate(self, args, state, _control, **_):
            self._write(state)
            row = history_table(state.log_history).iloc[-1].drop([f"eval_{name}" for name in self.unprinted])
            scores = "  |  ".join(
                f"{part} " + "  ".join(f"{name.removeprefix(part + '_')} {value:.4f}" for name, value in row.items()
                                       if name.startswith(f"{part}_")) for part in ("train", "eval"))
            print(f"epoch {row['epoch']:g}/{args.num_train_epochs:g}:  {scores}  |  {row['seconds'] / 60:.2f} min",
                  flush=True)

        def on_save(self, _args, state, _control, **_):
            self._write(state)
            if self.signal:
                raise TrainingStopped(f"stopped by {self.signal} at step {state.global_step} of {state.max_steps}, "
                                      "checkpoint saved; go on with the same command and --resume")

        def _write(self, state):
            if state.is_world_process_zero:
                write_csv(self.folder / "history.csv", history_table(state.log_history))
                write_csv(self.folder / "steps.csv", steps_table(state.log_history))
                self.written = time.monotonic()


def __getattr__(name: str) -> Any:
    """CustomTrainer, KeepStates and RunLog, defined when they are first asked for (PEP 562)."""
    if name not in ("CustomTrainer", "KeepStates", "RunLog"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    define_trainer()
    return globals()[name]


def history_table(log_history: list[dict[str, Any]]) -> pd.DataFrame:
    """history.csv, a row per epoch, from Trainer's state.log_history."""
    evaluations = {row["step"]: row for row in log_history if "eval_loss" in row}
    rows = []
    for train in (row for row in log_history if "epoch_train_loss" in row):
        scores = {name.removeprefix("epoch_"): value for name, value in train.items() if name.startswith("epoch_train")}
        evaluation = {name: value for name, value in evaluations.get(train["step"], {}).items()
                      if name.startswith("eval_") and name not in EVAL_TIMES}
        speed = {name: train[name] for name in ("learning_rate", "seconds", "samples_per_second")}
        rows.append({"epoch": train["epoch"], **scores, **evaluation, **speed})
    return pd.DataFrame(rows)


def steps_table(log_history: list[dict[str, Any]]) -> pd.DataFrame:
    """steps.csv from Trainer's state.log_history: the mean loss since the row before, and this step's other figures."""
    columns = ["step", "epoch", "loss", "grad_norm", "learning_rate"]
    rows = [{name: row[name] for name in columns} for row in log_history if "loss" in row]
    return pd.DataFrame(rows, columns=columns)


def progress_bar(total: int, label: str, unit: str, initial: int = 0) -> Any:
    """A tqdm bar; where stderr is no terminal (a notebook's shell cell, a file) it writes few lines, not hundreds."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit=unit, initial=initial, leave=False, dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else 10.0, disable=launched()[0] > 0)


class LengthGroupedBatches:
    """Batches of examples of like length, so that few tokens are padding: a batch_sampler for torch's DataLoader.

    The examples are shuffled, cut into windows of `window` batches, sorted by length within each window and cut into
    batches, and the batches are shuffled; the last, short one stays last. The order is a function of seed and epoch
    alone (numpy's PCG64 seeded with both), so a resumed run meets the batches that it would have met. Of several
    processes each takes every processes-th example of a batch, so that together they make the batches of one.

    Args:
        lengths: int, (examples,): tokens of each example.
        batch_size: examples per batch, those of all processes together.
        seed: any whole number of 0 or more.
        window: batches per window; 1 is plain shuffling.
        process: number of this process, from 0.
        processes: how many there are.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, window: int = 50, process: int = 0,
                 processes: int = 1):
        self.lengths, self.batch_size, self.seed, self.window = lengths, batch_size, seed, window
        self.process, self.processes, self.epoch, self.first = process, processes, 0, 0

    def start(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch, and the number of its batch, with which the next iteration begins."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def order(self) -> np.ndarray:
        """The examples of the epoch, int64 (examples,), batch after batch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        if self.window > 1:
            step = self.window * self.batch_size
            windows = [order[start:start + step] for start in range(0, len(order), step)]
            order = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in windows])
        full = len(order) // self.batch_size * self.batch_size
        batches = order[:full].reshape(-1, self.batch_size)
        return np.concatenate([rng.permutation(batches).ravel(), order[full:]])

    def shares(self) -> list[int]:
        """How many examples of each batch are this process's, from `first` on; 0 where there are too few for all."""
        sizes = [min(self.batch_size, len(self.lengths) - start)
                 for start in range(self.first * self.batch_size, len(self.lengths), self.batch_size)]
        return [len(range(self.process, size, self.processes)) for size in sizes]

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for start in range(self.first * self.batch_size, len(order), self.batch_size):
            batch = order[start:start + self.batch_size].tolist()
            yield batch[self.process::self.processes] or batch[:1]  # a share of 0 is one example all the same


# The parts of a checkpoint. Tensors go into safetensors, all else into JSON, which keeps Python's floats exactly.


@contextlib.contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; sync its files and rename it, so that `folder` is whole or absent."""
    temporary = folder.with_name(f".{os.getpid()}-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any, scaler: Any) -> None:
    """Write optimizer.safetensors (the running means of each parameter) and optimizer.json (all the rest)."""
    import torch
    from safetensors.torch import save_file

    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            is_tensor = isinstance(value, torch.Tensor)
            (tensors if is_tensor else scalars)[f"{parameter}.{name}"] = value.contiguous() if is_tensor else value
    save_file(tensors, folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", {
        "param_groups": state["param_groups"], "scalars": scalars, "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None})


def load_optimizer(folder: str | Path, optimizer: Any, scheduler: Any) -> None:
    """Give optimizer and scheduler the state that save_optimizer wrote."""
    from safetensors.torch import load_file

    saved = read_json(Path(folder, "optimizer.json"))
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**load_file(Path(folder, "optimizer.safetensors")), **saved["scalars"]}.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    scheduler.load_state_dict(saved["scheduler"])


def random_state() -> Any:
    """The state of torch's random generators, the CPU's and the current GPU's, uint8 (bytes,)."""
    import torch

    states = [torch.random.get_rng_state()]
    return torch.cat([*states, torch.cuda.random.get_rng_state()] if torch.cuda.is_available() else states)


def save_random_states(folder: Path, states: Any) -> None:
    """Write random.safetensors, random_state() of each process, and random.json, Python's and numpy's of this one."""
    from safetensors.torch import save_file

    save_file({"torch": states}, folder / "random.safetensors")
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the generator that libraries draw from
    write_json(folder / "random.json", {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest]})


def load_random_state(folder: str | Path, process: int) -> None:
    """Give the random generators of a process the state that save_random_states wrote."""
    import torch
    from safetensors.torch import load_file

    state = load_file(Path(folder, "random.safetensors"))["torch"][process]
    saved = read_json(Path(folder, "random.json"))
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    cpu_bytes = len(torch.random.get_rng_state())
    torch.random.set_rng_state(state[:cpu_bytes].clone())  # torch 2.13 reads from the start of the storage: no views
    if len(state) > cpu_bytes and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(state[cpu_bytes:].clone())


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. One that is not whole (printed) is left out: a broken disk or copy."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = []
    for checkpoint in found:
        sizes = {}
        with contextlib.suppress(UserError, FileNotFoundError):  # the marker may be what is cut short
            sizes = read_json(checkpoint / COMPLETE)
        broken = [name for name, size in sizes.items()
                  if not (checkpoint / name).is_file() or (checkpoint / name).stat().st_size != size]
        if broken or not sizes:
            print(f"{checkpoint} is not whole ({', '.join(broken) or COMPLETE}): passed over")
        else:
            whole.append(checkpoint)
    return whole


# =====================================================================================================================
# Part 2. The task kinds: examples -> tensors -> logits -> predictions -> scores
# =====================================================================================================================
# A split is a table with the columns id, the task's text columns and label; what a label is, its kind says.


class TokenDataset:
    """Tokenised examples in flat arrays: memory grows with the tokens, not with Python objects.

    Args:
        columns: input name -> one int array per sequence, e.g. {"input_ids": [...], "token_type_ids": [...]}.
        labels: (examples, ...), what the kind's loss expects.
        pads: input name -> the value that fills it up to the batch's longest sequence.
        sequences: sequences per example (2 options of a multiple-choice question: 2).

    `window` is what LengthGroupedBatches takes; `lengths` are tokens, (examples,): the longest sequence of each.
    """

    window = 50

    def __init__(self, columns: dict[str, list[Any]], labels: np.ndarray, pads: dict[str, int], sequences: int = 1):
        sizes = np.array([len(ids) for ids in columns["input_ids"]], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.columns = {name: np.concatenate(rows, dtype=np.int32) for name, rows in columns.items()}
        self.labels, self.pads, self.sequences = labels, pads, sequences
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

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad to the batch's longest sequence, on the right.

        Returns input_ids, attention_mask and the like, int64 (batch, tokens), or (batch, sequences, tokens) where an
        example has several, and labels, (batch, ...).
        """
        import torch

        rows = {name: [sequence for example in examples for sequence in example[name]] for name in self.columns}
        sizes = np.array([len(row) for row in rows["input_ids"]])
        real = np.arange(sizes.max())[None, :] < sizes[:, None]  # (batch * sequences, tokens)
        batch = {"attention_mask": real.astype(np.int64)}
        for name, sequences in rows.items():
            batch[name] = np.full(real.shape, self.pads[name], dtype=np.int64)
            batch[name][real] = np.concatenate(sequences)
        if self.sequences > 1:
            batch = {name: array.reshape(len(examples), self.sequences, -1) for name, array in batch.items()}
        batch["labels"] = np.stack([example["labels"] for example in examples])
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def tokenize(
    tokenizer: Any, first: list[str], second: list[str] | None, max_length: int
) -> dict[str, list[np.ndarray]]:
    """Token ids, and token types where the model takes them: an int32 array per text or pair, cut to `max_length`."""
    columns = {name: [] for name in pad_values(tokenizer)}
    for start in range(0, len(first), TOKENIZED_AT_ONCE):
        block = slice(start, start + TOKENIZED_AT_ONCE)
        encoded = tokenizer(first[block], second and second[block], truncation=True, max_length=max_length,
                            return_attention_mask=False)
        for name, rows in columns.items():
            rows += [np.array(ids, dtype=np.int32) for ids in encoded[name]]
    return columns


def pad_values(tokenizer: Any) -> dict[str, int]:
    """The value that pads each input that the model takes of the tokenizer."""
    values = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return {name: value for name, value in values.items() if name in tokenizer.model_input_names}


class Kind:
    """What the kinds share. A kind owns all that differs between tasks; nothing else asks which kind a task is.

    The defaults are those of one label out of a closed set, read by a model for sequence classification.
    """

    auto_class = "AutoModelForSequenceClassification"
    problem_type: str | None = None  # what the model's config calls it
    sample_config: tuple[str, dict[str, Any]] = ("BertConfig", {})  # what --sample builds, beside its common sizes
    train_metric = "accuracy"
    integer_labels = False
    closed_set = True  # task["labels"] lists what a label can be
    takes_class_weights = False
    continuous = False  # labels are numbers, so pictures colour by their value
    lower_is_better: tuple[str, ...] = ()
    confidence_is = "softmax probability of the predicted label"  # "": a prediction comes without a confidence
    tuned: tuple[str, ...] = ("temperature",)  # what tune() chooses on the validation split

    def check_model(self, config: Any) -> None:
        """Raise UserError where transformers has no head of this kind for the model's family."""
        import transformers

        if type(config) not in getattr(transformers, self.auto_class)._model_mapping:
            raise UserError(f"transformers has no {self.auto_class.removeprefix('AutoModelFor')} head for a "
                            f"{config.model_type} model; take another --model, such as {DEFAULT_MODEL}")

    def output_names(self, task: dict[str, Any]) -> list[str]:
        """What each output of the head stands for."""
        return [str(label) for label in task["labels"]]

    def strata(self, table: pd.DataFrame, _task: dict[str, Any]) -> np.ndarray:
        """What a split or a sample keeps in proportion, (examples,): the label."""
        return table["label"].to_numpy()

    def label_counts(self, table: pd.DataFrame, task: dict[str, Any]) -> dict[str, int]:
        """Rows per stratum."""
        return {str(name): count for name, count in sorted(Counter(self.strata(table, task)).items())}

    def targets(self, table: pd.DataFrame, task: dict[str, Any]) -> np.ndarray:
        """The labels as the loss expects them, (examples, ...)."""
        raise NotImplementedError

    def gold(self, table: pd.DataFrame, task: dict[str, Any]) -> np.ndarray:
        """The labels as predictions.csv shows them, (examples,)."""
        return self.strata(table, task)

    def encode(
        self, table: pd.DataFrame, task: dict[str, Any], tokenizer: Any, max_length: int, _images: Any = None
    ) -> TokenDataset:
        """The split as tensors: one sequence per example, a pair joined by the tokenizer's separator."""
        texts = [table[name].tolist() for name in task["text"]]
        encoded = tokenize(tokenizer, texts[0], texts[1] if len(texts) > 1 else None, max_length)
        return TokenDataset(encoded, self.targets(table, task), pad_values(tokenizer))

    def loss(self, outputs: Any, labels: Any, weights: Any) -> Any:
        """Summed cross-entropy in nats; logits (batch, labels), labels int64 (batch,), weights (labels,) or None."""
        import torch.nn.functional as F

        return F.cross_entropy(outputs["logits"].float(), labels, weight=weights, reduction="sum")

    def score(self, outputs: Any, labels: Any) -> Any:
        """Number of right predictions in the batch, a tensor on the device: the sum of train_metric over it."""
        return (outputs["logits"].detach().argmax(dim=-1) == labels).sum()

    def greater_is_better(self, metric: str) -> bool:
        """Whether a higher figure of the metric is the better one."""
        return metric not in self.lower_is_better

    def collect(self, outputs: Any, _inputs: dict[str, Any]) -> Any:
        """What predict() needs of the outputs, a float32 tensor on the device: the logits, (batch, outputs)."""
        return outputs["logits"].float()

    def vectors_are(self, layer: str) -> str:
        """What head_vectors() gives, in words; `layer` names the head's last linear layer, `score` in decoders."""
        which = "last tokens'" if layer == "score" else "pooled"
        return f"{which} vectors, the input of {layer}"

    def head_vectors(self, hidden: Any, inputs: dict[str, Any]) -> Any:
        """The vector that the head reads, (batch, hidden size): GPT-2 and Llama read each text's last real token."""
        if hidden.ndim == 2:
            return hidden
        last = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1  # (batch, 1)
        return hidden.take_along_dim(last[..., None], dim=1).squeeze(1)

    def tune(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], _dataset: TokenDataset | None
    ) -> dict[str, float]:
        """What predict() and confidences() take beside the logits, chosen on the validation split.

        temperature: what the logits are divided by so that the gold labels' cross-entropy is least (fit_temperature).
        """
        logits, gold = logits.astype(np.float64), self.targets(table, task)
        return {"temperature": fit_temperature(lambda temperature: cross_entropy(logits / temperature, gold))}

    def confidences(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], dataset: TokenDataset | None,
        temperature: float,
    ) -> np.ndarray:
        """The confidence in each prediction, float64 (examples,), with the logits divided by `temperature`.

        Dividing changes no prediction, only how sure the model says it is.
        """
        return self.predict(logits / temperature, table, task, dataset)["confidence"].to_numpy(np.float64)

    def figures(self, predictions: pd.DataFrame, task: dict[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of samples in which example i occurs weights[:, i] times, (samples,) each."""
        raise NotImplementedError

    def metrics(self, predictions: pd.DataFrame, task: dict[str, Any]) -> dict[str, float]:
        """The figures by name, the task's main metrics first."""
        scores = self.figures(predictions, task, np.ones((1, len(predictions))))
        return {name: float(scores[name][0]) for name in dict.fromkeys([*task["metrics"], *scores])}

    def examples_of(self, _metric: str, predictions: pd.DataFrame) -> int:
        """The number of examples that a metric is over."""
        return len(predictions)

    def resample(self, predictions: pd.DataFrame, task: dict[str, Any], draws: int = 2000) -> dict[str, np.ndarray]:
        """The metrics of `draws` bootstrap samples of the examples, (draws,) each; all from the same samples."""
        return resampled(len(predictions), draws, lambda weights: self.figures(predictions, task, weights))

    def is_answer(self, cells: pd.Series, _task: dict[str, Any]) -> pd.Series:
        """Whether each cell, a text, can stand in gold or predicted of predictions.csv, bool (examples,)."""
        return pd.Series(True, cells.index)

    def confusion(self, _predictions: pd.DataFrame, _task: dict[str, Any]) -> pd.DataFrame | None:
        """What confusion.csv holds, or None; column `gold` names the rows."""
        return None

    def picture_groups(self, table: pd.DataFrame, _task: dict[str, Any]) -> pd.Series:
        """What colour and shape stand for in pictures, per row of predictions.csv: the gold label."""
        return table["gold"]

    def error_class(self, error_type: str) -> str:
        """What error types are drawn and counted by: the type itself."""
        return error_type

    def baselines(self, train: pd.DataFrame, test: pd.DataFrame, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """What simple models that learn from `train` in seconds predict for `test`, by their names: a floor for ours.

        The most frequent label, and scikit-learn's logistic regression over TF-IDF, with its own defaults.

        Args:
            train: train_texts.csv, the text columns and `label`, named as predictions.csv names it.
            test: the rows of predictions.csv.
            task: the task that both are of.

        Returns:
            Tables in the order of `test` with what figures() reads of predictions.csv: gold, predicted, correct, and
            the probability of the positive label where the task has one.
        """
        from sklearn.linear_model import LogisticRegression

        train_features, test_features = tfidf(train, test, task["text"])
        model = LogisticRegression(max_iter=1000).fit(train_features, train["label"])
        tables = {"majority": judged(test, most_frequent(train["label"])),
                  "tfidf + logistic regression": judged(test, model.predict(test_features))}
        if "positive" in task:
            probabilities = model.predict_proba(test_features)[:, list(model.classes_).index(task["positive"])]
            for table, column in zip(tables.values(), (0.5, probabilities), strict=True):
                table[f"prob_{task['positive']}"] = column
        return tables


class Classification(Kind):
    """One label of a closed set, for one text or a pair. label: int64, the position in task["labels"]."""

    integer_labels = True
    takes_class_weights = True

    def read_labels(self, column: pd.Series, task: dict[str, Any]) -> pd.Series:
        """Label ids of a raw column, which holds ids or names; missing (NaN) where a label is hidden or absent."""
        return label_ids(column, task)

    def label_counts(self, table: pd.DataFrame, task: dict[str, Any]) -> dict[str, int]:
        """Rows per label, in the order of the labels."""
        counts = np.bincount(table["label"], minlength=len(task["labels"]))
        return dict(zip(task["labels"], counts.tolist(), strict=True))

    def targets(self, table: pd.DataFrame, _task: dict[str, Any]) -> np.ndarray:
        """int64 (examples,)."""
        return table["label"].to_numpy(dtype=np.int64)

    def gold(self, table: pd.DataFrame, task: dict[str, Any]) -> np.ndarray:
        """The labels' names."""
        return np.array(task["labels"], dtype=object)[table["label"].to_numpy()]

    def is_answer(self, cells: pd.Series, task: dict[str, Any]) -> pd.Series:
        """A label."""
        return cells.isin(task["labels"])

    def predict(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], _dataset: TokenDataset | None = None
    ) -> pd.DataFrame:
        """The prediction columns of predictions.csv from logits, (examples, labels), in the order of `table`."""
        return closed_set_predictions(softmax(logits), table["label"].to_numpy(), task["labels"])

    def metrics(self, predictions: pd.DataFrame, task: dict[str, Any]) -> dict[str, float]:
        """scikit-learn's figures by name, each from 0 to 1; the task's main metrics first."""
        from sklearn import metrics

        gold, predicted, labels = predictions["gold"], predictions["predicted"], task["labels"]
        scores = {"accuracy": metrics.accuracy_score(gold, predicted)}
        for average in ("macro", "weighted"):
            scores[f"{average}_f1"] = metrics.f1_score(gold, predicted, labels=labels, average=average, zero_division=0)
        scores["macro_recall"] = metrics.recall_score(gold, predicted, labels=labels, average="macro", zero_division=0)
        per_label = metrics.precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
        for label, precision, recall, f1 in zip(labels, *per_label[:3], strict=True):
            scores |= {f"precision_{label}": precision, f"recall_{label}": recall, f"f1_{label}": f1}
        if "positive" in task:
            scores["f1"] = scores[f"f1_{task['positive']}"]
        if "averaged" in task:  # the labels whose F1 the task's organisers average
            scores["mean_f1"] = np.mean([scores[f"f1_{label}"] for label in task["averaged"]])
        if "auroc" in task["metrics"]:
            scores["auroc"] = metrics.roc_auc_score(gold == task["positive"], predictions[f"prob_{task['positive']}"])
        return {name: float(scores[name]) for name in dict.fromkeys([*task["metrics"], *scores])}

    def resample(self, predictions: pd.DataFrame, task: dict[str, Any], draws: int = 2000) -> dict[str, np.ndarray]:
        """The metrics of `draws` bootstrap samples of the examples, (draws,) each.

        Drawing n examples with replacement is drawing the confusion matrix's cells from a multinomial distribution, so
        no example is touched twice and all metrics come from the same samples. Only auroc needs the examples.
        """
        counts = self.confusion(predictions, task).iloc[:, 1:].to_numpy()
        rng, parts = np.random.default_rng(SPLIT_SEED), []
        for _ in range(draws):  # matrix by matrix: of a thousand labels each takes 8 MB
            cells = rng.multinomial(counts.sum(), counts.ravel() / counts.sum()).reshape(counts.shape)
            parts.append((np.diagonal(cells), cells.sum(axis=1), cells.sum(axis=0)))
        hits, gold, predicted = (np.stack(sums) for sums in zip(*parts, strict=True))
        precision, recall, f1 = ratio(hits, predicted), ratio(hits, gold), ratio(2 * hits, gold + predicted)
        scores = {"accuracy": hits.sum(axis=1) / counts.sum(), "macro_f1": f1.mean(axis=1),
                  "weighted_f1": (f1 * gold).sum(axis=1) / counts.sum(), "macro_recall": recall.mean(axis=1)}
        for i, label in enumerate(task["labels"]):
            scores |= {f"precision_{label}": precision[:, i], f"recall_{label}": recall[:, i], f"f1_{label}": f1[:, i]}
        if "positive" in task:
            scores["f1"] = scores[f"f1_{task['positive']}"]
        if "averaged" in task:
            scores["mean_f1"] = np.mean([scores[f"f1_{label}"] for label in task["averaged"]], axis=0)
        if "auroc" in task["metrics"]:
            scores |= super().resample(predictions, task, draws)
        return scores

    def figures(self, predictions: pd.DataFrame, task: dict[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
        """auroc: the share of pairs of a positive and another example that the positive's probability puts in order."""
        positive = (predictions["gold"] == task["positive"]).to_numpy()
        ranks = weighted_ranks(predictions[f"prob_{task['positive']}"].to_numpy(np.float64), weights)
        positives, others = weights @ positive, weights @ ~positive
        rank_sums = (weights * ranks) @ positive
        return {"auroc": ratio(rank_sums - positives * (positives + 1) / 2, positives * others)}

    def confusion(self, predictions: pd.DataFrame, task: dict[str, Any]) -> pd.DataFrame:
        """Rows: gold labels (column `gold`); columns: predicted labels; cells: examples."""
        return confusion_table(predictions["gold"], predictions["predicted"], task["labels"])

    def error_types(self, wrong: pd.DataFrame, task: dict[str, Any]) -> list[str]:
        """What each wrong prediction is called: FP or FN of the positive label, gold -> predicted with more labels."""
        if len(task["labels"]) == 2:
            positive = task.get("positive", task["labels"][1])
            return [f"{'FP' if predicted == positive else 'FN'} of {positive}" for predicted in wrong["predicted"]]
        return [f"{gold} -> {predicted}" for gold, predicted in zip(wrong["gold"], wrong["predicted"], strict=True)]


class Regression(Kind):
    """One number per text or pair. label: float64; the steps of task["scale"] name it in words and stratify."""

    problem_type = "regression"
    train_metric = "mse"
    closed_set = False
    continuous = True
    lower_is_better = ("mse",)
    confidence_is = ""
    tuned = ()

    def output_names(self, task: dict[str, Any]) -> list[str]:
        """One output, in the label's own units."""
        return [task["label"]]

    def read_labels(self, column: pd.Series, task: dict[str, Any]) -> pd.Series:
        """float64; NaN where there is none. Raises UserError for what is no number."""
        numbers = pd.to_numeric(column, errors="coerce").astype("float64")
        wrong = numbers.isna() & (column.map(label_text) != "")
        if wrong.any():
            raise UserError(f"{task['key']}: label {column[wrong].iloc[0]!r} ({int(wrong.sum())} rows) is no number")
        return numbers

    def step_names(self, task: dict[str, Any]) -> list[str]:
        """The steps of the scale, from low to high."""
        return task.get("steps", ["very low", "low", "middle", "high", "very high"])

    def steps(self, numbers: Any, task: dict[str, Any]) -> np.ndarray:
        """The step that each number falls into: equal parts of the scale, or parted at task["edges"]."""
        names = self.step_names(task)
        edges = task.get("edges", np.linspace(*task["scale"], len(names) + 1)[1:-1])
        return np.array(names, dtype=object)[np.digitize(numbers, edges)]

    def strata(self, table: pd.DataFrame, task: dict[str, Any]) -> np.ndarray:
        """The step of each label."""
        return self.steps(table["label"], task)

    def label_counts(self, table: pd.DataFrame, task: dict[str, Any]) -> dict[str, int]:
        """Rows per step, from low to high."""
        counts = Counter(self.strata(table, task))
        return {name: counts[name] for name in self.step_names(task)}

    def gold(self, table: pd.DataFrame, _task: dict[str, Any]) -> np.ndarray:
        """The numbers themselves."""
        return table["label"].to_numpy(np.float64)

    def is_answer(self, cells: pd.Series, _task: dict[str, Any]) -> pd.Series:
        """A finite number."""
        return np.isfinite(pd.to_numeric(cells, errors="coerce").astype("float64"))

    def targets(self, table: pd.DataFrame, _task: dict[str, Any]) -> np.ndarray:
        """float32 (examples,)."""
        return table["label"].to_numpy(dtype=np.float32)

    def loss(self, outputs: Any, labels: Any, _weights: Any) -> Any:
        """Summed squared error; logits (batch, 1), labels float32 (batch,)."""
        return ((outputs["logits"].float().squeeze(-1) - labels) ** 2).sum()

    def score(self, outputs: Any, labels: Any) -> Any:
        """The same sum, for the log."""
        return self.loss(outputs, labels, None).detach()

    def tune(
        self, _logits: np.ndarray, _table: pd.DataFrame, _task: dict[str, Any], _dataset: TokenDataset | None
    ) -> dict[str, float]:
        """Nothing: a number comes without confidence."""
        return {}

    def predict(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], _dataset: TokenDataset | None = None
    ) -> pd.DataFrame:
        """gold and predicted are numbers; correct: they fall into the same step; a number comes without confidence."""
        gold, predicted = table["label"].to_numpy(np.float64), logits[:, 0].astype(np.float64)
        gold_step, predicted_step = self.steps(gold, task), self.steps(predicted, task)
        return pd.DataFrame({
            "gold": gold, "predicted": predicted, "correct": gold_step == predicted_step, "confidence": math.nan,
            "gold_confidence": math.nan, "margin": math.nan, "abs_error": np.abs(predicted - gold),
            "gold_step": gold_step, "predicted_step": predicted_step})

    def figures(self, predictions: pd.DataFrame, _task: dict[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
        """Pearson's r, Spearman's rho (ties share their mean rank) and the mean squared error."""
        gold, predicted = (predictions[name].to_numpy(np.float64) for name in ("gold", "predicted"))
        ranks = weighted_ranks(gold, weights), weighted_ranks(predicted, weights)
        return {"pearson": weighted_pearson(gold, predicted, weights), "spearman": weighted_pearson(*ranks, weights),
                "mse": weights @ (predicted - gold) ** 2 / weights.sum(axis=1)}

    def confusion(self, predictions: pd.DataFrame, task: dict[str, Any]) -> pd.DataFrame:
        """Rows: gold steps; columns: predicted steps; cells: examples."""
        return confusion_table(predictions["gold_step"], predictions["predicted_step"], self.step_names(task))

    def picture_groups(self, table: pd.DataFrame, _task: dict[str, Any]) -> pd.Series:
        """The step of the scale, where the table has it."""
        return table["gold_step"] if "gold_step" in table else pd.Series("all", table.index)

    def baselines(self, train: pd.DataFrame, test: pd.DataFrame, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """The mean of the labels, and ridge regression over TF-IDF."""
        from sklearn.linear_model import Ridge

        numbers = train["label"].astype("float64")
        train_features, test_features = tfidf(train, test, task["text"])
        predicted = Ridge().fit(train_features, numbers).predict(test_features)
        return {"mean": judged(test, numbers.mean()), "tfidf + ridge": judged(test, predicted)}

    def error_types(self, wrong: pd.DataFrame, _task: dict[str, Any]) -> list[str]:
        """`over by 1.5` or `under by 1.5`."""
        errors = wrong["predicted"].astype("float64") - wrong["gold"].astype("float64")
        return [f"{'over' if error > 0 else 'under'} by {abs(error):.3g}" for error in errors]

    def error_class(self, error_type: str) -> str:
        """over or under."""
        return error_type.split()[0]


class Multilabel(Kind):
    """Any number of labels. label: a tuple of 0 and 1, one per label; task["label"] lists their columns."""

    problem_type = "multi_label_classification"
    train_metric = "exact_match"
    confidence_is = "probability of the whole predicted set of labels, taken as independent"

    def read_labels(self, columns: pd.DataFrame, task: dict[str, Any]) -> pd.Series:
        """A tuple of 0 and 1 per row; None where one is missing. Raises UserError for any other value."""
        texts = columns.map(lambda value: label_text(float(value) if isinstance(value, bool | np.bool_) else value))
        wrong = ~texts.isin(["0", "1", ""]).all(axis=1)
        if wrong.any():
            raise UserError(f"{task['key']}: labels {texts[wrong].iloc[0].tolist()} ({int(wrong.sum())} rows) are not "
                            "all 0 or 1")
        rows = texts.itertuples(index=False, name=None)
        return pd.Series([None if "" in row else tuple(map(int, row)) for row in rows], columns.index, dtype=object)

    def is_answer(self, cells: pd.Series, task: dict[str, Any]) -> pd.Series:
        """A set of labels, or none."""
        return pd.Series(names_of_sets(sets_of_names(cells, task["labels"]), task["labels"]), cells.index) == cells

    def strata(self, table: pd.DataFrame, task: dict[str, Any]) -> np.ndarray:
        """The set of labels, as predictions.csv names it."""
        return names_of_sets(self.targets(table, task) > 0, task["labels"])

    def label_counts(self, table: pd.DataFrame, task: dict[str, Any]) -> dict[str, int]:
        """Rows that have each label, and rows that have none."""
        targets = self.targets(table, task)
        none = int((targets.sum(axis=1) == 0).sum())
        return {**dict(zip(task["labels"], targets.sum(axis=0).astype(int).tolist(), strict=True)), "none": none}

    def targets(self, table: pd.DataFrame, task: dict[str, Any]) -> np.ndarray:
        """float32 (examples, labels)."""
        return np.array(table["label"].tolist(), dtype=np.float32).reshape(-1, len(task["labels"]))

    def loss(self, outputs: Any, labels: Any, _weights: Any) -> Any:
        """Binary cross-entropy in nats, the mean over the labels, summed over the batch; both (batch, labels)."""
        import torch.nn.functional as F

        per_label = F.binary_cross_entropy_with_logits(outputs["logits"].float(), labels, reduction="none")
        return per_label.mean(dim=1).sum()

    def score(self, outputs: Any, labels: Any) -> Any:
        """Number of examples whose labels are all right."""
        return ((outputs["logits"].detach() >= 0) == (labels > 0)).all(dim=1).sum()

    def tune(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], _dataset: TokenDataset | None
    ) -> dict[str, float]:
        """temperature: one for all labels, at which the summed binary cross-entropy is least."""
        margins = np.where(self.targets(table, task) > 0, logits, -logits).astype(np.float64)
        return {"temperature": fit_temperature(lambda temperature: np.logaddexp(0, -margins / temperature).mean())}

    def predict(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], _dataset: TokenDataset | None = None
    ) -> pd.DataFrame:
        """A label is predicted from probability 0.5 on; the set's probability takes the labels as independent.

        confidence: of the predicted set; gold_confidence: of the gold set; margin: the least |2p - 1| of the labels.
        """
        probabilities = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))  # the sigmoid, without overflow
        gold, predicted = self.targets(table, task) > 0, logits >= 0
        columns = {
            "gold": names_of_sets(gold, task["labels"]), "predicted": names_of_sets(predicted, task["labels"]),
            "correct": (gold == predicted).all(axis=1),
            "confidence": np.maximum(probabilities, 1 - probabilities).prod(axis=1),
            "gold_confidence": np.where(gold, probabilities, 1 - probabilities).prod(axis=1),
            "margin": np.abs(2 * probabilities - 1).min(axis=1)}
        columns |= {f"prob_{name}": probabilities[:, i] for i, name in enumerate(task["labels"])}
        return pd.DataFrame(columns)

    def figures(self, predictions: pd.DataFrame, task: dict[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
        """As scikit-learn defines them; accuracy is the mean over the labels, exact_match wants the whole set."""
        gold, predicted = (sets_of_names(predictions[name], task["labels"]) for name in ("gold", "predicted"))
        hits, false, missed = (weights @ cells for cells in (gold & predicted, ~gold & predicted, gold & ~predicted))
        precision, recall = ratio(hits, hits + false), ratio(hits, hits + missed)
        f1, total = ratio(2 * hits, 2 * hits + false + missed), weights.sum(axis=1)
        summed = [cells.sum(axis=1) for cells in (hits, false, missed)]
        scores = {"macro_f1": f1.mean(axis=1), "micro_f1": ratio(2 * summed[0], 2 * summed[0] + summed[1] + summed[2]),
                  "exact_match": weights @ (gold == predicted).all(axis=1) / total,
                  "accuracy": weights @ (gold == predicted).mean(axis=1) / total}
        for i, label in enumerate(task["labels"]):
            scores |= {f"precision_{label}": precision[:, i], f"recall_{label}": recall[:, i], f"f1_{label}": f1[:, i]}
        return scores

    def confusion(self, predictions: pd.DataFrame, task: dict[str, Any]) -> pd.DataFrame:
        """A row per label (column `gold`): how often it is right, missing, extra, and rightly absent."""
        gold, predicted = (sets_of_names(predictions[name], task["labels"]) for name in ("gold", "predicted"))
        cells = {"right": gold & predicted, "missing": gold & ~predicted, "extra": ~gold & predicted,
                 "rightly absent": ~gold & ~predicted}
        return pd.DataFrame({"gold": task["labels"], **{name: cell.sum(axis=0) for name, cell in cells.items()}})

    def error_types(self, wrong: pd.DataFrame, task: dict[str, Any]) -> list[str]:
        """`missing a, b; extra c`."""
        gold, predicted = (sets_of_names(wrong[name], task["labels"]) for name in ("gold", "predicted"))
        names = np.array(task["labels"], dtype=object)
        parts = ([("missing", names[lost]), ("extra", names[false])]
                 for lost, false in zip(gold & ~predicted, ~gold & predicted, strict=True))
        return ["; ".join(f"{what} {', '.join(found)}" for what, found in part if len(found)) for part in parts]

    def baselines(self, train: pd.DataFrame, test: pd.DataFrame, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """The most frequent set of labels, and a logistic regression over TF-IDF for each label."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        sets = sets_of_names(train["label"], task["labels"])
        train_features, test_features = tfidf(train, test, task["text"])
        with warnings.catch_warnings():  # a label that all or none of the training texts have is predicted so
            warnings.filterwarnings("ignore", "Label .* is present in all training examples")
            model = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(train_features, sets)
        predicted = names_of_sets(model.predict(test_features) > 0, task["labels"])
        return {"majority": judged(test, most_frequent(train["label"])),
                "tfidf + logistic regression": judged(test, predicted)}


class MultipleChoice(Classification):
    """One of the options that each example brings, in the columns task["options"]. label: int64, the option's place."""

    auto_class = "AutoModelForMultipleChoice"
    takes_class_weights = False  # an option's place says nothing
    confidence_is = "softmax probability of the chosen option"

    def encode(
        self, table: pd.DataFrame, task: dict[str, Any], tokenizer: Any, max_length: int, _images: Any = None
    ) -> TokenDataset:
        """A pair of sequences per option: (question, option), or, where the text has a blank `_`, parted at the blank.

        (text up to the blank, option + rest) is how github.com/allenai/winogrande fills it.
        """
        firsts, seconds = [], []
        for text, *options in table[[task["text"][0], *task["options"]]].itertuples(index=False, name=None):
            first, *rest = re.split("_+", text, maxsplit=1)
            firsts += [first.strip()] * len(options)
            seconds += [option + (rest[0] if rest else "") for option in options]
        encoded = tokenize(tokenizer, firsts, seconds, max_length)
        return TokenDataset(encoded, self.targets(table, task), pad_values(tokenizer), len(task["options"]))

    def vectors_are(self, layer: str) -> str:
        """As of one text, of each option."""
        return f"options' {super().vectors_are(layer)}"

    def head_vectors(self, hidden: Any, inputs: dict[str, Any]) -> Any:
        """The head reads one vector per option, (batch * options, size): they stand side by side in one row."""
        return super().head_vectors(hidden, inputs).reshape(len(inputs["input_ids"]), -1)

    def error_types(self, wrong: pd.DataFrame, _task: dict[str, Any]) -> list[str]:
        """chosen -> gold."""
        return [f"{chosen} -> {gold}" for chosen, gold in zip(wrong["predicted"], wrong["gold"], strict=True)]

    def baselines(self, train: pd.DataFrame, test: pd.DataFrame, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """The most frequent place, and the option whose pair with the text a logistic regression finds likeliest."""
        from sklearn.linear_model import LogisticRegression

        text, options, labels = task["text"][0], task["options"], np.array(task["labels"], dtype=object)
        pairs = [pd.DataFrame({"text": table[text].repeat(len(options)), "option": table[options].to_numpy().ravel()})
                 for table in (train, test)]
        is_gold = (train["label"].to_numpy()[:, None] == labels).ravel()
        train_features, test_features = tfidf(*pairs, ["text", "option"])
        scores = LogisticRegression(max_iter=1000).fit(train_features, is_gold).decision_function(test_features)
        chosen = labels[scores.reshape(-1, len(options)).argmax(axis=1)]
        return {"majority": judged(test, most_frequent(train["label"])),
                "tfidf + logistic regression": judged(test, chosen)}


ANSWERABLE = ("no answer", "answerable")  # the groups of extractive question answering in pictures, the positive last
QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how")
YES_NO_WORDS = ("is", "are", "was", "were", "do", "does", "did", "has", "have", "can", "could", "will", "would")


def question_type(question: str) -> str:
    """yes/no, or the question word that comes first; `other question` without either."""
    words = re.findall(r"\w+", question.lower())
    if words and words[0] in YES_NO_WORDS:
        return "yes/no"
    return next((word for word in words if word in QUESTION_WORDS), "other question")


class WindowDataset(TokenDataset):
    """Windows over long contexts. labels: int64 (windows, 3): first and last token of the answer, tokens.

    Args:
        columns, pads: as TokenDataset's, a sequence per window.
        labels: as above; both positions are the null position where the window holds no answer.
        examples: int, (windows,): the row of the table that each is cut from, ascending.
        offsets: per window int (tokens, 2): the characters of the context that a token stands for; -1 outside it.
        nulls: int, (windows,): the null position, whose score is that of "no answer".
    """

    def __init__(self, columns: dict[str, list[Any]], labels: np.ndarray, pads: dict[str, int], examples: list[int],
                 offsets: list[np.ndarray], nulls: list[int]):
        super().__init__(columns, labels, pads)
        self.examples, self.nulls = np.array(examples, dtype=np.int64), np.array(nulls, dtype=np.int64)
        self.offsets = np.concatenate(offsets)  # flat, (tokens of all windows, 2)


class Span(Kind):
    """A stretch of the context that answers the question, or no answer (SQuAD 2.0).

    label: {"text": [...], "answer_start": [...]}, the accepted answers; empty lists: the question has none. The
    model's examples are windows of up to max_length tokens that overlap by task["doc_stride"] (128) tokens.
    """

    auto_class = "AutoModelForQuestionAnswering"
    train_metric = "window_exact"
    closed_set = False
    confidence_is = "probability of the answer among the n best spans and no answer"
    tuned = ("null_threshold", "temperature")
    max_answer_tokens = 30  # both figures are those of transformers' run_qa.py
    n_best = 20

    def output_names(self, _task: dict[str, Any]) -> list[str]:
        """Two outputs per token."""
        return ["start", "end"]

    def read_labels(self, column: pd.Series, _task: dict[str, Any]) -> pd.Series:
        """The accepted answers as plain lists; None where there is no cell."""
        return column.map(lambda answers: {
            "text": [str(text) for text in answers["text"]],
            "answer_start": [int(start) for start in answers["answer_start"]]} if isinstance(answers, dict) else None)

    def strata(self, table: pd.DataFrame, _task: dict[str, Any]) -> np.ndarray:
        """Whether the question has an answer."""
        return np.array(["answerable" if answers["text"] else "unanswerable" for answers in table["label"]])

    def gold(self, table: pd.DataFrame, _task: dict[str, Any]) -> np.ndarray:
        """The accepted answers, joined by ` | `; "" where there is none."""
        return np.array([" | ".join(dict.fromkeys(answers["text"])) for answers in table["label"]], dtype=object)

    def encode(
        self, table: pd.DataFrame, task: dict[str, Any], tokenizer: Any, max_length: int, _images: Any = None
    ) -> WindowDataset:
        """Windows over question and context, in the order of `table`; a question is cut to half of max_length."""
        if not tokenizer.is_fast:
            raise UserError("this model's tokenizer can't say which characters its tokens stand for; take another")
        columns = {name: [] for name in pad_values(tokenizer)}
        labels, examples, offsets, nulls = [], [], [], []
        for first in range(0, len(table), TOKENIZED_AT_ONCE):
            rows = table.iloc[first:first + TOKENIZED_AT_ONCE]
            encoded = self._windows(rows, task, tokenizer, max_length)
            for name in columns:
                columns[name] += [np.array(ids, dtype=np.int32) for ids in encoded[name]]
            for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
                ids = encoded["input_ids"][window]
                in_context = np.array([part == 1 for part in encoded.sequence_ids(window)])
                offsets.append(np.where(in_context[:, None], encoded["offset_mapping"][window], -1).astype(np.int32))
                # cls_token is BERT's [CLS] and RoBERTa's <s>; where there is none, as in GPT-2, the first token serves
                nulls.append(ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0)
                labels.append([*answer_tokens(rows["label"].iloc[row], offsets[-1], nulls[-1]), len(ids)])
                examples.append(first + row)
        return WindowDataset(columns, np.array(labels, dtype=np.int64), pad_values(tokenizer), examples, offsets, nulls)

    def _windows(self, rows: pd.DataFrame, task: dict[str, Any], tokenizer: Any, max_length: int) -> Any:
        questions = rows[task["text"][0]].str.strip().tolist()
        asked = tokenizer(questions, truncation=True, max_length=max_length // 2, add_special_tokens=False,
                          return_offsets_mapping=True)["offset_mapping"]
        questions = [question[:max((end for _, end in offsets), default=0)]
                     for question, offsets in zip(questions, asked, strict=True)]
        return tokenizer(questions, rows[task["text"][1]].tolist(), truncation="only_second", max_length=max_length,
                         stride=min(task.get("doc_stride", 128), max_length // 4), return_overflowing_tokens=True,
                         return_offsets_mapping=True, return_attention_mask=False)

    def loss(self, outputs: Any, labels: Any, _weights: Any) -> Any:
        """Mean of the cross-entropies of the first and the last token in nats, summed; logits (batch, tokens) each.

        Padding is masked: the loss of a window must not depend on its neighbours in the batch.
        """
        import torch.nn.functional as F

        starts, ends, lengths = labels.T
        return sum(F.cross_entropy(mask_padding(outputs[name].float(), lengths), positions, reduction="sum")
                   for name, positions in (("start_logits", starts), ("end_logits", ends))) / 2

    def score(self, outputs: Any, labels: Any) -> Any:
        """Number of windows whose first and last token are both right."""
        starts, ends, lengths = labels.T
        right = [mask_padding(outputs[name].detach(), lengths).argmax(dim=1) == positions
                 for name, positions in (("start_logits", starts), ("end_logits", ends))]
        return (right[0] & right[1]).sum()

    def collect(self, outputs: Any, _inputs: dict[str, Any]) -> Any:
        """Start and end logits, float32 (batch, tokens, 2)."""
        import torch

        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1).float()

    def vectors_are(self, layer: str) -> str:
        """The head reads one per token: the first stands for the question and its context."""
        return f"first tokens' vectors, the input of {layer}"

    def head_vectors(self, hidden: Any, _inputs: dict[str, Any]) -> Any:
        """The first token's vector, from which "no answer" is read, (batch, hidden size)."""
        return hidden[:, 0]

    def _candidates(self, logits: np.ndarray, dataset: WindowDataset) -> tuple[np.ndarray, list[dict[Any, float]]]:
        """Per example: the null score, the least over its windows, and the n best spans, {(from, to): score}.

        from and to are characters of the context; a score is the start's logit plus the end's.
        """
        nulls = np.full(dataset.examples.max(initial=-1) + 1, math.inf)
        spans: list[dict[Any, float]] = [{} for _ in nulls]
        for window, example in enumerate(dataset.examples):
            tokens = slice(dataset.starts[window], dataset.starts[window + 1])
            start, end = logits[window, :tokens.stop - tokens.start].astype(np.float64).T
            null, offsets = dataset.nulls[window], dataset.offsets[tokens]
            nulls[example] = min(nulls[example], start[null] + end[null])
            context = np.flatnonzero(offsets[:, 0] >= 0)
            if len(context) == 0:
                continue
            end = np.pad(end[context], (0, self.max_answer_tokens - 1), constant_values=-math.inf)
            ends = np.lib.stride_tricks.sliding_window_view(end, self.max_answer_tokens)
            scores = start[context, None] + ends  # [i, k]: from the context's token i to its token i + k
            for best in np.argpartition(-scores, self.n_best, axis=None)[:self.n_best]:
                i, k = divmod(best, self.max_answer_tokens)
                if i + k < len(context):
                    span = int(offsets[context[i], 0]), int(offsets[context[i + k], 1])
                    spans[example][span] = max(scores[i, k], spans[example].get(span, -math.inf))
        return nulls, [dict(sorted(found.items(), key=lambda item: -item[1])[:self.n_best]) for found in spans]

    def tune(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], dataset: WindowDataset
    ) -> dict[str, float]:
        """null_threshold: how far the null score may be above the best span's, where F1 over `table` is highest.

        The official script's find_best_thresh, but for the place: halfway between two examples. temperature: where the
        log-likelihood of the predicted answers' being right or wrong is highest, as the gold answer may not be among
        the n best.
        """
        nulls, spans = self._candidates(logits, dataset)
        gaps = nulls - np.array([max(found.values(), default=-1e4) for found in spans])
        gains = [squad_scores(context[slice(*next(iter(found), (0, 0)))], answers["text"])[1] if answers["text"] else -1
                 for found, context, answers in zip(spans, table[task["text"][1]], table["label"], strict=True)]
        edges, places = np.unique(gaps, return_inverse=True)
        totals = np.concatenate([[0], np.cumsum(np.bincount(places, weights=gains))])
        cuts = np.concatenate([[edges[0] - 1], (edges[:-1] + edges[1:]) / 2, [edges[-1] + 1]])
        threshold = float(cuts[totals.argmax()])
        right = self._answers(nulls, spans, table, task | {"null_threshold": threshold})["correct"].to_numpy()
        scores = np.full((len(spans), self.n_best + 1), -math.inf)
        scores[:, -1] = nulls - threshold
        for row, found in zip(scores, spans, strict=True):
            row[:len(found)] = list(found.values())

        def loss(temperature: float) -> float:
            sure = softmax(scores / temperature).max(axis=1).clip(1e-12, 1 - 1e-12)  # both logarithms stay finite
            return -np.log(np.where(right, sure, 1 - sure)).mean()

        return {"null_threshold": threshold, "temperature": fit_temperature(loss)}

    def confidences(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], dataset: WindowDataset | None,
        temperature: float,
    ) -> np.ndarray:
        """As for the other kinds; the null threshold is of the logits' scale and is divided too."""
        scaled = task | {"null_threshold": task.get("null_threshold", 0.0) / temperature}
        return super().confidences(logits, table, scaled, dataset, temperature)

    def predict(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], dataset: WindowDataset
    ) -> pd.DataFrame:
        """Answers cut from the context, "" for none; probabilities over an example's n best spans and no answer.

        null_threshold is taken off the null score first, so that what is most probable is what is predicted.
        gold_confidence: of all spans that read like an accepted answer; correct: exact match; f1: the best over them.
        """
        return self._answers(*self._candidates(logits, dataset), table, task)

    def _answers(
        self, nulls: np.ndarray, spans: list[dict[Any, float]], table: pd.DataFrame, task: dict[str, Any]
    ) -> pd.DataFrame:
        rows = []
        golds = self.gold(table, task)
        for null, found, context, answers, gold in zip(
                nulls, spans, table[task["text"][1]], table["label"], golds, strict=True):
            texts = [*(context[slice(*span)] for span in found), ""]
            probabilities = softmax(np.array([*found.values(), null - task.get("null_threshold", 0.0)]))
            best, accepted = probabilities.argmax(), {normalize_answer(text) for text in answers["text"] or [""]}
            ranked, (exact, f1) = np.sort(probabilities), squad_scores(texts[best], answers["text"])
            rows.append({
                "gold": gold, "predicted": texts[best], "correct": exact == 1,
                "confidence": probabilities[best],
                "gold_confidence": sum(p for p, text in zip(probabilities, texts, strict=True)
                                       if normalize_answer(text) in accepted),
                "margin": ranked[-1] - ranked[:-1].max(initial=0), "prob_no_answer": probabilities[-1], "f1": f1})
        return pd.DataFrame(rows)

    def figures(self, predictions: pd.DataFrame, _task: dict[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
        """exact and f1 of all questions, of those that have an answer and of those that have none (NaN without any)."""
        scores = {}
        for prefix, part in self._parts(predictions).items():
            for name, column in (("exact", "correct"), ("f1", "f1")):
                values = predictions[column].to_numpy(np.float64)
                shares = ratio(weights @ (values * part), weights @ part)
                scores[prefix + name] = shares if part.any() else np.full(len(shares), math.nan)
        return scores

    def examples_of(self, metric: str, predictions: pd.DataFrame) -> int:
        """The questions that have an answer, or none, where the metric is of these alone."""
        parts = self._parts(predictions)
        return int(parts.get(metric[:metric.rfind("_") + 1], parts[""]).sum())

    def _parts(self, predictions: pd.DataFrame) -> dict[str, np.ndarray]:
        """The questions that metrics are over, bool (examples,), by what their names begin with."""
        has_answer = (predictions["gold"] != "").to_numpy()
        return {"": has_answer | True, "has_ans_": has_answer, "no_ans_": ~has_answer}

    def confusion(self, predictions: pd.DataFrame, _task: dict[str, Any]) -> pd.DataFrame:
        """Whether there is an answer (rows), and whether one is predicted (columns)."""
        gold, predicted = (np.where(predictions[name] == "", "no answer", "answer") for name in ("gold", "predicted"))
        return confusion_table(gold, predicted, ["answer", "no answer"])

    def picture_groups(self, table: pd.DataFrame, task: dict[str, Any]) -> pd.Series:
        """Answerable or not; the question word where all questions have an answer."""
        if (table["gold"] == "").any() or task["text"][0] not in table:
            return table["gold"].map(lambda answer: ANSWERABLE[answer != ""])
        return table[task["text"][0]].map(question_type)

    def error_types(self, wrong: pd.DataFrame, _task: dict[str, Any]) -> list[str]:
        """false answer, missed answer, wrong span, or partial span where a word is shared."""
        return ["false answer" if gold == "" else "missed answer" if predicted == "" else
                "partial span" if float(f1) > 0 else "wrong span"
                for gold, predicted, f1 in zip(wrong["gold"], wrong["predicted"], wrong["f1"], strict=True)]

    def baselines(self, _train: pd.DataFrame, test: pd.DataFrame, _task: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """No answer to any question: right, word for word, where there is none."""
        table = judged(test, "")
        return {"no answer": table.assign(f1=table["correct"].astype("float64"))}


class Answers(Kind):
    """One answer of a closed set of hundreds. label: the answer's text, so that one outside the set stays readable."""

    confidence_is = "softmax probability of the predicted answer"

    def read_labels(self, column: pd.Series, _task: dict[str, Any]) -> pd.Series:
        """The answers as text; None where there is none."""
        return column.map(lambda answer: label_text(answer) or None)

    def label_counts(self, table: pd.DataFrame, _task: dict[str, Any]) -> dict[str, int]:
        """Rows of the ten most frequent answers, and of all others."""
        counts = table["label"].value_counts()
        return {**counts.head(10).to_dict(), f"{max(len(counts) - 10, 0)} others": int(counts.iloc[10:].sum())}

    def targets(self, table: pd.DataFrame, task: dict[str, Any]) -> np.ndarray:
        """int64 (examples,): positions in task["labels"]; -2 for an answer outside it, which only a test may have."""
        numbers = {name: number for number, name in enumerate(task["labels"])}
        return np.array([numbers.get(answer, -2) for answer in table["label"]], dtype=np.int64)

    def predict(
        self, logits: np.ndarray, table: pd.DataFrame, task: dict[str, Any], _dataset: TokenDataset | None = None
    ) -> pd.DataFrame:
        """As for a small closed set, but without a column per answer; an answer outside the set has probability 0."""
        gold, probabilities = self.targets(table, task), softmax(logits)
        predictions = closed_set_predictions(probabilities, gold, task["labels"]).loc[:, :"margin"]
        known = gold >= 0
        return predictions.assign(gold=table["label"].to_numpy(), correct=predictions["correct"] & known,
                                  gold_confidence=predictions["gold_confidence"].where(known, 0.0))

    def figures(self, predictions: pd.DataFrame, _task: dict[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
        """The share of right answers."""
        return {"accuracy": weights @ predictions["correct"].to_numpy(np.float64) / weights.sum(axis=1)}

    def error_types(self, wrong: pd.DataFrame, _task: dict[str, Any]) -> list[str]:
        """chosen -> gold."""
        return [f"{chosen} -> {gold}" for chosen, gold in zip(wrong["predicted"], wrong["gold"], strict=True)]

    def baselines(self, train: pd.DataFrame, test: pd.DataFrame, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """The most frequent answer, and naive Bayes over the question's TF-IDF.

        For thousands of answers and a million questions a logistic regression would take hours.
        """
        from sklearn.naive_bayes import MultinomialNB

        train_features, test_features = tfidf(train, test, task["text"])
        model, answers = MultinomialNB(), np.unique(train["label"])
        for first in range(0, len(train), 10_000):  # fit() makes a dense column per answer
            part = slice(first, first + 10_000)
            model.partial_fit(train_features[part], train["label"].iloc[part], classes=answers)
        return {"majority": judged(test, most_frequent(train["label"])),
                "tfidf + naive Bayes": judged(test, model.predict(test_features))}


class ImageDataset(TokenDataset):
    """Questions with the image of each: an image is opened when its example is asked for, so memory stays flat.

    Args:
        columns, labels, pads: as TokenDataset's, a sequence per question.
        names: per example, the id of its image.
        images: id -> PIL image, as Images gives it.
    """

    def __init__(self, columns: dict[str, list[Any]], labels: np.ndarray, pads: dict[str, int], names: list[str],
                 images: Any):
        from transformers import ViltImageProcessorPil  # the slow path: PIL and numpy, without torchvision

        super().__init__(columns, labels, pads)
        self.names, self.images, self.processor = names, images, ViltImageProcessorPil()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The question's tokens, pixel_values (float32 (3, height, width), the shorter edge 384) and the label."""
        pixels = self.processor([self.images[self.names[index]]], return_tensors="np")["pixel_values"][0]
        return {**super().__getitem__(index), "pixel_values": pixels}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """TokenDataset's tensors, pixel_values (batch, 3, height, width) and pixel_mask, 0 on the padding."""
        import torch

        pixels = [torch.from_numpy(example["pixel_values"]) for example in examples]
        height, width = (max(image.shape[axis] for image in pixels) for axis in (1, 2))
        values = torch.zeros(len(pixels), 3, height, width)
        mask = torch.zeros(len(pixels), height, width, dtype=torch.int64)
        for i, image in enumerate(pixels):
            values[i, :, :image.shape[1], :image.shape[2]] = image
            mask[i, :image.shape[1], :image.shape[2]] = 1
        return {**super().collate(examples), "pixel_values": values, "pixel_mask": mask}


class Visual(Answers):
    """A question about an image, whose id stands in the column task["image"]; ViLT reads both."""

    auto_class = "AutoModelForVisualQuestionAnswering"
    sample_config = ("ViltConfig", {})

    def picture_groups(self, table: pd.DataFrame, task: dict[str, Any]) -> pd.Series:
        """The type of the question, where the table has it."""
        return table[task["text"][0]].map(question_type) if task["text"][0] in table else table["gold"]

    def check_model(self, config: Any) -> None:
        """Raise UserError for any other family: BLIP writes its answers out."""
        if config.model_type != "vilt":
            raise UserError(f"questions about images take a ViLT model, such as dandelin/vilt-b32-mlm, not a "
                            f"{config.model_type} model")

    def encode(
        self, table: pd.DataFrame, task: dict[str, Any], tokenizer: Any, max_length: int, images: Any = None
    ) -> ImageDataset:
        """The questions as tokens, the images as they are asked for; UserError where one is missing."""
        names = table[task["image"]].astype(str).tolist()
        missing = [name for name in names if name not in images]
        if missing:
            raise UserError(f"{task['key']}: {len(missing)} of {len(names)} examples lack their image, such as "
                            f"{missing[0]}")
        encoded = tokenize(tokenizer, table[task["text"][0]].tolist(), None, max_length)
        return ImageDataset(encoded, self.targets(table, task), pad_values(tokenizer), names, images)


class Images:
    """Images by id, opened when asked for.

    Args:
        source: a folder of <id>.jpg (or another ending), or a datasets.Dataset with the columns id and image.
    """

    def __init__(self, source: Any):
        self.source = source
        self.places = ({path.stem: path for path in source.iterdir()} if isinstance(source, Path) else
                       {str(name): row for row, name in enumerate(source["id"])})

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __getitem__(self, name: str) -> Any:
        """The image as PIL's RGB."""
        from PIL import Image

        place = self.places[name]
        with Image.open(place) if isinstance(place, Path) else self.source[place]["image"] as image:
            return image.convert("RGB")


KINDS = {"classification": Classification(), "regression": Regression(), "multilabel": Multilabel(),
         "multiple_choice": MultipleChoice(), "span": Span(), "answers": Answers(), "visual": Visual()}


def confusion_table(gold: Any, predicted: Any, labels: list[str]) -> pd.DataFrame:
    """Rows: gold labels (column `gold`); columns: predicted labels; cells: examples."""
    from sklearn import metrics

    counts = metrics.confusion_matrix(gold, predicted, labels=labels)
    table = pd.DataFrame(counts, columns=labels)
    table.insert(0, "gold", labels, allow_duplicates=True)  # a label may be called gold
    return table


def most_frequent(labels: pd.Series) -> Any:
    """The label that occurs most often; of several, the first in the alphabet."""
    return labels.mode().iloc[0]


def judged(test: pd.DataFrame, predicted: Any) -> pd.DataFrame:
    """gold of `test`, predicted (a column, or one value for all) and whether they are equal."""
    return test[["gold"]].assign(predicted=predicted, correct=test["gold"] == predicted)


def tfidf(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> list[Any]:
    """TF-IDF over the words and marks of `train`, sparse float64 (examples, features), of train and of test.

    A pair of texts a and b is [a, b, |a - b|, a * b] (Conneau et al. 2017, section 3.1), so that a linear model sees
    what they share.
    """
    from scipy import sparse  # comes with scikit-learn
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", max_features=50_000)
    vectorizer.fit(chain.from_iterable(train[name] for name in columns))
    features = []
    for table in (train, test):
        texts = [vectorizer.transform(table[name]) for name in columns]
        if len(texts) == 2:
            texts += [abs(texts[0] - texts[1]), texts[0].multiply(texts[1])]
        features.append(sparse.hstack(texts, format="csr"))
    return features


def resampled(
    count: int, draws: int, figures: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """`figures` of `draws` bootstrap samples of `count` examples (Efron 1979), (draws,) each, seeded.

    figures: gets how often each example occurs in each of some samples, float64 (samples, count).
    """
    rng, parts = np.random.default_rng(SPLIT_SEED), []
    for first in range(0, draws, 100):  # 100 x examples weights at a time: memory stays flat
        weights = rng.multinomial(count, np.full(count, 1 / count), size=min(100, draws - first))
        parts.append(figures(weights.astype(np.float64)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 0/0 counts as 0, scikit-learn's zero_division."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(part / whole)


def weighted_pearson(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r, (samples,), where weights is (samples, examples); 0 where a column does not vary."""
    total = weights.sum(axis=1, keepdims=True)
    first, second = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (first, second))
    covariance = (weights * first * second).sum(axis=1)
    return ratio(covariance, np.sqrt((weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)))


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rank of each example, (samples, examples), in a sample where it occurs weights times; ties share the mean."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)  # (samples, distinct values)
    return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, group]


def names_of_sets(sets: np.ndarray, labels: list[str]) -> np.ndarray:
    """The names of each row's labels, bool (examples, labels), joined by ` | `; `none` where it has none."""
    names = np.array(labels, dtype=object)
    return np.array([" | ".join(names[row]) or "none" for row in sets], dtype=object)


def sets_of_names(joined: Iterable[str], labels: list[str]) -> np.ndarray:
    """What names_of_sets was given."""
    return np.array([[label in names for label in labels] for names in (text.split(" | ") for text in joined)],
                    dtype=bool).reshape(-1, len(labels))


def mask_padding(logits: Any, lengths: Any) -> Any:
    """Logits (batch, tokens), minus infinity from each row's length on."""
    import torch

    return logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None], -math.inf)


def answer_tokens(answers: dict[str, Any], offsets: np.ndarray, null: int) -> tuple[int, int]:
    """First and last token of the first accepted answer; (null, null) where the window does not hold all of it."""
    context = np.flatnonzero(offsets[:, 0] >= 0)
    if answers["text"] and len(context):
        first = answers["answer_start"][0]
        last = first + len(answers["text"][0])
        starts, ends = offsets[context].T
        if starts[0] <= first and last <= ends[-1]:
            return (int(context[np.searchsorted(ends, first, side="right")]),
                    int(context[np.searchsorted(starts, last, side="left") - 1]))
    return null, null


# SQuAD 2.0's score, by the definition of its official script:
# https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e/contents/blob/


def normalize_answer(text: str) -> str:
    """`text` in lower case, without ASCII punctuation, then without a, an and the, single spaces between the words."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_scores(predicted: str, accepted: list[str]) -> tuple[float, float]:
    """Exact match and F1 of the words, each the best over the accepted answers; none accepted: "" alone is right."""
    accepted = [text for text in accepted if normalize_answer(text)] or [""]
    exact = max(float(normalize_answer(predicted) == normalize_answer(text)) for text in accepted)
    return exact, max(word_f1(normalize_answer(predicted).split(), normalize_answer(text).split()) for text in accepted)


def word_f1(predicted: list[str], gold: list[str]) -> float:
    """2PR / (P + R) of the words, each as often as it occurs; with no word on a side, whether both have none."""
    if not predicted or not gold:
        return float(predicted == gold)
    shared = sum((Counter(predicted) & Counter(gold)).values())
    precision, recall = shared / len(predicted), shared / len(gold)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def label_ids(column: pd.Series, task: dict[str, Any]) -> pd.Series:
    """Positions in task["labels"] of a column of ids or names, float64; NaN for an empty cell and a missing one.

    -1 is a hidden label (NaN) unless the task has a label of that name.

    Raises UserError for a label that the task doesn't know.
    """
    names = {str(name): number for number, name in enumerate(task.get("raw_labels", task["labels"]))}
    if pd.api.types.is_numeric_dtype(column) and not set(names) & set(column.dropna().map(label_text)):
        ids = column.astype("float64").where(column != HIDDEN_LABEL)
        unknown = ids.notna() & ~ids.isin(range(len(names)))
    else:
        texts = column.map(label_text)
        ids, unknown = texts.map(names).astype("float64"), ~texts.isin([*names, "", str(HIDDEN_LABEL)])
    if unknown.any():
        found = column[unknown].iloc[0]
        raise UserError(f"label {found!r} ({int(unknown.sum())} rows) is not one that {task['key']} knows: "
                        f"{', '.join(map(repr, names))}")
    return ids


def label_text(value: Any) -> str:
    """A label as text: stripped; 1.0 is '1', a missing one is ''."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def cross_entropy(logits: np.ndarray, gold: np.ndarray) -> float:
    """Mean cross-entropy in nats; logits (examples, labels), gold int (examples,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(gold)), gold]).mean())


def fit_temperature(loss: Callable[[float], float]) -> float:
    """The temperature from 0.05 to 20 at which `loss` is least (Guo, Pleiss, Sun & Weinberger 2017, section 4.2).

    Above 1: the model is surer of itself than it should be. At an end of the range the validation split could not
    tell, as where the model gets all of it right.
    """
    from scipy.optimize import minimize_scalar  # comes with scikit-learn

    found = minimize_scalar(lambda logarithm: loss(math.exp(logarithm)), bounds=(math.log(0.05), math.log(20)),
                            method="bounded", options={"xatol": 1e-4})
    return math.exp(found.x)


def closed_set_predictions(probabilities: np.ndarray, gold: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """gold, predicted, correct, confidence (of the predicted label), gold_confidence, margin, prob_<label>.

    probabilities: (examples, labels); gold: int (examples,); margin: the highest probability less the second highest.
    """
    names, rows = np.array(labels, dtype=object), np.arange(len(gold))
    predicted = probabilities.argmax(axis=1)
    ranked = np.sort(probabilities, axis=1)
    columns = {"gold": names[gold], "predicted": names[predicted], "correct": predicted == gold,
               "confidence": probabilities[rows, predicted], "gold_confidence": probabilities[rows, gold],
               "margin": ranked[:, -1] - ranked[:, -2]}
    return pd.DataFrame({**columns, **{f"prob_{name}": probabilities[:, i] for i, name in enumerate(labels)}})


# =====================================================================================================================
# Part 3. The data: catalog entry -> raw rows -> train, validation, test -> samples
# =====================================================================================================================


@functools.cache
def catalog() -> dict[str, dict[str, Any]]:
    """Every entry of catalog/*.toml by its key; it also holds `key` and `row_file`, its files' name."""
    entries = {}
    for path in sorted(CATALOG_DIR.glob("*.toml")):
        with path.open("rb") as file:
            for key, entry in tomllib.load(file).items():
                entries[key] = {"key": key, "row_file": path.stem, **entry}
    return entries


def catalog_table() -> pd.DataFrame:
    """What `train.py --list` prints: a row per key; examples are those of train/validation/test, ? where not known."""
    rows = []
    for key, entry in catalog().items():
        labels, sizes = entry.get("labels", "-"), (entry["rows"].get(split) for split in entry["splits"].values())
        rows.append({
            "key": key, "row": entry["row"], "kind": entry["kind"],
            "labels": len(labels) if isinstance(labels, list) else labels,
            "examples": "/".join(str(size or "?") for size in sizes),
            "from": "by hand" if entry.get("by_hand") else "hub" if "hub" in entry else "download",
            "licence": re.split(r"[(;,]", entry["licence"])[0].strip()[:32], "source": entry["source"]})
    return pd.DataFrame(rows)


@dataclasses.dataclass
class Data:
    """The splits of a task, ready to be tokenised, and what run.json says of them."""

    task: dict[str, Any]  # the catalog entry
    splits: dict[str, pd.DataFrame]  # train, validation, test: id, the text columns, label
    record: dict[str, Any]
    images: Any = None  # of a visual task: id -> PIL image
    leakage: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)  # what leakage() returns


def load_data(
    args: argparse.Namespace, test_only: bool = False, labels: list[str] | None = None, whole_file: bool = False
) -> Data:
    """Read, clean, split and sample the data set that the flags name; UserError where it can't be had or used.

    Every draw depends on SPLIT_SEED alone: two seeds of a model train and are tested on the same examples. test_only
    takes tasks without a train split as well, and leaves the other splits out; `labels` are those of a run, for tasks
    whose labels are found in the training data; with `whole_file` all of a user's file is the test.
    """
    task = find_task(args)
    if whole_file and "file" in task:
        task |= {"splits": {"test": "all"}, "why": "all of a file that the run was not trained on"}
    if task.get("labels") == "from data" and labels:
        task["labels"] = labels
    if "train" not in task["splits"] and not test_only:
        raise UserError(f"{task['key']} has no train split; train on {' or '.join(task['trained_on'][:2])}, then "
                        f"python evaluate.py --run FOLDER_OF_THAT_RUN --dataset {task['key']}")
    if test_only and "test" in task["splits"] and task.get("labels") != "from data":
        task["splits"] = {"test": task["splits"]["test"]}  # nothing has to be cut from train, nor learned from it
    raw, origin = read_raw(task, args)
    images = read_images(task, args) if "images" in task else None
    if images is not None:
        raw = {name: keep(table, table[task["image"]].astype(str).map(images.__contains__), "without an image")
               for name, table in raw.items()}
    if "prepare" in task:
        raw = {name: PREPARE[task["prepare"]](table) for name, table in raw.items()}
    for name in raw:
        require_columns(raw[name], task)
    kind = KINDS[task["kind"]]
    name_labels(task, raw, kind)
    cleaned = {name: clean(raw.pop(name), name, task, kind) for name in list(raw)}  # a large file is not held twice
    splits = make_splits({name: table for name, (table, _) in cleaned.items()}, task, kind)
    if test_only:
        splits = {"test": splits["test"]}
    whole = {name: len(table) for name, table in splits.items()}
    for name, table in splits.items():
        splits[name] = table.iloc[sample_rows(kind.strata(table, task), name, args)].reset_index(drop=True)
    check_splits(splits, task, kind)
    record = {
        **origin, "why": task["why"], "rows": whole, "used": {name: len(table) for name, table in splits.items()},
        "labels": {name: kind.label_counts(table, task) for name, table in splits.items()},
        "dropped": {name: dropped for name, (_, dropped) in cleaned.items() if any(dropped.values())},
    }
    return Data(task, splits, record, images, leakage(splits, task))


def leakage(splits: dict[str, pd.DataFrame], task: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Examples of test and validation that train holds too: {"train/test": {"n": rows, "share": of that split}, ...}.

    Two examples are the same where all their texts have the same words in the same order: case, punctuation and white
    space do not count. Of a text without a word, such as a single emoji, all counts.
    """
    def keys(table: pd.DataFrame) -> np.ndarray:
        columns = [[" ".join(re.findall(r"\w+", text.casefold())) or text for text in table[name]]
                   for name in text_columns(task)]
        return np.array([hash(texts) for texts in zip(*columns, strict=True)], dtype=np.int64)  # 8 bytes an example

    if "train" not in splits:
        return {}
    train, found = keys(splits["train"]), {}
    for name in ("validation", "test"):
        same = np.isin(keys(splits[name]), train)
        found[f"train/{name}"] = {"n": int(same.sum()), "share": float(same.mean())}
    return found


def check_splits(splits: dict[str, pd.DataFrame], task: dict[str, Any], kind: Any) -> None:
    """UserError where a split is empty, or where all that is left to train on has one label."""
    for name, table in splits.items():
        if table.empty:
            raise UserError(f"{task['key']}: the {name} split holds no example with a label and a text")
    if kind.closed_set and "train" in splits and len(np.unique(kind.strata(splits["train"], task))) < 2:
        raise UserError(f"{task['key']}: all training examples that are left have the same label: nothing to learn")


def name_labels(task: dict[str, Any], raw: dict[str, pd.DataFrame], kind: Any) -> None:
    """Set task["labels"] where the data has to say it: those of a user's file, or of train and validation together.

    In a user's file -1 is a label like any other, as where -1, 0 and 1 stand for negative, neutral and positive.
    """
    if not kind.closed_set:
        return
    if task["labels"] == "from data":
        names = [theirs for ours, theirs in task["splits"].items() if ours != "test"] or list(raw)
        found = set().union(*(raw[name][task["label"]].map(label_text) for name in names))
        task["labels"] = sorted(found - ({""} if "file" in task else {"", str(HIDDEN_LABEL)}))
    if len(task["labels"]) < 2:
        raise UserError(f"{task['key']}: column {task['label']} holds {len(task['labels'])} label(s), not two or more")
    rows = sum(map(len, raw.values()))
    if "file" in task and len(task["labels"]) > max(20, rows / 2):
        raise UserError(f"{task['key']}: column {task['label']} holds {len(task['labels'])} labels in {rows} rows, too "
                        "many to learn; is it another column that holds the label?")


def find_task(args: argparse.Namespace) -> dict[str, Any]:
    """The catalog entry of --dataset, or one made for a file; UserError offers the nearest keys."""
    path = Path(args.dataset)
    if path.suffix.lower() in TABLE_READERS:
        if not path.is_file():
            raise UserError(f"no file {path}")
        if not args.text_column or not args.label_column:
            raise UserError(f"{path} needs --text-column A [B] and --label-column L")
        names = [*args.text_column, args.label_column]
        if len(names) > 3 or len(set(names)) < len(names):
            raise UserError(f"{path} takes one text column or two, and a label column, all different, not "
                            f"{', '.join(map(repr, names))}")
        return {"key": path.stem, "row": "own file", "title": path.name, "kind": "classification", "file": str(path),
                "text": args.text_column, "label": args.label_column, "labels": "from data", "scores": [],
                "splits": {"train": "all"}, "validation_share": 0.1, "test_share": 0.1,
                "why": "one file: 80/10/10, stratified by label with a fixed seed", "metrics": ["accuracy", "macro_f1"],
                "max_length": 128}
    if args.dataset not in catalog():
        near = difflib.get_close_matches(args.dataset, catalog(), 3, 0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "python train.py --list prints the keys"
        raise UserError(f"no dataset {args.dataset!r} in the catalog and no {', '.join(TABLE_READERS)} file; {hint}")
    return dict(catalog()[args.dataset])


def read_raw(task: dict[str, Any], args: argparse.Namespace) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The source's own splits as tables in its own columns, by the source's names, and where they came from."""
    if "file" in task:
        return {"all": read_table(Path(task["file"]))}, {"source": task["file"], "revision": None}
    if args.sample:
        return read_sample(task)
    if "reader" in task:
        return read_files(task, args.data_dir), {"source": task["source"], "revision": None}
    return read_hub(task)


def read_sample(task: dict[str, Any]) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The catalog's sample rows: as the hub's tables, or through the task's reader from files like the publisher's."""
    owner = catalog()[task.get("sample", task["key"])]
    path = CATALOG_DIR / f"{owner['row_file']}.jsonl"
    lines = [json.loads(line) for line in read_lines(path)]
    origin = {"source": f"catalog/{path.name}, rows of our own writing", "revision": None}
    if "reader" in task:
        with tempfile.TemporaryDirectory() as folder:
            write_sample_files(lines, Path(folder))
            return read_files({**task, "source": origin["source"]}, Path(folder)), origin
    rows = {name: [line["row"] for line in lines
                   if line.get("split") == name and line.get("key", owner["key"]) == owner["key"]]
            for name in set(task["splits"].values())}
    return {name: pd.DataFrame(split) for name, split in rows.items()}, origin


def write_sample_files(lines: list[dict[str, Any]], folder: Path) -> None:
    """Write the sample lines that name a `file` into `folder`, each file in its publisher's format.

    A file's lines hold a `row` each (.csv, .tsv, .jsonl), a `line` each (any text) or the whole file (`json`).
    `name.zip!member` is a member of a zip.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if "file" in line:
            files.setdefault(line["file"], []).append(line)
    for name, entries in files.items():
        path, _, member = name.partition("!")
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        content = sample_file(Path(name).suffix, entries).encode("utf-8")
        if member:
            with zipfile.ZipFile(place, "a") as archive:
                archive.writestr(member, content)
        else:
            place.write_bytes(content)


def sample_file(suffix: str, entries: list[dict[str, Any]]) -> str:
    """The text of one file of sample rows; columns in the order of the first row."""
    if "json" in entries[0]:
        return json.dumps(entries[0]["json"], ensure_ascii=False)
    if "line" in entries[0]:
        return "".join(f"{entry['line']}\n" for entry in entries)
    rows = [entry["row"] for entry in entries]
    if suffix == ".jsonl":
        return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    if suffix == ".tsv":  # no quotes: publishers' .tsv files have none
        return "".join("\t".join(map(str, cells)) + "\n" for cells in [rows[0].keys(), *(row.values() for row in rows)])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table(path: Path) -> pd.DataFrame:
    """A user's .csv, .tsv, .jsonl or .parquet file; UserError where it can't be read or is empty."""
    try:
        table = TABLE_READERS[path.suffix.lower()](path)
    except (ValueError, OSError, RecursionError, NotImplementedError) as error:  # the parsers' own are ValueErrors
        raise UserError(f"{path} can't be read as {path.suffix}: {str(error).splitlines()[0]}") from error
    if table.empty:
        raise UserError(f"{path} holds no rows")
    return table


def read_delimited(path: Path, **options: Any) -> pd.DataFrame:
    """A .csv or .tsv file; ValueError where two columns have one name, or rows more cells than there are names.

    pandas would rename the second column, and take the first for an index.
    """
    options |= {"keep_default_na": False, "encoding": "utf-8-sig", "low_memory": False}
    names = pd.read_csv(path, header=None, nrows=1, dtype=str, **options).iloc[0].tolist()
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"the column {twice[0]!r} is there twice; rename one")
    table = pd.read_csv(path, **options)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"its rows have more cells than the {len(names)} column names")
    return table


def read_objects(path: Path) -> pd.DataFrame:
    """A .jsonl file, an object per line; ValueError names the line that is none."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(rows[-1], dict):
            raise ValueError(f"line {number} is no object in braces: {line[:40]}")
    return pd.DataFrame(rows)


def read_hub(task: dict[str, Any]) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The task's splits from the Hugging Face hub, all from one commit.

    `data_files` ({split: file}) reads single files of a repository whose splits datasets would guess wrong: it merges
    every test*.csv into one test split. `revision` and `data_dir` read a branch, such as refs/convert/parquet.
    """
    import datasets
    from huggingface_hub import HfApi

    hub, tables, revision = task["hub"], {}, task.get("revision")
    with hub_errors(f"the dataset {hub}"):
        if "data_files" in task:
            revision = HfApi().dataset_info(hub, revision=revision).sha
        for name in sorted(set(task["splits"].values())):
            if "data_files" in task:
                rows = load_hub_file(f"hf://datasets/{hub}@{revision}/{task['data_files'][name]}")
            else:
                config = task.get("configs", {}).get(name, task.get("config"))
                rows = datasets.load_dataset(
                    hub, config, split=name, revision=revision, data_dir=task.get("data_dir"))
                # read as hf://datasets/<id>@<commit>/<path>, or found in a cache folder named after the commit
                commit = re.search(r"[@/]([0-9a-f]{40})/", f"{rows.info.download_checksums} {rows.cache_files}")
                revision = commit[1] if commit else revision  # the other splits come from the same commit
            needed = columns_of(task)
            if "prepare" not in task and set(needed) <= set(rows.column_names):
                rows = rows.select_columns(needed)  # GQA's scene graphs take gigabytes as a table
            tables[name] = rows.to_pandas()
    part = task.get("config") or task.get("data_dir")
    return tables, {"source": f"https://huggingface.co/datasets/{hub}" + (f", {part}" if part else ""),
                    "revision": revision}


def read_images(task: dict[str, Any], args: argparse.Namespace) -> Any:
    """The images of a visual task by id: the hub's, --max-images of each split; or drawn ones for --sample."""
    import datasets

    tables = []
    if args.sample:
        path = CATALOG_DIR / f"{task['row_file']}.jsonl"
        rows = [line["row"] for line in map(json.loads, read_lines(path)) if line["split"].endswith("_images")]
        drawn = [{"id": row["id"], "image": draw_shapes(row["draw"])} for row in rows]
        return Images(datasets.Dataset.from_list(drawn))
    for name in sorted(set(task["splits"].values())):
        with hub_errors(f"the images of {task['hub']}"):
            images = datasets.load_dataset(
                task["hub"], task["images"][name], split=name, revision=task.get("revision"),
                streaming=args.max_images is not None)
            if args.max_images is not None:  # as they stand in their files: decoded, they take ten times the memory
                rows = images.cast_column("image", datasets.Image(decode=False)).take(args.max_images)
                images = datasets.Dataset.from_list(list(rows)).cast_column("image", datasets.Image())
        tables.append(images.select_columns(["id", "image"]))
    return Images(datasets.concatenate_datasets(tables))


def draw_shapes(shapes: list[list[str]]) -> Any:
    """A PIL image, 96 x 64 pixels, of [shape, colour, place] on a white ground."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (96, 64), "white")
    pen = ImageDraw.Draw(image)
    for shape, colour, place in shapes:
        left = {"left": 4, "middle": 36, "right": 68}[place]
        box = (left, 20, left + 24, 44)
        if shape == "triangle":
            pen.polygon([(left, 44), (left + 24, 44), (left + 12, 20)], fill=colour)
        else:
            (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=colour)
    return image


def load_hub_file(address: str) -> Any:
    """The rows of one file of a hub repository, a datasets.Dataset."""
    import datasets

    suffix = Path(address).suffix
    options = {"keep_default_na": False} if suffix == ".csv" else {}  # "NA" is a text like any other
    builder = {".csv": "csv", ".jsonl": "json", ".txt": "text", ".parquet": "parquet"}[suffix]
    return datasets.load_dataset(builder, data_files=address, split="train", **options)


@contextlib.contextmanager
def hub_errors(what: str, is_local: bool = False) -> Iterator[None]:
    """Turn what goes wrong while `what` is read into one line; a full disk is left to command().

    Every exception is caught: each library has its own, and on a broken file any of Python's comes out of them.
    """
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # its five retries are silent: one line at the end says it all
    fault = "" if is_local else hub_fault()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if disk_fault(error):
            raise
        raise UserError(explain(what, error, is_local, fault)) from error


@functools.cache
def hub_fault() -> str:
    """Why the hub can't be reached, "" where it can; where not, its clients are told to use their caches (printed).

    They would try six times for each file: minutes, where a hub takes connections but does not answer.
    """
    import datasets
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError

    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs as an error it also raises
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 5  # not 20 of 20 s each
    for pause in (0, 1, 2):
        time.sleep(pause)
        try:
            status = get_session().head(constants.ENDPOINT, timeout=10).status_code
        except HTTPError as error:
            fault = one_line(error)
        else:
            if status < 500:
                return ""
            fault = f"HTTP status {status}"
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    print(f"{constants.ENDPOINT} can't be reached ({fault}); taking what was fetched before")
    return fault


def explain(what: str, error: Exception, is_local: bool, fault: str) -> str:
    """One line: what could not be loaded from where, why (`fault`, or what stands behind `error`), and the ways on."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    text, causes = str(error), [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    if "custom code" in text:
        return f"{what} brings code of its own, which is not run; take one that transformers has without it"
    if isinstance(error, ImportError):
        return f"{what} needs a package that pip has not installed: {one_line(error)}"
    if is_local:
        return f"could not load {what}: {one_line(error)}"
    # datasets says these two in its own words and hides the cause
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "is a gated dataset" in text:
        return f"{what} is gated: accept its terms at {ENDPOINT}, then `hf auth login` or set HF_TOKEN"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes) or "doesn't exist on the Hub" in text:
        return f"{what} is not on {ENDPOINT} (or private): check the name, or give a folder"
    broken = [cause for cause in causes if isinstance(cause, HTTPError)
              and getattr(getattr(cause, "response", None), "status_code", 0) != 404]  # some files may be absent
    if fault or broken:
        return (f"could not fetch {what} from {ENDPOINT}: {fault or one_line(broken[0])}; check the network, or go on "
                "without it: --sample, or a local file or folder")
    return f"could not load {what} from {ENDPOINT}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """The first line of what `error` says, or of what caused it; after its type where the words alone tell little."""
    from datasets.exceptions import DatasetGenerationError

    if isinstance(error, DatasetGenerationError) and error.__cause__:
        return one_line(error.__cause__)
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = (f"{first} {rest[0]}" if first.endswith(":") and rest else first)[:300]
    tells = text and isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    return text if tells else f"{type(error).__name__}: {text}".removesuffix(": ")


# Files that do not come from the hub lie at DIR/<path> (--data-dir DIR), fetched from their publisher or put there by
# hand. A reader turns them into {the source's split: table}; a table's index numbers the source's rows, and
# table.attrs["dropped"] = {why: rows} counts those that the reader left out.

BROKEN = (OSError, EOFError, LookupError, TypeError, ValueError, StopIteration, zlib.error, tarfile.TarError,
          zipfile.BadZipFile)  # what a file that is not what it was can raise
# Of whoTarget 1.0 is a group and 0.0 an individual, as in the paper; the hub's card has it the other way round.
SBIC_COLUMNS = {"offensive": "offensiveYN", "intent": "intentYN", "lewd": "sexYN", "group": "whoTarget"}
# xSLUE's own .tsv files, for the styles that SOCKET lacks, have no header: the columns of text and label by folder.
XSLUE_COLUMNS = {
    "PASTEL": (2, 1), "SARC": (2, 1), "SARC_pol": (2, 1), "SarcasmGhosh": (2, 1), "ShortHumor": (3, 2),
    "ShortJokeKaggle": (3, 2), "ShortRomance": (3, 2), "TroFi": (1, 2), "VUA": (1, 2)}


def read_files(task: dict[str, Any], data_dir: Path) -> dict[str, pd.DataFrame]:
    """The task's splits by its reader; UserError where a file is missing or is not what it was."""
    try:
        fetch(task, data_dir)
        return READERS[task["reader"]](data_dir, task)
    except BROKEN as error:
        if disk_fault(error):
            raise
        names = dict.fromkeys(name for file in task["files"] for name in (file.get("archive"), file["path"]) if name)
        raise UserError(f"{task['key']}: not what {task['source']} published: {', '.join(names)} in {data_dir} "
                        f"({repr(error)[:200]}); delete the file to have it fetched again, or put the right one "
                        "there by hand") from error


def fetch(task: dict[str, Any], data_dir: Path) -> None:
    """Make sure that every path of task["files"] is in `data_dir`; what is there already is used as it is.

    A file with an `archive` is taken out of it; `url` is the archive's then. Without a `url`, UserError says `how`.
    """
    for file in task["files"]:
        place = data_dir / file["path"]
        source = data_dir / file.get("archive", file["path"])
        if place.exists():
            continue
        if not source.exists():
            if "url" not in file:
                raise UserError(f"{task['key']}: {source} is missing and can't be fetched; put it there by hand: "
                                f"{file.get('how', task['source'])}")
            with locked(source.parent, wait=True):  # of two runs that need it the second finds it there
                if not source.exists():
                    download(file["url"], source)
        if source != place:
            content = archive_member(source, place.name)
            write_atomically(place, lambda temporary, content=content: temporary.write_bytes(content))


def download(url: str, place: Path) -> None:
    """Fetch `url` to `place`, which appears whole or not at all; UserError names both where that fails."""
    print(f"fetching {url} to {place}")
    temporary = place.with_name(f".{os.getpid()}-{place.name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "common.py"})  # some servers refuse urllib's own
        with urllib.request.urlopen(request, timeout=60) as reply, temporary.open("wb") as file:
            if reply.status != 200:
                raise OSError(f"HTTP status {reply.status}")
            shutil.copyfileobj(reply, file)
            announced = reply.headers.get("Content-Length")
        received = temporary.stat().st_size
        if announced is not None and received != int(announced):  # a connection that breaks off raises nothing
            raise OSError(f"{received} of {announced} bytes came")
        temporary.replace(place)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if disk_fault(error):
            raise
        raise UserError(f"could not fetch {url}: {error}; put the file at {place} by hand, or go on without: --sample"
                        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def archive_member(archive: Path, name: str) -> bytes:
    """The content of the file called `name`, in whatever folder of a .zip or .tgz."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            return opened.read(next(path for path in opened.namelist() if Path(path).name == name))
    with tarfile.open(archive) as opened:
        return opened.extractfile(next(member for member in opened if Path(member.name).name == name)).read()


def read_strings(path: Path) -> pd.DataFrame:
    """A .csv file with every cell as text, as it stands: "" and "NA" stay."""
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def read_lines(path: Path) -> list[str]:
    r"""The lines of a text file, cut at \n alone: str.splitlines would also cut at a text's own U+0085 or U+2028."""
    return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")


def tsv_table(lines: list[str], columns: dict[str, int]) -> pd.DataFrame:
    """The cells at the positions `columns` of tab-separated lines, in which quotation marks are part of the text.

    Lines with too few cells, torn off by a line break within a text, are counted as dropped.
    """
    rows = [line.split("\t") for line in lines]
    whole = [row for row in rows if len(row) > max(columns.values())]
    table = pd.DataFrame({name: [row[position] for row in whole] for name, position in columns.items()})
    table.attrs["dropped"] = {"torn off by a line break": len(rows) - len(whole)}
    return table


def keep(table: pd.DataFrame, wanted: pd.Series, why: str) -> pd.DataFrame:
    """The `wanted` rows; the others are counted under `why`, the reason for leaving them out."""
    kept = table[wanted]
    kept.attrs["dropped"] = {**table.attrs.get("dropped", {}), why: int((~wanted).sum())}
    return kept


def read_edos(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """EDOS: text, label_sexist, label_category, label_vector; the last two are "none" unless the text is sexist."""
    table = read_strings(data_dir / task["files"][0]["path"])
    return {name: keep(rows, rows[task["label"]] != "none", "not sexist") for name, rows in table.groupby("split")}


def read_afrisenti(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """AfriSenti, one language: tweet, label. Quotation marks in the .tsv files are part of the tweets."""
    tables = {}
    for file in task["files"]:
        header, *lines = read_lines(data_dir / file["path"])
        columns = {name: header.split("\t").index(name) for name in ("tweet", "label")}
        tables[Path(file["path"]).stem] = tsv_table(lines, columns)
    return tables


def read_nli4ct(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """NLI4CT: premise (a section of one or two trial records), hypothesis, label. The gold test set is a file apart."""
    training, test = (data_dir / file["path"] for file in task["files"])
    with zipfile.ZipFile(training) as archive:
        splits = {name: json.loads(archive.read(f"{name}.json")) for name in ("train", "dev")}
        splits["test"] = json.loads(test.read_bytes())
        needed = {row[role] for rows in splits.values() for row in rows.values()
                  for role in ("Primary_id", "Secondary_id") if role in row}
        trials = {trial: json.loads(archive.read(f"CT json/{trial}.json")) for trial in needed}

    def premise(row: dict[str, str]) -> str:
        sections = {name: " ".join(line.strip() for line in trials[row[f"{name}_id"]][row["Section_id"]])
                    for name in ("Primary", "Secondary") if f"{name}_id" in row}
        return " ".join(f"{name} trial: {text}" for name, text in sections.items())

    return {name: pd.DataFrame([{"premise": premise(row), "hypothesis": row["Statement"], "label": row["Label"]}
                                for row in rows.values()]) for name, rows in splits.items()}


def read_politeness(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Stanford Politeness, one domain: Request, Normalized Score, quartile (impolite, polite; only where asked for).

    The paper's two classes are the outer quarters of the domain's own scores; the middle half is left out.
    """
    table = read_strings(data_dir / task["files"][0]["path"])
    score = table["Normalized Score"] = table["Normalized Score"].astype("float64")
    if task["label"] == "quartile":
        low, high = score.quantile([0.25, 0.75])
        table["quartile"] = np.select([score <= low, score >= high], ["impolite", "polite"], "")
        table = keep(table, table["quartile"] != "", "in the middle half")
    return {"all": table}


def read_dynasent(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """DynaSent, one round (`config`, part of the files' names): sentence, gold_label; of three labels alone."""
    tables = {}
    with zipfile.ZipFile(data_dir / task["files"][0]["path"]) as archive:
        for name in ("train", "dev", "test"):
            lines = archive.read(f"dynasent-v1.1/dynasent-v1.1-{task['config']}-{name}.jsonl").splitlines()
            rows = [json.loads(line) for line in lines]
            table = pd.DataFrame([{"sentence": row["sentence"], "gold_label": row["gold_label"]} for row in rows])
            table = keep(table, table["gold_label"].notna(), "without a majority label")
            tables[name] = keep(table, table["gold_label"] != "mixed", "labelled mixed")
    return tables


def read_isarcasm(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """iSarcasmEval, subtask A: text, sarcastic (0, 1). The English train file calls its text column tweet."""
    train, test = (read_strings(data_dir / file["path"]) for file in task["files"])
    return {"train": train.rename(columns={"tweet": "text"}), "test": test}


def read_pcl(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Don't Patronize Me: text, label (0, 1); split by two lists of paragraph ids. 2 or more of 4 points are PCL."""
    texts, *lists = (data_dir / file["path"] for file in task["files"])
    rows = [cells for line in read_lines(texts) if len(cells := line.split("\t")) == 6]  # the notice on top has fewer
    table = pd.DataFrame(rows, columns=["par_id", "art_id", "keyword", "country", "text", "points"])
    table["label"] = (table["points"].astype(int) >= 2).astype(int)
    return {name: table[table["par_id"].isin(read_strings(path)["par_id"])]
            for name, path in zip(("train", "dev"), lists, strict=True)}


def read_peerread(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """PeerRead, one venue: title, abstract, accepted (0, 1). The files' other fields give the decision away."""
    venue, tables = data_dir / task["files"][0]["path"], {}
    for name in ("train", "dev", "test"):
        papers = [json.loads(path.read_bytes()) for path in sorted(venue.glob(f"{name}/reviews/*.json"))]
        table = pd.DataFrame([[paper.get(field) for field in ("title", "abstract", "accepted")] for paper in papers],
                             columns=["title", "abstract", "accepted"])
        table = keep(table, table["accepted"].isin([True, False]), "without a decision")
        tables[name] = table.astype({"accepted": int})
    return tables


def read_sbic(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """SBIC: post, offensive, intent, lewd, group: 1.0 where the mean vote is 0.5 or more, NaN without any vote.

    The files hold a row per annotator and stereotype; an annotator has one vote on a post. A blank answer is no vote,
    but for intent and group the votes of those who found the post not offensive are 0: they were not asked.
    """
    tables = {}
    for name, file in zip(("train", "dev", "test"), task["files"], strict=True):
        rows = read_strings(data_dir / file["path"])
        table = keep(rows, ~rows.duplicated(["WorkerId", "post"]), "further rows of the same annotator")
        votes = pd.DataFrame({label: pd.to_numeric(table[column]) for label, column in SBIC_COLUMNS.items()})
        votes.loc[votes["offensive"] == 0, ["intent", "group"]] = votes[["intent", "group"]].fillna(0)
        means = votes.groupby(table["post"], sort=False).mean()
        tables[name] = (means >= 0.5).astype(float).where(means.notna()).reset_index()
        tables[name].attrs = table.attrs
    return tables


def read_xslue(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """xSLUE, one style: text, label; from SOCKET's pairs of .txt files or xSLUE's own .tsv files, split by split."""
    paths, tables = [data_dir / file["path"] for file in task["files"]], {}
    if paths[0].suffix == ".tsv":
        columns = dict(zip(("text", "label"), XSLUE_COLUMNS[paths[0].parent.name], strict=True))
        return {re.split("[-_.]", path.name)[0]: tsv_table(read_lines(path), columns) for path in paths}
    for texts, labels in zip(paths[::2], paths[1::2], strict=True):
        columns = {"text": read_lines(texts), "label": read_lines(labels)}
        tables[texts.name.split("_")[0]] = pd.DataFrame(columns)  # ValueError unless equally many
    return tables


READERS: dict[str, Callable[[Path, dict[str, Any]], dict[str, pd.DataFrame]]] = {
    "afrisenti": read_afrisenti, "dynasent": read_dynasent, "edos": read_edos, "isarcasm": read_isarcasm,
    "nli4ct": read_nli4ct, "pcl": read_pcl, "peerread": read_peerread, "politeness": read_politeness,
    "sbic": read_sbic, "xslue": read_xslue}


def text_columns(task: dict[str, Any]) -> list[str]:
    """The columns that hold the task's inputs as text: texts, then options, then the image's id."""
    return [*task["text"], *task.get("options", []), *([task["image"]] if "image" in task else [])]


def columns_of(task: dict[str, Any]) -> list[str]:
    """Every column that the task reads."""
    return [*text_columns(task), *(task["label"] if isinstance(task["label"], list) else [task["label"]])]


def require_columns(table: pd.DataFrame, task: dict[str, Any]) -> None:
    """UserError where a column of the task is missing, or bears a name that predictions.csv needs."""
    for name in columns_of(task):
        if name not in table.columns:
            near = difflib.get_close_matches(name, map(str, table.columns), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{task['key']}: no column {name!r} among {', '.join(map(str, table.columns))}{hint}")
        if name in text_columns(task) and (name in RESERVED_COLUMNS or name.startswith(RESERVED_PREFIXES)):
            raise UserError(f"{task['key']}: predictions.csv has a column {name!r} of its own; rename the text column")


SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair of UTF-16; UTF-8 has none


def clean(raw: pd.DataFrame, split: str, task: dict[str, Any], kind: Any) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows that can be used: id (<split>-<row in the source>), text columns, label; and counts of the dropped."""
    table = pd.DataFrame({"id": [f"{split}-{number:06d}" for number in raw.index]})
    for name in text_columns(task):
        texts = raw[name].reset_index(drop=True)
        table[name] = texts.map(label_text) if name == task.get("image") else clean_texts(texts, task)
    table["label"] = kind.read_labels(raw[task["label"]].reset_index(drop=True), task)
    no_text = table[text_columns(task)].map(lambda text: not text.strip()).any(axis=1)
    no_label = table["label"].isna()
    table = table[~no_text & ~no_label].reset_index(drop=True)
    return (table.astype({"label": "int64"}) if kind.integer_labels else table,
            {**raw.attrs.get("dropped", {}), "without a label": int(no_label.sum()),
             "without a text": int((no_text & ~no_label).sum())})


def clean_texts(texts: pd.Series, task: dict[str, Any]) -> pd.Series:
    """Texts as they stand, "" for a missing one; UserError for another cell, and for a text that no tokenizer takes."""
    wrong = texts[~texts.map(lambda text: isinstance(text, str)) & texts.notna()]
    if len(wrong):
        what = "numbers" if pd.api.types.is_numeric_dtype(texts) else "cells that are no text"
        raise UserError(f"{task['key']}: column {texts.name!r} holds {what} ({wrong.iloc[0]} in row "
                        f"{wrong.index[0] + 1}, {len(wrong)} in all), not texts")
    texts = texts.where(texts.notna(), "")
    broken = texts[texts.map(lambda text: not text.isascii() and SURROGATE.search(text) is not None)]
    if len(broken):
        raise UserError(f"{task['key']}: column {texts.name!r}, row {broken.index[0] + 1} holds half of a character "
                        f"({SURROGATE.search(broken.iloc[0])[0]!r}), which no tokenizer takes; mend the file")
    return texts


def prepare_csqa(raw: pd.DataFrame) -> pd.DataFrame:
    """question, answerKey, and the choices' texts in the columns A to E."""
    options = pd.DataFrame([dict(zip(choices["label"], choices["text"], strict=True)) for choices in raw["choices"]])
    return pd.concat([raw[["question", "answerKey"]].reset_index(drop=True), options], axis=1)


def prepare_wsc(raw: pd.DataFrame) -> pd.DataFrame:
    """WSC273 and WSC285 in WinoGrande's columns: sentence with the pronoun as `_`, option1, option2, answer."""
    rows = []
    for text, pronoun, place, options, label in zip(
            raw["text"], raw["pronoun"], raw["pronoun_loc"], raw["options"], raw["label"], strict=True):
        first, second = (in_place_of(option, pronoun) for option in options)
        rows.append({"sentence": f"{text[:place]}_{text[place + len(pronoun):]}", "option1": first, "option2": second,
                     "answer": str(label + 1)})
    return pd.DataFrame(rows)


def in_place_of(option: str, pronoun: str) -> str:
    """`option` as it stands where the pronoun stood: the case of its article, and 's for his and her.

    In these sets "her" is a possessive wherever it is the pronoun.
    """
    if pronoun[0].isupper():
        option = option[0].upper() + option[1:]
    elif option.split()[0] in ("The", "A", "An", "My", "His", "Her"):
        option = option[0].lower() + option[1:]
    return option + "'s" if pronoun.lower() in ("his", "her") and not option.endswith("'s") else option


def prepare_wsc_superglue(raw: pd.DataFrame) -> pd.DataFrame:
    """sentence with the pronoun in asterisks (as T5 reads it), candidate, label (1: the candidate is meant)."""
    sentences = []
    for text, word, pronoun in zip(raw["text"], raw["span2_index"], raw["span2_text"], strict=True):
        words = text.split()
        words[word] = words[word].replace(pronoun, f"*{pronoun}*", 1)
        sentences.append(" ".join(words))
    return pd.DataFrame({"sentence": sentences, "candidate": raw["span1_text"].tolist(),
                         "label": raw["label"].astype("int64").tolist()})


PREPARE = {"csqa": prepare_csqa, "wsc": prepare_wsc, "wsc_superglue": prepare_wsc_superglue}


def make_splits(source: dict[str, pd.DataFrame], task: dict[str, Any], kind: Any) -> dict[str, pd.DataFrame]:
    """train, validation and test; those that the source lacks are cut from its train, stratified, with SPLIT_SEED.

    A cut is the catalog's share of train, and no less than a tenth of it up to 1,000 examples: with fewer, chance
    chooses the epoch and the thresholds. Where the catalog names a `group`, examples with one text in that column stay
    together: a model that has been trained on a text knows it, which it does not know of the test's.
    """
    splits = {name: source[theirs] for name, theirs in task["splits"].items()}
    if "train" not in splits:
        return splits
    train = splits["train"]
    shares = {name: task[f"{name}_share"] for name in ("test", "validation") if name not in splits}
    strata, left = kind.strata(train, task), np.arange(len(train))
    for name, share in shares.items():
        size = max(round(share * len(train)), min(math.ceil(len(train) / 10), 1000))
        rng = np.random.default_rng(SPLIT_SEED)
        rows = (whole_groups(train[task["group"]].iloc[left], size, rng) if "group" in task
                else stratified_rows(strata[left], size, rng))
        splits[name] = train.iloc[left[rows]].reset_index(drop=True)
        left = np.delete(left, rows)
    splits["train"] = train.iloc[left].reset_index(drop=True)
    return {name: splits[name] for name in ("train", "validation", "test")}


def whole_groups(groups: pd.Series, total: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the rows of randomly drawn groups, ascending: no more groups than it takes for `total` rows."""
    places = pd.factorize(groups)[0]
    sizes = np.bincount(places)
    order = rng.permutation(len(sizes))
    drawn = order[:np.searchsorted(np.cumsum(sizes[order]), total) + 1]
    return np.flatnonzero(np.isin(places, drawn))


def sample_rows(strata: np.ndarray, split: str, args: argparse.Namespace) -> np.ndarray:
    """Positions of the rows that the sampling flags leave of a split, ascending."""
    rng = np.random.default_rng(SPLIT_SEED)
    if split != "train":
        return stratified_rows(strata, args.max_eval_samples or len(strata), rng)
    rows = np.arange(len(strata))
    if args.train_per_class:
        labels, places = np.unique(strata, return_inverse=True)
        rows = draw_rows(places, [args.train_per_class] * len(labels), rng)
    return rows[stratified_rows(strata[rows], args.max_train_samples or len(rows), rng)]


def stratified_rows(strata: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
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
        for i in by_remainder if step > 0 else by_remainder[::-1]:
            if take.sum() != total and 1 <= take[i] + step <= counts[i]:
                take[i] += step
    return draw_rows(places, take, rng)


def draw_rows(places: np.ndarray, take: Iterable[int], rng: np.random.Generator) -> np.ndarray:
    """Up to take[i] rows at random of those whose place is i (int, (rows,)): their positions, ascending."""
    groups = np.split(np.argsort(places, kind="stable"), np.cumsum(np.bincount(places)))[:-1]
    picked = [rng.permutation(group)[:n] for group, n in zip(groups, take, strict=True)]
    return np.sort(np.concatenate(picked)) if picked else np.array([], dtype=int)


# =====================================================================================================================
# Part 4. The model: tokenizer, head, precision, prediction
# =====================================================================================================================


WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
NO_CODE = {"trust_remote_code": False}  # said outright: left out, transformers asks at a terminal whether to run it


def load_model(name: str, task: dict[str, Any], dropout: float | None = None) -> tuple[Any, Any]:
    """Tokenizer and model of a hub id or a folder, with a head for the task; UserError where they can't be had.

    A head that was trained for other labels is replaced by a new one (printed). Weights are read from safetensors only,
    and code that lies beside them is not run: it takes a model that transformers has.
    """
    import transformers

    kind = KINDS[task["kind"]]
    quiet_transformers()
    with hub_errors(f"the model {name}", Path(name).is_dir()):
        theirs = list(transformers.AutoConfig.from_pretrained(name, **NO_CODE).id2label.values())
        config = transformers.AutoConfig.from_pretrained(name, **head_config(task, kind), **NO_CODE)
        kind.check_model(config)
        require_weights(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **NO_CODE)
        set_dropout(config, dropout)
        set_pad_token(tokenizer, config)
        model, report = getattr(transformers, kind.auto_class).from_pretrained(
            name, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True,
            dtype="float32", **NO_CODE)
    check_whole(name, tokenizer, model, report)
    if report["mismatched_keys"]:
        print(f"the head of {name} has another number of labels: it is replaced by a new one")
    elif not report["missing_keys"]:
        reorder_head(model, theirs, kind.output_names(task))
    return tokenizer, model


def require_weights(name: str) -> None:
    """UserError where a hub id or a folder holds no safetensors; transformers would have a server convert a pickle."""
    import huggingface_hub

    if Path(name).is_dir():
        found = any((Path(name) / file).is_file() for file in WEIGHTS)
    else:
        found = hub_fault() or any(huggingface_hub.file_exists(name, file) for file in WEIGHTS)  # else its cache tells
    if not found:
        raise UserError(f"{name} is without weights that can be read: it holds no {' or '.join(WEIGHTS)}, and pickles "
                        "(.bin, .pt) are not read; take another model, or convert it: "
                        "https://huggingface.co/spaces/safetensors/convert")


def check_whole(name: str, tokenizer: Any, model: Any, report: dict[str, Any], new_head: bool = True) -> None:
    """UserError where the files lack weights of the model, which would stay random, or tokenizer and model are no pair.

    With `new_head` the head may lack, and a pooler, which pretraining leaves out in some families.
    """
    absent = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if new_head:
        absent = [key for key in absent if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if absent:
        raise UserError(f"{name} lacks {len(absent)} weights of a {model.config.model_type} model, or has them in "
                        f"another shape, such as {sorted(absent)[0]}; take another model")
    tokens, embeddings = len(tokenizer), model.get_input_embeddings().num_embeddings
    if tokens <= len(tokenizer.all_special_tokens):
        raise UserError(f"{name} holds no tokenizer: its vocabulary is {tokens} marks and no word")
    if tokens > embeddings:
        raise UserError(f"{name}: the tokenizer has {tokens} tokens, the model {embeddings}; they are no pair")


def reorder_head(model: Any, theirs: list[str], ours: list[str]) -> None:
    """Put the outputs of a head that was trained on our labels in another order into ours (printed).

    NLI heads differ so: fairseq's begin with contradiction, GLUE's with entailment.
    """
    place = {label.casefold(): number for number, label in enumerate(theirs)}
    order = [place.get(label.casefold(), -1) for label in ours]
    if sorted(order) == list(range(len(theirs))) and order != sorted(order):
        layer = head_layer(model)[1]
        for parameter in layer.parameters():
            parameter.data = parameter.data[order].clone()
        print(f"the head's labels are {', '.join(theirs)}: put into the order {', '.join(ours)}")


def head_config(task: dict[str, Any], kind: Any) -> dict[str, Any]:
    """What the model's config has to know of the task."""
    names = kind.output_names(task)
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "problem_type": kind.problem_type,
            "label2id": {name: number for number, name in enumerate(names)}}


def build_sample_model(data: Data, dropout: float | None = None) -> tuple[Any, Any]:
    """A two-layer BERT with random weights and a word-level tokenizer over the training texts: what --sample trains."""
    import torch
    import transformers

    torch.set_num_threads(1)  # so small a model computes for less time than two threads wait for each other
    kind, train = KINDS[data.task["kind"]], data.splits["train"]
    tokenizer = word_tokenizer(text for name in text_columns(data.task) for text in train[name])
    config_class, sizes = kind.sample_config
    config = getattr(transformers, config_class)(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        pad_token_id=tokenizer.pad_token_id, **sizes, **head_config(data.task, kind))
    set_dropout(config, dropout)
    return tokenizer, getattr(transformers, kind.auto_class).from_config(config)


def add_lora(model: Any, rank: int) -> Any:
    """The model with its weights frozen but for the head, and matrices of `rank` beside each linear layer of the rest.

    LoRA (Hu et al. 2022, arXiv 2106.09685, section 4.1) by the package peft; scaled by 2, no dropout. Prints its size.
    """
    from peft import LoraConfig, get_peft_model

    head = [name for name, module in model.named_children()
            if name != model.base_model_prefix and next(module.parameters(), None) is not None]
    lora = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear",
                                            modules_to_save=head, exclude_modules=head))
    print("LoRA: {:,} of {:,} parameters are trained".format(*lora.get_nb_trainable_parameters()))
    return lora


def word_tokenizer(texts: Iterable[str]) -> Any:
    """A lower-casing tokenizer whose vocabulary is the words and marks of `texts`, the most frequent ones first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(marks + words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=512, model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def set_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout rate that `config` has, the attention's included; None leaves the model's own."""
    for name in DROPOUT_NAMES if dropout is not None else ():
        if getattr(config, name, None) is not None:
            setattr(config, name, dropout)


def set_pad_token(tokenizer: Any, config: Any) -> None:
    """Give GPT-2, Llama and the like a padding token: their heads look for the last token that is none."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError("the tokenizer has neither a padding nor an end-of-text token, so texts can't be batched")
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id


def quiet_transformers() -> None:
    """Turn off the bars of loading and saving, and the report on new heads: that one is new is why it is trained."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def model_card(name: str, revision: str | None) -> dict[str, Any]:
    """Licence, languages, training data and base model by the model's card, the README.md beside its weights.

    Empty where there is no card, in a folder or in the hub client's cache: nothing is fetched for it.
    """
    from huggingface_hub import ModelCard, try_to_load_from_cache

    path = Path(name, "README.md") if Path(name).is_dir() else try_to_load_from_cache(
        name, "README.md", revision=revision)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    card = ModelCard(Path(path).read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True)
    facts = card.data.to_dict()
    return {key: facts[key] for key in ("license", "language", "datasets", "base_model") if facts.get(key)}


def usable_length(tokenizer: Any, model: Any, wanted: int) -> int:
    """`wanted` tokens; UserError where the model has fewer positions."""
    positions = getattr(model.config, "max_position_embeddings", None) or wanted
    # RoBERTa counts positions from pad_token_id + 1 on; its tokenizer knows how many are left
    limit = min(positions, tokenizer.model_max_length)
    if wanted > limit:
        raise UserError(f"--max-length {wanted} is more than the {limit} tokens that the model takes")
    return wanted


def choose_precision(wanted: str) -> str:
    """fp32, fp16 or bf16 for `wanted`; auto is what the hardware multiplies natively.

    bf16 by software is several times slower than fp32, so a CPU needs AVX512-BF16 or AMX for it, a GPU Ampere or later.
    """
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    if torch.backends.mps.is_available():
        return "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def pick_device() -> Any:
    """The GPU (the first one; of several processes each has its own), Apple's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: Any) -> str:
    """What the device calls itself."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


@dataclasses.dataclass
class Outputs:
    """What predict() returns, in the order of the data set."""

    logits: np.ndarray  # float32 (items, ...), what kind.predict takes; an item is an example, or a window of one
    vectors: np.ndarray  # float32 (examples, size): what the head's last layer sees, of an example's first item
    loss: float | None  # mean over the items, where it was asked for
    seconds: float  # of the forward passes, copies to the host included


def predict(model: Any, dataset: TokenDataset, kind: Any, batch_size: int, precision: str,
            after_batch: Callable[[], None] | None = None, loss: Callable[[Any, Any], Any] | None = None) -> Outputs:
    """Run the model over the data set, the longest items first: memory shows at once whether it suffices.

    Where it does not, batches are halved. Several processes take turns at the batches, and each returns the whole.

    Args:
        model, dataset, kind: they belong together.
        batch_size: items per forward pass.
        precision: fp32, fp16 or bf16.
        after_batch: called after each.
        loss: (outputs, labels) -> the summed loss of a batch.
    """
    import torch

    process, processes = launched()
    order = np.argsort(-dataset.lengths, kind="stable")
    batches = [order[first:first + batch_size] for first in range(0, len(order), batch_size)]
    todo, running = deque(batches[process::processes]), None
    _, tensors = forward(model, dataset.collate([dataset[order[0]]]), kind, precision)  # the longest, for the shapes
    arrays = [scratch_array((len(dataset), *tensor.shape[1:])) for tensor in tensors]
    total = torch.zeros((), device=model.device)

    def store(rows: np.ndarray, tensors: list[Any]) -> None:
        for array, tensor in zip(arrays, tensors, strict=True):
            part = tensor.cpu().numpy()
            array[(rows, *map(slice, part.shape[1:]))] = part  # logits per token: fewer in a batch of shorter items

    bar, start = progress_bar(sum(map(len, todo)), "prediction", unit="example"), time.perf_counter()
    while todo:
        rows = todo.popleft()
        batch = dataset.collate([dataset[i] for i in rows])  # a GPU is still at work on the batch before
        if running is not None:
            store(*running)  # the copy to the host waits for it
        try:
            labels = batch["labels"].to(model.device)  # before the forward pass: this copy would wait for it too
            outputs, tensors = forward(model, batch, kind, precision)
            if loss is not None:
                total += loss(outputs, labels)
        except RuntimeError as error:
            halve_batches(error, rows, todo, "a smaller --model, a shorter --max-length or --precision bf16")
            continue
        running = rows, tensors
        bar.update(len(rows))
        if after_batch is not None:
            after_batch()
    if running is not None:
        store(*running)
    sum_over_processes([*arrays, total], model.device)
    seconds = time.perf_counter() - start
    bar.close()
    logits, vectors = arrays
    _, first_items = np.unique(dataset.examples, return_index=True)
    return Outputs(logits, vectors if len(first_items) == len(vectors) else vectors[first_items],
                   None if loss is None else total.item() / len(dataset), seconds)


def launched() -> tuple[int, int]:
    """Number of this process and of all processes that torchrun or accelerate launch started; (0, 1) without them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first of several processes run the block before the others do: they find what it downloaded and wrote."""
    if launched()[1] == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=pick_device().type == "cpu").main_process_first():
        yield


def sum_over_processes(arrays: list[Any], device: Any, rows: int = 8192) -> None:
    """Replace each array or tensor by the sum of those of all processes, `rows` rows of an array at a time."""
    import torch
    from torch import distributed

    for array in arrays if launched()[1] > 1 else ():
        if isinstance(array, torch.Tensor):
            distributed.all_reduce(array)
            continue
        for first in range(0, len(array), rows):
            part = torch.from_numpy(array[first:first + rows]).to(device)
            distributed.all_reduce(part)
            array[first:first + rows] = part.cpu().numpy()


def scratch_array(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros in a file without a name: of 100,000 examples' vectors no more than the used part is in memory."""
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * math.prod(shape))
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def halve_batches(error: RuntimeError, batch: Any, todo: deque[Any], ways_on: str) -> None:
    """Put `batch` back and cut every batch of `todo` in two, if `error` says that memory did not suffice; else raise.

    Raises UserError, which names the `ways_on`, where the batch is a single example.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    if not should_reduce_batch_size(error):
        raise error
    if len(batch) == 1:
        raise UserError(f"out of memory with a single example in the batch; take {ways_on}") from error
    halves = [part for whole in [batch, *todo] for part in (whole[:len(whole) // 2], whole[len(whole) // 2:])]
    todo.clear()
    todo.extend(part for part in halves if len(part))
    print(f"out of memory with {len(batch)} examples in a batch; going on with half of that")


def forward(model: Any, batch: dict[str, Any], kind: Any, precision: str) -> tuple[Any, list[Any]]:
    """The model's outputs of one batch; logits (what kind.collect returns) and head vectors, float32 (batch, size).

    The vector is the input of the head's last linear layer; where that is one per token, the token that the head reads.
    """
    import torch

    seen: list[Any] = []
    hook = head_layer(model)[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(
                model.device.type, dtypes.get(precision), enabled=precision in dtypes):
            outputs = model(**inputs)
            return outputs, [kind.collect(outputs, inputs), kind.head_vectors(seen[0], inputs).float()]
    finally:
        hook.remove()


def head_layer(model: Any) -> tuple[str, Any]:
    """Name and module of the head's last linear layer, which every head of transformers defines last."""
    import torch

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)][-1]


def versions() -> dict[str, str]:
    """Version of Python and of the packages that figures depend on."""
    names = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "scikit-learn", "numpy", "pandas")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


# =====================================================================================================================
# Part 5. The command line: flags that mean the same in all five scripts
# =====================================================================================================================


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_off = action.default in (None, []) or action.default is False
        return action.help if is_off else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line (UserError) that offers the nearest flags; its help shows defaults."""

    def __init__(self, **kwargs: Any):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UserError; argparse calls it for anything it can't parse."""
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("--") and "unrecognized" in message]
        near = [flag for word in unknown for flag in difflib.get_close_matches(word.split("=")[0], known, 2)]
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the flags"
        raise UserError(f"{message}; {hint}")


def positive_int(text: str) -> int:
    """`text` as a whole number of 1 or more, for argparse's type=."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def non_negative_int(text: str) -> int:
    """`text` as a whole number of 0 or more, for argparse's type=."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def seed_number(text: str) -> int:
    """`text` as a seed that every random generator takes, for argparse's type=."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more, below 2^32")
    return int(text)


def positive_float(text: str) -> float:
    """`text` as a finite number above 0, for argparse's type=."""
    return _float_within(text, "a finite number above 0", lambda number: 0 < number < math.inf)


def non_negative_float(text: str) -> float:
    """`text` as a finite number of 0 or more, for argparse's type=."""
    return _float_within(text, "a finite number of 0 or more", lambda number: 0 <= number < math.inf)


def fraction(text: str) -> float:
    """`text` as a number from 0 up to, not including, 1, for argparse's type=."""
    return _float_within(text, "a number from 0 up to, not including, 1", lambda number: 0 <= number < 1)


def _float_within(text: str, wanted: str, is_allowed: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not is_allowed(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return number


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a run; they are the same in all five scripts."""
    group = parser.add_argument_group("which run")
    group.add_argument("--dataset", metavar="KEY|FILE",
                       help="a key of the catalog, or a .csv .tsv .jsonl .parquet file")
    group.add_argument("--model", metavar="ID|FOLDER",
                       help=f"hub id or local folder; off: {DEFAULT_MODEL} in train.py, the newest run elsewhere")
    group.add_argument("--seed", type=seed_number,
                       help=f"random seed; off: {DEFAULT_SEED} in train.py, the newest run elsewhere")
    group.add_argument("--run", type=Path, metavar="DIR", help="a run folder, named outright")
    group.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder that holds the runs")
    group.add_argument("--data-dir", type=Path, default=Path("data"),
                       help="folder for files that the hub does not hold")
    group.add_argument("--sample", action="store_true", help="use the catalog's few dozen rows and a tiny model: "
                       "no network, a minute, figures without meaning")
    group.add_argument("--max-eval-samples", type=positive_int, metavar="N",
                       help="evaluate at most N examples, drawn with a fixed seed, stratified by label")
    group.add_argument("--overwrite", action="store_true", help="replace what an earlier call wrote")


def as_text(table: pd.DataFrame) -> str:
    """`table` as lines whose columns are aligned on the left."""
    cells = [[str(name) for name in table.columns], *(map(str, row) for row in table.itertuples(index=False))]
    columns = list(zip(*cells, strict=True))
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def command(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Turn what is not our own mistake into one line on stderr and an exit code; let go of the held folder at the end.

    2: bad input, a folder that may not be written or something in the way of a file included (UserError); 1: the loss
    was not finite (FloatingPointError), the disk is full or broken (disk_fault), another process of the run ended, or
    nobody reads the output any more (BrokenPipeError);
    130: stopped by Ctrl-C or SIGTERM (TrainingStopped, KeyboardInterrupt). Our own mistakes keep their traceback.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        replace_unprintable()
        try:
            done = main(argv)
            sys.stdout.flush()  # here, where a closed pipe is caught
            return done
        except UserError as error:
            code, message = 2, str(error)
        except (FloatingPointError, RunBroken) as error:
            code, message = 1, str(error)
        except TrainingStopped as error:
            code, message = 130, str(error)
        except KeyboardInterrupt:
            code, message = 130, "stopped"
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush fails again
            code, message = 1, "who read the output has gone (| head?); the files written so far are whole"
        except Exception as error:
            code, message = 1, disk_fault(error) or lost_process(error)
            if not message:
                raise
        finally:
            let_go()
        if code != 130 or launched()[0] == 0:  # a stop is the same in all processes
            print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        return code

    return run


def replace_unprintable() -> None:
    """Print ? for a character that the output's encoding lacks: on Windows a pipe's or a file's is an old code page."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's streams are not, and take all
            stream.reconfigure(errors="replace")


def disk_fault(error: BaseException) -> str:
    """What to say where `error` is one of DISK_FAULTS, else ""; safetensors and tokenizers give its number in words."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = getattr(error, "errno", None) or (int(found[1]) if found else None)
    if number not in DISK_FAULTS:
        return ""
    place = f" {error.filename}" if getattr(error, "filename", None) else ""
    return f"could not write{place}: {os.strerror(number)}; what was written before is whole: make room, run it again"


def lost_process(error: BaseException) -> str:
    """What to say where `error` comes of another process of this run having ended, else ""."""
    lost = launched()[1] > 1 and isinstance(error, RuntimeError) and re.search(LOST_PROCESS, str(error))
    return "another process of this run ended; start again, a training with --resume" if lost else ""


# =====================================================================================================================
# Part 6. The run folder: run.json, the CSV files and the figures
# =====================================================================================================================


def slug(name: str) -> str:
    """`name` as one folder name: `google-bert/bert-base-uncased` becomes `google-bert--bert-base-uncased`."""
    return re.sub(r"[^\w.+-]+", "-", name.strip("/").replace("/", "--")) or "unnamed"


def dataset_slug(dataset: str) -> str:
    """The folder name of a catalog key, or of a file given as --dataset (its name without the ending)."""
    return slug(Path(dataset).stem if Path(dataset).suffix.lower() in TABLE_READERS else dataset)


def model_slug(model: str) -> str:
    """The folder name of a hub id, or of a local folder given as --model (its last part)."""
    return slug(Path(model).resolve().name if Path(model).is_dir() else model)


def run_folder(args: argparse.Namespace) -> Path:
    """runs/<dataset>/<model>/seed<k>, the folder that train.py makes; --run names another."""
    if args.run:
        return args.run
    if not args.dataset:
        raise UserError("no --dataset given; `python train.py --list` prints the keys")
    model = args.model or (SAMPLE_MODEL if args.sample else DEFAULT_MODEL)
    seed = DEFAULT_SEED if args.seed is None else args.seed
    return args.runs_dir / dataset_slug(args.dataset) / model_slug(model) / f"seed{seed}"


RUN_TYPES = {"dataset": str, "model": str, "seed": int, "sample": bool, "args": dict, "task": dict, "data": dict,
             "training": dict, "hardware": dict, "model_info": dict}  # of run.json


def find_run(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The finished run that the flags name, and its run.json; the newest one where they leave a choice (printed).

    Raises UserError where there is none, or only unfinished ones.
    """
    if args.run:
        run = finished_run(args.run)
        folder = tested_on(args.run, run, args.dataset)
        return folder, run if folder == args.run else finished_run(folder)
    if not args.dataset:
        raise UserError("neither --dataset nor --run given; `python train.py --list` prints the keys")
    model = SAMPLE_MODEL if args.sample and not args.model else args.model
    pattern = "/".join([dataset_slug(args.dataset), model_slug(model) if model else "*",
                        "seed*" if args.seed is None else f"seed{args.seed}"])
    folders = [path.parent for path in args.runs_dir.glob(f"{pattern}/run.json")
               if bool(read_json(path).get("sample")) == (args.sample or model == SAMPLE_MODEL)]
    finished = [folder for folder in folders if read_json(folder / "run.json").get("finished")]
    if not finished:
        found = "only unfinished runs" if folders else "no run"
        flags = f"--dataset {args.dataset}" + (" --sample" if args.sample else "")
        raise UserError(f"{found} in {args.runs_dir / pattern}; train one first: python train.py {flags}")
    newest = max(finished, key=lambda folder: str(read_json(folder / "run.json")["finished"]))
    if len(finished) > 1:
        print(f"{len(finished)} finished runs match; taking the newest, {newest}")
    return newest, finished_run(newest)


def tested_on(folder: Path, run: dict[str, Any], dataset: str | None) -> Path:
    """Where the files of a run's test on `dataset` are: the run folder, or on-<dataset> in it for another data set."""
    other = dataset and dataset_slug(dataset) != run["dataset"]
    return folder / f"on-{dataset_slug(dataset)}" if other else folder


def finished_run(folder: Path) -> dict[str, Any]:
    """run.json of `folder`; UserError where it is missing or the run did not finish."""
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is no run folder: it holds no run.json; train.py makes one")
    run = read_json(folder / "run.json")
    if not run.get("finished"):
        raise UserError(f"the run in {folder} did not finish; go on with train.py --resume")
    wrong = [name for name, kind in RUN_TYPES.items() if not isinstance(run.get(name, kind()), kind)]
    if wrong or run["task"]["kind"] not in [*KINDS]:
        raise UserError(f"{folder / 'run.json'}: {wrong[0] if wrong else 'the kind of the task'} is not what train.py "
                        "wrote; put it back, or train again with --overwrite")
    return run


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a path beside `path`, sync what it wrote and rename it: a reader sees all of it or nothing.

    Raises UserError where `path` may not be written, OSError with its name where the disk is full or broken.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the ending, by which savers choose a format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if disk_fault(error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise UserError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


HELD: dict[Path, contextlib.ExitStack] = {}  # the folder that this script holds


def hold(folder: Path, shared: bool = False) -> None:
    """Keep other processes out of `folder` until this script holds another or ends; UserError where one is in it.

    train.py and evaluate.py need a run folder alone, the scripts that read what they wrote share it. Of several
    processes of one run the first holds it for all.
    """
    place = folder.resolve()
    if launched()[0] == 0 and place not in HELD:
        let_go()
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(folder, shared))
            HELD[place] = stack.pop_all()


def let_go() -> None:
    """Release what hold() took."""
    while HELD:
        HELD.popitem()[1].close()


@contextlib.contextmanager
def locked(folder: Path, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold `folder` while the block runs; who has it alone clears away what killed writers left in it."""
    handle = lock_folder(folder, shared, wait)
    try:
        if not shared:
            remove_leftovers(folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def lock_folder(folder: Path, shared: bool, wait: bool) -> int | None:
    """The descriptor that holds the lock, flock's on the folder itself: it ends with the process, however that ends.

    None where there is no such lock: on Windows, and (printed) on some network drives.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if disk_fault(error):
            raise
        raise UserError(f"{folder} can't be opened as a folder: {error.strerror}") from error
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise UserError(f"another process is at work in {folder}; wait until it has ended, or take another folder"
                            ) from error
        print(f"{folder} can't be locked ({error.strerror}): let no two processes write to it at once")
        return None
    return handle


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left half written in `folder`, and in its on-<dataset> folders."""
    for path in [*folder.glob(".[0-9]*-*"), *folder.glob("on-*/.[0-9]*-*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class JsonObject(dict):
    """An object in a JSON file of ours; a missing key is the fault of who changed the file, a UserError."""

    def __init__(self, path: Path, content: dict[str, Any]):
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> NoReturn:
        raise UserError(f"{self.path} lacks {key!r}: it was changed by hand, or another version wrote it; put it back, "
                        "or train again with --overwrite")


def read_json(path: Path) -> JsonObject:
    """The object in a JSON file that write_json wrote; UserError where there is none, or it can't be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda part: JsonObject(path, part))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, JsonObject):
        raise UserError(f"{path} holds no JSON object in braces")
    return content


# A spreadsheet runs a cell that begins with one of these as a formula (CWE-1236). Such a text gets an apostrophe in
# front, which a spreadsheet shows as text; so does a text that already looks escaped, and reading takes one off again.
FORMULA = re.compile(r"'*[\s\0]*[=+\-@]|'*[\t\r]")
ESCAPED = re.compile(r"'(?:'*[\s\0]*[=+\-@]|'*[\t\r])")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape_formula(text: str) -> str:
    """`text` as a spreadsheet shows it unrun; plain numbers stay as they are."""
    return "'" + text if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def unescape_formula(text: str) -> str:
    """What escape_formula was given."""
    return text[1:] if ESCAPED.match(text) else text


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write `table` as UTF-8 with BOM, comma-separated (RFC 4180); None and NaN become empty cells; text is escaped."""

    def cell(value: Any) -> Any:
        if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
            return ""
        return escape_formula(value) if isinstance(value, str) else value

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table.columns)
            columns = [column.tolist() for _, column in table.items()]  # Python's own numbers, whose text is exact
            writer.writerows([cell(value) for value in row] for row in zip(*columns, strict=True))

    write_atomically(path, write)


def read_csv(path: Path, numbers: tuple[str, ...] = (), required: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a CSV file that write_csv wrote: every column as text, those in `numbers` as float64 (empty: NaN).

    Args:
        path: the file.
        numbers: names, or prefixes that end in `_`, of columns that hold numbers.
        required: columns that must be there.

    Raises:
        UserError: the file is missing or no UTF-8, a required column is missing or there twice, a row has more or fewer
            cells, or a number is none.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the script that writes it has not been run on this run folder yet")
    csv.field_size_limit(2**31 - 1)  # a text may be longer than csv's default of 131,072 characters
    try:
        with path.open(encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV in UTF-8 ({error}); have the script that writes it run again") from error
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    prefixes = tuple(name for name in numbers if name.endswith("_"))
    numbers = [name for name in header if name in numbers or name.startswith(prefixes)]
    twice = [name for name in [*required, *numbers] if header.count(name) > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]} twice")
    missing = [name for name in required if name not in header]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(header) or 'none'}")
    ragged = next((number for number, row in enumerate(body, 2) if len(row) != len(header)), None)
    if ragged:
        raise UserError(f"{path}, row {ragged}: {len(body[ragged - 2])} cells under {len(header)} column names")
    table = pd.DataFrame([[unescape_formula(text) for text in row] for row in body], columns=header, dtype=object)
    for name in numbers:
        try:
            table[name] = np.array([float(text or "nan") for text in table[name]])  # pandas 2 rounds otherwise
        except ValueError as error:
            raise UserError(f"{path}, column {name}: {error}") from error
    return table


def read_predictions(folder: Path) -> pd.DataFrame:
    """predictions.csv of a run: text columns, `correct` as bool, probabilities and the like as float64.

    Raises UserError where it is not as evaluate.py wrote it: no rows, an id twice, a cell that can't stand in its
    column, `correct` where gold and predicted differ.
    """
    path, task = folder / "predictions.csv", read_json(folder / "run.json")["task"]
    kind = KINDS[task["kind"]]
    table = read_csv(path, PREDICTION_NUMBERS, ("id", "split", *text_columns(task), *PREDICTION_COLUMNS))
    if table.empty:
        raise UserError(f"{path} has no rows; run evaluate.py again")
    says = table["correct"].str.casefold()
    wrong = {"id": table["id"].duplicated() | (table["id"] == "")}
    wrong |= {name: ~kind.is_answer(table[name], task) for name in ("gold", "predicted")}
    wrong["correct"] = ~says.isin(["true", "false"])
    if kind.closed_set:
        wrong["correct"] |= (says == "true") != (table["gold"] == table["predicted"])
    for name in table.columns[table.columns.str.fullmatch("confidence|gold_confidence|margin|prob_.*")]:
        wrong[name] = ~(table[name].isna() | table[name].between(0, 1 + 1e-9))
    for name, rows in wrong.items():
        if rows.any():
            raise UserError(f"{path}, row {rows.argmax() + 2}: {table[name][rows.argmax()]} can't be the {name} there; "
                            "it was changed by hand: run evaluate.py again")
    table["correct"] = says == "true"
    return table


def new_figure(width: float = 6.0, height: float = 4.0, **subplots: Any) -> tuple[Any, Any]:
    """A matplotlib figure (inches) and its axes, drawn without a screen and readable at a column's width."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
                         "text.parse_math": False})  # parse_math off: a `$` in a label is a dollar sign
    return plt.subplots(figsize=(width, height), layout="constrained", **subplots)


def set_title(figure: Any, lines: Iterable[str]) -> None:
    """Put `lines` above the axes of `figure`; those that are too long for six inches go on in the next."""
    wrapped = [textwrap.fill(line, 90, break_on_hyphens=False) for line in lines]  # a model's name stays in one piece
    figure.suptitle("\n".join(wrapped), fontsize=9)


def figure_note(run: dict[str, Any], evaluated: int | None = None) -> str:
    """What every figure of a run has to say: that its rows are samples, that a part was evaluated; "" where neither."""
    notes = ["sample rows: figures mean nothing"] if run["sample"] else []
    whole = run["data"]["rows"]["test"]
    if evaluated is not None and evaluated < whole:
        notes.append(f"{evaluated} of {whole} test examples")
    return "; ".join(notes)


def save_figure(figure: Any, path: Path) -> None:
    """Write `figure` as PNG at 200 dpi and close it; what no installed font can draw becomes a box (printed)."""
    import matplotlib.pyplot as plt

    if missing := make_drawable(figure):
        names = " ".join(f"U+{ord(character):04X}" for character in sorted(missing)[:10])
        print(f"{path.name}: {len(missing)} characters that no installed font has are drawn as {PLACEHOLDER}: {names}")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=200, bbox_inches="tight"))
    plt.close(figure)


def make_drawable(figure: Any) -> set[str]:
    """Give every text of `figure` the fallback fonts and replace the characters that none of them has; return these."""
    from matplotlib.text import Text

    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    ticks = [[label.get_text() for label in axis.get_ticklabels()] for axis in axes]
    wanted = set("".join([*chain.from_iterable(ticks), *(text.get_text() for text in figure.findobj(Text))]))
    families, drawable = find_fonts()
    if wanted - drawable:
        add_new_fonts()
        families, drawable = find_fonts()
    replaced = str.maketrans(dict.fromkeys(wanted - drawable, PLACEHOLDER))
    for axis, labels in zip(axes, ticks, strict=True):
        if set("".join(labels)) - drawable:  # drawing sets the texts of ticks anew
            axis.set_ticks(axis.get_ticklocs(), [label.translate(replaced) for label in labels])
    for text in figure.findobj(Text):
        text.set_text(text.get_text().translate(replaced))
        text.set_fontfamily(families)
    return wanted - drawable


def find_fonts() -> tuple[list[str], set[str]]:
    """The families to draw with, matplotlib's own first, and the characters that they have."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    installed = set(fontManager.get_font_names())
    families = ["DejaVu Sans", *(family for family in FALLBACK_FONTS if family in installed)]
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    return families, {"\n"}.union(*({chr(code) for code in font.get_charmap()} for font in fonts))


def add_new_fonts() -> None:
    """Tell matplotlib, which keeps a list of the fonts of its first day, of those that were installed since."""
    from matplotlib import font_manager

    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with contextlib.suppress(OSError, RuntimeError):  # a file that is no font; matplotlib passes over it as well
            font_manager.fontManager.addfont(path)
