"""What a GPU does differently: equalities, waits, speeds and memory, as Markdown tables. About eight minutes on a GPU.

    python tests/gpu.py ROWS            ROWS/mrpc.jsonl and ROWS/sst2.jsonl: a line {"texts": [...], "label": 0} each
    python tests/gpu.py ROWS --small    the same code with tiny shapes on whatever is there, two minutes on a CPU

It needs no network and no weights: models of the shapes of bert-base-uncased, all-MiniLM-L6-v2 and Qwen2.5-1.5B get
random ones, and a tokenizer takes the rows' words.
"""

import contextlib
import functools
import itertools
import json
import os
import runpy
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

import common

SMALL, DEVICE, ON_GPU = "--small" in sys.argv, common.pick_device(), torch.cuda.is_available()
PRECISIONS = ["fp32", "bf16", "fp16"] if ON_GPU else ["fp32"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Hidden size, layers, heads, feed-forward; of the LLM also heads of keys, and the vocabulary.
SHAPES, LLM_SHAPE = {"bert-base": (768, 12, 12, 3072), "MiniLM-L6": (384, 6, 12, 1536)}, (1536, 28, 12, 8960, 2, 151936)
STEPS, BATCH = 200, 32
if SMALL:
    SHAPES, LLM_SHAPE, STEPS, BATCH = {"tiny": (32, 2, 2, 64)}, (64, 2, 4, 128, 2, 2000), 6, 8
    torch.set_num_threads(1)  # a tiny model computes for less time than two threads wait for each other
ROWS = {name: [(row["texts"], row["label"]) for row in map(json.loads, path.read_text("utf-8").splitlines())]
        for name in ("mrpc", "sst2") for path in [Path(sys.argv[1]) / f"{name}.jsonl"]}
TOKENIZER = common.word_tokenizer(text for rows in ROWS.values() for texts, _ in rows for text in texts)


def make_model(shape, dropout=0.1):
    hidden, layers, heads, inner = SHAPES[shape]
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=max(len(TOKENIZER), 100 if SMALL else 30522), hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=inner, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, pad_token_id=TOKENIZER.pad_token_id))


def make_data(name, examples=STEPS * BATCH):
    texts, labels = zip(*ROWS[name][:examples], strict=True)
    first, *second = ([*column] for column in zip(*texts, strict=True))
    columns = common.tokenize(TOKENIZER, first, second[0] if second else None, 128)
    return common.TokenDataset(columns, np.array(labels), common.pad_values(TOKENIZER))


def arguments(precision="fp32", **changes):
    return TrainingArguments(**{
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "seed": 1,
        "logging_steps": 10_000, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "use_cpu": not ON_GPU, "bf16": precision == "bf16", "fp16": precision == "fp16", "label_names": ["labels"],
        "remove_unused_columns": False, "optim": "adamw_torch_fused", **changes})


class InOurOrder(Trainer):
    """Stock Trainer over the first epoch's batches of ours."""

    def _get_train_sampler(self, train_dataset=None):
        batches = common.LengthGroupedBatches(self.train_dataset.lengths, self._train_batch_size, self.args.seed)
        return [example for batch in batches for example in batch]


def train(trainer_class=common.CustomTrainer, precision="fp32", examples=6 * BATCH, resume=None, callbacks=(),
          shape=[*SHAPES][-1], dropout=0.1, **changes):
    data = make_data("sst2", examples)
    trainer = trainer_class(model=make_model(shape, dropout), args=arguments(precision, **changes),
                            train_dataset=data, data_collator=data.collate, callbacks=[*callbacks])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class On(TrainerCallback):
    def __init__(self, **functions):
        vars(self).update(functions)


say = functools.partial(print, file=sys.stdout, flush=True)  # the project's own prints are sent to stderr below


def table(title, header, rows):
    say(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        say(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row)} |")


def flat(model):
    return torch.cat([parameter.detach().float().flatten().cpu() for parameter in model.parameters()])


