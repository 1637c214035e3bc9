"""The publishers' files: the real ones by their row counts, and what each format hides on small ones."""

import http.server
import io
import json
import math
import tarfile
import threading
import zipfile

import pandas as pd
import pytest

import common


def read(folder, key):
    """The tables of a key by the publisher's splits, from the files under `folder`, as they stand."""
    return common.read_source(common.find_task(key), folder)[0]


def put(path, content):
    """A small file: a text, bytes, a table's rows as CSV, or an object as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = pd.DataFrame(content).to_csv(index=False)
    content = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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
    ("dynasent-r1", [2700, 900, 3600]), ("dynasent-r2", [540, 180, 720]), ("politeness-wiki", [4353]),
    ("politeness-se", [6603])])
def test_real_files_have_the_rows_and_labels_that_are_stated(shared_dir, key, rows):
    tables, task = read(shared_dir / "data", key), common.find_task(key)
    assert [len(tables[name]) for name in task["splits"].values()] == rows
    assert all(table[task["label"]].nunique() == len(task["labels"]) for table in tables.values() if "labels" in task)
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


def test_nli4ct_joins_both_trials_packed_and_unpacked(tmp_path):
    row = {"Type": "Comparison", "Section_id": "Results", "Primary_id": "NCT1", "Secondary_id": "NCT2",
           "Statement": "It holds.", "Label": "Entailment"}
    single = {name: value for name, value in row.items() if name != "Secondary_id"}
    files = {"train.json": {"a": row}, "dev.json": {"b": single}, "CT json/NCT1.json": {"Results": ["Of: ", "  1"]},
             "CT json/NCT2.json": {"Results": ["Of: ", "  2"]}}
    packed = {name: json.dumps(content) for name, content in files.items()} | {"__MACOSX/._train.json": "not a split"}
    put(tmp_path / "two/nli4ct/training_data.zip", zipped(packed))
    for name, content in files.items():
        put(tmp_path / "one/nli4ct/training_data" / name, content)
    for folder in ("one", "two"):
        put(tmp_path / folder / "nli4ct/gold_test.json", {"c": single})
        tables = read(tmp_path / folder, "nli4ct")
        assert tables["train"].to_dict("records") == [{
            "premise": "Primary trial: Of: 1 Secondary trial: Of: 2", "hypothesis": "It holds.", "label": "Entailment"}]
        assert tables["dev"]["premise"].tolist() == tables["test"]["premise"].tolist() == ["Primary trial: Of: 1"]


def test_dynasent_counts_mixed_and_null_packed_and_unpacked(tmp_path):
    rows = [{"sentence": f"s {label}\u2028.", "gold_label": label}
            for label in ("positive", None, "mixed", "neutral", None)]
    files = {f"dynasent-v1.1/dynasent-v1.1-round01-yelp-{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows)
             for name in ("train", "dev", "test")}
    put(tmp_path / "packed/dynasent/dynasent-v1.1.zip", zipped(files))
    for name, content in files.items():
        put(tmp_path / "unpacked/dynasent" / name, content)
    for folder in ("packed", "unpacked"):
        train = read(tmp_path / folder, "dynasent-r1")["train"]
        assert train["sentence"].tolist() == ["s positive\u2028.", "s neutral\u2028."]
        assert train.attrs["dropped"] == {"without a majority label": 2, "labelled mixed": 1}


def test_afrisenti_keeps_quotation_marks_and_odd_line_ends(tmp_path):
    tweets = ['"so', "a\u2028b\x85c", 'no "end', "NA"]
    content = "tweet\tlabel\n" + "".join(f"{tweet}\tneutral\n" for tweet in tweets) + "torn off\n"
    for name in ("train", "dev", "test"):
        put(tmp_path / f"afrisenti/hau/{name}.tsv", content)
    train = read(tmp_path, "afrisenti-hau")["train"]
    assert train["tweet"].tolist() == tweets
    assert train.attrs["dropped"] == {"torn off by a line break": 1}


def test_isarcasm_finds_the_text_under_both_names(tmp_path):
    put(tmp_path / "isarcasm/train.En.csv", [{"": "0", "tweet": "Lovely\nweather", "sarcastic": "1", "rephrase": "bad"},
                                             {"": "1", "tweet": "", "sarcastic": "0", "rephrase": ""}])
    put(tmp_path / "isarcasm/task_A_En_test.csv", [{"text": 'It is "fine".', "sarcastic": "0"}])
    tables = read(tmp_path, "isarcasm-a")
    assert tables["train"]["text"].tolist() == ["Lovely\nweather", ""]
    assert tables["test"][["text", "sarcastic"]].to_numpy().tolist() == [['It is "fine".', "0"]]


def test_pcl_counts_two_points_as_pcl_and_splits_by_the_lists(tmp_path):
    rows = [f'{i}\t@@{i}\twomen\tus\ta "text\t{points}' for i, points in enumerate([0, 1, 2, 3, 4])]
    put(tmp_path / "pcl/dontpatronizeme_pcl.tsv", "\n".join(["-" * 20, "Please do not share.", "", *rows]) + "\n")
    for name, ids in (("train", (0, 1, 2)), ("dev", (3, 4))):
        put(tmp_path / f"pcl/{name}_semeval_parids-labels.csv", [{"par_id": i, "label": "[0, 0]"} for i in ids])
    tables = read(tmp_path, "pcl")
    assert tables["train"]["label"].tolist() == [0, 0, 1]
    assert tables["dev"]["label"].tolist() == [1, 1]
    assert set(tables["train"]["text"]) == {'a "text'}


def test_peerread_reads_title_abstract_and_decision_alone(tmp_path):
    papers = {"train": [{"accepted": True, "title": "T", "abstract": "A", "reviews": [{"comments": "accept!"}],
                         "histories": ["ACL 2017"], "conference": "ICLR"}, {"title": "no decision", "abstract": "A"},
                        {"accepted": "False", "title": "a word, not a truth value", "abstract": "A"}],
              "dev": [{"accepted": False, "title": "D", "abstract": None}], "test": [
                  {"accepted": False, "title": "E", "abstract": "B"}]}
    for name, split in papers.items():
        for i, paper in enumerate(split):
            put(tmp_path / f"peerread/data/iclr_2017/{name}/reviews/{i}.json", paper)
    tables = read(tmp_path, "peerread-iclr2017")
    assert tables["train"].to_dict("records") == [{"title": "T", "abstract": "A", "accepted": 1}]
    assert tables["train"].attrs["dropped"] == {"without a decision": 2}
    assert tables["dev"]["accepted"].tolist() == tables["test"]["accepted"].tolist() == [0]


def vote(post, worker, offensive, intent="", lewd="0.0", target="", stereotype=""):
    return {"whoTarget": target, "intentYN": intent, "sexYN": lewd, "offensiveYN": offensive, "WorkerId": worker,
            "post": post, "targetStereotype": stereotype}


@pytest.mark.parametrize("packed", [False, True])
def test_sbic_counts_one_vote_per_annotator_and_asks_what_blanks_mean(tmp_path, packed):
    posts = [
        # w1's three stereotypes are one vote: (1 + 0 + 0) / 3 is not offensive; three votes it would be 3 / 5
        *(vote("a", "w1", "1.0", "1.0", target="1.0", stereotype=text) for text in ("x", "y", "z")),
        vote("a", "w2", "0.0"), vote("a", "w3", "0.0"),
        vote("b", "w1", "1.0", "0.66", "1.0", "1.0"), vote("b", "w2", "0.0", lewd=""),  # 0.5 counts as yes
        vote("c", "w1", "0.5", "0.33", "0.0", "0.0"),
        vote("d", "w1", "1.0", "1.0", "0.5", ""),  # offensive, but no answer on the target: no vote
        vote("e", "w1", "", "0.0", "1.0", "")]  # no answer at all on what decides
    files = [put(tmp_path / f"sbic/SBIC.v2.{name}.csv", posts) for name in ("trn", "dev", "tst")]
    if packed:
        with tarfile.open(tmp_path / "sbic/SBIC.v2.tgz", "w:gz") as archive:
            for path in files:
                archive.add(path, f"SBIC/{path.name}")
                path.unlink()
    train = read(tmp_path, "sbic")["train"].set_index("post")
    assert train.columns.tolist() == ["offensive", "intent", "lewd", "group"]
    expected = {"a": [0, 0, 0, 0], "b": [1, 0, 1, 1], "c": [1, 0, 0, 0], "d": [1, 1, 1, math.nan],
                "e": [math.nan, 0, 1, math.nan]}
    for post, numbers in expected.items():
        assert train.loc[post].tolist() == pytest.approx(numbers, nan_ok=True)
    assert train.attrs["dropped"] == {"further rows of the same annotator": 2}


def test_xslue_reads_sockets_text_files(tmp_path, capsys):
    folder = tmp_path / "xslue/SOCKET_DATA/sarc"
    for name in ("train", "val", "test"):
        put(folder / f"{name}_text.txt", 'a "\u2028b\nc\n')
        put(folder / f"{name}_labels.txt", "sarcastic\nliteral\n")
    tables = read(tmp_path, "xslue-sarc")
    assert tables["val"].to_numpy().tolist() == [['a "\u2028b', "sarcastic"], ["c", "literal"]]
    put(folder / "train_labels.txt", "sarcastic\n")
    refused(capsys, lambda: read(tmp_path, "xslue-sarc"), "could not load xslue-sarc")


def test_politeness_is_taken_out_of_its_archive(tmp_path):
    table = pd.DataFrame([{"Request": "Could you?", "Normalized Score": "0.5"}]).to_csv()
    put(tmp_path / "politeness/Stanford_politeness_corpus.zip", zipped({"top/wikipedia.annotated.csv": table}))
    table = read(tmp_path, "politeness-wiki")["all"]
    assert table[["Request", "Normalized Score"]].to_numpy().tolist() == [["Could you?", 0.5]]


@pytest.mark.parametrize(("key", "lines", "expected"), [
    ("xslue-pastel-age", ['7\t25-34\tHe said "no', "2\t18-24\tyes"], [['He said "no', "25-34"], ["yes", "18-24"]]),
    ("xslue-sarc-pol", ["1\t0\tso", "much for that"], [["so", "0"]]),
    ("xslue-shortromance", ["0\tx\t1\tmy love"], [["my love", "1"]]),
    ("xslue-vua", ["0\ta flood of words\t1"], [["a flood of words", "1"]])])
def test_xslue_reads_its_own_columns(tmp_path, key, lines, expected):
    task = common.find_task(key)
    for name in task["splits"].values():
        put(tmp_path / task["path"].format(split=name), "\n".join(lines) + "\n")
    tables = read(tmp_path, key)
    assert [table[["text", "label"]].to_numpy().tolist() for table in tables.values()] == [expected] * len(tables)
    assert tables["test"].attrs["dropped"] == {"torn off by a line break": len(lines) - len(expected)}


# --- Files that are not what they should be --------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "paths"), [
    ("edos-a", ["edos/edos_labelled_aggregated.csv"]), ("dynasent-r1", ["dynasent/dynasent-v1.1.zip"]),
    ("nli4ct", ["nli4ct/training_data.zip", "nli4ct/gold_test.json"]), ("sbic", ["sbic/SBIC.v2.tgz"]),
    ("afrisenti-hau", [f"afrisenti/hau/{name}.tsv" for name in ("train", "dev", "test")])])
def test_a_file_that_is_another_gives_one_line(tmp_path, capsys, key, paths):
    for path in paths:
        put(tmp_path / path, "<html>\n<body>Moved,\tsorry,\t1, 2</body>\n</html>\n")
    refused(capsys, lambda: common.load_data(key, data_dir=tmp_path), f"could not load {key}", str(tmp_path))


def test_a_file_without_an_address_is_asked_for_by_hand(tmp_path, capsys):
    refused(capsys, lambda: common.load_data("peerread-iclr2017", data_dir=tmp_path),
            str(tmp_path / "peerread/data/iclr_2017"), "by hand", common.find_task("peerread-iclr2017")["by_hand"][:30])


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
