"""Ask an LLM for the labels of the very test samples that a run was evaluated on, and compare the two.

    python llm_compare.py --dataset mrpc                                      after evaluate.py
    python llm_compare.py --dataset mrpc --llm meta-llama/Llama-3.2-3B-Instruct --shots 4 --max-samples 200
    python llm_compare.py --dataset mrpc --sample                             a tiny random LLM, no network
    torchrun --nproc-per-node 2 llm_compare.py --dataset mrpc                 the samples shared among two GPUs

Each prompt is answered twice: the LLM writes an answer, which is parsed (generated), and each allowed answer is scored
by its probability after the prompt (likelihood). An answer that can't be read is UNPARSED and counts as wrong; where it
would be a number or a set of labels, the figures are of the parsed answers and the share of the others stands beside.

Writes llm_predictions.csv, llm_metrics.csv, llm_compare.png, disagreements.csv and two columns of errors.csv, llm_how
and llm_prediction. Answers are kept in llm_journal.jsonl as they come: after a kill, run the same command again.
"""

import argparse
import os
import urllib.request
from pathlib import Path

# What the LLM reads, before its own chat template goes around it. --prompt-file replaces PROMPT.
PROMPT = "{instruction}\n\n{examples}Input:\n{input}\nOutput:"
EXAMPLE = "Input:\n{input}\nOutput: {answer}\n\n"
DEFAULT_LLM, DEFAULT_VLM = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"
parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
add = parser.add_argument
add("--dataset", metavar="KEY|FILE", help="the run's data set; with --run: what the run was tested on")
add("--model", metavar="ID|FOLDER", help="the run's model (the newest run)")
add("--seed", type=int, help="the run's seed (the newest run)")
add("--run", type=Path, metavar="DIR", help="the run folder, named outright")
add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder that holds the runs (runs)")
add("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="folder for images that the hub lacks (data)")
add("--sample", action="store_true", help="a run of --sample")
add("--overwrite", action="store_true", help="ask anew: the journal's answers are deleted")
add("--llm", metavar="ID|FOLDER",
    help=f"hub id or folder ({DEFAULT_LLM}; for images {DEFAULT_VLM}; for a run of --sample a tiny random one)")
add("--max-samples", type=int, metavar="N", help="ask about at most N test samples, each label in proportion, and "
    "about the others of errors.csv, which do not count in the figures (all)")
add("--shots", type=int, default=0, metavar="K", help="examples from train in the prompt, each label in turn (0)")
add("--prompt-file", type=Path, metavar="FILE", help="your own prompt; {input} stands for the sample, {instruction} "
    "for the task and its labels, {examples} for --shots")
add("--mode", choices=["both", "generate", "likelihood"], default="both",
    help="generate: the LLM writes, its text is parsed; likelihood: the most probable label (both)")
add("--max-new-tokens", type=int, metavar="N", help="tokens that the LLM may write (8; for an answer in free text 32)")
add("--precision", choices=["auto", "fp32", "fp16", "bf16"], default="auto", help="auto: what the hardware multiplies")
add("--batch-tokens", type=int, default=8192, metavar="N",
    help="tokens of a batch, padding included; halved where they do not fit into memory (8192)")
args = parser.parse_args()
if 0 in (args.max_samples, args.max_new_tokens) or min(
        args.batch_tokens, args.max_samples or 1, args.max_new_tokens or 1, args.shots + 1) < 1:
    parser.error("--batch-tokens, --max-samples and --max-new-tokens are 1 or more, --shots is 0 or more")
if args.prompt_file and not args.prompt_file.is_file():
    parser.error(f"--prompt-file {args.prompt_file} is no file")
template = args.prompt_file.read_text(encoding="utf-8-sig", errors="replace").rstrip() if args.prompt_file else PROMPT
for place in ("{input}", "{examples}") if args.shots else ("{input}",):
    if place not in template:
        parser.error(f"--prompt-file {args.prompt_file} has no {place}, so that no prompt would hold it")
if args.sample and not args.llm:
    os.environ["HF_HUB_OFFLINE"] = "1"
elif "HF_HUB_OFFLINE" not in os.environ:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=5).close()
    except OSError as error:
        if getattr(error, "code", 500) >= 500:  # any other answer is a sign of life
            os.environ["HF_HUB_OFFLINE"] = "1"
            print(f"{hub} can't be reached ({error}): taking what was fetched before", flush=True)

import contextlib
import copy
import datetime
import hashlib
import json
import re
import sys
import time
import zlib
from collections import Counter, deque
from inspect import signature
from itertools import chain

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from scipy.special import softmax
from scipy.stats import binomtest
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

import common
from common import PROCESS, PROCESSES, UserError

UNPARSED = "UNPARSED"  # the label of a generated answer that names no label, or more than one
SAMPLE_CHAT_TEMPLATE = "{% for message in messages %}user: {{ message.content }}\n{% endfor %}assistant:"
PREDICTIONS_HEADER = ["id", "gold", "predicted", "llm_label", "llm_generated_label", "parse_method", "llm_confidence",
                      "label_mass", "raw_output", "prompt"]
CELLS = {(True, True): "both right", (True, False): "only the model right", (False, True): "only the LLM right",
         (False, False): "neither right"}  # (the model is right, the LLM is right) -> who is
COLOURS = ("#009E73", "#0072B2", "#E69F00", "#999999")  # of these (Okabe & Ito 2008)
# How far rounding may move an answer's log-probability, as a share of it, or of 10 nats where it is less than that.
TOLERANCE = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05}


