"""`python -m services.cli`: the `tenor` command."""

from services.cli.main import app

if __name__ == "__main__":
    app()
