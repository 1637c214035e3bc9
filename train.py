"""Fine-tune a pretrained model on a task of the catalog, or on a file of your own. The loop is in common.py.

    python train.py --list                           every key of the catalog
    python train.py --dataset mrpc --sample          no network, half a minute, figures without meaning
    python train.py --dataset mrpc
    python train.py --dataset my.csv --text-column text --label-column label
    for seed in 1 2 3; do python train.py --dataset mrpc --seed $seed && python evaluate.py --dataset mrpc; done
    torchrun --nproc-per-node 4 train.py --dataset mnli --per-device-train-batch-size 8

What is written stands in runs/<dataset>/<model>/seed<k>/.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import urllib.request
from pathlib import Path


def positive(text):
    """A number above 0, whole where it has no point, for argparse."""
    number = float(text) if set(text) & set(".eE") else int(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
add = parser.add_argument
add("--list", action="store_true", help="print the catalog's keys and stop")
# which run
add("--dataset", metavar="KEY|FILE", help="a key of the catalog, or a .csv .tsv .jsonl .parquet file")
add("--model", metavar="ID|FOLDER", help="hub id or local folder (google-bert/bert-base-uncased)")
add("--seed", type=int, default=42, help="random seed (42)")
add("--run", type=Path, metavar="DIR", help="the run folder, named outright")
add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder that holds the runs (runs)")
add("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="folder for files that the hub lacks (data)")
add("--sample", action="store_true", help="a few dozen rows and, without --model, a tiny model: figures mean nothing")
add("--overwrite", action="store_true", help="replace the run that is there")
add("--resume", action="store_true", help="go on from the run's last checkpoint")
# data
add("--text-column", nargs="+", metavar="NAME", help="text column of your own file; two for a pair")
add("--label-column", metavar="NAME", help="label column of your own file")
add("--train-per-class", type=positive, metavar="N", help="train on at most N examples of each label")
add("--max-train-samples", type=positive, metavar="N", help="train on at most N examples, each label in proportion")
add("--max-eval-samples", type=positive, metavar="N", help="validate and test on at most N, each label in proportion")
add("--max-images", type=positive, metavar="N", help="gqa: the first N images of each split and their questions alone")
# optimisation
add("--num-train-epochs", type=positive, metavar="N", help="passes over the data (3; 12 of --sample's own model)")
add("--learning-rate", type=positive, metavar="RATE", help="highest rate (5e-5; 2e-3 of --sample's own model)")
add("--per-device-train-batch-size", type=positive, default=16, metavar="N", help="examples per micro-batch (16)")
add("--gradient-accumulation-steps", type=positive, default=1, metavar="K", help="micro-batches per update (1)")
add("--max-grad-norm", type=float, default=1.0, help="the gradient is scaled down to this L2 norm; 0: never (1)")
add("--optim", default="adamw_torch_fused", choices=["adamw_torch_fused", "adamw_torch", "adafactor", "sgd"])
add("--weight-decay", type=float, default=0.0, help="AdamW's decay factor (0)")
add("--lr-scheduler-type", default="linear", help="step: times --step-gamma after each epoch (linear)",
    choices=["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "step"])
add("--step-gamma", type=positive, default=0.9, help="factor per epoch of the step schedule (0.9)")
add("--warmup-steps", type=float, default=0.0, help="updates until the highest rate; below 1: a share of all (0)")
add("--class-weights", choices=["none", "balanced"], default="none", help="balanced: rare labels count more (none)")
add("--early-stopping-patience", type=positive, metavar="N", help="stop after N epochs without a better score (off)")
# model
add("--max-length", type=positive, metavar="TOKENS", help="longer inputs are cut (the catalog's figure)")
add("--dropout", type=float, help="every dropout rate of the model (its own)")
add("--precision", choices=["auto", "fp32", "fp16", "bf16"], default="auto", help="auto: what the hardware multiplies")
add("--group-by-length", action=argparse.BooleanOptionalAction, default=True, help="batches of like length (on)")
add("--activation-checkpointing", action="store_true", help="less memory, slower, the same result")
add("--compile", action="store_true", help="torch.compile: minutes at the start; for a GPU and long trainings")
# run
add("--save-steps", type=positive, metavar="N", help="checkpoint every N updates too (after each epoch)")
add("--logging-steps", type=positive, default=0.005, metavar="N", help="updates per row of steps.csv; a share (0.005)")
add("--per-device-eval-batch-size", type=positive, default=32, metavar="N", help="examples per evaluated batch (32)")
add("--keep-epochs", type=int, nargs="+", default=[], metavar="EPOCH",
    help="keep hidden states of 1,000 validation examples after these epochs (0: before training)")
add("--report-to", choices=["none", "wandb", "tensorboard"], default="none", help="also log there (none)")
args = parser.parse_args()

toy = args.sample and not args.model
args.num_train_epochs = args.num_train_epochs or (12 if toy else 3)
args.learning_rate = args.learning_rate or (2e-3 if toy else 5e-5)
args.step_gamma = args.step_gamma if args.lr_scheduler_type == "step" else None
for fault, holds in {
    "no --dataset given; --list prints the keys": not (args.dataset or args.list),
    "give --resume or --overwrite, not both": args.resume and args.overwrite,
    f"--seed {args.seed} is not from 0 to 2^32 - 1": not 0 <= args.seed < 2**32,
    f"--dropout {args.dropout} is not from 0 up to, not including, 1": not 0 <= (args.dropout or 0) < 1,
    "--max-grad-norm, --weight-decay and --warmup-steps are 0 or more": min(args.max_grad_norm, args.weight_decay,
                                                                           args.warmup_steps) < 0,
    f"--warmup-steps does nothing with --lr-scheduler-type {args.lr_scheduler_type}; constant_with_warmup has one":
        args.warmup_steps and args.lr_scheduler_type in ("constant", "step"),
    f"--keep-epochs takes epochs from 0 to {args.num_train_epochs}":
        not all(0 <= epoch <= args.num_train_epochs for epoch in args.keep_epochs),
    f"--report-to {args.report_to} needs that package: pip install {args.report_to}":
        args.report_to != "none" and not importlib.util.find_spec(args.report_to),
}.items():
    if holds:
        parser.error(fault)
if toy or args.list:
    os.environ["HF_HUB_OFFLINE"] = "1"
elif "HF_HUB_OFFLINE" not in os.environ:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=5).close()
    except OSError as error:
        if getattr(error, "code", 500) >= 500:  # any other answer is a sign of life
            os.environ["HF_HUB_OFFLINE"] = "1"
            print(f"{hub} can't be reached ({error}): taking what was fetched before", flush=True)

import datetime
import json
import math
import platform
import shlex
import shutil
import signal
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments, set_seed

import common
from common import PROCESS, PROCESSES, UserError

FREE = ("list", "resume", "overwrite", "run", "runs_dir", "data_dir", "save_steps", "report_to",
        "per_device_eval_batch_size")  # flags that may change when a run is resumed
# What --overwrite deletes: what the scripts write, but for errors*.csv and the like, in which a person wrote.
OUTPUTS = ("run.json", "history.csv", "steps.csv", "train_texts.csv", "epoch_states.npz", "model", "checkpoint-*",
           "predictions.csv", "metrics.csv", "published.csv", "baselines.csv", "confusion.*", "calibration.*",
           "timing.csv", "hidden_states.npz", "tags.csv", "slices.csv", "error_*.*", "llm_*", "disagreements.csv",
           "report.md", "report.tex", "learning_curve.png", "embedding_*", "explorer.html")


class RunLog(TrainerCallback):
    """Writes history.csv and steps.csv, prints a line per epoch, draws progress bars, and saves when asked to stop.

    Ctrl-C and SIGTERM finish the step, save a checkpoint and end the run with exit code 130; a second one ends it at
    once. eval_columns: what history.csv has of an evaluation, in this order.
    """

    def __init__(self, folder, eval_columns, save_steps):
        self.folder, self.eval_columns, self.save_steps = folder, eval_columns, save_steps
        self.bar, self.signal, self.written, self.handlers = None, None, 0.0, {}

    def on_train_begin(self, _args, _state, _control, **_):
        """Take over the signals."""
        self.handlers = {number: signal.signal(number, self.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(self, number, _frame):
        """Remember the signal; the next one is again what it was before."""
        self.signal = signal.Signals(number).name
        if PROCESSES == 1:  # torchrun sends one more whenever it gets one
            signal.signal(number, self.handlers[number])

    def close(self):
        """Give the signals back and clear the bar off the screen."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.bar is not None:
            self.bar.close()

    def on_epoch_begin(self, args, state, _control, **_):
        """Begin the epoch's bar, where it was left if the run is resumed."""
        updates, epochs = math.ceil(state.max_steps / args.num_train_epochs), math.ceil(args.num_train_epochs)
        self.bar = common.progress(f"epoch {state.global_step // updates + 1}/{epochs}", total=updates,
                                   initial=state.global_step % updates)

    def on_step_end(self, _args, state, control, **_):
        """Save where --save-steps or a signal asks for it; several processes agree on that when they log."""
        self.bar.update()
        told = self.signal is not None
        if PROCESSES > 1:
            told = control.should_log and any(gather_object([told]))
            self.signal = (self.signal or "a signal") if told else self.signal
        control.should_save |= told or bool(self.save_steps and state.global_step % self.save_steps == 0)

    def on_log(self, _args, state, _control, logs, **_):
        """Show the loss; every five seconds write the tables, each time whole."""
        if "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
            if time.monotonic() > self.written + 5:
                self.write(state)

    def on_epoch_end(self, _args, _state, control, **_):
        """Have the last, short interval of the epoch logged too."""
        self.bar.close()
        control.should_log = True

    def on_evaluate(self, args, state, _control, **_):
        """Print the epoch's line."""
        row = self.write(state).iloc[-1]
        shown = row.drop([f"eval_{name}" for name in kind.tuned])
        scores = {part: "  ".join(f"{name.removeprefix(part)} {value:.4f}" for name, value in shown.items()
                                  if name.startswith(part)) for part in ("train_", "eval_")}
        print(f"epoch {row['epoch']:g}/{args.num_train_epochs:g}:  train {scores['train_']}  |  eval {scores['eval_']}"
              f"  |  {row['seconds'] / 60:.2f} min", flush=True)

    def on_save(self, _args, state, _control, **_):
        """Write the tables; end the run where a signal asked for the checkpoint."""
        self.write(state)
        if self.signal:
            raise UserError(f"stopped by {self.signal} at step {state.global_step} of {state.max_steps}, checkpoint "
                            "saved; go on with the same command and --resume", code=130)

    def write(self, state):
        """Write steps.csv, a row per log, and history.csv, a row per epoch; returns the latter."""
        evaluations = {row["step"]: row for row in state.log_history if "eval_loss" in row}
        rows = []
        for train in (row for row in state.log_history if "epoch_train_loss" in row):
            scores = {name.removeprefix("epoch_"): value for name, value in train.items() if name.startswith("epoch_")}
            evaluation = evaluations.get(train["step"], {})
            rows.append({"epoch": train["epoch"], "train_loss": scores.pop("train_loss"), **scores,
                         **{name: evaluation[name] for name in self.eval_columns if name in evaluation},
                         **{name: train[name] for name in ("learning_rate", "seconds", "samples_per_second")}})
        history = pd.DataFrame(rows)
        logs = [row for row in state.log_history if "loss" in row]
        columns = dict.fromkeys(["step", "epoch", "loss", "grad_norm", "learning_rate", *(logs[-1] if logs else [])])
        steps = pd.DataFrame(logs, columns=[*columns])
        if PROCESS == 0:
            common.write_csv(self.folder / "history.csv", history)
            common.write_csv(self.folder / "steps.csv", steps)
        self.written = time.monotonic()
        return history


