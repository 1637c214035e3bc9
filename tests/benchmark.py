"""How fast the scripts are beside their peers, measured in turns on this machine.

    python tests/benchmark.py                        all of it, an hour and a half on two cores
    python tests/benchmark.py --what train --repeats 5 --examples 800
    python tests/benchmark.py --what scale startup
    python tests/benchmark.py --what train inference --precision bf16 --model google-bert/bert-base-uncased

Every measurement is a process of its own, so that peak memory is its own; the peers take turns, and the table shows
medians over the repeats and ratios within one turn. Needs the rows of MRPC and SST-2 and the model from the hub.

train       one epoch: examples/s, and useful FLOP/s as a share of the peak of a matrix multiply, measured after
            each worker on the same device in the same precision
accuracy    three epochs: test accuracy, and seconds of training until validation accuracy reaches --target
inference   the test split: examples/s, share of the peak
scale       1,000, 10,000 and 67,349 rows of SST-2: microseconds per row of each step, peak memory
startup     seconds from the shell's point of view

Useful FLOP are 6 N per real token in training and 2 N in inference, N the parameters without the embeddings (Kaplan et
al. 2020, arXiv 2001.08361, section 2.1): padding, attention scores and the optimizer do not count.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LENGTH = 128
BATCH = {"train": 16, "inference": 32}
DATASETS = ("mrpc", "sst2")
PEERS = {  # what is measured: who is asked, ours first
    "train": ["ours", "trainer", "trainer_128", "accelerate_loop", "cross_encoder", "setfit"],
    "accuracy": ["ours", "trainer", "trainer_128"],
    "inference": ["ours", "trainer", "pipeline", "cross_encoder"],
}
PACKAGES = {"cross_encoder": "sentence_transformers", "setfit": "setfit"}
NAMES = {
    "ours": "ours", "trainer": "Trainer, padded per batch", "trainer_128": "Trainer, padded to 128 (run_glue)",
    "accelerate_loop": "accelerate loop, padded per batch", "cross_encoder": "sentence-transformers CrossEncoder",
    "setfit": "SetFit, 2 pairs per example (another method)", "pipeline": "pipeline(text-classification)"}


# ---- The workers: each loads, then measures the one thing, in a folder without our evaluate.py ----------------------


def read_rows(path: Path) -> tuple[list[str], list[str] | None, list[int]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    second = [row["second"] for row in rows] if "second" in rows[0] else None
    return [row["first"] for row in rows], second, [row["label"] for row in rows]


def stock_dataset(path: Path, tokenizer, padding):
    import datasets

    first, second, labels = read_rows(path)
    encoded = tokenizer(first, second, truncation=True, max_length=MAX_LENGTH, padding=padding)
    return datasets.Dataset.from_dict({**encoded, "labels": labels})


def load_stock(model):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    return AutoTokenizer.from_pretrained(model), AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)


def autocast(options):
    """For the peers that take no precision: as Trainer and accelerate compute in bf16."""
    import torch

    return torch.autocast("cpu" if options.cpu else "cuda", torch.bfloat16, enabled=options.bf16)


def stock_arguments(options, **changes):
    from transformers import TrainingArguments

    return TrainingArguments(**{
        "output_dir": tempfile.mkdtemp(), "num_train_epochs": 1, "per_device_train_batch_size": BATCH["train"],
        "per_device_eval_batch_size": BATCH["inference"], "learning_rate": 5e-5, "seed": options.seed,
        "report_to": "none", "save_strategy": "no", "eval_strategy": "no", "logging_steps": 0.005,
        "disable_tqdm": True, "use_cpu": options.cpu, "bf16": options.bf16, **changes})


def ours_data(options):
    """The rows as common.Data; the validation split is the test's, of which the timing of an epoch knows nothing."""
    sys.path.insert(0, str(ROOT))
    import pandas as pd

    import common

    task, splits = dict(common.catalog()[options.dataset]), {}
    for split, name in (("train", "train"), ("validation", "test"), ("test", "test")):
        first, second, labels = read_rows(options.rows / f"{name}.jsonl")
        texts = dict(zip(task["text"], (first, second) if second else (first,), strict=True))
        splits[split] = pd.DataFrame({"id": [f"{split}-{i:06d}" for i in range(len(first))], **texts, "label": labels})
    counts = {name: {label: int((table["label"] == i).sum()) for i, label in enumerate(task["labels"])}
              for name, table in splits.items()}
    return common.Data(task, splits, {"labels": counts})


