"""llm_compare.py: the parser, the cache against plain generate and full forward passes, the journal, the figures."""

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score, recall_score

import common
import errors
import llm_compare
from common import UserError, read_csv, write_csv, write_json
from llm_compare import ANSWERS, LLM, UNPARSED, Question, main, parse_label

MRPC = ["not_equivalent", "equivalent"]
SENTIMENT = ["negative", "neutral", "positive"]
NLI = ["entailment", "neutral", "contradiction"]
YES_NO = ["no", "yes"]
YES_NO_CHOICES = {"no": "no", "yes": "yes"}
CASES = [  # labels, what the LLM wrote, label, parse_method
    (MRPC, "equivalent", "equivalent", "exact"),
    (MRPC, " not_equivalent\n", "not_equivalent", "exact"),
    (MRPC, "Equivalent.", "equivalent", "normalised"),
    (MRPC, "**Not equivalent**", "not_equivalent", "normalised"),
    (MRPC, "`not-equivalent`", "not_equivalent", "normalised"),
    (MRPC, "not _ equivalent", "not_equivalent", "normalised"),
    (MRPC, "“equivalent”", "equivalent", "normalised"),
    (MRPC, "equivalent\nBoth say the same.", "equivalent", "first line"),
    (MRPC, "equivalent\n\nInput:\nsentence1: a\nOutput: not_equivalent", "equivalent", "exact"),
    (MRPC, '{"label": "equivalent", "reason": "not the same words"}', "equivalent", "json"),
    (MRPC, "```json\n{'answer': 'Not_Equivalent'", "not_equivalent", "json"),
    (MRPC, "Answer: equivalent", "equivalent", "answer"),
    (MRPC, "**Final answer:** not equivalent", "not_equivalent", "answer"),
    (MRPC, "Let me see.\nThe correct label is: Equivalent.", "equivalent", "answer"),
    (MRPC, "The sentences are not equivalent", "not_equivalent", "word"),
    (MRPC, "The sentences are equivalent", "equivalent", "word"),
    (MRPC, "They are not really equivalent", UNPARSED, "unparsed: negation"),
    (MRPC, "They aren't equivalent", UNPARSED, "unparsed: negation"),
    (MRPC, "The answer is that they can not be called equivalent", UNPARSED, "unparsed: negation"),
    (MRPC, "equivalent or not_equivalent", UNPARSED, "unparsed: more than one label"),
    (MRPC, "Answer: equivalent\nAnswer: not_equivalent", UNPARSED, "unparsed: more than one label"),
    (MRPC, "nonequivalent", UNPARSED, "unparsed: no label"),
    (MRPC, "Are they equivalent?", UNPARSED, "unparsed: question"),
    (MRPC, "", UNPARSED, "unparsed: empty"),
    (MRPC, "\nInput:", UNPARSED, "unparsed: empty"),
    (MRPC, "<think>equivalent is likely</think>\n\nnot_equivalent", "not_equivalent", "exact"),
    (MRPC, "so it is equivalent</think>not_equivalent", "not_equivalent", "exact"),
    (MRPC, "<think>it is equivalent", UNPARSED, "unparsed: still thinking"),
    (SENTIMENT, "The tone is positive.", "positive", "word"),
    (SENTIMENT, "non-negative", UNPARSED, "unparsed: no label"),
    (SENTIMENT, "not positive", UNPARSED, "unparsed: negation"),
    (SENTIMENT, "positive/neutral", UNPARSED, "unparsed: more than one label"),
    (SENTIMENT, "Positive: no", UNPARSED, "unparsed: negation"),
    (SENTIMENT, "negatively positives", UNPARSED, "unparsed: no label"),
    (["entailment", "not_entailment"], "It is a case of not_entailment", "not_entailment", "word"),
    (YES_NO, "No, it is not sarcastic", "no", "word"),
    (YES_NO, "**No**, it isn't", "no", "word"),
    (YES_NO, "Yes, it is not literal", UNPARSED, "unparsed: negation"),
    (YES_NO, "Yes, it is", "yes", "word"),
    (["hate speech", "offensive language", "neither"], "This is Offensive-Language", "offensive language", "word"),
    (["hate speech", "neither"], "neither hate speech nor", UNPARSED, "unparsed: more than one label"),
    (["0", "1"], "1", "1", "exact"),
    (["0", "1"], "1.", "1", "normalised"),
    (["0", "1"], "0.1", UNPARSED, "unparsed: no label"),
    (["-1", "1"], "Answer: -1", "-1", "answer"),
    (["A", "B"], "(B) the second one", "B", "word"),
    (["A", "B"], "A cat is seen", UNPARSED, "unparsed: no label"),
]


@pytest.mark.parametrize(("labels", "text", "label", "method"), CASES)
def test_parser_ladder(labels, text, label, method):
    assert parse_label(text, {name: name for name in labels}) == (label, method)


@given(st.text(max_size=60))
def test_parser_never_fails_and_never_names_a_label_that_is_not_written(text):
    label, method = parse_label(text, {name: name for name in NLI})
    assert (label == UNPARSED) == method.startswith("unparsed: ")
    assert label == UNPARSED or label in text.casefold()


# The cache --------------------------------------------------------------------------------------------------------

def tiny_model(family, **changes):
    import torch
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4, bos_token_id=None, eos_token_id=5,
        pad_token_id=0, **changes)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def tiny_llm(family="Qwen2", new_tokens=6, chat_template=None, **changes):
    tokenizer = common.word_tokenizer([" ".join(f"w{number}" for number in range(115))])
    tokenizer.eos_token, tokenizer.chat_template = "w0", chat_template
    return llm_compare.prepare(LLM("tiny", "1", "fp32", tokenizer, tiny_model(family, **changes), new_tokens))


def random_questions(shared=12, count=9):
    rng = np.random.default_rng(3)
    prefix = rng.integers(6, 120, size=shared).tolist()
    return [Question(f"test-{row}", "", {}, (*prefix, *rng.integers(6, 120, size=rng.integers(3, 20)).tolist()))
            for row in range(count)]


def plain_answer(llm, question, answer_ids):
    """Without a cache of ours: generate from the whole prompt, and a full forward pass per answer."""
    import torch

    ids = torch.tensor([question.input_ids])
    with torch.inference_mode():
        written = llm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        log_probs = []
        for answer in answer_ids:
            logits = llm.model(torch.tensor([[*question.input_ids, *answer]])).logits[0].log_softmax(-1)
            places = range(len(question.input_ids) - 1, len(question.input_ids) - 1 + len(answer))
            log_probs.append(sum(logits[place, token].item() for place, token in zip(places, answer, strict=True)))
    return written[0, ids.shape[1]:].tolist(), log_probs


