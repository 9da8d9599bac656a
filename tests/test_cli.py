"""The command line: verbs that work, and mistakes that are one message on standard error, exit code 2."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fluvial
from fluvial import cli
from fluvial.data.readers import open_table, write_table

STUDY = """
[data]
source = "table.parquet"
targets = ["x"]
context = ["Z"]
[columns.x]
support = "positive"
[columns.Z]
transform = "log"
[flow]
architecture = "maf"
steps = 1
width = 8
depth = 1
[training]
epochs = 1
[check]
contexts = 50
draws = 50
"""


def table(rows: int = 300) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": np.exp(rng.normal(size=rows)), "Z": rng.uniform(0.1, 2.0, rows)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a table, a study, and two runs that have not been checked."""
    folder = tmp_path_factory.mktemp("cli")
    write_table(folder / "table.parquet", table())
    (folder / "study.toml").write_text(STUDY)
    for _ in range(2):
        fluvial.fit(folder / "study.toml", runs=folder / "runs", check=False)
    return folder


class Terminal:
    """Runs ``fluvial`` in a copy of a folder, within this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        self.monkeypatch.setattr(sys, "argv", ["fluvial", *argv])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = self.capsys.readouterr()
        return code, out, err

    def refuses(self, *argv: str, stage: str = "") -> str:
        """Return the one message of a command that must fail and leave nothing."""
        before = sorted(map(str, Path().rglob("*")))
        code, out, err = self(*argv)
        assert code == 2, (out, err)
        assert out == ""
        assert err.startswith(stage)
        err = err.removeprefix(stage)
        assert err.startswith("fluvial: ")
        assert err.count("fluvial: ") == 1
        assert "Traceback" not in err
        assert sorted(map(str, Path().rglob("*"))) == before
        return err.removeprefix("fluvial: ").rstrip("\n")


@pytest.fixture
def terminal(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return Terminal(monkeypatch, capsys)


def test_fit_shows_where_things_are(terminal: Terminal) -> None:
    code, out, err = terminal("fit", "study.toml", "--runs", "new", "--name", "mine")
    assert code == 0
    assert "run     new/mine" in out
    assert re.search(r"^report  .*/new/mine/report\.html$", out, re.MULTILINE)
    assert re.search(r"^verdict +check +statistic +exact +allowed +n$", out, re.MULTILINE)
    assert "stopped: budget: 1 epochs" in err


def test_check_and_report_again(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = terminal("check", "runs/study-2")
    assert code == (1 if "✗" in out else 0)
    assert Path("runs/study-2/checks.json").exists()
    monkeypatch.setattr("fluvial.workflow.report_run", lambda run, *_, **__: run / "report.html")
    assert terminal("report", "runs/study-2") == (0, f"{Path('runs/study-2/report.html').resolve()}\n", "")


def test_check_ends_with_1_if_a_check_fails(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from fluvial.check import CheckResult

    bad = CheckResult.judge("PIT", "x", 0.5, 0.001, 0.03, 1000, "how far")
    monkeypatch.setattr("fluvial.workflow.check_run", lambda run, **_: [bad])
    code, out, _ = terminal("check", "runs/study-1")
    assert code == 1
    assert "✗ fail" in out


def test_what_to_do_about_results(terminal: Terminal, tmp_path: Path) -> None:
    from fluvial.check import CheckResult
    from fluvial.record import RunFolder
    from fluvial.report.console import CONTEXTS, TEST_ROWS, of_run

    run = RunFolder.open(shutil.copytree("runs/study-1", tmp_path / "copy"))
    undecided = [CheckResult.judge(f"PIT {i}", "x", 0.02, 0.025, 0.03, 400, "…") for i in range(12)]
    bad = CheckResult.judge("PIT", "x", 0.5, 0.001, 0.03, 1000, "how far")
    record = run.record()
    for asked, there, hint in ((100, 1000, CONTEXTS), (4000, 589, TEST_ROWS)):
        record["study"]["check"]["contexts"], record["checks"] = asked, {"test_rows": there}
        run.write_record(record)
        assert hint in "\n".join(of_run(undecided, run))
    for last, stopped, hinted in (
        (1.0, "budget: 20 epochs", True),
        (1.49, "budget: 20 epochs", False),
        (1.0, "patience", False),
    ):
        run.write_record(record | {"stopped": stopped})
        losses = [*([1.5] * 19), last]
        (run.path / "metrics.jsonl").write_text(
            "".join(json.dumps({"validation_loss": v}) + "\n" for v in losses)
        )
        assert ("still fell" in of_run([bad], run)[-1]) == hinted
        assert "still fell" not in of_run(undecided, run)[-1]


def test_sample_at_a_context_and_at_a_table_of_them(terminal: Terminal) -> None:
    code, out, _ = terminal("sample", "runs/study-1", "-o", "o.csv", "-g", "Z=0.5", "-n", "7", "--seed", "1")
    assert (code, out) == (0, "7 rows of Z, x in o.csv\n")
    first = open_table("o.csv").read(["Z", "x"])
    assert (first["Z"] == 0.5).all()
    terminal("sample", "runs/study-1", "-o", "p.csv", "-g", "Z=0.5", "-n", "7", "--seed", "1")
    assert np.array_equal(open_table("p.csv").read(["x"])["x"], first["x"])
    write_table(Path("contexts.csv"), {"Z": np.array([0.5, 1.5])})
    code, _, _ = terminal("sample", "runs/study-1", "-o", "q.npy", "--contexts", "contexts.csv", "-n", "3")
    assert code == 0
    drawn = np.load("q.npy")
    assert drawn["Z"].tolist() == [0.5] * 3 + [1.5] * 3
    assert (drawn["x"] > 0).all()


def test_log_prob_counts_what_is_outside(terminal: Terminal) -> None:
    write_table(Path("events.csv"), {"Z": np.array([0.5, 0.5]), "x": np.array([1.0, -1.0])})
    code, out, _ = terminal("log-prob", "runs/study-1", "events.csv", "-o", "o.parquet")
    assert code == 0
    assert "2 rows; 1 outside the support" in out
    assert np.isneginf(open_table("o.parquet").read(["log_prob"])["log_prob"]).tolist() == [False, True]


def test_runs_as_a_table(terminal: Terminal) -> None:
    code, out, _ = terminal("runs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["study-1", "study-2"]
    _, out, _ = terminal("runs", "-w", "epochs == 1 and kl == 0", "-c", "name")
    assert out.splitlines()[2:] == []
    _, out, _ = terminal("runs", "-w", 'name == "study-2"', "-c", "name, status", "-s", "best_loss", "-d")
    assert out.split() == ["name", "status", "───────", "────────", "study-2", "finished"]
    Path("runs/study-1/record.json").write_text("{")
    _, out, _ = terminal("runs", "-c", "name,status", "-s", "name")
    assert "study-1  damaged" in out
    Path("none").mkdir()
    assert terminal("runs", "none")[0] == 0
    _, out, _ = terminal("runs", "-c", "all")
    assert "learning_rate" in out


def test_the_best_run_and_two_compared(terminal: Terminal) -> None:
    code, out, _ = terminal("runs", "--best")
    assert code == 0
    assert out.strip() in ("runs/study-1", "runs/study-2")
    _, first, _ = terminal("runs", "--results", "-f", "markdown")
    assert "| name | architecture |" in first
    code, out, _ = terminal("runs", "--compare", "runs/study-1", "runs/study-2", "--figure", "c.png")
    assert code == 0
    assert out.splitlines()[0].split() == ["option", "study-1", "study-2"]
    assert Path("c.png").exists()
    code, _, err = terminal("runs", "--best", "-w", "epochs > 1000")
    assert code == 2
    assert "No run in runs has a value of best_loss and fits --where." in err


def test_resume_from_the_command_line(terminal: Terminal) -> None:
    code, _, err = terminal("fit", "--resume", "runs/study-1")
    assert code == 2
    assert (
        "runs/study-1 is finished (budget: 1 epochs). To go on, say until how many epochs with --epochs."
        in err
    )
    code, out, _ = terminal("fit", "--resume", "runs/study-1", "--epochs", "2", "--no-check")
    assert code == 0
    assert "run     runs/study-1" in out
    for argv in (("study.toml", "--resume", "runs/study-1"), ("study.toml", "--epochs", "3")):
        code, _, err = terminal("fit", *argv)
        assert code == 2
        assert "Usage: fluvial fit" in err
    code, _, err = terminal("fit", "study.toml", "--log", "tensorbord")
    assert code == 2
    assert "--log 'tensorbord' is not known; did you mean 'tensorboard'?" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("fit stud.toml", "Expected a study at stud.toml; found no such file; did you mean 'study.toml'?"),
        (
            "fit nowhere/a.toml",
            "Expected a study at nowhere/a.toml; found no such file; there is no .toml file",
        ),
        (
            "fit study.toml --name study-1",
            "Expected runs/study-1 to be new; it exists. Choose another --name",
        ),
        ("fit study.toml --name a/b", "--name: expected the name of one new folder, without slashes"),
        (
            "sample runs/study-1 -o o.csv",
            "Expected a value for every context column (Z), or a table of contexts",
        ),
        ("sample runs/study-1 -o o.csv -g z=1", "Context column 'z' is not known; did you mean 'Z'?"),
        ("sample runs/study-1 -o o.csv -g Z", "--given: expected NAME=NUMBER, such as Z=0.001; found 'Z'."),
        (
            "sample runs/study-1 -o o.csv -g Z=low",
            "--given: expected NAME=NUMBER, such as Z=0.001; found 'Z=low'",
        ),
        ("sample runs/study-1 -o o.csv -g Z=1 -g Z=2", "--given: expected Z once; found 1 and 2."),
        ("sample runs/study-1 -o o.csv -g Z=-1", "context: Z = -1 is outside the support (0, inf)"),
        ("sample runs/study-1 -o o.csv -g Z=nan", "context: Z = nan is missing"),
        ("sample runs/study-1 -o o.csv -g Z=1 -n 0", "Expected draws of at least 1; got 0."),
        (
            "sample runs/study-1 -o o.xls -g Z=1",
            "o.xls: no writer for the suffix '.xls'; expected one of .parquet",
        ),
        ("sample runs/study-1 -o no/o.csv -g Z=1", "no/o.csv: the folder no does not exist"),
        (
            "sample runs/study-1 -o o.csv -g Z=1 --contexts table.parquet",
            "Expected contexts from a table or by",
        ),
        (
            "sample runs/study-1 -o o.csv --contexts tabel.parquet",
            "tabel.parquet does not exist; did you mean",
        ),
        (
            "sample runs/study-9 -o o.csv -g Z=1",
            "Expected a run folder at runs/study-9; found nothing; did you",
        ),
        ("report study-1", "Expected a run folder at study-1; found nothing; did you mean runs/study-1?"),
        ("log-prob runs/study-1 study.toml", "study.toml: no reader for the suffix '.toml'"),
        ("check runs", "Expected a run folder at runs; found a folder without record.json"),
        ("report runs/study-2", "runs/study-2 has not been checked; run 'fluvial check runs/study-2' first."),
        ("runs nowhere", "Expected a folder of runs at nowhere; found none. 'fluvial fit' makes it."),
        ("runs -w epoch>1", "Filter 'epoch>1': 'epoch' is not a column; did you mean 'epochs'?"),
        ("runs -w epochs>", "Filter 'epochs>' does not parse"),
        ("runs -w __import__('os')", "Filter \"__import__('os')\": expected names, numbers, texts"),
        ("runs -s los", "Cannot sort by 'los': no such column"),
        ("runs -c nam", "--columns: no column 'nam'; did you mean 'name'?"),
        ("simulate binary", "No simulator for 'binary'; did you mean 'binaries'?"),
        ("simulate jet -o jet.parquet", "No simulator for 'jet'; did you mean 'jets'?"),
    ],
)
def test_a_mistake_is_one_message(terminal: Terminal, argv: str, message: str) -> None:
    found = terminal.refuses(*argv.split())
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[training]", "[trainng]", "study.toml: [trainng] is not a known key; did you mean 'training'?"),
        ("width", "widht", "study.toml: [flow] widht is not a known key; did you mean 'width'?"),
        ('"maf"', '"mav"', "study.toml: [flow] architecture 'mav' is not known; did you mean 'maf'?"),
        (
            "epochs = 1",
            'epochs = "1"',
            "study.toml: [training] epochs: input should be a valid integer; found '1'",
        ),
        ("[data]", "[data", "study.toml is not valid TOML: "),
        (
            "[columns.x]",
            "[columns.X]",
            "study.toml: [columns.X] is neither a target nor a context column; did you",
        ),
    ],
)
def test_a_mistake_in_the_study(terminal: Terminal, old: str, new: str, message: str) -> None:
    Path("study.toml").write_text(STUDY.replace(old, new))
    assert message in terminal.refuses("fit", "study.toml")


def test_a_mistake_in_the_table(terminal: Terminal) -> None:
    stage = "reading table.parquet\n"
    columns = table()
    columns["x"][[5, 6]] = np.nan, -1.0
    write_table(Path("table.parquet"), columns)
    lines = terminal.refuses("fit", "study.toml", stage=stage).splitlines()
    assert lines[0] == "table.parquet: the table (300 rows) does not fit the study:"
    assert 'row 5; mend the data, or set `missing = "drop"`' in lines[1]
    assert "row 6: -1; mend the data" in lines[2]
    Path("table.parquet").write_bytes(Path("table.parquet").read_bytes()[:1000])
    assert "table.parquet looks truncated" in terminal.refuses("fit", "study.toml", stage=stage)
    Path("table.parquet").unlink()
    assert "table.parquet does not exist" in terminal.refuses("fit", "study.toml", stage=stage)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "Z",
            "-0.5",
            "events.csv: column Z: 1 of 3 values are outside the support (0, inf), the first",
        ),
        (
            "Z",
            "",
            "events.csv: column Z: 1 of 3 values are missing, the first",
        ),
        ("x", "", "events.csv: column x: 1 of 3 values are missing, the first in row 1: nan"),
        ("x", "heavy", "events.csv: column 'x' (string) holds 'heavy' in row 1"),
    ],
)
def test_a_mistake_in_a_table_of_events(terminal: Terminal, column: str, value: str, message: str) -> None:
    rows = [{"Z": "0.5", "x": "1.0"} for _ in range(3)]
    rows[1][column] = value
    Path("events.csv").write_text("Z,x\n" + "".join(f"{r['Z']},{r['x']}\n" for r in rows))
    assert message in terminal.refuses("log-prob", "runs/study-1", "events.csv", "-o", "o.csv")


def test_a_damaged_run(terminal: Terminal) -> None:
    argv = ("sample", "runs/study-1", "-o", "o.csv", "-g", "Z=1")
    weights, description = Path("runs/study-1/weights.safetensors"), Path("runs/study-1/density.json")
    content, text = weights.read_bytes(), description.read_text()
    weights.write_bytes(content[:-10])
    assert "weights.safetensors is damaged or truncated" in terminal.refuses(*argv)
    weights.write_bytes(content)
    description.write_text(text.replace('"width": 8', '"width": 9'))
    message = terminal.refuses(*argv)
    assert "weights.safetensors does not belong to the density.json beside it" in message
    assert "\n" not in message
    description.write_text(text.replace('"format": 1', '"format": 99'))
    assert "has format 99" in terminal.refuses(*argv)
    description.write_text(text[:50])
    assert "density.json is damaged" in terminal.refuses(*argv)


@pytest.mark.parametrize(
    "argv", ["bogus", "fit", "sample runs/study-1 -o a.csv -g Z=1 -n x", "fit study.toml --nam x"]
)
def test_usage_errors_end_with_2(terminal: Terminal, argv: str) -> None:
    code, _, err = terminal(*argv.split())
    assert code == 2
    assert "Usage: fluvial" in err


@pytest.mark.parametrize("seed", ["-1", str(2**70)])
def test_a_seed_beyond_range_is_a_usage_error(terminal: Terminal, seed: str) -> None:
    code, _, err = terminal("sample", "runs/study-1", "-o", "o.csv", "-g", "Z=1", "--seed", seed)
    assert code == 2
    assert "--seed" in err


def test_version(terminal: Terminal) -> None:
    assert terminal("--version") == (0, f"fluvial {fluvial.__version__}\n", "")


def test_what_the_system_refuses_is_one_message(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr("fluvial.workflow.list_runs", refuse)
    assert terminal.refuses("runs") == "[Errno 13] Permission denied: 'runs'"


def test_as_a_program_of_its_own(terminal: Terminal) -> None:
    program = [sys.executable, "-c", "from fluvial.cli import main; main()"]
    done = subprocess.run([*program, "fit", "stud.toml"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "fluvial: Expected a study at stud.toml; found no such file; did you mean 'study.toml'?\n"
    )
