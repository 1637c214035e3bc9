"""errors.csv between errors.py, spreadsheets and people: no cell that a person wrote is lost, however it comes back."""

import csv
import io
import random

import pytest
from conftest import run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_bad_input import refused
from test_errors import fill_in, make_run, prediction, wrong_ones

import common

QUIET = settings(deadline=None, max_examples=16, suppress_health_check=list(HealthCheck), derandomize=True,
                 phases=[Phase.generate])  # to shrink a failing case would take minutes
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["=1+1", "'=1", "-x", "@user", "\tx", "\r", "a,b;c\td", 'say "hi"', "two\nlines", "-1.5", "“q”", "\ufeffx", "＝1"])
RESAVED = st.fixed_dictionaries({
    "delimiter": st.sampled_from(",;\t"), "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    "end": st.sampled_from(["\n", "\r\n"]), "shuffle": st.none() | st.integers(0, 9), "mirror": st.booleans(),
    "blank": st.booleans(), "drop": st.sampled_from([None, "input", "auto_tags", "nearest_train", "error_type"])})
OURS = ("id", "input", "gold", "predicted", "confidence", "gold_confidence", "margin", "error_type", "auto_tags",
        "nearest_train", "nearest_label", "nearest_similarity")  # errors.py renews these
MINE = ["cause", "solution", "cause_2", "notes", "My Column", "=1+1"]


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "save_figure", lambda *_: None)
        yield


def resave(path, delimiter=",", encoding="utf-8-sig", end="\r\n", shuffle=None, mirror=False, blank=False, drop=None):
    """Save the file again as a spreadsheet might, which takes our escapes for a part of the text; the rows' ids."""
    header, *rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
    if shuffle is not None:
        random.Random(shuffle).shuffle(rows)
    kept = [i for i, name in enumerate(header) if name != drop or name in ("id", "input")][::-1 if mirror else 1]
    lines = []
    for row in [header, *rows]:
        line = io.StringIO(newline="")
        csv.writer(line, delimiter=delimiter).writerow([row[i] for i in kept])  # whose \r\n has it quote a cell's \r
        lines += [line.getvalue().removesuffix("\r\n"), *[delimiter * 3] * blank]
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return [row[header.index("id")] for row in rows]


def sheet_of(folder):
    return common.read_csv(folder / "errors.csv")


def written_in(sheet):
    """{id: what a person wrote}."""
    return {row["id"]: [row.get(name) for name in MINE] for row in sheet.to_dict("records")}


@given(st.lists(st.tuples(*[TEXTS] * (1 + len(MINE))), min_size=2, max_size=5), RESAVED, st.booleans())
@QUIET
def test_no_cell_of_a_person_is_lost(tmp_path_factory, rows, how, elsewhere):
    """And the rows stay in the order in which they came back, our columns as they were, the file as it came kept."""
    wrong = [prediction(i, "bad", "good", text=row[0]) for i, row in enumerate(rows)]
    folder = make_run(tmp_path_factory.mktemp("run"), wrong, [{"text": "a two say q x", "label": "bad"}])
    assert run("errors", "--run", folder) == 0
    fill_in(folder, **dict(zip(MINE, map(list, zip(*(row[1:] for row in rows), strict=True)), strict=True)))
    before, path = sheet_of(folder), folder / "errors.csv"
    wanted = {name: row for name, row in written_in(before).items() if any(map(str.strip, row))}
    assert all(row in (list(one[1:]) for one in rows) for row in wanted.values())
    order = resave(path, **how)
    came = path.read_bytes()
    if elsewhere:
        path = path.rename(folder / "download.csv")
    assert run("errors", "--run", folder, *(["--sheet", path] if elsewhere else [])) == 0
    after = sheet_of(folder)
    assert {name: written_in(after)[name] for name in wanted} == wanted
    assert after["id"].tolist() == order
    assert list(after)[:len(OURS)] == [*OURS] and list(after)[-1] == "llm_prediction"
    assert {tuple(row) for row in after[[*OURS]].to_numpy()} == {tuple(row) for row in before[[*OURS]].to_numpy()}
    assert not (folder / "errors_orphans.csv").exists()
    backup = folder / "errors.backup.csv"
    assert not backup.exists() or backup.read_bytes() == came


@pytest.fixture
def folder(tmp_path):
    """A run of four errors, of which a person annotated the second."""
    make_run(tmp_path, wrong_ones(4))
    run("errors", "--run", tmp_path)
    fill_in(tmp_path, cause=["", "irony", "", ""], mine=["", "=SUM(A1)", "", ""], llm_prediction=["", "good", "", ""])
    run("errors", "--run", tmp_path)  # which puts its columns in their order
    (tmp_path / "errors.backup.csv").unlink()
    return tmp_path


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


def test_annotated_rows_stay_whatever_is_drawn_and_become_orphans_once(folder, capsys):
    path, backup = folder / "errors.csv", folder / "errors.backup.csv"
    before = path.read_bytes()
    run("errors", "--run", folder)
    assert path.read_bytes() == before and not backup.exists()
    rows = wrong_ones(60)
    make_run(folder, rows)
    for _ in range(2):
        run("errors", "--run", folder, "--n", 3)
        sheet = sheet_of(folder).set_index("id")
        assert len(sheet) == 3 and backup.read_bytes() == before
        assert sheet.loc["test-000001", ["cause", "mine", "llm_prediction"]].tolist() == ["irony", "=SUM(A1)", "good"]
    make_run(folder, [rows[5]])
    run("errors", "--run", folder)
    assert "no errors of this run any more" in capsys.readouterr().out
    fill_in(folder, notes="n")
    sent = path.rename(folder / "download.csv")
    make_run(folder, [prediction(5, "bad", "bad")])
    for _ in range(2):
        assert run("errors", "--run", folder, "--sheet", sent) == 0 and sheet_of(folder).empty
    orphans = common.read_csv(folder / "errors_orphans.csv")
    assert orphans[["id", "cause", "notes", "mine"]].to_numpy().tolist() == [
        ["test-000001", "irony", "", "=SUM(A1)"], ["test-000005", "", "n", ""]]


@pytest.mark.parametrize(("content", "said"), [
    (b"PK\x03\x04\x9f\x00", "CSV"), (b"id,cause\n1,c\n", "no column input"), (b"id,input\n1,a,b,c\n", "row 2")])
def test_a_sheet_that_cannot_be_used_is_left_alone(folder, capsys, content, said):
    (folder / "errors.csv").write_bytes(content)
    refused(capsys, "errors", ["--run", folder], said)
    assert (folder / "errors.csv").read_bytes() == content
