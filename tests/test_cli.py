"""train.py and evaluate.py as a user calls them, on sample rows: what they write, and how they refuse bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import common
import errors
import evaluate
import train

TRAIN = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--num-train-epochs", "2"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished and evaluated run on the sample rows."""
    runs = tmp_path_factory.mktemp("runs")
    assert train.main([*TRAIN, "--num-train-epochs", "12", "--runs-dir", str(runs)]) == 0
    assert evaluate.main(["--dataset", "mrpc", "--sample", "--runs-dir", str(runs)]) == 0
    return runs / "mrpc" / "sample" / "seed42"


class TestRunFolder:
    def test_holds_the_files_of_the_contract_and_no_others(self, run_dir):
        assert {path.name for path in run_dir.iterdir()} == {
            "run.json", "train_texts.csv", "history.csv", "steps.csv", "learning_curve.png", "model", "predictions.csv",
            "metrics.csv", "confusion.csv", "confusion.png", "calibration.csv", "calibration.png", "risk_coverage.csv",
            "timing.csv", "hidden_states.npz", "report_notes.md", "report.md", "report.tex", "report.bib"}

    def test_run_json_says_how_it_came_about(self, run_dir):
        run = common.read_json(run_dir / "run.json")
        assert set(train.build_parser().parse_args([]).__dict__) == set(run["args"])
        assert run["args"]["learning_rate"] == 2e-3  # resolved, where the flag was left out
        assert run["data"]["used"] == {"train": 80, "validation": 24, "test": 48}
        assert run["data"]["labels"]["test"] == {"not_equivalent": 17, "equivalent": 31}
        assert run["versions"]["transformers"] == "5.23.0"
        assert run["model_info"]["hidden_size"] == 64
        assert run["hardware"]["precision"] == "fp32"
        assert run["finished"]
        assert run["training"]["seconds"] > 0
        assert run["command"].startswith("python train.py --dataset mrpc")

    def test_history_has_a_row_per_epoch_and_the_best_one_is_kept(self, run_dir):
        history = pd.read_csv(run_dir / "history.csv")
        assert list(history.columns) == ["epoch", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy",
                                         "eval_f1", "eval_temperature", "learning_rate", "seconds",
                                         "samples_per_second"]
        assert history["epoch"].tolist() == list(range(1, 13))
        training = common.read_json(run_dir / "run.json")["training"]
        assert training["best_epoch"] == history["epoch"][history["eval_accuracy"].idxmax()]
        assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]
        assert training["tuned"] == {
            "temperature": history["eval_temperature"][history["epoch"] == training["best_epoch"]].item()}

    def test_steps_have_the_columns_of_the_contract(self, run_dir):
        steps = pd.read_csv(run_dir / "steps.csv")
        assert list(steps.columns) == ["step", "epoch", "loss", "grad_norm", "learning_rate"]
        assert steps["step"].tolist() == list(range(1, 61))

    def test_predictions_are_the_test_split_with_probabilities(self, run_dir):
        table = common.read_predictions(run_dir)
        assert list(table.columns) == [
            "id", "split", "sentence1", "sentence2", "gold", "predicted", "correct", "confidence", "gold_confidence",
            "margin", "prob_not_equivalent", "prob_equivalent"]
        assert len(table) == 48
        probabilities = table[["prob_not_equivalent", "prob_equivalent"]].to_numpy()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        np.testing.assert_allclose(table["confidence"], probabilities.max(axis=1))
        assert (table["correct"] == (table["gold"] == table["predicted"])).all()
        golds = (table["gold"] == "equivalent").astype(int)
        np.testing.assert_allclose(table["gold_confidence"], probabilities[range(48), golds])

    def test_metrics_follow_from_the_predictions(self, run_dir):
        from sklearn import metrics

        table, scores = common.read_predictions(run_dir), pd.read_csv(run_dir / "metrics.csv").set_index("metric")
        assert list(scores.columns) == evaluate.METRICS_HEADER[1:]
        assert scores.index[:2].tolist() == ["accuracy", "f1"]
        assert scores.loc["accuracy", "value"] == table["correct"].mean()
        assert scores.loc["f1", "value"] == metrics.f1_score(table["gold"], table["predicted"], pos_label="equivalent")
        assert (scores["ci_low"] <= scores["value"]).all()
        assert (scores["value"] <= scores["ci_high"]).all()
        assert {"macro_f1", "precision_equivalent", "recall_equivalent", "f1_not_equivalent"} <= set(scores.index)
        assert scores.loc["accuracy", "value"] > 31 / 48  # better than the majority label

    def test_intervals_are_the_middle_95_percent_of_the_draws(self, run_dir):
        table, scores = common.read_predictions(run_dir), pd.read_csv(run_dir / "metrics.csv").set_index("metric")
        draws = common.KINDS["classification"].resample(table, common.read_json(run_dir / "run.json")["task"])
        assert len(draws) >= 8
        for metric, values in draws.items():
            ends = scores.loc[metric, ["ci_low", "ci_high"]].tolist()
            assert ends == pytest.approx(np.quantile(values, [0.025, 0.975]))

    def test_calibration_follows_from_the_predictions(self, run_dir):
        table, scores = common.read_predictions(run_dir), pd.read_csv(run_dir / "metrics.csv").set_index("metric")
        assert scores.index[-3:].tolist() == ["aurc", "ece", "ece_temperature"]
        bins, curve = (pd.read_csv(run_dir / f"{name}.csv", encoding="utf-8-sig")
                       for name in ("calibration", "risk_coverage"))
        assert list(bins.columns) == ["scale", "bin", "n", "confidence", "accuracy", "ci_low", "ci_high"]
        assert bins.groupby("scale")["n"].apply(list).to_dict() == {"raw": [24, 24], "temperature": [24, 24]}
        for scale, metric in (("raw", "ece"), ("temperature", "ece_temperature")):
            rows = bins[bins["scale"] == scale]
            error = (rows["n"] * (rows["accuracy"] - rows["confidence"]).abs()).sum() / 48
            assert scores.loc[metric, "value"] == pytest.approx(error)
        assert (bins["accuracy"] * bins["n"]).sum() / 2 == pytest.approx(table["correct"].sum())
        temperature = common.read_json(run_dir / "run.json")["training"]["tuned"]["temperature"]
        scaled = table[["prob_not_equivalent", "prob_equivalent"]].to_numpy() ** (1 / temperature)
        confidence = scaled.max(axis=1) / scaled.sum(axis=1)
        assert scores.loc["ece_temperature", "value"] == pytest.approx(
            evaluate.calibration_error(confidence, table["correct"].to_numpy())[0])
        assert list(curve.columns) == ["scale", "coverage", "n", "confidence", "risk"]
        whole = curve[curve["coverage"] == 1]
        assert whole["risk"].tolist() == pytest.approx([1 - table["correct"].mean()] * 2)
        assert curve[curve["scale"] == "raw"]["risk"].mean() == pytest.approx(scores.loc["aurc", "value"])

    def test_confusion_counts_the_predictions(self, run_dir):
        table, confusion = common.read_predictions(run_dir), pd.read_csv(run_dir / "confusion.csv", index_col="gold")
        for gold in confusion.index:
            for predicted in confusion.columns:
                counted = ((table["gold"] == gold) & (table["predicted"] == predicted)).sum()
                assert confusion.loc[gold, predicted] == counted

    def test_vectors_belong_to_the_predictions(self, run_dir):
        states = np.load(run_dir / "hidden_states.npz", allow_pickle=False)
        assert states["id"].tolist() == common.read_predictions(run_dir)["id"].tolist()
        assert states["vector"].dtype == np.float32
        assert states["vector"].shape == (48, 64)

    def test_timing_has_one_row(self, run_dir):
        timing = pd.read_csv(run_dir / "timing.csv")
        assert len(timing) == 1
        assert 0 < timing["latency_ms_median"][0] <= timing["latency_ms_p95"][0]
        assert timing["examples_per_second"][0] > 0

    def test_evaluating_again_gives_the_same_files(self, run_dir, capsys):
        before = {name: (run_dir / name).read_bytes() for name in ("predictions.csv", "metrics.csv", "confusion.csv")}
        assert evaluate.main(["--run", str(run_dir)]) == 0
        assert before == {name: (run_dir / name).read_bytes() for name in before}
        output = capsys.readouterr().out
        assert "sample rows: the figures mean nothing" in output
        assert str(run_dir) in output

    def test_evaluating_a_part_says_so(self, run_dir, tmp_path):
        import shutil

        shutil.copytree(run_dir, tmp_path / "run")
        assert evaluate.main(["--run", str(tmp_path / "run"), "--max-eval-samples", "20"]) == 0
        assert set(pd.read_csv(tmp_path / "run" / "metrics.csv")["n"]) == {20}

    def test_baselines_stand_beside_ours_and_are_renewed(self, run_dir, tmp_path, capsys):
        import shutil

        shutil.copytree(run_dir, tmp_path / "run")
        assert evaluate.main(["--run", str(tmp_path / "run"), "--baselines"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split("  ")[0::2][:1] == ["metric"]
        assert "majority  tfidf + logistic regression" in lines[1]
        table = pd.read_csv(tmp_path / "run" / "baselines.csv", encoding="utf-8-sig")
        assert list(table.columns) == evaluate.BASELINES_HEADER
        assert table["metric"].tolist() == ["accuracy", "f1"] * 2
        assert table["value"][0] == pytest.approx(31 / 48)
        majority = common.judged(common.read_predictions(run_dir), "equivalent")
        draws = common.KINDS["classification"].resample(majority, common.read_json(run_dir / "run.json")["task"])
        ends = table.loc[0, ["ci_low", "ci_high"]].tolist()
        assert ends == pytest.approx(np.quantile(draws["accuracy"], [0.025, 0.975]))
        assert f"{table['value'][2]:.4f}" in lines[2]
        assert (table["ci_low"] <= table["value"]).all()
        assert (table["value"] <= table["ci_high"]).all()
        assert evaluate.main(["--run", str(tmp_path / "run"), "--max-eval-samples", "20"]) == 0
        assert set(pd.read_csv(tmp_path / "run" / "baselines.csv")["n"]) == {20}

    def test_same_seed_same_figures_other_seed_others(self, tmp_path):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            assert train.main([*TRAIN, "--seed", str(seed), "--run", str(tmp_path / name)]) == 0
        first, again, other = (pd.read_csv(tmp_path / name / "steps.csv") for name in "abc")
        pd.testing.assert_frame_equal(first, again)
        assert (first["loss"] != other["loss"]).any()

    def test_kept_epochs_are_the_validation_examples(self, tmp_path):
        assert train.main([*TRAIN, "--run", str(tmp_path), "--keep-epochs", "0", "2"]) == 0
        states = np.load(tmp_path / "epoch_states.npz", allow_pickle=False)
        assert states["epoch"].tolist() == [0, 2]
        assert states["vector"].shape == (2, 24, 64)
        assert states["predicted"].shape == states["confidence"].shape == (2, 24)
        assert all(name.startswith("validation-") for name in states["id"])
        score = pd.read_csv(tmp_path / "history.csv")["eval_accuracy"].iloc[-1]
        assert (states["predicted"][1] == states["gold"]).mean() == pytest.approx(score)
        assert (states["vector"][0] != states["vector"][1]).any()

    def test_training_texts_are_those_of_the_split(self, run_dir):
        table = common.read_csv(run_dir / "train_texts.csv")
        assert list(table.columns) == ["id", "sentence1", "sentence2", "label"]
        assert table["label"].value_counts().to_dict() == {"equivalent": 54, "not_equivalent": 26}

    def test_flags_reach_the_training(self, tmp_path):
        flags = ["--class-weights", "balanced", "--dropout", "0", "--lr-scheduler-type", "step", "--step-gamma", "0.5",
                 "--gradient-accumulation-steps", "2", "--train-per-class", "20", "--no-group-by-length"]
        assert train.main([*TRAIN, *flags, "--run", str(tmp_path)]) == 0
        run, steps = common.read_json(tmp_path / "run.json"), pd.read_csv(tmp_path / "steps.csv")
        assert run["data"]["labels"]["train"] == {"not_equivalent": 20, "equivalent": 20}
        assert set(run["model_info"]["dropout"].values()) <= {0.0, None}
        assert steps["learning_rate"].tolist() == [2e-3, 2e-3, 1e-3, 1e-3]  # 40 examples: 3 batches, 2 updates


def test_nothing_else_is_printed(tmp_path, capsys):
    """A print that was forgotten, in the loop or in the metrics, would stand among these lines."""
    beginnings = {
        train: ["MRPC: do two sentences", "source: ", "splits: ", "  train ", "  validation ", "  test ",
                "sample rows: ", "model: ", "epoch 1/2: ", "epoch 2/2: ", "wrote ", "best epoch: "],
        evaluate: ["MRPC: do two sentences", "metric ", "accuracy ", "f1 ", "calibration error ", "",
                   "sample rows: ", "written to "]}
    for script, expected in beginnings.items():
        assert script.main([*TRAIN, "--run", str(tmp_path)] if script is train else ["--run", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(expected), lines
        assert all(line.startswith(beginning) for line, beginning in zip(lines, expected, strict=True)), lines


def test_a_file_of_ones_own(tmp_path):
    rows = [{"review": f"{['lovely', 'awful'][number % 2]} film number {number}", "stars": [5, 1][number % 2]}
            for number in range(80)]
    path = tmp_path / "my films.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    flags = ["--dataset", str(path), "--sample", "--runs-dir", str(tmp_path / "runs")]
    assert train.main([*flags, "--text-column", "review", "--label-column", "stars", "--num-train-epochs", "8"]) == 0
    assert evaluate.main(flags) == 0
    table = common.read_predictions(tmp_path / "runs" / "my-films" / "sample" / "seed42")
    assert len(table) == 8
    assert table["correct"].all()
    assert set(table["gold"]) == {"1", "5"}


def test_a_run_is_tested_on_another_file_of_ones_own(tmp_path):
    for name, words in (("films", "film number"), ("books", "book, page")):
        rows = [{"text": f"{['lovely', 'awful'][i % 2]} {words} {i}", "label": "ab"[i % 2]} for i in range(40)]
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    flags = ["--text-column", "text", "--label-column", "label", "--sample", "--num-train-epochs", "1"]
    run = tmp_path / "run"
    assert train.main(["--dataset", str(tmp_path / "films.csv"), *flags, "--run", str(run)]) == 0
    assert evaluate.main(["--run", str(run)]) == 0
    before = (run / "predictions.csv").read_bytes()
    for script in (evaluate, errors):
        assert script.main(["--run", str(run), "--dataset", str(tmp_path / "books.csv")]) == 0
    assert (run / "predictions.csv").read_bytes() == before
    assert common.read_predictions(run / "on-books")["text"].tolist() == [  # all of the file, not a tenth of it
        f"{['lovely', 'awful'][i % 2]} book, page {i}" for i in range(40)]
    assert (run / "on-books" / "errors.csv").is_file()
    assert evaluate.main(["--run", str(run / "on-books")]) == 0  # the folder stands for its own data
    assert len(common.read_predictions(run / "on-books")) == 40


def test_a_run_on_a_catalog_key_is_tested_on_a_file_with_other_columns(tmp_path):
    run = tmp_path / "run"
    assert train.main([*TRAIN, "--run", str(run)]) == 0
    rows = [{"a": "The dog slept.", "b": f"Dog {i} was asleep.", "same": ["no", "equivalent"][i]} for i in (0, 1)]
    pd.DataFrame(rows).replace("no", "not_equivalent").to_csv(tmp_path / "MINE.CSV", index=False)
    columns = ["--text-column", "a", "b", "--label-column", "same"]
    assert evaluate.main(["--run", str(run), "--dataset", str(tmp_path / "MINE.CSV"), *columns]) == 0
    table = common.read_predictions(run / "on-MINE")
    assert table["b"].tolist() == ["Dog 0 was asleep.", "Dog 1 was asleep."]
    assert table["gold"].tolist() == ["not_equivalent", "equivalent"]


def start(*flags):
    """train.py in a process of its own."""
    return subprocess.Popen([sys.executable, "train.py", *TRAIN, *flags], cwd=ROOT, stderr=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert train.main([*TRAIN, "--num-train-epochs", "40", "--run", str(whole)]) == 0
    process = start("--num-train-epochs", "40", "--run", str(part))
    while not (part / "steps.csv").is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate()[1]
    assert process.returncode == 130
    assert "stopped by SIGTERM at step" in error.splitlines()[-1]
    assert "--resume" in error.splitlines()[-1]
    assert train.main([*TRAIN, "--num-train-epochs", "40", "--run", str(part), "--resume"]) == 0
    for name in ("steps.csv", "history.csv"):
        a, b = (pd.read_csv(folder / name).drop(columns=["seconds", "samples_per_second"], errors="ignore")
                for folder in (whole, part))
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert (whole / "model" / "model.safetensors").read_bytes() == (part / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "times", "said"), [
    ("SIGINT", 1, "stopped by SIGINT at step 4 of 10, checkpoint saved; go on with the same command and --resume"),
    ("SIGTERM", 1, "stopped by SIGTERM at step 4 of 10, checkpoint saved; go on with the same command and --resume"),
    ("SIGINT", 2, "stopped")])
def test_ctrl_c_finishes_the_step_and_a_second_one_does_not(tmp_path, monkeypatch, capsys, name, times, said):
    def send(self, _args, state, _control, **_):
        for _ in range(times if state.global_step == 3 else 0):
            signal.raise_signal(signal.Signals[name])

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is ignored
    monkeypatch.setattr(common.RunLog, "on_step_begin", send)
    try:
        assert train.main([*TRAIN, "--run", str(tmp_path)]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1].endswith(f": {said}")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"] * (times == 1)
    assert train.main([*TRAIN, "--run", str(tmp_path)]) == 2
    assert "holds an unfinished run; --overwrite replaces it, --resume goes on with it" in capsys.readouterr().err


def test_a_run_that_is_killed_at_its_very_end_goes_on(tmp_path, monkeypatch):
    """Before model/ is written, and before the run is called finished: no epoch is trained again."""
    whole = tmp_path / "whole"
    assert train.main([*TRAIN, "--run", str(whole)]) == 0
    for place, is_there in (("train.finish", lambda *_: True),
                            ("common.write_json", lambda _path, content: content.get("finished"))):
        def kill(*given, is_there=is_there, write=common.write_json):
            if is_there(*given):
                raise KeyboardInterrupt
            write(*given)

        part = tmp_path / place
        with monkeypatch.context() as patch:
            patch.setattr(place, kill)
            assert train.main([*TRAIN, "--run", str(part)]) == 130
        assert train.main([*TRAIN, "--run", str(part), "--resume"]) == 0
        for name in ("model/model.safetensors", "steps.csv"):
            assert (whole / name).read_bytes() == (part / name).read_bytes()
        assert {path.name for path in whole.iterdir()} == {path.name for path in part.iterdir()}


def stop_at(monkeypatch, step):
    """Have the next training stop after that step, as a signal would."""
    def told(self, _args, _control):
        self.signal = "a test" if self.bar.n == step else None
        return self.signal

    monkeypatch.setattr(common.RunLog, "_is_told_to_stop", told)


def test_resume_takes_the_newest_checkpoint_that_is_whole(tmp_path, monkeypatch, capsys):
    flags = [*TRAIN, "--save-steps", "1", "--run", str(tmp_path)]
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert train.main(flags) == 130
    args = train.build_parser().parse_args([*flags, "--resume"])
    train.complete(args)
    assert train.find_checkpoint(tmp_path, args) == tmp_path / "checkpoint-4"
    weights = tmp_path / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert train.find_checkpoint(tmp_path, args) == tmp_path / "checkpoint-3"
    assert "checkpoint-4 is not whole (model.safetensors): passed over" in capsys.readouterr().out


LORA = (*TRAIN, "--lora-rank", "4", "--activation-checkpointing")


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """A finished run with LoRA."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("lora")
    assert train.main([*LORA, "--run", str(folder)]) == 0
    return folder


class TestLora:
    def test_trains_the_head_and_few_other_parameters(self, lora_run, tmp_path):
        assert train.main([*TRAIN, "--run", str(tmp_path), "--learning-rate", "1e-30"]) == 0
        from safetensors.numpy import load_file
        before, after = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, lora_run))
        assert before.keys() == after.keys()  # merged: a model like any other
        changed = {name for name in before if not np.allclose(before[name], after[name], atol=1e-7)}
        assert "classifier.weight" in changed
        assert "bert.encoder.layer.0.attention.self.query.weight" in changed
        assert not {name for name in changed if "embeddings" in name or "LayerNorm" in name}

    def test_the_kept_epoch_scores_as_it_did_in_training(self, lora_run):
        run = common.read_json(lora_run / "run.json")
        data = common.load_data(train.build_parser().parse_args([*LORA]))
        tokenizer, model = common.load_model(str(lora_run / "model"), data.task)
        kind, validation = common.KINDS["classification"], data.splits["validation"]
        rows = kind.encode(validation, data.task, tokenizer, 128)
        outputs = common.predict(model, rows, kind, 32, "fp32")
        accuracy = kind.predict(outputs.logits, validation, data.task)["correct"].mean()
        assert accuracy == pytest.approx(run["training"]["best_score"])

    def test_resumes_bit_for_bit(self, lora_run, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            stop_at(patch, 3)
            assert train.main([*LORA, "--run", str(tmp_path)]) == 130
        assert train.main([*LORA, "--run", str(tmp_path), "--resume"]) == 0
        for name in ("model/model.safetensors", "steps.csv"):
            assert (tmp_path / name).read_bytes() == (lora_run / name).read_bytes()

    def test_without_the_package_is_one_line(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert train.main([*LORA, "--run", str(tmp_path)]) == 2
        assert "--lora-rank needs the package peft: pip install peft" in capsys.readouterr().err


@pytest.fixture(scope="module")
def seeds_dir(tmp_path_factory):
    """Two seeds of a model."""
    runs = tmp_path_factory.mktemp("seeds")
    assert train.main([*TRAIN, "--seeds", "1", "2", "--runs-dir", str(runs), "--num-train-epochs", "6"]) == 0
    return runs / "mrpc" / "sample"


class TestSeeds:
    def test_each_seed_is_trained_and_evaluated(self, seeds_dir):
        assert {path.name for path in seeds_dir.iterdir()} == {"learning_curve.png", "seed1", "seed2", "seeds.csv"}
        metrics = [pd.read_csv(seeds_dir / name / "metrics.csv").set_index("metric") for name in ("seed1", "seed2")]
        table = pd.read_csv(seeds_dir / "seeds.csv", encoding="utf-8-sig").set_index("metric")
        assert list(table.columns) == ["mean", "sd", "n", "min", "max", "seeds"]
        assert table.index.tolist() == metrics[0].index.tolist()
        for name in ("accuracy", "f1", "ece"):
            a, b = (one.loc[name, "value"] for one in metrics)
            row = table.loc[name]
            assert [row["mean"], row["sd"], row["min"], row["max"]] == pytest.approx(
                [(a + b) / 2, abs(a - b) / 2**0.5, min(a, b), max(a, b)])  # sd of two: |a - b| / sqrt(2)
        assert set(table["n"]) == {2}
        assert set(table["seeds"]) == {"1 2"}

    def test_a_call_that_broke_off_goes_on(self, seeds_dir, tmp_path, capsys):
        """The first seed was finished, the second had a checkpoint, the third had begun, the fourth had not."""
        import shutil

        flags = ["--runs-dir", str(tmp_path), "--num-train-epochs", "6"]
        place = tmp_path / "mrpc" / "sample"
        shutil.copytree(seeds_dir / "seed1", place / "seed1")
        shutil.copytree(seeds_dir / "seed1", place / "seed3", ignore=shutil.ignore_patterns("model", "*.png"))
        begun = common.read_json(place / "seed3" / "run.json")
        common.write_json(place / "seed3" / "run.json", begun | {"finished": None})
        process = start("--seed", "2", "--save-steps", "1", *flags)
        while not list((place / "seed2").glob("checkpoint-*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 130
        kept = (place / "seed1" / "model" / "model.safetensors").stat().st_mtime_ns
        assert train.main([*TRAIN, *flags, "--seeds", "1", "2", "3", "4", "--resume"]) == 0
        output = capsys.readouterr().out
        assert "seed 1: finished before, kept" in output
        assert "4 seeds, test, mean +- standard deviation: accuracy 0." in output
        assert (place / "seed1" / "model" / "model.safetensors").stat().st_mtime_ns == kept
        assert set(pd.read_csv(place / "seeds.csv")["n"]) == {4}
        for name in ("steps.csv", "metrics.csv"):  # as if it had not been stopped
            pd.testing.assert_frame_equal(*(pd.read_csv(folder / "seed2" / name) for folder in (seeds_dir, place)))
        assert all(common.finished_run(place / f"seed{seed}")["seed"] == seed for seed in (1, 2, 4))

    def test_what_is_in_the_way_is_said_before_training(self, seeds_dir, tmp_path, capsys):
        flags = [*TRAIN, "--runs-dir", str(seeds_dir.parents[1]), "--num-train-epochs", "6", "--seeds", "3", "2"]
        for changes, message in (
                ([], "seed2 holds a finished run; --overwrite replaces it, --resume keeps it"),
                (["--resume", "--dropout", "0.3"], "seed2)"), (["--seeds", "1", "1"], "names a seed twice")):
            assert train.main([*flags, *changes]) == 2
            assert message in capsys.readouterr().err
        assert not (seeds_dir / "seed3").exists()


class TestBadInput:
    def refused(self, capsys, script, flags, message, code=2):
        assert script.main([str(flag) for flag in flags]) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
        assert len([line for line in lines if line.strip()]) == 1

    @pytest.mark.parametrize(("flags", "message"), [
        (["--dataset", "mrcp"], "did you mean mrpc"),
        ([], "no --dataset given"),
        (["--datset", "mrpc"], "did you mean --dataset"),
        (["--dataset", "none.csv", "--text-column", "a", "--label-column", "b"], "no file none.csv"),
        (["--dataset", "mrpc", "--per-device-train-batch-size", "0"], "'0' is not a whole number of 1 or more"),
        (["--dataset", "mrpc", "--learning-rate", "nan"], "'nan' is not a finite number above 0"),
        (["--dataset", "mrpc", "--learning-rate", "-1"], "'-1' is not a finite number above 0"),
        (["--dataset", "mrpc", "--dropout", "1.5"], "'1.5' is not a number from 0 up to"),
        (["--dataset", "mrpc", "--seed", "-3"], "'-3' is not a whole number of 0 or more"),
        (["--dataset", "mrpc", "--precision", "int8"], "invalid choice: 'int8'"),
        (["--dataset", "mrpc", "--seed", "1", "--seeds", "2"], "not both"),
        (["--dataset", "mrpc", "--resume", "--overwrite"], "not both"),
    ])
    def test_of_train_py_before_anything_is_loaded(self, capsys, flags, message):
        self.refused(capsys, train, flags, message)

    def test_nothing_to_resume(self, capsys, run_dir, tmp_path):
        self.refused(capsys, train, [*TRAIN, "--run", tmp_path, "--resume"], "nothing to resume")
        self.refused(capsys, train, [*TRAIN, "--run", run_dir, "--resume"], "holds a finished run")

    def test_a_finished_run_is_not_overwritten_by_chance(self, capsys, run_dir):
        before = (run_dir / "run.json").read_bytes()
        self.refused(capsys, train, [*TRAIN, "--run", run_dir], "--overwrite replaces it")
        assert (run_dir / "run.json").read_bytes() == before

    def test_a_folder_without_weights(self, capsys, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        self.refused(capsys, train, [*TRAIN, "--model", tmp_path, "--run", tmp_path / "run"], "without weights")

    def test_max_length_beyond_the_model(self, capsys, tmp_path):
        self.refused(capsys, train, [*TRAIN, "--max-length", "600", "--run", tmp_path / "run"], "than the 512 tokens")

    def test_own_files(self, capsys, tmp_path):
        path = tmp_path / "a.csv"
        flags = ["--dataset", path, "--runs-dir", tmp_path, "--text-column", "text", "--label-column", "label"]
        for content, message in (("", "can't be read"), ("text,label\na,b\n", "1 label(s)"),
                                 ("text,label\n1,a\n2,b\n", "holds numbers"), ("txt,label\na,b\n", "no column 'text'")):
            path.write_text(content)
            self.refused(capsys, train, flags, message)

    @pytest.mark.parametrize(("flags", "message"), [
        (["--dataset", "mrpc"], "train one first"), ([], "neither --dataset nor --run"),
        (["--run", "."], "no run folder")])
    def test_of_evaluate_py(self, capsys, tmp_path, flags, message):
        self.refused(capsys, evaluate, [*flags, "--runs-dir", tmp_path], message)

    def test_a_training_that_diverges_ends_with_code_1(self, capsys, tmp_path):
        code = train.main([*TRAIN, "--learning-rate", "1e30", "--run", str(tmp_path / "run")])
        assert code == 1
        assert "the training loss is nan at step" in capsys.readouterr().err.splitlines()[-1]
        with pytest.raises(common.UserError, match="did not finish"):
            common.finished_run(tmp_path / "run")

    def test_what_a_person_wrote_survives_overwrite(self, tmp_path):
        assert train.main([*TRAIN, "--num-train-epochs", "1", "--run", str(tmp_path)]) == 0
        (tmp_path / "errors.csv").write_text("mine")
        (tmp_path / "report_notes.md").write_text("## Author\nme")
        (tmp_path / "report.tex").write_text("mine too")
        (tmp_path / "predictions.csv").write_text("of the old model")
        assert train.main([*TRAIN, "--num-train-epochs", "1", "--run", str(tmp_path), "--overwrite"]) == 0
        assert (tmp_path / "errors.csv").read_text() == "mine"
        assert (tmp_path / "report_notes.md").read_text() == "## Author\nme"
        assert (tmp_path / "report.tex").read_text() == "mine too"
        assert not (tmp_path / "predictions.csv").exists()


def test_overwrite_renews_the_tests_on_other_data_sets_too(tmp_path):
    """What evaluate.py --dataset wrote goes, what a person wrote stays."""
    other = tmp_path / "on-other"
    other.mkdir()
    for name in ("run.json", "predictions.csv", "metrics.csv", "errors.csv", "errors_orphans.csv", "report_notes.md"):
        (other / name).write_text("x")
    train.remove_old_run(tmp_path)
    assert sorted(path.name for path in other.iterdir()) == ["errors.csv", "errors_orphans.csv", "report_notes.md"]


def test_no_hub_is_one_line(tmp_path):
    """A hub that can't be reached: what could not be fetched, from where, and the ways on; exit code 2."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "train.py", "--dataset", "mrpc", "--runs-dir", str(tmp_path)], cwd=ROOT,
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "could not fetch the dataset nyu-mll/glue from http://127.0.0.1:9" in done.stderr
    assert "--sample" in done.stderr


def test_output_that_nobody_reads_is_one_line():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "train.py", "--list"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE,
                          text=True, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "train.py: who read the output has gone (| head?); the files written so far are whole\n"


def test_help_does_not_wait_for_torch():
    code = ("import sys, train, evaluate\n"
            "for script in (train, evaluate): script.build_parser().format_help()\n"
            "print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
