# SPDX-License-Identifier: Apache-2.0
"""Whole runs of robust classification on made images: training in one and two stages and against attacks, going on
after a stop, the attack table, and what is refused."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image
from safetensors.numpy import load_file

from mindvideo.cli import main
from mindvideo.config import REPOSITORY, load_config
from mindvideo.engine.checkpoint import read_checkpoint
from mindvideo.models.convnext import ConvNeXt
from mindvideo.models.robust import Defended
from mindvideo.tasks import robust_objective
from mindvideo.tasks.robust_attack import Budgets
from mindvideo.tasks.robust_attack_report import NAIVE, SAME_BUDGET, SWEEP, _short
from mindvideo.tasks.robust_objective import FGSM_STEPS, Objective, TrainingInputs, make_target
from tests.tiny import logged, result

CLASSES, SIDE = ("bars", "dots", "plain"), 16
CONFIG = f"""
task: robust
device: cpu
model: {{width: 8, depth: 1, patch: 2, layer_scale: 1.0, normalize: true}}
data: {{dataset: folder, short_side: {SIDE}, size: {SIDE}, crop_scale: 0.8, augmentation: 0.0, workers: 1}}
optim: {{lr: 0.002, backbone: 1.0}}
loss: {{mixup: 0.0, cutmix: 0.0}}
train: {{epochs: 6, batch: 6, save_every: 4, log_every: 1}}
eval: {{batch: 15}}
attack: {{images: 15, steps: 5, apgd_steps: 4, cw_searches: 2, cw_steps: 5, draws: 3, queries: 10}}
"""


def drawn(label: str, rng: np.random.Generator) -> np.ndarray:
    """A faint pattern on noise."""
    image = rng.integers(90, 160, (SIDE, SIDE, 3))
    if label == "bars":
        image[:, ::4] += 60
    elif label == "dots":
        image[::3, ::3] += 70
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """tiny.yaml, and images/ with 18 training and 5 test images a class."""
    root, rng = tmp_path_factory.mktemp("robust"), np.random.default_rng(0)
    (root / "tiny.yaml").write_text(CONFIG)
    for part, count in (("train", 18), ("test", 5)):
        for label in CLASSES:
            folder = root / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(drawn(label, rng)).save(folder / f"{number}.png")
    return root


def run(command: str, made: Path, output: Path, *more: str) -> int:
    """`mindvideo train`, `eval` or `attack` in this process; its exit status."""
    return main([command, str(made / "tiny.yaml"), f"data.root={made / 'images'}", f"output={output}", *more])


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory) -> Path:
    """The folder of a plain training of 9 x 10 steps."""
    output = tmp_path_factory.mktemp("plain")
    assert run("train", made, output, "train.epochs=10") == 0
    return output / "tiny"


def test_a_run_learns_and_leaves_its_files(trained, made, tmp_path):
    written = result(trained)
    assert written["metrics"]["accuracy"]["value"] >= 0.9
    assert written["metrics"]["accuracy"]["n"] == 15
    assert written["classes"] == list(CLASSES)
    assert written["images"] == {"train": 54, "val": 0, "test": 15}
    assert list(logged(trained, "loss")) == list(range(1, 91))
    names = ("report.html", "config.yaml", "log.csv", "last.ckpt", "last.safetensors")
    assert all((trained / name).stat().st_size > 0 for name in names)
    checkpoint = str(trained / "last.ckpt")
    assert run("eval", made, tmp_path, "--checkpoint", checkpoint) == 0
    assert result(tmp_path / "tiny-eval")["metrics"] == written["metrics"]


EVERYTHING = (
    "loss.mixup=1.0", "loss.cutmix=1.0", "loss.fgsm=0.5",
    "defence.concealment=true", "defence.padding=12", "train.epochs=1", "train.padded_epochs=1", "model.drop_path=0.3",
    "data.augmentation=0.05", "data.flip=true",
)  # fmt: skip


def test_a_stopped_run_goes_on_to_the_same_weights(made, tmp_path, monkeypatch):
    """With mixed and attacked images, both stages, dropout, padding and augmentation; stopped in the second stage."""
    assert run("train", made, tmp_path / "straight", *EVERYTHING) == 0
    calls, make = [], TrainingInputs.__call__

    def failing(self, step, images, labels):
        calls.append(step)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return make(self, step, images, labels)

    monkeypatch.setattr(TrainingInputs, "__call__", failing)
    assert run("train", made, tmp_path / "stopped", *EVERYTHING) == 130
    monkeypatch.undo()
    assert run("train", made, tmp_path / "stopped", *EVERYTHING, "train.resume=auto") == 0
    one, other = (load_file(tmp_path / name / "tiny" / "last.safetensors") for name in ("straight", "stopped"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)
    losses = [logged(tmp_path / name / "tiny", "loss") for name in ("straight", "stopped")]
    assert list(losses[0]) == list(range(1, 19))
    assert losses[0] == losses[1]


def test_the_attack_table(trained, made, tmp_path, capsys):
    """A plain row, and the same weights behind concealment: the published columns are fooled, the others are not."""
    hidden = tmp_path / "hidden"
    settings = ("name=hidden", f"train.pretrained={trained / 'last.ckpt'}", "train.epochs=1", "optim.lr=0.0")
    assert run("train", made, hidden, *settings, "defence.concealment=true", "defence.padding=14") == 0
    capsys.readouterr()
    checkpoints = [str(trained / "last.ckpt"), str(hidden / "hidden" / "last.ckpt")]
    words = [word for path in checkpoints for word in ("--checkpoint", path)]
    status = run("attack", made, tmp_path, *words, "attack.linf=0.2", "attack.l2=40", "attack.l1=4000")
    said = capsys.readouterr()
    rows = result(tmp_path / "tiny-attack")["rows"]
    plain, concealed = rows["tiny"], rows["hidden"]
    assert set(plain["robust_accuracy"]) == {*SAME_BUDGET, *NAIVE, "worst case"} - {"BPDA", "EOT"}
    assert set(concealed["robust_accuracy"]) == {*SAME_BUDGET, *NAIVE, "worst case"}
    for row in rows.values():
        assert row["clean"]["n"] == 15
        for name, rate in row["robust_accuracy"].items():
            assert rate["value"] <= row["clean"]["value"]
            ratio = row["attack_ratio"][name]
            assert ratio["value"] * ratio["n"] == pytest.approx(rate["value"] * 15)
        worst = row["robust_accuracy"]["worst case"]["value"]
        assert worst <= min(
            row["robust_accuracy"][name]["value"] for name in SAME_BUDGET if name in row["attack_ratio"]
        )
        assert list(row["sweep"]) == [f"{factor:g}" for factor in SWEEP]
        assert len(row["mean_losses"]) == 5
    assert plain["robust_accuracy"]["PGD Linf"]["value"] < 0.4
    assert concealed["robust_accuracy"]["PGD Linf"]["value"] > 0.6
    assert concealed["robust_accuracy"]["BPDA"]["value"] < 0.4
    assert concealed["robust_accuracy"]["transfer"]["value"] < 0.4
    assert status == 1
    assert "gradient masking" in said.err
    assert "hidden" in said.err
    assert "Robust accuracy" in said.out
    report = (tmp_path / "tiny-attack" / "report.html").read_text()
    assert "gradient masking" in report
    assert report.count("<img") == 4


@pytest.mark.parametrize(("names", "short"), [
    (["a_b_x", "a_b_y", "a_b_y_z"], ["x", "y", "y_z"]), (["tiny"], ["tiny"]), (["a_x", "b_x"], ["a_x", "b_x"]),
    (["a_xy", "a_xz (2)"], ["xy", "xz (2)"]),
])  # fmt: skip
def test_charts_have_short_names(names, short):
    assert _short(names) == dict(zip(names, short, strict=True))


def test_budgets_are_of_the_published_size(made):
    config = load_config(made / "tiny.yaml", ["data.size=112", "data.short_side=112"])
    budgets = Budgets.of(config)
    assert (budgets.linf, budgets.l2, budgets.l1) == (8 / 255, 4.0, 400.0)


# --- what a step is made of -------------------------------------------------------------------------------


def inputs(made: Path, *settings: str) -> tuple[TrainingInputs, np.ndarray, np.ndarray]:
    config = load_config(made / "tiny.yaml", list(settings))
    network = ConvNeXt(3, width=8, depth=1, patch=2)
    network.initialize(0)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0.2, 0.8, (6, 3, SIDE, SIDE)).astype(np.float32), rng.integers(0, 3, 6).astype(np.int32)
    return TrainingInputs(config, 3, make_target(config, Defended(network), 6)), x, y


def arrays(tensors: tuple[Tensor, ...]) -> list[np.ndarray]:
    return [tensor.asnumpy() for tensor in tensors]


def test_mixed_images_and_their_weights(made):
    make, x, y = inputs(made, "loss.clean=2.0", "loss.mixup=1.0", "loss.cutmix=0.5")
    images, first, second, share, weight, *_ = arrays(make(3, x, y))
    assert images.shape == (18, 3, SIDE, SIDE)
    np.testing.assert_array_equal(images[:6], x)
    np.testing.assert_array_equal(first, np.tile(y, 3))
    np.testing.assert_allclose(weight, np.repeat([2 / 6, 1 / 6, 0.5 / 6], 6), rtol=1e-6)
    assert (share[:6] == 1).all()
    assert (second[:6] == y).all()
    partners = [
        int(np.abs(x - mixed).sum((1, 2, 3)).argmin()) for mixed in (images[6:12] - share[6] * x) / (1 - share[6])
    ]
    np.testing.assert_allclose(images[6:12], share[6] * x + (1 - share[6]) * x[partners], atol=1e-5)
    np.testing.assert_array_equal(second[6:12], y[partners])
    left = (images[12:] == x).all(axis=1).mean((1, 2))
    assert ((left - share[12:]) < 1e-6).all() or (left == 1).any()  # an image may be its own partner
    np.testing.assert_array_equal(arrays(make(3, x, y))[0], images)
    assert np.abs(arrays(make(4, x, y))[0][6:] - images[6:]).max() > 0


@pytest.mark.parametrize("kind", ["fgsm", "targeted"])
def test_images_along_the_gradient_s_sign(made, kind):
    make, x, y = inputs(made, "loss.clean=0.0", f"loss.{kind}=2.0")
    images, first, second, share, weight, *_ = arrays(make(0, x, y))
    change = images[:6] - x
    np.testing.assert_allclose(images[6:] - x, -change, atol=1e-6)
    sizes = np.unique(np.abs(change).round(6))
    assert min(abs(sizes[-1] - FGSM_STEPS)) < 1e-6
    np.testing.assert_array_equal(first, np.tile(y, 2))
    np.testing.assert_array_equal(second, first)
    np.testing.assert_allclose(weight, 2 / 12, rtol=1e-6)
    assert (share == 1).all()
    if kind == "fgsm":
        _, gradient, _ = make.target.gradient(x, y)
        np.testing.assert_allclose(change, sizes[-1] * np.sign(gradient), atol=1e-6)


@pytest.mark.parametrize("attack", ["pgd", "n_fgsm", "trades"])
def test_attacked_images_stay_near_and_raise_the_loss(made, attack):
    clean = 1.0 if attack == "trades" else 0.0
    make, x, y = inputs(made, f"loss.clean={clean}", f"loss.attack={attack}", "loss.steps=4", "loss.adversarial=6.0")
    images, first, *_, weight, _, _ = arrays(make(0, x, y))
    attacked = images[-6:]
    reach = 3.0 if attack == "n_fgsm" else 1.0
    assert np.abs(attacked - x).max() <= reach * 8 / 255 + 1e-6
    if attack == "trades":  # away from what was predicted, whatever the label
        logits = make.target.logits(x)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        before, after = (make.target.gradient(images, probabilities, "kl")[0].mean() for images in (x, attacked))
    else:
        before, after = (make.target.gradient(images, y)[0].mean() for images in (x, attacked))
    assert after > before
    np.testing.assert_array_equal(first[-6:], y)
    np.testing.assert_allclose(weight[-6:], 0.0 if attack == "trades" else 1.0, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 6.0])
@pytest.mark.usefixtures("pynative")
def test_the_loss_is_that_of_the_papers(made, beta):
    rng, network = np.random.default_rng(0), ConvNeXt(3, width=8, depth=1, patch=2)
    network.initialize(0)
    x = rng.uniform(0, 1, (8, 3, SIDE, SIDE)).astype(np.float32)
    first, second = rng.integers(0, 3, (2, 8)).astype(np.int32)
    share, weight = rng.uniform(0, 1, (2, 8)).astype(np.float32)
    objective = Objective(Defended(network), batch=4, beta=beta)
    seeds = Tensor(1, ms.uint32), None
    loss, logits = objective(*(Tensor(array) for array in (x, first, second, share, weight)), *seeds)
    z = logits.asnumpy().astype(np.float64)
    log = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    rows = np.arange(8)
    expected = -(weight * (share * log[rows, first] + (1 - share) * log[rows, second])).sum()
    expected += beta * (np.exp(log[:4]) * (log[:4] - log[4:])).sum(axis=1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_the_backbone_learns_at_its_own_rate(made, trained, tmp_path):
    assert run("train", made, tmp_path, f"train.pretrained={trained / 'last.ckpt'}", "optim.backbone=0.0",
               "train.epochs=1", "optim.weight_decay=0.0") == 0  # fmt: skip
    before, after = load_file(trained / "last.safetensors"), load_file(tmp_path / "tiny" / "last.safetensors")
    changed = {name.split(".")[0] for name in before if np.abs(before[name] - after[name]).max() > 0}
    assert changed == {"head"}


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    (["loss.clean=0.0"], "nothing to learn"),
    (["loss.clean=0.0", "loss.attack=trades"], "loss.clean must be above 0"),
    (["train.padded_epochs=1"], "defence.padding is 0"),
    (["defence.padding=16", "train.padded_epochs=1"], r"16 pixels.*\[1, 15\]"),
    (["data.short_side=16", "data.size=32"], "at least data.size, 32"),
    (["train.batch=100"], "there are 54 training images"),
    (["model.name=actionnet"], "actionnet has no such option"),
    (["model.name=resnet50"], "no such option"),
    (["data.dataset=list"], "data.train_list is not set"),
    (["data.root=/nowhere"], "train: no image found"),
])  # fmt: skip
def test_mistakes_are_one_sentence(made, tmp_path, capsys, settings, message):
    import re

    assert run("train", made, tmp_path, *settings) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("settings", "message"), [
    (["data.size=24", "data.short_side=24"], "made for images of 16 pixels"), ([], "is no"),
])  # fmt: skip
def test_checkpoints_that_do_not_fit_are_refused(trained, made, tmp_path, capsys, settings, message):
    path = trained / "last.ckpt"
    if not settings:
        path, message = tmp_path / "none.ckpt", "none.ckpt"
    assert run("attack", made, tmp_path, "--checkpoint", str(path), *settings) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_knows_its_classes_and_config(trained):
    _, state = read_checkpoint(trained / "last.ckpt")
    assert state.classes == list(CLASSES)
    assert state.config["defence"] == {"concealment": False, "padding": 0}
    assert robust_objective.FGSM_STEPS[[0, -1]] == pytest.approx([0.001, 0.08])


def test_shipped_configs_are_read():
    folder = REPOSITORY / "configs" / "robust"
    configs = {str(path.relative_to(folder).with_suffix("")): load_config(path) for path in folder.rglob("*.yaml")}
    rows = [f"{data}/{row}" for data in ("sample", "ucf101") for row in ("vanilla", "gcm", "gcm_pad", "pgd")]
    assert configs.keys() == {"base", "two_stage", "mldecoder", "fgsm", "small", *rows}
    published = configs["base"]
    optim, loss = published.optim, published.loss
    assert (published.model.name, published.model.head, published.model.width) == ("convnext_tiny", "fc", 96)
    assert (optim.lr, optim.backbone, optim.weight_decay, optim.decay_every) == (1e-3, 0.1, 1e-3, 70)
    assert (loss.clean, loss.mixup, loss.cutmix, loss.fgsm, loss.attack) == (1.0, 1.0, 1.0, 0.0, "none")
    assert (published.data.size, published.data.short_side, published.data.augmentation) == (224, 256, 0.05)
    assert configs["two_stage"].defence.padding == 218
    for data in ("sample", "ucf101"):
        defences = {
            row: tuple(configs[f"{data}/{row}"].defence.values()) for row in ("vanilla", "gcm", "gcm_pad", "pgd")
        }
        assert defences == {"vanilla": (False, 0), "gcm": (True, 0), "gcm_pad": (True, 42), "pgd": (False, 0)}
        against = configs[f"{data}/pgd"]
        assert (against.loss.attack, against.loss.epsilon) == ("pgd", against.attack.linf)
