import pytest

from segbench.errors import SpecError
from segbench.library import Library


@pytest.fixture
def folder(tmp_path):
    files = {
        "models/one.yaml": "adapter: llava\nweights: ./w\n",
        "models/two.yaml": "adapter: llava\nweights: ./w\n",
        "tasks/small.yaml": "kind: probe\ndata: scenes\ngroups: [mine, quick]\n",
        "tasks/large.yaml": "kind: probe\ndata: scenes\ngroups: [mine]\n",
        "beside.yaml": "kind: starvation\nprobes: small\n",
        "compose.yaml": "services: {web: {image: x}}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(specs):
    return [spec.name for spec in specs]


def test_names_groups_patterns_and_all_choose_in_their_order_and_each_once(folder):
    library = Library([folder])
    assert names(library.models("two,one,two")) == ["two", "one"]
    assert names(library.models("tw*, one")) == ["two", "one"]
    assert names(library.tasks("mine")) == ["large", "small"]
    assert names(library.tasks("quick,mine")) == ["small", "large"]
    assert {"beside", "small", "large", "probe-scenes"} <= set(names(library.tasks("all")))
    assert names(library.tasks("demo")) == ["knockout-scenes", "probe-scenes", "starvation-scenes"]


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("smal", r"no task 'smal', did you mean 'small'\?"),
        ("min", r"no task 'min', did you mean 'mine'\?"),
        ("small,zzz,qqq", "no task 'zzz'.*\nno task 'qqq'"),
        ("zz*", r"no task 'zz\*'"),
        (" , ", "no task is named; known: "),
    ],
)
def test_what_is_not_there_is_told_with_the_nearest(folder, pattern, told):
    with pytest.raises(SpecError, match=told):
        Library([folder]).tasks(pattern)


def test_one_task_is_asked_for_by_its_exact_name(folder):
    library = Library([folder])
    assert library.task("small").name == "small"
    assert library.model("one").name == "one"
    for name in ("mine", "sm*", "all"):
        with pytest.raises(SpecError, match="no task"):
            library.task(name)


def test_a_file_can_be_included_by_itself(folder):
    library = Library([folder / "tasks/small.yaml"])
    assert library.task("small").path == folder / "tasks/small.yaml"
    with pytest.raises(SpecError):
        library.task("large")


def test_two_files_with_one_name_are_told_with_both_paths(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "small.yaml").write_text("kind: probe\ndata: scenes\n")
    with pytest.raises(SpecError, match=r"task .small. is in .* and in .*; rename one of them") as error:
        Library([folder, other]).tasks("small")
    assert all(str(one / "small.yaml") in str(error.value) for one in (folder / "tasks", other))
    assert names(Library([folder, folder, folder / "tasks/small.yaml"]).tasks("small")) == ["small"]


def test_a_file_that_says_nothing_of_itself_is_a_problem_only_where_specs_are_kept(folder):
    (folder / "tasks/lost.yaml").write_text("data: scenes\n")
    (folder / "models/torn.yaml").write_text("adapter: [\n")
    library = Library([folder])
    assert len(library.problems) == 2
    told = " ".join(library.problems)
    assert "tasks/lost.yaml: a model has the key 'adapter', a task the key 'kind'; this file has neither" in told
    assert "models/torn.yaml:2" in told
    assert names(library.tasks("small")) == ["small"]  # the others can be used all the same
    with pytest.raises(SpecError, match=r"torn\.yaml"):
        library.models("torn")


# ------------------------------------------------------------------------------------------------ models without a card


def test_a_checkpoint_folder_is_a_model_without_a_card(tmp_path):
    folder = tmp_path / "my model (v2)"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (spec,) = Library().models(f"{folder}")
    assert (spec.name, spec.adapter, spec.weights) == ("my-model--v2-", "auto", folder)
    assert (spec.attention, spec.dtype, spec.prompt) == ("native", "auto", None)
    assert Library().model(str(folder)) == spec
    (folder / "config.json").write_text('{"image_attention": "bidirectional"}')
    assert Library().model(str(folder)).attention == "bidirectional"
    (tmp_path / "_(x)").mkdir()
    (tmp_path / "_(x)/config.json").write_text("[")
    assert Library().model(f"{tmp_path}/_(x)").name == "x-"
    tiny, same = Library().models(f"tiny-clip-causal,{folder}", {"resolution": 56})
    assert (tiny.adapter, same.resolution) == ("llava", 56)


def test_a_repository_of_the_hub_is_a_model_without_a_card():
    (spec,) = Library().models(f"hf:some/model@{'a' * 40}")
    assert (spec.name, spec.adapter, spec.hub, spec.revision) == ("some--model", "auto", "some/model", "a" * 40)
    (unpinned,) = Library().models("hf:some/model")
    assert unpinned.revision is None


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("./no/such/folder", "holds no config.json, so it is no checkpoint of a model"),
        ("hf:some", "--model hf:some: hub: expected ORG/NAME, got 'some'"),
        ("hf:../../etc", "expected ORG/NAME"),
        ("hf:some/model@main", "expected a commit of 40 hexadecimal digits"),
    ],
)
def test_a_place_without_a_model_is_told(place, said):
    with pytest.raises(SpecError, match=said):
        Library().models(place)
