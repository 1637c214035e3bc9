"""Labels per second of llm_compare.py beside plain transformers, on the test samples of a run; no test, figures only.

    python tests/benchmark_llm.py --run runs/mrpc/MODEL/seed42 --llm FOLDER [--shots 4]

Where FOLDER is not there, a model with random weights in the shape of Qwen2.5-0.5B, but of six layers, is written to
it, with a byte-level BPE tokenizer learned from the run's training texts and Qwen's chat template. All methods are
given the same prompts, take turns within one process, and write eight tokens greedily in fp32. CPU seconds are those of
all threads together: on a machine that is not idle, OMP_NUM_THREADS=1 keeps out threads that do nothing but wait.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
import llm_compare

CHAT_TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
                 "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def make_llm(folder, texts):
    """Write the random model and its tokenizer."""
    import torch
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=16_000, special_tokens=marks, show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=marks, chat_template=CHAT_TEMPLATE)
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=6, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plain_generate(llm, questions, size):
    """transformers' generate on batches of `size` whole prompts, the longest first."""
    import torch

    texts, outputs = [question.prompt for question in questions], {}
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for first in range(0, len(order), size):
        rows = order[first:first + size]
        batch = llm.tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            written = llm.model.generate(**batch.to(llm.model.device))
        outputs |= zip(rows, llm.tokenizer.batch_decode(written[:, batch["input_ids"].shape[1]:],
                                                        skip_special_tokens=True), strict=True)
    return [outputs[i] for i in range(len(texts))]


def pipeline(llm, questions, size):
    """transformers' text-generation pipeline in batches of `size`."""
    from transformers import pipeline

    llm.tokenizer.padding_side = "left"
    ask = pipeline("text-generation", model=llm.model, tokenizer=llm.tokenizer, batch_size=size)
    return [rows[0]["generated_text"] for rows in ask([question.prompt for question in questions],
                                                      return_full_text=False)]


def ours(llm, questions, mode, batch_tokens):
    """llm_compare.py's answers, the shared prefix included."""
    llm.share_prefix(questions)
    answer_ids, outputs = llm.answer_tokens(questions[0]), {}
    for batch in llm_compare.plan_batches(questions, llm.new_tokens, batch_tokens):
        outputs |= zip(batch, llm.answer([questions[i] for i in batch], answer_ids, mode), strict=True)
    return [outputs[i]["output"] for i in range(len(questions))]


def main():
    """Measure and print."""
    parser = llm_compare.build_parser()
    parser.add_argument("--rounds", type=common.positive_int, default=3, metavar="N", help="turns of each method")
    parser.set_defaults(precision="fp32", max_samples=200)
    args = parser.parse_args()
    folder, run = common.find_run(args)
    if not Path(args.llm).is_dir():
        make_llm(args.llm, common.read_csv(folder / "train_texts.csv")[run["task"]["text"]].stack())
    form = llm_compare.answer_form(args, run["task"])
    predictions, _ = llm_compare.pick_samples(common.read_predictions(folder), form, args.max_samples, set())
    questions = llm_compare.build_questions(args, folder, form, predictions)
    llm = llm_compare.load_llm(args, run, form, questions)
    questions = [llm_compare.encode(llm, question) for question in questions]
    llm.share_prefix(questions)
    lengths = [question.length for question in questions]
    print(f"{len(questions)} prompts of {min(lengths)} to {max(lengths)} tokens, mean {np.mean(lengths):.0f}, of which "
          f"{len(llm.prefix)} are shared; {common.device_name(llm.model.device)}")
    methods = {
        "generate, batches of 8": lambda: plain_generate(llm, questions, 8),
        "generate, batches of 32": lambda: plain_generate(llm, questions, 32),
        "pipeline, batches of 8": lambda: pipeline(llm, questions, 8),
        "ours, generated": lambda: ours(llm, questions, "generate", args.batch_tokens),
        "ours, likelihood": lambda: ours(llm, questions, "likelihood", args.batch_tokens),
        "ours, both": lambda: ours(llm, questions, "both", args.batch_tokens)}
    seconds, cpu_seconds, outputs = ({name: [] for name in methods} for _ in range(3))
    for _ in range(args.rounds):
        for name, method in methods.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            outputs[name] = method()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
            print(f"  {name}: {seconds[name][-1]:.1f} s, {cpu_seconds[name][-1]:.1f} CPU s", file=sys.stderr)
    base = next(iter(methods))
    rows = []
    for name in methods:
        ratios = np.array(cpu_seconds[base]) / np.array(cpu_seconds[name])
        same = sum(a == b for a, b in zip(outputs[base], outputs[name], strict=True))
        rows.append({"method": name, "labels/s": f"{len(questions) / np.median(seconds[name]):.2f}",
                     "CPU s": f"{np.median(cpu_seconds[name]):.1f}",
                     "faster (CPU s)": f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})",
                     "faster (clock)": f"{np.median(np.array(seconds[base]) / np.array(seconds[name])):.2f}",
                     "same text": "-" if name == "ours, likelihood" else f"{same} of {len(questions)}"})
    print(common.as_text(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
