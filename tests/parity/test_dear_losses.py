# SPDX-License-Identifier: Apache-2.0
"""DEAR's losses, heads and debiasing against golden arrays made with its authors' code, all of every file found."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from scipy.special import gammaln

from mindvideo.errors import InputError
from mindvideo.heads import BayesianHead, ReciprocalHead, log_posterior, log_prior
from mindvideo.losses.debias import debias_loss, debias_parts
from mindvideo.losses.evidential import EvidenceLoss, annealing_weight
from mindvideo.losses.fewshot import classification_loss
from mindvideo.losses.hsic import biased_hsic, rbf_kernel, unbiased_hsic
from mindvideo.models.debias import DebiasHead
from tests.parity import recipe
from tests.parity.checks import ABSENT

pytestmark = pytest.mark.usefixtures("pynative")


def each(pattern: str) -> pytest.MarkDecorator:
    files = recipe.golden_files("dear", pattern)
    return pytest.mark.parametrize("path", files or [pytest.param(None, marks=ABSENT)], ids=lambda p: p and p.stem)


def close(actual, expected, rtol: float, atol: float | np.ndarray = 0.0, of_largest: float = 0.0) -> None:
    """Within `rtol` of each entry, `of_largest` of the largest one, and `atol`."""
    actual = actual.asnumpy() if isinstance(actual, Tensor) else np.asarray(actual)
    expected = np.asarray(expected, np.float64).reshape(actual.shape)
    bound = atol + rtol * np.abs(expected) + of_largest * np.abs(expected).max()
    assert (np.abs(actual - expected) <= bound).all(), np.abs(actual - expected).max()


def classes_of(golden) -> Tensor:
    return Tensor(golden["target"].astype(np.int32))


@each("edl_losses*.npz")
def test_evidence_losses(path: Path):
    golden = np.load(path)
    keys = sorted({name.rsplit("/", 1)[0] for name in golden.files if name.count("/") == 4})
    assert keys
    for key in keys:
        evidence, kind, kl, avu = key.split("/")
        settings = {"kind": kind, "evidence": evidence, "kl": kl == "kl1", "avu": avu}
        if kind in ("mse", "cross_entropy") and avu != "none":
            assert f"{key}/loss_avu" not in golden.files
            with pytest.raises(InputError, match="does not go with"):
                EvidenceLoss(**settings)
            continue
        check_evidence_loss(golden, key, EvidenceLoss(**settings))


def check_evidence_loss(golden, key: str, loss: EvidenceLoss) -> None:
    """All values of lambda in one batch, with lambda a number for each clip."""
    lambdas = golden[f"{key}/lambda"]
    expected = [
        [annealing_weight(str(method), int(epoch), int(golden["total_epoch"])) for epoch in golden["epochs"]]
        for method in golden["annealing_methods"]
    ]
    close(expected, lambdas, rtol=1e-6)
    clips, copies = len(golden["target"]), lambdas.size
    logits, classes = (Tensor(np.concatenate([a] * copies)) for a in (golden["logits"], golden["target"].astype("i4")))
    annealing = Tensor(lambdas.repeat(clips).astype(np.float32))
    value, gradient = ms.value_and_grad(loss, 0)(logits, classes, annealing)
    parts = loss.parts(logits, classes, annealing)
    close(value, golden[f"{key}/total"].mean(), rtol=1e-5)
    close(copies * gradient, golden[f"{key}/grad_logits"], rtol=1e-5, of_largest=3e-5)
    # Where right clips have u near 1, 1 - u of the reference has few digits left.
    close(sum(parts[:4]).reshape(copies, clips).mean(axis=1), golden[f"{key}/total"], rtol=1e-5)
    close(parts.fit, golden[f"{key}/loss_cls"], rtol=1e-6, atol=3e-6)
    close(parts.vacuity, golden[f"{key}/uncertainty"], rtol=1e-6)
    close(parts.evidence_right, golden[f"{key}/evidence_succ"].flat[0], rtol=1e-6)
    close(parts.evidence_wrong, golden[f"{key}/evidence_fail"].flat[0], rtol=1e-6)
    # In the reference's formula float32 has no digits below those of ln G(S).
    total = logits.shape[1] * (1 / parts.vacuity.asnumpy().astype(np.float64))
    digits = np.spacing(gammaln(total).astype(np.float32))
    for name, part, atol in (
        ("loss_var", parts.variance, 1e-7),
        ("loss_kl", parts.divergence, 1e-5 + digits),
        ("loss_avu", parts.calibration, 1e-6),
    ):
        if f"{key}/{name}" in golden.files:
            close(part, golden[f"{key}/{name}"], rtol=1e-5, atol=atol)
        else:
            assert not part.asnumpy().any()


@each("hsic*.npz")
def test_hsic(path: Path):
    """With `old` the same numbers are meant: its mistake is without effect on kernels whose diagonal is 1."""
    golden = np.load(path)
    keys = [name.removesuffix("/value") for name in golden.files if name.endswith("/value")]
    assert keys
    for key in keys:
        if key.startswith("linear_kernel/old"):
            continue  # there the mistake shows
        unbiased, scaled = "unbiased" in key, "alt1" not in key
        names = ("alphaA", "alphaB") if key.endswith("alpha") else ("X", "Y")
        kernel = (lambda x: ops.matmul(x, x.T)) if key.startswith("linear") else rbf_kernel

        def hsic(x, y, kernel=kernel, unbiased=unbiased, scaled=scaled):
            if unbiased:
                return unbiased_hsic(kernel(x), kernel(y), scaled=scaled)
            return biased_hsic(kernel(x), kernel(y))

        value, gradients = ms.value_and_grad(hsic, (0, 1))(*(Tensor(golden[name]) for name in names))
        exact = golden[f"{key}/value_f64"] if f"{key}/value_f64" in golden.files else golden[f"{key}/value"]
        close(value, exact, rtol=1e-5)
        for i, gradient in enumerate(gradients, 1):
            if f"{key}/grad{i}" in golden.files:
                close(gradient, golden[f"{key}/grad{i}"], rtol=1e-5, atol=1e-7, of_largest=1e-5)
    few = Tensor(golden["X"][:3])
    assert float(biased_hsic(rbf_kernel(few), rbf_kernel(few))) == float(golden["note_N_lt_4_returns_zero"])


def debias_head(golden, form: str, maps_BCTHW: np.ndarray) -> DebiasHead:
    num_classes = len(golden[f"{form}/state/f1_fc.bias"])
    head = DebiasHead(maps_BCTHW.shape[1], num_classes, form=form, dropout=0.0)
    for name, parameter in head.parameters_and_names():
        parameter.set_data(Tensor(golden[f"{form}/state/{debias_name(name)}"].reshape(parameter.shape)))
    return head.set_train(True)


def debias_name(name: str) -> str:
    branch, part = name.split(".", 1)
    conv = f"{branch}_conv2d" if branch == "f3" else f"{branch}_conv3d"
    leaves = {"norm.gamma": "bn.weight", "norm.beta": "bn.bias"}
    leaves |= {"norm.moving_mean": "bn.running_mean", "norm.moving_variance": "bn.running_var"}
    if part.startswith("fc."):
        return f"{branch}_{part}"
    leaf = part.removeprefix("conv.")
    return f"{conv}.{leaves.get(leaf, leaf)}"


def debias_maps(golden, name: str = "feat") -> np.ndarray:
    """Feature maps `[B, C, T, H, W]`; files of networks in two dimensions have `[B T, C, H, W]`."""
    feat = golden[name]
    if feat.ndim == 5:
        return feat
    return feat.reshape(-1, int(golden["num_segs"]), *feat.shape[1:]).swapaxes(1, 2)


@each("debias_head_*.npz")
@pytest.mark.parametrize("form", ["published", "head"])
def test_debias_head(path: Path, form: str):
    golden = np.load(path)
    cases = sorted({"/".join(n.split("/")[:3]) for n in golden.files if n.startswith(form) and "/iter" in n})
    assert cases
    for case in cases:
        check_debias_case(golden, form, case)


def check_debias_case(golden, form: str, case: str) -> None:
    maps_BCTHW = debias_maps(golden)
    head, classes = debias_head(golden, form, maps_BCTHW), classes_of(golden)
    orders = Tensor(np.tile(golden["perm"].astype(np.int32), (len(maps_BCTHW), 1)))
    objective = "alternating" if "/alt/" in case else "joint"
    first_turn = int(case.rsplit("iter", 1)[1]) % 2
    branches = {"joint_input_only": [0, 1], "joint_network_only": [0, 2]}.get(case.split("/")[1], [0, 1, 2])

    def chosen(maps: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = head(maps, orders)
        return ops.stack([features[g] for g in branches]), ops.stack([logits[g] for g in branches])

    def loss_of(maps: Tensor) -> Tensor:
        return debias_loss(*chosen(maps), classes, objective, first_turn)

    parameters = head.trainable_params()
    loss, (of_maps, grads) = ms.value_and_grad(loss_of, 0, parameters)(Tensor(maps_BCTHW))
    if f"{case}/post/f1_conv3d.bn.running_mean" in golden.files:
        close(head.f1.conv.norm.moving_mean, golden[f"{case}/post/f1_conv3d.bn.running_mean"], rtol=1e-5, atol=1e-6)
    close(loss, golden[f"{case}/total"], rtol=1e-5)
    fits, terms = debias_parts(*chosen(Tensor(maps_BCTHW)), classes, objective, first_turn)
    for i, g in enumerate(branches):
        name = f"bias{g}" if g else "unbias"
        close(fits[i], golden[f"{case}/loss_{name}_cls"], rtol=1e-5)
        if g and objective == "joint":
            close(terms[i - 1], golden[f"{case}/loss_{name}_hsic"], rtol=1e-5, atol=1e-9)
    if objective == "alternating":
        # The reference adds up kernels of nearly 1 in float32 before it takes their differences.
        digits = np.spacing(np.float32(2 * len(maps_BCTHW) ** 2))
        close(terms.sum(), golden[f"{case}/loss_hsic"].mean(), rtol=1e-5, atol=0.1 * 0.5 * len(terms) * digits)
    close(of_maps, debias_maps(golden, f"{case}/grad_feat"), rtol=1e-3, of_largest=1e-4)
    for parameter, gradient in zip(parameters, grads, strict=True):
        name = debias_name(parameter.name)
        if f"{case}/grad_norm/{name}" in golden.files:
            close(np.linalg.norm(gradient.asnumpy()), golden[f"{case}/grad_norm/{name}"], rtol=1e-3, atol=1e-7)
        else:
            assert not gradient.asnumpy().any(), name
        if f"{case}/grad/{name}" in golden.files:
            close(gradient, golden[f"{case}/grad/{name}"], rtol=1e-3, of_largest=1e-4)


@each("debias_head_*.npz")
def test_the_order_matters_as_in_the_reference(path: Path):
    golden, losses = np.load(path), {}
    maps_BCTHW, classes = debias_maps(golden), classes_of(golden)
    num_frames = maps_BCTHW.shape[2]
    for form in ("published", "head"):
        head = debias_head(golden, form, maps_BCTHW)
        for order in (np.arange(num_frames), golden["perm"], np.arange(num_frames)[::-1]):
            orders = Tensor(np.tile(order.astype(np.int32), (len(maps_BCTHW), 1)))
            fits, _ = debias_parts(*head(Tensor(maps_BCTHW), orders), classes, "joint")
            losses.setdefault(form, []).append(float(fits[1].mean()))
        close(losses[form], golden[f"{form}/bias1_cls_for_identity_perm_reversed"], rtol=1e-5)


def reciprocal_head(golden, key: str, prototypes: bool, euclidean: bool = False) -> ReciprocalHead:
    centers = golden[f"{key}/centers"]
    head = ReciprocalHead(centers.shape[1], len(centers), prototypes=prototypes, euclidean=euclidean, dropout=0.0)
    head.centers.set_data(Tensor(centers))
    return head


def with_gradients(head: nn.Cell, maps: Tensor, classes: Tensor, temperature: float = 1.0):
    """Loss, its two parts, and the gradients of the maps `[B, C, ...]` and the head's parameters."""

    def loss_of(maps: Tensor):
        logits, penalty = head.outputs(maps.flatten(2).mean(axis=2).expand_dims(1), classes)
        fit = classification_loss(logits / temperature, classes)
        return fit + penalty, fit, penalty, logits

    values, grads = ms.value_and_grad(loss_of, 0, head.trainable_params(), has_aux=True)(maps)
    return values, grads


