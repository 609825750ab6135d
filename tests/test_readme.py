import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"^<!-- command: (\w+) -->\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands():
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- command:") == len(COMMAND.findall(text))
    return dict(COMMAND.findall(text))


def test_the_readme_has_two_commands_of_one_line_each():
    found = commands()
    assert set(found) == {"run", "test"}
    for line in found.values():
        assert line.count("\n") == 1
        assert "-c constraints.txt" in line
    assert "segbench demo" in found["run"]
    assert "pytest" in found["test"]


def test_ci_runs_the_command_of_the_readme_in_a_copy_that_git_knows(tmp_path):
    """With a README of another command, and the same script."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/run").write_bytes((ROOT / ".ci/run").read_bytes())
    (tmp_path / "README.md").write_text(
        "<!-- command: run -->\n```\nfalse\n```\n<!-- command: test -->\n```bash\n"
        "mkdir -p .venv/bin && ln -s $(command -v python3) .venv/bin/python && ls > $SEEN\n```\n```\nfalse\n```\n"
    )
    for name in ("kept", "ignored"):
        (tmp_path / name).write_text("")
    (tmp_path / ".gitignore").write_text("ignored\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    seen = tmp_path / "seen"
    done = subprocess.run(
        ["bash", tmp_path / ".ci/run"],
        env={**os.environ, "SEEN": str(seen)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert seen.read_text().split() == ["README.md", "kept"]
    assert "+ mkdir -p .venv" in done.stdout


@pytest.mark.parametrize("name", ["torchvision", "lmms_eval"])
def test_ci_fails_where_what_must_be_absent_is_installed(tmp_path, name):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/run").write_bytes((ROOT / ".ci/run").read_bytes())
    lines = f"mkdir -p .venv/bin && ln -s $(command -v python3) .venv/bin/python && touch {name}.py"
    (tmp_path / "README.md").write_text(f"<!-- command: test -->\n```\n{lines}\n```\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    done = subprocess.run(["bash", tmp_path / ".ci/run"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{name} is installed" in done.stderr


def test_constraints_pin_versions_and_nothing_else():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert "torch" in {line.partition("==")[0] for line in lines}
