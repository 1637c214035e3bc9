"""Model families: padding, token types, control tokens and limits, what the head read, and what a run's model must be."""

import json
import runpy
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import make_arguments, make_dataset, make_model, run
from safetensors.torch import load_file, save_file
from scipy.special import softmax

import common
from common import UserError

KIND = common.KINDS["classification"]
TASK = {"key": "toy", "kind": "classification", "labels": ["no", "yes"], "text": ["text"], "metrics": ["accuracy"]}
TEXTS = ["the good film is nice", "bad", "an awful </s> plot with <|endoftext|> [SEP] it", "<|endoftext|>",
         "nice actor and a story that is not really good on two three yes", "one two three yes no </s>"]
SHARED = ["bert", "gpt2", "roberta_berttok", "roberta_nolimit", "distilbert_tti", "bart", "t5", "opt", "xlm", "llama"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "max_position_embeddings": 64}
OURS = {
    "XLMRoberta": SIZES,  # its head is defined before its body
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},  # padded on the left
    "EuroBert": SIZES,  # its logits are the mean over the tokens'
    "ModernBert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8},
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "FNet": SIZES,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of random models by name: each is made when it is first asked for."""
    place = tmp_path_factory.mktemp("models")

    def folder_of(name):
        if not (place / name).is_dir():
            config = getattr(transformers, f"{name}Config")
            tokenizer = common.word_tokenizer(TEXTS)
            torch.manual_seed(0)
            transformers.AutoModelForSequenceClassification.from_config(config(
                vocab_size=len(tokenizer), num_labels=2, pad_token_id=0, bos_token_id=2, eos_token_id=3,
                cls_token_id=2, sep_token_id=3, **OURS[name])).save_pretrained(place / name)
            tokenizer.save_pretrained(place / name)
        return place / name

    return folder_of


@pytest.fixture(scope="module")
def families(shared_dir, tmp_path_factory):
    """A folder with random models of families whose tokenizers are in each family's own format."""
    place = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["models.py", str(place), *SHARED, "canine"])
        runpy.run_path(str(shared_dir / "cases" / "models.py"))
    return place


def encode(tokenizer, texts=TEXTS, pairs=None, max_length=40):
    table = pd.DataFrame({"text": texts, "label": ["no"] * len(texts)}).assign(other=pairs)
    task = TASK | ({"text": ["text", "other"]} if pairs else {})
    return KIND.encode(table, task, tokenizer, max_length)


def forward(model, dataset, rows):
    """Logits and vectors."""
    return common.forward(model, dataset.collate([dataset[i] for i in rows]), KIND, "fp32")[1:]


def padding_and_head(folder):
    torch.manual_seed(0)
    tokenizer, model = common.load_model(str(folder), TASK)
    dataset = encode(tokenizer)
    together = forward(model, dataset, range(len(TEXTS)))
    alone = [torch.cat(parts) for parts in zip(*(forward(model, dataset, [i]) for i in range(len(TEXTS))), strict=True)]
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(many, one, atol=3e-6, rtol=1e-5)
    logits, vectors = together
    with torch.no_grad():
        torch.testing.assert_close(common.head_layer(model)[1](vectors), logits, atol=1e-5, rtol=1e-5)


class TestNeighboursAndVectors:
    """Logits do not move with the neighbours in a batch, and a vector, through the head's last layer, is its logits."""

    @pytest.mark.parametrize("name", SHARED)
    def test_with_the_familys_own_tokenizer(self, families, name):
        padding_and_head(families / name)

    @pytest.mark.parametrize("name", [name for name in OURS if name != "FNet"])
    def test_with_a_tokenizer_of_words(self, folders, name):
        padding_and_head(folders(name))

    @pytest.mark.parametrize("name", ["FNet", "canine"])
    def test_a_family_that_padding_moves_is_refused(self, request, tmp_path, capsys, name):
        """FNet mixes the padding in with the tokens, CANINE cuts it into molecules of four characters with them."""
        folder = (request.getfixturevalue("folders")(name) if name in OURS
                  else request.getfixturevalue("families") / name)
        pd.DataFrame({"text": TEXTS * 6, "label": ["no", "yes"] * 18}).to_csv(tmp_path / "a.csv", index=False)
        code = run("train", "--dataset", tmp_path / "a.csv", "--text-column", "text", "--label-column", "label",
                   "--model", folder, "--max-length", 40, "--num-train-epochs", 1, "--run", tmp_path / "run")
        assert code == 2
        assert "padding" in capsys.readouterr().err

    def test_prediction_keeps_the_order_of_the_data_set(self, folders):
        tokenizer, model = common.load_model(str(folders("ModernBert")), TASK)
        dataset = encode(tokenizer)
        singles = torch.cat([forward(model, dataset, [i])[0] for i in range(len(TEXTS))])
        np.testing.assert_allclose(common.predict(model, dataset, KIND, 4).logits, singles, atol=3e-6)