@each("rpl*.npz")
def test_reciprocal_points(path: Path):
    golden = np.load(path)
    keys = [n.removesuffix("/total") for n in golden.files if n.endswith("/total")]
    assert keys
    maps, classes = Tensor(golden["feat"].reshape(*golden["feat"].shape[:2], -1)), classes_of(golden)
    for key in keys:
        kind, temperature = key.split("/")[0], float(key.rsplit("T", 1)[1])
        head = reciprocal_head(golden, key, prototypes=kind == "GCPLoss")
        if head.radius is not None:
            head.radius.set_data(Tensor([float(golden[f"{key}/radius"])], ms.float32))
        (total, fit, penalty, logits), (of_maps, grads) = with_gradients(head, maps, classes, temperature)
        for name, value in (("dist", logits), ("loss_cls", fit), ("loss_open", penalty), ("total", total)):
            close(value, golden[f"{key}/{name}"], rtol=1e-5, atol=1e-7)
        close(of_maps, golden[f"{key}/grad_feat"], rtol=1e-5, of_largest=1e-5)
        for name, gradient in zip(("centers", "radius"), grads, strict=False):
            close(gradient, golden[f"{key}/grad_{name}"], rtol=1e-5, of_largest=1e-5)
        euclidean = reciprocal_head(golden, key, prototypes=False, euclidean=True)
        features = Tensor(golden[f"{key}/feature"]).expand_dims(1)
        close(euclidean(features), golden[f"{key}/compute_dist_l2"], rtol=1e-5)


