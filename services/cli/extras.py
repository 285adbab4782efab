"""Checks that the optional dependencies of a command are installed."""

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, requires

from packaging.requirements import Requirement

from shared.errors import SetupError


def require_extras(*extras: str) -> None:
    """Check that the packages of these extras of Tenor are installed.

    Raises:
        SetupError: packages of an extra are missing.
    """
    if missing := [extra for extra in extras if not is_installed(extra)]:
        raise SetupError(f"this command needs more packages: pip install 'tenor[{','.join(missing)}]'")


def is_installed(extra: str) -> bool:
    """Return whether the packages that pyproject.toml lists for an extra of Tenor are installed."""
    return not any(_missing_packages("tenor", [extra]))


def _missing_packages(package: str, extras: Iterable[str]) -> Iterator[str]:
    """Yield the packages that are missing for some extras of a package."""
    for extra in extras:
        for line in requires(package) or ():
            requirement = Requirement(line)
            if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
                continue
            try:
                distribution(requirement.name)
            except PackageNotFoundError:
                yield requirement.name
            else:
                yield from _missing_packages(requirement.name, requirement.extras)