def ours_trainer(options, epochs):
    data = ours_data(options)
    import common
    import train

    args = train.build_parser().parse_args([
        "--dataset", options.dataset, "--model", options.model, "--seed", str(options.seed),
        "--precision", options.precision, "--num-train-epochs", str(epochs),
        "--per-device-train-batch-size", str(BATCH["train"])])
    train.complete(args)
    args.max_length = MAX_LENGTH
    tokenizer, model = train.load(args, data, None)
    log = common.RunLog(Path(tempfile.mkdtemp()))
    return train.build_trainer(args, log, data, tokenizer, model), log


def train_ours(options):
    trainer, log = ours_trainer(options, epochs=1)
    trainer.train()
    log.close()
    return {"seconds": next(row["seconds"] for row in trainer.state.log_history if "epoch_train_loss" in row)}


def train_trainer(options, padding=False):
    from transformers import DataCollatorWithPadding, Trainer, default_data_collator

    tokenizer, model = load_stock(options.model)
    trainer = Trainer(
        model=model, args=stock_arguments(options), train_dataset=stock_dataset(
            options.rows / "train.jsonl", tokenizer, padding),
        data_collator=default_data_collator if padding else DataCollatorWithPadding(tokenizer))
    return {"seconds": trainer.train().metrics["train_runtime"]}


def train_trainer_128(options):
    return train_trainer(options, "max_length")


def train_accelerate_loop(options):
    """As accelerate's examples/nlp_example.py: batches in random order, padded to their longest, AdamW, linear rate."""
    import torch
    from accelerate import Accelerator
    from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup

    torch.manual_seed(options.seed)
    accelerator = Accelerator(cpu=options.cpu, mixed_precision="bf16" if options.bf16 else "no")
    tokenizer, model = load_stock(options.model)
    rows = stock_dataset(options.rows / "train.jsonl", tokenizer, False)
    loader = torch.utils.data.DataLoader(rows, batch_size=BATCH["train"], shuffle=True,
                                         collate_fn=DataCollatorWithPadding(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(loader))
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    model.train()
    start = time.perf_counter()
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {"seconds": time.perf_counter() - start}


def train_cross_encoder(options):
    import datasets
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import CrossEntropyLoss

    first, second, labels = read_rows(options.rows / "train.jsonl")
    model = CrossEncoder(options.model, num_labels=2, max_length=MAX_LENGTH)
    arguments = CrossEncoderTrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, per_device_train_batch_size=BATCH["train"],
        learning_rate=5e-5, seed=options.seed, report_to="none", save_strategy="no", disable_tqdm=True,
        use_cpu=options.cpu, bf16=options.bf16)
    rows = datasets.Dataset.from_dict({"first": first, "second": second or [""] * len(first), "label": labels})
    trainer = CrossEncoderTrainer(model=model, args=arguments, train_dataset=rows, loss=CrossEntropyLoss(model))
    return {"seconds": trainer.train().metrics["train_runtime"]}


def train_setfit(options):
    import datasets
    from setfit import SetFitModel, Trainer, TrainingArguments

    first, second, labels = read_rows(options.rows / "train.jsonl")
    texts = [f"{a} [SEP] {b}" for a, b in zip(first, second, strict=True)] if second else first
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels})
    trainer = Trainer(model=SetFitModel.from_pretrained(options.model), train_dataset=rows, args=TrainingArguments(
        output_dir=tempfile.mkdtemp(), batch_size=BATCH["train"], num_epochs=1, num_iterations=1, report_to="none"))
    start = time.perf_counter()
    trainer.train()
    return {"seconds": time.perf_counter() - start}