FAMILIES = {
    "qwen2": ("Qwen2", {}, 12), "llama": ("Llama", {}, 12),
    "window wider than the prompts": ("Mistral", {"sliding_window": 64}, 12),
    "window narrower than the prompts": ("Mistral", {"sliding_window": 8}, 0),
    "window in some layers": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, 0),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_equal_those_without_the_cache(name, monkeypatch):
    family, changes, expected_prefix = FAMILIES[name]
    llm, questions, answer_ids = tiny_llm(family, **changes), random_questions(), [[7], [8, 9, 10], [11, 12]]
    llm.share_prefix(questions)
    written, decode = [], llm.tokenizer.batch_decode
    monkeypatch.setattr(llm.tokenizer, "batch_decode",
                        lambda rows, **flags: written.extend(rows.tolist()) or decode(rows, **flags))
    answers = llm.answer(questions, answer_ids, "both")
    again = llm.answer(questions, answer_ids, "both")
    assert len(llm.prefix) == expected_prefix
    assert answers == again  # the shared cache is left as it was
    assert len({answer["output"] for answer in answers}) > 5
    for question, answer, tokens in zip(questions, answers, written[:len(questions)], strict=True):
        expected, log_probs = plain_answer(llm, question, answer_ids)
        assert tokens[:len(expected)] == expected
        assert set(tokens[len(expected):]) <= {llm.tokenizer.pad_token_id}  # others of the batch wrote on
        assert answer["output"] == llm.tokenizer.decode(expected, skip_special_tokens=True)
        assert answer["log_probs"] == pytest.approx(log_probs, abs=1e-4)


def test_shared_prefix_leaves_two_tokens_of_the_shortest_prompt():
    llm = tiny_llm()
    for prompts, prefix in (([(9, 8, 7, 6), (9, 8, 7, 6, 5), (9, 8, 7, 6, 4, 3)], [9, 8]),
                            ([(9, 8, 7), (8, 8, 7)], []), ([(9, 8, 7, 6, 5)], [9, 8, 7])):
        llm.share_prefix([Question("", "", {}, ids) for ids in prompts])
        assert llm.prefix == prefix


def test_a_sampling_generation_config_is_put_aside():
    import transformers

    model = tiny_model("Qwen2")
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.3, eos_token_id=[4, 5])
    llm = llm_compare.prepare(LLM("tiny", "1", "fp32", tiny_llm().tokenizer, model, 6))
    config = llm.model.generation_config
    assert (config.do_sample, config.repetition_penalty, config.eos_token_id) == (False, None, [4, 5])


def test_batches_are_sorted_and_keep_the_budget():
    questions = random_questions(count=40)
    lengths = [len(question.input_ids) for question in questions]
    batches = llm_compare.plan_batches(questions, 6, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)
    assert all(len(batch) * (lengths[batch[0]] + 6) <= 100 for batch in batches)
    assert all(len(batch) == 1 for batch in llm_compare.plan_batches(questions, 6, 1))


# Prompts ----------------------------------------------------------------------------------------------------------

CHAT = "{% for message in messages %}w1 {{ message.content }}{% endfor %} w2"


@pytest.mark.parametrize("template", [None, CHAT, "[CLS] " + CHAT])
def test_exactly_one_begin_of_text_token(template):
    llm = tiny_llm(chat_template=template)
    llm.tokenizer.bos_token = "[CLS]"  # the tokenizer puts [CLS] in front of a text, as Llama's does its own
    encoded = llm_compare.encode(llm, Question("test-1", "w7 w8", {}))
    bos = llm.tokenizer.bos_token_id
    assert encoded.input_ids.count(bos) == 1
    assert encoded.input_ids[0] == bos
    with pytest.raises(UserError, match=r"the prompt of test-1 holds \[CLS\] 2 times"):
        llm_compare.encode(llm, Question("test-1", "w7 [CLS] w8", {}))


def test_no_begin_of_text_token_where_the_tokenizer_adds_none():
    llm = tiny_llm(chat_template=CHAT)
    assert llm.tokenizer.decode(llm_compare.encode(llm, Question("test-1", "w7", {})).input_ids) == "w1 w7 w2"


def test_a_prompt_longer_than_the_llm_takes_is_refused():
    with pytest.raises(UserError, match="the prompt of test-1 and its answer take 306 tokens, tiny takes 256"):
        llm_compare.encode(tiny_llm(), Question("test-1", "w7 " * 300, {}))


def test_answers_follow_the_prompt_as_the_tokenizer_splits_them():
    question = Question("test-1", "w7", {"w8 w9": "a", "w6": "b"})
    llm = tiny_llm()
    assert [llm.tokenizer.decode(ids) for ids in llm.answer_tokens(question)] == ["w8 w9", "w6"]


def test_an_answer_that_another_begins_with_is_scored_to_its_end():
    question = Question("test-1", "w7", {"w8 w9": "a", "w8": "b", "w6": "c"})
    llm = tiny_llm(chat_template=CHAT)  # its end-of-text token is w0
    assert [llm.tokenizer.decode(ids) for ids in llm.answer_tokens(question)] == ["w8 w9 w0", "w8 w0", "w6 w0"]


def byte_tokenizer():
    """A token per byte: a space is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate([*alphabet, "<end>"])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")


@pytest.mark.parametrize(("template", "written"), [(None, [" no", " yes"]), (CHAT, ["no", "yes"])])
def test_a_plain_prompt_is_answered_after_a_space_and_a_chat_without(template, written):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    answers = LLM("tiny", "1", "fp32", tokenizer, None, 6).answer_tokens(Question("test-1", "Output:", YES_NO_CHOICES))
    assert [tokenizer.decode(ids) for ids in answers] == written


def test_an_answer_is_tokenised_with_its_prompt_where_a_text_begins_with_a_mark_of_its_own():
    """As SentencePiece puts ▁ in front of a text: after the prompt there is none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate("▁:noyes")}, []))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.chat_template = CHAT
    assert tokenizer.convert_ids_to_tokens(tokenizer("no")["input_ids"]) == ["▁", "n", "o"]
    answers = LLM("tiny", "1", "fp32", tokenizer, None, 6).answer_tokens(Question("test-1", "yes:", YES_NO_CHOICES))
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in answers] == [["n", "o"], ["y", "e", "s"]]


# A run's folder ---------------------------------------------------------------------------------------------------