def equalities():
    """The largest difference of a weight where there should be none, or rounding's."""
    pairs = {f"loop and stock Trainer, {precision}": [train(precision=precision), train(InOurOrder, precision)]
             for precision in PRECISIONS}
    same = {"examples": BATCH, "num_train_epochs": 3, "dropout": 0.0}  # an update an epoch: both see the same examples
    pairs["4 micro-batches and one large batch"] = [
        train(**same), train(per_device_train_batch_size=BATCH // 4, gradient_accumulation_steps=4, **same)]
    for precision in PRECISIONS:
        whole = train(precision=precision, save_strategy="steps", save_steps=3)
        pairs[f"a run and its resume from step 3, {precision}"] = [
            whole, train(precision=precision, resume=f"{whole.args.output_dir}/checkpoint-3")]
    rows = [[what, (flat(a.model) - flat(b.model)).abs().max().item()] for what, (a, b) in pairs.items()]
    if ON_GPU:
        seen = []  # weights and fp16's scale before each update

        def look(_args, state, _control, model, optimizer, **_):
            seen.append((flat(model), np.log2(optimizer.scaler.get_scale())))
            if state.global_step == 3:
                optimizer.scaler.update(2.0**60)  # no gradient survives it

        train(precision="fp16", callbacks=[On(on_step_begin=look)])
        rows.append([f"fp16, an update that overflows at 2^60 and is skipped; the scale falls to 2^{seen[4][1]:g}",
                     (seen[4][0] - seen[3][0]).abs().max().item()])
        data = common.TokenDataset({"input_ids": [np.full(512, 7)] * 1024}, np.zeros(1024, int), {"input_ids": 0})
        trainer = common.CustomTrainer(model=make_model(next(iter(SHAPES))), train_dataset=data,
                                       args=arguments(per_device_train_batch_size=1024))
        trainer.train()
        rows.append([f"1,024 examples of 512 tokens in one batch: trained in {trainer.cuts} parts", ""])
    table("Equalities: largest difference of a weight", ["what", "difference"], rows)


def waits():
    """Who makes the host wait for the device between the third step and the log."""
    found = []
    watch = On(on_step_begin=lambda _args, state, *_, **__: torch.cuda.set_sync_debug_mode(int(state.global_step > 2)),
               on_log=lambda *_, **__: torch.cuda.set_sync_debug_mode(0))
    for precision in PRECISIONS if ON_GPU else ():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(precision=precision, examples=18 * BATCH, logging_steps=18, callbacks=[watch])
        places = Counter(f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message))
        found += [[precision, *place] for place in places.most_common(6) or [("none", 0)]]
    table("Waits of the host between two logs, 15 steps", ["precision", "where", "times"], found)


synchronize = torch.cuda.synchronize if ON_GPU else int  # waits for the device, where the host does not


def clock(work):
    """Seconds of `work`, the device's part included."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


@functools.cache
def peak_flops(precision):
    """FLOP/s of a large matrix multiply, the best of ten."""
    size = 8192 if ON_GPU else 1024
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=AUTOCAST.get(precision, torch.float32))
    return max(10 * 2 * size**3 / clock(lambda: [a @ b for _ in range(10)]) for _ in range(10))


def accelerate_loop(model, rows, precision):
    """As accelerate's nlp_example.py trains, padded to the longest of each random batch."""
    accelerator = Accelerator(cpu=not ON_GPU, mixed_precision={"fp32": "no"}.get(precision, precision))
    loader = DataLoader(rows, BATCH, shuffle=True, collate_fn=DataCollatorWithPadding(TOKENIZER))
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=5e-5), loader)
    model.train()
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()


def speeds(shape, name, precision):
    """Rows of the table of speeds: training and prediction beside the peers, once each, kernels loaded before."""
    ours, per_batch, kind = make_data(name), DataCollatorWithPadding(TOKENIZER), common.KINDS["classification"]
    stock = [{key: value.tolist() if key == "labels" else value[0].tolist() for key, value in ours[i].items()}
             for i in range(len(ours))]
    peers = {"ours": (common.CustomTrainer, ours, ours.collate), "Trainer, per batch": (Trainer, stock, per_batch),
             "Trainer, to 128": (Trainer, stock, DataCollatorWithPadding(TOKENIZER, "max_length", 128))}
    if (shape, name, precision) == ("MiniLM-L6", "sst2", "fp16"):  # the last: --compile leaves its mark on accelerate
        peers |= {"Trainer, cuDNN's attention": peers["Trainer, per batch"], "ours, --compile": peers["ours"]}
    train(precision=precision, shape=shape)
    trained = {"accelerate loop": clock(lambda: accelerate_loop(make_model(shape), stock, precision))}
    for who, (trainer_class, data, collate) in peers.items():
        trainer = trainer_class(model=make_model(shape), train_dataset=data, data_collator=collate,
                                args=arguments(precision, torch_compile="compile" in who))
        torch.backends.cuda.enable_cudnn_sdp("cuDNN" in who)  # torch's own choice on a Hopper
        trained[who] = clock(trainer.train)
        torch.backends.cuda.enable_cudnn_sdp(False)
        if who == "ours":
            model = trainer.model
            trained["ours, by history.csv"] = trainer.state.log_history[0]["seconds"]
    few, peer = make_data(name, 64 * BATCH), Trainer(model=model, args=arguments(precision), data_collator=per_batch)
    predicted = {"ours": clock(lambda: common.predict(model, few, kind, BATCH, precision)),
                 "Trainer.predict": clock(lambda: peer.predict(stock[:len(few)]))}
    size = sum(part.numel() for key, part in model.named_parameters() if "embeddings" not in key)
    return [[shape, name, precision, what, who, len(data) / seconds, seconds / times["ours"],
             f"{passes * size * data.tokens / seconds / peak_flops(precision):.0%}"]
            for what, times, data, passes in (("train", trained, ours, 6), ("predict", predicted, few, 2))
            for who, seconds in times.items()]


def all_speeds():
    table("Speed; useful: 6 (prediction: 2) x parameters x real tokens, over the peak of a multiply",
          ["shape", "data", "precision", "what", "who", "examples/s", "takes, of ours", "useful"],
          [row for shape in SHAPES for precision in PRECISIONS[1:2 + (shape == "MiniLM-L6")] or PRECISIONS
           for name in ROWS for row in speeds(shape, name, precision)])