def accuracy_ours(options):
    trainer, log = ours_trainer(options, epochs=3)
    trainer.train()
    log.close()
    rows = trainer.state.log_history
    seconds = [row["seconds"] for row in rows if "epoch_train_loss" in row]
    return {"seconds": sum(seconds), "epochs": seconds,
            "scores": [row["eval_accuracy"] for row in rows if "eval_accuracy" in row]}


def accuracy_trainer(options, padding=False):
    import numpy as np
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, default_data_collator

    class Clock(TrainerCallback):
        """Seconds of each epoch, without its evaluation."""

        def __init__(self):
            self.epochs = []

        def on_epoch_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_epoch_end(self, *_, **__):
            self.epochs.append(time.perf_counter() - self.start)

    tokenizer, model = load_stock(options.model)
    train, test = (stock_dataset(options.rows / f"{name}.jsonl", tokenizer, padding) for name in ("train", "test"))
    clock = Clock()
    trainer = Trainer(
        model=model, args=stock_arguments(options, num_train_epochs=3, eval_strategy="epoch"), train_dataset=train,
        eval_dataset=test, data_collator=default_data_collator if padding else DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda out: {"accuracy": float((np.argmax(out.predictions, -1) == out.label_ids).mean())},
        callbacks=[clock])
    trainer.train()
    scores = [row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row]
    return {"seconds": sum(clock.epochs), "epochs": clock.epochs, "scores": scores}


def accuracy_trainer_128(options):
    return accuracy_trainer(options, "max_length")


def inference_ours(options):
    data = ours_data(options)
    import common

    tokenizer, model = common.load_model(options.model, data.task)
    kind = common.KINDS["classification"]
    start = time.perf_counter()
    rows = kind.encode(data.splits["test"], data.task, tokenizer, MAX_LENGTH)
    outputs = common.predict(model.to(common.pick_device()), rows, kind, BATCH["inference"], options.precision)
    kind.predict(outputs.logits, data.splits["test"], data.task)
    return {"seconds": time.perf_counter() - start}


def inference_trainer(options):
    from transformers import DataCollatorWithPadding, Trainer

    tokenizer, model = load_stock(options.model)
    trainer = Trainer(model=model, args=stock_arguments(options), data_collator=DataCollatorWithPadding(tokenizer))
    start = time.perf_counter()
    trainer.predict(stock_dataset(options.rows / "test.jsonl", tokenizer, False))
    return {"seconds": time.perf_counter() - start}


def inference_pipeline(options):
    from transformers import pipeline

    tokenizer, model = load_stock(options.model)
    first, second, _ = read_rows(options.rows / "test.jsonl")
    texts = [{"text": a, "text_pair": b} for a, b in zip(first, second, strict=True)] if second else first
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=BATCH["inference"],
                        truncation=True, max_length=MAX_LENGTH, device=-1 if options.cpu else 0)
    start = time.perf_counter()
    with autocast(options):
        classify(texts)
    return {"seconds": time.perf_counter() - start}


def inference_cross_encoder(options):
    from sentence_transformers.cross_encoder import CrossEncoder

    first, second, _ = read_rows(options.rows / "test.jsonl")
    model = CrossEncoder(options.model, num_labels=2, max_length=MAX_LENGTH)
    start = time.perf_counter()
    with autocast(options):
        model.predict(list(zip(first, second or [""] * len(first), strict=True)), batch_size=BATCH["inference"])
    return {"seconds": time.perf_counter() - start}


