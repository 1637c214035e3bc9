import csv
import io
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

import errors
import evaluate
from common import read_csv, write_csv, write_json

TASK = {"title": "Toy", "text": ["text"], "kind": "classification", "labels": ["bad", "good"], "positive": "good"}
PREDICTIONS = b"id,split,text,gold,predicted,correct,confidence,gold_confidence,margin\n"
QUIET = settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["=1+1", "'=1", "-x", "@user", "\tx", "\r", "a,b;c\td", 'say "hi"', "two\nlines", "-1.5", "“q” ’s", "\ufeffx"])
RESAVED = st.fixed_dictionaries({
    "delimiter": st.sampled_from(",;\t"), "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    "reverse": st.booleans(), "blank": st.booleans(),
    "spell": st.sampled_from([str, str.title, lambda name: f" {name.upper().replace('_', ' ')} "])})


def prediction(number, gold, predicted, confidence=0.75, text=None, **more):
    return {"id": f"test-{number:06d}", "split": "test", "text": text or f"text {number}", "gold": gold,
            "predicted": predicted, "correct": gold == predicted, "confidence": confidence,
            "gold_confidence": confidence if gold == predicted else 1 - confidence,
            "margin": 2 * confidence - 1, **more}


def make_run(folder, predictions, task=TASK, train=None):
    write_json(folder / "run.json", {"finished": "now", "model": "m", "seed": 1, "sample": True, "task": task,
                                     "data": {"rows": {"test": 0}}})
    write_csv(folder / "predictions.csv", pd.DataFrame(predictions))
    if train is not None:
        write_csv(folder / "train_texts.csv", pd.DataFrame(train))


def run_errors(folder, *flags):
    return errors.main(["--run", str(folder), *flags])


def fill_in(folder, **columns):
    """Write into the sheet as a person does."""
    sheet = errors.read_sheet(folder / "errors.csv").assign(**columns)
    write_csv(folder / "errors.csv", sheet)
    return sheet


def resave(path, delimiter=",", encoding="utf-8-sig", reverse=False, spell=str, cell=str, blank=False):
    """Save the CSV file again as a spreadsheet might, which sees the escapes as part of the text."""
    rows = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))
    rows = [[spell(name) for name in rows[0]], *[[cell(text) for text in row] for row in rows[1:]]]
    out = io.StringIO(newline="")
    for row in rows:
        csv.writer(out, delimiter=delimiter).writerow(row[::-1] if reverse else row)
        out.write(delimiter * 3 + "\r\n" if blank else "")
    path.write_bytes(out.getvalue().encode(encoding))


def update(folder, table, n, seed):
    return errors.update_sheet(folder, table, table["error_type"], n, seed)


def make_errors(numbers):
    """Rows of wrong samples, a third of them of a type of their own."""
    rows = [[f"test-{i}", f"“text” {i}", "bad", "good", "0.7", "0.3", "0.4", f"type {i % 3 == 0}", ""] for i in numbers]
    return pd.DataFrame(rows, columns=errors.COMPUTED, dtype=object)


