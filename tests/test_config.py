# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what is read, what is refused, and that every message names key, place and remedy."""

import pytest
import yaml

from mindvideo.config import REPOSITORY, load_config, resolve, to_yaml
from mindvideo.errors import InputError
from mindvideo.schema import SCHEMAS, Field

SHIPPED = sorted((REPOSITORY / "configs").rglob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "run.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path, *overrides) -> str:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def flatten(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("task", SCHEMAS)
def test_a_file_without_settings_gives_every_default_in_its_type(task, write):
    config = load_config(write(f"task: {task}\n" if task != "fewshot" else "# nothing but this\n"))
    fields = dict(flatten(SCHEMAS[task]))
    values = dict(flatten(config.to_dict()))
    assert values.keys() == fields.keys()
    assert values.pop("name") == "run"
    assert values.pop("task") == task
    for key, value in values.items():
        assert value == fields[key].default
        assert type(value) is type(fields[key].default)


def test_every_default_is_allowed():
    for key, field in (pair for schema in SCHEMAS.values() for pair in flatten(schema)):
        assert field.parse(field.default) == field.default, key
        assert field.help, key


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_files_load_and_come_back_from_their_own_yaml(path, write):
    config = load_config(path)
    assert config.name.endswith(path.stem)
    again = write(to_yaml(config), "again.yaml")
    assert load_config(again).to_dict() == config.to_dict()


def test_shipped_names_are_different():
    """Runs of different configs must not share a folder."""
    runs = [path for path in SHIPPED if path.parent.name != "rows"]
    assert len({load_config(path).name for path in runs}) == len(runs) >= 55


def test_several_parents(write):
    """A later parent wins over an earlier one, the file over both; a parent may be shared."""
    write("optim: {lr: 0.1}\nseed: 1\n", "root.yaml")
    write("base: root.yaml\noptim: {lr: 0.2}\nname: a\n", "a.yaml")
    write("base: root.yaml\nseed: 3\nname: b\n", "b.yaml")
    config = load_config(write("base: [a.yaml, b.yaml]\ndevice: cpu\n", "child.yaml"))
    assert (config.name, config.seed, config.optim.lr, config.device) == ("b", 3, 0.1, "cpu")
    assert "list of such names" in refusal(write("base: {a: 1}\n", "wrong.yaml"))


def test_round_trip_keeps_awkward_values(write):
    odd = ["optim.lr=1e-30", 'output="a: b # c"', "name=Grüße", "data.root='null'", "model.sigma=1e6"]
    config = load_config(write("seed: 7\n"), odd)
    again = load_config(write(to_yaml(config), "again.yaml"))
    assert again.to_dict() == config.to_dict()
    assert (again.optim.lr, again.output, again.name, again.data.root) == (1e-30, "a: b # c", "Grüße", "null")


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "'1e-3'"])
def test_numbers_in_any_notation(write, text):
    assert load_config(write(f"optim: {{lr: {text}}}")).optim.lr == 1e-3
    assert load_config(write(""), [f"optim.lr={text}"]).optim.lr == 1e-3


def test_a_whole_number_is_a_number(write):
    lr = load_config(write("optim: {lr: 1}")).optim.lr
    assert lr == 1.0
    assert type(lr) is float


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sead: 1", ["unknown key 'sead'", "did you mean 'seed'?", "Allowed here: task, name, output, seed"]),
        ("optim: {learning: 1}", ["unknown key 'optim.learning'", "lr, schedule, decay_every"]),
        ("data: {heigth: 64}", ["unknown key 'data.heigth'", "did you mean 'data.height'?"]),
        ("zzz: 1", ["unknown key 'zzz'", "Allowed here: task"]),
        ("1: 2", ["unknown key '1'"]),
        ("seed: one", ["seed is 'one'", "a whole number from 0 to 2147483647"]),
        ("seed: 1.0", ["seed is 1.0", "a whole number"]),
        ("seed: true", ["seed is True", "a whole number"]),
        ("seed: null", ["seed is None", "a whole number"]),
        ("seed: [1]", ["seed is [1]", "a whole number"]),
        ("seed: -1", ["seed is -1", "from 0"]),
        ("optim: {lr: fast}", ["optim.lr is 'fast'", "a number from 0 to 100"]),
        ("optim: {lr: true}", ["optim.lr is True", "a number from 0 to 100"]),
        ("optim: {lr: .nan}", ["optim.lr is nan", "a number from 0 to 100"]),
        ("optim: {lr: nan}", ["optim.lr is 'nan'", "a number from 0 to 100"]),
        ("optim: {lr: .inf}", ["optim.lr is inf", "a number from 0 to 100"]),
        ("optim: {clip_norm: .inf}", ["optim.clip_norm is inf", "a number of at least 0"]),
        ("optim: {clip_norm: -1}", ["optim.clip_norm is -1", "a number of at least 0"]),
        ("train: {episodes: 0}", ["train.episodes is 0", "a whole number of at least 1"]),
        ("model: {width: 8}", ["model.width is 8", "a whole number from 16 to 1024"]),
        ("data: {flip: 1}", ["data.flip is 1", "true or false"]),
        ("output: 5", ["output is 5", "text"]),
        (
            "data: {train_sampling: unifrom}",
            ["data.train_sampling is 'unifrom'", "one of uniform, random", "did you mean 'uniform'?"],
        ),
        ("device: tpu", ["device is 'tpu'", "one of auto, cpu, gpu, ascend"]),
        ("model: arn", ["model is 'arn'", "must hold the keys name, width"]),
        ("model: null", ["model is None", "must hold the keys"]),
        ("- seed", ["expected `key: value` lines"]),
        ("seed: [", ["not valid YAML"]),
        ("seed: 1\nseed: 2", ["not valid YAML", "the key 'seed' stands twice"]),
        ("optim:\n  lr: 1\n  lr: 2", ["line 2", "the key 'lr' stands twice"]),
        ("[a]: 1", ["not valid YAML"]),
        ("seed: !!python/object:os.system 1", ["not valid YAML"]),
        ("base: 3", ["base must be the name of a YAML file"]),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_file(write, text, parts):
    path = write(text)
    message = refusal(path)
    assert str(path) in message
    for part in parts:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lr", ["write key.sub=value"]),
        ("optim.rl=1", ["unknown key 'optim.rl'", "lr, schedule"]),
        ("modle.width=64", ["unknown key 'modle'", "did you mean 'model'?"]),
        ("seed.x=1", ["seed is {'x': 1}", "a whole number"]),
        ("=1", ["unknown key ''"]),
        ("optim.lr=", ["optim.lr is None", "a number"]),
        ("seed=[", ["not valid YAML"]),
        ("base=other.yaml", ["unknown key 'base'"]),
    ],
)
def test_mistakes_in_an_override_are_named_with_it(write, override, parts):
    message = refusal(write(""), override)
    for part in [f"override {override!r}", *parts]:
        assert part in message