def make_run(runs_dir, rows=14, **task):
    """A finished --sample run of mrpc, with `rows` made-up predictions; returns the folder."""
    folder = runs_dir / "mrpc" / "sample" / "seed42"
    write_json(folder / "run.json", {
        "finished": "2025-01-01", "dataset": "mrpc", "model": "sample", "seed": 42, "sample": True,
        "task": {**common.catalog()["mrpc"], **task}, "data": {"rows": {"test": rows}}})
    rng = np.random.default_rng(5)
    gold, predicted = (rng.choice(MRPC, size=rows) for _ in range(2))
    texts = [" ".join(f"word{n}" for n in rng.integers(0, 30, size=rng.integers(2, 9))) for _ in range(rows)]
    write_csv(folder / "predictions.csv", pd.DataFrame({
        "id": [f"test-{row:06d}" for row in range(rows)], "split": "test", "sentence1": texts,
        "sentence2": [f"{text} {row}" for row, text in enumerate(texts)], "gold": gold, "predicted": predicted,
        "correct": gold == predicted, "confidence": 0.5, "gold_confidence": 0.5, "margin": 0.0}))
    write_csv(folder / "train_texts.csv", pd.DataFrame({
        "id": [f"train-{row}" for row in range(9)], "sentence1": [f"first {row}" for row in range(9)],
        "sentence2": [f"second {row}" for row in range(9)], "label": ["equivalent"] * 7 + ["not_equivalent"] * 2}))
    return folder


@pytest.fixture
def compare(tmp_path):
    """Runs llm_compare.py on a run of 14 samples, in batches of two or so; returns the folder."""
    folder = make_run(tmp_path)

    def run(*flags):
        assert main(["--run", str(folder), "--batch-tokens", "150", *flags]) == 0
        return folder

    return run


def test_sample_run_writes_what_the_design_says(compare, capsys):
    folder = compare("--shots", "3")
    table = read_csv(folder / "llm_predictions.csv", ("llm_confidence", "label_mass"))
    predictions = common.read_predictions(folder)
    assert list(table.columns) == llm_compare.PREDICTIONS_HEADER
    assert table[["id", "gold", "predicted"]].equals(predictions[["id", "gold", "predicted"]])
    assert set(table["llm_label"]) <= set(MRPC)
    assert table["llm_confidence"].between(0.5, 1).all()
    assert table["label_mass"].between(0, 1).all()
    assert table["prompt"].nunique() == 14
    assert all(text in prompt for text, prompt in zip(predictions["sentence1"], table["prompt"], strict=True))
    assert table["prompt"][0].count("Input:") == 4
    assert sorted(re.findall("Output: (.*)", table["prompt"][0])) == ["equivalent", "equivalent", "not_equivalent"]
    metrics = read_csv(folder / "llm_metrics.csv", ("value", "n"))
    assert list(metrics.columns) == llm_compare.METRICS_HEADER
    assert list(dict.fromkeys(metrics["who"])) == [
        "model", "llm_generated", "llm_likelihood", "paired", "paired_likelihood"]
    value = metrics.set_index(["who", "metric"])["value"]
    assert value["model", "accuracy"] == pytest.approx((predictions["gold"] == predictions["predicted"]).mean())
    assert value["llm_likelihood", "accuracy"] == pytest.approx((table["gold"] == table["llm_label"]).mean())
    assert value["llm_generated", "accuracy"] == (table["gold"] == table["llm_generated_label"]).mean()
    cells = value["paired"][["both_right", "only_model_right", "only_llm_right", "neither_right"]]
    assert cells.sum() == 14
    differences = read_csv(folder / "disagreements.csv")
    assert set(differences["id"]) == set(table["id"][(table["llm_label"] != table["predicted"])
                                                    | (table["llm_generated_label"] != table["predicted"])])
    for way, column in (("generated", "llm_generated_label"), ("likelihood", "llm_label")):
        right = {(True, True): "both right", (True, False): "only the model right",
                 (False, True): "only the LLM right", (False, False): "neither right"}
        assert differences[f"who_is_right_{way}"].tolist() == [
            right[pair] for pair in zip(differences["predicted"] == differences["gold"],
                                        differences[column] == differences["gold"], strict=True)]
    assert (folder / "llm_compare.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert out.count("--- prompt") == 2
    assert table["prompt"][0] in out
    assert "may have seen public test sets" in out
    assert "sample rows: the figures mean nothing" in out


@pytest.mark.parametrize("mode", ["generate", "likelihood"])
def test_one_way_of_answering_alone(compare, mode):
    both = read_csv(compare() / "llm_predictions.csv")
    alone = read_csv(compare("--mode", mode) / "llm_predictions.csv")
    same = "llm_generated_label" if mode == "generate" else "llm_confidence"
    empty = "llm_confidence" if mode == "generate" else "raw_output"
    assert (alone[same] == both[same]).all()
    assert (alone[empty] == "").all()


def test_max_samples_are_drawn_alike_and_stratified(compare):
    folder = compare("--max-samples", "6")
    first = read_csv(folder / "llm_predictions.csv").head(6)
    gold = common.read_predictions(folder)["gold"]
    again = read_csv(compare("--max-samples", "6") / "llm_predictions.csv").head(6)
    assert first["id"].tolist() == again["id"].tolist()
    assert (first["gold"] == MRPC[0]).sum() == round(6 * (gold == MRPC[0]).mean())


def test_the_sheet_is_asked_about_besides_and_does_not_count(compare):
    """All of errors.csv is wrong: among the counted samples it would flatter the LLM beside the model."""
    assert errors.main(["--run", str(compare("--max-samples", "3"))]) == 0
    folder = compare("--max-samples", "3")
    asked = read_csv(folder / "llm_predictions.csv")["id"].tolist()
    sheet = llm_compare.read_sheet(folder / "errors.csv")
    assert set(asked[3:]) == set(sheet["id"]) - set(asked[:3]) != set()
    assert (sheet["llm_prediction"] != "").all()
    metrics = read_csv(folder / "llm_metrics.csv")
    assert set(metrics.loc[metrics["metric"] == "accuracy", "n"]) == {"3"}
    assert set(read_csv(folder / "disagreements.csv")["id"]) <= set(asked[:3])
    assert common.read_json(folder / "run.json")["llm"]["samples"] == 3


def count_asked(monkeypatch, llm_class=LLM):
    """The sample ids of each batch that is asked from now on."""
    asked, answer = [], llm_class.answer

    def counting(llm, questions, *rest):
        asked.append([question.sample_id for question in questions])
        return answer(llm, questions, *rest)

    monkeypatch.setattr(llm_class, "answer", counting)
    return asked


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.71, 0.99])
def test_a_killed_run_goes_on_to_the_same_files(compare, monkeypatch, kept):
    folder = compare()
    names = ("llm_predictions.csv", "llm_metrics.csv", "disagreements.csv")
    whole = {name: (folder / name).read_bytes() for name in names}
    journal = folder / "llm_journal.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content[:int(kept * len(content))])  # as a kill in the middle of a write leaves it
    asked = count_asked(monkeypatch)
    compare()
    assert {name: (folder / name).read_bytes() for name in names} == whole
    complete = content[:int(kept * len(content))].count(b"\n")
    assert 14 - complete <= sum(map(len, asked)) <= 14 - complete + 3  # the batch that was cut, once more
    compare()
    assert len(llm_compare.read_journal(folder)) == 14


