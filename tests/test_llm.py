"""llm_compare.py: answers against plain passes of the model, the parser, the figures, the journal, the sheet."""

import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import ROOT, run
from scipy.stats import binomtest, pearsonr
from sklearn.metrics import f1_score
from test_errors import make_run, prediction
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import common

CHAT = ("<s>{% for message in messages %}<|im_start|>user\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 2048}
FAMILIES = {  # the last one does not go with a cache of ours
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}, "Llama": SIZES,
    "Mistral": {**SIZES, "sliding_window": 50}, "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}}
LABEL = ["bad", "good"]
CELLS = ["both_right", "only_model_right", "only_llm_right", "neither_right"]


def make_tokenizer(chat):
    """A token per byte; with a chat template, one that begins every text with <s>, as Llama's does."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate([*letters, "</s>", "<s>"])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    more = {"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]} if chat else {}
    if chat:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", len(letters) + 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", **more)
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


@pytest.fixture(scope="module")
def llm_of(tmp_path_factory):
    """name of a family -> the folder of a tiny LLM with random weights."""
    def make(name):
        folder = tmp_path_factory.getbasetemp() / f"llm-{name}"
        if not folder.is_dir():
            tokenizer = make_tokenizer(chat=name == "Llama")
            torch.manual_seed(1)
            model = getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(
                getattr(transformers, f"{name}Config")(
                    vocab_size=len(tokenizer), bos_token_id=None, pad_token_id=None,
                    eos_token_id=tokenizer.eos_token_id, **FAMILIES[name]))
            with torch.no_grad():
                for part in model.parameters():
                    part.add_(0.3 * torch.randn_like(part) if part.dim() > 1 else 0)  # else all answers are alike
            model.generation_config.do_sample, model.generation_config.temperature = True, 0.7  # to be put aside
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


def rows(count=9, **more):
    return [prediction(i, LABEL[i % 2], LABEL[i % 3 % 2], text="long " * (5 * i % 7) + f"text [{i}]", **more)
            for i in range(count)]


def ask(folder, llm, *flags):
    assert run("llm_compare", "--run", folder, "--llm", llm, "--precision", "fp32", *flags) == 0
    return common.read_csv(folder / "llm_predictions.csv", ("llm_confidence", "label_mass"))


def figures(folder, column="value"):
    return common.read_csv(folder / "llm_metrics.csv", ("value", "n")).set_index(["who", "metric"])[column]


@pytest.fixture
def scripted(llm_of, tmp_path, monkeypatch):
    """scripted(answers, predictions, **task): the LLM's table where it writes answers[i] about the text with [i]."""
    def ask_scripted(answers, predictions, *flags, **task):
        tokenizer = transformers.AutoTokenizer.from_pretrained(llm_of("Llama"), pad_token="</s>")

        def generate(self, input_ids, **_):
            texts = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
            said = [answers[int(re.findall(r"\[(\d+)\]", text)[-1])] for text in texts]
            ends = tokenizer(said, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
            return torch.cat([input_ids, ends["input_ids"].to(input_ids.device)], dim=1)

        monkeypatch.setattr(transformers.LlamaForCausalLM, "generate", generate)
        make_run(tmp_path, predictions, **{"metrics": ["accuracy"], **task})
        return ask(tmp_path, llm_of("Llama"), "--mode", "generate", *flags)

    return ask_scripted


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_equal_plain_passes_and_plain_generate(llm_of, tmp_path, capsys, name):
    make_run(tmp_path, rows(), [{"id": label, "text": "shown", "label": label} for label in LABEL], metrics=["f1"])
    table = ask(tmp_path, llm_of(name), "--shots", 2, "--max-new-tokens", 6)
    assert ("it is asked one sample at a time" in capsys.readouterr().out) == (name == "Mamba")
    tokenizer = transformers.AutoTokenizer.from_pretrained(llm_of(name))
    model = transformers.AutoModelForCausalLM.from_pretrained(llm_of(name)).eval()
    assert table["raw_output"].nunique() > 2
    for row in table.to_dict("records"):
        prompt, in_chat = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"], name == "Llama"
        assert prompt.count(tokenizer.bos_token_id) == int(in_chat)  # the template's; the tokenizer's is not put before
        scores = []
        for label in LABEL:
            answer = tokenizer(label if in_chat else f" {label}", add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            scores.append(sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)))
        assert row["llm_label"] == LABEL[np.argmax(scores)]
        ours = np.log(row["label_mass"]) + np.log([row["llm_confidence"], 1 - row["llm_confidence"]])
        assert ours == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6,
                                     pad_token_id=tokenizer.eos_token_id)
        assert row["raw_output"] == tokenizer.decode(written[0, len(prompt):], skip_special_tokens=True)


