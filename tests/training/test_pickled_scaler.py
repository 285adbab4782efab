"""A pickled scaler is read as data; whatever else a pickle holds is refused, and nothing of it runs."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from shared.errors import BundleError
from training.pickled_scaler import Scaler, read_scaler

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
WRITERS: dict[str, Callable[[object, int], bytes]] = {
    "pickle": pickle.dumps,
    "joblib": lambda scaler, protocol: _by_joblib(scaler, protocol),
}


def _by_joblib(scaler: object, protocol: int) -> bytes:
    out = io.BytesIO()
    joblib.dump(scaler, out, protocol=protocol)
    return out.getvalue()


def features(dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(0).normal(3, 5, size=(30, 12)).astype(dtype)


def read(folder: Path, content: bytes) -> Scaler:
    path = folder / "scaler.pkl"
    path.write_bytes(content)
    return read_scaler(path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_numbers_are_those_that_scikit_learn_wrote(tmp_path: Path, writer: str, protocol: int, dtype: str) -> None:
    fitted = StandardScaler().fit(features(dtype))
    scaler = read(tmp_path, WRITERS[writer](fitted, protocol))
    np.testing.assert_array_equal(scaler.mean, fitted.mean_)
    np.testing.assert_array_equal(scaler.scale, fitted.scale_)


@pytest.mark.parametrize(("with_mean", "with_std"), [(False, True), (True, False)])
def test_a_scaler_that_only_shifts_or_only_scales_does_nothing_else(
    tmp_path: Path, with_mean: bool, with_std: bool
) -> None:
    fitted = StandardScaler(with_mean=with_mean, with_std=with_std).fit(features())
    scaler = read(tmp_path, pickle.dumps(fitted))
    np.testing.assert_allclose((features() - scaler.mean) / scaler.scale, np.asarray(fitted.transform(features())))


@pytest.mark.parametrize(
    "other", [StandardScaler(), MinMaxScaler().fit(features()), {"mean_": [1.0]}, "a scaler", None, [1.0, 2.0]]
)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_no_fitted_scaler_is_refused(tmp_path: Path, writer: str, other: object) -> None:
    with pytest.raises(BundleError, match=r"scaler\.pkl is not a fitted StandardScaler"):
        read(tmp_path, WRITERS[writer](other, pickle.DEFAULT_PROTOCOL))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scaler_that_would_divide_by_nonsense_is_refused(tmp_path: Path, scale: float) -> None:
    fitted = StandardScaler().fit(features())
    fitted.scale_ = np.full(12, scale)
    with pytest.raises(BundleError, match="above 0"):
        read(tmp_path, pickle.dumps(fitted))


class Attack:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path, means: str) -> None:
        self._target, self._means = target, means

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        if self._means == "system":
            return os.system, (f"touch {self._target}",)
        if self._means == "eval":
            return eval, (f"open({str(self._target)!r}, 'w').close()",)
        return getattr(Path(self._target), "touch"), ()  # noqa: B009 - a bound method, as it is pickled


@pytest.mark.parametrize("means", ["system", "eval", "method"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("where", ["alone", "inside", "in an array"])
def test_an_attack_is_refused_and_does_not_run(
    tmp_path: Path, means: str, writer: str, protocol: int, where: str
) -> None:
    target = tmp_path / "was-here"
    content: object = Attack(target, means)
    if where != "alone":
        scaler = StandardScaler().fit(features())
        scaler.mean_ = np.array([content] * 12, dtype=object) if where == "in an array" else content
        content = scaler
    written = WRITERS[writer](content, protocol)
    with pytest.raises(BundleError, match=r"scaler\.pkl is not"):
        read(tmp_path, written)
    assert not target.exists()
    if where == "alone":
        pickle.loads(written)
        assert target.exists(), "the attack would not have worked"


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",
        b"(S'touch %s'\nios\nsystem\n.",
        b"\x80\x02cposix\nsystem\nX\x10\x00\x00\x00touch was-here-xx\x85R.",
        b"\x80\x04\x82\x01.",
        b"\x80\x04Pperson\n.",
        b"\x80\x02cnumpy\ndtype\ncos\nsystem\nb.",
    ],
)
def test_older_ways_to_call_are_no_way_in(tmp_path: Path, program: bytes) -> None:
    target = tmp_path / "was-here"
    with pytest.raises(BundleError):
        read(tmp_path, program.replace(b"%s", str(target).encode()))
    assert not target.exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    writer=st.sampled_from(sorted(WRITERS)),
    protocol=st.sampled_from(PROTOCOLS),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path: Path, writer: str, protocol: int, place: float, byte: int, cut: bool
) -> None:
    content = bytearray(WRITERS[writer](StandardScaler().fit(features()), protocol))
    at = int(place * len(content))
    content[at] = byte
    try:
        scaler = read(tmp_path, bytes(content[:at] if cut else content))
    except BundleError:
        return
    assert scaler.mean.shape == scaler.scale.shape
    assert (scaler.scale > 0).all()
