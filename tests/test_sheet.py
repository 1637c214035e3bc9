"""errors.csv between errors.py, spreadsheets and people: no cell that a person wrote is lost, however it comes back."""

import csv
import io
import random
import re

import pandas as pd
import pytest
from conftest import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_errors import fill_in, make_run, prediction, wrong_ones

import common

QUIET = settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck), derandomize=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["=1+1", "'=1", "-x", "@user", "\tx", "\r", "a,b;c\td", 'say "hi"', "two\nlines", "-1.5", "“q” ’s", "\ufeffx", "＝1"])
RESAVED = st.fixed_dictionaries({
    "delimiter": st.sampled_from(",;\t"), "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    "end": st.sampled_from(["\n", "\r\n"]), "shuffle": st.none() | st.integers(0, 9), "mirror": st.booleans(),
    "blank": st.booleans(), "drop": st.sampled_from([None, "input", "auto_tags", "nearest_train", "error_type"]),
    "spell": st.sampled_from([str, str.title, lambda name: f" {name.upper().replace('_', ' ')} "])})
CURLY = str.maketrans("'\"", "’”")
OURS = ("id", "input", "gold", "predicted", "confidence", "gold_confidence", "margin", "error_type", "auto_tags",
        "nearest_train", "nearest_label", "nearest_similarity")  # errors.py renews these
MINE = ["cause", "solution", "cause_2", "notes", "My Column", "=1+1"]


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "save_figure", lambda *_: None)
        yield


def resave(path, delimiter=",", encoding="utf-8-sig", end="\r\n", shuffle=None, mirror=False, blank=False, drop=None,
           spell=str, cell=str):
    """Save the file again as a spreadsheet might, which takes our escapes for a part of the text."""
    header, *rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
    if shuffle is not None:
        random.Random(shuffle).shuffle(rows)
    names = [spell(name) if name in (*OURS, "cause", "solution", "cause_2", "notes") else name for name in header]
    kept = [i for i, name in enumerate(header) if name != drop or name in ("id", "input")][::-1 if mirror else 1]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    for row in [names, *([cell(text) for text in row] for row in rows)]:
        writer.writerow([row[i] for i in kept])
        out.write((delimiter * 3 + end) * blank)
    path.write_bytes(out.getvalue().encode(encoding))


def sheet_of(folder):
    return common.read_csv(folder / "errors.csv")


def written_in(sheet):
    """{id: what a person wrote}."""
    return {row["id"]: [row.get(name) for name in MINE] for row in sheet.to_dict("records")}


def new_run(factory, predictions, *flags):
    folder = make_run(factory.mktemp("run"), predictions)
    assert run("errors", "--run", folder, *flags) == 0
    return folder


# ---- Round trips ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[TEXTS] * (1 + len(MINE))), min_size=1, max_size=4), RESAVED, st.booleans())
@QUIET
def test_no_cell_of_a_person_is_lost(tmp_path_factory, rows, how, elsewhere):
    folder = new_run(tmp_path_factory, [prediction(i, "bad", "good", text=row[0]) for i, row in enumerate(rows)])
    fill_in(folder, **dict(zip(MINE, map(list, zip(*(row[1:] for row in rows), strict=True)), strict=True)))
    before, path = sheet_of(folder), folder / "errors.csv"
    wanted = {name: row for name, row in written_in(before).items() if any(map(str.strip, row))}
    assert all(row in (list(one[1:]) for one in rows) for row in wanted.values())
    resave(path, **how)
    if elsewhere:
        path = path.rename(folder / "download.csv")
    assert run("errors", "--run", folder, *(["--sheet", path] if elsewhere else [])) == 0
    after = sheet_of(folder)
    assert {name: written_in(after)[name] for name in wanted} == wanted
    assert {tuple(row) for row in after[[*OURS]].to_numpy()} == {tuple(row) for row in before[[*OURS]].to_numpy()}
    assert not (folder / "errors_orphans.csv").exists()


