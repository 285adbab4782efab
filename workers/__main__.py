"""`python -m workers`: one worker process."""

import sys

from shared.errors import EX_CONFIG, SetupError, TenorError
from shared.observability.logging import configure_logging
from shared.self_check import check_step
from shared.settings import get_settings, log_unknown_variables


def main() -> None:
    """Run jobs until the process is told to stop.

    Raises:
        SetupError: a person has to change a setting or install something first.
        Unavailable: Postgres or the store of recordings cannot be reached.
    """
    settings = get_settings()
    configure_logging(settings.observability.log_format)
    log_unknown_variables()
    with check_step("import the packages", "torch", "transformers", "faster-whisper", "celery"):
        from workers.process import run
    run(settings)


if __name__ == "__main__":
    try:
        main()
    except TenorError as error:
        sys.stderr.write(f"{error.title}: {error.detail}\n")
        sys.exit(EX_CONFIG if isinstance(error, SetupError) else 1)
