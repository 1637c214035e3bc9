"""Ask an LLM for the labels of the very test samples that a run was evaluated on, and compare the two.

    python llm_compare.py --dataset mrpc                                      after evaluate.py
    python llm_compare.py --dataset mrpc --llm meta-llama/Llama-3.2-3B-Instruct --shots 4 --max-samples 200
    python llm_compare.py --dataset mrpc --sample                             a tiny random LLM, no network
    accelerate launch --num_processes 2 llm_compare.py --dataset mrpc         the samples shared among two GPUs

Each prompt is answered twice: the LLM writes an answer, which is parsed (generated), and each allowed answer is scored
by its probability after the prompt (likelihood). The LLM is a plain transformers model; the start that all prompts
share is computed once. Writes llm_predictions.csv, llm_metrics.csv, llm_compare.png, disagreements.csv and the column
llm_prediction of errors.csv. Answers are kept in llm_journal.jsonl as they come: after a kill, run it again.
"""

import argparse
import contextlib
import copy
import dataclasses
import hashlib
import json
import re
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import common
from common import KINDS, RunBroken, UserError, command
from errors import NEGATION, read_sheet
from visualize import write_report

DEFAULT_LLM, DEFAULT_VLM = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"
UNPARSED = "UNPARSED"  # the label of a generated answer that names no label, or more than one
DRAWS = 2000  # bootstrap samples behind each interval
BEAT_S, PATIENCE_S = 5, 60  # seconds: how often a process shows that it lives, how long the first one waits for that
PREDICTIONS_HEADER = ["id", "gold", "predicted", "llm_label", "llm_generated_label", "parse_method", "llm_confidence",
                      "label_mass", "raw_output", "prompt"]
METRICS_HEADER = ["who", "metric", "value", "ci_low", "ci_high", "n", "unparsed"]
# What the LLM reads, before its own chat template goes around it. --prompt-file replaces PROMPT.
PROMPT = "{instruction}\n\n{examples}Input:\n{input}\nOutput:"
EXAMPLE = "Input:\n{input}\nOutput: {answer}\n\n"
SAMPLE_CHAT_TEMPLATE = "{% for message in messages %}user: {{ message.content }}\n{% endfor %}assistant:"
SAMPLE_VISION_TEMPLATE = SAMPLE_CHAT_TEMPLATE.replace("message.content", "'<image>\n' + message.content[1].text")
GATED = """{name} is gated, and {reason}
1. accept its licence at {endpoint}/{name}
2. `hf auth login`, or set HF_TOKEN, with the account that accepted it
3. or take an open one: --llm {open_llm}"""
GATED_REASONS = {401: "no valid token was sent", 403: "access was not granted"}
TOKEN_FAULTS = {401: "the token that was sent is not valid", 403: "the token that was sent may not read it"}
# Right and wrong, drawn in this order: (model is right, LLM is right) -> name and colour (Okabe & Ito 2008).
CELLS = {(True, True): ("both right", "#009E73"), (True, False): ("only the model right", "#0072B2"),
         (False, True): ("only the LLM right", "#E69F00"), (False, False): ("neither right", "#999999")}


def build_parser() -> argparse.ArgumentParser:
    """Every flag of llm_compare.py."""
    parser = common.Parser(prog="llm_compare.py", description="Compare a run with the answers of a causal LLM.")
    common.add_run_flags(parser)
    group = parser.add_argument_group("prompt")
    group.add_argument("--llm", metavar="ID|FOLDER",
                       help=f"hub id or local folder; off: {DEFAULT_LLM}, for images {DEFAULT_VLM}, with --sample a "
                       "tiny random one")
    group.add_argument("--max-samples", type=common.positive_int, metavar="N",
                       help="ask about at most N test samples, drawn with a fixed seed, stratified by label; and about "
                       "the others of errors.csv, which do not count in the figures")
    group.add_argument("--shots", type=common.non_negative_int, default=0, metavar="K",
                       help="examples from train in the prompt, each label in turn, drawn with a fixed seed")
    group.add_argument("--prompt-file", type=Path, metavar="FILE", help="your own prompt; {input} stands for the "
                       "sample, {instruction} for the task and its labels, {examples} for --shots")
    group = parser.add_argument_group("answers")
    group.add_argument("--mode", choices=["both", "generate", "likelihood"], default="both",
                       help="generate: the LLM writes, its text is parsed; likelihood: the most probable label")
    group.add_argument("--max-new-tokens", type=common.positive_int, metavar="N",
                       help="tokens that the LLM may write; off: 8, for an answer in free text 32")
    group.add_argument("--precision", choices=["auto", "fp32", "fp16", "bf16"], default="auto",
                       help="auto: bf16 or fp16 where the hardware has it natively, else fp32")
    group.add_argument("--batch-tokens", type=common.positive_int, default=8192, metavar="N",
                       help="tokens of a batch, padding included; halved where they do not fit into memory")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Ask, parse, score, compare; returns the exit code."""
    args = build_parser().parse_args(argv)
    rank, processes = common.launched()
    with contextlib.redirect_stdout(sys.stdout if rank == 0 else None):  # one of several processes speaks
        folder, run = common.find_run(args)
        common.hold(folder, shared=True)
        form = answer_form(args, run["task"])
        predictions, counted = pick_samples(
            common.read_predictions(folder), form, args.max_samples or args.max_eval_samples, sheet_ids(folder))
        questions = build_questions(args, folder, form, predictions)
        with sign_of_life(journal_path(folder, rank)) if rank else contextlib.nullcontext():
            llm = load_llm(args, run, form, questions)
            questions = encode_all(llm, questions)
            announce(llm, questions, args)
            records = ask(llm, questions, args, folder, rank, processes)
        if rank == 0:
            table = write_predictions(folder, form, predictions, questions, records)
            compare(folder, run, llm, form, predictions[:counted], table[:counted])
            fill_error_sheet(folder, dict(zip(table["id"], table["llm_label"], strict=True)))
            common.write_json(folder / "run.json", run | {"llm": describe(llm, args, counted)})
            write_report(folder)
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# What an answer is, for each kind of task: how it is asked for, read and judged
# ---------------------------------------------------------------------------------------------------------------------


class LabelAnswer:
    """One of the task's labels, by its name. The other forms of answer say in what they differ."""

    request = "Labels: {labels}\nAnswer with one of these labels and nothing else."
    closed = True  # the answers can be listed, so that the probability of each can be asked for
    max_new_tokens = 8
    right_metric = "accuracy"  # what the share of right answers is called

    def __init__(self, task: dict[str, Any]):
        self.task, self.kind = task, KINDS[task["kind"]]

    def llm_class(self) -> Any:
        """The class of LLMs that can answer."""
        return LLM

    def images(self, _run: dict[str, Any]) -> Any:
        """The images that the run's test samples are about, by id; None: they are texts."""
        return None

    def choices(self, _row: dict[str, Any]) -> dict[str, str]:
        """What the LLM may answer about a sample, and the label that each answer stands for; empty: anything."""
        return {label: label for label in self.task["labels"]} if self.closed else {}

    def input_text(self, row: dict[str, Any]) -> str:
        """The sample as the prompt shows it: the text, or each of several after its column's name."""
        names = self.task["text"]
        return row[names[0]] if len(names) == 1 else "\n".join(f"{name}: {row[name]}" for name in names)

    def example_answer(self, row: dict[str, Any]) -> str:
        """What the LLM should have answered about a row of train_texts.csv, for --shots."""
        return next(answer for answer, label in self.choices(row).items() if label == row["label"])

    def parse(self, text: str, row: dict[str, Any]) -> tuple[str, str]:
        """The label that the LLM's text stands for, or UNPARSED, and how it was found, or why not (parse_method)."""
        return parse_label(text, self.choices(row))

    def judge(self, gold: pd.Series, answers: pd.Series) -> pd.DataFrame:
        """gold, predicted and correct, as the task's kind wants them for its metrics; UNPARSED is never correct."""
        return pd.DataFrame({"gold": gold, "predicted": answers, "correct": gold == answers})

    def scores(self, judged: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Any]]:
        """The kind's metrics by name, and DRAWS bootstrap samples of each; auroc is none, as it takes probabilities.

        UNPARSED is one more label, of no gold sample and so of F1 0: accuracy, weighted F1 and the figures of a label
        are what they should be, and a mean over the labels is after it is divided by their true number.
        """
        labels = self.task["labels"]
        wider = [*labels, UNPARSED] if UNPARSED in set(judged["predicted"]) else labels
        metrics = [metric for metric in self.task["metrics"] if metric != "auroc"]
        task = {**self.task, "labels": wider, "metrics": metrics}
        values, draws = self.kind.metrics(judged, task), self.kind.resample(judged, task, DRAWS)
        for scores in (values, draws):
            for mean in ("macro_f1", "macro_recall"):
                scores[mean] = scores[mean] * len(wider) / len(labels)
        return values, draws