@pytest.mark.parametrize(("count", "n", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson_equals_newcombe_1998_table_1(count, n, low, high):
    assert errors.wilson(count, n) == pytest.approx((low, high), abs=5e-5)
    assert errors.wilson(n, n)[1] == 1 and all(map(math.isnan, errors.wilson(0, 0)))


@given(st.tuples(*[st.integers(0, 40)] * 4))
@QUIET
def test_fisher_p_equals_scipy(cells):
    wrong_in, right_in, wrong_out, right_out = cells
    p = errors.fisher_p(wrong_in, wrong_in + right_in, wrong_out, wrong_out + right_out)
    assert p == pytest.approx(fisher_exact([[wrong_in, right_in], [wrong_out, right_out]]).pvalue, abs=1e-9)


def test_kappa_of_a_hand_worked_table():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7; chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5; kappa 0.2 / 0.5
    first, second = ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert errors.cohen_kappa(first, second) == pytest.approx(0.4)
    assert math.isnan(errors.cohen_kappa(["yes", "yes"], ["yes", "yes"]))


@given(st.lists(st.sampled_from("aaaabbc"), max_size=60), st.integers(1, 30), st.integers(0, 9), st.data())
@QUIET
def test_draw_is_stratified_and_holds_what_is_kept(types, n, seed, data):
    keep = data.draw(st.sets(st.integers(0, len(types) - 1), max_size=10)) if types else set()
    series = pd.Series(types, dtype=object)
    fresh, drawn = errors.draw(series, n, seed, set()), errors.draw(series, n, seed, keep)
    assert keep <= set(drawn) and drawn == sorted(set(drawn)) == errors.draw(series, n, seed, set(drawn))
    assert len(fresh) == min(n, len(types))
    for name in set(types):
        n_fresh, n_drawn, n_kept = (sum(types[i] == name for i in positions) for positions in (fresh, drawn, keep))
        assert n_drawn == max(n_fresh, n_kept)
        assert n < 3 or (n_fresh > 0 and abs(n_fresh - len(fresh) * types.count(name) / len(types)) < 2)


def test_draw_is_random_within_a_type():
    assert len({tuple(errors.draw(pd.Series(["a"] * 50, dtype=object), 5, seed, set())) for seed in range(5)}) == 5


def test_the_sheet_of_a_small_run(tmp_path, capsys):
    make_run(tmp_path, [prediction(0, "bad", "good", 0.98765, "=never\n“x”"), prediction(1, "good", "bad", 0.5, "-5"),
                        *[prediction(i, "good", "good", 0.6) for i in range(2, 10)]])
    assert run_errors(tmp_path) == 0
    sheet = errors.read_sheet(tmp_path / "errors.csv")
    assert list(sheet.columns) == errors.SHEET_COLUMNS
    assert sheet.to_numpy().tolist() == [
        ["test-000000", "=never\n“x”", "bad", "good", "0.9877", "0.0123", "0.9753", "FP of good",
         "very long | negation | high confidence", "", "", "", ""],
        ["test-000001", "-5", "good", "bad", "0.5", "0.5", "0", "FN of good",
         "very short", "", "", "", ""]]
    raw = (tmp_path / "errors.csv").read_bytes().decode("utf-8-sig")
    assert '"\'=never\n“x”",bad,good,0.9877' in raw and "test-000001,-5,good" in raw
    types = read_csv(tmp_path / "error_types.csv")[["rank", "name", "count", "share", "n_annotated", "n_errors"]]
    assert [",".join(row) for row in types.to_numpy()] == ["1,FN of good,1,0.5,2,2", "2,FP of good,1,0.5,2,2"]
    slices = read_csv(tmp_path / "slices.csv", [*errors.RATE_COLUMNS, "fisher_p"]).set_index("tag")
    # 2 errors among 10 samples: the one tagged sample is an error in 2 of 10 tables
    columns = ["n_inside", "errors_inside", "n_outside", "errors_outside", "fisher_p"]
    assert slices.loc["negation", columns].tolist() == [1, 1, 9, 1, pytest.approx(0.2)]
    assert "suspect gold label" not in slices.index
    assert "2 of 2 errors in 10 samples, all; sample rows: figures mean nothing" in capsys.readouterr().out


def test_tags_of_pairs_and_of_training_texts():
    ten = "one two three four five six seven eight nine ten"
    pairs = [("a b c 3", "c b a 3 d"), ("in 1999", "in 2001 or 1999"), (ten, "zz"), (ten + " x", "zz"), ("a b", "c d")]
    table = pd.DataFrame([prediction(i, "bad", "bad", first=pair[0], second=pair[1]) for i, pair in enumerate(pairs)])
    train = pd.DataFrame([{"first": f"Ten {ten}, y", "second": "zz", "label": "good"},
                          {"first": "a b", "second": "c e", "label": "good"},
                          {"first": "a B c d", "second": "in or 1999 3", "label": "bad"}])
    tags = errors.tag_samples(table, {**TASK, "text": ["first", "second"]}, train)
    assert tags["high overlap"].tolist() == [True, True, False, False, False]
    assert tags["numbers differ"].tolist() == [False, True, False, False, False]
    assert tags["unseen words"].tolist() == [False, True, False, False, False]
    assert tags["near-duplicate in train"].tolist() == [False, False, True, True, False]
    without = errors.tag_samples(table, {**TASK, "text": ["first"]}, None)
    numbers = errors.tag_samples(table, {**TASK, "text": ["first", "second"], "kind": "regression"}, train)
    assert not {"unseen words", "near-duplicate in train"} & set(without.columns)
    assert set(tags.columns) - set(numbers.columns) == {"near-duplicate in train"}
    assert not tags["suspect gold label"].any() and all(name in errors.CODEBOOK for name in tags.columns)


def test_the_lowest_twentieth_of_gold_confidences_is_suspect_where_wrong():
    rows = [prediction(i, "bad", "good" if i in (3, 4, 7) else "bad", 0.9 - i / 100) for i in range(40)]
    table = pd.DataFrame(rows).assign(gold_confidence=[i / 100 for i in range(40, 0, -1)])
    table.loc[[3, 7], "gold_confidence"] = 0.001, 0.002  # of 40, the lowest two; the right 38 and 39 come next
    assert errors.tag_samples(table, TASK, None)["suspect gold label"].to_numpy().nonzero()[0].tolist() == [3, 7]
    table["gold_confidence"] = [0.0] * 3 + [0.5] * 37  # three alike are more than a twentieth
    table["correct"] = False
    assert not errors.tag_samples(table, TASK, None)["suspect gold label"].any()
    table["correct"], table["gold_confidence"] = False, math.nan
    assert not errors.tag_samples(table, TASK, None)["suspect gold label"].any()


@pytest.mark.parametrize(("gold", "predicted", "name"), [
    ("2.5", "-4.0", "over by 1.5"), ("in 1066", "", "missed answer"), ("a | b", "none", "missing a | b")])
def test_every_kind_of_prediction_has_a_sheet(tmp_path, monkeypatch, gold, predicted, name):
    monkeypatch.setitem(errors.KINDS, "any", SimpleNamespace(
        error_types=lambda wrong, task: [name] * len(wrong), error_class=lambda name: name.split()[0],
        confidence_is="", continuous=True, closed_set=False,
        is_answer=lambda cells, task: pd.Series(True, cells.index)))
    row = prediction(0, gold, predicted, math.nan, "x" * 40_000, second="b", abs_error=1.5)
    make_run(tmp_path, [row], {**TASK, "kind": "any", "text": ["text", "second"]})
    assert run_errors(tmp_path) == 0
    assert errors.read_sheet(tmp_path / "errors.csv").iloc[0, 1:8].tolist() == [
        f"text: {'x' * 31_994} [of 40016]", gold, predicted, "", "", "", name]
    assert read_csv(tmp_path / "error_types.csv")["name"].tolist() == [name.split()[0]]


def test_the_sheet_says_which_confidence_it_shows(tmp_path, capsys):
    rows = [{"metric": name, "value": value, "ci_low": 0.01, "ci_high": 0.08, "n": 48, "split": "test"}
            for name, value in (("accuracy", 0.9), ("ece", 0.0456), ("ece_temperature", 0.02))]
    for folder, metrics, told in (
            (tmp_path / "a", None, "calibration.csv\n"), (tmp_path / "b", rows, "0.046 (0.010-0.080)")):
        make_run(folder, [prediction(0, "bad", "good")])
        if metrics:
            write_csv(folder / "metrics.csv", pd.DataFrame(metrics, columns=evaluate.METRICS_HEADER))
        assert run_errors(folder) == 0
        for text in (capsys.readouterr().out, (folder / "codebook.md").read_text(encoding="utf-8")):
            assert "softmax probability of the predicted label, raw: without the temperature" in text
            assert told in text


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS), min_size=1, max_size=4), RESAVED)
@QUIET
def test_the_sheet_survives_spreadsheets(tmp_path, rows, how):
    sheet = pd.DataFrame([[f"test-{i}", text, "bad", "good", "0.7", "0.3", "0.4", "FP of good", "", *rest, "bad"]
                          for i, (text, *rest) in enumerate(rows)], columns=errors.SHEET_COLUMNS, dtype=object)
    sheet.insert(10, "My Column", "x")
    write_csv(tmp_path / "errors.csv", sheet)
    how = {**how, "spell": lambda name, spell=how["spell"]: name if name == "My Column" else spell(name)}
    resave(tmp_path / "errors.csv", **how)
    assert errors.read_sheet(tmp_path / "errors.csv")[sheet.columns].to_numpy().tolist() == sheet.to_numpy().tolist()