class KeepStates(TrainerCallback):
    """Keeps what the head sees of some validation examples, before training (epoch 0) and after chosen epochs.

    epoch_states.npz: id, gold (examples,); of each epoch k predicted_k, correct_k, confidence_k (examples,) and
    vector_k, float32 (examples, hidden size).
    """

    def on_train_begin(self, args, state, control, **more):
        """Keep epoch 0."""
        if state.global_step == 0:
            self.on_epoch_end(args, state, control, **more)

    def on_epoch_end(self, _args, state, _control, model, **_):
        """Add the epoch to the file; after a resume it may hold it already."""
        epoch, path = round(state.epoch or 0), folder / "epoch_states.npz"
        if epoch not in args.keep_epochs:
            return
        outputs = common.predict(model, kept_set, kind, args.per_device_eval_batch_size, precision)
        table = kind.predict(outputs.logits, kept, task, kept_set)
        arrays = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        arrays |= {"id": kept["id"].to_numpy(np.str_), "gold": table["gold"].to_numpy(np.str_),
                   f"predicted_{epoch}": table["predicted"].to_numpy(np.str_),
                   f"correct_{epoch}": table["correct"].to_numpy(bool), f"vector_{epoch}": outputs.vectors,
                   f"confidence_{epoch}": table["confidence"].to_numpy(np.float32)}
        if PROCESS == 0:
            common.write_whole(path, lambda part: np.savez(part, **arrays))