class ChoiceAnswer(LabelAnswer):
    """The letter of one of the sample's options.

    LLMs favour a place (Zheng et al. 2024, arXiv 2309.03882), so the options are rotated by a hash of the sample's id.
    """

    request = "Answer with the letter of the right option and nothing else."

    def options(self, row: dict[str, Any]) -> list[tuple[str, str, str]]:
        """Letter, label and text of each option, as shown."""
        shown = list(zip(self.task["labels"], (row[name] for name in self.task["options"]), strict=True))
        turn = zlib.crc32(row["id"].encode()) % len(shown)
        return [(chr(ord("A") + place), *option) for place, option in enumerate(shown[turn:] + shown[:turn])]

    def choices(self, row: dict[str, Any]) -> dict[str, str]:
        """Letters."""
        return {letter: label for letter, label, _ in self.options(row)}

    def input_text(self, row: dict[str, Any]) -> str:
        """The question and its options, a line each."""
        return "\n".join([super().input_text(row), *(f"{letter}. {text}" for letter, _, text in self.options(row))])

    def parse(self, text: str, row: dict[str, Any]) -> tuple[str, str]:
        """A letter, or the text of an option that no other has."""
        times = Counter(plain(option) for _, _, option in self.options(row))
        texts = {option: label for _, label, option in self.options(row) if times[plain(option)] == 1}
        return parse_label(text, texts | self.choices(row))


class OpenAnswer(LabelAnswer):
    """An answer that is not one of a list: one of so many words or short phrases that a prompt can't hold them."""

    request = "Answer with a single word or a short phrase and nothing else."
    closed = False

    def example_answer(self, row: dict[str, Any]) -> str:
        """The gold answer."""
        return row["label"]

    def parse(self, text: str, _row: dict[str, Any]) -> tuple[str, str]:
        """The first line, in the task's own spelling where it is one of its answers."""
        line, fault = first_line(text)
        known = [label for label in self.task["labels"] if plain(label) == plain(line)]
        return (UNPARSED, fault) if fault else (known[0], "normalised") if known else (line, "text")

    def scores(self, judged: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Any]]:
        """The kind's metrics by name, and DRAWS bootstrap samples of each."""
        return self.kind.metrics(judged, self.task), self.kind.resample(judged, self.task, DRAWS)


class ImageAnswer(OpenAnswer):
    """A single word or a short phrase about an image."""

    def llm_class(self) -> Any:
        """Those that see."""
        return VisionLLM

    def images(self, run: dict[str, Any]) -> Any:
        """The test images, as evaluate.py read them."""
        task = {**self.task, "splits": {"test": self.task["splits"]["test"]}}
        return common.read_images(task, argparse.Namespace(**run["args"]))

    def example_answer(self, _row: dict[str, Any]) -> str:
        """UserError."""
        raise UserError(f"--shots shows texts, and an example of {self.task['key']} would need its image: leave it out")


class NumberAnswer(OpenAnswer):
    """A number on the task's scale; right where it falls into the same step of the scale as the gold number."""

    request = "Answer with a number from {low} to {high} and nothing else."
    right_metric = "right_step"

    def example_answer(self, row: dict[str, Any]) -> str:
        """The gold number with two decimals at most."""
        return f"{round(float(row['label']), 2):g}"

    def parse(self, text: str, _row: dict[str, Any]) -> tuple[str, str]:
        """The one number in the first line."""
        line, fault = first_line(text)
        numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)", line.replace("\u2212", "-"))
        if fault or len(numbers) != 1:
            return UNPARSED, fault or ("unparsed: more than one number" if numbers else "unparsed: no number")
        low, high = self.task["scale"]
        if not low <= float(numbers[0]) <= high:
            return UNPARSED, "unparsed: off the scale"
        return numbers[0], "exact" if line == numbers[0] else "number"

    def judge(self, gold: pd.Series, answers: pd.Series) -> pd.DataFrame:
        """UNPARSED counts as the middle of the scale in the metrics, which need a number, and as wrong in `correct`."""
        parsed, gold = answers != UNPARSED, gold.astype("float64")
        numbers = answers.where(parsed, np.mean(self.task["scale"])).astype("float64")
        same_step = self.kind.steps(gold, self.task) == self.kind.steps(numbers, self.task)
        return pd.DataFrame({"gold": gold, "predicted": numbers, "correct": same_step & parsed})

    def scores(self, judged: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Any]]:
        """The kind's metrics, and the share of answers in the right step."""
        values, draws = super().scores(judged)
        right, n = int(judged["correct"].sum()), len(judged)
        return values | {"right_step": right / n}, draws | {"right_step": resampled_share(right, n)}


class SetAnswer(OpenAnswer):
    """Any number of the task's labels, parted by commas, or none."""

    request = "Labels: {labels}\nAnswer with all labels that apply, parted by commas, or with none, and nothing else."
    max_new_tokens = 32
    right_metric = "exact_match"

    def example_answer(self, row: dict[str, Any]) -> str:
        """The gold labels, or none."""
        return row["label"].replace(" | ", ", ")

    def parse(self, text: str, _row: dict[str, Any]) -> tuple[str, str]:
        """The labels, as predictions.csv joins them, if each part of the first line is one."""
        line, fault = first_line(text)
        names = {plain(label): label for label in self.task["labels"]}
        parts = {plain(part) for part in re.split(r"[,;|]", line)}
        if fault or not (parts <= set(names) or parts == {"none"}):
            return UNPARSED, fault or "unparsed: not a list of labels"
        return " | ".join(label for name, label in names.items() if name in parts) or "none", "list"

    def judge(self, gold: pd.Series, answers: pd.Series) -> pd.DataFrame:
        """UNPARSED counts as a set without any label that is right."""
        wrong = gold.map(lambda names: self.task["labels"][0] if names == "none" else "none")
        return super().judge(gold, answers.where(answers != UNPARSED, wrong))