@given(st.lists(st.tuples(st.sets(st.integers(0, 9)), st.integers(1, 6), RESAVED), min_size=2, max_size=5),
       st.randoms(use_true_random=False))
@QUIET
def test_no_annotation_is_ever_lost(tmp_path_factory, runs, random):
    folder = tmp_path_factory.mktemp("run")
    notes = []
    for turn, (wrong, n, how) in enumerate(runs):
        sheet = update(folder, make_errors(sorted(wrong)), n, seed=turn)
        orphans = folder / "errors_orphans.csv"
        kept = sheet.to_csv() + (errors.read_sheet(orphans).to_csv() if orphans.is_file() else "")
        assert [note for note in notes if note not in kept] == []
        if len(sheet):
            row, column = random.randrange(len(sheet)), random.choice(["cause", "notes", "cause_2"])
            notes.append(f"-note {turn};")
            sheet.loc[row, column] = (sheet[column][row] if column in sheet else "") + notes[-1]
            write_csv(folder / "errors.csv", sheet)
            resave(folder / "errors.csv", **how)


@given(st.lists(TEXTS, min_size=1, max_size=5), RESAVED, st.sampled_from([
    lambda text: text.translate(str.maketrans("'\"", "’”")), lambda text: text.translate(errors.STRAIGHT_QUOTES),
    lambda text: text.replace("\n", "\r\n") + " ", lambda text: text.replace(" ", "\u00a0").replace("-", "–"),
    lambda text: re.sub("[a-z]", lambda letter: letter[0].upper(), text)]))
