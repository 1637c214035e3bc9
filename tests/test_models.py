"""Every model family that --model takes: a tiny random one trains, and padding does not change what it says."""

import argparse

import numpy as np
import pytest
import torch
import transformers
from conftest import make_arguments

import common
from common import CustomTrainer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37,
         "max_position_embeddings": 64, "vocab_size": 60}
LLAMA = {**SIZES, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "Bert": SIZES, "Roberta": {**SIZES, "pad_token_id": 0}, "Electra": {**SIZES, "embedding_size": 16},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 37, "vocab_size": 60},
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "ModernBert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1,
                   "sep_token_id": 2},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 60, "eos_token_id": 2},
    "Llama": LLAMA, "Qwen2": LLAMA,
}
TASK = {"kind": "classification", "labels": ["no", "yes"]}


def make_family(family):
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], num_labels=2)
    config.pad_token_id = 0
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def make_rows(examples=20):
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 60, size=rng.integers(2, 14)) for _ in range(examples)]
    return common.TokenDataset({"input_ids": ids}, np.array([0, 1] * (examples // 2)), {"input_ids": 0})


def run(model, batch, kind):
    """Logits and head vectors of a batch."""
    return [tensor.numpy() for tensor in common.forward(model, batch, kind, "fp32")[1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_and_padding_does_not_change_the_logits(family, tmp_path):
    model, rows, kind = make_family(family), make_rows(), common.KINDS["classification"]
    alone = [run(model, rows.collate([rows[i]]), kind) for i in range(6)]
    together = run(model, rows.collate([rows[i] for i in range(6)]), kind)
    for part, one in zip(together, (np.concatenate(parts) for parts in zip(*alone, strict=True)), strict=True):
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, one, atol=2e-6)

    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = CustomTrainer(model=model, train_dataset=rows, data_collator=rows.collate,
                            args=make_arguments(tmp_path, eval_strategy="no", max_steps=3))
    trainer.train()
    assert trainer.state.global_step == 3
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_vector_is_what_the_last_layer_of_the_head_sees(family):
    """The last linear layer, applied to the vectors, gives the logits."""
    model, rows, kind = make_family(family), make_rows(), common.KINDS["classification"]
    logits, vectors = run(model, rows.collate([rows[i] for i in range(8)]), kind)
    with torch.no_grad():
        again = common.head_layer(model)[1](torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(again, logits, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_named_after_what_the_head_reads(family):
    """A head that is applied to every token reads the last one's vector, any other a pooled one."""
    model, rows, kind, seen = make_family(family), make_rows(), common.KINDS["classification"], []
    name, layer = common.head_layer(model)
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].ndim))
    run(model, rows.collate([rows[0]]), kind)
    which = "pooled" if seen == [2] else "last tokens'"
    assert kind.vectors_are(name) == f"{which} vectors, the input of {name}"


def test_prediction_keeps_the_order_of_the_data_set():
    model, rows, kind = make_family("Bert"), make_rows(), common.KINDS["classification"]
    outputs = common.predict(model, rows, kind, batch_size=7, precision="fp32")
    singles = np.concatenate([run(model, rows.collate([row]), kind)[0] for row in rows])
    np.testing.assert_allclose(outputs.logits, singles, atol=2e-6)
    assert isinstance(outputs.vectors, np.memmap)  # on disk: memory stays flat, however many examples there are


@pytest.mark.parametrize("family", ["Bert", "GPT2"])
def test_load_model_from_a_folder(family, tmp_path, capsys):
    make_family(family).save_pretrained(tmp_path)
    tokenizer = common.word_tokenizer(["a b c"])
    if family == "GPT2":
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    tokenizer, model = common.load_model(str(tmp_path), TASK, dropout=0.3)
    assert tokenizer.pad_token == ("[SEP]" if family == "GPT2" else "[PAD]")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    rates = {name: getattr(model.config, name) for name in common.DROPOUT_NAMES if getattr(model.config, name, None)}
    assert set(rates.values()) == {0.3}
    assert len(rates) >= 2
    assert model.config.id2label == {0: "no", 1: "yes"}
    common.load_model(str(tmp_path), {**TASK, "labels": ["a", "b", "c"]})
    assert "replaced by a new one" in capsys.readouterr().out


def test_the_labels_of_a_reused_head_are_put_into_our_order(tmp_path, capsys):
    theirs = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
    task = {**TASK, "labels": ["entailment", "neutral", "contradiction"]}
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, id2label=dict(enumerate(theirs)), num_labels=3))
    model.save_pretrained(tmp_path)
    common.word_tokenizer(["a b c"]).save_pretrained(tmp_path)
    _, loaded = common.load_model(str(tmp_path), task)
    rows, kind = make_rows(), common.KINDS["classification"]
    batch = rows.collate([rows[i] for i in range(4)])
    before, after = (run(each, batch, kind)[0] for each in (model, loaded))
    np.testing.assert_allclose(after, before[:, ::-1], atol=1e-6)
    assert "put into the order entailment, neutral, contradiction" in capsys.readouterr().out
    loaded.save_pretrained(tmp_path)  # our own order now: nothing moves
    np.testing.assert_allclose(run(common.load_model(str(tmp_path), task)[1], batch, kind)[0], after)


def test_load_model_refuses_a_folder_without_safetensors(tmp_path):
    make_family("Bert").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle would stand here")
    with pytest.raises(common.UserError, match="without weights"):
        common.load_model(str(tmp_path), TASK)


def test_max_length_beyond_the_models_positions_is_refused():
    tokenizer, model = common.word_tokenizer(["a"]), make_family("Bert")
    assert common.usable_length(tokenizer, model, 64) == 64
    with pytest.raises(common.UserError, match="--max-length 65 is more than the 64 tokens"):
        common.usable_length(tokenizer, model, 65)


def test_sample_model_learns_a_rule():
    """Which of two words a text holds: the loop, the tokenizer and the model of --sample together."""
    rng = np.random.default_rng(0)
    words = ["the", "film", "was", "long", "and", "loud"]
    texts = [" ".join([*rng.permutation(words)[:4], ["awful", "lovely"][i % 2]]) for i in range(64)]
    table = common.pd.DataFrame({"id": [str(i) for i in range(64)], "text": texts, "label": [i % 2 for i in range(64)]})
    task = {**TASK, "text": ["text"], "metrics": ["accuracy"]}
    tokenizer, model = common.build_sample_model(common.Data(task, {"train": table}, {}))
    kind = common.KINDS["classification"]
    rows = kind.encode(table, task, tokenizer, 16)
    trainer = CustomTrainer(model=model, train_dataset=rows, data_collator=rows.collate, args=make_arguments(
        "unused", eval_strategy="no", num_train_epochs=6, learning_rate=2e-3))
    trainer.train()
    predictions = kind.predict(common.predict(model, rows, kind, 16, "fp32").logits, table, task)
    assert predictions["correct"].mean() > 0.95


def test_word_tokenizer_is_a_function_of_its_texts():
    first, second = (common.word_tokenizer(["b a b", "C, a"]) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first("a b", "c")["input_ids"] == [2, 5, 6, 3, 8, 3]
    assert first("a b", "c")["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert first.decode(first("zebra")["input_ids"]) == "[CLS] [UNK] [SEP]"


@pytest.mark.parametrize(("wanted", "bf16", "expected"), [
    ("fp32", True, "fp32"), ("bf16", False, "bf16"), ("auto", True, "bf16"), ("auto", False, "fp32")])
def test_precision_follows_the_hardware(monkeypatch, wanted, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert common.choose_precision(wanted) == expected


def test_arguments_name_a_run(tmp_path):
    args = argparse.Namespace(run=None, dataset="mrpc", model="google-bert/bert-base-uncased", seed=3, sample=False,
                              runs_dir=tmp_path)
    assert common.run_folder(args) == tmp_path / "mrpc" / "google-bert--bert-base-uncased" / "seed3"


def test_the_model_card_says_what_it_says(tmp_path):
    assert common.model_card(str(tmp_path), None) == {}
    assert common.model_card("nobody/nothing", "0" * 40) == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\ntags: [x]\n---\n# A model\n")
    assert common.model_card(str(tmp_path), None) == {"license": "mit", "language": ["en"]}
