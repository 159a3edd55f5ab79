"""Where the command begins."""

import signal


def main() -> None:
    """Run the command."""
    by_python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if by_python:
        # Ctrl-C while the modules are read has nothing to undo, and is not worth a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from app import cli

    if by_python:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