# From the LLM's text to a label. Nothing is guessed: what is not clear is UNPARSED, and parse_method says why.

SEPARATOR = r"(?<=\w)[\s_-]+(?=\w)"  # between the words of a label; not the sign of -1
QUOTED_VALUE = re.compile(r"[\"'](?:label|answer|output)[\"']\s*:\s*[\"']([^\"'\n]*)", re.I)  # JSON, perhaps cut short
ANSWER_LINE = re.compile(  # Answer: X, **Label:** X, The answer is X
    r"^[\s*_#]*(?:the )?(?:final |correct )?(?:answer|label|output)[\s*_]*(?: is\b|:)[\s*_:]*(.+)", re.I | re.M)
DENIAL = re.compile(r"""\b(?:no|not|non|never|none|nobody|nothing|nowhere|neither|nor|without|cannot|hardly|barely|
    scarcely|rarely|seldom|far\ from|anything\ but|opposite|contrary|instead|than|except|exclud\w+|reject\w*|out|wrong|
    incorrect|false|untrue|inaccurate|unlikely|doubt\w*|den(?:y|ies)|fail\w*|lack\w*|too|or|if|unless|but|although|
    though|however|may|might|maybe|perhaps|possibly|could|unclear|unsure|uncertain|at\ (?:least|most))\b|n['’]t\b""",
    re.I | re.X)
# Where a label (\0 in its place) is said to be the answer: at the line's start, or after `is`, a colon and the like,
# and with nothing behind it that belongs to it.
SAID = re.compile(r"""(?:^|[:=]|\b(?:is|are|was|were|be|as|say|think|choose|pick|(?:case|example)\ of|label|class|
    answer|option|choice|letter)\b|['’]s\b)(?:\s+(?:an?|the|clearly|very|option)\b)?[\s*_`"'“‘(\[#]*\0[\s\0*_`"'”’]*
    (?:$|[.,;:!()\]–—-]|\b(?:in|because|since)\b)""", re.I | re.X)


def plain(text):
    """`text` without what may differ in an answer: case, markdown, quotes and punctuation around it, _ - and spaces."""
    text = re.sub(SEPARATOR, " ", text.casefold())
    return text.lstrip(" \t*_`#\"'“”‘’([{<").rstrip(" \t*_`#\"'“”‘’.,;:!)]}>")


def parse_answer(text, choices):
    """The label that the LLM's text stands for, or UNPARSED, and how it was found, or why not (parse_method).

    The steps: the answer itself; but for case, markdown and punctuation; the same of the first line; the value of a
    JSON object; what follows "Answer:"; the one label that the first line says to be the answer.
    choices: allowed answer -> label; empty where the first line is for form["parse"] to read.
    """
    text = text.rpartition("</think>")[2].split("\nInput:")[0].strip()  # a base model goes on with a sample of its own
    if "<think>" in text or not text:
        return UNPARSED, "unparsed: still thinking" if text else "unparsed: empty"
    line = text.splitlines()[0]
    if not choices:
        found = ANSWER_LINE.match(line)
        line = (found[1] if found else line).strip()
        known = known_labels.get(plain(line))
        label, how = (known, "normalised") if known else form["parse"](line)
        return (UNPARSED, f"unparsed: {how}") if label is None else (label, how)
    if text in choices:
        return choices[text], "exact"
    for method, parts in {"normalised": [text], "first line": [line], "json": QUOTED_VALUE.findall(text),
                          "answer": ANSWER_LINE.findall(text)}.items():
        labels = {label for part in parts for answer, label in choices.items() if plain(answer) == plain(part) != ""}
        if labels:
            return (labels.pop(), method) if len(labels) == 1 else (UNPARSED, "unparsed: more than one label")
    return find_label(line, choices)


def find_label(line, choices):
    """The one label that `line` says to be the answer ("word"), or UNPARSED and the reason.

    The longest names come first and are cut out, so that `entailment` is not found again in `not entailment`.
    """
    rest, found = line, []
    for answer in sorted(choices, key=len, reverse=True):
        name = r"[\s_-]+".join(map(re.escape, re.split(SEPARATOR, answer)))
        flags = re.I if len(answer) > 1 else 0
        rest, times = re.subn(rf"(?<![\w-])(?<!\d\.){name}(?![\w-]|\.\d)", "\0", rest, flags=flags)
        found += [answer] * bool(times)
    labels = {choices[answer] for answer in found}
    # "No, it is not ..." agrees with a label `no`; any other denial may turn the label round.
    agrees = found and DENIAL.match(plain(found[0])) and rest.lstrip("*_\"' ").startswith("\0")
    faults = {"no label": not labels, "more than one label": len(labels) > 1, "question": "?" in line,
              "negation or doubt": DENIAL.search(rest) and not agrees, "not said outright": not SAID.search(rest)}
    fault = next((fault for fault, holds in faults.items() if holds), None)
    return (UNPARSED, f"unparsed: {fault}") if fault else (labels.pop(), "word")


def parse_set(line):
    """The labels, as predictions.csv joins them, if each part of the line is one."""
    parts = {plain(part) for part in re.split(r"[,;|]", line)}
    if not (parts <= set(known_labels) or parts == {"none"}):
        return None, "not a list of labels"
    return " | ".join(label for name, label in known_labels.items() if name in parts) or "none", "list"