def test_overrides_win_and_the_last_one_most(write):
    path = write("optim: {lr: 0.1, schedule: cosine}\nseed: 3")
    config = load_config(path, ["optim.lr=0.2", "optim.lr=0.3", "data.flip=true", "data.root=/a=b"])
    assert (config.optim.lr, config.optim.schedule, config.seed) == (0.3, "cosine", 3)
    assert config.data.flip is True
    assert config.data.root == "/a=b"


def test_base_is_relative_to_its_file_and_loses_to_it(write):
    write("seed: 1\noptim: {lr: 0.1, schedule: cosine}\nname: grand", "grand.yaml")
    write("base: ../grand.yaml\noptim: {lr: 0.2}\noutput: o", "deep/parent.yaml")
    child = write("base: deep/parent.yaml\nseed: 5", "child.yaml")
    config = load_config(child)
    assert (config.seed, config.optim.lr, config.optim.schedule) == (5, 0.2, "cosine")
    assert (config.output, config.name) == ("o", "grand")


def test_a_mistake_in_the_base_names_the_base(write):
    write("sead: 1", "parent.yaml")
    message = refusal(write("base: parent.yaml"))
    assert "parent.yaml: unknown key 'sead'" in message


def test_circles_and_missing_files_are_refused(write, tmp_path):
    first = write("base: second.yaml", "first.yaml")
    write("base: ./first.yaml", "second.yaml")
    assert "`base:` goes in a circle" in refusal(first)
    assert "`base:` goes in a circle" in refusal(write("base: self.yaml", "self.yaml"))
    assert f"{tmp_path / 'gone.yaml'}: no such file" in refusal(write("base: gone.yaml", "child.yaml"))
    assert f"{tmp_path / 'none.yaml'}: no such file" in refusal(tmp_path / "none.yaml")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../up", "a/b", "/abs", "..", ".", ".hidden", "a/"])
def test_a_name_that_leaves_the_output_folder_is_refused(write, name):
    message = refusal(write(""), f"name={name}")
    assert f"name: {name!r} is not a plain folder name" in message


def test_the_configuration_is_locked_and_typed(write):
    config = load_config(write(""))
    with pytest.raises(AttributeError, match="sead"):
        config.sead = 1
    with pytest.raises(AttributeError, match="rl"):
        config.optim.rl = 1
    with pytest.raises(TypeError, match="lr"):
        config.optim.lr = "fast"


def test_fields_know_their_range():
    field = Field(1.0, "a share", low=0.5, high=2.0)
    assert [field.parse(value) for value in (0.5, 2, "1e0")] == [0.5, 2.0, 1.0]
    for value in (0.499, 2.001, float("nan"), float("inf"), "", None, [1.0], False):
        with pytest.raises(ValueError, match=r"a number from 0\.5 to 2"):
            field.parse(value)
    without_limits = Field(1.0, "any number")
    assert without_limits.parse(-1e300) == -1e300
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match=r"^a number$"):
            without_limits.parse(value)


def test_yaml_of_a_configuration_is_plain(write):
    text = to_yaml(load_config(write("seed: 2")))
    assert yaml.safe_load(text)["seed"] == 2
    assert "!!" not in text


def test_paths_are_found_beside_the_caller_then_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("configs") == REPOSITORY / "configs"
    (tmp_path / "configs").mkdir()
    assert resolve("configs").resolve() == tmp_path / "configs"
    assert str(resolve("nowhere/at/all")) == "nowhere/at/all"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/configs") == tmp_path / "configs"