def host_share():
    """Milliseconds of a step from an idle device on. Where the host's take as long as all, Python sets the pace."""
    marks, rows = [], []
    watch = On(on_step_begin=lambda *_, **__: marks.append(time.perf_counter()), on_step_end=lambda *_, **__: (
        marks.extend([time.perf_counter(), synchronize() or time.perf_counter()])))
    for shape, precision in itertools.product(SHAPES, PRECISIONS[:2]):
        marks.clear()
        train(precision=precision, examples=(STEPS // 3 + 2) * BATCH, shape=shape, callbacks=[watch])
        begun, issued, done = 1000 * np.reshape(marks, (-1, 3)).T[:, 2:]  # less the first two steps
        rows.append([shape, precision, *map(np.median, (begun[1:] - done[:-1], issued - begun, done - begun))])
    table("A step, ms", ["shape", "precision", "to make the batch", "to issue all work", "until all is done"], rows)


def memory():
    """Peak memory of a step of 32 x 128 tokens, and the largest batch of 128 tokens that fits."""
    rows = []
    for precision in PRECISIONS if ON_GPU and not SMALL else ():
        model, peaks, size = make_model("bert-base").to(DEVICE), {}, 32
        with contextlib.suppress(torch.OutOfMemoryError):
            while True:
                torch.cuda.reset_peak_memory_stats()
                ids = torch.full((size, 128), 7, device=DEVICE)
                with torch.autocast("cuda", AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                    model(ids, labels=torch.zeros_like(ids[:, 0])).loss.backward()
                model.zero_grad()
                peaks[size] = torch.cuda.max_memory_allocated() / 2**30
                size *= 2
        rows.append([precision, peaks[32], max(peaks)])
    table("Memory, bert-base, 128 tokens", ["precision", "GiB at a batch of 32", "largest batch"], rows)


def script(name, *flags):
    sys.argv = [name, *map(str, flags)]
    return runpy.run_path(str(ROOT / name), run_name="__main__")  # the names that it leaves behind


def llm_labels():
    """What llm_compare.py does, beside plain generate and plain likelihood, on rows of MRPC."""
    rows, folder, few = [], Path(tempfile.mkdtemp()), 40 if SMALL else 200
    for name, part in (("train", ROWS["mrpc"][:few]), ("test", ROWS["mrpc"][-few:])):
        pairs = pd.DataFrame([[*texts, f"label {label}"] for texts, label in part], columns=["a", "b", "label"])
        pairs.to_csv(folder / f"{name}.csv", index=False)
    of_run = ("--run", folder / "run", "--dataset", folder / "test.csv")
    script("train.py", "--dataset", folder / "train.csv", "--sample", "--run", folder / "run", "--num-train-epochs", 1,
           "--text-column", "a", "b", "--label-column", "label")
    script("evaluate.py", *of_run)
    hidden, layers, heads, inner, pairs, vocabulary = LLM_SHAPE
    TOKENIZER.eos_token, TOKENIZER.model_input_names = "[SEP]", ["input_ids", "attention_mask"]
    TOKENIZER.save_pretrained(folder / "llm")
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=max(vocabulary, len(TOKENIZER)), hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=pairs, intermediate_size=inner, tie_word_embeddings=True,
        eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id)).to(
            AUTOCAST.get(common.choose_precision(), torch.float32)).save_pretrained(folder / "llm")
    for shots in (0, 4):
        found = script("llm_compare.py", *of_run, "--llm", folder / "llm", "--shots", shots, "--max-new-tokens", 8)
        llm, questions, answer_ids = (found[name] for name in ("llm", "questions", "answer_ids"))
        batches = [[questions[i] for i in batch] for batch in found["batches"]]
        rows.append([shots, f"tokens of the shared prefix: {len(llm.prefix)}", "", ""])
        with torch.inference_mode():
            work = {f"ours, {mode}": lambda mode=mode: [
                one["log_probs"] for batch in batches for one in llm.answer(batch, answer_ids, mode)]  # noqa: B023
                for mode in ("both", "generate", "likelihood")}
            work["plain likelihood, one at a time"] = lambda: [
                llm.plain_log_probs(one, answer_ids) for batch in batches for one in batch]  # noqa: B023
            ours, plain = (torch.tensor(list(work.values())[i]()) for i in (2, 3))
            rows += [[shots, who, few / clock(one), ""] for who, one in work.items()]
            rows[-1][-1] = (ours - plain).abs().max().item()
            llm.prefix, llm.cache = [], None
            rows.append([shots, "plain generate, our batches", few / clock(work["ours, generate"]), ""])
    table("LLM labels", ["shots", "who", "samples/s", "largest difference, nats"], rows)


say(f"{common.device_name(DEVICE)}; torch {torch.__version__}, transformers {transformers.__version__}")
with contextlib.redirect_stdout(sys.stderr):
    for part in (equalities, waits, all_speeds, host_share, memory, llm_labels):
        say(f"\n{part.__name__}: {clock(part):.0f} s")
