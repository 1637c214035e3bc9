"""Model families: padding, token types, control tokens, limits, what the head read, what a run's own model must be."""

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
    "EuroBert": SIZES,  # its logits are the mean over the tokens'
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},  # padded on the left
    "ModernBert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8},
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
}


@pytest.fixture(scope="module")
def families(shared_dir, tmp_path_factory):
    """A folder with random models: those of SHARED with their families' tokenizers, ours with one of words."""
    place, tokenizer = tmp_path_factory.mktemp("families"), common.word_tokenizer(TEXTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["models.py", str(place), *SHARED])
        runpy.run_path(str(shared_dir / "cases" / "models.py"))
    for name, sizes in OURS.items():
        config = getattr(transformers, f"{name}Config")(
            vocab_size=len(tokenizer), num_labels=2, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2,
            sep_token_id=3, **sizes)
        torch.manual_seed(0)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


def encode(tokenizer, texts=TEXTS, pairs=None, max_length=40):
    table = pd.DataFrame({"text": texts, "label": ["no"] * len(texts)}).assign(other=pairs)
    task = TASK | ({"text": ["text", "other"]} if pairs else {})
    return KIND.encode(table, task, tokenizer, max_length)


def forward(model, dataset, rows):
    """Logits and vectors."""
    return common.forward(model, dataset.collate([dataset[i] for i in rows]), KIND, "fp32")[1:]


@pytest.mark.parametrize("name", [*SHARED, *OURS])
def test_logits_do_not_move_with_padding_and_the_vectors_are_what_the_head_read(families, name):
    torch.manual_seed(0)
    tokenizer, model = common.load_model(str(families / name), TASK)
    dataset = encode(tokenizer)
    together = forward(model, dataset, range(len(TEXTS)))
    alone = [torch.cat(parts) for parts in zip(*(forward(model, dataset, [i]) for i in range(len(TEXTS))), strict=True)]
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(many, one, atol=3e-6, rtol=1e-5)
    logits, vectors = together
    with torch.no_grad():
        torch.testing.assert_close(common.head_layer(model)[1](vectors), logits, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(common.predict(model, dataset, KIND, 4).logits, alone[0], atol=3e-6)


def test_a_family_that_padding_moves_is_refused(tmp_path, capsys):
    """FNet mixes the padding in with the tokens, and has no attention mask."""
    transformers.FNetConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError):
        common.load_model(str(tmp_path), TASK)
    assert "sees the padding" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHARED)
def test_a_texts_own_control_tokens_are_text(families, name):
    """Ids of control tokens stand where the family puts them, whatever is written in the text."""
    tokenizer, _ = common.load_model(str(families / name), TASK)
    dataset = encode(tokenizer, ["good", f"good {' '.join(tokenizer.all_special_tokens)}"], max_length=64)
    plain, marked = (dataset[i]["input_ids"][0] for i in range(2))
    special = [*{*tokenizer.all_special_ids} - {tokenizer.get_vocab().get("[UNK]")}]  # BERT has no piece for a bracket
    assert np.isin(marked, special).sum() == np.isin(plain, special).sum()
    assert len(marked) > len(plain) + 1


@pytest.mark.parametrize(("name", "types"), [("bert", True), ("roberta_berttok", False), ("distilbert_tti", False)])
def test_pairs_have_token_types_where_the_model_takes_them(families, name, types):
    tokenizer, model = common.load_model(str(families / name), TASK)
    dataset = encode(tokenizer, ["good film", "bad"], ["nice plot", "a story"])
    assert ("token_type_ids" in dataset.columns) == types
    assert torch.isfinite(forward(model, dataset, range(2))[0]).all()


def test_no_more_tokens_than_the_model_has_places_for(families, capsys):
    tokenizer, model = common.load_model(str(families / "roberta_nolimit"), TASK)  # 66 places, 2 before the first
    common.check_length(tokenizer, model, 64)
    assert forward(model, encode(tokenizer, ["good " * 80], max_length=64), [0])[0].shape == (1, 2)
    for wanted in (65, 3):  # too many, and no room for a text
        with pytest.raises(UserError):
            common.check_length(tokenizer, model, wanted)
        assert "--max-length" in (line := capsys.readouterr().err) and "to 64" in line
    common.check_length(*common.load_model(str(families / "XLNet"), TASK), 500)  # -1 is no limit


def test_dropout_padding_labels_and_a_head_of_another_size_are_set(families, capsys):
    tokenizer, model = common.load_model(str(families / "gpt2"), TASK, dropout=0.3)
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    assert {model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop} == {0.3}
    assert model.config.id2label == {0: "no", 1: "yes"}
    _, model = common.load_model(str(families / "ModernBert"), TASK | {"labels": ["a", "b", "c"]})
    assert model.config.num_labels == 3
    assert "replaced by a new one" in capsys.readouterr().out


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: drop(folder, "model.layers.0"), "lacks"),
    (lambda folder: common.word_tokenizer([*TEXTS, "more words"]).save_pretrained(folder), "they are no pair")])
def test_a_broken_folder_is_one_line(families, tmp_path, capsys, spoil, said):
    folder = shutil.copytree(families / "ModernBert", tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError):
        common.load_model(str(folder), TASK)
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def drop(folder, name):
    """Delete the tensors whose names begin with `name`."""
    tensors = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(name)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert run("train", "--dataset", "mrpc", "--sample", "--num-train-epochs", 1, "--run", folder) == 0
    assert run("evaluate", "--run", folder) == 0
    return folder


def relabel(folder, names):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: drop(folder, "classifier.weight"), "lacks 1 weights"),
    (lambda folder: relabel(folder, {"0": "equivalent", "1": "not_equivalent"}), "is of the labels")])
def test_a_runs_own_model_must_be_whole_and_of_its_labels(finished, tmp_path, capsys, spoil, said):
    folder = shutil.copytree(finished, tmp_path / "run")
    spoil(folder / "model")
    metrics = (folder / "metrics.csv").read_bytes()
    capsys.readouterr()
    assert run("evaluate", "--run", folder) == 2
    assert said in capsys.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == metrics


@pytest.mark.parametrize(("num_labels", "problem_type", "labels"), [
    (3, None, [0, 2]), (3, "multi_label_classification", [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), (1, None, [0.5, -2.0]),
    (2, None, [0.5, 1.0])])
def test_a_trainer_without_a_kind_takes_the_models_own_loss(tmp_path, num_labels, problem_type, labels):
    model, data = make_model(0.0, num_labels, problem_type=problem_type), make_dataset(2)
    trainer = common.CustomTrainer(model=model, args=make_arguments(tmp_path, eval_strategy="no"))
    batch = data.collate([data[0], data[1]]) | {"labels": torch.tensor(labels)}
    if num_labels == 2:  # labels that this loss does not take
        with pytest.raises(TypeError, match="problem_type"):
            trainer.compute_loss(model, batch)
    else:
        torch.testing.assert_close(trainer.compute_loss(model, batch), model(**batch).loss)