class SpanAnswer(OpenAnswer):
    """A stretch of the context that answers the question, or `unanswerable`; judged as in SQuAD 2.0."""

    request = ("Answer with the shortest stretch of the context that answers the question, word for word, or with "
               "unanswerable, and nothing else.")
    max_new_tokens = 32
    right_metric = "exact"

    def example_answer(self, row: dict[str, Any]) -> str:
        """The first accepted answer."""
        return row["label"].split(" | ")[0] or "unanswerable"

    def parse(self, text: str, _row: dict[str, Any]) -> tuple[str, str]:
        """The first line; "" for unanswerable, as in predictions.csv."""
        line, fault = first_line(text)
        if fault:
            return UNPARSED, fault
        return ("", "no answer") if plain(line) in ("unanswerable", "no answer") else (line.strip("\"“”*`"), "text")

    def judge(self, gold: pd.Series, answers: pd.Series) -> pd.DataFrame:
        """correct and f1: the best over the accepted answers."""
        scores = [(0, 0.0) if answer == UNPARSED else common.squad_scores(answer, accepted.split(" | "))
                  for answer, accepted in zip(answers, gold, strict=True)]
        exact, f1 = zip(*scores, strict=True)
        return pd.DataFrame({"gold": gold, "predicted": answers, "correct": np.array(exact) == 1, "f1": f1})


ANSWERS = {"classification": LabelAnswer, "multiple_choice": ChoiceAnswer, "answers": OpenAnswer,
           "visual": ImageAnswer, "regression": NumberAnswer, "multilabel": SetAnswer, "span": SpanAnswer}


def answer_form(args: argparse.Namespace, task: dict[str, Any]) -> Any:
    """What an answer is for this task, and in `args` what follows from it; UserError where an LLM can't give one."""
    if UNPARSED in task.get("labels", []):
        raise UserError(f"{task['key']} has a label {UNPARSED}, which stands for answers that can't be read; rename it")
    form = ANSWERS[task["kind"]](task)
    if args.mode == "likelihood" and not form.closed:
        raise UserError(f"--mode likelihood takes labels that can be listed; {task['key']} has none: --mode generate")
    args.mode = args.mode if form.closed else "generate"
    args.max_new_tokens = args.max_new_tokens or form.max_new_tokens
    return form


# ---------------------------------------------------------------------------------------------------------------------
# From the LLM's text to a label
# ---------------------------------------------------------------------------------------------------------------------

SEPARATOR = r"(?<=\w)[\s_-]+(?=\w)"  # between the words of a label; not the sign of -1
QUOTED_VALUE = re.compile(r"[\"'](?:label|answer|output)[\"']\s*:\s*[\"']([^\"'\n]*)", re.I)  # JSON, perhaps cut short
ANSWER_LINE = re.compile(  # Answer: X, **Label:** X, The answer is X
    r"^[\s*_#]*(?:the )?(?:final |correct )?(?:answer|label|output)[\s*_]*(?: is\b|:)[\s*_:]*(.+)", re.I | re.M)


def parse_label(text: str, choices: dict[str, str]) -> tuple[str, str]:
    """The label that `text` names and the step of the ladder that found it; (UNPARSED, why) where that is not plain.

    The steps: the answer itself; but for case, markdown and punctuation; the same of the first line; the value of a
    JSON object; what follows "Answer:"; the one label whose name stands as a whole word in the first line. Nothing is
    guessed: two labels, a negation or a question are unparsed.

    Args:
        text: what the LLM wrote.
        choices: allowed answer -> label.
    """
    text, fault = readable(text)
    if fault or text in choices:
        return (UNPARSED, fault) if fault else (choices[text], "exact")
    line = text.splitlines()[0]
    steps = [("normalised", [text]), ("first line", [line]), ("json", QUOTED_VALUE.findall(text)),
             ("answer", ANSWER_LINE.findall(text))]
    for method, parts in steps:
        labels = {label for part in parts for answer, label in choices.items() if plain(answer) == plain(part)}
        if labels:
            return (labels.pop(), method) if len(labels) == 1 else (UNPARSED, "unparsed: more than one label")
    return find_label(line, choices)


def readable(text: str) -> tuple[str, str]:
    """What the LLM says after thinking, and "", or why there is nothing to read."""
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return "", "unparsed: still thinking"
    text = text.split("\nInput:")[0].strip()  # a base model goes on with a sample of its own
    return text, "" if text else "unparsed: empty"


def first_line(text: str) -> tuple[str, str]:
    """The answer of one line, without `Answer:` before it, and "", or why there is none."""
    text, fault = readable(text)
    line = text.splitlines()[0] if text else ""
    found = ANSWER_LINE.match(line)
    return (found[1] if found else line).strip(), fault


def plain(text: str) -> str:
    """`text` without what may differ in an answer: case, markdown, quotes and punctuation around it, _ - and spaces."""
    return re.sub(SEPARATOR, " ", text.casefold()).strip(" \t*_`#\"'“”‘’.,;:!()[]{}<>")


def find_label(line: str, choices: dict[str, str]) -> tuple[str, str]:
    """The one label that `line` names in a whole word ("word"), or UNPARSED and the reason.

    The longest names come first and are cut out, so that `entailment` is not found again in `not entailment`.
    """
    rest, found = line, []
    for answer in sorted(choices, key=len, reverse=True):
        name = r"[\s_-]+".join(re.escape(word) for word in re.split(SEPARATOR, answer))
        end = r"(?![\w-]|\.\d)" + (r"(?!\s+[a-z])" if len(answer) == 1 else "")  # `A cat` is not the answer A
        rest, times = re.subn(rf"(?<![\w-])(?<!\d\.){name}{end}", "\0", rest, flags=re.I if len(answer) > 1 else 0)
        found += [answer] * bool(times)
    labels = {choices[answer] for answer in found}
    if len(labels) != 1:
        return UNPARSED, "unparsed: more than one label" if labels else "unparsed: no label"
    # "No, it is not ..." agrees with a label `no`; any other negation may turn the label round.
    agrees = bool(NEGATION.match(plain(found[0]))) and rest.lstrip("*_\"' ").startswith("\0")
    if NEGATION.search(rest) and not agrees:
        return UNPARSED, "unparsed: negation"
    return (UNPARSED, "unparsed: question") if "?" in line else (labels.pop(), "word")


# ---------------------------------------------------------------------------------------------------------------------
# The prompts
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Question:
    """A test sample as the LLM is asked about it."""

    sample_id: str
    prompt: str  # once encoded, with the LLM's chat template around it: the very text that it reads
    choices: dict[str, str]  # what the LLM may answer -> the label it stands for; empty: anything
    input_ids: tuple[int, ...] = ()
    image: str = ""  # the id of its image, where it is about one
    image_tokens: int = 0

    @property
    def length(self) -> int:
        """Tokens that the LLM reads."""
        return len(self.input_ids) + self.image_tokens

    @property
    def thought(self) -> str:
        """<think> where the chat template has opened a thought, which the LLM's text goes on with; else ""."""
        return "<think>" if self.prompt.rstrip().endswith("<think>") else ""


def pick_samples(
    predictions: pd.DataFrame, form: Any, count: int | None, sheet: set[str]
) -> tuple[pd.DataFrame, int]:
    """`count` rows of predictions.csv (all of them for None), each label in proportion where the labels are listed.

    After them stand the others whose ids are in `sheet`: all wrong, so they must not count in a comparison. Returns the
    rows, and how many count.
    """
    strata = predictions["gold"].to_numpy() if form.closed else np.zeros(len(predictions))
    rows = common.stratified_rows(strata, count or len(predictions), np.random.default_rng(common.SPLIT_SEED))
    others = np.setdiff1d(np.flatnonzero(predictions["id"].isin(sheet)), rows)
    return predictions.iloc[[*rows, *others]].reset_index(drop=True), len(rows)


def sheet_ids(folder: Path) -> set[str]:
    """The ids of errors.csv; none where there is no such file yet."""
    path = folder / "errors.csv"
    return set(read_sheet(path)["id"].str.strip()) if path.is_file() else set()


