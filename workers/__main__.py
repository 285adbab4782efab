"""`python -m workers`: one worker process."""

import sys

from shared.errors import EX_CONFIG, SetupError, TenorError
from shared.settings import get_settings
from shared.telemetry import configure_logging
from workers.app import run

if __name__ == "__main__":
    try:
        settings = get_settings()
        configure_logging(settings.log_format)
        run(settings)
    except TenorError as error:
        sys.stderr.write(f"{error.title}: {error.detail}\n")
        sys.exit(EX_CONFIG if isinstance(error, SetupError) else 1)
