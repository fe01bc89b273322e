"""What a wheel holds, and what a repository must not."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own, as pip would lay it out."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_a_wheel_brings_its_configuration(installed: Path) -> None:
    here = {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    there = {p.relative_to(installed / "mtlcar" / "conf") for p in (installed / "mtlcar" / "conf").rglob("*.yaml")}
    assert here == there
    assert not (installed / "tests").exists()


def test_an_installed_wheel_composes(installed: Path, tmp_path: Path) -> None:
    code = "import mtlcar, sys; from mtlcar.cli import main; print(mtlcar.__file__); sys.exit(main(['train', '--cfg']))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in done.stdout
    assert "max_epochs" in done.stdout


def test_pre_commit_runs_what_lint_runs() -> None:
    make, hooks = (ROOT / "Makefile").read_text(), (ROOT / ".pre-commit-config.yaml").read_text()
    for command in ("ruff format --check", "ruff check", "mypy"):
        assert command in make
        assert command in hooks


def test_every_local_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_recipes_of_the_readme_compose() -> None:
    from mtlcar.sweeps.launch import expand, hydra_config, with_params

    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line.strip() for line in text.splitlines() if line.strip().startswith("mtlcar train ")]
    assert len(commands) >= 8
    import shlex

    from mtlcar.config import compose_config

    for command in commands:
        words = [w for w in shlex.split(command)[2:] if not w.startswith("-") and w != "..."]
        cells = expand(with_params(words, hydra_config(words)))
        for cell in (cells[0], cells[-1]):
            compose_config(cell)
