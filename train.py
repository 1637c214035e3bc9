"""Fine-tune a pretrained model on a task of the catalog, or on a file of your own.

    python train.py --dataset mrpc
    python train.py --dataset mrpc --seeds 1 2 3     several runs, evaluated: how much the seed moves the figures
    python train.py --dataset my.csv --text-column text --label-column label
    python train.py --dataset mrpc --sample          no network, half a minute, figures without meaning

The loop is CustomTrainer in common.py. What is written stands in runs/<dataset>/<model>/seed<k>/; of several seeds,
seeds.csv and learning_curve.png stand beside their folders.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import math
import os
import shlex
import shutil
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import common
import evaluate
from common import KINDS, Data, UserError, command
from visualize import changed_by_hand, draw_learning_curve, write_report

SHOWN_LABELS = 20  # printed with their counts
KEPT_EXAMPLES = 1000  # validation examples whose hidden states --keep-epochs keeps
# What --overwrite deletes: what the scripts write, but for errors.csv and the like, in which a person wrote.
OUTPUTS = (
    "history.csv", "steps.csv", "learning_curve.png", "train_texts.csv", "epoch_states.npz", "model/", "checkpoint-*/",
    "predictions.csv", "metrics.csv", "baselines.csv", "confusion.*", "calibration.*", "risk_coverage.csv",
    "timing.csv", "hidden_states.npz", "tags.csv", "slices.csv", "error_types.*", "error_causes.*", "error_solutions.*",
    "llm_predictions.csv", "llm_metrics.csv", "llm_compare.png", "llm_journal*.jsonl", "disagreements.csv",
    "embedding_*", "explorer.html", "report.*")
# What a finished run must have in common with the flags of --resume, so that it goes on as it began.
FIXED_ON_RESUME = (
    "dataset", "model", "seed", "sample", "text_column", "label_column", "train_per_class", "max_train_samples",
    "max_eval_samples", "max_images", "max_length", "dropout", "class_weights", "learning_rate", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "weight_decay", "warmup_steps",
    "lr_scheduler_type", "step_gamma", "optim", "precision", "group_by_length", "early_stopping_patience",
    "lora_rank")


def build_parser() -> argparse.ArgumentParser:
    """Every flag of train.py, spelled as in transformers.TrainingArguments, with dashes."""
    parser = common.Parser(prog="train.py", description="Fine-tune a pretrained model; the loop is written out.")
    parser.add_argument("--list", action="store_true", help="print the catalog's keys and stop")
    common.add_run_flags(parser)

    group = parser.add_argument_group("data")
    group.add_argument("--text-column", nargs="+", metavar="NAME", help="text column of your own file; two for a pair")
    group.add_argument("--label-column", metavar="NAME", help="label column of your own file")
    group.add_argument("--train-per-class", type=common.positive_int, metavar="N",
                       help="train on at most N examples of each label")
    group.add_argument("--max-train-samples", type=common.positive_int, metavar="N",
                       help="train on at most N examples, each label in proportion")
    group.add_argument("--max-images", type=common.positive_int, metavar="N",
                       help="gqa: only the first N images of each split, and the questions about them")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--num-train-epochs", type=common.positive_int, metavar="N",
                       help="passes over the training data; off: 3, with --sample's own model 12")
    group.add_argument("--learning-rate", type=common.positive_float, metavar="RATE",
                       help="highest rate of the schedule; off: 5e-5, with --sample's own model 2e-3")
    group.add_argument("--per-device-train-batch-size", type=common.positive_int, default=16, metavar="N",
                       help="examples per micro-batch")
    group.add_argument("--gradient-accumulation-steps", type=common.positive_int, default=1, metavar="K",
                       help="micro-batches per optimizer step")
    group.add_argument("--max-grad-norm", type=common.non_negative_float, default=1.0,
                       help="the gradient is scaled down to this L2 norm; 0: never")
    group.add_argument("--optim", default="adamw_torch_fused", help="optimizer",
                       choices=["adamw_torch_fused", "adamw_torch", "adafactor", "sgd"])
    group.add_argument("--weight-decay", type=common.non_negative_float, default=0.0, help="AdamW's decay factor")
    group.add_argument("--lr-scheduler-type", default="linear",
                       choices=["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "step"],
                       help="step: multiply the rate by --step-gamma after each epoch")
    group.add_argument("--step-gamma", type=common.positive_float, default=0.9,
                       help="factor per epoch of the step schedule")
    group.add_argument("--warmup-steps", type=common.non_negative_float, default=0.0,
                       help="optimizer steps until the rate is at its highest; below 1: a share of all steps")
    group.add_argument("--class-weights", choices=["none", "balanced"], default="none",
                       help="balanced: an example counts n / (labels * examples of its label)")
    group.add_argument("--early-stopping-patience", type=common.positive_int, metavar="N",
                       help="stop after N epochs without a better validation score; off: never")

    group = parser.add_argument_group("model")
    group.add_argument("--max-length", type=common.positive_int, metavar="TOKENS",
                       help="longer inputs are cut; off: the catalog's figure")
    group.add_argument("--dropout", type=common.fraction, help="every dropout rate of the model; off: the model's own")
    group.add_argument("--precision", choices=["auto", "fp32", "fp16", "bf16"], default="auto",
                       help="auto: bf16 or fp16 where the hardware has it natively, else fp32")
    group.add_argument("--group-by-length", action=argparse.BooleanOptionalAction, default=True,
                       help="put examples of like length into one batch")
    group.add_argument("--lora-rank", type=common.positive_int, metavar="R",
                       help="train the head, and matrices of rank R beside the frozen layers (LoRA, Hu et al. 2022): "
                       "less memory; needs the package peft; off: train all weights")
    group.add_argument("--activation-checkpointing", action="store_true",
                       help="compute activations again in the backward pass instead of keeping them (gradient "
                       "checkpointing): less memory, slower, the same result")
    group.add_argument("--compile", action="store_true",
                       help="torch.compile the model: minutes at the start; for a GPU and long trainings")

    group = parser.add_argument_group("run")
    group.add_argument("--seeds", type=common.seed_number, nargs="+", metavar="N",
                       help="train and evaluate a run per seed; seeds.csv and the learning curves of all")
    group.add_argument("--resume", action="store_true",
                       help="go on from the last checkpoint of the run; with --seeds: keep the runs that are finished, "
                       "go on with the one that is not, start the others, and evaluate them all again")
    group.add_argument("--save-steps", type=common.positive_int, metavar="N",
                       help="checkpoint every N optimizer steps too; off: after each epoch")
    group.add_argument("--logging-steps", type=common.positive_float, default=0.005, metavar="N",
                       help="optimizer steps per row of steps.csv; below 1: a share of all steps")
    group.add_argument("--per-device-eval-batch-size", type=common.positive_int, default=32, metavar="N",
                       help="examples per forward pass of the evaluation")
    group.add_argument("--keep-epochs", type=common.non_negative_int, nargs="+", default=[], metavar="EPOCH",
                       help="keep the hidden states of up to 1,000 validation examples after these epochs (0: before "
                       "training) for embedding_epochs.png")
    group.add_argument("--report-to", choices=["none", "wandb", "tensorboard"], default="none",
                       help="also log there; needs that package")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Train once per seed; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.list:
        print(common.as_text(common.catalog_table()))
        return 0
    complete(args)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of several processes each would warn of what does no harm
    with contextlib.redirect_stdout(sys.stdout if common.launched()[0] == 0 else None):  # one process speaks
        (train_seeds if args.seeds else train)(args, argv if argv is not None else sys.argv[1:])
    return 0


def complete(args: argparse.Namespace) -> None:
    """Fill in what the flags leave open; UserError where they contradict each other or need what is not there."""
    toy = args.sample and not args.model
    args.num_train_epochs = args.num_train_epochs or (12 if toy else 3)
    check_flags(args)
    args.model = args.model or (common.SAMPLE_MODEL if args.sample else common.DEFAULT_MODEL)
    args.seed = common.DEFAULT_SEED if args.seed is None else args.seed
    args.learning_rate = args.learning_rate or (2e-3 if toy else 5e-5)
    args.step_gamma = args.step_gamma if args.lr_scheduler_type == "step" else None


def check_flags(args: argparse.Namespace) -> None:
    """UserError for the first fault of the flags."""
    if not args.dataset:
        raise UserError("no --dataset given; python train.py --list prints the keys")
    seeds, last = args.seeds or [], max(args.keep_epochs, default=0)
    is_own_file = Path(args.dataset).suffix.lower() in common.TABLE_READERS
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"]
    faults = {
        "give --seed or --seeds, not both": seeds and args.seed is not None,
        f"--seeds {' '.join(map(str, seeds))} names a seed twice": len(set(seeds)) < len(seeds),
        "give --resume or --overwrite, not both": args.resume and args.overwrite,
        "--run names one folder; it can't hold several --seeds": args.run and seeds,
        f"--text-column and --label-column are for a file of your own, not for {args.dataset}":
            (args.text_column or args.label_column) and not is_own_file,
        f"--warmup-steps does nothing with --lr-scheduler-type {args.lr_scheduler_type}; constant_with_warmup has one":
            args.warmup_steps and args.lr_scheduler_type in ("constant", "step"),
        f"--keep-epochs {last} is beyond the {args.num_train_epochs} epochs of the training":
            last > args.num_train_epochs,
        f"the loop does not shard a model ({', '.join(sharded)}): use accelerate's MULTI_GPU or MULTI_CPU; where the "
        "model does not fit, try --lora-rank, --activation-checkpointing, a smaller --model": sharded}
    packages = {"--report-to": args.report_to, "--lora-rank": "peft" if args.lora_rank else "none"}
    faults |= {f"{flag} needs the package {package}: pip install {package}":
               package != "none" and not importlib.util.find_spec(package) for flag, package in packages.items()}
    for message, holds in faults.items():
        if holds:
            raise UserError(message)


def train_seeds(args: argparse.Namespace, argv: list[str]) -> None:
    """A run per seed, each evaluated, then seeds.csv and learning_curve.png in the folder above theirs."""
    runs = [argparse.Namespace(**vars(args) | {"seed": seed}) for seed in args.seeds]
    folders = [common.run_folder(one) for one in runs]
    kept = [args.resume and is_finished(folder) for folder in folders]
    for one, folder in zip(runs, folders, strict=True):
        find_checkpoint(folder, one)  # what is in the way of the last one is said before the first one trains for hours
    for one, folder, is_kept in zip(runs, folders, kept, strict=True):
        if is_kept:
            print(f"seed {one.seed}: finished before, kept as it is in {folder}")
        else:
            train(one, argv)
        evaluate.evaluate_run(evaluate.build_parser().parse_args([
            "--run", str(folder), "--data-dir", str(args.data_dir),
            "--per-device-eval-batch-size", str(args.per_device_eval_batch_size)]))
    if common.launched()[0] == 0:
        draw_learning_curve(folders, folders[0].parent / "learning_curve.png")
        write_seeds(folders[0].parent / "seeds.csv", folders, args.seeds)


def write_seeds(path: Path, folders: list[Path], seeds: list[int]) -> None:
    """Write seeds.csv: mean, sample standard deviation, least and greatest of each test metric over the seeds."""
    tables = [common.read_csv(folder / "metrics.csv", ["value"], ["metric"]) for folder in folders]
    values = pd.concat([table.set_index("metric")["value"] for table in tables], axis=1)
    summary = pd.DataFrame({"mean": values.mean(axis=1), "sd": values.std(axis=1, ddof=1), "n": len(seeds),
                            "min": values.min(axis=1), "max": values.max(axis=1), "seeds": " ".join(map(str, seeds))})
    common.write_csv(path, summary.reset_index(names="metric"))
    main = summary.loc[common.read_json(folders[0] / "run.json")["task"]["metrics"]]
    print(f"{len(seeds)} seeds, test, mean +- standard deviation: "
          + ", ".join(f"{row.Index} {row.mean:.4f} +- {row.sd:.4f}" for row in main.itertuples())
          + f"; written to {path}")


def train(args: argparse.Namespace, argv: list[str]) -> None:
    """One run: data, model, loop, model/ and run.json."""
    folder, is_first = common.run_folder(args), common.launched()[0] == 0
    common.hold(folder)
    with common.first_process_first():
        checkpoint = find_checkpoint(folder, args)
        replaces = is_first and checkpoint is None and (folder / "run.json").is_file()
    with common.first_process_first():
        data = common.load_data(args)
        report_data(data, args)
        tokenizer, model = load(args, data, checkpoint)
    args.max_length = common.usable_length(tokenizer, model, args.max_length or data.task["max_length"])
    run = describe(args, argv, data, model)
    if args.lora_rank:
        model = common.add_lora(model, args.lora_rank)
    if is_first:
        common.write_json(folder / "run.json", run)
        if replaces:  # only now: data and model are there, so the new run will be too
            remove_old_run(folder)
        write_train_texts(folder, data)

    log = common.RunLog(folder, args.save_steps, KINDS[data.task["kind"]].tuned)
    trainer = build_trainer(args, log, data, tokenizer, model)
    start = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.accelerator.wait_for_everyone()  # all have loaded the best epoch: its checkpoint can go
    except BaseException:
        log.close(broken=True)
        raise
    if is_first:
        finish(folder, run, trainer, tokenizer, time.perf_counter() - start)


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / "run.json").is_file() and bool(common.read_json(folder / "run.json")["finished"])


def find_checkpoint(folder: Path, args: argparse.Namespace) -> Path | None:
    """The checkpoint that --resume goes on from; None where there is nothing to go on from, nor anything in the way.

    UserError: a run that neither --resume nor --overwrite may touch, nothing to resume, or a run of other flags.
    """
    if args.overwrite:
        return None
    before = common.read_json(folder / "run.json") if (folder / "run.json").is_file() else None
    finished = is_finished(folder)
    checkpoints = common.whole_checkpoints(folder) if args.resume and not finished else []
    if args.resume and not args.seeds and (before is None or finished or not checkpoints):
        state = "holds a finished run" if finished else "holds no checkpoint"
        raise UserError(f"nothing to resume: {folder} {state}; leave --resume out")
    if args.resume and before and (finished or checkpoints):
        args.max_length = args.max_length or before["args"]["max_length"]  # the one flag that the catalog resolves
        changed = {f"--{name.replace('_', '-')}": (before["args"][name], getattr(args, name))
                   for name in FIXED_ON_RESUME if before["args"][name] != as_json(getattr(args, name))}
        if before["hardware"]["processes"] != common.launched()[1]:  # the order of the examples hangs on it
            changed["the number of processes"] = before["hardware"]["processes"], common.launched()[1]
        if changed:
            differences = "; ".join(f"{name} {then}, now {now}" for name, (then, now) in changed.items())
            raise UserError(f"--resume goes on with the run's own flags; these differ: {differences} ({folder})")
        return None if finished else checkpoints[-1]
    if before and not args.resume:
        state, resume = "an unfinished", ", --resume goes on with it"
        if finished:
            state, resume = "a finished", ", --resume keeps it" if args.seeds else ""
        raise UserError(f"{folder} holds {state} run; --overwrite replaces it{resume}")
    return None


def remove_old_run(folder: Path) -> None:
    """Delete OUTPUTS in `folder` and in its on-<dataset> folders, but for a report that was changed by hand."""
    for path in chain.from_iterable(folder.glob(pattern) for pattern in OUTPUTS):
        if path.is_dir():
            shutil.rmtree(path)
        elif not (path.stem == "report" and changed_by_hand(path)):
            path.unlink()
    for other in folder.glob("on-*/"):
        remove_old_run(other)
        (other / "run.json").unlink(missing_ok=True)


def as_json(value: Any) -> Any:
    """`value` as it comes back from run.json."""
    return json.loads(json.dumps(value, default=str))


def report_data(data: Data, args: argparse.Namespace) -> None:
    """Print what the model is trained and tested on."""
    record = data.record
    revision = f", revision {record['revision'][:12]}" if record["revision"] else ""
    print(f"{data.task['title']}\nsource: {record['source']}{revision}")
    print(f"splits: {record['why']}")
    for name, used in record["used"].items():
        sampled = f" of {record['rows'][name]}" if used < record["rows"][name] else ""
        counts = [f"{label} {count}" for label, count in record["labels"][name].items()]
        more = [f"and {len(counts) - SHOWN_LABELS} labels more"] if len(counts) > SHOWN_LABELS else []
        print(f"  {name:<10} {used}{sampled} examples; " + ", ".join(counts[:SHOWN_LABELS] + more))
    for name, dropped in record["dropped"].items():
        print(f"  dropped from the source's {name}: " + ", ".join(f"{n} {why}" for why, n in dropped.items() if n))
    counts = record["labels"]["train"]
    unseen = [label for label in data.task["labels"] if counts.get(label) == 0] if "labels" in data.task else []
    if unseen:
        print(f"  no training example has the label {', '.join(unseen[:SHOWN_LABELS])}: the model can't learn it")
    for pair, found in data.leakage.items():
        if found["n"]:
            print(f"  {pair}: {found['n']} examples of {pair.split('/')[1]} ({found['share']:.1%}) have the words of a "
                  "training example")
    if args.sample:
        print("sample rows: the figures of this run mean nothing")


def load(args: argparse.Namespace, data: Data, checkpoint: Path | None) -> tuple[Any, Any]:
    """Tokenizer and model: the checkpoint's, the one of --sample, or --model's; the head starts from --seed.

    With --lora-rank a checkpoint holds the trained matrices alone, which Trainer loads into the model that it began
    with.
    """
    from transformers import set_seed

    common.quiet_transformers()
    set_seed(args.seed)
    if checkpoint and not args.lora_rank:
        return common.load_model(str(checkpoint), data.task, args.dropout)
    if args.model == common.SAMPLE_MODEL:
        return common.build_sample_model(data, args.dropout)
    return common.load_model(args.model, data.task, args.dropout)


def describe(args: argparse.Namespace, argv: list[str], data: Data, model: Any) -> dict[str, Any]:
    """run.json as it stands before training: `finished` is None until all is written."""
    device = common.pick_device()
    precision = common.choose_precision(args.precision)
    if precision == "fp16" and device.type == "cpu":  # accelerate would train in fp32 without a word
        raise UserError("--precision fp16 takes a GPU; a CPU trains in fp32 or bf16")
    config = model.config
    revision = getattr(config, "_commit_hash", None)
    print(f"model: {args.model}, {model.num_parameters():,} parameters; {precision} on {common.device_name(device)}")
    return {
        "finished": None, "dataset": common.dataset_slug(args.dataset), "model": args.model, "seed": args.seed,
        "sample": args.sample, "command": shlex.join(["python", "train.py", *argv]),
        "args": as_json(vars(args)), "task": data.task, "data": data.record, "leakage": data.leakage,
        "model_info": {
            "type": config.model_type, "parameters": model.num_parameters(), "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers, "revision": revision, "card": common.model_card(args.model, revision),
            "dropout": {name: getattr(config, name) for name in common.DROPOUT_NAMES if hasattr(config, name)},
            "vector": KINDS[data.task["kind"]].vectors_are(common.head_layer(model)[0])},
        "hardware": {"device": device.type, "name": common.device_name(device), "precision": precision,
                     "processes": common.launched()[1]},
        "versions": common.versions()}


def write_train_texts(folder: Path, data: Data) -> None:
    """Write train_texts.csv: what errors.py compares wrong samples with. Labels are written as in predictions.csv."""
    train = data.splits["train"]
    columns = train[["id", *common.text_columns(data.task)]]
    common.write_csv(folder / "train_texts.csv", columns.assign(label=KINDS[data.task["kind"]].gold(train, data.task)))


def keep_states(args: argparse.Namespace, folder: Path, data: Data, tokenizer: Any) -> Any:
    """The callback that keeps hidden states of up to KEPT_EXAMPLES validation examples, drawn with a fixed seed."""
    kind, task, validation = KINDS[data.task["kind"]], data.task, data.splits["validation"]
    rng = np.random.default_rng(common.SPLIT_SEED)
    kept = common.stratified_rows(kind.strata(validation, task), KEPT_EXAMPLES, rng)
    table = validation.iloc[kept].reset_index(drop=True)
    rows = kind.encode(table, task, tokenizer, args.max_length, data.images)

    def predict_rows(model: Any) -> tuple[Any, Any]:
        outputs = common.predict(model, rows, kind, args.per_device_eval_batch_size,
                                 common.choose_precision(args.precision))
        return table[["id"]].join(kind.predict(outputs.logits, table, task, rows)), outputs.vectors

    return common.KeepStates(folder / "epoch_states.npz", args.keep_epochs, predict_rows)


def build_trainer(args: argparse.Namespace, log: Any, data: Data, tokenizer: Any, model: Any) -> Any:
    """CustomTrainer with the flags of this run; `log` is its RunLog."""
    import torch
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments

    kind, task = KINDS[data.task["kind"]], data.task
    train_set = kind.encode(data.splits["train"], task, tokenizer, args.max_length, data.images)
    train_set.window = 50 if args.group_by_length else 1
    validation = data.splits["validation"]
    validation_set = kind.encode(validation, task, tokenizer, args.max_length, data.images)
    precision = common.choose_precision(args.precision)

    def compute_metrics(outputs: Any) -> dict[str, float]:
        tuned = kind.tune(outputs.predictions, validation, task, validation_set)
        predictions = kind.predict(outputs.predictions, validation, task | tuned, validation_set)
        scores = kind.metrics(predictions, task)
        return {name: scores[name] for name in task["metrics"]} | tuned

    training_args = TrainingArguments(
        output_dir=str(log.folder), seed=args.seed, data_seed=args.seed, num_train_epochs=args.num_train_epochs,
        per_device_train_batch_size=args.per_device_train_batch_size,
        per_device_eval_batch_size=args.per_device_eval_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps, max_grad_norm=args.max_grad_norm,
        learning_rate=args.learning_rate, weight_decay=args.weight_decay, warmup_steps=args.warmup_steps,
        lr_scheduler_type="constant" if args.lr_scheduler_type == "step" else args.lr_scheduler_type, optim=args.optim,
        use_cpu=common.pick_device().type == "cpu", bf16=precision == "bf16", fp16=precision == "fp16",
        eval_strategy="epoch", save_strategy="epoch",
        save_total_limit=2, load_best_model_at_end=True, metric_for_best_model=task["metrics"][0],
        greater_is_better=kind.greater_is_better(task["metrics"][0]), logging_steps=args.logging_steps,
        logging_nan_inf_filter=False, report_to=args.report_to, disable_tqdm=True, remove_unused_columns=False,
        label_names=["labels"], restore_callback_states_from_checkpoint=True,
        dataloader_pin_memory=torch.cuda.is_available(), activation_checkpointing=args.activation_checkpointing,
        torch_compile=args.compile)
    training_args._n_gpu = 1  # where there are several, Trainer would split each batch by DataParallel
    callbacks = [log]
    if args.keep_epochs:
        callbacks.append(keep_states(args, log.folder, data, tokenizer))
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    trainer = common.CustomTrainer(
        model=model, args=training_args, data_collator=train_set.collate, train_dataset=train_set,
        eval_dataset=validation_set, processing_class=tokenizer, compute_metrics=compute_metrics, kind=kind,
        class_weights=class_weights(args, data), callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)  # RunLog's lines say it
    if args.lr_scheduler_type == "step":
        batches = math.ceil(len(train_set) / args.per_device_train_batch_size / common.launched()[1])
        updates = math.ceil(batches / args.gradient_accumulation_steps)
        trainer.lr_scheduler = torch.optim.lr_scheduler.StepLR(trainer.create_optimizer(), updates, args.step_gamma)
    return trainer


def class_weights(args: argparse.Namespace, data: Data) -> Any:
    """float32 (labels,): n / (labels * examples of the label), scikit-learn's "balanced"; None where not asked for."""
    import torch

    if args.class_weights == "none":
        return None
    if not KINDS[data.task["kind"]].takes_class_weights:
        raise UserError(f"--class-weights is for classification, not for {data.task['kind'].replace('_', ' ')}")
    counts = data.record["labels"]["train"]
    weights = {label: sum(counts.values()) / (len(counts) * max(count, 1)) for label, count in counts.items()}
    print("class weights: " + ", ".join(f"{label} {weight:.3f}" for label, weight in weights.items()))
    return torch.tensor(list(weights.values()), dtype=torch.float32)