def build_questions(args: argparse.Namespace, folder: Path, form: Any, predictions: pd.DataFrame) -> list[Question]:
    """A question per row of `predictions`, in its order."""
    task, template = form.task, read_template(args)
    low, high = (f"{end:g}" for end in task.get("scale", (0, 0)))
    request = fill(form.request, labels=", ".join(task.get("labels", [])), low=low, high=high)
    examples = [fill(EXAMPLE, input=form.input_text(row), answer=form.example_answer(row))
                for row in draw_examples(folder, task, args.shots)]
    parts = {"instruction": f"{task.get('task', 'Give the text its label.')}\n{request}", "examples": "".join(examples)}
    return [Question(row["id"], fill(template, input=form.input_text(row), **parts), form.choices(row),
                     image=row.get(task.get("image"), "")) for row in predictions.to_dict("records")]


def read_template(args: argparse.Namespace) -> str:
    """PROMPT, or the text of --prompt-file; UserError where a placeholder is missing in that."""
    if not args.prompt_file:
        return PROMPT
    try:
        template = args.prompt_file.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-file {args.prompt_file} can't be read: {error}") from error
    for name in ["{input}", *(["{examples}"] if args.shots else [])]:
        if name not in template:
            raise UserError(f"--prompt-file {args.prompt_file} has no {name}, so no prompt would hold the "
                            f"{'sample' if name == '{input}' else 'examples of --shots'}; write {name} where it goes")
    return template


def fill(template: str, **parts: str) -> str:
    """`template` with {name} replaced; other braces stay, in it as in the texts."""
    return re.sub(r"\{(\w+)\}", lambda match: parts.get(match[1], match[0]), template)


def draw_examples(folder: Path, task: dict[str, Any], shots: int) -> list[dict[str, Any]]:
    """`shots` rows of train_texts.csv, drawn with SPLIT_SEED, each label in turn (no answer counting as one)."""
    if not shots:
        return []
    train = common.read_csv(folder / "train_texts.csv", required=("id", *common.text_columns(task), "label"))
    if len(train) < shots:
        raise UserError(f"--shots {shots} is more than the {len(train)} training examples of the run")
    train = train.iloc[np.random.default_rng(common.SPLIT_SEED).permutation(len(train))]
    labels = train["label"] if task.get("labels") else train["label"] == ""
    turns = labels.groupby(labels).cumcount()  # 0 for the first drawn of each label, then 1, ...
    return train.loc[turns.sort_values(kind="stable").index[:shots]].to_dict("records")


def encode_all(llm: "LLM", questions: list[Question]) -> list[Question]:
    """encode() of each question; UserError where the LLM's chat template, a program in a sandbox, breaks off."""
    from jinja2 import TemplateError

    try:
        return [encode(llm, question) for question in questions]
    except TemplateError as error:
        raise UserError(f"the chat template of {llm.name} can't be used: {error}; take another --llm") from error


def encode(llm: "LLM", question: Question) -> Question:
    """The question with the LLM's chat template, where it has one, around its prompt, and the token ids.

    Raises UserError where the tokens hold more than one begin-of-text token, or more tokens than the LLM takes.
    """
    tokenizer, text = llm.tokenizer, question.prompt
    if llm.chat:
        # Templates that know neither name ignore it: Qwen3's would open <think>, Llama 3's would put in today's date.
        text = llm.processor.apply_chat_template(
            [{"role": "user", "content": llm.content(question)}], add_generation_prompt=True, tokenize=False,
            enable_thinking=False, date_string="26 Jul 2024")
    input_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][0] == bos:  # the LLM was trained with it in front
        input_ids = input_ids if input_ids[:1] == [bos] else [bos, *input_ids]
        if input_ids.count(bos) != 1:
            raise UserError(f"the prompt of {question.sample_id} holds {tokenizer.bos_token} {input_ids.count(bos)} "
                            "times; it may stand at its start only: look at the text and at --prompt-file")
    question = dataclasses.replace(question, prompt=text, input_ids=tuple(input_ids))
    question = dataclasses.replace(question, image_tokens=llm.image_tokens(question))
    needed = question.length + llm.new_tokens
    limit = getattr(llm.model.config.get_text_config(), "max_position_embeddings", None) or needed
    if needed > limit:
        raise UserError(f"the prompt of {question.sample_id} and its answer take {needed} tokens, {llm.name} takes "
                        f"{limit}; fewer --shots, or another --llm")
    return question


