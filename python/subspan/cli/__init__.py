"""The ``subspan`` command. Every command is one Python call; here are only words and a bar."""

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:  # the command itself: a line to read, not a traceback
    raise SystemExit(
        f"subspan: the command needs typer and rich ({error}). "
        "Install them with: pip install 'subspan[report]'"
    ) from error

from subspan.cli import compress, jobs, kv, rotate, sae

__all__ = ["app", "main"]

app = typer.Typer(
    name="subspan",
    help="Find, compare, encode and compress subspaces of features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(jobs.atlas, jobs.compare, jobs.activations),
    *(compress.compress, kv.kv, rotate.rotate),
):
    app.command()(command)
app.add_typer(sae.app)
app.command()(jobs.info)


def main() -> None:
    """Run the command line."""
    app()


@app.callback()
def _root() -> None:
    """Find, compare, encode and compress subspaces of features."""