def parse_number(line):
    """The one number in the line, if it is on the scale."""
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)", line.replace("\u2212", "-"))
    low, high = task["scale"]
    if len(numbers) != 1 or DENIAL.search(line) or not low <= float(numbers[0]) <= high:
        return None, f"not one number from {low:g} to {high:g}, without negation or doubt"
    return numbers[0], "exact" if line == numbers[0] else "number"


def judge_labels(gold, answers):
    """gold, predicted and correct, as the task's kind wants them for its metrics."""
    return pd.DataFrame({"gold": gold, "predicted": answers, "correct": gold == answers})


def judge_numbers(gold, answers):
    """Numbers; correct where they fall into the same step of the scale."""
    gold, answers = gold.astype("float64"), answers.astype("float64")
    return judge_labels(gold, answers).assign(correct=kind.steps(gold, task) == kind.steps(answers, task))


# What an answer is. A kind that one row alone has brings these entries as `answer_form` in its own file.
FORM = {
    "new_tokens": 8,  # that the LLM may write
    "right_metric": "accuracy",  # what the share of right answers is called
    "unparsed_is_wrong": True,  # else the figures are of the parsed answers
    "example": str,  # a label of train_texts.csv -> what the LLM should have answered
    "parse": None,  # first line -> label or None, how or why not; None: the answers can be listed
    "judge": judge_labels}  # (gold, answers) -> what the kind's metrics take
FORMS = {
    "classification": {"request": "Labels: {labels}\nAnswer with one of these labels and nothing else."},
    "multiple_choice": {"request": "Answer with the letter of the right option and nothing else."},
    "multilabel": {
        "request": "Labels: {labels}\nAnswer with all labels that apply, parted by commas, or with none, and nothing "
                   "else.",
        "new_tokens": 32, "right_metric": "exact_match", "unparsed_is_wrong": False,
        "example": lambda label: label.replace(" | ", ", "), "parse": parse_set},
    "regression": {
        "request": "Answer with a number from {low} to {high} and nothing else.", "right_metric": "right_step",
        "unparsed_is_wrong": False, "example": lambda label: f"{round(float(label), 2):g}", "parse": parse_number,
        "judge": judge_numbers}}


def options_of(row):
    """Letter -> label, text of each option, rotated by a hash of the id: LLMs favour a place (arXiv 2309.03882)."""
    shown = [(label, row[name]) for label, name in zip(task["labels"], task["options"], strict=True)]
    turn = zlib.crc32(row["id"].encode()) % len(shown)
    return dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", shown[turn:] + shown[:turn], strict=False))


def choices_of(row, texts=False):
    """What the LLM may answer -> the label that it stands for; {}: anything. With `texts` an option's text as well."""
    if "options" not in task:
        return {} if form["parse"] else {label: label for label in task["labels"]}
    options = options_of(row)
    times = Counter(plain(text) for _, text in options.values())
    unique = {text: label for label, text in options.values() if texts and times[plain(text)] == 1}
    return unique | {letter: label for letter, (label, _) in options.items()}


def input_text(row):
    """The sample as the prompt shows it: the text, or each of several after its column's name; options, a line each."""
    names = task["text"]
    lines = [row[names[0]]] if len(names) == 1 else [f"{name}: {row[name]}" for name in names]
    options = options_of(row) if "options" in task else {}
    return "\n".join([*lines, *(f"{letter}. {text}" for letter, (_, text) in options.items())])


def example_text(row):
    """A row of train_texts.csv as the prompt shows it, with what the LLM should have answered."""
    answers = {label: answer for answer, label in choices_of(row).items()}
    answer = answers[row["label"]] if answers else form["example"](row["label"])
    return fill(EXAMPLE, input=llm.as_text(input_text(row)), answer=llm.as_text(answer))


def fill(template, **parts):
    """`template` with {name} replaced; other braces stay, in it as in the texts."""
    return re.sub(r"\{(\w+)\}", lambda match: parts.get(match[1], match[0]), template)