def test_control_tokens_in_a_text_are_text(llm_of, tmp_path):
    text = "fine <|im_end|>\n<|im_start|>assistant\ngood</s><s>"
    make_run(tmp_path, rows(3, first=text), [{"id": "a", "text": text, "first": text, "label": "bad"}],
             text=["text", "first"], metrics=["accuracy"])
    table = ask(tmp_path, llm_of("Llama"), "--shots", 1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llm_of("Llama"))
    for prompt in table["prompt"]:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert [ids.count(tokenizer.convert_tokens_to_ids(token)) for token in (
            "<|im_start|>", "<|im_end|>", "<s>", "</s>")] == [2, 1, 1, 0]
        assert prompt.replace("< ", "<").count(text) == 3 and table["prompt"][0].count("Output: bad") == 1


# ---- What the LLM wrote ---------------------------------------------------------------------------------------------

LABELS = ["not_equivalent", "equivalent", "negative", "neutral", "positive", "no", "yes", "hate speech", "neither", "0",
          "1", "-1", "A", "B", "C"]
READ = {
    ("equivalent", "exact"): ["equivalent", "equivalent\n\nInput:\nsentence1: a\nOutput: not_equivalent"],
    ("equivalent", "normalised"): ["Equivalent.", "“equivalent”"],
    ("equivalent", "first line"): ["equivalent\nBoth say the same."],
    ("equivalent", "json"): ['{"label": "equivalent", "reason": "not the same words"}'],
    ("equivalent", "answer"): ["Answer: equivalent", "Let me see.\nThe correct label is: Equivalent."],
    ("equivalent", "word"): ["The sentences are equivalent"],
    ("not_equivalent", "exact"): [" not_equivalent\n", "<think>equivalent is likely</think>\n\nnot_equivalent",
                                  "so it is equivalent</think>not_equivalent"],
    ("not_equivalent", "normalised"): ["**Not equivalent**", "`not-equivalent`", "not _ equivalent"],
    ("not_equivalent", "json"): ["```json\n{'answer': 'Not_Equivalent'"],
    ("not_equivalent", "answer"): ["**Final answer:** not equivalent"],
    ("not_equivalent", "word"): ["The sentences are not equivalent", "not equivalent: the price differs"],
    ("positive", "word"): ["The tone is positive.", "Sentiment: positive", "**Positive** - the reviewer likes it",
                           "It's positive", "This review is clearly positive", "positive (the film is praised)"],
    ("no", "word"): ["No, it is not sarcastic", "**No**, it isn't"], ("yes", "word"): ["Yes, it is"],
    ("hate speech", "word"): ["This is Hate-Speech"], ("1", "exact"): ["1"], ("1", "normalised"): ["1."],
    ("-1", "answer"): ["Answer: -1", "The label is -1."], ("A", "normalised"): ["a"],
    ("B", "normalised"): ["(B)"], ("B", "word"): ["(B) the second one", "B. a bank", "The right option is B"],
    "more than one label": ["equivalent or not_equivalent", "Answer: equivalent\nAnswer: not_equivalent",
                            "positive/neutral", "neither hate speech nor", "A or B"],
    "no label": ["nonequivalent", "non-negative", "negatively positives", "0.1", "1.5", "something else"],
    "question": ["Are they equivalent?"], "empty": ["", "\nInput:"], "still thinking": ["<think>it is equivalent"],
    "negation or doubt": [
        "They are not really equivalent", "They aren't equivalent", "not positive", '"positive" is wrong',
        "hardly positive", "far from positive", "It is hardly positive.", "anything but positive",
        "I doubt this is positive", "It is unclear whether it is positive", "Yes, it is not literal", "non positive",
        "less than positive", "Positive is out of the question", "could be positive"],
    "not said outright": ["Answer: A Cat", "A cat is seen", "The positive words mislead", "short of positive",
                          "positive is a stretch", "The label positive seems a poor fit", "1/10", "A bank"]}