@QUIET
def test_notes_stay_with_their_samples_however_the_inputs_come_back(tmp_path_factory, texts, how, change):
    folder, table = tmp_path_factory.mktemp("run"), make_errors(range(len(texts))).assign(input=texts)
    sheet = update(folder, table, 20, seed=0)
    notes = [f"note on {sample_id}" for sample_id in sheet["id"]]
    fill_in(folder, notes=notes, input=sheet["input"].map(change))
    resave(folder / "errors.csv", **how)
    again = update(folder, table, 20, seed=0)
    assert [again[name].tolist() for name in ("id", "input", "notes")] == [
        sheet["id"].tolist(), sheet["input"].tolist(), notes]
    assert not (folder / "errors_orphans.csv").exists()


def annotated(folder, cell=str, **row):
    """The sheet of errors 0 to 3 after a person filled in `row` for error 1, and their file."""
    update(folder, make_errors(range(4)), 20, 0)
    fill_in(folder, **{name: ["", text, "", ""] for name, text in row.items()})
    resave(folder / "errors.csv", cell=cell)
    before = (folder / "errors.csv").read_bytes()
    return update(folder, make_errors(range(4)), 20, 0), before


@pytest.mark.parametrize("changed", ['"text" {}', "'“text”\u00a0{} \r\n", "TEXT {}"])
def test_an_input_that_a_spreadsheet_changed_still_matches(tmp_path, changed):
    sheet, _ = annotated(tmp_path, lambda cell: changed.format(cell[-1]) if "text" in cell else cell, cause="c")
    assert sheet["cause"].tolist() == ["", "c", "", ""] and sheet["input"].tolist() == [f"“text” {i}" for i in range(4)]


def test_what_was_written_of_another_text_is_not_put_beside_the_same_id(tmp_path):
    annotated(tmp_path, cause="c")
    sheet = update(tmp_path, make_errors(range(4)).assign(input="of other data"), 20, 0)
    assert set(sheet["cause"]) == {""}
    assert errors.read_sheet(tmp_path / "errors_orphans.csv")[["id", "input", "cause"]].to_numpy().tolist() == [
        ["test-1", "“text” 1", "c"]]


def test_a_person_s_columns_stay_and_their_file_is_kept_before_it_changes(tmp_path):
    sheet, before = annotated(tmp_path, mine="=SUM(A1)", cause_2="c", llm_prediction="good")
    assert list(sheet.columns) == [*errors.COMPUTED, "cause", "solution", "cause_2", "notes", "mine", "llm_prediction"]
    assert sheet.loc[1, ["mine", "cause_2", "llm_prediction"]].tolist() == ["=SUM(A1)", "c", "good"]
    assert (tmp_path / "errors.backup.csv").read_bytes() == before
    (tmp_path / "errors.backup.csv").unlink()
    update(tmp_path, make_errors(range(4)), 20, 0)
    assert not (tmp_path / "errors.backup.csv").exists()


def test_annotated_rows_stay_whatever_is_drawn_and_orphans_are_appended(tmp_path, capsys):
    annotated(tmp_path, cause="c")
    sheet = update(tmp_path, make_errors(range(1, 60)), 3, 7)
    assert len(sheet) == 3 and sheet["id"][0] == "test-1" and sheet["cause"][0] == "c"
    update(tmp_path, make_errors([5]), 3, 7)
    fill_in(tmp_path, notes="n")
    assert update(tmp_path, make_errors([]), 3, 7).empty
    orphans = errors.read_sheet(tmp_path / "errors_orphans.csv")
    assert orphans[["id", "cause", "notes"]].to_numpy().tolist() == [["test-1", "c", ""], ["test-5", "", "n"]]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"annotated, but no errors of this run any more; kept in {tmp_path / 'errors_orphans.csv'}: test-5")