class LLM:
    """A causal language model, ready to be asked.

    Each prompt is prefix + rest. The prefix's keys and values are computed once and copied for each batch; the rests
    are padded on the left and added to the copy, all but the last token of each. From there one copy goes to the
    likelihoods, the other to generate, which takes the last token from input_ids:

        input_ids        prefix  pad  rest
        attention_mask   1 1 1   0    1 1 1        positions are counted over the ones

    A family whose figures would change by that is asked one sample at a time, without a cache of ours (None). A
    vision-language model is asked by generate alone, without a prefix, as images stand before what texts share.

    images: id -> PIL image, opened when its question is asked; None: the questions are texts.
    """

    def __init__(self, processor, model, precision, new_tokens, images=None):
        self.processor, self.model, self.precision, self.images = processor, model.eval(), precision, images
        self.prefix, self.cache, self.new_tokens, self.image_tokens = [], None, new_tokens, 0
        self.tokenizer = tokenizer = getattr(processor, "tokenizer", processor)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token  # what is padded is masked: any token will do
        model.generation_config = transformers.GenerationConfig(  # greedy, whatever the model's own says
            do_sample=False, max_new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id)
        marks = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values()
                 if len(token.content.strip()) > 1 and (token.special or re.search(r"[<\[|]", token.content))]
        self.marks = re.compile(f"(?={'|'.join(marks)})." if marks else r"(?!)", re.S)

    def as_text(self, text):
        """`text` with a space in what the tokenizer would take for a control token: `<|im_end|>`, `< |im_end|>`."""
        return self.marks.sub(lambda match: match[0] + " ", text)

    def encode(self, prompt):
        """`prompt` in the LLM's chat template, where it has one, and its token ids, one begin-of-text token at most.

        Templates that know neither name ignore it: Qwen3's would open <think>, Llama 3's put in today's date.
        """
        if self.processor.chat_template or self.images:
            content = [{"type": "image"}, {"type": "text", "text": prompt}] if self.images else prompt
            prompt = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False,
                enable_thinking=False, date_string="26 Jul 2024")
        ids, bos = self.tokenizer(prompt, add_special_tokens=False)["input_ids"], self.tokenizer.bos_token_id
        if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]:  # it was trained with it in front
            ids = ids if ids[:1] == [bos] else [bos, *ids]
            if ids.count(bos) > 1:
                raise UserError(f"{self.tokenizer.bos_token} stands in the prompt {ids.count(bos)} times; it may stand "
                                "at its start only: look at --prompt-file and the chat template")
        return {"prompt": prompt, "input_ids": ids}

    def length(self, question):
        """Tokens that the LLM reads."""
        return len(question["input_ids"]) + self.image_tokens

    def answer_tokens(self, question):
        """Token ids of each of the question's choices, as they follow its prompt: after a space, but in a chat.

        They are tokenised with the prompt, as the start of a text may be treated in a way of its own; alone where that
        changes the prompt's tokens. Where one is the beginning of another (1 and 10), which could then never be the
        more probable one, each is scored together with the end of the answer.
        """
        in_chat = bool(self.processor.chat_template)
        texts = [choice if in_chat else f" {choice}" for choice in map(self.as_text, question["choices"])]
        prompt, *rows = self.tokenizer([question["prompt"], *(question["prompt"] + text for text in texts), *texts],
                                       add_special_tokens=False)["input_ids"]
        answers = [ids[len(prompt):] if ids[:len(prompt)] == prompt else alone
                   for ids, alone in zip(rows, rows[len(texts):], strict=False)]
        if any(one is not other and other[:len(one)] == one for one in answers for other in answers):
            end = self.tokenizer.eos_token if in_chat else "\n"
            answers = [ids + self.tokenizer(end, add_special_tokens=False)["input_ids"] for ids in answers]
        return answers

    def prepare(self, questions, answer_ids):
        """Compute the cache of what all prompts share, and try on two questions whether a cache changes the figures.

        The prefix, at least two tokens less than the shortest prompt, is empty where padding behind it would count as
        places: in a layer with a sliding window, in a recurrent one, and in a model that can't be told positions.
        """
        if self.images:  # one image's tokens are counted: the others are about as large
            self.image_tokens = self.inputs(questions[:1])["input_ids"].shape[1] - len(questions[0]["input_ids"])
            return
        pair = longest, shortest = max(questions, key=self.length), min(questions, key=self.length)
        # What the first and the last of them as they are sorted share, all in between share too.
        first, last = (pick(question["input_ids"] for question in questions) for pick in (min, max))
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        takes, answer_ids = signature(self.model.forward).parameters, answer_ids or [shortest["input_ids"][:2]]
        plainly = torch.tensor([self.plain_log_probs(question, answer_ids) for question in pair])
        try:
            if "past_key_values" not in takes:
                raise TypeError("it takes no past_key_values")
            self.cache = DynamicCache(config=self.model.config)
            room = self.length(longest) + self.new_tokens
            keeps_all = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
                            and getattr(layer, "sliding_window", np.inf) > room for layer in self.cache.layers)
            if keeps_all and "position_ids" in takes:
                self.prefix = first[:max(0, min(shared, self.length(shortest) - 2))]
            if self.prefix:
                self.model.base_model(torch.tensor([self.prefix], device=self.model.device),
                                      past_key_values=self.cache, use_cache=True)
            apart = (self.log_probs(answer_ids, **self.inputs(pair)).cpu() - plainly).abs()
            share = (apart / plainly.abs().clamp(min=10)).max()
            fault = "" if share <= TOLERANCE[self.precision] else f"log-probabilities move by {apart.max():.2g}"
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # each family has its own
            if should_reduce_batch_size(error):
                raise
            fault = f"{type(error).__name__}: {error}"
        if fault:
            self.prefix, self.cache = [], None
            print(f"this LLM does not go with a shared cache ({fault[:100]}): it is asked one sample at a time")

    def answer(self, questions, answer_ids, mode):
        """What the LLM writes (`output`, None where not asked) and the log-probability of each choice (`log_probs`)."""
        outputs, log_probs = [None] * len(questions), [None] * len(questions)
        inputs = self.inputs(questions)
        if mode != "generate":
            log_probs = (self.log_probs(answer_ids, **inputs).tolist() if self.cache is not None
                         else [self.plain_log_probs(questions[0], answer_ids)])
        if mode != "likelihood":
            written = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]
            outputs = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [{"output": output, "log_probs": scores} for output, scores in zip(outputs, log_probs, strict=True)]

    def inputs(self, questions):
        """What generate takes: input_ids, attention_mask, int64 (batch, tokens), and a cache of all but the last."""
        if self.images:
            texts, bos = [question["prompt"] for question in questions], self.tokenizer.bos_token
            return self.processor(
                text=texts, images=[[self.images[question["image"]]] for question in questions], padding=True,
                padding_side="left", add_special_tokens=bos is not None and not texts[0].startswith(bos),
                return_tensors="pt").to(self.model.device, dtype=self.model.dtype)
        rests = [question["input_ids"][len(self.prefix):] for question in questions]
        pads = [max(map(len, rests)) - len(rest) for rest in rests]
        rows = [self.prefix + [self.tokenizer.pad_token_id] * pad + rest for pad, rest in zip(pads, rests, strict=True)]
        masks = [[1] * len(self.prefix) + [0] * pad + [1] * len(rest) for pad, rest in zip(pads, rests, strict=True)]
        ids, mask = (torch.tensor(table, device=self.model.device) for table in (rows, masks))
        if self.cache is None:
            return {"input_ids": ids, "attention_mask": mask}
        cache = copy.deepcopy(self.cache)  # a forward pass writes into its cache
        if self.prefix:
            cache.batch_repeat_interleave(len(rows))
        new, positions = slice(len(self.prefix), -1), (mask.cumsum(dim=-1) - 1).clamp(min=0)
        self.model.base_model(  # the model without its last layer: no logits are needed yet
            ids[:, new], attention_mask=mask[:, :-1], position_ids=positions[:, new], past_key_values=cache,
            use_cache=True)
        return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}

    def log_probs(self, answer_ids, input_ids, attention_mask, past_key_values):
        """Summed log-probability (nats) of each answer's tokens after each prompt, float32 (batch, answers).

        The cache is left as it is. Answers that differ in their last token alone take one pass together.
        """
        columns, heads = [None] * len(answer_ids), {}
        for place, ids in enumerate(answer_ids):
            heads.setdefault(tuple(ids[:-1]), []).append(place)
        for head, places in heads.items():
            tokens = torch.tensor(head, dtype=torch.int64, device=input_ids.device).expand(len(input_ids), -1)
            steps = torch.arange(len(head) + 1, device=input_ids.device)
            outputs = self.model(
                torch.cat([input_ids[:, -1:], tokens], dim=1), past_key_values=copy.deepcopy(past_key_values),
                attention_mask=F.pad(attention_mask, (0, len(head)), value=1), use_cache=True,
                position_ids=attention_mask.sum(dim=-1, keepdim=True) - 1 + steps)
            scores = outputs.logits.float().log_softmax(dim=-1)  # (batch, tokens of an answer, vocabulary)
            for place in places:
                columns[place] = scores[:, steps, answer_ids[place]].sum(dim=1)
        return torch.stack(columns, dim=1)

    def plain_log_probs(self, question, answer_ids):
        """The same of one question, a list, by whole forward passes without a cache: right for every causal LM."""
        scores = []
        for ids in answer_ids:
            tokens = torch.tensor([[*question["input_ids"], *ids]], device=self.model.device)
            log_probs = self.model(tokens).logits[0, -1 - len(ids):-1].float().log_softmax(dim=-1)
            scores.append(log_probs[range(len(ids)), ids].sum().item())
        return scores