def print_data(task, record):
    """Say what the model is trained and tested on."""
    revision = f", revision {record['revision']}" if record["revision"] else ""
    print(f"{task['title']}\nsource: {record['source']}{revision}\nsplits: {record['why']}")
    for name, used in record["used"].items():
        whole, counts = record["rows"][name], record["labels"][name]
        labels = ", ".join(f"{label} {count}" for label, count in counts.items())
        print(f"  {name:<10} {used} of {whole} examples; {textwrap.shorten(labels, 300, placeholder=' ...')}")
    for name, dropped in record["dropped"].items():
        print(f"  dropped from the source's {name}: " + ", ".join(f"{n} {why}" for why, n in dropped.items() if n))
    for pair, found in record["leakage"].items():
        if found["n"]:
            print(f"  {pair}: {found['n']} of {pair[6:]}'s examples ({found['share']:.1%}) stand in train too")
    if args.sample:
        print("--sample: the figures of this run mean nothing")


if args.list:
    rows = [{"key": key, "row": entry["row"], "kind": entry["kind"], "labels": len(entry.get("labels", "")) or "-",
             "examples": "/".join(str(entry.get("rows", {}).get(name, "?")) for name in entry["splits"].values()),
             "from": "by hand" if "by_hand" in entry else "hub" if "hub" in entry else "download",
             "licence": entry["licence"].split("(")[0].split(";")[0].strip()[:32], "source": entry["source"]}
            for key, entry in common.catalog().items()]
    print(pd.DataFrame(rows).to_string(index=False))
    sys.exit(0)
