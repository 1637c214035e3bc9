"""How fast the scripts are beside their peers, on real rows, in turns on this machine.

    python tests/benchmark.py                                     all of it; an hour on two cores
    python tests/benchmark.py --what accuracy --datasets sst2 --max-train-samples 4000 --target 0.83 --seeds 0 1 2
    python tests/benchmark.py --what inference --precision bf16 --model google-bert/bert-base-uncased

accuracy    from the command to the first epoch's end whose validation accuracy reaches --target (imports, tokenising
            and evaluation included), and examples per second of training alone, default flags against default flags
inference   examples per second of the test split, tokenising left out
startup     seconds of --help, of a wrong flag and of each script with --sample

Every measurement is a process of its own and the peers take turns; the tables show means or medians over the seeds, and
ratios within one turn (theirs over ours). All train and validate on the same rows. Needs the rows and the model from
the hub, or from a folder that HF_ENDPOINT serves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--what", nargs="+", choices=["accuracy", "inference", "startup"],
                    default=["accuracy", "inference", "startup"])
parser.add_argument("--datasets", nargs="+", default=["mrpc", "sst2"])
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="fp32", help="auto: as our flags come")
parser.add_argument("--max-train-samples", type=int, default=800)
parser.add_argument("--max-eval-samples", type=int, default=400)
parser.add_argument("--num-train-epochs", type=int, default=3)
parser.add_argument("--target", type=float, default=0.7, help="validation accuracy whose time is measured")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--peer", help=argparse.SUPPRESS)  # what a process of its own is asked to be
parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
options = parser.parse_args()
ROOT = Path(__file__).resolve().parents[1]
TRAINING = {"ours": "ours", "trainer": "Trainer, padded per batch", "trainer_128": "Trainer, padded to 128 (run_glue)",
            "accelerate_loop": "accelerate loop, padded per batch"}
INFERENCE = {"ours": "ours", "predict": "Trainer.predict", "pipeline": "pipeline(text-classification)"}


# The peers. Each prints a line of JSON per epoch, or one for the test split.


def rows_of(split, tokenizer=None, padding=False):
    """(first texts, second texts or None, labels) of a split; tokenised as a datasets.Dataset with a tokenizer."""
    import datasets

    rows = [json.loads(line) for line in (options.rows / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [[row["texts"][i] for row in rows] for i in range(len(rows[0]["texts"]))]
    labels = [row["label"] for row in rows]
    if tokenizer is None:
        return texts, labels
    encoded = tokenizer(*texts, truncation=True, max_length=128, padding=padding)
    return datasets.Dataset.from_dict({**encoded, "labels": labels})


def stock_model():
    """Tokenizer and model as anybody loads them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    set_seed(options.seed)
    return (AutoTokenizer.from_pretrained(options.model),
            AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2))