def load_llm(name, sees):
    """Processor, model, precision and revision of a hub id or a folder; UserError where they can't be had."""
    precision = common.choose_precision(args.precision)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    with common.loading(f"the LLM {name}"):
        processor = (transformers.AutoProcessor if sees else transformers.AutoTokenizer).from_pretrained(
            name, trust_remote_code=False)
        auto_class = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        model, report = auto_class.from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False)
    if report["missing_keys"]:
        raise UserError(f"{name} lacks weights, such as {min(report['missing_keys'])}; take another --llm")
    changed = max((path.stat().st_mtime_ns for path in Path(name).glob("*.safetensors")), default=0)
    return processor, model, precision, common.model_revision(name) or str(changed)


def build_sample_llm(texts, sees):
    """The same of a two-layer Qwen2 with seeded random weights; with `sees` within what the kind puts around it."""
    tokenizer, revision = common.word_tokenizer(texts), hashlib.sha256("\n".join(texts).encode()).hexdigest()
    tokenizer.eos_token, tokenizer.model_input_names = tokenizer.sep_token, ["input_ids", "attention_mask"]
    tokenizer.chat_template = SAMPLE_CHAT_TEMPLATE
    torch.manual_seed(42)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer) + 1, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32768, initializer_range=0.3,
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    processor, model = (kind.sample_llm(tokenizer, config) if sees
                        else (tokenizer, transformers.Qwen2ForCausalLM(config)))
    return processor, model, "fp32", revision


def ask(todo, known):
    """Ask the batches `todo`, positions in `questions`; the journal and `known` get a record per answer."""
    bar = common.progress("LLM answers", total=sum(map(len, todo)))
    while todo:
        batch, start = todo.popleft(), time.perf_counter()
        try:
            answers = llm.answer([questions[i] for i in batch], answer_ids, args.mode)
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or len(batch) == 1:
                raise
            todo = deque(part.tolist() for whole in (batch, *todo) for part in np.array_split(whole, 2) if len(part))
            print(f"out of memory with {len(batch)} samples in a batch; going on with half of that")
            continue
        seconds = (time.perf_counter() - start) / len(batch)
        if args.mode != "generate" and not np.isfinite([answer["log_probs"] for answer in answers]).all():
            bar.close()
            raise UserError("the LLM gave log-probabilities that are not finite; --precision fp32 may help")
        new = [{"key": keys[i], **answer, "seconds": seconds} for i, answer in zip(batch, answers, strict=True)]
        with journal.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in new)
        known |= {record["key"]: record for record in new}
        bar.update(len(batch))
    bar.close()