if PROCESS > 0:
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - of several processes the first one speaks

# 1. The folder: nobody else's, not in the way of a finished run, and where there is something to go on from.
task = common.find_task(args.dataset, args.text_column, args.label_column)
kind = common.kind_of(task)
args.model = args.model or (common.SAMPLE_MODEL if args.sample else "google-bert/bert-base-uncased")
args.max_length = args.max_length or task["max_length"]
precision, device = common.choose_precision(args.precision), common.pick_device()
if args.class_weights == "balanced" and not kind.takes_class_weights:
    raise UserError(f"--class-weights is for classification, not for {task['kind']}")
if precision == "fp16" and device.type == "cpu":  # accelerate would train in fp32 without a word
    raise UserError("--precision fp16 takes a GPU; a CPU trains in fp32 or bf16")
folder = args.run or args.runs_dir / common.slug(args.dataset) / common.slug(args.model) / f"seed{args.seed}"
if PROCESS == 0:
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is at work in {folder}; wait until it has ended, or take another folder"
                        ) from None
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}; take another --runs-dir") from None
before = json.loads((folder / "run.json").read_text("utf-8")) if (folder / "run.json").is_file() else None
checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
whole = [path for path in checkpoints if (path / "sums.json").is_file()]
flags = json.loads(json.dumps(vars(args), default=str))
changed = [f"--{name.replace('_', '-')} {before['args'].get(name)}, now {value}" for name, value in flags.items()
           if name not in FREE and before["args"].get(name) != value] if before else []
is_again = before and before["finished"] and not changed and not args.overwrite and not args.resume
if before and not is_again and not args.resume and not args.overwrite:
    state = "a finished" if before["finished"] else "an unfinished"
    other = f" of other flags ({'; '.join(changed)})" * bool(changed)
    raise UserError(f"{folder} holds {state} run{other}; --overwrite replaces it"
                    + ", --resume goes on with it" * (not before["finished"] and bool(whole)))
if args.resume and (not before or before["finished"] or not whole):
    what = "a finished run" if before and before["finished"] else "no checkpoint"
    raise UserError(f"nothing to resume: {folder} holds {what}; leave --resume out")