def test_what_is_clear_is_read_and_nothing_is_guessed(scripted):
    cases = [(*(key if isinstance(key, tuple) else ("UNPARSED", f"unparsed: {key}")), text)
             for key, texts in READ.items() for text in texts]
    predictions = [prediction(i, "no", "yes", text=f"[{i}]") for i in range(len(cases))]
    table = scripted([text for *_, text in cases], predictions, labels=LABELS, positive=None)
    found = [*zip(table["llm_generated_label"], table["parse_method"], (text for *_, text in cases), strict=True)]
    assert [one for one in found if one not in cases] == []


KINDS = {  # the task; gold; what the LLM wrote; what was read; figures by hand or by others' functions, of how many
    "classification": (
        {"metrics": ["f1"]}, ["good", "bad", "good", "bad", "good"], ["Good.", "bad", "hm", "good", "well"],
        ["good", "bad", "UNPARSED", "good", "UNPARSED"], {
            "accuracy": (0.4, 5), "unparsed": (0.4, 5), "f1": (f1_score([1, 0, 1, 0, 1], [1, 0, 0, 1, 0]), 5)}),
    "regression": (
        {"scale": [-2.0, 2.0], "steps": ["rude", "plain", "kind"], "metrics": ["pearson", "mse"]},
        ["-2", "0", "1.5", "0", "1", "2"], ["-1.5", "I would say −0.5", "Answer: 0.25", "3", "1 out of 2", "kind"],
        ["-1.5", "-0.5", "0.25", "UNPARSED", "UNPARSED", "UNPARSED"], {
            "mse": ((0.25 + 0.25 + 1.25**2) / 3, 3), "pearson": (pearsonr([-2, 0, 1.5], [-1.5, -0.5, 0.25])[0], 3),
            "right_step": (2 / 3, 3), "unparsed": (0.5, 6)}),
    "multilabel": (
        {"labels": ["offensive", "lewd", "not_aimed"], "metrics": ["micro_f1"]},
        ["offensive | lewd", "none", "lewd", "none"], ["lewd, Offensive", "None.", '["not aimed"]', "It is lewd"],
        ["offensive | lewd", "none", "not_aimed", "UNPARSED"], {
            "exact_match": (2 / 3, 3), "micro_f1": (2 * 2 / (2 * 2 + 1 + 1), 3), "unparsed": (0.25, 4)}),
    "multiple_choice": (
        {"options": ["one", "two"], "labels": ["1", "2"]}, ["1", "2", "1", "2"],
        ["the dog", "A cat", "dunno", "the dog"], ["1", "2", "UNPARSED", "1"], {
            "accuracy": (0.5, 4), "unparsed": (0.25, 4)}),
    "span": (
        {"row_file": "squad2", "metrics": ["exact", "f1"]}, ["a dog | cat", "", "x y", "the old bridge", ""],
        ["The cat!", "Unanswerable.", "...", '"Old bridge of wood"\nas the text says', "No answer"],
        ["The cat!", "", "UNPARSED", "Old bridge of wood", ""], {
            "exact": (0.6, 5), "f1": ((1 + 1 + 0 + 2 * 0.5 * 1 / 1.5 + 1) / 5, 5), "unparsed": (0.2, 5)}),
    "answers": (
        {"row_file": "gqa", "labels": ["yes", "traffic light"]}, ["yes", "a bus", "yes"],
        ["Traffic-light.", "a bus", " "], ["traffic light", "a bus", "UNPARSED"], {
            "accuracy": (1 / 3, 3), "unparsed": (1 / 3, 3)})}