def test_journal_is_not_used_for_another_question(compare, monkeypatch, tmp_path):
    compare()
    asked = count_asked(monkeypatch)
    compare()
    assert asked == []
    for flags in (["--max-new-tokens", "3"], ["--mode", "generate"], ["--shots", "2"], ["--overwrite"]):
        compare(*flags)
        assert sum(map(len, asked)) == 14
        asked.clear()


def start(folder, pause=0.3, patience=60, **environment):
    """llm_compare.py on `folder` in a process of its own, which takes `pause` seconds more for a batch."""
    code = f"""
import sys, time, llm_compare
llm_compare.BEAT_S, llm_compare.PATIENCE_S, answer = 1, {patience}, llm_compare.LLM.answer
llm_compare.LLM.answer = lambda *rest: time.sleep({pause}) or answer(*rest)
sys.exit(llm_compare.main(sys.argv[1:]))
"""
    return subprocess.Popen([sys.executable, "-c", code, "--run", folder, "--batch-tokens", "150"], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment})


def wait_for_lines(path, count):
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, f"{path} did not get {count} lines"
        time.sleep(0.05)


def test_a_run_that_is_killed_goes_on_to_the_same_files(compare):
    folder = compare()
    names = ("llm_predictions.csv", "llm_metrics.csv", "disagreements.csv")
    whole = {name: (folder / name).read_bytes() for name in names}
    for name in (*names, "llm_journal.jsonl"):
        (folder / name).unlink()
    process = start(folder, pause=1)
    wait_for_lines(folder / "llm_journal.jsonl", 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "llm_predictions.csv").exists()
    assert 3 <= len(llm_compare.read_journal(folder)) < 14
    compare()
    assert {name: (folder / name).read_bytes() for name in names} == whole


def test_two_processes_end_with_the_files_of_one(compare):
    folder = compare()
    whole = (folder / "llm_predictions.csv").read_bytes()
    for name in ("llm_predictions.csv", "llm_journal.jsonl"):
        (folder / name).unlink()
    both = [start(folder, RANK=rank, WORLD_SIZE="2") for rank in "01"]
    (first, error), (second, _) = (process.communicate(timeout=120) for process in both)
    assert [process.returncode for process in both] == [0, 0], error
    assert "LLM less model" in first
    assert second == ""  # one of the two speaks
    assert (folder / "llm_predictions.csv").read_bytes() == whole
    shares = [len((folder / name).read_text().splitlines()) for name in ("llm_journal.jsonl", "llm_journal.1.jsonl")]
    assert sum(shares) == 14
    assert min(shares) > 4


def test_the_first_process_does_not_wait_for_one_that_died(compare):
    folder = compare()
    whole = (folder / "llm_predictions.csv").read_bytes()
    for name in ("llm_predictions.csv", "llm_journal.jsonl"):
        (folder / name).unlink()
    first, second = (start(folder, pause=1, patience=4, RANK=rank, WORLD_SIZE="2") for rank in "01")
    wait_for_lines(folder / "llm_journal.1.jsonl", 2)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    _, error = first.communicate(timeout=120)
    assert first.returncode == 1
    assert error.splitlines()[-1].endswith("-c: no sign of life for 4 seconds from process 1, whose answers are not "
                                           "all there; the others are kept: run the same command again")
    assert not (folder / "llm_predictions.csv").exists()
    assert 9 <= len(llm_compare.read_journal(folder)) < 14
    compare()  # a single process takes over what both have answered
    assert (folder / "llm_predictions.csv").read_bytes() == whole