def scale_ours(options):
    """Microseconds per row of loading, tokenising, sampling, predicting and writing `--examples` rows of SST-2."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    import common
    import train

    args = train.build_parser().parse_args(["--dataset", "sst2", "--max-train-samples", str(options.examples)])
    steps, start = {}, time.perf_counter()

    def lap(name):
        nonlocal start
        steps[name] = 1e6 * (time.perf_counter() - start) / options.examples
        start = time.perf_counter()

    data = common.load_data(args)
    rows, kind = data.splits["train"], common.KINDS["classification"]
    start = time.perf_counter()  # the hub's file is read whole, whatever is sampled from it
    tokenizer, model = common.load_model(options.model, data.task)
    start = time.perf_counter()
    encoded = kind.encode(rows, data.task, tokenizer, MAX_LENGTH)
    lap("tokenise")
    common.stratified_rows(kind.strata(rows, data.task), len(rows) // 2, np.random.default_rng(0))
    lap("sample")
    list(common.LengthGroupedBatches(encoded.lengths, BATCH["train"], 0))
    lap("order")
    outputs = common.predict(model, encoded, kind, BATCH["inference"], options.precision)
    lap("predict")
    table = rows.join(kind.predict(outputs.logits, rows, data.task))
    common.write_csv(Path(tempfile.mkdtemp()) / "predictions.csv", table)
    lap("write")
    return {"steps": steps, "seconds": 0.0}


def work(options):
    """Measure one thing and print it as JSON; peak memory is that of this process, in MB."""
    import torch

    options.cpu = not torch.cuda.is_available()
    found = globals()[f"{options.what[0]}_{options.worker}"](options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    print(json.dumps({**found, "peak_mb": peak}))


# ---- The parent: prepares rows, lets the workers take turns, prints --------------------------------------------------


def prepare(options, dataset, folder):
    """Write train.jsonl and test.jsonl of --examples rows each; returns parameters and mean real tokens per example."""
    sys.path.insert(0, str(ROOT))
    import common
    import train

    flags = ["--dataset", dataset, "--max-train-samples", str(options.examples)]
    args = train.build_parser().parse_args([*flags, "--max-eval-samples", str(options.examples)])
    data = common.load_data(args)
    tokens = {}
    tokenizer, model = common.load_model(options.model, data.task)
    for split in ("train", "test"):
        rows = [dict(zip(("first", "second"), (row[name] for name in data.task["text"]), strict=False),
                     label=row["label"]) for row in data.splits[split].to_dict("records")]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        encoded = common.KINDS["classification"].encode(data.splits[split], data.task, tokenizer, MAX_LENGTH)
        tokens[split] = encoded.tokens, len(encoded)
    embeddings = sum(p.numel() for name, p in model.named_parameters() if "embeddings" in name)
    return model.num_parameters() - embeddings, tokens


def peak_flops(bf16):
    """FLOP/s of a matrix multiply that fits a CPU's caches, or fills a GPU: the best of ten tries."""
    import torch

    on_gpu = torch.cuda.is_available()
    size = 8192 if on_gpu else 1024
    a, b = torch.randn(2, size, size, device="cuda" if on_gpu else "cpu",
                       dtype=torch.bfloat16 if bf16 else torch.float32)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        if on_gpu:
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - start))
    return best