def test_a_row_that_was_copied_and_the_true_of_excel(tmp_path):
    table = make_errors(range(2)).assign(gold="true", predicted="false")
    sheet = update(tmp_path, table, 20, 0).assign(llm_prediction="TRUE")
    write_csv(tmp_path / "errors.csv", pd.concat([sheet, sheet.assign(cause="c"), sheet.assign(cause="d")]))
    sheet = update(tmp_path, table, 20, 0)
    assert sheet["cause"].tolist() == ["c", "c"] and sheet["llm_prediction"].tolist() == ["true", "true"]
    assert errors.read_sheet(tmp_path / "errors_orphans.csv")["cause"].tolist() == ["d", "d"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("errors.csv", b"PK\x03\x04\x9f", "is no CSV in UTF-8"),
    ("errors.csv", b"id,input\n1,\xe9\n", "is no CSV in UTF-8"),
    ("errors.csv", b"", "has no columns id and input"),
    ("errors.csv", b"id,input,Cause,cause \n1,a,b,c\n", "has the column cause twice"),
    ("predictions.csv", PREDICTIONS, "has no rows"), ("predictions.csv", b"", "has no column id, split"),
    ("predictions.csv", PREDICTIONS.replace(b"text", b"texts"), "has no column text"),
    ("predictions.csv", PREDICTIONS + b"7,test,x,bad,good,False,1,0,1\n" * 2, "row 3: 7 can't be the id there")])
def test_files_that_cannot_be_used_are_left_alone(tmp_path, capsys, name, content, message):
    make_run(tmp_path, [prediction(0, "bad", "good")])
    (tmp_path / name).write_bytes(content)
    assert run_errors(tmp_path) == 2 and (tmp_path / name).read_bytes() == content
    assert message in capsys.readouterr().err


def test_a_sheet_brought_back_as_xlsx_is_named(tmp_path, capsys):
    make_run(tmp_path, [prediction(0, "bad", "good")])
    (tmp_path / "errors.xlsx").write_bytes(b"PK")
    assert run_errors(tmp_path) == 0
    assert "errors.xlsx is not read: export it as CSV UTF-8, errors.csv" in capsys.readouterr().out


def test_rows_that_end_early_and_columns_without_a_name(tmp_path):
    (tmp_path / "sheet.csv").write_bytes(b"\r\n input ;ID;;\r\na;1\r\n;;;\r\nb;2;;remark\r\n")
    sheet = errors.read_sheet(tmp_path / "sheet.csv")
    assert sheet[["id", "input", "column 4"]].to_numpy().tolist() == [["1", "a", ""], ["2", "b", "remark"]]