# ---------------------------------------------------------------------------------------------------------------------
# The LLM
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class LLM:
    """A causal language model, ready to be asked.

    Each prompt is prefix + rest. The prefix's keys and values are computed once and copied for each batch; the rests
    are padded on the left and added to the copy, all but the last token of each. From there one copy goes to the
    likelihoods, the other to generate, which takes the last token from input_ids:

        input_ids        prefix  pad  rest
        attention_mask   1 1 1   0    1 1 1        positions are counted over the ones
    """

    name: str
    revision: str
    precision: str
    processor: Any  # the tokenizer
    model: Any
    new_tokens: int  # that it may write
    images: Any = None  # of a task about images: id -> PIL image
    prefix: list[int] = dataclasses.field(default_factory=list)  # the tokens that all prompts begin with
    cache: Any = None  # their keys and values

    family, default = "causal language model", DEFAULT_LLM  # what a task takes, and which one
    auto_class, processor_class = "AutoModelForCausalLM", "AutoTokenizer"

    @staticmethod
    def build_sample(tokenizer: Any) -> tuple[Any, Any]:
        """The tokenizer with a chat template, and a two-layer Qwen2 with random weights."""
        import transformers

        tokenizer.chat_template = SAMPLE_CHAT_TEMPLATE
        return tokenizer, transformers.Qwen2ForCausalLM(sample_config(tokenizer))

    @property
    def tokenizer(self) -> Any:
        """Text to token ids and back."""
        return self.processor

    @property
    def chat(self) -> bool:
        """Whether it is asked through a chat template."""
        return self.processor.chat_template is not None

    def content(self, question: Question) -> Any:
        """The question as the content of a chat message."""
        return question.prompt

    def image_tokens(self, _question: Question) -> int:
        """Tokens that the question takes beside those of its text."""
        return 0

    def share_prefix(self, questions: list[Question]) -> None:
        """Set `prefix`, at least two tokens less than the shortest prompt, and `cache`, of batch size 1.

        The prefix is empty where a cache may forget: a layer with a sliding window counts padding as places, so with
        padding after the prefix it would see less of the text, and a recurrent layer keeps no places at all.
        """
        import torch
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        prompts = [question.input_ids for question in questions]
        longest = max(map(len, prompts)) + self.new_tokens
        self.prefix, self.cache = [], DynamicCache(config=self.model.config)
        if all(type(layer) is DynamicLayer or
               (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > longest)
               for layer in self.cache.layers):
            first, last = min(prompts), max(prompts)  # what these two share, all that are sorted in between share too
            shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
            self.prefix = list(first[:max(0, min(shared, min(map(len, prompts)) - 2))])
        if self.prefix:
            with torch.inference_mode():
                self.model.base_model(torch.tensor([self.prefix], device=self.model.device), past_key_values=self.cache,
                                      use_cache=True)

    def answer(self, questions: list[Question], answer_ids: list[list[int]], mode: str) -> list[dict[str, Any]]:
        """What the LLM writes (`output`, None where not asked) and the log-probability of each choice (`log_probs`)."""
        import torch

        outputs, log_probs = [None] * len(questions), [None] * len(questions)
        with torch.inference_mode():
            input_ids, attention_mask, cache = self.prefill(questions)
            if mode != "generate":
                log_probs = self.log_probs(input_ids, attention_mask, cache, answer_ids).tolist()
            if mode != "likelihood":
                written = self.model.generate(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache)
                outputs = self.tokenizer.batch_decode(written[:, input_ids.shape[1]:], skip_special_tokens=True)
        return [{"output": output, "log_probs": scores} for output, scores in zip(outputs, log_probs, strict=True)]

    def prefill(self, questions: list[Question]) -> tuple[Any, Any, Any]:
        """input_ids and attention_mask, int64 (batch, tokens), and a cache that holds all but the last token."""
        import torch

        rests = [list(question.input_ids[len(self.prefix):]) for question in questions]
        pads = [max(map(len, rests)) - len(rest) for rest in rests]
        rows = [self.prefix + [self.tokenizer.pad_token_id] * pad + rest for pad, rest in zip(pads, rests, strict=True)]
        masks = [[1] * len(self.prefix) + [0] * pad + [1] * len(rest) for pad, rest in zip(pads, rests, strict=True)]
        input_ids, attention_mask = (torch.tensor(table, device=self.model.device) for table in (rows, masks))
        positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
        cache = copy.deepcopy(self.cache)  # a forward pass writes into its cache
        if self.prefix:
            cache.batch_repeat_interleave(len(rows))
        new = slice(len(self.prefix), -1)
        self.model.base_model(  # the model without its last layer: no logits are needed yet
            input_ids[:, new], attention_mask=attention_mask[:, :-1], position_ids=positions[:, new],
            past_key_values=cache, use_cache=True)
        return input_ids, attention_mask, cache

    def answer_tokens(self, question: Question) -> list[list[int]]:
        """Token ids of each of the question's choices, as they follow its prompt: after a space, but in a chat.

        Prompt and answer are tokenised together, as a tokenizer may treat the start of a text in its own way; alone
        only where that changes the prompt's tokens. Where one answer is the beginning of another (1 and 10), the other
        could never be the more probable one: there, each answer is scored together with the end of the answer.
        """
        texts = [choice if self.chat else f" {choice}" for choice in question.choices]
        prompt, *rows = self.tokenizer([question.prompt, *(question.prompt + text for text in texts), *texts],
                                       add_special_tokens=False)["input_ids"]
        joined, alone = rows[:len(texts)], rows[len(texts):]
        answers = [ids[len(prompt):] if ids[:len(prompt)] == prompt else other
                   for ids, other in zip(joined, alone, strict=True)]
        if any(one is not other and other[:len(one)] == one for one in answers for other in answers):
            end = self.tokenizer.eos_token if self.chat else "\n"
            answers = [ids + self.tokenizer(end, add_special_tokens=False)["input_ids"] for ids in answers]
        return answers

    def log_probs(self, input_ids: Any, attention_mask: Any, cache: Any, answer_ids: list[list[int]]) -> Any:
        """Summed log-probability (nats) of each answer's tokens after each prompt, float32 (batch, answers).

        `cache` holds all tokens of the prompts but the last, and is left as it is. Answers of one token take one step
        of one token; each longer one another step, of all its tokens but the last. Raises FloatingPointError for NaN.
        """
        import torch
        import torch.nn.functional as F

        def step(ids: Any, known: Any, start: int) -> Any:
            """Log-probabilities after each of `ids`, (batch, tokens, vocabulary); `start`: the first's place."""
            end = start + ids.shape[1]
            positions = attention_mask.sum(dim=-1, keepdim=True) + torch.arange(start, end, device=ids.device)
            mask = F.pad(attention_mask, (0, end), value=1)
            outputs = self.model(
                ids, attention_mask=mask, position_ids=positions, past_key_values=known, use_cache=True)
            return outputs.logits.float().log_softmax(dim=-1)

        cache = copy.deepcopy(cache)
        first = step(input_ids[:, -1:], cache, -1)[:, -1]
        columns = []
        for ids in answer_ids:
            column = first[:, ids[0]]
            if len(ids) > 1:
                tokens = torch.tensor(ids, device=input_ids.device).expand(len(input_ids), -1)
                rest = step(tokens[:, :-1], copy.deepcopy(cache), 0)
                column = column + rest.gather(-1, tokens[:, 1:, None]).sum(dim=(1, 2))
            columns.append(column)
        log_probs = torch.stack(columns, dim=1)
        if not torch.isfinite(log_probs).all():
            raise FloatingPointError(
                f"{self.name} gave log-probabilities that are not finite; --precision fp32 may help")
        return log_probs


@dataclasses.dataclass
class VisionLLM(LLM):
    """A vision-language model, asked by generate alone, without a shared prefix: the images stand before the texts.

    Images are opened when their questions are asked, so that memory stays flat.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # image -> its tokens

    family, default = "vision-language model", DEFAULT_VLM
    auto_class, processor_class = "AutoModelForImageTextToText", "AutoProcessor"

    def __post_init__(self):
        if not self.chat:
            raise UserError(f"{self.name} has no chat template, so that nothing says where in a prompt the image goes; "
                            f"take another, such as --llm {self.default}")

    @staticmethod
    def build_sample(tokenizer: Any) -> tuple[Any, Any]:
        """A LLaVA: the Qwen2 of the texts, which sees images through a two-layer CLIP."""
        import transformers

        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        size, patch = 32, 8  # pixels
        vision = transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=size,
            patch_size=patch)
        model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
            vision_config=vision, text_config=sample_config(tokenizer),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>")))
        pixels = transformers.CLIPImageProcessorPil(  # PIL and numpy, without torchvision
            size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        return transformers.LlavaProcessor(
            pixels, tokenizer, patch_size=patch, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=SAMPLE_VISION_TEMPLATE), model

    @property
    def tokenizer(self) -> Any:
        """Text to token ids and back."""
        return self.processor.tokenizer

    def content(self, question: Question) -> list[dict[str, str]]:
        """The image, then the question."""
        return [{"type": "image"}, {"type": "text", "text": question.prompt}]

    def image_tokens(self, question: Question) -> int:
        """Tokens of the question's image; each image is counted once."""
        if question.image not in self.counts:
            self.counts[question.image] = self.inputs([question])["input_ids"].shape[1] - len(question.input_ids)
        return self.counts[question.image]

    def share_prefix(self, _questions: list[Question]) -> None:
        """Leave the prefix empty."""

    def answer(self, questions: list[Question], _answer_ids: list[list[int]], _mode: str) -> list[dict[str, Any]]:
        """What the LLM writes (`output`)."""
        import torch

        inputs = self.inputs(questions).to(self.model.device, dtype=self.model.dtype)
        with torch.inference_mode():
            written = self.model.generate(**inputs)
        outputs = self.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        return [{"output": output, "log_probs": None} for output in outputs]

    def inputs(self, questions: list[Question]) -> Any:
        """The tensors of the prompts, padded on the left, and of their images."""
        bos = self.tokenizer.bos_token
        return self.processor(
            text=[question.prompt for question in questions],
            images=[[self.images[question.image]] for question in questions], return_tensors="pt", padding=True,
            padding_side="left", add_special_tokens=bos is not None and not questions[0].prompt.startswith(bos))