def run_worker(options, what, peer, dataset, rows, seed):
    """One measurement in a process of its own, from a folder where our evaluate.py shadows no package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--worker", peer, "--what", what, "--dataset", dataset,
         "--rows", str(rows), "--model", options.model, "--examples", str(options.examples), "--seed", str(seed),
         "--precision", options.precision],
        cwd=rows, env={**environment, "TOKENIZERS_PARALLELISM": "false"}, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{what}, {peer}: failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def compare(options, what):
    """Rows of the table of one comparison."""
    from importlib.util import find_spec

    peers = [peer for peer in PEERS[what] if peer not in PACKAGES or find_spec(PACKAGES[peer])]
    if options.bf16:
        peers = [peer for peer in peers if peer != "setfit"]  # it has fp16 alone
    rows = []
    for dataset in DATASETS if what != "accuracy" else DATASETS[:1]:
        with tempfile.TemporaryDirectory() as folder:
            parameters, tokens = prepare(options, dataset, Path(folder))
            found = {peer: [] for peer in peers}
            for repeat in range(options.repeats):
                for peer in peers:  # in turns, so that a slow minute of the machine falls on all
                    print(f"{what}, {dataset}, {repeat + 1}/{options.repeats}: {peer}", file=sys.stderr)
                    run = run_worker(options, what, peer, dataset, Path(folder), repeat)
                    found[peer].append(run and {**run, "peak_flops": peak_flops(options.bf16)})
        rows += [summarize(options, what, dataset, peer, found, parameters, tokens) for peer in peers
                 if all(found[peer])]
    return rows


def summarize(options, what, dataset, peer, found, parameters, tokens):
    """A row of the table: medians over the repeats, and the ratio within each turn."""
    real_tokens, examples = tokens["test" if what == "inference" else "train"]
    epochs = 3 if what == "accuracy" else 1
    useful = (2 if what == "inference" else 6) * parameters * real_tokens * epochs
    runs, seconds = found[peer], statistics.median(run["seconds"] for run in found[peer])
    ratios = [run["seconds"] / ours["seconds"] for run, ours in zip(runs, found["ours"], strict=True)]
    share = statistics.median(useful / run["seconds"] / run["peak_flops"] for run in runs)
    row = {
        "what": what, "dataset": dataset, "who": NAMES[peer], "examples_per_s": round(examples * epochs / seconds, 1),
        "ours_is_faster_by": round(statistics.median(ratios), 2), "from_to": f"{min(ratios):.2f}-{max(ratios):.2f}",
        "useful_gflops": round(useful / seconds / 1e9, 1), "share_of_peak": f"{share:.0%}",
        "peak_mb": round(statistics.median(run["peak_mb"] for run in runs))}
    if what == "accuracy":
        scores = [run["scores"][-1] for run in runs]
        reached = [sum(run["epochs"][:next((i for i, score in enumerate(run["scores"]) if score >= options.target), 3)
                                     + 1]) for run in runs]
        row |= {"accuracy": round(statistics.mean(scores), 4),
                "sd": round(statistics.stdev(scores), 4) if len(scores) > 1 else None,
                f"s_to_{options.target}": round(statistics.median(reached), 1)}
    return row


def scale(options):
    """Rows of the table of scale: time per row should not grow with the rows."""
    rows = []
    for examples in (1000, 10_000, 67_349):
        options.examples = examples
        with tempfile.TemporaryDirectory() as folder:
            runs = [run_worker(options, "scale", "ours", "sst2", Path(folder), 0) for _ in range(options.repeats)]
        rows.append({"what": "scale", "rows": examples, **{
            f"{name}_us": round(statistics.median(run["steps"][name] for run in runs), 1)
            for name in runs[0]["steps"]}, "peak_mb": round(statistics.median(run["peak_mb"] for run in runs))})
    return rows


def startup(options):
    """Rows of the table of startup: whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--dataset", "mrpc", "--sample", "--runs-dir", folder]
        for script in ("train.py", "evaluate.py"):
            subprocess.run([sys.executable, script, *flags], cwd=ROOT, check=True, capture_output=True)
        commands = [[f"{script}.py", "--help"] for script in
                    ("train", "evaluate", "errors", "llm_compare", "visualize")]
        commands += [["train.py", "--datset", "mrpc"], ["errors.py", *flags]]
        rows = []
        for command in commands:
            seconds = []
            for _ in range(options.repeats + 1):
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], cwd=ROOT, check=False, capture_output=True)
                seconds.append(time.perf_counter() - start)
            rows.append({"what": "startup", "command": " ".join(command[:2]),
                         "seconds": round(statistics.median(seconds[1:]), 2)})  # the first one fills the disk's cache
    return rows


def print_table(rows):
    """Print the rows of one thing that was measured."""
    sys.path.insert(0, str(ROOT))
    import pandas as pd

    import common

    print(f"\n{rows[0]['what']}\n{common.as_text(pd.DataFrame(rows).drop(columns='what'))}", flush=True)


def write_rows(rows):
    """Write benchmark.csv; a table has columns that another lacks."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with Path("benchmark.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=[*PEERS, "scale", "startup"], default=[*PEERS, "scale", "startup"])
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 leaves SetFit out")
    parser.add_argument("--examples", type=int, default=800, help="of train and of test")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.72, help="accuracy whose time is measured")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--dataset", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.bf16 = options.precision == "bf16"
    if options.worker:
        work(options)
        return
    rows = []
    for what in options.what:
        table = compare(options, what) if what in PEERS else {"scale": scale, "startup": startup}[what](options)
        print_table(table)
        rows += table
        write_rows(rows)  # after each: what was measured is kept where a later one breaks off
    print("\nwritten to benchmark.csv")


if __name__ == "__main__":
    main()