@each("rpl*.npz")
def test_several_centres_are_their_mean_and_segments_are_averaged(path: Path):
    golden = np.load(path)
    centers, features = golden["multi/centers"], golden["RPLoss/T1/feature"]
    mean_KC = centers.reshape(-1, int(golden["multi/num_centers"]), centers.shape[1]).mean(axis=1)
    close(features @ mean_KC.T, golden["multi/dist"], rtol=1e-5, atol=1e-6)
    head = reciprocal_head(golden, "tsm", prototypes=False)
    clips = len(golden["tsm/dist"])
    vectors_BSC = golden["tsm/feat"].mean(axis=(2, 3)).reshape(clips, -1, centers.shape[1])
    close(head(Tensor(vectors_BSC)), golden["tsm/dist"], rtol=1e-5, atol=1e-6)


@each("rpl*.npz")
def test_the_authors_own_reciprocal_points(path: Path):
    golden = np.load(path)
    classes = classes_of(golden)
    for kind in ("RPLoss", "GCPLoss"):
        key = f"official/{kind}"
        head = reciprocal_head(golden, f"{kind}/T1", prototypes=kind == "GCPLoss", euclidean=True)
        if head.radius is not None:
            head.radius.set_data(Tensor([float(golden["RPLoss/T1/radius"])], ms.float32))
        features = Tensor(golden[f"{key}/feature"])
        (total, _, _, logits), (of_features, grads) = with_gradients(head, features.expand_dims(2), classes)
        close(ops.softmax(logits, 1), golden[f"{key}/prob"], rtol=1e-5)
        close(total, golden[f"{key}/loss"], rtol=1e-5)
        # The reference multiplies its squares out, which costs it digits.
        close(of_features, golden[f"{key}/grad_feature"], rtol=1e-5, of_largest=3e-5)
        close(grads[0], golden[f"{key}/grad_centers"], rtol=1e-5, of_largest=3e-5)