def finish(folder: Path, run: dict[str, Any], trainer: Any, tokenizer: Any, seconds: float) -> None:
    """Write model/ (the best epoch), learning_curve.png and the rest of run.json; delete the checkpoints."""
    model = trainer.model.merge_and_unload() if run["args"]["lora_rank"] else trainer.model
    with common.folder_atomically(folder / "model") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    history = common.history_table(trainer.state.log_history)
    metric = run["task"]["metrics"][0]
    scores = history[f"eval_{metric}"]
    best = int(scores.idxmax() if trainer.args.greater_is_better else scores.idxmin())
    run["training"] = {
        "metric": metric, "best_epoch": float(history["epoch"][best]), "best_score": float(scores[best]),
        "epochs": float(history["epoch"].iloc[-1]), "steps": trainer.state.global_step,
        "seconds": float(history["seconds"].sum()), "seconds_with_evaluation": seconds,
        "tuned": {name: float(history[f"eval_{name}"][best]) for name in KINDS[run["task"]["kind"]].tuned}}
    common.write_json(folder / "run.json", run)
    draw_learning_curve([folder], folder / "learning_curve.png")
    run["finished"] = datetime.datetime.now().isoformat(timespec="microseconds")
    common.write_json(folder / "run.json", run)
    for path in folder.glob("checkpoint-*"):  # only now: a run that is killed before that line still needs them
        shutil.rmtree(path)
    write_report(folder)
    print(f"best epoch: {run['training']['best_epoch']:g}, {metric} {scores[best]:.4f} on validation; "
          f"{run['training']['seconds'] / 60:.1f} min of training; written to {folder}")


if __name__ == "__main__":
    sys.exit(main())