class TestTokens:
    @pytest.mark.parametrize("name", SHARED)
    def test_a_texts_own_control_tokens_are_text(self, families, name):
        """Ids of control tokens stand where the family puts them, whatever is written in the text."""
        tokenizer, _ = common.load_model(str(families / name), TASK)
        dataset = encode(tokenizer, ["good", f"good {' '.join(tokenizer.all_special_tokens)}"], max_length=64)
        plain, marked = (dataset[i]["input_ids"][0] for i in range(2))
        special = {*tokenizer.all_special_ids} - {tokenizer.get_vocab().get("[UNK]")}  # BERT has no piece for a bracket
        assert np.isin(marked, [*special]).sum() == np.isin(plain, [*special]).sum()
        assert len(marked) > len(plain) + 1

    @pytest.mark.parametrize(("name", "types"), [("bert", True), ("roberta_berttok", False), ("distilbert_tti", False)])
    def test_pairs_have_token_types_where_the_model_takes_them(self, families, name, types):
        tokenizer, model = common.load_model(str(families / name), TASK)
        dataset = encode(tokenizer, ["good film", "bad"], ["nice plot", "a story"])
        assert ("token_type_ids" in dataset.columns) == types
        assert torch.isfinite(forward(model, dataset, range(2))[0]).all()

    def test_no_more_tokens_than_the_model_has_places_for(self, families, folders, capsys):
        tokenizer, model = common.load_model(str(families / "roberta_nolimit"), TASK)  # 66 places, 2 before the first
        assert common.usable_length(tokenizer, model, 64) == 64
        assert forward(model, encode(tokenizer, ["good " * 80], max_length=64), [0])[0].shape == (1, 2)
        for wanted in (65, 3):  # too many, and no room for a text
            with pytest.raises(UserError):
                common.usable_length(tokenizer, model, wanted)
            assert "--max-length" in (line := capsys.readouterr().err) and "to 64" in line
        unlimited = common.load_model(str(folders("XLNet")), TASK)
        assert common.usable_length(*unlimited, 500) == 500

    def test_word_tokenizer_is_a_function_of_its_texts(self):
        first, second = (common.word_tokenizer(["b a b", "C, a"]) for _ in range(2))
        assert first.get_vocab() == second.get_vocab()
        assert first("a b", "c")["input_ids"] == [2, 5, 6, 3, 8, 3]
        assert first("a b", "c")["token_type_ids"] == [0, 0, 0, 0, 1, 1]
        assert first.decode(first("zebra")["input_ids"]) == "[CLS] [UNK] [SEP]"