if args.resume:
    if before["hardware"]["processes"] != PROCESSES:  # the order of the examples hangs on it
        changed.append(f"processes {before['hardware']['processes']}, now {PROCESSES}")
    if changed:
        raise UserError(f"--resume goes on with the run's own flags; these differ: {'; '.join(changed)} ({folder})")
checkpoint = whole[-1] if args.resume else None

# 2. The data. Of several processes the first one fetches, the others find it there.
with PartialState(cpu=device.type == "cpu").main_process_first() if PROCESSES > 1 else contextlib.nullcontext():
    data = common.load_data(
        args.dataset, sample=args.sample, data_dir=args.data_dir, text_column=args.text_column,
        label_column=args.label_column, train_per_class=args.train_per_class, max_train_samples=args.max_train_samples,
        max_eval_samples=args.max_eval_samples, max_images=args.max_images,
        revision=before["data"]["revision"] if args.resume else None)
    then = before["data"]["digests"] if args.resume or is_again else data.record["digests"]
    if other := [name for name, digest in data.record["digests"].items() if then[name] != digest]:
        raise UserError(f"the {' and '.join(other)} rows are not those of the run in {folder}, of "
                        f"{before['data']['source']}; put them back, or train anew with --overwrite")
    if is_again:
        print(f"finished with these flags and these data; --overwrite trains again: {folder}")
        sys.exit(0)
    task, train, validation = data.task, data.splits["train"], data.splits["validation"]
    print_data(task, data.record)

    # 3. The model: the checkpoint's, the one of --sample, or --model's; a new head starts from --seed.
    set_seed(args.seed)
    if args.sample and args.model == common.SAMPLE_MODEL:
        torch.set_num_threads(1)  # so small a model computes for less time than two threads wait for each other
    if checkpoint:
        tokenizer, model = common.load_model(str(checkpoint), task, args.dropout)
    elif args.model == common.SAMPLE_MODEL:
        tokenizer, model = common.build_sample_model(data, args.dropout)
    else:
        tokenizer, model = common.load_model(args.model, task, args.dropout)
common.check_length(tokenizer, model, args.max_length)
train_set = kind.encode(train, task, tokenizer, args.max_length)
train_set.window = 50 if args.group_by_length else 1
validation_set = kind.encode(validation, task, tokenizer, args.max_length)

# 4. run.json, before training: `finished` is None until all is written.
run = {
    "finished": None, "dataset": common.slug(args.dataset), "model": args.model, "seed": args.seed,
    "sample": args.sample, "command": shlex.join(["python", *sys.argv]), "args": flags, "task": task,
    "data": data.record,
    "model_info": {
        "type": model.config.model_type, "parameters": model.num_parameters(), "hidden_size": model.config.hidden_size,
        "layers": model.config.num_hidden_layers, "revision": common.model_revision(args.model),
        "card": common.model_card(args.model), "dropout": common.dropout_rates(model.config),
        "vector": f"the input of the head's last layer, {common.head_layer(model)[0]}"},
    "hardware": {"device": device.type, "name": common.device_name(device), "precision": precision,
                 "processes": PROCESSES},
    "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in (
        "torch", "transformers", "accelerate", "datasets", "tokenizers", "scikit-learn", "numpy", "pandas")}}
print(f"model: {args.model}, {model.num_parameters():,} parameters; {precision} on {common.device_name(device)}")
if PROCESS == 0:
    for path in checkpoints if args.resume else [
            path for pattern in OUTPUTS for where in ("", "on-*/") for path in folder.glob(where + pattern)]:
        if path not in whole or not args.resume:  # of an old run all, of a resumed one what a kill left half written
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    common.write_json(folder / "run.json", run)
    texts = train[["id", *common.text_columns(task)]]
    common.write_csv(folder / "train_texts.csv", texts.assign(label=kind.gold(train)))

# 5. Training.
def compute_metrics(outputs):
    """The task's main metrics on the validation split, and what was tuned there."""
    tuned = kind.tune(outputs.predictions, validation, task, validation_set)
    scores = kind.metrics(kind.predict(outputs.predictions, validation, task | tuned, validation_set), task)
    return {name: scores[name] for name in task["metrics"]} | tuned


