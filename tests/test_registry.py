import sys

import pytest

from segbench import registry
from segbench.errors import SpecError


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of the user's that can be imported from; what it imports is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_folder_is_a_registry_of_the_files_that_have_its_entrance():
    assert registry.names("kinds") == ["knockout", "probe", "starvation"]
    assert {"folder", "scenes"} <= set(registry.names("data"))
    beside = {"base", "checkpoint", "weights", "traced"}  # what adapters stand on
    assert not beside & set(registry.names("adapters"))
    for package in ("adapters", "data", "kinds", "plots"):
        for name in registry.names(package):
            registry.module(package, name)


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(SpecError, match=r"'prob' is not in segbench/kinds, did you mean 'probe'\?"):
        registry.find("kinds", "prob")
    with pytest.raises(SpecError, match="known: knockout, probe, starvation"):
        registry.find("kinds", "xyz")


@pytest.mark.parametrize("name", ["../probe", "probe.", "a..b", "a.b c", "os.path/../x"])
def test_no_name_leads_out_of_the_registries(name):
    with pytest.raises(SpecError):
        registry.find("kinds", name)


def test_a_dotted_name_is_a_module_of_the_users(own):
    (own / "mine_one.py").write_text("")
    (own / "lab_one").mkdir()
    (own / "lab_one/__init__.py").write_text("")
    (own / "lab_one/depth.py").write_text("class Params: ...\ndef requires(params): ...\ndef run(job): ...\n")
    assert registry.find("kinds", "lab_one.depth") == "lab_one.depth"
    assert registry.source("kinds", "lab_one.depth") == own / "lab_one/depth.py"
    assert registry.source("kinds", "probe") is None
    assert registry.module("kinds", "lab_one.depth").__name__ == "lab_one.depth"
    with pytest.raises(SpecError, match="name the folder that holds absent/ with --include"):
        registry.find("kinds", "absent.depth")


def test_a_module_that_breaks_or_lacks_a_part_is_told_by_name(own):
    (own / "lab_two").mkdir()
    (own / "lab_two/broken.py").write_text("1 / 0\n")
    (own / "lab_two/half.py").write_text("def run(job): ...\n")
    with pytest.raises(SpecError, match=r"lab_two\.broken cannot be imported: ZeroDivisionError"):
        registry.module("kinds", "lab_two.broken")
    with pytest.raises(SpecError, match=r"lab_two\.half has no Params, requires"):
        registry.module("kinds", "lab_two.half")