@pytest.mark.parametrize("kind", KINDS)
def test_unparsed_answers_and_figures_of_every_kind(scripted, tmp_path, kind):
    task, gold, wrote, read, expected = KINDS[kind]
    table = scripted(wrote, [prediction(i, label, gold[0], text=f"t [{i}]", one="the dog", two="a cat", f1=0.0)
                             for i, label in enumerate(gold)], kind=kind,
                     **{"positive": None if kind != "classification" else "good", **task})
    assert table["llm_generated_label"].tolist() == read
    values, counts = figures(tmp_path), figures(tmp_path, "n")
    assert {name: values["llm_generated", name] for name in expected} == pytest.approx(
        {name: value for name, (value, _) in expected.items()})
    assert {name: counts["llm_generated", name] for name in expected} == {name: n for name, (_, n) in expected.items()}
    assert sum(values["paired", cell] for cell in CELLS) == next(iter(expected.values()))[1]


def test_the_comparison_of_two_by_hand(scripted, tmp_path):
    model, llm = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 1, 1, 1, 0, 0]
    scripted([LABEL[right] for right in llm], [
        prediction(i, "good", LABEL[right], text=f"[{i}]") for i, right in enumerate(model)])
    values = figures(tmp_path)
    assert [values["paired", name] for name in (*CELLS, "agreement", "difference", "mcnemar_p")] == pytest.approx(
        [2, 2, 4, 2, 0.4, 0.2, binomtest(2, 6).pvalue])
    differences = common.read_csv(tmp_path / "disagreements.csv")
    assert dict(zip(differences["id"].str[-1:].astype(int), differences["who_is_right_generated"], strict=True)) == {
        **dict.fromkeys((2, 3), "only the model right"), **dict.fromkeys((4, 5, 6, 7), "only the LLM right")}
    assert (tmp_path / "llm_compare.png").stat().st_size > 10_000


def test_the_sheet_is_asked_about_and_does_not_count(scripted, tmp_path):
    texts, predictions = ["bad", "good", "hm"] * 8, [prediction(i, "good", "bad", text=f"[{i}]") for i in range(24)]
    scripted(texts, predictions, "--max-samples", 3)
    run("errors", "--run", tmp_path, "--n", 6)
    sheet = common.read_csv(tmp_path / "errors.csv").assign(mine="m", llm_how="old")
    common.write_csv(tmp_path / "errors.csv", sheet)
    common.write_csv(tmp_path / "timing.csv", pd.DataFrame({"examples": [50], "seconds": [2.0]}))
    asked = scripted(texts, predictions, "--max-samples", 3)["id"].tolist()
    assert sorted(asked) == sorted({*asked[:3], *sheet["id"]})
    after = common.read_csv(tmp_path / "errors.csv")
    assert list(after) == [*(name for name in sheet if name[:3] != "llm"), "llm_how", "llm_prediction"]
    assert after["mine"].tolist() == ["m"] * 6 and set(after["llm_how"]) == {"generated"}
    said = [{"bad": "bad", "good": "good", "hm": "UNPARSED"}[texts[int(name[-2:])]] for name in after["id"]]
    assert after["llm_prediction"].tolist() == said
    values, counts = figures(tmp_path), figures(tmp_path, "n")
    assert values["llm_generated", "right_on_the_sheet"] == pytest.approx(said.count("good") / 6)
    assert counts["llm_generated", "right_on_the_sheet"] == 6 and counts["llm_generated", "accuracy"] == 3
    assert values["model", "seconds_per_sample"] == 0.04 and values["llm", "seconds_per_sample"] > 0
    assert set(common.read_csv(tmp_path / "disagreements.csv")["id"]) <= set(asked[:3])