def metric_row(who, metric, value, n, draws=()):
    """A row of llm_metrics.csv; its interval is the middle 95 % of bootstrap samples (Efron 1979)."""
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (None, None)
    return {"who": who, "metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": n}


def mean_row(who, metric, values):
    """The row of the mean of `values`, one per sample, with the samples' index; nothing of no sample."""
    drawn = common.bootstrap_weights(predictions.loc[values.index]) if len(values) else ()
    means = [mean for weights in drawn for mean in weights @ values / weights.sum(axis=1)]
    return metric_row(who, metric, values.mean(), len(values), means)


def score_rows(who, judged):
    """The share of right answers, and the task's metrics but auroc, which takes probabilities."""
    rows = [mean_row(who, form["right_metric"], judged["correct"])]
    if len(judged) > 1:
        judged = judged.join(predictions.filter(["group"]))  # where there is one, whole groups are drawn
        scores, draws = kind.metrics(judged, task), kind.resample(judged, task)
        rows += [metric_row(who, metric, scores[metric], kind.examples_of(metric, judged), draws[metric])
                 for metric in task["metrics"] if metric in scores and metric != form["right_metric"]]
    return rows


def paired_rows(who, cells, agree):
    """What compares model and LLM sample by sample; cells: who is right, of CELLS; agree: whether both say the same.

    mcnemar_p: exact and two-sided (McNemar 1947); difference: the LLM's share of right answers less the model's.
    """
    counts = cells.value_counts().reindex(CELLS.values(), fill_value=0)
    _, only_model, only_llm, _ = counts
    p = binomtest(only_llm, only_model + only_llm).pvalue if only_model + only_llm else 1.0
    return [mean_row(who, "agreement", agree),
            *(metric_row(who, name.replace(" the ", " ").replace(" ", "_").lower(), count, len(cells))
              for name, count in counts.items()),
            metric_row(who, "mcnemar_p", p, len(cells)),
            mean_row(who, "difference", cells.map(dict(zip(CELLS.values(), (0, -1, 1, 0), strict=True))))]


def draw(path, ways):
    """Draw who is right where: a bar per gold label, in four parts, one panel per way of answering.

    ways: name -> gold label and who is right, of CELLS, of each sample.
    """
    frequent = set(table["gold"].value_counts().index[:20])
    labels = [label for label in task.get("labels", []) if label in frequent]
    figure, axes = common.new_figure(4, 1.2 + len(ways) * (0.8 + 0.25 * len(labels)), nrows=len(ways), squeeze=False)
    for axis, (way, (gold, cells)) in zip(axes[:, 0], ways.items(), strict=True):
        counts = pd.crosstab(gold, cells).reindex(index=labels, columns=CELLS.values(), fill_value=0)
        counts.loc["all"] = cells.value_counts().reindex(CELLS.values(), fill_value=0)
        sizes = counts.sum(axis=1)
        shares = 100 * counts.div(sizes.clip(lower=1), axis=0)
        for name, colour, left in zip(counts, COLOURS, (shares.cumsum(axis=1) - shares).to_numpy().T, strict=True):
            bars = axis.barh(range(len(counts)), shares[name], left=left, color=colour, label=name)
            axis.bar_label(bars, counts[name].where(shares[name] >= 8, ""), label_type="center", color="white")
        names = [label if len(label) <= 18 else f"{label[:17]}…" for label in counts.index]
        axis.set_yticks(range(len(counts)), [f"{name} ({size})" for name, size in zip(names, sizes, strict=True)])
        axis.set(xlim=(0, 100), title=f"LLM, {way}")
        axis.invert_yaxis()
    axes[-1, 0].set_xlabel("% of the samples with this gold label")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    common.save_figure(figure, path, f"{common.describe_run(run, counted)}; LLM: {Path(name_of_llm).name}")


if PROCESS > 0:
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - of several processes the first one speaks

# 1. The run, what an answer is for its task, and the journal.
folder, run = common.find_run(args)
task, device = run["task"], common.pick_device()
kind = common.kind_of(task)
form = FORM | (FORMS.get(task["kind"]) or kind.answer_form)
known_labels = {plain(label): label for label in task.get("labels", [])}
if form["parse"] and args.mode == "likelihood":
    raise UserError(f"--mode likelihood takes labels that can be listed; {task['key']} has none: --mode generate")
if "image" in task and args.shots:
    raise UserError(f"--shots shows texts, and an example of {task['key']} would need its image: leave it out")
args.mode = "generate" if form["parse"] else args.mode
state = PartialState(cpu=device.type == "cpu", timeout=datetime.timedelta(days=1))
journal = folder / (f"llm_journal.{PROCESS}.jsonl" if PROCESS else "llm_journal.jsonl")
for path in folder.glob("llm_journal*.jsonl") if PROCESS == 0 else ():
    if args.overwrite:
        path.unlink()
    elif not path.read_bytes().endswith(b"\n"):  # a kill cut its last line short
        path.write_bytes(path.read_bytes() + b"\n")

# 2. The samples: --max-samples of predictions.csv, each label in proportion; after them the others of errors.csv, all
#    wrong, so that they must not count in a comparison.
predictions = common.read_predictions(folder)
sheet = (common.read_csv(folder / "errors.csv", required=["id", "input"]) if (folder / "errors.csv").is_file()
         else pd.DataFrame({"id": []}, dtype=object))