def load_llm(args: argparse.Namespace, run: dict[str, Any], form: Any, questions: list[Question]) -> LLM:
    """--llm from the hub or a folder, on this process's device; UserError where it can't be had or won't fit."""
    import torch
    import transformers

    common.quiet_transformers()
    device, llm_class = common.pick_device(), form.llm_class()
    if args.llm is None and run["sample"]:
        llm = build_sample_llm(llm_class, questions, args.max_new_tokens)
        llm.model.to(device)
    else:
        name, precision = args.llm or llm_class.default, common.choose_precision(args.precision)
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        with loading_errors(llm_class, name), common.hub_errors(f"the LLM {name}", Path(name).is_dir()):
            config = transformers.AutoConfig.from_pretrained(name, **common.NO_CODE)
            check_fits(llm_class, name, config, dtype, device)
            common.require_weights(name)
            processor = getattr(transformers, llm_class.processor_class).from_pretrained(name, **common.NO_CODE)
            model, report = getattr(transformers, llm_class.auto_class).from_pretrained(
                name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **common.NO_CODE)
            model.to(device)
        common.check_whole(name, getattr(processor, "tokenizer", processor), model, report, new_head=False)
        changed = max((path.stat().st_mtime_ns for path in Path(name).glob("*.safetensors")), default=0)
        revision = getattr(config, "_commit_hash", None) or str(changed)
        llm = llm_class(name, revision, precision, processor, model, args.max_new_tokens)
    llm.images = form.images(run)
    return prepare(llm)


def prepare(llm: LLM) -> LLM:
    """The LLM set to write greedily: what its generation_config.json says of sampling or repetition is put aside."""
    import transformers

    if llm.tokenizer.pad_token_id is None:
        llm.tokenizer.pad_token = llm.tokenizer.eos_token  # what is padded is masked: any token will do
    llm.model.generation_config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=llm.new_tokens, pad_token_id=llm.tokenizer.pad_token_id,
        eos_token_id=llm.model.generation_config.eos_token_id or llm.tokenizer.eos_token_id)
    llm.model.eval()
    return llm


def check_fits(llm_class: Any, name: str, config: Any, dtype: Any, device: Any) -> None:
    """UserError where `config` is of another family, or its weights take more memory than is free on the device."""
    import torch
    import transformers

    auto_class = getattr(transformers, llm_class.auto_class)
    if type(config) not in auto_class._model_mapping:
        raise UserError(f"{name} is a {config.model_type} model; this task takes a {llm_class.family}, such as "
                        f"--llm {llm_class.default}")
    with torch.device("meta"):  # shapes without memory
        parameters = auto_class.from_config(config).num_parameters()
    needed, free = parameters * dtype.itemsize, free_bytes(device)
    if needed > free:
        raise UserError(f"{name} has {parameters:,} parameters and needs {needed:,} bytes in {dtype}; {free:,} are "
                        f"free on {common.device_name(device)}; take a smaller --llm")


def free_bytes(device: Any) -> int:
    """Bytes that are free on the device."""
    import psutil  # comes with accelerate
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


@contextlib.contextmanager
def loading_errors(llm_class: Any, name: str) -> Iterator[None]:
    """Say more of what went wrong in loading than common.hub_errors can: gated, refused, out of memory."""
    try:
        yield
    except UserError as error:
        raise UserError(explain(llm_class, name, error) or str(error)) from error


def explain(llm_class: Any, name: str, error: BaseException) -> str:
    """What `error` came from and what to do about it: the hub's 401, 403 or 404, memory; "" for others."""
    from accelerate.utils.memory import should_reduce_batch_size
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    refusal = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    status, endpoint = refusal.response.status_code if refusal else None, constants.ENDPOINT
    if isinstance(refusal, GatedRepoError):
        reason = GATED_REASONS.get(status, "access to it was refused")
        return GATED.format(name=name, reason=reason, endpoint=endpoint, open_llm=llm_class.default)
    if isinstance(refusal, RepositoryNotFoundError):
        return f"there is no model {name} on {endpoint}, and no such folder; a private one needs `hf auth login`"
    if status in TOKEN_FAULTS:
        return f"{endpoint} refused {name}: {TOKEN_FAULTS[status]}; `hf auth login`, or set or unset HF_TOKEN"
    if should_reduce_batch_size(causes[-1]):
        return f"out of memory while loading {name}; take a smaller --llm or --precision bf16"
    return ""


def build_sample_llm(llm_class: Any, questions: list[Question], new_tokens: int) -> LLM:
    """An LLM of two layers with seeded random weights, and a word-level tokenizer over the prompts."""
    import torch

    texts = [SAMPLE_CHAT_TEMPLATE, *(question.prompt for question in questions)]
    tokenizer = common.word_tokenizer(texts)
    tokenizer.eos_token, tokenizer.model_input_names = tokenizer.sep_token, ["input_ids", "attention_mask"]
    torch.manual_seed(common.DEFAULT_SEED)
    processor, model = llm_class.build_sample(tokenizer)
    revision = hashlib.sha256("\n".join(texts).encode()).hexdigest()  # the prompts make its vocabulary
    return llm_class(common.SAMPLE_MODEL, revision, "fp32", processor, model, new_tokens)


def sample_config(tokenizer: Any) -> Any:
    """The sizes of the sample LLM."""
    import transformers

    return transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32768, initializer_range=0.3, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def describe(llm: LLM, args: argparse.Namespace, samples: int) -> dict[str, Any]:
    """What run.json keeps of the LLM, and how it was asked."""
    return {"name": llm.name, "revision": llm.revision, "type": llm.model.config.model_type,
            "parameters": llm.model.num_parameters(), "precision": llm.precision, "mode": args.mode,
            "shots": args.shots, "samples": samples}


def announce(llm: LLM, questions: list[Question], args: argparse.Namespace) -> None:
    """Print what is asked, with the first two prompts; UserError where the prompt leaves no place for a label."""
    if args.mode != "generate" and questions[0].thought:
        raise UserError(f"{llm.name} thinks before it answers, so the first tokens are no label; "
                        "use --mode generate --max-new-tokens 1024")
    how = "its chat template" if llm.chat else "plain text, as it has no chat template"
    print(f"LLM: {llm.name}, {llm.model.num_parameters():,} parameters, {llm.precision} on {llm.model.device}; {how}; "
          f"{len(questions)} samples, {args.shots} examples")
    for number, question in enumerate(questions[:2], start=1):
        print(f"--- prompt {number} ({question.sample_id}), {question.length} tokens\n{question.prompt}")
    print("---")


# ---------------------------------------------------------------------------------------------------------------------
# Asking
# ---------------------------------------------------------------------------------------------------------------------


def ask(llm: LLM, questions: list[Question], args: argparse.Namespace, folder: Path, rank: int, processes: int
        ) -> list[dict[str, Any]]:
    """The journal's record of each question, after this process's share of what is missing was asked and appended.

    A batch is asked anew if any answer of it is missing, so that a resumed run has the batches, and by that the
    roundings, of one that was not stopped. The first of several processes waits for the others; these return nothing.
    """
    keys = [journal_key(llm, question, args.mode) for question in questions]
    batches = plan_batches(questions, llm.new_tokens, args.batch_tokens)
    mine = batches[rank::processes]
    known = {} if args.overwrite else read_journal(folder)
    todo = deque(batch for batch in mine if any(keys[i] not in known for i in batch))
    if len(todo) < len(mine):
        print(f"{len(mine) - len(todo)} of {len(mine)} batches are in the journal already")
    if todo:
        llm.share_prefix(questions)
    answer_ids = llm.answer_tokens(questions[0]) if args.mode != "generate" else []
    written = sum(map(len, answer_ids)) + (llm.new_tokens if args.mode != "likelihood" else 0)
    work = [question.length - len(llm.prefix) + written for question in questions]  # tokens that the model goes through
    bar = common.progress_bar(sum(work[i] for batch in todo for i in batch), "LLM answers", unit="token")
    with open_journal(folder, rank, processes, args.overwrite) as journal:
        while todo:
            batch = todo.popleft()
            try:
                answers = llm.answer([questions[i] for i in batch], answer_ids, args.mode)
            except RuntimeError as error:
                common.halve_batches(error, batch, todo, "a smaller --llm, fewer --shots or --precision bf16")
                continue
            lines = [json.dumps({"key": keys[i], **found}) for i, found in zip(batch, answers, strict=True)]
            journal.write("\n".join([*lines, ""]))
            journal.flush()
            bar.update(sum(work[i] for i in batch))
    bar.close()
    if rank:
        return []
    if processes > 1:
        print("waiting for the other processes")
    shares = [[keys[i] for batch in batches[other::processes] for i in batch] for other in range(processes)]
    records = wait_for_all(folder, shares)
    return [records[key] for key in keys]