@each("bnn*.npz")
def test_bayesian_head(path: Path):
    golden = np.load(path)
    num_classes, num_features = golden["weight_mu"].shape
    head = BayesianHead(num_features, num_classes, complexity=float(golden["kl_weight"]))
    for parameter in head.get_parameters():
        parameter.set_data(Tensor(golden[parameter.name]))
    noise_PKD = np.concatenate((golden["eps_w"], golden["eps_b"][..., None]), axis=2)
    noise, vectors = Tensor(noise_PKD), Tensor(golden["x"]).expand_dims(1)
    close(head.logits_of(vectors, noise), golden["train/outputs"], rtol=1e-5, atol=1e-6)
    for p, eps in enumerate(noise_PKD):
        weights = head._weights(Tensor(eps[None]))
        close(sum(map(log_prior, weights)), golden["train/log_priors"][p], rtol=1e-5)
        posterior = log_posterior(head.weight_rho, Tensor(eps[:, :-1])) + log_posterior(
            head.bias_rho, Tensor(eps[:, -1])
        )
        close(posterior, golden["train/log_posteriors"][p], rtol=1e-5)
    check_bayesian_gradients(golden, head, vectors, noise)
    with_mean = np.concatenate((noise_PKD, np.zeros_like(noise_PKD[:1])))
    close(head.logits_of(vectors, Tensor(with_mean)), golden["test/outputs"], rtol=1e-5, atol=1e-6)
    close(head.logits_of(vectors, Tensor(with_mean)).mean(axis=0), golden["test/pred_mean"], rtol=1e-5, atol=1e-6)
    once = head.logits_of(vectors, Tensor(with_mean[[0, -1]]))
    close(once, golden["test_npass1/outputs"], rtol=1e-5, atol=1e-6)
    close(once.mean(axis=0), golden["test_npass1/pred_mean"], rtol=1e-5, atol=1e-6)


