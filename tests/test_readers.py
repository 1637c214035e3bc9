"""The publishers' files: the real ones by their row counts, and what each format hides on small ones."""

import http.server
import io
import json
import math
import shutil
import tarfile
import threading
import zipfile

import numpy as np
import pytest

import common


def read(folder, key):
    """The tables of a key by the publisher's splits, from the files under `folder`, as they stand."""
    return common.read_source(common.find_task(key), folder)[0]


def put(folder, files):
    """Small files by their paths: a text, bytes, or an object as JSON."""
    for name, content in files.items():
        path, content = folder / name, json.dumps(content) if isinstance(content, dict) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def zipped(files):
    """The bytes of a zip of {name: text}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def refused(capsys, call, *said):
    """`call` ends the script with code 2 and one line that holds each of `said`."""
    with pytest.raises(SystemExit) as end:
        call()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert end.value.code == 2
    assert len(lines) == 1, lines
    assert all(part in lines[0] for part in said), lines


# --- Real files: the row counts that their publishers and ../shared state --------------------------------------------


@pytest.mark.parametrize(("key", "rows"), [
    ("edos-a", [14000, 2000, 4000]), ("edos-b", [3398, 486, 970]), ("edos-c", [3398, 486, 970]),
    ("afrisenti-hau", [14172, 2677, 5303]), ("afrisenti-pcm", [5121, 1281, 4154]), ("nli4ct", [1700, 200, 5500]),
    ("dynasent-r1", [2700, 900, 3600]), ("dynasent-r2", [540, 180, 720])])
def test_real_files_have_the_rows_and_labels_that_are_stated(shared_dir, key, rows):
    tables, task = read(shared_dir / "data", key), common.find_task(key)
    assert [len(tables[name]) for name in task["splits"].values()] == rows
    assert all(table[task["label"]].nunique() == len(task["labels"]) for table in tables.values())
    if key == "edos-b":
        assert tables["train"].attrs["dropped"] == {"not sexist": 14000 - 3398}
        whole = common.read_strings(shared_dir / "data/edos/edos_labelled_aggregated.csv")  # the index is its row
        assert whole.loc[tables["test"].index, "text"].tolist() == tables["test"]["text"].tolist()
    if key == "nli4ct":
        assert (tables["test"]["label"] == "Contradiction").sum() == 3659
        assert tables["test"]["premise"].str.contains(" Secondary trial: ").sum() == 2947  # the comparisons
        assert tables["train"]["premise"].str.startswith("Primary trial: ").all()


@pytest.mark.parametrize(("key", "rows", "quarter"), [("politeness-wiki", 4353, 1089), ("politeness-se", 6603, 1651)])
def test_politeness_quartiles_are_the_domains_own(shared_dir, key, rows, quarter):
    whole, outer = (read(shared_dir / "data", name)["all"] for name in (key, f"{key}-quartiles"))
    assert outer["quartile"].value_counts().to_dict() == {"impolite": quarter, "polite": quarter}
    assert outer.attrs["dropped"] == {"in the middle half": rows - 2 * quarter}
    scores, low = whole["Normalized Score"].drop(outer.index), outer["quartile"] == "impolite"
    assert outer["Normalized Score"][low].max() < scores.min() <= scores.max() < outer["Normalized Score"][~low].min()


# --- What each format hides, on small files in the publishers' layout ------------------------------------------------


TORN = "torn off by a line break"


@pytest.mark.parametrize(("key", "content", "rows", "dropped"), [
    ("afrisenti-hau", 'tweet\tlabel\n"so\tneutral\na\u2028b\x85c\tneutral\nno "end\tneutral\nNA\tneutral\ntorn off\n',
     [['"so', "neutral"], ["a\u2028b\x85c", "neutral"], ['no "end', "neutral"], ["NA", "neutral"]], {TORN: 1}),
    ("xslue-pastel-age", '7\t25-34\tHe said "no\n2\t18-24\tyes\n', [['He said "no', "25-34"], ["yes", "18-24"]],
     {TORN: 0}),
    ("xslue-sarc-pol", "1\t0\tso\nmuch for that\n", [["so", "0"]], {TORN: 1}),
    ("xslue-shortromance", "0\tx\t1\tmy love\n", [["my love", "1"]], {TORN: 0}),
    ("xslue-vua", "0\ta flood of words\t1\n", [["a flood of words", "1"]], {TORN: 0})])
def test_a_file_of_lines_per_split_keeps_quotation_marks_and_odd_line_ends(tmp_path, key, content, rows, dropped):
    task = common.find_task(key)
    put(tmp_path, {task["path"].format(split=name): content for name in task["splits"].values()})
    for table in read(tmp_path, key).values():
        assert table[[*task["text"], task["label"]]].to_numpy().tolist() == rows
        assert table.attrs["dropped"] == dropped


TRIAL = {"Type": "Comparison", "Section_id": "Results", "Primary_id": "NCT1", "Statement": "It holds.",
         "Label": "Entailment"}
NLI4CT = {"train.json": {"a": TRIAL | {"Secondary_id": "NCT2"}}, "dev.json": {"b": TRIAL},
          "CT json/NCT1.json": {"Results": ["Of: ", "  1"]}, "CT json/NCT2.json": {"Results": ["Of: ", "  2"]}}
ONE, TWO = ([[f"Primary trial: Of: 1{more}", "It holds.", "Entailment"]] for more in ("", " Secondary trial: Of: 2"))
DYNASENT = {f"dynasent-v1.1/dynasent-v1.1-round01-yelp-{split}.jsonl": "".join(
    json.dumps({"sentence": f"s {label}\u2028.", "gold_label": label}) + "\n"
    for label in ("positive", None, "mixed", "neutral", None)) for split in ("train", "dev", "test")}
PAPERS = {"train/reviews/0.json": {"accepted": True, "title": "T", "abstract": "A"},
          "train/reviews/1.json": {"title": "no decision", "abstract": "A"},
          "train/reviews/2.json": {"accepted": "False", "title": "a word, not a truth value", "abstract": "A"},
          "dev/reviews/0.json": {"accepted": False, "title": "D", "abstract": None},
          "test/reviews/0.json": {"accepted": False, "title": "E", "abstract": "B"}}
PCL = "-----\nPlease do not share.\n\n" + "".join(f'{i}\t@@{i}\twomen\tus\ta "text\t{i}\n' for i in range(5))
SOCKET = {f"{name}_{what}.txt": lines for name in ("train", "val", "test")
          for what, lines in (("text", 'a "\u2028b\nc\n'), ("labels", "sarcastic\nliteral\n"))}


@pytest.mark.parametrize(("key", "folder", "files", "rows", "dropped"), [
    ("nli4ct", "nli4ct", {"gold_test.json": {"c": TRIAL}, "training_data.zip": zipped(
        {name: json.dumps(content) for name, content in NLI4CT.items()})}, {"train": TWO, "dev": ONE, "test": ONE}, {}),
    ("nli4ct", "nli4ct/training_data", NLI4CT | {"../gold_test.json": {"c": TRIAL}},
     {"train": TWO, "dev": ONE, "test": ONE}, {}),
    *(("dynasent-r1", "dynasent", files, {"dev": [[f"s {label}\u2028.", label] for label in ("positive", "neutral")]},
       {"without a majority label": 2, "labelled mixed": 1}) for files in (
           DYNASENT, {"dynasent-v1.1.zip": zipped(DYNASENT)})),
    ("peerread-iclr2017", "peerread/data/iclr_2017", PAPERS,
     {"train": [["T", "A", 1]], "dev": [["D", None, 0]], "test": [["E", "B", 0]]}, {"without a decision": 2}),
    ("isarcasm-a", "isarcasm", {"train.En.csv": ',tweet,sarcastic,rephrase\n0,"Lovely\nweather",1,bad\n1,,0,\n',
                                "task_A_En_test.csv": 'text,sarcastic\n"It is ""fine"".",0\n'},  # the text's two names
     {"train": [["Lovely\nweather", "1"], ["", "0"]], "test": [['It is "fine".', "0"]]}, {}),
    ("pcl", "pcl", {"dontpatronizeme_pcl.tsv": PCL, "train_semeval_parids-labels.csv": "par_id\n0\n1\n2\n",
                    "dev_semeval_parids-labels.csv": "par_id\n3\n4\n"},  # two of four points are PCL
     {"train": [['a "text', 0], ['a "text', 0], ['a "text', 1]], "dev": [['a "text', 1], ['a "text', 1]]}, {}),
    ("politeness-wiki", "politeness", {"Stanford_politeness_corpus.zip": zipped({
        "top/wikipedia.annotated.csv": ",Request,Normalized Score\n0,Could you?,0.5\n"})},
     {"all": [["Could you?", 0.5]]}, {}),
    ("xslue-sarc", "xslue/SOCKET_DATA/sarc", SOCKET, {"val": [['a "\u2028b', "sarcastic"], ["c", "literal"]]}, {})])
def test_other_files_of_the_publishers_packed_and_unpacked(tmp_path, key, folder, files, rows, dropped):
    put(tmp_path / folder, files)
    task, tables = common.find_task(key), read(tmp_path, key)
    columns = [*task["text"], task["label"]]
    assert {name: tables[name][columns].to_numpy().tolist() for name in rows} == rows
    assert next(iter(tables.values())).attrs.get("dropped", {}) == dropped


@pytest.mark.parametrize("packed", [False, True])
def test_sbic_counts_one_vote_per_annotator_and_asks_what_blanks_mean(tmp_path, packed):
    rows = ["WorkerId,post,offensiveYN,intentYN,sexYN,whoTarget,targetStereotype",
            # w1's three stereotypes are one vote: (1 + 0 + 0) / 3 is not offensive; three votes it would be 3 / 5
            "w1,a,1.0,1.0,0.0,1.0,x", "w1,a,1.0,1.0,0.0,1.0,y", "w1,a,1.0,1.0,0.0,1.0,z", "w2,a,0.0,,0.0,,",
            "w3,a,0.0,,0.0,,", "w1,b,1.0,0.66,1.0,1.0,", "w2,b,0.0,,,,",  # 0.5 counts as yes
            "w1,c,0.5,0.33,0.0,0.0,", "w1,d,1.0,1.0,0.5,,",  # d: offensive, but no answer on the target: no vote
            "w1,e,,0.0,1.0,,"]  # no answer at all on what decides
    put(tmp_path / "sbic", {f"SBIC.v2.{name}.csv": "\n".join(rows) for name in ("trn", "dev", "tst")})
    if packed:
        with tarfile.open(tmp_path / "SBIC.v2.tgz", "w:gz") as archive:
            archive.add(tmp_path / "sbic", "SBIC")
        shutil.rmtree(tmp_path / "sbic")
        put(tmp_path / "sbic", {"SBIC.v2.tgz": (tmp_path / "SBIC.v2.tgz").read_bytes()})
    train = read(tmp_path, "sbic")["train"]
    expected = [[0, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0], [1, 1, 1, math.nan], [math.nan, 0, 1, math.nan]]
    np.testing.assert_array_equal(train[["offensive", "intent", "lewd", "group"]], expected)
    assert train["post"].tolist() == [*"abcde"]
    assert train.attrs["dropped"] == {"further rows of the same annotator": 2}


# --- Files that are not what they should be --------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "paths"), [
    ("edos-a", ["edos/edos_labelled_aggregated.csv"]), ("dynasent-r1", ["dynasent/dynasent-v1.1.zip"]),
    ("nli4ct", ["nli4ct/training_data.zip", "nli4ct/gold_test.json"]), ("sbic", ["sbic/SBIC.v2.tgz"]),
    ("afrisenti-hau", [f"afrisenti/hau/{name}.tsv" for name in ("train", "dev", "test")])])
def test_a_file_that_is_another_gives_one_line(tmp_path, capsys, key, paths):
    put(tmp_path, dict.fromkeys(paths, "<html>\n<body>Moved,\tsorry,\t1, 2</body>\n</html>\n"))
    refused(capsys, lambda: common.load_data(key, data_dir=tmp_path), f"could not load {key}", str(tmp_path))


def test_texts_without_a_label_each_are_refused(tmp_path, capsys):
    put(tmp_path / "xslue/SOCKET_DATA/sarc", SOCKET | {"train_labels.txt": "sarcastic\n"})
    refused(capsys, lambda: read(tmp_path, "xslue-sarc"), "could not load xslue-sarc")


def test_a_file_is_fetched_once_whole_or_not_at_all(tmp_path, capsys):
    page, asked = {}, []

    class Publisher(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(page["status"])
            self.send_header("Content-Length", str(page["length"]))
            self.end_headers()
            self.wfile.write(page["body"])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    path, address = tmp_path / "k/b.csv", f"http://127.0.0.1:{server.server_port}/b.csv"
    for status, body, url, reason in ((404, b"", address, "404"), (200, b"short", address, "5 of 900 bytes"),
                                      (200, b"", "http://127.0.0.1:1/b.csv", "refused")):
        page.update(status=status, body=body, length=900 * bool(body))
        with pytest.raises(SystemExit):
            common.fetch(path, url)
        line = capsys.readouterr().err.splitlines()[-1]
        assert all(part in line for part in (url, str(path), reason, "by hand", "--sample"))
        assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    page.update(body=b"x" * 70000, length=70000)
    asked.clear()
    for _ in range(2):
        assert common.fetch(path, address).read_bytes() == b"x" * 70000
    server.shutdown()
    server.server_close()
    assert asked == ["/b.csv"]
    assert [file.name for file in path.parent.iterdir()] == ["b.csv"]
