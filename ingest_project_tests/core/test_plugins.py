"""Plugins of other packages: found by entry point, never replacing another, harmless when broken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ingest_project.cli.main import build_app, installed_plugins
from ingest_project.core import plugins
from ingest_project.core.errors import PermanentError, SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.capability import declaration_problems
from ingest_project.operations.alerts.watch import send_test
from ingest_project.platform.object_store import open_store
from ingest_project.readers.datasets import load_declarations
from ingest_project.readers.reading import READERS
from ingest_project.sources.registry import SOURCES, SourceContext, open_source
from ingest_project_tests.file_ingest.datasets.system import declare

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Lay a package out as pip would."""

    def installed(package: str, code: str, **groups: str) -> None:
        site = tmp_path / package
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        entries = [f"[ingest_project.{group}]\n{line}\n" for group, line in groups.items()]
        (info / "entry_points.txt").write_text("".join(entries))
        (site / f"{package}.py").write_text(code)
        monkeypatch.syspath_prepend(str(site))
        plugins.installed.cache_clear()

    yield installed
    plugins.installed.cache_clear()


def test_a_part_of_another_package_is_found_and_loaded_when_it_is_used(install: Install) -> None:
    install("own_a", "class R:\n    def read(self): ...\nrec = R()\n", readers="rec = own_a:rec")
    assert "rec" in [*READERS]
    assert type(READERS["rec"]).__name__ == "R"
    (found,) = READERS.plugins()
    assert (found.name, found.package, found.problem) == ("rec", "own_a 1.0", "")


@pytest.mark.parametrize(
    ("code", "entry", "problem"),
    [
        ("raise RuntimeError('no licence')", "rec = own_b:rec", "RuntimeError: no licence"),
        ("raise SystemExit(1)", "rec = own_b:rec", "SystemExit: 1"),
        ("", "rec = own_b:rec", "AttributeError"),
        ("", "rec = none_of_ours:rec", "ModuleNotFoundError"),
        ("rec = 5", "rec = own_b:rec", "no object with 'read'"),
        ("class rec:\n    def read(self): ...", "rec = own_b:rec", "no object with 'read'"),
        ("", "csv = own_b:csv", "A shipped part is called 'csv'"),
    ],
)
def test_a_broken_part_is_left_out_listed_and_harms_no_other(
    install: Install, monkeypatch: pytest.MonkeyPatch, code: str, entry: str, problem: str
) -> None:
    plugins._load_problem.cache_clear()
    plugins._loaded.cache_clear()
    monkeypatch.delitem(sys.modules, "own_b", raising=False)
    install("own_b", code, readers=entry)
    (found,) = READERS.plugins()
    assert problem in found.problem
    assert READERS["csv"].__class__.__module__ == "ingest_project.readers.formats.csv_reader"
    if found.name == "rec":
        assert "rec" not in READERS
        with pytest.raises(PermanentError, match="cannot be used"):
            READERS.named("rec", "file type")
    assert [plugin.name for plugin in installed_plugins()] == [found.name]
    assert "not used" in CliRunner().invoke(build_app(["config"]), ["config"]).output


def test_a_dataset_whose_reader_is_broken_is_reported_and_harms_no_other(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("own_h", "raise RuntimeError('no licence')", readers="tape = own_h:tape")
    columns = [{"name": "station", "type": "text"}]
    declare(tmp_path, "taped", columns=columns, file_types=["tape.gz", "csv"])
    declare(tmp_path, "other", columns=columns)
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"INGEST_CONFIG_DIR": str(tmp_path)}, tmp_path).settings
    found = load_declarations(settings)
    assert [one.name for one in found.declared] == ["other"]
    assert [one.name for one in found.broken] == ["taped"]
    reason = (
        "file_types: the reader of 'tape' is a plug-in that cannot be used: own_h:tape cannot be imported: RuntimeE"
    )
    assert reason in found.broken[0].problem
    assert any(reason in problem for problem in declaration_problems(settings))
    done = CliRunner().invoke(build_app(["dataset"]), ["dataset", "check"])
    assert done.exit_code == 1
    assert "1 problem" in done.output


def test_plugins_of_two_packages_with_one_name_are_refused(install: Install) -> None:
    install("own_c", "def made(config, context): ...", sources="tape = own_c:made")
    install("own_d", "def made(config, context): ...", sources="tape = own_d:made")
    with pytest.raises(PermanentError, match="Several packages"):
        SOURCES.named("tape", "source_type")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PermanentError, match="Known are: dummy, ftp, http"):
        SOURCES.named("x" * 1_000, "source_type")


def test_the_options_of_a_source_are_checked_by_its_own_model(install: Install) -> None:
    code = (
        "from pydantic import BaseModel\n"
        "class Options(BaseModel):\n    path: str\n    size: int\n"
        "def made(config, context): return Options.model_validate(config)\n"
    )
    install("own_e", code, sources="tape = own_e:made")
    with pytest.raises(PermanentError, match="source_config of 'tape' does not fit: size: Field required"):
        open_source({"source_type": "tape", "path": "x"}, SourceContext(Settings()))


def test_a_store_of_another_package_has_its_own_scheme_and_the_settings(install: Install) -> None:
    code = "def made(url, options): return (url, options.settings)\n"
    install("own_f", code, stores="tape = own_f:made")
    settings = Settings()
    assert open_store("tape://reel/1", settings=settings) == ("tape://reel/1", settings)  # type: ignore[comparison-overlap]
    with pytest.raises(SettingsError, match="Unknown scheme"):
        open_store("other://reel/1")


def test_alerts_go_to_every_channel_whichever_of_them_fails(install: Install) -> None:
    code = (
        "sent = []\n"
        "def good(settings, alerts): sent.extend(alerts)\n"
        "def bad(settings, alerts): raise ValueError('http://secret')\n"
    )
    install("own_g", code, alert_channels="pager = own_g:good\nbell = own_g:bad")
    outcomes = send_test(Settings.model_validate({"alerts": {"channels": ["bell", "pager", "none", "webhook"]}}))
    assert outcomes["pager"] is None
    assert outcomes["bell"] == "ValueError"
    assert "Known are: bell, pager, webhook" in str(outcomes["none"])
    # Without an address there is no webhook.
    assert len(outcomes) == 3