def test_several_processes_share_the_samples(compare, monkeypatch):
    folder = compare()
    alone = (folder / "llm_predictions.csv").read_bytes()
    (folder / "llm_journal.jsonl").unlink()
    (folder / "llm_predictions.csv").unlink()
    asked = count_asked(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        compare()
    assert sorted(name for batch in asked for name in batch) == [f"test-{row:06d}" for row in range(14)]
    assert (folder / "llm_predictions.csv").read_bytes() == alone
    assert len((folder / "llm_journal.1.jsonl").read_text().splitlines()) in range(5, 10)


@pytest.mark.parametrize(("flags", "kept"), [(["--mode", "both"], 0), (["--mode", "likelihood"], 0), ([], 5)])
def test_the_bar_counts_the_tokens_that_are_left(compare, monkeypatch, flags, kept):
    folder, seen = compare(*flags), []
    monkeypatch.setattr(common, "progress_bar", lambda total, *_rest, **_more: seen.append([total]) or SimpleNamespace(
        update=seen[-1].append, close=lambda: None))
    lines = (folder / "llm_journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "llm_journal.jsonl").write_text("".join(lines[:kept]))
    answer = LLM.answer

    def once_too_large(*question):
        monkeypatch.setattr(LLM, "answer", answer)
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(LLM, "answer", once_too_large)
    compare(*flags)
    [[total, *updates]] = seen
    assert len(updates) > 4
    assert total == sum(updates)


def test_out_of_memory_halves_the_batches(compare, monkeypatch, capsys):
    folder = compare("--batch-tokens", "1000")
    whole = read_csv(folder / "llm_predictions.csv", ("llm_confidence",))
    answer = LLM.answer

    def scarce(llm, questions, *rest):
        if len(questions) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return answer(llm, questions, *rest)

    monkeypatch.setattr(LLM, "answer", scarce)
    compare("--overwrite", "--batch-tokens", "1000")
    halved = read_csv(folder / "llm_predictions.csv", ("llm_confidence",))
    assert halved["raw_output"].equals(whole["raw_output"])
    assert halved["llm_confidence"].to_numpy() == pytest.approx(whole["llm_confidence"].to_numpy(), abs=1e-5)
    assert "out of memory with 14 examples in a batch" in capsys.readouterr().out


def test_out_of_memory_with_one_sample_and_other_errors():
    from collections import deque

    with pytest.raises(UserError, match="out of memory with a single example in the batch; take less"):
        common.halve_batches(RuntimeError("CUDA out of memory. Tried"), [3], deque(), "less")
    with pytest.raises(RuntimeError, match="sizes do not match"):
        common.halve_batches(RuntimeError("sizes do not match"), [3, 4], deque(), "less")


def test_error_sheet_gets_the_label_and_keeps_the_rest(compare, capsys):
    folder = compare()
    labels = read_csv(folder / "llm_predictions.csv").set_index("id")["llm_label"]
    ids = ["test-000004", "test-000002", "train-9"]
    sheet = pd.DataFrame({"id": ids, "input": ["a", "=b", "c"], "cause": ["irony", "", "-x"], "mine": ["1", "2", "3"],
                          "llm_prediction": ["", "old", "old"]})
    write_csv(folder / "errors.csv", sheet)
    compare()
    after = read_csv(folder / "errors.csv")
    assert after[list(sheet.columns)[:-1]].equals(sheet[list(sheet.columns)[:-1]].astype(object))
    assert after["llm_prediction"].tolist() == [labels[ids[0]], labels[ids[1]], ""]
    assert "llm_prediction is filled in 2 of 3 rows; the others are not in predictions.csv" in capsys.readouterr().out


# Figures ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 9), (9, 3), (10, 10), (412, 355)])
def test_mcnemar_equals_the_binomial_test(first, second):
    expected = binomtest(min(first, second), first + second, 0.5).pvalue if first + second else 1.0
    assert llm_compare.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_likelihoods_become_the_likeliest_label_its_share_of_their_mass_and_the_mass(tmp_path):
    form = ANSWERS["classification"]({"key": "toy", "kind": "classification", "labels": SENTIMENT})
    predictions = pd.DataFrame({"id": ["test-1"], "gold": ["negative"], "predicted": ["positive"]})
    question = Question("test-1", "prompt", {label: label for label in SENTIMENT})
    records = [{"output": None, "log_probs": np.log([0.1, 0.3, 0.2]).tolist()}]
    row = llm_compare.write_predictions(tmp_path, form, predictions, [question], records).iloc[0]
    assert row["llm_label"] == "neutral"
    assert [row["llm_confidence"], row["label_mass"]] == pytest.approx([0.5, 0.6])


def test_an_interval_is_the_middle_95_percent():
    assert llm_compare.interval(np.arange(1001)) == {"ci_low": 25, "ci_high": 975}


def test_paired_rows_by_hand():
    model = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    llm = np.array([1, 1, 0, 0, 1, 1, 1, 1, 0, 0], dtype=bool)
    rows = {row["metric"]: row for row in llm_compare.paired_rows(model, llm, model == llm)}
    values = {name: row["value"] for name, row in rows.items()}
    assert values == {"agreement": 0.4, "both_right": 2, "only_model_right": 2, "only_llm_right": 4,
                      "neither_right": 2, "mcnemar_p": pytest.approx(0.6875), "difference": pytest.approx(0.2)}
    picks = np.random.default_rng(0).integers(0, 10, size=(20_000, 10))
    by_sample = np.percentile((llm.astype(int) - model)[picks].mean(axis=1), [2.5, 97.5])
    assert [rows["difference"]["ci_low"], rows["difference"]["ci_high"]] == pytest.approx(by_sample, abs=0.101)


def test_unparsed_is_wrong_in_every_figure():
    task = {"kind": "classification", "labels": SENTIMENT, "positive": "positive",
            "metrics": ["macro_f1", "macro_recall", "auroc", "weighted_f1", "f1", "accuracy"]}
    gold = pd.Series(["positive", "negative", "neutral", "positive", "negative", "neutral"] * 5)
    answers = pd.Series(["positive", "negative", "neutral", UNPARSED, "positive", UNPARSED] * 5)
    form = ANSWERS["classification"](task)
    rows = {row["metric"]: row for row in llm_compare.score_rows(form, form.judge(gold, answers), 10)}
    expected = {"macro_f1": f1_score(gold, answers, labels=SENTIMENT, average="macro"),
                "macro_recall": recall_score(gold, answers, labels=SENTIMENT, average="macro"),
                "weighted_f1": f1_score(gold, answers, labels=SENTIMENT, average="weighted"),
                "f1": f1_score(gold, answers, labels=["positive"], average="macro"), "accuracy": 0.5,
                "accuracy_parsed_only": 0.75, "accuracy_unparsed_right": 5 / 6}
    assert {name: row["value"] for name, row in rows.items()} == pytest.approx(expected)
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows.values())
    assert rows["accuracy_parsed_only"]["n"] == 20


# The other forms of answer ----------------------------------------------------------------------------------------

TASKS = {
    "multiple_choice": {"text": ["question"], "options": ["one", "two", "three"], "labels": ["1", "2", "3"]},
    "regression": {"scale": [-2.0, 2.0], "steps": ["rude", "plain", "kind"]},
    "multilabel": {"labels": ["offensive", "lewd", "not_aimed"]}, "span": {},
    "answers": {"labels": ["yes", "traffic light"]}}
METRICS = {"multiple_choice": ["accuracy"], "regression": ["pearson", "mse"], "multilabel": ["micro_f1", "exact_match"],
           "span": ["exact", "f1", "no_ans_f1"], "answers": ["accuracy"]}
OPTIONS = {"id": "test-1", "question": "Who?", "one": "the dog", "two": "a cat", "three": "the dog"}


def form_of(kind):
    return ANSWERS[kind]({"key": kind, "kind": kind, "text": ["text"], "metrics": METRICS[kind], **TASKS[kind]})


@pytest.mark.parametrize(("kind", "text", "label", "method"), [
    ("regression", "-1.5", "-1.5", "exact"),
    ("regression", "−1", "-1", "number"),
    ("regression", "I would say 1.", "1", "number"),
    ("regression", "Answer: 0.25", "0.25", "exact"),
    ("regression", "1 out of 2", UNPARSED, "unparsed: more than one number"),
    ("regression", "3", UNPARSED, "unparsed: off the scale"),
    ("regression", "quite polite", UNPARSED, "unparsed: no number"),
    ("regression", "", UNPARSED, "unparsed: empty"),
    ("multilabel", "lewd, Offensive", "offensive | lewd", "list"),
    ("multilabel", "None.", "none", "list"),
    ("multilabel", '["not aimed"]', "not_aimed", "list"),
    ("multilabel", "Answer: lewd; not-aimed", "lewd | not_aimed", "list"),
    ("multilabel", "none, lewd", UNPARSED, "unparsed: not a list of labels"),
    ("multilabel", "It is lewd", UNPARSED, "unparsed: not a list of labels"),
    ("multilabel", "not lewd", UNPARSED, "unparsed: not a list of labels"),
    ("span", '"The old bridge"\nas the text says', "The old bridge", "text"),
    ("span", "Unanswerable.", "", "no answer"),
    ("span", "Answer: 1702", "1702", "text"),
    ("span", "<think>1702", UNPARSED, "unparsed: still thinking"),
    ("answers", "Traffic light.", "traffic light", "normalised"),
    ("answers", "a bus", "a bus", "text"),
    ("answers", " ", UNPARSED, "unparsed: empty"),
])
def test_reading_the_other_forms(kind, text, label, method):
    assert form_of(kind).parse(text, {}) == (label, method)


def test_options_are_rotated_by_the_id():
    form, rows = form_of("multiple_choice"), [{**OPTIONS, "id": f"test-{number}"} for number in range(300)]
    shown = [form.input_text(row) for row in rows]
    assert set(shown) == {"Who?\nA. the dog\nB. a cat\nC. the dog", "Who?\nA. a cat\nB. the dog\nC. the dog",
                          "Who?\nA. the dog\nB. the dog\nC. a cat"}
    first = [form.choices(row)["A"] for row in rows]
    assert all(70 < first.count(label) < 130 for label in "123")
    for row in rows:
        letter = next(letter for letter, label in form.choices(row).items() if label == "2")
        assert f"{letter}. a cat" in form.input_text(row)
        assert form.example_answer({**row, "label": "2"}) == letter
        assert form.parse(f"{letter}.", row) == ("2", "normalised")
        assert form.parse("a cat", row) == ("2", "exact")
        assert form.parse("the dog", row) == (UNPARSED, "unparsed: no label")  # two options say so
        assert form.parse(f"{letter}) a cat", row) == ("2", "word")


@pytest.mark.parametrize(("kind", "label", "written"), [
    ("regression", "-0.123", "-0.12"), ("multilabel", "lewd | not_aimed", "lewd, not_aimed"),
    ("multilabel", "none", "none"), ("span", "1702 | in 1702", "1702"), ("span", "", "unanswerable"),
    ("answers", "yes", "yes")])
def test_examples_are_read_back_as_they_are_written(kind, label, written):
    form = form_of(kind)
    assert form.example_answer({"label": label}) == written
    read = form.parse(written, {})[0]
    assert form.judge(pd.Series([label]), pd.Series([read]))["correct"].tolist() == [True]


@pytest.mark.parametrize(("kind", "gold", "answers", "expected"), [
    ("regression", ["-2", "0", "1.5", "0"], ["-1.5", "0.5", "0", UNPARSED], {"right_step": 0.5, "mse": 2.75 / 4}),
    ("multilabel", ["lewd", "none", "none", "offensive"], ["lewd", "none", UNPARSED, UNPARSED], {"exact_match": 0.5}),
    ("span", ["a dog | cat", "", "", "x y"], ["The dog", "", UNPARSED, "y z"],
     {"exact": 0.5, "f1": (1 + 1 + 0 + 0.5) / 4, "no_ans_f1": 0.5}),
    ("answers", ["yes", "a bus", "yes"], ["yes", "bus", UNPARSED], {"accuracy": 1 / 3}),
    ("multiple_choice", ["1", "2", "3", "3"], ["1", "1", UNPARSED, "3"], {"accuracy": 0.5}),
])
def test_judging_the_other_forms(kind, gold, answers, expected):
    form, unparsed = form_of(kind), answers.count(UNPARSED)
    judged = form.judge(pd.Series(gold), pd.Series(answers))
    assert not judged["correct"][[answer == UNPARSED for answer in answers]].any()
    rows = {row["metric"]: row for row in llm_compare.score_rows(form, judged, unparsed)}
    assert next(iter(rows)) == form.right_metric
    assert {name: rows[name]["value"] for name in expected} == pytest.approx(expected)
    assert [rows[name]["n"] for name in expected] == [2 if name == "no_ans_f1" else len(gold) for name in expected]
    assert all(row["ci_low"] <= row["value"] + 1e-9 and row["value"] <= row["ci_high"] + 1e-9 for row in rows.values())


def test_likelihood_of_what_can_not_be_listed_is_refused(tmp_path, capsys):
    folder = make_run(tmp_path, kind="span")
    assert "--mode likelihood takes labels that can be listed; mrpc has none" in refused(
        capsys, "--run", str(folder), "--mode", "likelihood")
    folder = make_gqa_run(tmp_path)
    assert "--mode likelihood takes labels that can be listed; gqa has none" in refused(
        capsys, "--run", str(folder), "--mode", "likelihood")


# Questions about images -------------------------------------------------------------------------------------------

IMAGES = ["n317", "n306", "n305", "n317", "n306", "n302"]


def make_gqa_run(runs_dir, **task):
    """A finished --sample run of gqa, with made-up predictions on six questions; returns the folder."""
    folder = runs_dir / "gqa" / "sample" / "seed42"
    write_json(folder / "run.json", {
        "finished": "2025-01-01", "dataset": "gqa", "model": "sample", "seed": 42, "sample": True,
        "args": {"sample": True, "max_images": None}, "data": {"rows": {"test": 6}},
        "task": {**common.catalog()["gqa"], "labels": ["yes", "no", "red"], **task}})
    write_csv(folder / "predictions.csv", pd.DataFrame({
        "id": [f"testdev-{row}" for row in range(6)], "split": "testdev",
        "question": ["Is there a red circle?"] * 3 + ["Which color is the thing on the left side?"] * 3,
        "imageId": IMAGES, "gold": ["yes", "no"] * 3, "predicted": "yes", "correct": [True, False] * 3,
        "confidence": 0.5, "gold_confidence": 0.5, "margin": 0.0}))
    write_csv(folder / "train_texts.csv", pd.DataFrame({
        "id": ["train-0"], "question": ["Is it red?"], "imageId": ["n1"], "label": ["yes"]}))
    return folder


def plain_vision_answer(llm, image, text):
    """As the documentation of transformers does it: one image, one question."""
    import torch

    message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}
    inputs = llm.processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"add_special_tokens": False})
    with torch.inference_mode():
        written = llm.model.generate(**inputs)
    return llm.tokenizer.decode(written[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)


def test_questions_about_images_are_asked_with_their_images(tmp_path, monkeypatch):
    folder, loaded = make_gqa_run(tmp_path), []
    load_llm = llm_compare.load_llm
    monkeypatch.setattr(llm_compare, "load_llm", lambda *rest: loaded.append(load_llm(*rest)) or loaded[-1])
    assert main(["--run", str(folder), "--batch-tokens", "300"]) == 0
    table, llm = read_csv(folder / "llm_predictions.csv"), loaded[0]
    for prompt, question, name, output in zip(
            table["prompt"], common.read_predictions(folder)["question"], IMAGES, table["raw_output"], strict=True):
        assert prompt.startswith("user: <image>\nAnswer the question about the image with one word or two.\n")
        assert prompt.endswith(f"Input:\n{question}\nOutput:\nassistant:")
        text = prompt.removeprefix("user: <image>\n").removesuffix("\nassistant:")
        assert plain_vision_answer(llm, llm.images[name], text) == output
    assert table["prompt"].nunique() == 2
    assert table["raw_output"].nunique() > 3  # the same question about another image has another answer
    assert set(table["parse_method"]) == {"text"}
    assert llm.counts == dict.fromkeys(set(IMAGES), (32 // 8) ** 2 - 1)  # one of the 16 stands in the text


def test_a_journal_of_images_is_taken_up_again(tmp_path, monkeypatch):
    folder, flags = make_gqa_run(tmp_path), ["--batch-tokens", "150"]
    assert main(["--run", str(folder), *flags]) == 0
    whole = (folder / "llm_predictions.csv").read_bytes()
    journal = folder / "llm_journal.jsonl"
    lines = journal.read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == 6
    journal.write_text("\n".join(lines[:2]) + "\n")
    asked = count_asked(monkeypatch, llm_compare.VisionLLM)
    assert main(["--run", str(folder), *flags]) == 0
    assert 4 <= sum(map(len, asked)) < 6
    assert (folder / "llm_predictions.csv").read_bytes() == whole


def test_a_vision_language_model_in_a_local_folder(tmp_path, monkeypatch, capsys):
    folder, questions = make_gqa_run(tmp_path), [Question("", "Which color is the thing ?", {})]
    llm = llm_compare.build_sample_llm(llm_compare.VisionLLM, questions, 8)
    llm.model.save_pretrained(tmp_path / "vlm")
    llm.processor.save_pretrained(tmp_path / "vlm")
    flags = ["--run", str(folder), "--llm", str(tmp_path / "vlm"), "--precision", "fp32"]
    assert main(flags) == 0
    assert read_csv(folder / "llm_predictions.csv")["prompt"][0].startswith("user: <image>\nAnswer the question")
    monkeypatch.setattr(llm_compare, "free_bytes", lambda device: 12_345)
    assert f"needs {4 * llm.model.num_parameters():,} bytes in torch.float32; 12,345 are" in refused(capsys, *flags)
    monkeypatch.undo()
    (tmp_path / "vlm" / "chat_template.jinja").unlink()
    assert "vlm has no chat template, so that nothing says where in a prompt the image goes" in refused(capsys, *flags)


def test_what_can_not_see_is_refused(tmp_path, capsys):
    folder = make_gqa_run(tmp_path)
    tiny_model("Qwen2").config.save_pretrained(tmp_path / "llm")
    error = refused(capsys, "--run", str(folder), "--llm", str(tmp_path / "llm"))
    assert error.endswith("is a qwen2 model; this task takes a vision-language model, such as --llm "
                          "Qwen/Qwen2-VL-2B-Instruct\n")
    assert error.count("\n") == 1
    error = refused(capsys, "--run", str(folder), "--shots", "1")
    assert "--shots shows texts, and an example of gqa would need its image: leave it out" in error


def test_a_package_that_a_processor_needs_is_named(tmp_path, monkeypatch, capsys):
    import transformers

    def needs_torchvision(*_args, **_kwargs):
        raise ImportError("\nXProcessor requires the Torchvision library but it was not found. Check out\nmore")

    llm = llm_compare.build_sample_llm(llm_compare.VisionLLM, [Question("", "a", {})], 8)
    llm.model.save_pretrained(tmp_path / "vlm")
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", needs_torchvision)
    error = refused(capsys, "--run", str(make_gqa_run(tmp_path)), "--llm", str(tmp_path / "vlm"))
    assert "needs a package that pip has not installed: XProcessor requires the Torchvision library" in error


# What users meet --------------------------------------------------------------------------------------------------

def refused(capsys, *flags):
    assert main(list(flags)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("text", "flags", "message"), [
    ("Is it the same?", [], "prompt.txt has no {input}, so no prompt would hold the sample; write {input} where"),
    ("{input}", ["--shots", "2"], "prompt.txt has no {examples}, so no prompt would hold the examples of --shots"),
    (None, [], "prompt.txt can't be read"),
])
def test_prompt_file_without_a_placeholder_is_refused(tmp_path, capsys, text, flags, message):
    if text is not None:
        (tmp_path / "prompt.txt").write_text(text)
    error = refused(capsys, "--run", str(make_run(tmp_path)), "--prompt-file", str(tmp_path / "prompt.txt"), *flags)
    assert message in error
    assert error.count("\n") == 1


def test_prompt_file_takes_the_place_of_the_prompt(compare, tmp_path):
    (tmp_path / "prompt.txt").write_text('{"text": "{input}"} {instruction} {other}\n')
    table = read_csv(compare("--prompt-file", str(tmp_path / "prompt.txt")) / "llm_predictions.csv")
    assert table["prompt"][0].startswith('user: {"text": "sentence1: word')
    assert table["prompt"][0].endswith("nothing else. {other}\nassistant:")


def test_a_text_with_braces_stays_as_it_is():
    assert llm_compare.fill("{input} {answer}", input="{answer} {x}", answer="b") == "{answer} {x} b"


@pytest.mark.parametrize("chat", [True, False])
def test_an_llm_in_a_local_folder(compare, tmp_path, chat, capsys):
    llm = tiny_llm("Llama", chat_template=CHAT if chat else None)
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    folder = compare("--llm", str(tmp_path / "llm"), "--precision", "fp32")
    assert ("its chat template" if chat else "plain text") in capsys.readouterr().out
    assert read_csv(folder / "llm_predictions.csv")["prompt"][0].startswith("w1 Decide" if chat else "Decide")


def test_an_llm_that_does_not_fit_is_refused_before_loading(tmp_path, monkeypatch, capsys):
    tiny_model("Qwen2").config.save_pretrained(tmp_path / "llm")  # no weights: loading would fail
    monkeypatch.setattr(llm_compare, "free_bytes", lambda device: 12_345)
    flags = ["--run", str(make_run(tmp_path)), "--llm", str(tmp_path / "llm"), "--precision", "fp32"]
    parameters = tiny_model("Qwen2").num_parameters()
    assert f"{parameters:,} parameters and needs {4 * parameters:,} bytes in torch.float32; 12,345 are free" in refused(
        capsys, *flags)


def test_a_model_that_is_no_causal_llm_is_refused(tmp_path, capsys):
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path / "llm")
    flags = ["--run", str(make_run(tmp_path)), "--llm", str(tmp_path / "llm")]
    assert "is a t5 model; this task takes a causal language model, such as --llm Qwen/Qwen2.5" in refused(
        capsys, *flags)


TOKEN = "hf_" + "SecretSecretSecret"
GATED = """{name} is gated, and {reason}
1. accept its licence at {hub}/{name}
2. `hf auth login`, or set HF_TOKEN, with the account that accepted it
3. or take an open one: --llm Qwen/Qwen2.5-1.5B-Instruct"""
REFUSALS = {  # name of the model: status, error code and message that the hub gives, what the user reads
    "gated-401": (401, "GatedRepo", "Access is restricted.", GATED.replace("{reason}", "no valid token was sent")),
    "gated-403": (403, "GatedRepo", "Access is restricted.", GATED.replace("{reason}", "access was not granted")),
    "unknown": (401, "RepoNotFound", "Invalid username or password.",
                "there is no model {name} on {hub}, and no such folder; a private one needs `hf auth login`"),
    "expired": (401, "", "Invalid credentials in Authorization header", "{hub} refused {name}: the token that was sent "
                "is not valid; `hf auth login`, or set or unset HF_TOKEN"),
    "narrow": (403, "", "Please enable access to public gated repositories", "{hub} refused {name}: the token that was "
               "sent may not read it; `hf auth login`, or set or unset HF_TOKEN"),
}


def ask_from_hub(hub, folder, names, cache, **environment):
    """llm_compare.py in a process of its own, where the hub's address is read: (exit code, stderr) per model."""
    code = ("import contextlib, io, json, sys, llm_compare\nfor name in sys.argv[2:]:\n"
            "    with contextlib.redirect_stderr(io.StringIO()) as err:\n"
            "        code = llm_compare.main(['--run', sys.argv[1], '--llm', name, '--max-samples', '4'])\n"
            "    print('RESULT', json.dumps([code, err.getvalue()]))")
    done = subprocess.run(
        [sys.executable, "-c", code, folder, *names], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", **environment})
    assert TOKEN not in done.stdout + done.stderr
    return [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line.startswith("RESULT ")]


def test_refusals_of_the_hub_are_told_apart(tmp_path):
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            answers = [REFUSALS[name] for name in REFUSALS if f"/our/{name}/" in self.path]
            status, code, message, _ = answers[0] if answers else (200, "", "", "")  # the hub's own page
            self.send_response(status)
            for name, value in {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = f"http://127.0.0.1:{server.server_port}"
        results = ask_from_hub(hub, make_run(tmp_path), [f"our/{name}" for name in REFUSALS], tmp_path, HF_TOKEN=TOKEN)
        server.shutdown()
    for (code, error), (name, (*_, message)) in zip(results, REFUSALS.items(), strict=True):
        assert code == 2
        assert error == f"-c: {message.format(name='our/' + name, hub=hub)}\n"


def test_a_gated_llm_is_asked_once_a_token_is_sent(shared_dir, tmp_path):
    repository, folder = tmp_path / "root/models/our/llm", make_run(tmp_path)
    llm = tiny_llm("Llama")
    llm.model.save_pretrained(repository)
    llm.tokenizer.save_pretrained(repository)
    (repository / ".gated").touch()
    server = subprocess.Popen([sys.executable, shared_dir / "hub/hub.py", tmp_path / "root", "--port", "0"],
                              stdout=subprocess.PIPE, text=True)
    try:
        hub = server.stdout.readline().strip()
        [(code, error)] = ask_from_hub(hub, folder, ["our/llm"], tmp_path / "cache")
        assert (code, error.count("\n")) == (2, 4)
        assert error.startswith("-c: our/llm is gated, and access was not granted\n1. accept its licence at")
        assert not (folder / "llm_predictions.csv").exists()
        [(code, error)] = ask_from_hub(hub, folder, ["our/llm"], tmp_path / "cache", HF_TOKEN=TOKEN)
        assert code == 0, error
    finally:
        server.kill()
        server.wait()
    assert len(read_csv(folder / "llm_predictions.csv")) == 4
    assert not [path for path in folder.iterdir() if TOKEN.encode() in path.read_bytes()]


def test_no_network_is_one_line(tmp_path, capsys):
    error = refused(capsys, "--run", str(make_run(tmp_path)), "--llm", "nobody/nothing")
    assert error.startswith(f"{common.Path(sys.argv[0]).name}: could not fetch the LLM nobody/nothing")
    assert "check the network" in error
    assert error.count("\n") == 1


def test_a_folder_without_an_llm_says_so(tmp_path, capsys):
    error = refused(capsys, "--run", str(make_run(tmp_path)), "--llm", str(tmp_path))
    assert f"could not load the LLM {tmp_path}: " in error
    assert error.count("\n") == 1


def test_out_of_memory_while_loading_is_told_apart(tmp_path, monkeypatch, capsys):
    import transformers

    def scarce(*_args, **_kwargs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    tiny_llm().model.save_pretrained(tmp_path / "llm")
    tiny_llm().tokenizer.save_pretrained(tmp_path / "llm")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", scarce)
    error = refused(capsys, "--run", str(make_run(tmp_path)), "--llm", str(tmp_path / "llm"))
    assert f"out of memory while loading {tmp_path / 'llm'}; take a smaller --llm or --precision bf16\n" in error


QWEN3 = CHAT + "{% if enable_thinking is not defined or enable_thinking %} <think>{% endif %}"


def test_a_template_that_can_leave_thinking_out_does():
    encoded = llm_compare.encode(tiny_llm(chat_template=QWEN3), Question("test-1", "w7", {}))
    assert encoded.prompt == "w1 w7 w2"


def test_an_llm_that_always_thinks_is_asked_to_write_only(compare, tmp_path, capsys, monkeypatch):
    llm, folder = tiny_llm("Llama", chat_template=CHAT + " <think>\n"), compare()
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    flags = ["--run", str(folder), "--llm", str(tmp_path / "llm"), "--precision", "fp32"]
    error = refused(capsys, *flags)
    assert "thinks before it answers, so the first tokens are no label; use --mode generate --max-new-tokens" in error
    outputs = ["w3 w4</think>\nequivalent", "w3 equivalent"]
    monkeypatch.setattr(LLM, "answer", lambda _, questions, *_rest: [
        {"output": outputs[int(question.sample_id[-1]) % 2], "log_probs": None} for question in questions])
    assert main([*flags, "--mode", "generate", "--max-new-tokens", "64"]) == 0
    table = read_csv(folder / "llm_predictions.csv")
    assert table["parse_method"].tolist() == ["exact", "unparsed: still thinking"] * 7


def test_a_prompt_that_opens_a_thought_leaves_no_place_for_a_label():
    llm, questions = tiny_llm(), [Question("test-1", "assistant: <think>\n", {})]
    with pytest.raises(UserError, match="use --mode generate"):
        llm_compare.announce(llm, questions, argparse.Namespace(mode="both", shots=0))
    llm_compare.announce(llm, questions, argparse.Namespace(mode="generate", shots=0))


def test_infinite_scores_stop_the_run(monkeypatch):
    import torch

    llm = tiny_llm()
    with torch.no_grad():
        llm.model.lm_head.weight.fill_(math.nan)
    questions = random_questions(count=2)
    llm.share_prefix(questions)
    with pytest.raises(FloatingPointError, match="--precision fp32 may help"):
        llm.answer(questions, [[7]], "likelihood")


def test_journal_lines_are_json(compare):
    lines = (compare() / "llm_journal.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)) == {"key", "output", "log_probs"} for line in lines)