def check_bayesian_gradients(golden, head: BayesianHead, vectors: Tensor, noise: Tensor) -> None:
    classes, parameters = classes_of(golden), head.trainable_params()

    def loss_of(vectors: Tensor):
        fit = classification_loss(head.logits_of(vectors, noise).mean(axis=0), classes)
        penalty = head.penalty_of(noise)
        return fit + penalty, fit, penalty

    (total, fit, penalty), (of_vectors, grads) = ms.value_and_grad(loss_of, 0, parameters, has_aux=True)(vectors)
    for name, value in (("total", total), ("loss_cls", fit), ("loss_complexity", penalty)):
        close(value, golden[f"train/{name}"], rtol=1e-5)
    close(of_vectors, golden["train/grad_x"], rtol=1e-4, of_largest=1e-5)
    of_penalty = ms.grad(lambda: head.penalty_of(noise), None, parameters)()
    close(penalty / head.complexity, golden["kl_only/value"], rtol=1e-5)
    for parameter, gradient, alone in zip(parameters, grads, of_penalty, strict=True):
        close(gradient, golden[f"train/grad_{parameter.name}"], rtol=1e-4, of_largest=1e-5)
        close(alone / head.complexity, golden[f"kl_only/grad_{parameter.name}"], rtol=1e-4, of_largest=1e-5)