training_args = TrainingArguments(
    output_dir=str(folder), seed=args.seed, data_seed=args.seed, num_train_epochs=args.num_train_epochs,
    per_device_train_batch_size=args.per_device_train_batch_size,
    per_device_eval_batch_size=args.per_device_eval_batch_size,
    gradient_accumulation_steps=args.gradient_accumulation_steps, max_grad_norm=args.max_grad_norm,
    learning_rate=args.learning_rate, weight_decay=args.weight_decay, warmup_steps=args.warmup_steps,
    lr_scheduler_type="constant" if args.lr_scheduler_type == "step" else args.lr_scheduler_type, optim=args.optim,
    use_cpu=device.type == "cpu", bf16=precision == "bf16", fp16=precision == "fp16", eval_strategy="epoch",
    save_strategy="epoch", save_total_limit=2, load_best_model_at_end=True, metric_for_best_model=task["metrics"][0],
    greater_is_better=task["metrics"][0] not in kind.lower_is_better, logging_steps=args.logging_steps,
    report_to=args.report_to, disable_tqdm=True, remove_unused_columns=False, label_names=["labels"],
    restore_callback_states_from_checkpoint=True, dataloader_pin_memory=device.type == "cuda",
    activation_checkpointing=args.activation_checkpointing, torch_compile=args.compile)
training_args._n_gpu = 1  # where there are several, Trainer would split each batch by DataParallel
log = RunLog(folder, [f"eval_{name}" for name in ("loss", *task["metrics"], *kind.tuned)], args.save_steps)
callbacks = [log, *([EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else [])]
if args.keep_epochs:
    rng = np.random.default_rng(common.SPLIT_SEED)
    kept = validation.iloc[common.stratified_rows(kind.strata(validation, task), 1000, rng)].reset_index(drop=True)
    kept_set = kind.encode(kept, task, tokenizer, args.max_length)
    callbacks.append(KeepStates())
class_weights = None
if args.class_weights == "balanced":  # scikit-learn's: n / (labels * examples of the label)
    counts = np.bincount(train_set.labels, minlength=len(task["labels"]))
    class_weights = torch.tensor(len(train) / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    print("class weights: " + ", ".join(f"{label} {weight:.3f}" for label, weight in
                                        zip(task["labels"], class_weights.tolist(), strict=True)))
trainer = common.CustomTrainer(
    model=model, args=training_args, train_dataset=train_set, eval_dataset=validation_set, processing_class=tokenizer,
    compute_metrics=compute_metrics, kind=kind, class_weights=class_weights, callbacks=callbacks)
trainer.remove_callback(PrinterCallback)  # RunLog's lines say it
if args.lr_scheduler_type == "step":
    batches = math.ceil(len(train_set) / args.per_device_train_batch_size / PROCESSES)
    updates = math.ceil(batches / args.gradient_accumulation_steps)
    trainer.lr_scheduler = torch.optim.lr_scheduler.StepLR(trainer.create_optimizer(), updates, args.step_gamma)
start = time.perf_counter()
try:
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
finally:
    log.close()
trainer.accelerator.wait_for_everyone()  # all have loaded the best epoch: its checkpoint can go

# 6. What is left behind: model/ (the best epoch), the rest of run.json; the checkpoints go.
if PROCESS == 0:
    trainer.model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    history, metric = log.write(trainer.state), task["metrics"][0]
    scores = history[f"eval_{metric}"]
    best = history.loc[scores.idxmax() if training_args.greater_is_better else scores.idxmin()]
    run["training"] = {
        "metric": metric, "best_epoch": best["epoch"], "best_score": best[f"eval_{metric}"],
        "epochs": history["epoch"].iloc[-1], "steps": trainer.state.global_step, "seconds": history["seconds"].sum(),
        "seconds_with_evaluation": time.perf_counter() - start,
        "tuned": {name: best[f"eval_{name}"] for name in kind.tuned}}
    run["finished"] = datetime.datetime.now().isoformat(timespec="microseconds")
    common.write_json(folder / "run.json", run)
    for path in folder.glob("checkpoint-*"):  # only now: a run that is killed before that line still needs them
        shutil.rmtree(path)
    print(f"best epoch: {best['epoch']:g}, {metric} {best[f'eval_{metric}']:.4f} on validation; "
          f"{run['training']['seconds'] / 60:.1f} min of training; written to {folder}")