def stock_arguments(**changes):
    """TrainingArguments with their own defaults, but for what our flags set: batches of 16 and 32."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(**{
        "output_dir": tempfile.mkdtemp(), "num_train_epochs": options.num_train_epochs, "seed": options.seed,
        "per_device_train_batch_size": 16, "per_device_eval_batch_size": 32, "eval_strategy": "epoch",
        "save_strategy": "epoch", "save_total_limit": 2, "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy", "report_to": "none", "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(), "bf16": options.precision == "bf16", **changes})


def trainer(padding=False):
    """Trainer with checkpoints and evaluation after each epoch, as run_glue.py sets it up."""
    import numpy as np
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, default_data_collator

    class Say(TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_epoch_end(self, *_, **__):
            self.seconds = time.perf_counter() - self.start

        def on_evaluate(self, *_, metrics, **__):
            print(json.dumps({"accuracy": metrics["eval_accuracy"], "seconds": self.seconds}), flush=True)

    tokenizer, model = stock_model()
    Trainer(model=model, args=stock_arguments(), train_dataset=rows_of("train", tokenizer, padding),
            eval_dataset=rows_of("validation", tokenizer, padding), callbacks=[Say()],
            data_collator=default_data_collator if padding else DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda out: {"accuracy": float((np.argmax(out.predictions, -1) == out.label_ids).mean())},
            ).train()


def trainer_128():
    """The same with every example padded to 128 tokens."""
    trainer("max_length")


def accelerate_loop():
    """As accelerate's examples/nlp_example.py: batches in random order, padded to their longest, AdamW, linear rate."""
    import torch
    from accelerate import Accelerator
    from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup

    accelerator = Accelerator(cpu=not torch.cuda.is_available(),
                              mixed_precision="bf16" if options.precision == "bf16" else "no")
    tokenizer, model = stock_model()
    train, validation = (torch.utils.data.DataLoader(
        rows_of(split, tokenizer), batch_size=size, shuffle=split == "train",
        collate_fn=DataCollatorWithPadding(tokenizer)) for split, size in (("train", 16), ("validation", 32)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(train) * options.num_train_epochs)
    model, optimizer, train, validation, schedule = accelerator.prepare(model, optimizer, train, validation, schedule)
    for _ in range(options.num_train_epochs):
        model.train()
        start = time.perf_counter()
        for batch in train:
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - start
        model.eval()
        with torch.no_grad():
            right = [(model(**batch).logits.argmax(-1) == batch["labels"]).float() for batch in validation]
        print(json.dumps({"accuracy": torch.cat(right).mean().item(), "seconds": seconds}), flush=True)


def predict():
    """Trainer.predict on the test split."""
    from transformers import DataCollatorWithPadding, Trainer

    tokenizer, model = stock_model()
    args = stock_arguments(eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    ours = Trainer(model=model, args=args, data_collator=DataCollatorWithPadding(tokenizer))
    rows, start = rows_of("test", tokenizer), time.perf_counter()
    ours.predict(rows)
    print(json.dumps({"examples_per_second": len(rows) / (time.perf_counter() - start)}))


def pipeline():
    """transformers' pipeline on the test split; it tokenises as it goes."""
    import torch
    from transformers import pipeline

    tokenizer, model = stock_model()
    texts, labels = rows_of("test")
    given = [{"text": a, "text_pair": b} for a, b in zip(*texts, strict=True)] if len(texts) == 2 else texts[0]
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=32, truncation=True,
                        max_length=128, device=0 if torch.cuda.is_available() else -1)
    start = time.perf_counter()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        classify(given)
    print(json.dumps({"examples_per_second": len(labels) / (time.perf_counter() - start)}))


# The measurements.


def ours_flags(dataset, seed, runs):
    """train.py's flags for the same rows; the run is a new one."""
    return ["--dataset", dataset, "--model", options.model, "--seed", str(seed), "--runs-dir", str(runs), "--overwrite",
            "--precision", options.precision, "--max-length", "128",
            "--max-train-samples", str(options.max_train_samples), "--max-eval-samples", str(options.max_eval_samples),
            "--num-train-epochs", str(options.num_train_epochs)]


def clocked(command):
    """Run a command; [(seconds since its start, line)] of what it prints."""
    start, lines = time.perf_counter(), []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        lines.append((time.perf_counter() - start, line))
    if process.wait():
        sys.exit(f"{' '.join(map(str, command))} failed: {process.stderr.read()[-500:]}")
    return [*lines, (time.perf_counter() - start, "end")]


def as_peer(name, dataset, rows, seed):
    """This file as one of the peers."""
    return [sys.executable, __file__, "--peer", name, "--datasets", dataset, "--rows", str(rows), "--seed", str(seed),
            "--model", options.model, "--precision", "bf16" if options.precision == "bf16" else "fp32",
            "--num-train-epochs", str(options.num_train_epochs)]


def measure_training(name, dataset, rows, seed, runs):
    """Seconds from the command to the target (None: not reached) and to the end; accuracies; examples per second."""
    if name == "ours":
        lines = clocked([sys.executable, "train.py", *ours_flags(dataset, seed, runs)])
        epochs = [(when, float(line.split("eval loss")[1].split("accuracy ")[1].split()[0]))
                  for when, line in lines if line.startswith("epoch")]
        history = runs / dataset / options.model.replace("/", "--") / f"seed{seed}" / "history.csv"
        header, *body = [line.split(",") for line in history.read_text("utf-8-sig").splitlines()]
        seconds = sum(float(row[header.index("seconds")]) for row in body)
    else:
        lines = clocked(as_peer(name, dataset, rows, seed))
        said = [(when, json.loads(line)) for when, line in lines if line.startswith('{"')]
        epochs, seconds = [(when, one["accuracy"]) for when, one in said], sum(one["seconds"] for _, one in said)
    examples = sum(1 for _ in (rows / "train.jsonl").open()) * len(epochs)
    return {"target": next((when for when, score in epochs if score >= options.target), None), "end": lines[-1][0],
            "scores": [score for _, score in epochs], "speed": examples / seconds}


def measure_inference(name, dataset, rows, seed, runs):
    """Examples per second."""
    if name != "ours":
        line = next(line for _, line in clocked(as_peer(name, dataset, rows, seed)) if line.startswith('{"'))
        return {"speed": json.loads(line)["examples_per_second"]}
    clocked([sys.executable, "evaluate.py", "--dataset", dataset, "--runs-dir", str(runs), "--model", options.model,
             "--precision", options.precision])
    timing = next(runs.glob(f"{dataset}/*/seed*/timing.csv")).read_text("utf-8-sig").splitlines()
    return {"speed": float(dict(zip(*(line.split(",") for line in timing), strict=False))["examples_per_second"])}


def write_rows(dataset, folder):
    """The rows that ours trains, validates and is tested on, for the peers."""
    sys.path.insert(0, str(ROOT))
    import common

    data = common.load_data(dataset, max_train_samples=options.max_train_samples,
                            max_eval_samples=options.max_eval_samples)
    kind = common.kind_of(data.task)
    for name, table in data.splits.items():
        texts = table[data.task["text"]].to_numpy().tolist()
        lines = [json.dumps({"texts": row, "label": label})
                 for row, label in zip(texts, kind.targets(table, data.task).tolist(), strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def compare(what, peers, measure):
    """Print a table: the peers of each data set, in turns."""
    print(f"\n| {what}, {options.precision} | examples/s | ours is faster by | s to {options.target} | s to the end | "
          "ours takes | accuracy |\n|---|---|---|---|---|---|---|")
    for dataset in options.datasets:
        with tempfile.TemporaryDirectory() as folder:
            rows, runs = Path(folder), Path(folder, "runs")
            write_rows(dataset, rows)
            if what == "inference":
                clocked([sys.executable, "train.py", *ours_flags(dataset, 0, runs), "--num-train-epochs", "1"])
            turns = [{name: measure(name, dataset, rows, seed, runs) for name in peers} for seed in options.seeds]
        for name, title in peers.items():
            mine, ours = [turn[name] for turn in turns], [turn["ours"] for turn in turns]
            cells = [f"{median(one['speed'] for one in mine):.1f}",
                     f"{median(a['speed'] / b['speed'] for a, b in zip(ours, mine, strict=True)):.2f}"]
            if what == "accuracy":
                reached = [one["target"] for one in mine if one["target"]]
                pairs = [(a["target"], b["target"]) for a, b in zip(ours, mine, strict=True)]
                takes = [a / b for a, b in pairs if a and b]
                scores = zip(*(one["scores"] for one in mine), strict=True)
                cells += [f"{mean(reached):.1f} ({len(reached)} of {len(mine)})" if reached else "never",
                          f"{mean(one['end'] for one in mine):.1f}", f"{median(takes):.2f}" if takes else "",
                          " ".join(f"{mean(of_epoch):.3f}" for of_epoch in scores)]
            print(f"| {dataset}, {title} | " + " | ".join(cells) + " |", flush=True)


def startup():
    """Print seconds of whole commands, the best of three."""
    print("\n| startup | s |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sample = ["--dataset", "mrpc", "--sample", "--runs-dir", folder]
        scripts = ["train", "evaluate", "errors", "llm_compare", "visualize"]
        commands = [[f"{script}.py", "--help"] for script in scripts] + [["-c", "import common"]]
        commands += [["train.py", *sample, "--overwrite"], *([f"{script}.py", *sample] for script in scripts[1:])]
        for command in commands:
            seconds = min(clocked([sys.executable, *command])[-1][0] for _ in range(3))
            print(f"| {' '.join(command[:2] + command[3:4])} | {seconds:.2f} |", flush=True)


if options.peer:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    globals()[options.peer]()
else:
    if "accuracy" in options.what:
        compare("accuracy", TRAINING, measure_training)
    if "inference" in options.what:
        compare("inference", INFERENCE, measure_inference)
    if "startup" in options.what:
        startup()