class TestLoading:
    def test_dropout_padding_and_labels_are_set(self, families):
        tokenizer, model = common.load_model(str(families / "gpt2"), TASK, dropout=0.3)
        assert model.config.pad_token_id == tokenizer.pad_token_id is not None
        assert {model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop} == {0.3}
        assert model.config.id2label == {0: "no", 1: "yes"}

    def test_a_head_of_another_size_is_replaced_and_said(self, folders, capsys):
        _, model = common.load_model(str(folders("ModernBert")), TASK | {"labels": ["a", "b", "c"]})
        assert model.config.num_labels == 3
        assert "replaced by a new one" in capsys.readouterr().out

    @pytest.mark.parametrize(("spoil", "said"), [
        (lambda folder: drop(folder, "model.layers.0"), "lacks"),
        (lambda folder: common.word_tokenizer([*TEXTS, "more words"]).save_pretrained(folder), "they are no pair"),
        (lambda folder: (folder / "config.json").unlink(), "could not load the model")])
    def test_a_broken_folder_is_one_line(self, folders, tmp_path, capsys, spoil, said):
        folder = shutil.copytree(folders("ModernBert"), tmp_path / "model")
        spoil(folder)
        with pytest.raises(UserError):
            common.load_model(str(folder), TASK)
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1

    def test_the_model_card_says_what_it_says(self, tmp_path):
        assert common.model_card(str(tmp_path)) == {}
        (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\ntags: [x]\n---\n# A model\n")
        assert common.model_card(str(tmp_path)) == {"license": "mit", "language": ["en"]}
        (tmp_path / "README.md").write_text("---\nlicense: [mit\n: x\n---\n")
        assert common.model_card(str(tmp_path)) == {}

    @pytest.mark.parametrize(("wanted", "bf16", "expected"), [
        ("fp32", True, "fp32"), ("bf16", False, "bf16"), ("auto", True, "bf16"), ("auto", False, "fp32")])
    def test_precision_follows_the_hardware(self, monkeypatch, wanted, bf16, expected):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert common.choose_precision(wanted) == expected


def drop(folder, name):
    """Delete the tensors whose names begin with `name`."""
    tensors = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(name)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def gpt2_run(families, tmp_path_factory):
    """A GPT-2 that was trained and tested on texts of which some end in its own padding token."""
    folder = tmp_path_factory.mktemp("gpt2")
    texts = [f"the film is {word}{mark}" for word in ("good", "bad", "fine", "awful", "nice", "not really")
             for mark in ("", " <|endoftext|>", " very <|endoftext|>", " one", " two")]
    pd.DataFrame({"text": texts, "label": ["yes", "no"] * 15}).to_csv(folder / "a.csv", index=False)
    flags = ["--text-column", "text", "--label-column", "label", "--num-train-epochs", 1, "--max-length", 40]
    assert run("train", "--dataset", folder / "a.csv", *flags, "--model", families / "gpt2", "--precision", "fp32",
               "--run", folder / "run") == 0
    assert run("evaluate", "--run", folder / "run") == 0
    return folder / "run"


def test_hidden_states_are_what_the_head_read(gpt2_run):
    """Through the head of the run's model they give the probabilities of predictions.csv."""
    predictions = common.read_predictions(gpt2_run)
    task = json.loads((gpt2_run / "run.json").read_text())["task"]
    head = common.head_layer(common.load_model(str(gpt2_run / "model"), task, own=True)[1])[1]
    with np.load(gpt2_run / "hidden_states.npz", allow_pickle=False) as arrays, torch.no_grad():
        assert arrays["id"].tolist() == predictions["id"].tolist()
        logits = head(torch.from_numpy(arrays["vector"])).numpy()
    np.testing.assert_allclose(softmax(logits, axis=1), predictions[["prob_no", "prob_yes"]], atol=1e-6)


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: drop(folder, "score"), "lacks 1 weights"),
    (lambda folder: relabel(folder, {"0": "no", "1": "maybe"}), "is of the labels"),
    (lambda folder: relabel(folder, {"0": "yes", "1": "no"}), "is of the labels")])
def test_a_runs_own_model_must_be_whole_and_of_its_labels(gpt2_run, tmp_path, capsys, spoil, said):
    folder = shutil.copytree(gpt2_run, tmp_path / "run")
    spoil(folder / "model")
    metrics = (folder / "metrics.csv").read_bytes()
    capsys.readouterr()
    assert run("evaluate", "--run", folder) == 2
    assert said in capsys.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == metrics


def relabel(folder, names):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))


@pytest.mark.parametrize(("num_labels", "problem_type", "labels"), [
    (3, None, [0, 2]), (3, "multi_label_classification", [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), (1, None, [0.5, -2.0])])
def test_a_trainer_without_a_kind_takes_the_models_own_loss(tmp_path, num_labels, problem_type, labels):
    model, data = make_model(0.0, num_labels, problem_type=problem_type), make_dataset(2)
    trainer = common.CustomTrainer(model=model, args=make_arguments(tmp_path, eval_strategy="no"))
    batch = data.collate([data[0], data[1]]) | {"labels": torch.tensor(labels)}
    torch.testing.assert_close(trainer.compute_loss(model, batch), model(**batch).loss)


def test_labels_that_the_models_loss_does_not_take_are_refused(tmp_path):
    model, data = make_model(), make_dataset(2)
    trainer = common.CustomTrainer(model=model, args=make_arguments(tmp_path, eval_strategy="no"))
    with pytest.raises(TypeError, match="problem_type"):
        trainer.compute_loss(model, data.collate([data[0], data[1]]) | {"labels": torch.tensor([0.5, 1.0])})


def test_sample_model_learns_a_rule(tmp_path):
    """Which of two words a text holds: the loop, the tokenizer and the model of --sample together."""
    rng = np.random.default_rng(0)
    words = ["the", "film", "was", "long", "and", "loud"]
    texts = [" ".join([*rng.permutation(words)[:4], ["awful", "lovely"][i % 2]]) for i in range(64)]
    table = pd.DataFrame({"id": map(str, range(64)), "text": texts, "label": ["no", "yes"] * 32})
    torch.manual_seed(0)
    tokenizer, model = common.build_sample_model(common.Data(TASK, {"train": table}, {}))
    dataset = KIND.encode(table, TASK, tokenizer, 16)
    common.CustomTrainer(model=model, train_dataset=dataset, args=make_arguments(
        tmp_path, eval_strategy="no", num_train_epochs=6, learning_rate=2e-3)).train()
    predictions = KIND.predict(common.predict(model, dataset, KIND, 16).logits, table, TASK, dataset)
    assert predictions["correct"].mean() > 0.95