def plan_batches(questions: list[Question], new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Positions of the questions in batches, the longest first: memory shows at once whether it suffices.

    A batch of n takes n * (tokens of its longest prompt + new_tokens) places in the cache, at most `batch_tokens` of
    them where n is more than 1.
    """
    todo = deque(sorted(range(len(questions)), key=lambda i: -questions[i].length))
    batches = []
    while todo:
        size = max(1, batch_tokens // (questions[todo[0]].length + new_tokens))
        batches.append([todo.popleft() for _ in range(min(size, len(todo)))])
    return batches


# The journal: a line of JSON per answer, in a file per process. The key says what the answer depends on.


def journal_key(llm: LLM, question: Question, mode: str) -> str:
    """SHA-256 of what an answer depends on."""
    depends_on = [llm.name, llm.revision, llm.precision, question.prompt, question.image, list(question.choices), mode,
                  llm.new_tokens]
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


def journal_path(folder: Path, rank: int) -> Path:
    """The journal of one process."""
    return folder / (f"llm_journal.{rank}.jsonl" if rank else "llm_journal.jsonl")


def read_journal(folder: Path) -> dict[str, dict[str, Any]]:
    """The answers in all journals of the folder, by key; a line that a kill cut short is dropped."""
    records = {}
    for path in sorted(folder.glob("llm_journal*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # no JSON, or no record of ours
                record = json.loads(line)
                records[record["key"]] = record
    return records


def open_journal(folder: Path, rank: int, processes: int, overwrite: bool) -> Any:
    """This process's journal, open for appending, empty for `overwrite`, which also removes those that no process has.

    A last line that a kill cut short is ended first.
    """
    path = journal_path(folder, rank)
    if overwrite:
        others = {journal_path(folder, other) for other in range(processes)} - {path}
        for old in set(folder.glob("llm_journal*.jsonl")) - others:
            old.unlink()
    journal = path.open("a+", encoding="utf-8", errors="replace")
    journal.seek(0)
    text = journal.read()
    journal.write("\n" if text and not text.endswith("\n") else "")
    return journal


# Several processes talk through their journals alone: no network between them is needed, and no certain launcher.


@contextlib.contextmanager
def sign_of_life(path: Path) -> Iterator[None]:
    """Touch `path` every BEAT_S seconds, however long the LLM is busy: wait_for_all sees that this process lives."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            path.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def wait_for_all(folder: Path, shares: list[list[str]]) -> dict[str, dict[str, Any]]:
    """The answers in all journals, by key, once those of every process's share of the keys are there.

    Raises RunBroken where no process whose answers are missing has touched its journal for PATIENCE_S seconds.
    """
    signs, since = None, time.monotonic()
    while True:
        records = read_journal(folder)
        missing = [rank for rank, keys in enumerate(shares) if not set(keys) <= set(records)]
        if not missing:
            return records
        seen = [path.stat().st_mtime_ns for path in map(partial(journal_path, folder), missing) if path.exists()]
        if seen != signs:
            signs, since = seen, time.monotonic()
        elif time.monotonic() - since > PATIENCE_S:
            raise RunBroken(f"no sign of life for {PATIENCE_S} seconds from process {', '.join(map(str, missing))}, "
                            "whose answers are not all there; the others are kept: run the same command again")
        time.sleep(1)


# ---------------------------------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------------------------------


def write_predictions(folder: Path, form: Any, predictions: pd.DataFrame, questions: list[Question],
                      records: list[dict[str, Any]]) -> pd.DataFrame:
    """Write llm_predictions.csv, a row per question; returns it."""
    rows = []
    for row, question, record in zip(predictions.to_dict("records"), questions, records, strict=True):
        cells = {"id": row["id"], "gold": row["gold"], "predicted": row["predicted"], "prompt": question.prompt}
        if record["output"] is not None:
            label, method = form.parse(question.thought + record["output"], row)
            cells |= {"llm_label": label, "llm_generated_label": label, "parse_method": method,
                      "raw_output": record["output"]}
        if record["log_probs"] is not None:
            log_probs = np.array(record["log_probs"])
            probabilities = common.softmax(log_probs)
            cells |= {"llm_label": list(question.choices.values())[probabilities.argmax()],
                      "llm_confidence": probabilities.max(), "label_mass": np.exp(log_probs).sum()}
        rows.append(cells)
    table = pd.DataFrame(rows, columns=PREDICTIONS_HEADER)
    common.write_csv(folder / "llm_predictions.csv", table)
    return table


def compare(folder: Path, run: dict[str, Any], llm: LLM, form: Any, predictions: pd.DataFrame, table: pd.DataFrame
            ) -> None:
    """Write llm_metrics.csv, disagreements.csv and llm_compare.png; print the figures."""
    gold, predicted = table["gold"], table["predicted"]
    answers = {}  # the headline first
    if table["raw_output"].notna().all():
        answers["llm_generated"] = table["llm_generated_label"]
    if table["llm_confidence"].notna().all():
        answers["llm_likelihood"] = table["llm_label"]
    judged = {"model": form.judge(gold, predicted), **{who: form.judge(gold, answers[who]) for who in answers}}
    right = {who: judgement["correct"].to_numpy(dtype=bool) for who, judgement in judged.items()}
    agree = {who: form.judge(predicted, labels)["correct"].to_numpy(dtype=bool) for who, labels in answers.items()}
    unparsed = {"model": 0, **{who: int((labels == UNPARSED).sum()) for who, labels in answers.items()}}

    rows = [{"who": who, "unparsed": unparsed[who], **row} for who in judged
            for row in score_rows(form, judged[who], unparsed[who])]
    for name, who in zip(("paired", "paired_likelihood"), answers, strict=False):
        rows += [{"who": name, "unparsed": unparsed[who], "n": len(gold), **row}
                 for row in paired_rows(right["model"], right[who], agree[who])]
    metrics = pd.DataFrame(rows, columns=METRICS_HEADER)
    common.write_csv(folder / "llm_metrics.csv", metrics)

    differs = ~np.all(list(agree.values()), axis=0)
    who_is_right = {who.replace("llm_", "who_is_right_"): [
        CELLS[cell][0] for cell in zip(right["model"].tolist(), right[who].tolist(), strict=True)] for who in answers}
    inputs = predictions[["id", *common.text_columns(form.task), "gold", "predicted", "confidence"]]
    ours = table[["llm_label", "llm_generated_label", "llm_confidence", "raw_output"]]
    both = pd.concat([inputs, ours], axis=1).assign(**who_is_right)
    common.write_csv(folder / "disagreements.csv", both[differs])
    draw(folder / "llm_compare.png", run, llm, gold, right)
    print_summary(folder, run, llm, metrics, int(differs.sum()))


def interval(draws: np.ndarray) -> dict[str, float]:
    """ci_low and ci_high: the middle 95 % of bootstrap samples (Efron 1979, percentile method)."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"ci_low": low, "ci_high": high}


def resampled_share(count: int, n: int) -> np.ndarray:
    """DRAWS bootstrap samples of count / n: n samples with replacement hold a binomially distributed count."""
    return np.random.default_rng(common.SPLIT_SEED).binomial(n, count / n, DRAWS) / n


def share_row(metric: str, count: int, n: int) -> dict[str, Any]:
    """The row of count / n."""
    if n == 0:
        return {"metric": metric, "n": 0}
    return {"metric": metric, "value": count / n, "n": n, **interval(resampled_share(count, n))}


def score_rows(form: Any, judged: pd.DataFrame, unparsed: int) -> list[dict[str, Any]]:
    """The rows of llm_metrics.csv for one column of answers against gold.

    The share of right answers comes first, UNPARSED counted as wrong; ..._parsed_only leaves it out,
    ..._unparsed_right counts it as right, which is the most that another way of parsing could come to.
    """
    values, draws = form.scores(judged)
    name, right, n = form.right_metric, int(judged["correct"].sum()), len(judged)
    rows = [{"metric": metric, "value": values[metric], "n": form.kind.examples_of(metric, judged),
             **interval(draws[metric])}
            for metric in dict.fromkeys([name, *form.task["metrics"]]) if metric in values]
    return rows + ([share_row(f"{name}_parsed_only", right, n - unparsed),
                    share_row(f"{name}_unparsed_right", right + unparsed, n)] if unparsed else [])


def paired_rows(model_right: np.ndarray, llm_right: np.ndarray, agree: np.ndarray) -> list[dict[str, Any]]:
    """The rows of llm_metrics.csv that compare model and LLM sample by sample.

    Counts of the four cells; mcnemar_p: exact and two-sided (McNemar 1947); difference: the LLM's share of right
    answers less the model's, its interval from samples drawn with replacement, which is drawing the four cells from a
    multinomial distribution.
    """
    n = len(agree)
    counts = {cell: int(((model_right == cell[0]) & (llm_right == cell[1])).sum()) for cell in CELLS}
    only_model, only_llm = counts[True, False], counts[False, True]
    cells = np.random.default_rng(common.SPLIT_SEED).multinomial(n, np.array(list(counts.values())) / n, size=DRAWS)
    return [share_row("agreement", int(agree.sum()), n),
            *({"metric": CELLS[cell][0].replace(" the ", " ").replace(" ", "_").lower(), "value": count}
              for cell, count in counts.items()),
            {"metric": "mcnemar_p", "value": mcnemar(only_model, only_llm)},
            {"metric": "difference", "value": (only_llm - only_model) / n,
             **interval(cells @ np.array([0, -1, 1, 0]) / n)}]


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test: a fair coin's, thrown for each sample that only one got right."""
    n = only_first + only_second
    tail = coefficient = 1  # the sum of n over 0, n over 1, ..., in whole numbers: nothing is rounded
    for k in range(min(only_first, only_second)):
        coefficient = coefficient * (n - k) // (k + 1)
        tail += coefficient
    return min(1.0, 2 * tail / 2**n)


def fill_error_sheet(folder: Path, labels: dict[str, str]) -> None:
    """Write llm_label of each sample into errors.csv's column llm_prediction (printed: how many); all else stays."""
    path = folder / "errors.csv"
    if not path.is_file():
        print("no errors.csv yet: run errors.py, then this script again, which takes its answers from the journal")
        return
    sheet = read_sheet(path)
    sheet["llm_prediction"] = [labels.get(sample_id.strip(), "") for sample_id in sheet["id"]]
    common.write_csv(path, sheet)
    asked = sheet["id"].str.strip().isin(labels).sum()
    print(f"errors.csv: llm_prediction is filled in {asked} of {len(sheet)} rows"
          + ("; the others are not in predictions.csv: run errors.py again" if asked < len(sheet) else ""))


def draw(path: Path, run: dict[str, Any], llm: LLM, gold: pd.Series, right: dict[str, np.ndarray]) -> None:
    """Draw who is right where: a bar per gold label, in four parts, one panel per way of answering.

    right: bool (samples,), of the model and of each way in which the LLM answered.
    """
    frequent = set(gold.value_counts().index[:20])
    labels = [label for label in run["task"].get("labels") or [] if label in frequent]
    groups = [*((label, (gold == label).to_numpy()) for label in labels), ("all", np.full(len(gold), True))]
    ways = [who for who in right if who != "model"]
    figure, axes = common.new_figure(1 + 4.5 * len(ways), 1.9 + 0.45 * len(groups), ncols=len(ways), sharey=True,
                                     squeeze=False)
    for panel, who in zip(axes[0], ways, strict=True):
        left = np.zeros(len(groups))
        for (model_is, llm_is), (name, colour) in CELLS.items():
            held = (right["model"] == model_is) & (right[who] == llm_is)
            counts = [int((inside & held).sum()) for _, inside in groups]
            width = [100 * count / inside.sum() for count, (_, inside) in zip(counts, groups, strict=True)]
            panel.barh(range(len(groups)), width, left=left, color=colour, label=name)
            for y, (count, start, size) in enumerate(zip(counts, left, width, strict=True)):
                if size >= 6:  # in a narrower part the number would not fit
                    panel.text(start + size / 2, y, str(count), ha="center", va="center", color="white")
            left += width
        panel.set(xlabel="% of the samples with this gold label", xlim=(0, 100), title=who.replace("llm_", "LLM, "))
    axes[0][0].set_yticks(range(len(groups)), [f"{name} (n = {inside.sum()})" for name, inside in groups])
    axes[0][0].invert_yaxis()
    lines = [run["task"]["title"], f"model: {run['model']}, seed {run['seed']}; LLM: {llm.name}"]
    figure.suptitle("\n".join([*lines, common.figure_note(run, len(gold))]).strip(), fontsize=10)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    common.save_figure(figure, path)


def print_summary(folder: Path, run: dict[str, Any], llm: LLM, metrics: pd.DataFrame, differing: int) -> None:
    """Print the figures, the test and what to keep in mind; llm_metrics.csv has all of it."""
    paired = metrics[metrics["who"] == "paired"].set_index("metric")
    scores = metrics[~metrics["who"].str.startswith("paired")]
    shown = scores.assign(value=scores["value"].map("{:.4f}".format), interval=[
        f"{low:.4f}-{high:.4f}" for low, high in zip(scores["ci_low"], scores["ci_high"], strict=True)])
    print(f"{run['task']['title']}: {llm.name} beside {run['model']}")
    print(shown[["who", "metric", "value", "interval", "n", "unparsed"]].to_string(index=False))
    only_model, only_llm = (int(paired["value"][f"only_{who}_right"]) for who in ("model", "llm"))
    row = paired.loc["difference"]
    print(f"LLM less model: {100 * row['value']:+.1f} points, 95 % interval {100 * row['ci_low']:+.1f} to "
          f"{100 * row['ci_high']:+.1f}; only the model right {only_model}, only the LLM {only_llm}, "
          f"McNemar p {paired['value']['mcnemar_p']:.3g}; {differing} samples in disagreements.csv")
    if only_model + only_llm < 6:
        print("fewer than 6 samples that only one got right: McNemar's p can't fall below 0.05, whoever is better")
    for who, unparsed, n in scores.drop_duplicates("who")[["who", "unparsed", "n"]].itertuples(index=False):
        if unparsed > 0.05 * n:
            print(f"{who}: {unparsed} of {n} answers can't be read and count as wrong; parse_method says why; "
                  "--max-new-tokens, --shots or another --prompt-file may help")
    print("the LLM may have seen public test sets in its training, labels included: its figures may flatter it")
    if run["sample"]:
        print("sample rows: the figures mean nothing")
    print(f"written to {folder}")


if __name__ == "__main__":
    sys.exit(main())