strata = np.zeros(len(predictions)) if form["parse"] else predictions["gold"].to_numpy()
rng = np.random.default_rng(common.SPLIT_SEED)
picked = common.stratified_rows(strata, args.max_samples or len(predictions), rng)
others = np.setdiff1d(np.flatnonzero(predictions["id"].isin(sheet["id"].str.strip())), picked)
predictions, counted = predictions.iloc[[*picked, *others]].reset_index(drop=True), len(picked)
rows, shots = predictions.to_dict("records"), []
if args.shots:  # examples of each label in turn, no answer counting as one
    home = folder.parent if "trained_on" in run else folder
    train = common.read_csv(home / "train_texts.csv", required=("id", *common.text_columns(task), "label"))
    train = train.iloc[np.random.default_rng(common.SPLIT_SEED).permutation(len(train))]
    labels = train["label"] if task.get("labels") else train["label"] == ""
    turns = labels.groupby(labels).cumcount()  # 0 for the first drawn of each label, then 1, ...
    shots = train.loc[turns.sort_values(kind="stable").index[:args.shots]].to_dict("records")
low, high = (f"{end:g}" for end in task.get("scale", (0, 0)))
request = fill(form["request"], labels=", ".join(task.get("labels", [])), low=low, high=high)
instruction = f"{task.get('task', 'Give the text its label.')}\n{request}"

# 3. The LLM. Of several processes the first one fetches, the others find it there.
sees, new_tokens = "image" in task, args.max_new_tokens or form["new_tokens"]
name_of_llm = args.llm or (DEFAULT_VLM if sees else DEFAULT_LLM)
with state.main_process_first():
    if sees:  # the images of the test questions, of the commit that the run was tested on
        wanted = task | {"splits": {"test": task["splits"]["test"]}, "revision": run["data"]["revision"]}
        common.read_source(wanted, common.CATALOG / "samples" if run["sample"] else args.data_dir, run["sample"],
                           run["args"]["max_images"])
    if args.llm or not run["sample"]:
        processor, model, precision, revision = load_llm(name_of_llm, sees)
    else:
        name_of_llm, texts = common.SAMPLE_MODEL, [PROMPT, SAMPLE_CHAT_TEMPLATE, instruction, *map(input_text, rows)]
        processor, model, precision, revision = build_sample_llm(texts, sees)
llm = LLM(processor, model.to(device), precision, new_tokens, kind.images if sees else None)

# 4. The prompts.
parts = {"instruction": llm.as_text(instruction), "examples": "".join(map(example_text, shots))}
with common.loading(f"the chat template of {name_of_llm}", "take another --llm"):
    questions = [{"id": row["id"], "choices": choices_of(row), "image": row.get(task.get("image")),
                  **llm.encode(fill(template, input=llm.as_text(input_text(row)), **parts))} for row in rows]
longest = max(map(llm.length, questions)) + llm.new_tokens
limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
if longest > limit > 0:
    raise UserError(f"the longest prompt and its answer take {longest} tokens, {name_of_llm} takes {limit}; fewer "
                    "--shots, or another --llm")
thought = "<think>" * questions[0]["prompt"].rstrip().endswith("<think>")  # opened by the chat template
if thought and args.mode != "generate":
    raise UserError(f"{name_of_llm} thinks before it answers, so the first tokens are no label; use --mode generate "
                    "--max-new-tokens 1024")
print(f"LLM: {name_of_llm}, {model.num_parameters():,} parameters, {precision} on {model.device}; "
      f"{'its chat template' if processor.chat_template else 'plain text, as it has no chat template'}; "
      f"{len(questions)} samples, {len(shots)} examples")
for number, question in enumerate(questions[:2], start=1):
    print(f"--- prompt {number} ({question['id']}), {llm.length(question)} tokens\n{question['prompt']}")
print("---", flush=True)

# 5. The answers. The journal holds a line of JSON per answer, in a file per process; its key says what an answer hangs
#    on. A batch is asked anew if any answer of it is missing, so that a resumed run has the batches, and by that the
#    roundings, of one that was not stopped.
state.wait_for_everyone()
keys = [hashlib.sha256(json.dumps([name_of_llm, revision, precision, question, args.mode, llm.new_tokens]).encode()
                       ).hexdigest() for question in questions]
known = {}
for line in chain.from_iterable(path.read_text().splitlines() for path in folder.glob("llm_journal*.jsonl")):
    with contextlib.suppress(ValueError):  # a line that a kill cut short
        record = json.loads(line)
        known[record["key"]] = record
answer_ids = llm.answer_tokens(questions[0]) if args.mode != "generate" else []
with torch.inference_mode():
    llm.prepare(questions, answer_ids)
    order, batches = sorted(range(len(keys)), key=lambda i: -llm.length(questions[i])), []
    while order:  # the longest first: memory shows at once whether it suffices
        size = args.batch_tokens // (llm.length(questions[order[0]]) + llm.new_tokens)
        size = max(1, size) if sees or llm.cache is not None else 1
        batches.append(order[:size])
        order = order[size:]
    batches = batches[PROCESS::PROCESSES]
    todo = deque(batch for batch in batches if any(keys[i] not in known for i in batch))
    if len(todo) < len(batches):
        print(f"{len(batches) - len(todo)} of {len(batches)} batches are in the journal already")
    ask(todo, known)