def test_rankings_of_an_annotated_sheet(tmp_path, capsys):
    make_run(tmp_path, [prediction(i, "bad", "good") for i in range(6)], train=[{"text": "a", "label": "bad"}])
    run_errors(tmp_path)
    fill_in(tmp_path, cause=["One’s gold", "one's  gold | rare words", "mislabelled", "mislabeled", " ", ""],
            cause_2=["one's gold", "rare words|one's gold", "irony", "mislabeled", "irony", ""])
    assert run_errors(tmp_path) == 0
    causes = read_csv(tmp_path / "error_causes.csv", set(errors.RANKING_COLUMNS) - {"name"})
    assert causes[["rank", "name", "count", "share", "n_annotated", "n_errors"]].to_numpy().tolist() == [
        [1, "One’s gold", 2, 0.5, 4, 6], [2, "mislabeled", 1, 0.25, 4, 6], [3, "mislabelled", 1, 0.25, 4, 6],
        [4, "rare words", 1, 0.25, 4, 6]]
    assert causes.loc[0, ["ci_low", "ci_high"]].tolist() == pytest.approx(errors.wilson(2, 4))
    out = capsys.readouterr().out
    assert "cause: `mislabeled` and `mislabelled` look alike; if they are one, write one" in out
    # three of four agree; chance: 1/4 x 1/4 for each of the three names that both used; kappa (12 - 3) / (16 - 3)
    assert "cause and cause_2: Cohen's kappa 0.69 over 4 rows that both filled in" in out
    assert (tmp_path / "error_causes.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "error_solutions.png").exists()
    fill_in(tmp_path, cause="")
    run_errors(tmp_path)
    assert not (tmp_path / "error_causes.csv").exists() and not (tmp_path / "error_causes.png").exists()


def test_check_lists_what_is_missing_and_how_to_mend_it(tmp_path, capsys):
    make_run(tmp_path, [prediction(i, "bad", "good") for i in range(4)])
    pictures = ["missing: learning_curve.png: run visualize.py", "missing: embedding_*.png: run visualize.py"]
    notes = ("missing: your text in report_notes.md: Author; How the training went; What the model struggles with; How "
             "the errors could be mended")
    assert run_errors(tmp_path, "--check") == 1
    assert capsys.readouterr().out.splitlines() == ["missing: errors.csv: run errors.py", *pictures, notes]
    run_errors(tmp_path, "--n", "3")
    first, second, third = fill_in(tmp_path, cause=["irony", "", " "], solution=[
        "More  data.", "more data | relabel", "more training data | additional samples"])["id"]
    capsys.readouterr()
    assert run_errors(tmp_path, "--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        "missing: rows in errors.csv: 3 of 4 errors, 20 are asked for: run errors.py --n 20",
        f"missing: cause in 2 of 3 rows of errors.csv ({second}, {third}): fill it in",
        "missing: llm_prediction in 3 of 3 rows of errors.csv: run llm_compare.py",
        f"missing: the kind of data where solution is only `more data` ({first}, {third}): name it",
        "missing: error_causes.csv: run errors.py again", "missing: error_solutions.csv: run errors.py again",
        *pictures, notes]
    run_errors(tmp_path)
    fill_in(tmp_path, cause="irony", solution="more data: ironic ones", llm_prediction="bad")
    run_errors(tmp_path)
    for name in ("learning_curve.png", "embedding_tsne.png"):
        (tmp_path / name).touch()
    written = (tmp_path / "report_notes.md").read_text(encoding="utf-8").replace("-->", "-->\nMine.")
    (tmp_path / "report_notes.md").write_text(written, encoding="utf-8")
    capsys.readouterr()
    assert run_errors(tmp_path, "--check") == 0
    assert capsys.readouterr().out == f"{tmp_path}: nothing is missing\n"
    (tmp_path / "report.tex").write_text("mine, but TO WRITE: the end. Later.")
    assert run_errors(tmp_path, "--check") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "missing: your text in report_notes.md: the end"


def test_long_names_of_bars_take_two_lines():
    assert errors.on_two_lines("a -> b") == "a -> b"
    assert errors.on_two_lines("4. prejudiced discussions -> 2. derogation") == (
        "4. prejudiced discussions\n-> 2. derogation")
    assert errors.on_two_lines(f"{'x' * 40} -> {'y' * 40}") == f"{'x' * 33}…\n-> {'y' * 30}…"
    assert errors.on_two_lines("one two three " * 9).count("\n") == 1


def test_names_of_bars_that_no_font_can_draw_are_replaced_and_named(tmp_path, capsys):
    make_run(tmp_path, [prediction(i, "\U0001242b", "$x_1$") for i in range(3)],
             {**TASK, "labels": ["a", "\U0001242b", "$x_1$"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_errors(tmp_path) == 0
    assert "error_types.png: 1 characters that no installed font has are drawn as □: U+1242B" in capsys.readouterr().out
    assert read_csv(tmp_path / "error_types.csv")["name"].tolist() == ["\U0001242b -> $x_1$"]


def test_no_errors_at_all_and_a_codebook_that_a_person_changed(tmp_path, capsys):
    make_run(tmp_path, [prediction(0, "bad", "bad")])
    (tmp_path / "codebook.md").write_text("mine")
    assert run_errors(tmp_path) == 0
    assert errors.read_sheet(tmp_path / "errors.csv").empty and not (tmp_path / "error_types.png").exists()
    assert "errors.csv: 0 of 0 errors in 1 samples" in capsys.readouterr().out
    assert (tmp_path / "codebook.md").read_text() == "mine"


def test_errors_imports_nothing_slow(tmp_path):
    make_run(tmp_path, [prediction(0, "bad", "good")], train=[{"text": "a", "label": "bad"}])
    slow = "{'torch', 'transformers', 'datasets', 'sklearn', 'scipy'} & set(sys.modules)"
    code = f"import sys, errors; assert errors.main(sys.argv[1:]) == 0; print('slow:', sorted({slow}))"
    done = subprocess.run([sys.executable, "-c", code, "--run", str(tmp_path)], cwd=Path(errors.__file__).parent,
                          capture_output=True, text=True, check=True)
    assert done.stdout.endswith("slow: []\n")