VARIANTS = {
    "as it was": {}, "rows shuffled": {"shuffle": 1}, "line ends of Windows": {"end": "\r\n"}, "of Unix": {"end": "\n"},
    "no byte-order mark": {"encoding": "utf-8"}, "semicolons": {"delimiter": ";"},
    "UTF-16 tabs": {"delimiter": "\t", "encoding": "utf-16"}, "Windows-1252": {"delimiter": ";", "encoding": "cp1252"},
    "a column deleted": {"drop": "nearest_train"}, "columns in another order": {"mirror": True},
    "other spelling": {"spell": str.title}, "blank rows": {"blank": True}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_saving_keeps_20_annotated_rows(tmp_path, capsys, variant):
    texts = [f'“q” {i}, it\'s a;b\n"two" lines\tand é' for i in range(20)]
    make_run(tmp_path, [prediction(i, "bad", "good", text=text) for i, text in enumerate(texts)],
             [{"text": "a b", "label": "bad"}])
    run("errors", "--run", tmp_path)
    numbers = sheet_of(tmp_path)["id"]
    wrote = {name: [f"-{name} of {number};\nñ," for number in numbers] for name in ("cause", "solution", "notes", "mine")}
    fill_in(tmp_path, **wrote)
    resave(tmp_path / "errors.csv", **VARIANTS[variant])
    before, shuffled = (tmp_path / "errors.csv").read_bytes(), variant == "rows shuffled"
    assert run("errors", "--run", tmp_path) == 0
    sheet = sheet_of(tmp_path)
    assert (sheet["id"].tolist() != numbers.tolist()) == shuffled  # the rows stay in the order in which they came back
    assert sheet.set_index("id").loc[numbers, [*wrote]].to_dict("list") == wrote
    assert list(sheet)[:12] == [*OURS] and list(sheet)[-1] == "llm_prediction" and "nearest_train" in sheet
    assert ("Windows-1252" in capsys.readouterr().out) == (variant == "Windows-1252")
    backup = tmp_path / "errors.backup.csv"
    assert not backup.exists() or backup.read_bytes() == before


@given(st.lists(st.tuples(st.sets(st.integers(0, 9), min_size=1), st.integers(1, 6), RESAVED), min_size=2, max_size=4),
       st.randoms(use_true_random=False))
@QUIET
def test_nothing_is_lost_while_the_errors_change(tmp_path_factory, rounds, chance):
    folder, notes = tmp_path_factory.mktemp("run"), []
    for turn, (wrong, n, how) in enumerate(rounds):
        make_run(folder, [prediction(i, "bad", "good" if i in wrong else "bad", text=f"“text” {i}") for i in range(10)])
        assert run("errors", "--run", folder, "--n", n) == 0
        sheet, orphans = sheet_of(folder), folder / "errors_orphans.csv"
        kept = sheet.to_csv() + (orphans.read_text(encoding="utf-8-sig") if orphans.is_file() else "")
        assert [note for note in notes if note not in kept] == []
        row, column = chance.randrange(len(sheet)), chance.choice(["cause", "notes", "cause_2"])
        notes.append(f"-note {turn};")
        cells = [*sheet.get(column, [""] * len(sheet))]
        cells[row] += notes[-1]
        fill_in(folder, **{column: cells})
        resave(folder / "errors.csv", **how)


@pytest.mark.parametrize("change", [
    lambda text: text.translate(CURLY), lambda text: text.replace("“", '"').replace("’", "'"),
    lambda text: text.replace("\n", "\r\n") + " ", lambda text: text.replace(" ", "\u00a0").replace("-", "–"), str.upper])
def test_notes_stay_with_their_samples_where_a_spreadsheet_changed_the_input(tmp_path, change):
    texts = ["“q” isn’t - it", "two\nlines 'x'", "=1+1", "-5", "naïve “Łódź”"]
    make_run(tmp_path, [prediction(i, "bad", "good", text=text) for i, text in enumerate(texts)])
    run("errors", "--run", tmp_path)
    fill_in(tmp_path, notes=[f"note {i}" for i in range(5)], input=[*map(change, texts)])
    assert run("errors", "--run", tmp_path) == 0
    assert sheet_of(tmp_path)[["input", "notes"]].to_numpy().tolist() == [[t, f"note {i}"] for i, t in enumerate(texts)]
    assert not (tmp_path / "errors_orphans.csv").exists()


# ---- What is kept where ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A run of four errors, of which a person annotated the second."""
    make_run(tmp_path, [prediction(i, "bad", "good", text=f"text {i}") for i in range(4)])
    run("errors", "--run", tmp_path)
    fill_in(tmp_path, cause=["", "irony", "", ""], mine=["", "=SUM(A1)", "", ""], llm_prediction=["", "good", "", ""])
    return tmp_path


def test_the_file_is_kept_before_it_changes(folder):
    before = (folder / "errors.csv").read_bytes()
    run("errors", "--run", folder)
    assert not (folder / "errors.backup.csv").exists() and (folder / "errors.csv").read_bytes() == before
    run("errors", "--run", folder, "--n", 2)
    assert (folder / "errors.backup.csv").read_bytes() == before
    sheet = sheet_of(folder).set_index("id")
    assert len(sheet) == 2
    assert sheet.loc["test-000001", ["cause", "mine", "llm_prediction"]].tolist() == ["irony", "=SUM(A1)", "good"]


def test_a_sheet_from_elsewhere_and_what_the_llm_said_since(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("downloads") / "Sheet - errors.csv"
    sheet = sheet_of(folder)
    common.write_csv(out, sheet.assign(cause=["a", "b", "c", "d"], llm_prediction="")[::-1])
    common.write_csv(folder / "errors.csv", sheet.assign(llm_how="generated", llm_prediction=["bad", "good"] * 2))
    sent, here = out.read_bytes(), (folder / "errors.csv").read_bytes()
    assert run("errors", "--run", folder, "--sheet", out) == 0
    after = sheet_of(folder)
    assert after[["id", "cause", "llm_how", "llm_prediction"]].to_numpy().tolist() == [
        [f"test-{i:06d}", "abcd"[i], "generated", ["bad", "good"][i % 2]] for i in (3, 2, 1, 0)]
    assert after["mine"].tolist() == ["", "", "=SUM(A1)", ""] and list(after)[-1] == "llm_prediction"
    assert out.read_bytes() == sent and (folder / "errors.backup.csv").read_bytes() == here
    assert run("errors", "--run", folder, "--sheet", folder / "nowhere.csv") == 2
    assert sheet_of(folder).equals(after)


def test_what_was_written_only_in_the_run_is_not_lost_to_a_sheet_from_elsewhere(folder):
    """The sheet was sent out, then someone wrote in the run's own: both stand somewhere afterwards."""
    common.write_csv(folder / "download.csv", sheet_of(folder).assign(cause=["", "", "rare words", ""], mine=""))
    run("errors", "--run", folder, "--sheet", folder / "download.csv")
    assert "rare words" in sheet_of(folder)["cause"].tolist()
    kept = "".join(path.read_text(encoding="utf-8-sig") for path in folder.glob("errors*.csv"))
    assert "irony" in kept and "=SUM(A1)" in kept


def test_annotated_rows_stay_whatever_is_drawn_and_become_orphans_once(folder, capsys):
    rows = [prediction(i, "bad", "good", text=f"text {i}") for i in range(60)]
    make_run(folder, rows)
    for _ in range(2):
        run("errors", "--run", folder, "--n", 3)
        assert len(sheet_of(folder)) == 3 and dict(sheet_of(folder)[["id", "cause"]].to_numpy())["test-000001"] == "irony"
    make_run(folder, [rows[5]])
    run("errors", "--run", folder)
    assert "no errors of this run any more" in capsys.readouterr().out
    fill_in(folder, notes="n")
    make_run(folder, [prediction(5, "bad", "bad")])
    for _ in range(2):
        assert run("errors", "--run", folder) == 0 and sheet_of(folder).empty
    orphans = common.read_csv(folder / "errors_orphans.csv")
    assert orphans[["id", "cause", "notes", "mine"]].to_numpy().tolist() == [
        ["test-000001", "irony", "", "=SUM(A1)"], ["test-000005", "", "n", ""]]


def test_what_was_written_of_another_text_is_not_put_beside_the_same_id(folder):
    make_run(folder, wrong_ones(4, text="of other data"))
    run("errors", "--run", folder)
    assert set(sheet_of(folder)["cause"]) == {""}
    orphans = common.read_csv(folder / "errors_orphans.csv")
    assert orphans[["id", "input", "cause"]].to_numpy().tolist() == [["test-000001", "text 1", "irony"]]


def test_rows_that_were_copied_and_the_true_of_excel(tmp_path):
    make_run(tmp_path, [prediction(i, "true", "false") for i in range(2)], labels=["false", "true"], positive="true")
    run("errors", "--run", tmp_path)
    sheet = sheet_of(tmp_path).assign(llm_prediction="TRUE", gold="TRUE", predicted="FALSE")
    common.write_csv(tmp_path / "errors.csv", pd.concat([sheet, sheet.assign(cause="c"), sheet.assign(cause="d")]))
    run("errors", "--run", tmp_path)
    assert sheet_of(tmp_path)[["gold", "predicted", "cause", "llm_prediction"]].to_numpy().tolist() == [
        ["true", "false", "c", "true"]] * 2
    assert common.read_csv(tmp_path / "errors_orphans.csv")["cause"].tolist() == ["d", "d"]


# ---- Files that are not as they should be ---------------------------------------------------------------------------


def test_rows_that_end_early_and_columns_without_a_name(folder):
    (folder / "errors.csv").write_bytes(b"\r\n input ;ID;;\r\ntext 0;test-000000\r\n;;;\r\ntext 2;test-000002;;remark\r\n")
    assert run("errors", "--run", folder) == 0
    sheet = sheet_of(folder).set_index("id")
    assert len(sheet) == 4 and sheet.loc["test-000002"].tolist().count("remark") == 1


@pytest.mark.parametrize(("name", "content", "message"), [
    ("errors.csv", b"PK\x03\x04\x9f\x00", "CSV"), ("errors.csv", b"", "input"),
    ("errors.csv", b"id,cause\n1,c\n", "no column input"),
    ("errors.csv", b"id,input,Cause,cause \n1,a,b,c\n", "cause"),
    ("errors.csv", b"id,input\n1,a,b,c\n", "row 2"), ("predictions.csv", b"id,gold\n", "correct")])
def test_files_that_cannot_be_used_are_left_alone(folder, capsys, name, content, message):
    (folder / name).write_bytes(content)
    assert run("errors", "--run", folder) == 2 and (folder / name).read_bytes() == content
    error = capsys.readouterr().err
    assert re.search(rf"{name}.*{message}", error) and error.count("\n") == 1


def test_a_sheet_brought_back_as_xlsx_is_named(folder, capsys):
    (folder / "errors.xlsx").write_bytes(b"PK")
    assert run("errors", "--run", folder) == 0
    assert "errors.xlsx is not read" in capsys.readouterr().out