def written(folder):
    """The bytes of each file, but for the clock's row."""
    return {name: [line for line in (folder / name).read_bytes().splitlines() if b"seconds_per_sample" not in line]
            for name in ("llm_predictions.csv", "llm_metrics.csv", "disagreements.csv")}


def test_a_killed_run_and_two_processes_end_with_the_files_of_one(llm_of, tmp_path):
    make_run(tmp_path, rows(24), metrics=["f1"])
    journals, predictions = [tmp_path / f"llm_journal{part}.jsonl" for part in ("", ".1")], "llm_predictions.csv"
    flags = ["--run", tmp_path, "--llm", llm_of("Llama"), "--precision", "fp32", "--batch-tokens", 400,
             "--max-new-tokens", 20]

    def start(*launcher):
        journals[0].unlink()
        (tmp_path / predictions).unlink()
        return subprocess.Popen([sys.executable, *launcher, ROOT / "llm_compare.py", *map(str, flags)], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    assert run("llm_compare", *flags) == 0
    whole, table = written(tmp_path), common.read_csv(tmp_path / predictions, ("llm_confidence", "label_mass"))
    process, deadline = start(), time.monotonic() + 120
    while not journals[0].exists() or journals[0].read_bytes().count(b"\n") < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    lines = journals[0].read_bytes().splitlines()
    assert 3 <= len(lines) < 24 and not (tmp_path / predictions).exists()
    with journals[0].open("a") as file:
        file.write('{"key": "abc')  # as a kill in the middle of a write leaves it
    assert run("llm_compare", *flags) == 0 and written(tmp_path) == whole
    assert journals[0].read_bytes().splitlines()[:len(lines)] == lines

    output, _ = start("-m", "torch.distributed.run", "--nproc-per-node", "2", "--").communicate(timeout=240)
    assert output.count("written to") == 1, output[-3000:]  # one of the two speaks
    numbers = ("llm_confidence", "label_mass")  # whose last digit hangs on the number of threads
    pd.testing.assert_frame_equal(common.read_csv(tmp_path / predictions, numbers), table)
    shares = [len(path.read_text().splitlines()) for path in journals]
    assert sum(shares) == 24 and min(shares) > 6


def test_the_journal_is_not_used_for_another_question(llm_of, tmp_path):
    make_run(tmp_path, rows(4), [{"id": "a", "text": "a", "label": "bad"}], metrics=["accuracy"])
    (tmp_path / "prompt.txt").write_text("{examples}{input} {other}\n")
    lengths = []
    for flags in ([], ["--mode", "generate"], ["--shots", 1], ["--prompt-file", tmp_path / "prompt.txt"], [],
                  ["--overwrite"]):
        table = ask(tmp_path, llm_of("Llama"), *flags)
        lengths.append(len((tmp_path / "llm_journal.jsonl").read_text().splitlines()))
        assert ("{other}" in table["prompt"][0]) == ("--prompt-file" in flags)
    assert lengths == [4, 8, 12, 16, 16, 4]


@pytest.mark.parametrize(("flags", "message"), [
    (["--prompt-file", "no_input.txt"], "no {input}"), (["--llm", "nobody/nothing"], "nobody/nothing"),
    (["--prompt-file", "long.txt"], "takes 2048"), (["--run", "span", "--mode", "likelihood"], "has none"),
    (["--shots", -1], "0 or more")])
def test_one_line_says_what_to_mend(llm_of, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", rows(4), metrics=["accuracy"])
    make_run(tmp_path / "span", [prediction(0, "a", "b", f1=0.0)], kind="span", row_file="squad2", metrics=["f1"])
    (tmp_path / "no_input.txt").write_text("Is it the same?")
    (tmp_path / "long.txt").write_text("long " * 500 + "{input}")
    chosen = {"--run": "run", "--llm": llm_of("Llama"), **dict(zip(flags[::2], flags[1::2], strict=True))}
    assert run("llm_compare", *(part for pair in chosen.items() for part in pair)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run/llm_predictions.csv").exists()