known = {key: record for share in gather_object([known]) for key, record in share.items()}  # each process has a share
state.destroy_process_group()
if PROCESS > 0:
    sys.exit(0)
records = [known[key] for key in keys]

# 6. llm_predictions.csv.
cells = []
for row, question, record in zip(rows, questions, records, strict=True):
    cells.append({"id": row["id"], "gold": row["gold"], "predicted": row["predicted"], "prompt": question["prompt"]})
    if record["output"] is not None:
        label, method = parse_answer(thought + record["output"], choices_of(row, texts=True))
        cells[-1] |= {"llm_label": label, "llm_generated_label": label, "parse_method": method,
                      "raw_output": record["output"]}
    if record["log_probs"] is not None:
        probabilities = softmax(record["log_probs"])
        cells[-1] |= {"llm_label": [*question["choices"].values()][probabilities.argmax()],
                      "llm_confidence": probabilities.max(), "label_mass": np.exp(record["log_probs"]).sum()}
asked = pd.DataFrame(cells, columns=PREDICTIONS_HEADER)
common.write_csv(folder / "llm_predictions.csv", asked)

# 7. The comparison: the model, the LLM by what it wrote and by the likelihoods, on the samples that count.
table, on_sheet, judge = asked[:counted], asked[asked["id"].isin(sheet["id"].str.strip())], form["judge"]
ways = {"generated": "llm_generated_label"} if args.mode != "likelihood" else {}
ways |= {"likelihood": "llm_label"} if args.mode != "generate" else {}
drawn, metrics = {}, score_rows("model", judge(table["gold"], table["predicted"]))
differences = predictions[:counted][["id", *common.text_columns(task), "gold", "predicted", "confidence"]].join(
    table[["llm_label", "llm_generated_label", "llm_confidence", "raw_output"]])
differs = pd.Series(False, table.index)
for (way, column), paired in zip(ways.items(), ("paired", "paired_likelihood"), strict=False):
    unparsed, who = table[column] == UNPARSED, f"llm_{way}"
    part = table if form["unparsed_is_wrong"] else table[~unparsed]
    judged, ours = (judge(part["gold"], part[name]) for name in (column, "predicted"))
    agree = judge(part["predicted"], part[column])["correct"]
    cells = pd.Series([*map(CELLS.get, zip(ours["correct"], judged["correct"], strict=True))], part.index, dtype=object)
    read = on_sheet[on_sheet[column] != UNPARSED]
    hits = judge(read["gold"], read[column])["correct"].reindex(on_sheet.index, fill_value=False)
    metrics += score_rows(who, judged)
    metrics += [mean_row(who, "unparsed", unparsed)] if way == "generated" else []
    metrics += [mean_row(who, "right_on_the_sheet", hits)] if len(on_sheet) else []
    metrics += paired_rows(paired, cells, agree) if len(part) else []
    drawn[way], differences[f"who_is_right_{way}"] = (part["gold"], cells), cells
    differs |= unparsed | ~agree.reindex(table.index, fill_value=True)
if (folder / "timing.csv").is_file():
    n, seconds = common.read_csv(folder / "timing.csv", ("examples", "seconds"))[["examples", "seconds"]].iloc[0]
    metrics.append(metric_row("model", "seconds_per_sample", seconds / n, int(n)))
seconds = np.mean([record["seconds"] for record in records[:counted]])
metrics = pd.DataFrame([*metrics, metric_row("llm", "seconds_per_sample", seconds, counted)])
common.write_csv(folder / "llm_metrics.csv", metrics)
common.write_csv(folder / "disagreements.csv", differences[differs])
draw(folder / "llm_compare.png", drawn)

# 8. The sheet: what the LLM wrote or, with --mode likelihood, its most probable label. And run.json.
if len(sheet):
    how, column = next(iter(ways.items()))
    answers = sheet["id"].str.strip().map(dict(zip(asked["id"], asked[column], strict=True)))
    sheet = sheet.drop(columns=["llm_how", "llm_prediction"], errors="ignore")
    common.write_csv(folder / "errors.csv", sheet.assign(llm_how=answers.notna().map({True: how, False: ""}),
                                                         llm_prediction=answers.fillna("")))
    print(f"errors.csv: llm_prediction is filled in {answers.notna().sum()} of {len(sheet)} rows")
else:
    print("no errors.csv yet: run errors.py, then this script again, which takes its answers from the journal")
common.write_json(folder / "run.json", common.read_run(folder) | {"llm": {
    "name": name_of_llm, "revision": revision, "card": common.model_card(name_of_llm), "type": model.config.model_type,
    "parameters": model.num_parameters(), "precision": precision, "mode": args.mode, "shots": len(shots),
    "samples": counted}})

# 9. What is printed: all of llm_metrics.csv, and what to keep in mind.
print(f"{task['title']}: {name_of_llm} beside {run['model']}")
print(metrics.dropna(subset="value").to_string(index=False, na_rep="", float_format="{:.4g}".format))
if (table["llm_generated_label"] == UNPARSED).mean() > 0.05:
    print("UNPARSED answers " + ("count as wrong" if form["unparsed_is_wrong"] else "are left out of the figures")
          + "; parse_method says why; --max-new-tokens, --shots or another --prompt-file may help")
print("the LLM may have seen public test sets in its training, labels included: its figures may flatter it")
if run["sample"]:
    print("--sample: the figures mean nothing")
print(f"{differs.sum()} samples in disagreements.csv; written to {folder}")
